//! Tools that copy all data as a replica does, through a proxy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Client, Pointsman, Redis, START_DEADLINE, Value, encode, eventually, free_port, run};

const SOON: Duration = Duration::from_secs(20);

/// A master with replicas, and a proxy that asks for `w` acknowledgements.
struct Shard {
    master: Redis,
    replicas: Vec<Redis>,
    proxy: Pointsman,
    listen: String,
}

impl Shard {
    fn start(replicas: usize, w: usize) -> Self {
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"]);
        let port = master.port().to_string();
        let follow = |_| Redis::start(&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"]);
        let replicas: Vec<Redis> = (0..replicas).map(follow).collect();
        eventually(SOON, || replicas.iter().all(is_linked));
        let listen = format!("127.0.0.1:{}", free_port());
        let (addr, w) = (master.addr(), w.to_string());
        let mut args = vec!["proxy", "--listen", &listen, "--master", &addr, "--ack-replicas", &w];
        let named: Vec<String> = replicas.iter().map(Redis::addr).collect();
        named.iter().for_each(|replica| args.extend(["--replica", replica]));
        let mut proxy = Pointsman::start(&args);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        let mut client = Client::connect(listen.as_str());
        eventually(SOON, || client.command(&["SET", "k", "there"]) == Value::ok());
        Self {
            master,
            replicas,
            proxy,
            listen,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }

    /// Replicas that the master has had since it began.
    fn copied_from_master(&self) -> String {
        let stats = self.master.command(&["INFO", "stats"]).text();
        let full = stats.lines().find(|line| line.starts_with("sync_full:"));
        full.unwrap().to_owned()
    }
}

fn is_linked(replica: &Redis) -> bool {
    let info = replica.command(&["INFO", "replication"]).text();
    info.contains("master_link_status:up")
}

/// Runs `redis-cli --rdb` and says what it printed.
fn rdb(listen: &str, file: &Path) -> (Option<i32>, String) {
    let port = listen.rsplit_once(':').unwrap().1;
    let mut command = Command::new("redis-cli");
    command.args(["-p", port, "--rdb"]).arg(file);
    let output = run(command);
    (output.code, output.stdout + &output.stderr)
}

#[test]
fn a_file_of_all_data_is_a_replicas_and_holds_all_that_was_acknowledged() {
    let shard = Shard::start(1, 1);
    let mut client = shard.client();
    let value = "v".repeat(1000);
    for batch in 0..20 {
        let requests: Vec<u8> = (0..1000)
            .flat_map(|number| encode(&["SET", &format!("{batch}-{number}"), &value]))
            .collect();
        client.send(&requests);
        (0..1000).for_each(|_| assert_eq!(client.read_reply(), Value::ok()));
    }
    let before = shard.copied_from_master();
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = rdb(&shard.listen, &dir.path().join("dump.rdb"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(shard.copied_from_master(), before, "not from the master");
    let copy = Redis::start(&["--dir", dir.path().to_str().unwrap(), "--dbfilename", "dump.rdb"]);
    assert_eq!(copy.command(&["DBSIZE"]), Value::Int(20_001));
    assert_eq!(copy.command(&["GET", "19-999"]), Value::bulk(&value));
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("there"));
    shard.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_replica_of_a_proxy_follows_a_replica_and_acknowledges_nothing() {
    let shard = Shard::start(1, 1);
    let port = shard.listen.rsplit_once(':').unwrap().1;
    let copy = Redis::start(&["--replicaof", "127.0.0.1", port]);
    eventually(SOON, || is_linked(&copy));
    let mut client = shard.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    eventually(SOON, || copy.command(&["GET", "k"]) == Value::bulk("1"));
    // It tells the replica how far it is.
    let acknowledges = || {
        let info = shard.replicas[0].command(&["INFO", "replication"]).text();
        info.contains("connected_slaves:1") && !info.contains("offset=0,")
    };
    eventually(SOON, acknowledges);
    let role = shard.master.command(&["INFO", "replication"]).text();
    assert!(role.contains("connected_slaves:1"), "{role}");
    drop(copy);
    let gone = || {
        let info = shard.replicas[0].command(&["INFO", "replication"]).text();
        info.contains("connected_slaves:0")
    };
    eventually(SOON, gone);
}

#[test]
fn without_a_replica_there_is_no_copy_where_replicas_acknowledge_and_one_of_the_master_elsewhere() {
    let mut shard = Shard::start(1, 1);
    shard.replicas.clear();
    let mut client = shard.client();
    assert_eq!(client.command(&["REPLCONF", "rdb-only", "1"]), Value::ok());
    assert!(
        client
            .command(&["SYNC"])
            .is_error("ERR no replica can be copied from now")
    );
    assert_eq!(
        client.command(&["PING"]),
        Value::Simple("PONG".into()),
        "nothing else happens"
    );

    let shard = Shard::start(0, 0);
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = rdb(&shard.listen, &dir.path().join("dump.rdb"));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn words_of_a_replica_do_nothing_else() {
    let shard = Shard::start(1, 0);
    let mut client = shard.client();
    client.send(&[encode(&["REPLCONF", "ACK", "1"]), encode(&["PING"])].concat());
    assert_eq!(client.read_reply(), Value::Simple("PONG".into()));
    assert!(
        client
            .command(&["REPLCONF", "what", "1"])
            .is_error("ERR Unrecognized REPLCONF option: what")
    );
    assert!(client.command(&["REPLCONF", "capa"]).is_error("ERR syntax error"));
    for _ in 0..16 {
        assert_eq!(client.command(&["REPLCONF", "capa", "eof"]), Value::ok());
    }
    assert!(
        client
            .command(&["REPLCONF", "capa", "eof"])
            .is_error("ERR too many REPLCONF")
    );
    client.command(&["MULTI"]);
    client.command(&["SYNC"]);
    assert!(client.command(&["EXEC"]).is_error("EXECABORT"));
    assert!(client.command(&["REPLICAOF", "no", "one"]).is_error("NOPERM"));
    // Whoever gets a copy may not ask its server for anything.
    let mut copies = shard.client();
    copies.send(&encode(&["PSYNC", "?", "-1"]));
    let linked = || {
        shard.replicas[0]
            .command(&["INFO", "replication"])
            .text()
            .contains("connected_slaves:1")
    };
    eventually(SOON, linked);
    copies.send(&encode(&["SHUTDOWN", "NOSAVE"]));
    eventually(SOON, || !linked());
    assert_eq!(shard.replicas[0].command(&["PING"]), Value::Simple("PONG".into()));
}

#[test]
fn who_asks_with_sync_sees_what_a_master_alone_would_have_sent() {
    let shard = Shard::start(1, 1);
    let mut client = shard.client();
    assert_eq!(
        client.command(&["CONFIG", "SET", "repl-ping-replica-period", "3600"]),
        Value::ok()
    );
    let copy = TcpStream::connect(shard.listen.as_str()).unwrap();
    copy.set_read_timeout(Some(SOON)).unwrap();
    let mut copy = BufReader::new(copy);
    copy.get_mut().write_all(&encode(&["SYNC"])).unwrap();
    let mut line = String::new();
    while !line.starts_with('$') {
        line.clear();
        assert!(copy.read_line(&mut line).unwrap() > 0);
    }
    let mut data = vec![0; line.trim_end()[1..].parse().unwrap()];
    copy.read_exact(&mut data).unwrap();
    assert!(data.starts_with(b"REDIS"));
    // Each of these is acknowledged, which leaves something in the stream that is not the client's.
    for request in [
        &["SET", "k", "1"][..],
        &["SELECT", "3"],
        &["SET", "k", "2"],
        &["APPEND", "k", &"x".repeat(300_000)],
        &["WAIT", "1", "1000"],
        &["DEL", "k"],
    ] {
        client.command(request);
    }
    for expected in [
        &["SELECT", "0"][..],
        &["SET", "k", "1"],
        &["SELECT", "3"],
        &["SET", "k", "2"],
        &["APPEND", "k", &"x".repeat(300_000)],
        &["DEL", "k"],
    ] {
        let expected = encode(expected);
        let mut seen = vec![0; expected.len()];
        copy.read_exact(&mut seen).unwrap();
        assert!(
            seen == expected,
            "{}",
            String::from_utf8_lossy(&seen[..seen.len().min(200)])
        );
    }
    // To CLIENT it is a replica.
    let listed = client.command(&["CLIENT", "LIST", "TYPE", "replica"]).text();
    assert!(listed.lines().count() == 1 && listed.contains(" flags=S "), "{listed}");
    assert_eq!(client.command(&["CLIENT", "KILL", "TYPE", "slave"]), Value::Int(1));
    assert_eq!(copy.read(&mut [0]).unwrap(), 0);
}
