//! The proxy before one master: what a client sees, in good times and when the master dies.

use std::thread;
use std::time::Duration;

use crate::support::{Circuit, Client, Pointsman, Redis, Value, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);

impl Circuit {
    /// The most memory the proxy ever used, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

#[test]
fn a_client_sees_what_redis_says() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    assert_eq!(client.command(&["LPUSH", "l", "a", "b"]), Value::Int(2));
    assert_eq!(
        client.command(&["LRANGE", "l", "0", "-1"]),
        Value::Array(vec![Value::bulk("b"), Value::bulk("a")])
    );
    assert!(client.command(&["INCR", "l"]).is_error("WRONGTYPE"));
    for wrong in [&["GET"][..], &["NOSUCH", "a"], &["CONFIG", "NOSUCH"]] {
        assert_eq!(client.command(wrong), circuit.redis.command(wrong), "{wrong:?}");
    }
    assert!(client.command(&["REPLICAOF", "NO", "ONE"]).is_error("NOPERM"));
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
}

#[test]
fn databases_and_protocol_versions_belong_to_the_session() {
    let circuit = Circuit::start(&[]);
    let (mut one, mut other) = (circuit.client(), circuit.client());
    assert_eq!(one.command(&["SELECT", "3"]), Value::ok());
    assert_eq!(one.command(&["SET", "k", "three"]), Value::ok());
    assert_eq!(other.command(&["GET", "k"]), Value::Null);
    assert!(one.command(&["SELECT", "16"]).is_error("ERR DB index is out of range"));
    assert!(matches!(other.command(&["HELLO", "3"]), Value::Map(_)));
    other.command(&["HSET", "h", "f", "1"]);
    assert_eq!(
        other.command(&["HGETALL", "h"]),
        Value::Map(vec![Value::bulk("f"), Value::bulk("1")])
    );
    assert_eq!(one.command(&["SELECT", "0"]), Value::ok());
    assert_eq!(
        one.command(&["HGETALL", "h"]),
        Value::Array(vec![Value::bulk("f"), Value::bulk("1")])
    );
    // A change of lane in mid-pipeline keeps the order (rule A8).
    other.send(b"SET a 1\r\nSELECT 5\r\nSET a 2\r\nFLUSHALL\r\nSELECT 0\r\nGET a\r\n");
    let replies: Vec<Value> = (0..6).map(|_| other.read_reply()).collect();
    assert_eq!(
        replies[..5],
        [Value::ok(), Value::ok(), Value::ok(), Value::ok(), Value::ok()]
    );
    assert_eq!(replies[5], Value::Null);
}

#[test]
fn transactions_are_their_sessions_own() {
    let circuit = Circuit::start(&[]);
    let (mut one, mut other) = (circuit.client(), circuit.client());
    one.send(b"MULTI\r\nINCR n\r\nINCR n\r\nEXEC\r\nGET n\r\n");
    let replies: Vec<Value> = (0..5).map(|_| one.read_reply()).collect();
    assert_eq!(replies[3], Value::Array(vec![Value::Int(1), Value::Int(2)]));
    assert_eq!(replies[4], Value::bulk("2"));
    // Between MULTI and EXEC nobody else is inside.
    assert_eq!(one.command(&["MULTI"]), Value::ok());
    assert_eq!(other.command(&["INCR", "n"]), Value::Int(3));
    assert_eq!(one.command(&["INCR", "n"]), Value::Simple("QUEUED".into()));
    assert_eq!(one.command(&["DISCARD"]), Value::ok());
    // A watched key that changes empties EXEC.
    assert_eq!(one.command(&["WATCH", "n"]), Value::ok());
    assert_eq!(other.command(&["SET", "n", "9"]), Value::ok());
    assert_eq!(one.command(&["MULTI"]), Value::ok());
    one.command(&["SET", "n", "10"]);
    assert_eq!(one.command(&["EXEC"]), Value::Null);
    assert_eq!(one.command(&["GET", "n"]), Value::bulk("9"));
    assert!(one.command(&["EXEC"]).is_error("ERR EXEC without MULTI"));
}

#[test]
fn a_blocked_client_blocks_nobody_else() {
    let circuit = Circuit::start(&[]);
    let (mut blocked, mut other) = (circuit.client(), circuit.client());
    blocked.send(b"SET before 1\r\nBLPOP q 0\r\nGET before\r\n");
    assert_eq!(blocked.read_reply(), Value::ok());
    circuit.has_blocked_one();
    assert_eq!(other.command(&["GET", "before"]), Value::bulk("1"));
    assert_eq!(other.command(&["RPUSH", "q", "x"]), Value::Int(1));
    assert_eq!(
        blocked.read_reply(),
        Value::Array(vec![Value::bulk("q"), Value::bulk("x")])
    );
    assert_eq!(blocked.read_reply(), Value::bulk("1"));
}

