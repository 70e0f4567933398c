//! Acknowledgement by replicas: no reply shows what too few replicas have.
//!
//! Each test runs against `redis-server`, and against every server that `POINTSMAN_SERVERS` names, a list of paths with
//! ':' between them:
//!
//! ```text
//! POINTSMAN_SERVERS=DIR/redis-server-6.2:DIR/redis-server-8.0:DIR/valkey-server-8.1 cargo nextest run --test it -E 'test(acks)'
//! ```

use std::env;
use std::time::Duration;

use crate::support::{Client, Pointsman, Redis, START_DEADLINE, Value, encode, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);
/// Longer than the proxies of these tests wait for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(10);
const NOBODY: &str = "INDOUBT written on the master, acknowledged by 0 of 1 replicas";

/// A master, its replicas, and a proxy that asks for `w` acknowledgements.
struct Shard {
    master: Redis,
    replicas: Vec<Redis>,
    /// The settings that name them.
    servers: String,
    _proxy: Pointsman,
    listen: String,
}

impl Shard {
    fn start(binary: &str, replicas: usize, w: usize, settings: &str) -> Self {
        Self::named(binary, replicas, w, settings, "127.0.0.1")
    }

    /// One whose replicas the proxy knows by this host.
    fn named(binary: &str, replicas: usize, w: usize, settings: &str, host: &str) -> Self {
        let master = Redis::start_binary(binary, &["--repl-diskless-sync-delay", "0"]);
        let port = master.port().to_string();
        let follow = |_| Redis::start_binary(binary, &["--replicaof", "127.0.0.1", &port]);
        let replicas: Vec<Redis> = (0..replicas).map(follow).collect();
        eventually(SOON, || replicas.iter().all(is_linked));
        let named: Vec<String> = replicas
            .iter()
            .map(|replica| format!("'{host}:{}'", replica.port()))
            .collect();
        let servers = format!("master = '{}'\nreplicas = [{}]\n", master.addr(), named.join(", "));
        let (proxy, listen) = proxy(&format!("{servers}ack_replicas = {w}\n{settings}"));
        // After a full sync Redis sends a replica nothing until its next acknowledgement, up to a second later.
        let mut client = Client::connect(listen.as_str());
        client.set_read_timeout(PATIENCE);
        eventually(SOON, || client.command(&["SET", "ready", "yes"]) == Value::ok());
        Self {
            master,
            replicas,
            servers,
            _proxy: proxy,
            listen,
        }
    }

    /// Another proxy before the same servers, and where it listens; it asks for one replica.
    fn another_proxy(&self, settings: &str) -> (Pointsman, String) {
        proxy(&format!("{}ack_replicas = 1\n{settings}", self.servers))
    }

    fn client(&self) -> Client {
        let client = Client::connect(self.listen.as_str());
        client.set_read_timeout(PATIENCE);
        client
    }
}

/// A proxy that serves, and where it listens.
fn proxy(settings: &str) -> (Pointsman, String) {
    let listen = format!("127.0.0.1:{}", free_port());
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("proxy.toml");
    std::fs::write(&config, format!("[proxy]\nlisten = ['{listen}']\n{settings}")).unwrap();
    let mut proxy = Pointsman::start(&["proxy", "--workers", "2", "--config", config.to_str().unwrap()]);
    proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
    (proxy, listen)
}

fn is_linked(replica: &Redis) -> bool {
    replica
        .command(&["INFO", "replication"])
        .text()
        .contains("master_link_status:up")
}

/// How often a server was asked a command.
fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]).text();
    let begin = format!("cmdstat_{command}:calls=");
    let calls = stats.lines().find_map(|line| line.strip_prefix(&begin));
    calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// Runs a test against all servers there are.
fn on_every_server(test: impl Fn(&str)) {
    let named = env::var("POINTSMAN_SERVERS").unwrap_or_default();
    let named = named.split(':').filter(|path| !path.is_empty());
    for binary in std::iter::once("redis-server").chain(named) {
        println!("{binary}");
        test(binary);
    }
}

