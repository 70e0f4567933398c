//! Reads from replicas through the proxy: never older than what the proxy has acknowledged to anyone.

use std::time::Duration;

use crate::support::{Client, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);

/// A master, a replica of it, and a proxy that reads from both.
struct Circuit {
    master: Redis,
    replica: Redis,
    proxy: Pointsman,
    listen: String,
}

impl Circuit {
    fn start() -> Self {
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"]);
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
        eventually(SOON, || info(&replica, "replication").contains("master_link_status:up"));
        let listen = format!("127.0.0.1:{}", free_port());
        let mut proxy = Pointsman::start(&[
            "proxy",
            "--listen",
            &listen,
            "--master",
            &master.addr(),
            "--replica",
            &replica.addr(),
            "--workers",
            "2",
        ]);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        Self {
            master,
            replica,
            proxy,
            listen,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }

    /// How many GETs the replica has run.
    fn gets_on_replica(&self) -> u64 {
        let stats = info(&self.replica, "commandstats");
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Until a key that nobody writes is read from the replica.
    fn wait_for_replica_reads(&self) {
        let mut client = self.client();
        eventually(SOON, || {
            let before = self.gets_on_replica();
            client.command(&["GET", "untouched"]);
            self.gets_on_replica() > before
        });
    }
}

fn info(redis: &Redis, section: &str) -> String {
    redis.command(&["INFO", section]).text()
}

#[test]
fn a_write_on_one_connection_is_read_on_another_at_once() {
    let circuit = Circuit::start();
    circuit.wait_for_replica_reads();
    let before = circuit.gets_on_replica();
    let mut writer = circuit.client();
    // Two workers: some of these are on the writer's, some on the other.
    let mut readers: Vec<Client> = (0..4).map(|_| circuit.client()).collect();
    for number in 0..3000u32 {
        let (key, value) = (format!("k{}", number % 7), number.to_string());
        assert_eq!(writer.command(&["SET", &key, &value]), Value::ok());
        let reader = &mut readers[number as usize % 4];
        assert_eq!(
            reader.command(&["GET", &key]),
            Value::bulk(&value),
            "a stale read of {key}"
        );
        let untouched = reader.command(&["GET", &format!("u{number}")]);
        assert_eq!(untouched, Value::Null);
    }
    assert!(
        circuit.gets_on_replica() > before + 1000,
        "hardly a read went to the replica"
    );
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_pipelined_read_does_not_see_a_later_write_of_its_own_session() {
    // Rule A8: two lanes have no order.
    let circuit = Circuit::start();
    circuit.wait_for_replica_reads();
    let mut client = circuit.client();
    for round in 0..300u32 {
        client.send(format!("GET j\r\nGET j\r\nSET j {round}\r\nGET j\r\n").as_bytes());
        let replies: Vec<Value> = (0..4).map(|_| client.read_reply()).collect();
        let old = round
            .checked_sub(1)
            .map_or(Value::Null, |old| Value::bulk(&old.to_string()));
        assert_eq!(replies[..2], [old.clone(), old]);
        assert_eq!(replies[3], Value::bulk(&round.to_string()));
    }
}

#[test]
fn what_a_script_or_a_flush_changes_is_fenced_although_it_names_no_key() {
    // Rule A10.
    let circuit = Circuit::start();
    circuit.wait_for_replica_reads();
    let (mut writer, mut reader) = (circuit.client(), circuit.client());
    for round in 0..200u32 {
        let text = round.to_string();
        writer.command(&["EVAL", "return redis.call('set', 'hidden', ARGV[1])", "0", &text]);
        assert_eq!(reader.command(&["GET", "hidden"]), Value::bulk(&text));
        assert_eq!(reader.command(&["DBSIZE"]), Value::Int(1));
        assert_eq!(writer.command(&["FLUSHALL"]), Value::ok());
        assert_eq!(reader.command(&["GET", "hidden"]), Value::Null);
        assert_eq!(reader.command(&["KEYS", "*"]), Value::Array(Vec::new()));
    }
}

#[test]
fn a_transaction_of_many_parts_is_fenced_until_it_is_executed() {
    let circuit = Circuit::start();
    circuit.wait_for_replica_reads();
    let (mut writer, mut reader) = (circuit.client(), circuit.client());
    for round in 0..200u32 {
        let text = round.to_string();
        writer.command(&["WATCH", "t"]);
        writer.command(&["MULTI"]);
        writer.command(&["SET", "t", &text]);
        writer.command(&["EXEC"]);
        assert_eq!(reader.command(&["GET", "t"]), Value::bulk(&text));
    }
}

#[test]
fn a_frozen_replica_costs_its_readers_little_and_a_dead_one_nothing() {
    let mut circuit = Circuit::start();
    circuit.wait_for_replica_reads();
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    circuit.replica.stop();
    client.set_read_timeout(Duration::from_secs(2));
    for number in 0..50 {
        assert_eq!(client.command(&["GET", &format!("none{number}")]), Value::Null);
    }
    circuit.replica.cont();
    circuit.wait_for_replica_reads();
    circuit.replica.kill9();
    for _ in 0..100 {
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    }
    // Restarted empty, with another life: not read from before it has everything (rule A11).
    circuit.replica.restart();
    let mut seen = 0;
    eventually(SOON, || {
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
        seen = circuit.gets_on_replica();
        seen > 0
    });
}

#[test]
fn reads_go_on_while_the_master_is_away() {
    let mut circuit = Circuit::start();
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    eventually(SOON, || {
        let before = circuit.gets_on_replica();
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
        circuit.gets_on_replica() > before
    });
    circuit.master.kill9();
    client.set_read_timeout(Duration::from_millis(500));
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
}

#[test]
fn a_scan_finds_every_key_and_element_although_cursors_differ_from_node_to_node() {
    let circuit = Circuit::start();
    circuit.wait_for_replica_reads();
    let mut client = circuit.client();
    let fill = "for i = 1, 2000 do redis.call('SET', 'k' .. i, i) redis.call('HSET', 'hash', 'f' .. i, i) end";
    client.command(&["EVAL", fill, "0"]);
    let mut scan = |command: &[&str]| {
        let (mut cursor, mut found) = ("0".to_owned(), std::collections::HashSet::new());
        loop {
            let words: Vec<&str> = command
                .iter()
                .map(|word| if *word == "C" { &cursor } else { *word })
                .collect();
            let Value::Array(reply) = client.command(&words) else {
                panic!("no array")
            };
            let [next, Value::Array(page)] = &reply[..] else {
                panic!("no page")
            };
            found.extend(page.iter().map(Value::text));
            cursor = next.text();
            if cursor == "0" {
                return found;
            }
            // Time enough for the fences to close: replicas take reads again.
            client.command(&["GET", "untouched"]);
        }
    };
    let keys = scan(&["SCAN", "C"]);
    assert_eq!(keys.len(), 2001);
    let fields = scan(&["HSCAN", "hash", "C"]);
    assert!((1..=2000).all(|number| fields.contains(&format!("f{number}"))));
    // TOUCH is for the sake of the master's eviction.
    assert_eq!(client.command(&["TOUCH", "k1"]), Value::Int(1));
    let seen_by_replica = info(&circuit.replica, "commandstats");
    for name in ["cmdstat_scan:", "cmdstat_hscan:", "cmdstat_touch:"] {
        assert!(!seen_by_replica.contains(name), "{name}");
    }
}