#[test]
fn bytes_that_are_no_request_get_the_words_of_redis() {
    let circuit = Circuit::start(&[]);
    for wrong in [
        &b"*1\r\n:1\r\n"[..],
        b"*x\r\n",
        b"*1\r\n$-7\r\n",
        b"*1\r\n$x\r\n",
        b"GET \"k\r\n",
    ] {
        let (mut ours, mut theirs) = (circuit.client(), circuit.redis.client());
        for client in [&mut ours, &mut theirs] {
            client.send(b"SET k 1\r\n");
            client.send(wrong);
            assert_eq!(
                client.try_read_reply().ok(),
                Some(Value::ok()),
                "{}",
                String::from_utf8_lossy(wrong)
            );
        }
        assert_eq!(
            ours.read_reply(),
            theirs.read_reply(),
            "{}",
            String::from_utf8_lossy(wrong)
        );
        assert!(ours.is_closed());
    }
    let mut browser = circuit.client();
    browser.send(b"POST / HTTP/1.1\r\n");
    assert!(browser.is_closed());
    assert_eq!(circuit.client().command(&["PING"]), Value::Simple("PONG".into()));
}

#[test]
fn a_long_pipeline_is_answered_in_order_and_quit_ends_it() {
    const COMMANDS: usize = 200_000;
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut writer = client.stream().try_clone().unwrap();
    let sender = thread::spawn(move || {
        let mut pipeline = Vec::new();
        for number in 0..COMMANDS {
            pipeline.extend_from_slice(format!("*2\r\n$4\r\nECHO\r\n$6\r\n{number:06}\r\n").as_bytes());
        }
        pipeline.extend_from_slice(b"QUIT\r\n");
        std::io::Write::write_all(&mut writer, &pipeline).unwrap();
    });
    for number in 0..COMMANDS {
        assert_eq!(client.read_reply(), Value::bulk(&format!("{number:06}")));
    }
    assert_eq!(client.read_reply(), Value::ok());
    assert!(client.is_closed());
    sender.join().unwrap();
}

#[test]
fn a_killed_master_leaves_connections_and_tells_what_is_in_doubt() {
    // It may die in a moment in which all that was sent is answered.
    assert!(
        (0..5).any(|_| in_doubt_when_killed() > 0),
        "nothing was in flight when the master died"
    );
}

/// Kills the master amid a pipeline of writes, and looks at every answer. How many were in doubt.
fn in_doubt_when_killed() -> usize {
    const COMMANDS: usize = 20_000;
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut reader = circuit.client();
    let pipeline: Vec<u8> = (0..COMMANDS)
        .flat_map(|n| format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\n{n:05}\r\n").into_bytes())
        .collect();
    let mut writer = client.stream().try_clone().unwrap();
    let sender = thread::spawn(move || std::io::Write::write_all(&mut writer, &pipeline).unwrap());
    assert_eq!(client.read_reply(), Value::ok());
    circuit.redis.kill9();
    // A read that meets the dead master waits and is answered by the next.
    reader.send(b"GET k\r\n");
    circuit.redis.restart();
    let mut in_doubt = 0;
    let mut last_ok = None;
    for number in 1..COMMANDS {
        match client.read_reply() {
            Value::Simple(_) => last_ok = Some(number),
            error if error.is_error("INDOUBT") => in_doubt += 1,
            other => panic!("command {number} was answered {other:?}"),
        }
    }
    let written = last_ok.map_or(Value::Null, |number| Value::bulk(&format!("{number:05}")));
    assert_eq!(
        client.command(&["GET", "k"]),
        written,
        "an answered write is missing or a later one was re-ordered"
    );
    assert!(matches!(reader.read_reply(), Value::Null | Value::Bulk(_)));
    sender.join().unwrap();
    circuit.proxy.assert_no_undeclared_warnings(&["no master"]);
    in_doubt
}

#[test]
fn a_write_without_a_master_is_held_and_then_refused() {
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    circuit.redis.kill9();
    eventually(SOON, || circuit.proxy.log().contains("lane lost"));
    client.send(b"SET k 2\r\nGET k\r\n");
    assert!(client.read_reply().is_error("MASTERDOWN"));
    assert!(client.read_reply().is_error("MASTERDOWN"));
    client.send(b"SET k 3\r\n");
    circuit.redis.restart();
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("3"));
}