/// The time that `act` takes.
fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let begin = pointsman::clock::now();
    let done = act();
    (done, begin.elapsed())
}

#[test]
fn nothing_is_acknowledged_while_the_replica_is_frozen() {
    on_every_server(|binary| {
        let shard = Shard::start(binary, 1, 1, "ack_timeout_ms = 400\n");
        let mut client = shard.client();
        for round in 0..100 {
            assert_eq!(client.command(&["SET", "before", &round.to_string()]), Value::ok());
        }
        shard.replicas[0].stop();
        for write in [
            &["SET", "k", "1"][..],
            &["EVAL", "return redis.call('incr', KEYS[1])", "1", "n"],
        ] {
            let (reply, took) = timed(|| client.command(write));
            assert_eq!(reply, Value::Error(NOBODY.to_owned()), "{write:?}");
            assert!(
                took >= Duration::from_millis(400) && took < Duration::from_secs(3),
                "{took:?}"
            );
        }
        assert_eq!(shard.master.command(&["GET", "k"]), Value::bulk("1"), "it is written");
        let (pong, took) = timed(|| client.command(&["PING"]));
        assert_eq!(
            (pong, took < Duration::from_millis(300)),
            (Value::Simple("PONG".into()), true)
        );
        shard.replicas[0].cont();
        // It takes the first round after it is back.
        eventually(SOON, || client.command(&["SET", "k", "2"]) == Value::ok());
        assert_eq!(client.command(&["SET", "k", "3"]), Value::ok());
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("3"));
        shard.replicas[0].stop();
        let mut late = shard.client();
        late.send(&encode(&["SET", "late", "1"]));
        eventually(SOON, || shard.master.command(&["GET", "late"]) == Value::bulk("1"));
        shard.replicas[0].cont();
        assert_eq!(late.read_reply(), Value::ok(), "the replica went on in time");
    });
}

#[test]
fn a_replica_that_is_no_member_acknowledges_nothing() {
    on_every_server(|binary| {
        let shard = Shard::start(binary, 1, 1, "ack_timeout_ms = 400\n");
        let foreign = Redis::start_binary(binary, &["--replicaof", "127.0.0.1", &shard.master.port().to_string()]);
        eventually(SOON, || is_linked(&foreign));
        let mut client = shard.client();
        for round in 0..100 {
            assert_eq!(client.command(&["SET", "before", &round.to_string()]), Value::ok());
        }
        // After a full sync a replica gets nothing for up to a second.
        eventually(SOON, || foreign.command(&["GET", "before"]) == Value::bulk("99"));
        shard.replicas[0].stop();
        let waits = calls(&shard.master, "wait");
        assert_eq!(client.command(&["SET", "k", "1"]), Value::Error(NOBODY.to_owned()));
        assert!(client.command(&["GET", "k"]).is_error("INDOUBT read on the master"));
        let waits = calls(&shard.master, "wait") - waits;
        assert!(waits < 200, "it is asked all the time: {waits}");
        assert_eq!(foreign.command(&["GET", "k"]), Value::bulk("1"), "the stranger has it");
        shard.replicas[0].cont();
        eventually(SOON, || client.command(&["SET", "k", "2"]) == Value::ok());
        // Strangers are in nobody's way.
        foreign.stop();
        let (reply, took) = timed(|| client.command(&["SET", "k", "3"]));
        assert_eq!(reply, Value::ok());
        assert!(took < Duration::from_millis(300), "{took:?}");
        foreign.cont();
    });
}

#[test]
fn a_write_counts_that_a_replica_has_on_disk_where_that_is_asked_for() {
    on_every_server(|binary| {
        let shard = Shard::start(binary, 1, 1, "ack_timeout_ms = 400\n");
        let knows = shard.master.command(&["COMMAND", "INFO", "WAITAOF"]);
        if knows == Value::Array(vec![Value::Null]) {
            println!("{binary} has no WAITAOF: it cannot be asked what is on disk");
            return;
        }
        // With 'everysec' it takes as long.
        shard.replicas[0].command(&["CONFIG", "SET", "appendfsync", "always"]);
        shard.replicas[0].command(&["CONFIG", "SET", "appendonly", "yes"]);
        let (_proxy, listen) = shard.another_proxy("ack_on_disk = true\nack_timeout_ms = 1000\n");
        let mut client = Client::connect(listen.as_str());
        client.set_read_timeout(PATIENCE);
        eventually(SOON, || client.command(&["SET", "k", "1"]) == Value::ok());
        for round in 0..20 {
            assert_eq!(client.command(&["SET", "k", &round.to_string()]), Value::ok());
        }
        // In memory it still has everything, and that is what others ask for.
        shard.replicas[0].command(&["CONFIG", "SET", "appendonly", "no"]);
        assert_eq!(client.command(&["SET", "k", "2"]), Value::Error(NOBODY.to_owned()));
        assert_eq!(shard.replicas[0].command(&["GET", "k"]), Value::bulk("2"));
        assert_eq!(shard.client().command(&["SET", "other", "1"]), Value::ok());
        // A stranger's disk is no member's.
        let port = shard.master.port().to_string();
        let foreign = Redis::start_binary(binary, &["--replicaof", "127.0.0.1", &port, "--appendonly", "yes"]);
        eventually(SOON, || foreign.command(&["GET", "k"]) == Value::bulk("2"));
        assert_eq!(client.command(&["SET", "k", "3"]), Value::Error(NOBODY.to_owned()));
        drop(foreign);
        shard.replicas[0].command(&["CONFIG", "SET", "appendonly", "yes"]);
        eventually(SOON, || client.command(&["SET", "k", "4"]) == Value::ok());
    });
}

#[test]
fn what_a_server_cannot_be_asked_is_acknowledged_by_nobody() {
    let shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 400\n");
    if shard.master.command(&["COMMAND", "INFO", "WAITAOF"]) != Value::Array(vec![Value::Null]) {
        println!("this redis-server has WAITAOF");
        return;
    }
    let (_proxy, listen) = shard.another_proxy("ack_on_disk = true\nack_timeout_ms = 300\n");
    let mut client = Client::connect(listen.as_str());
    client.set_read_timeout(PATIENCE);
    assert_eq!(client.command(&["SET", "k", "1"]), Value::Error(NOBODY.to_owned()));
    assert_eq!(client.command(&["PING"]), Value::Simple("PONG".into()));
}

#[test]
fn a_member_counts_that_is_known_by_name() {
    let shard = Shard::named("redis-server", 1, 1, "ack_timeout_ms = 400\n", "localhost");
    let mut client = shard.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
}

#[test]
fn it_is_said_how_many_replicas_have_a_write() {
    on_every_server(|binary| {
        let shard = Shard::start(binary, 2, 2, "ack_timeout_ms = 400\n");
        let mut client = shard.client();
        assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
        shard.replicas[1].stop();
        let indoubt = "INDOUBT written on the master, acknowledged by 1 of 2 replicas";
        assert_eq!(client.command(&["SET", "k", "2"]), Value::Error(indoubt.to_owned()));
        shard.replicas[1].cont();
        eventually(SOON, || client.command(&["SET", "k", "3"]) == Value::ok());
    });
}