#[test]
fn a_client_that_never_reads_is_closed_and_costs_a_bounded_amount() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let value = "x".repeat(1_000_000);
    assert_eq!(client.command(&["SET", "big", &value]), Value::ok());
    let mut deaf = circuit.client();
    deaf.send("GET big\r\n".repeat(500).as_bytes());
    // Another client of the same lane is served within a bounded time, whatever the deaf one does.
    assert_eq!(client.command(&["GET", "none"]), Value::Null);
    let kib = circuit.peak_kib();
    assert!(kib < 100 * 1024, "{kib} KiB for one client that does not read");
}

#[test]
fn passwords_are_verified_by_the_master() {
    let circuit = Circuit::start(&["--requirepass", "secret"]);
    let mut client = circuit.client();
    assert!(client.command(&["GET", "k"]).is_error("NOAUTH"));
    assert!(client.command(&["AUTH", "wrong"]).is_error("WRONGPASS"));
    assert!(client.command(&["GET", "k"]).is_error("NOAUTH"));
    client.send(b"AUTH secret\r\nSET k v\r\nGET k\r\n");
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.read_reply(), Value::bulk("v"));
    assert!(circuit.client().command(&["GET", "k"]).is_error("NOAUTH"));
}

#[test]
fn a_port_in_use_is_one_sentence_and_a_signal_ends_it_well() {
    let mut circuit = Circuit::start(&[]);
    let second = Pointsman::run(&["proxy", "--listen", &circuit.listen, "--master", "127.0.0.1:1"]);
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("cannot listen on"), "{}", second.stderr);
    circuit.proxy.term();
    assert_eq!(circuit.proxy.exit_code(SOON), Some(0));
}

#[test]
fn a_huge_value_passes_both_ways_with_little_memory() {
    const BYTES: usize = 200_000_000;
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let value = "x".repeat(BYTES);
    client.send(b"SET small 1\r\n");
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.command(&["SET", "big", &value]), Value::ok());
    assert_eq!(
        client.command(&["STRLEN", "big"]),
        Value::Int(i64::try_from(BYTES).unwrap())
    );
    assert!(
        client.command(&["GET", "big"]) == Value::Bulk(value.into_bytes()),
        "another value came back"
    );
    assert_eq!(client.command(&["GET", "small"]), Value::bulk("1"));
    let kib = circuit.peak_kib();
    assert!(kib < 64 * 1024, "{kib} KiB for one value");
}

#[test]
fn what_follows_a_large_request_is_answered_after_it() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let value = "y".repeat(3_000_000);
    for _ in 0..3 {
        client.send(b"SET small 1\r\n");
        client.send(format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{value}\r\n", value.len()).as_bytes());
        client.send(b"GET small\r\nSTRLEN big\r\nINCR small\r\n");
        let replies: Vec<Value> = (0..5).map(|_| client.read_reply()).collect();
        let expected = [
            Value::ok(),
            Value::ok(),
            Value::bulk("1"),
            Value::Int(3_000_000),
            Value::Int(2),
        ];
        assert_eq!(replies, expected);
    }
}

#[test]
fn a_request_cut_off_in_the_middle_hurts_nobody() {
    let circuit = Circuit::start(&[]);
    let (mut client, mut other) = (circuit.client(), circuit.client());
    client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$50000000\r\nabc");
    assert_eq!(other.command(&["SET", "k", "other"]), Value::ok());
    drop(client);
    assert_eq!(other.command(&["GET", "k"]), Value::bulk("other"));
}

#[test]
fn an_endless_script_stalls_its_own_lane_only() {
    let circuit = Circuit::start(&["--lua-time-limit", "50"]);
    let (mut endless, mut other) = (circuit.client(), circuit.client());
    assert_eq!(other.command(&["SET", "k", "v"]), Value::ok());
    endless.send(b"EVAL \"while true do end\" 0\r\n");
    // Redis answers BUSY on every connection but the script's own (rule B1).
    let mut busy = None;
    eventually(SOON, || {
        let mut newcomer = circuit.client();
        newcomer.set_read_timeout(Duration::from_millis(300));
        busy = newcomer.try_command(&["GET", "k"]).ok();
        busy.as_ref().is_some_and(|reply| reply.is_error("BUSY"))
    });
    assert_eq!(other.command(&["SCRIPT", "KILL"]), Value::ok());
    assert!(endless.read_reply().is_error("ERR"));
    assert_eq!(other.command(&["GET", "k"]), Value::bulk("v"));
}