#[test]
fn a_listener_that_asks_for_more_gets_more_and_nobody_else_waits() {
    let strict = format!("127.0.0.1:{}", free_port());
    let settings = format!("ack_timeout_ms = 800\nlisteners = [{{ listen = '{strict}', ack_replicas = 2 }}]\n");
    let shard = Shard::start("redis-server", 2, 1, &settings);
    let mut client = shard.client();
    let mut strict = Client::connect(strict.as_str());
    strict.set_read_timeout(PATIENCE);
    eventually(SOON, || strict.command(&["SET", "k", "1"]) == Value::ok());
    // They see each other.
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("1"));
    let list = client.command(&["CLIENT", "LIST"]).text();
    assert_eq!(list.lines().count(), 2, "{list}");
    shard.replicas[1].stop();
    strict.send(&encode(&["SET", "k", "2"]));
    eventually(SOON, || shard.master.command(&["GET", "k"]) == Value::bulk("2"));
    let (reply, took) = timed(|| client.command(&["SET", "other", "1"]));
    assert_eq!(reply, Value::ok());
    assert!(took < Duration::from_millis(400), "{took:?}");
    let short = "INDOUBT written on the master, acknowledged by 1 of 2 replicas";
    assert_eq!(strict.read_reply(), Value::Error(short.to_owned()));
    assert_eq!(client.command(&["SET", "k", "3"]), Value::ok());
    shard.replicas[1].cont();
    eventually(SOON, || strict.command(&["SET", "k", "4"]) == Value::ok());
}

#[test]
fn a_server_that_refuses_writes_acknowledges_nothing_by_mistake() {
    on_every_server(|binary| {
        let shard = Shard::start(binary, 1, 1, "ack_timeout_ms = 700\n");
        let mut client = shard.client();
        assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
        shard.replicas[0].stop();
        client.send(&encode(&["SET", "k", "2"]));
        eventually(SOON, || shard.master.command(&["GET", "k"]) == Value::bulk("2"));
        // A folder stands where the file would: saving fails, and from then on PING and writes are refused.
        let dir = shard.master.command(&["CONFIG", "GET", "dir"]);
        let Value::Array(dir) = dir else { panic!("{dir:?}") };
        let file = format!("{}/dump.rdb", dir[1].text());
        let _may_not_be_there = std::fs::remove_file(&file);
        std::fs::create_dir_all(format!("{file}/full")).unwrap();
        shard.master.command(&["CONFIG", "SET", "save", "3600 1"]);
        // It may be busy saving for its replica yet.
        eventually(SOON, || {
            shard.master.command(&["BGSAVE"]);
            shard.master.command(&["PING"]).is_error("MISCONF")
        });
        assert_eq!(client.read_reply(), Value::Error(NOBODY.to_owned()));
        assert!(client.command(&["SET", "k", "3"]).is_error("MISCONF"));
        shard.replicas[0].cont();
        shard.master.command(&["CONFIG", "SET", "save", ""]);
        eventually(SOON, || client.command(&["SET", "k", "4"]) == Value::ok());
    });
}

#[test]
fn nobody_is_shown_what_is_not_acknowledged_and_all_else_goes_on() {
    let shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 1500\n");
    let (mut writer, mut reader, mut other) = (shard.client(), shard.client(), shard.client());
    for key in ["k", "other"] {
        assert_eq!(writer.command(&["SET", key, "old"]), Value::ok());
    }
    shard.replicas[0].stop();
    writer.send(&encode(&["SET", "k", "new"]));
    eventually(SOON, || shard.master.command(&["GET", "k"]) == Value::bulk("new"));
    reader.send(&encode(&["GET", "k"]));
    let (reply, took) = timed(|| other.command(&["GET", "other"]));
    assert_eq!(reply, Value::bulk("old"));
    assert!(took < Duration::from_secs(1), "{took:?}");
    let keyless = timed(|| other.command(&["DBSIZE"]));
    assert!(
        keyless.0.is_error("INDOUBT read on the master") && keyless.1 > Duration::from_secs(1),
        "{keyless:?}"
    );
    assert_eq!(writer.read_reply(), Value::Error(NOBODY.to_owned()));
    assert!(
        reader
            .read_reply()
            .is_error("INDOUBT read on the master, what it shows is acknowledged by 0 of 1")
    );
    // It is still not acknowledged, although its writer was told.
    assert!(reader.command(&["GET", "k"]).is_error("INDOUBT read on the master"));
    reader.send(&encode(&["GET", "k"]));
    shard.replicas[0].cont();
    assert_eq!(reader.read_reply(), Value::bulk("new"));
}