#[test]
fn an_idle_lane_is_closed_before_redis_would() {
    let circuit = Circuit::start(&["--timeout", "1"]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    eventually(SOON, || {
        let list = circuit.redis.command(&["CLIENT", "LIST"]).text();
        list.lines().count() == 1
    });
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    assert!(!circuit.proxy.log().contains("lane lost"), "{}", circuit.proxy.log());
}

#[test]
fn scripts_and_settings_are_every_nodes() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    client.send(b"SET k v\r\nSCRIPT LOAD \"return redis.call('get',KEYS[1])\"\r\nGET k\r\n");
    assert_eq!(client.read_reply(), Value::ok());
    let sha = client.read_reply().text();
    assert_eq!(sha.len(), 40);
    assert_eq!(client.read_reply(), Value::bulk("v"));
    assert_eq!(client.command(&["EVALSHA", &sha, "1", "k"]), Value::bulk("v"));
    let large = format!("return '{}'", "x".repeat(400_000));
    let sha = client.command(&["SCRIPT", "LOAD", &large]).text();
    assert_eq!(client.command(&["EVALSHA", &sha, "0"]).text().len(), 400_000);
    assert_eq!(client.command(&["SCRIPT", "FLUSH"]), Value::ok());
    assert!(client.command(&["EVALSHA", &sha, "0"]).is_error("NOSCRIPT"));
    assert_eq!(
        client.command(&["CONFIG", "SET", "maxmemory", "104857600"]),
        Value::ok()
    );
    let wrong = ["CONFIG", "SET", "nosuch", "1"];
    assert_eq!(client.command(&wrong), circuit.redis.command(&wrong));
    assert!(
        client
            .command(&["CONFIG", "SET", "maxmemory", "1", "replicaof", "a 1"])
            .is_error("NOPERM")
    );
    assert_eq!(
        circuit.redis.command(&["CONFIG", "GET", "maxmemory"]),
        Value::Array(vec![Value::bulk("maxmemory"), Value::bulk("104857600")])
    );
    assert_eq!(
        client.command(&["ACL", "SETUSER", "alice", "on", ">pw", "~a*", "+get", "+script"]),
        Value::ok()
    );
    let mut alice = circuit.client();
    assert_eq!(alice.command(&["AUTH", "alice", "pw"]), Value::ok());
    assert!(alice.command(&["CONFIG", "SET", "maxmemory", "1"]).is_error("NOPERM"));
    assert_eq!(alice.command(&["SCRIPT", "LOAD", "return 1"]).text().len(), 40);
}

#[test]
fn a_command_for_every_node_waits_for_a_master() {
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    circuit.redis.kill9();
    client.send(b"SCRIPT LOAD \"return 1\"\r\nEXISTS k\r\n");
    circuit.redis.restart();
    assert_eq!(client.read_reply().text().len(), 40);
    assert_eq!(client.read_reply(), Value::Int(0));
}

#[test]
fn a_client_that_sends_no_more_gets_its_last_replies() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    client.send(b"MULTI\r\nSET k v\r\nEXEC\r\nGET k\r\nPING\r\n");
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    let replies: Vec<Value> = (0..5).map(|_| client.read_reply()).collect();
    assert_eq!(replies[3], Value::bulk("v"));
    assert!(client.is_closed());
    // One that blocks is gone: nothing is popped for it.
    let mut gone = circuit.client();
    gone.send(b"BLPOP q 0\r\n");
    let blocked = || circuit.redis.command(&["INFO", "clients"]).text();
    eventually(SOON, || blocked().contains("blocked_clients:1"));
    gone.stream().shutdown(std::net::Shutdown::Write).unwrap();
    eventually(SOON, || blocked().contains("blocked_clients:0"));
    let mut pusher = circuit.client();
    assert_eq!(pusher.command(&["RPUSH", "q", "x"]), Value::Int(1));
    assert_eq!(pusher.command(&["LLEN", "q"]), Value::Int(1));
}

#[test]
fn a_command_of_the_first_moment_waits_for_the_master_as_long_as_any() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    for _ in 0..5 {
        let listen = format!("127.0.0.1:{}", free_port());
        let _proxy = Pointsman::start(&["proxy", "--listen", &listen, "--master", &redis.addr()]);
        let mut client = None;
        eventually(SOON, || {
            client = Client::try_connect(listen.as_str()).ok();
            client.is_some()
        });
        let mut client = client.unwrap();
        client.send(b"SET k v\r\n");
        redis.restart();
        assert_eq!(client.read_reply(), Value::ok());
        redis.kill9();
    }
}