#[test]
fn transactions_pops_and_pipelines_wait_too() {
    let shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 500\n");
    let (mut block, mut pieces, mut pop) = (shard.client(), shard.client(), shard.client());
    let mut piped = shard.client();
    assert_eq!(block.command(&["SET", "k", "0"]), Value::ok());
    pop.send(&encode(&["BLPOP", "queue", "0"]));
    assert_eq!(pieces.command(&["MULTI"]), Value::ok());
    assert_eq!(pieces.command(&["INCR", "k"]), Value::Simple("QUEUED".into()));
    eventually(SOON, || {
        shard
            .master
            .command(&["INFO", "clients"])
            .text()
            .contains("blocked_clients:1")
    });
    shard.replicas[0].stop();
    shard.master.command(&["RPUSH", "queue", "element"]);
    pieces.send(&encode(&["EXEC"]));
    block.send(&[encode(&["MULTI"]), encode(&["INCR", "k"]), encode(&["EXEC"])].concat());
    piped.send(
        &[
            encode(&["SET", "p", "1"]),
            encode(&["GET", "p"]),
            encode(&["LPUSH", "p", "1"]),
        ]
        .concat(),
    );
    let nobody = Value::Error(NOBODY.to_owned());
    assert_eq!(pop.read_reply(), nobody);
    assert_eq!(pieces.read_reply(), nobody);
    let queued = [block.read_reply(), block.read_reply(), block.read_reply()];
    assert_eq!(queued, [Value::ok(), Value::Simple("QUEUED".into()), nobody.clone()]);
    assert_eq!(piped.read_reply(), nobody);
    assert!(piped.read_reply().is_error("INDOUBT read on the master"));
    assert!(piped.read_reply().is_error("WRONGTYPE"), "it did nothing");
    // A transaction goes on where nothing was executed yet.
    assert_eq!(pieces.command(&["MULTI"]), Value::ok());
    assert_eq!(pieces.command(&["INCR", "k"]), Value::Simple("QUEUED".into()));
    shard.replicas[0].cont();
    assert_eq!(pieces.command(&["EXEC"]), Value::Array(vec![Value::Int(3)]));
}

#[test]
fn reads_of_the_master_policy_wait_for_a_round_of_their_own() {
    let shard = Shard::start("redis-server", 1, 1, "reads = 'master'\nack_timeout_ms = 500\n");
    let mut client = shard.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("1"));
    // Another proxy's write, for all that this one knows.
    shard.replicas[0].stop();
    shard.master.command(&["SET", "k", "2"]);
    assert!(client.command(&["GET", "k"]).is_error("INDOUBT read on the master"));
    assert_eq!(client.command(&["PING"]), Value::Simple("PONG".into()));
    shard.replicas[0].cont();
    eventually(SOON, || client.command(&["GET", "k"]) == Value::bulk("2"));
}

#[test]
fn subscribers_that_write_wait_and_others_do_not() {
    let shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 500\n");
    let mut client = shard.client();
    client.command(&["HELLO", "3"]);
    client.command(&["SUBSCRIBE", "news"]);
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("1"));
    shard.replicas[0].stop();
    shard.master.command(&["PUBLISH", "news", "message"]);
    assert!(matches!(client.read_reply(), Value::Push(_)));
    assert!(client.command(&["SET", "k", "2"]).is_error("INDOUBT "));
    shard.replicas[0].cont();
    eventually(SOON, || client.command(&["SET", "k", "3"]) == Value::ok());
}

#[test]
fn a_subscriber_whose_writes_are_in_doubt_misses_no_message() {
    let shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 500\n");
    let mut client = shard.client();
    client.command(&["HELLO", "3"]);
    client.command(&["SUBSCRIBE", "news"]);
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    let message = |number: u32| {
        let number = number.to_string();
        shard.master.command(&["PUBLISH", "news", &number]);
        Value::Push(["message", "news", &number].map(Value::bulk).into())
    };
    let subscribed = calls(&shard.master, "subscribe");
    shard.replicas[0].stop();
    let begin = message(0);
    client.send(
        &[
            encode(&["SET", "k", "2"]),
            encode(&["GET", "k"]),
            encode(&["LPUSH", "k", "x"]),
            encode(&["BLPOP", "queue", "0"]),
        ]
        .concat(),
    );
    eventually(SOON, || shard.master.command(&["GET", "k"]) == Value::bulk("2"));
    let messages = [1, 2, 3].map(message);
    let nobody = Value::Error(NOBODY.to_owned());
    assert_eq!((client.read_reply(), client.read_reply()), (begin, nobody.clone()));
    assert!(client.read_reply().is_error("INDOUBT read on the master"));
    assert!(client.read_reply().is_error("WRONGTYPE"), "it did nothing");
    for expected in messages {
        assert_eq!(client.read_reply(), expected);
    }
    // What blocks goes on blocking, on the same connection.
    shard.master.command(&["RPUSH", "queue", "element"]);
    assert_eq!(client.read_reply(), nobody);
    let last = message(4);
    assert_eq!(client.read_reply(), last);
    assert_eq!(calls(&shard.master, "subscribe"), subscribed);
    // It is fenced as long as it is in doubt.
    let mut reader = shard.client();
    assert!(reader.command(&["GET", "k"]).is_error("INDOUBT read on the master"));
    shard.replicas[0].cont();
    eventually(SOON, || reader.command(&["GET", "k"]) == Value::bulk("2"));
    assert_eq!(client.command(&["SET", "k", "3"]), Value::ok());
}

#[test]
fn an_upload_that_the_master_did_not_get_whole_was_not_executed() {
    let mut shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 5000\nhold_max_ms = 300\n");
    let mut client = shard.client();
    client.command(&["HELLO", "3"]);
    client.command(&["SUBSCRIBE", "news"]);
    let mut upload = encode(&["SET", "k", &"v".repeat(3_000_000)]);
    let rest = upload.split_off(2_000_000);
    client.send(&upload);
    let receives = || {
        let list = shard.master.command(&["CLIENT", "LIST"]).text();
        let has = |client: &str| {
            client
                .split(' ')
                .any(|field| field.starts_with("qbuf=") && field.len() > "qbuf=99999".len())
        };
        list.lines().any(|line| line.contains("cmd=subscribe") && has(line))
    };
    eventually(SOON, receives);
    shard.master.kill9();
    client.send(&rest);
    let told = client.read_reply();
    assert!(
        told.is_error("MASTERDOWN the master was lost: this changed nothing"),
        "{told:?}"
    );
}

#[test]
fn many_replies_that_wait_are_bounded_and_all_come_in_order() {
    let shard = Shard::start("redis-server", 1, 1, "ack_timeout_ms = 10000\n");
    let mut client = shard.client();
    let value = "v".repeat(100_000);
    assert_eq!(client.command(&["SET", "big", &value]), Value::ok());
    shard.replicas[0].stop();
    let mut requests = encode(&["SET", "k", "1"]);
    for _ in 0..200 {
        requests.extend(encode(&["APPEND", "big", "x"]));
        requests.extend(encode(&["GET", "big"]));
    }
    client.send(&requests);
    eventually(SOON, || shard.master.command(&["GET", "k"]) == Value::bulk("1"));
    shard.replicas[0].cont();
    assert_eq!(client.read_reply(), Value::ok());
    for round in 1..=200 {
        assert_eq!(client.read_reply(), Value::Int(100_000 + round));
        assert_eq!(
            client.read_reply().text().len(),
            100_000 + usize::try_from(round).unwrap()
        );
    }
}
