//! Refused commands, transactions on lanes, and lost transactions: rules A2, A3 and A4 with a real Redis.

use std::thread;
use std::time::Duration;

use crate::support::{Circuit, Client, Redis, Relay, Value, eventually, holds_within};

const SOON: Duration = Duration::from_secs(20);

impl Circuit {
    /// Makes the master a replica of nobody, as a fence does.
    fn park(&self) {
        assert_eq!(self.redis.command(&["REPLICAOF", "127.0.0.1", "1"]), Value::ok());
    }

    fn unpark(&self) {
        assert_eq!(self.redis.command(&["REPLICAOF", "NO", "ONE"]), Value::ok());
    }

    fn log_has(&self, text: &str, times: usize) {
        eventually(SOON, || self.proxy.log().matches(text).count() >= times);
    }

    /// Waits until the proxy has noticed that its master is none, and says so.
    fn noticed(&self) {
        self.log_has("is no master", 1);
        self.log_has("lane closed: redis refuses commands", 1);
    }
}

fn queued() -> Value {
    Value::Simple("QUEUED".into())
}

fn replies(client: &mut Client, count: usize) -> Vec<Value> {
    (0..count).map(|_| client.read_reply()).collect()
}

#[test]
fn a_pipeline_through_a_parked_master_is_neither_refused_nor_reordered() {
    const COMMANDS: usize = 300_000;
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut other = circuit.client();
    let mut writer = client.stream().try_clone().unwrap();
    let sender = thread::spawn(move || {
        let pipeline: Vec<u8> = (0..COMMANDS)
            .flat_map(|n| {
                format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$6\r\n{n:06}\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n").into_bytes()
            })
            .collect();
        std::io::Write::write_all(&mut writer, &pipeline).unwrap();
    });
    let check = |client: &mut Client, range: std::ops::Range<usize>| {
        for number in range {
            assert_eq!(client.read_reply(), Value::ok(), "SET {number}");
            assert_eq!(client.read_reply(), Value::bulk(&format!("{number:06}")));
        }
    };
    check(&mut client, 0..1000);
    circuit.park();
    circuit.noticed();
    // Somebody who comes now waits, and is served by the next master.
    other.send(b"SET other 1\r\nGET other\r\n");
    circuit.unpark();
    check(&mut client, 1000..COMMANDS);
    assert_eq!(replies(&mut other, 2), [Value::ok(), Value::bulk("1")]);
    assert_eq!(
        client.command(&["GET", "k"]),
        Value::bulk(&format!("{:06}", COMMANDS - 1))
    );
    sender.join().unwrap();
    circuit.proxy.assert_no_undeclared_warnings(&["no master"]);
}

#[test]
fn a_read_behind_a_refused_write_is_asked_again() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "a", "1"]), Value::ok());
    circuit.park();
    client.send(b"SET a 2\r\nGET a\r\nINCR a\r\n");
    circuit.noticed();
    circuit.unpark();
    assert_eq!(replies(&mut client, 3), [Value::ok(), Value::bulk("2"), Value::Int(3)]);
}

#[test]
fn a_refusal_before_an_executed_write_is_shown_as_it_is() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "a", "1"]), Value::ok());
    circuit.park();
    // A demoted node still publishes: sending the SET again would put it behind what others have seen.
    client.send(b"SET a 2\r\nPUBLISH c x\r\nSET a 3\r\n");
    assert!(client.read_reply().is_error("READONLY"));
    assert_eq!(client.read_reply(), Value::Int(0));
    circuit.noticed();
    circuit.unpark();
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.command(&["GET", "a"]), Value::bulk("3"));
}

#[test]
fn a_refusal_before_a_lost_write_is_masterdown_and_the_write_in_doubt() {
    const ECHOS: usize = 20;
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "a", "1"]), Value::ok());
    circuit.park();
    let script = "for i = 1, 1e12 do end";
    // Redis reads 16 KiB at once and answers them before it reads on.
    // The first script brings the client to a lane on which others may follow.
    let mut pipeline = encode(&["EVAL", "return 1", "0"]);
    pipeline.extend(encode(&["SET", "a", "2"]));
    pipeline.extend(encode(&["ECHO", &"x".repeat(1000)]).repeat(ECHOS));
    pipeline.extend(encode(&["EVAL", script, "0"]));
    pipeline.extend(encode(&["SET", "a", "3"]));
    client.send(&pipeline);
    circuit.log_has("redis refuses commands", 1);
    circuit.redis.kill9();
    circuit.redis.restart();
    assert_eq!(client.read_reply(), Value::Int(1));
    let all = replies(&mut client, 3 + ECHOS);
    assert!(all[0].is_error("MASTERDOWN"), "{all:?}");
    for echo in &all[1..=ECHOS] {
        assert!(
            matches!(echo, Value::Bulk(_)) || echo.is_error("MASTERDOWN"),
            "{echo:?}"
        );
    }
    assert!(all[ECHOS + 1].is_error("INDOUBT"), "{all:?}");
    assert!(all[ECHOS + 2].is_error("INDOUBT"), "{all:?}");
    assert_eq!(client.command(&["GET", "a"]), Value::Null);
}

#[test]
fn a_refused_request_too_large_to_be_kept_is_masterdown() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let set = encode(&["SET", "big", &"v".repeat(3_000_000)]);
    client.send(&set);
    assert_eq!(client.read_reply(), Value::ok());
    circuit.park();
    client.send(&set);
    let reply = client.read_reply();
    assert!(reply.is_error("MASTERDOWN"), "{reply:?}");
    client.send(b"STRLEN big\r\n");
    circuit.noticed();
    circuit.unpark();
    assert_eq!(client.read_reply(), Value::Int(3_000_000));
    client.send(&set);
    assert_eq!(client.read_reply(), Value::ok());
}

#[test]
fn a_refused_lane_is_listened_to_for_a_second_and_its_reads_are_asked_again() {
    const ECHOS: usize = 20;
    let circuit = Circuit::start(&["--lua-time-limit", "50"]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "a", "1"]), Value::ok());
    circuit.park();
    // The first script brings the client to a lane on which others may follow.
    let mut pipeline = encode(&["EVAL", "return 1", "0"]);
    pipeline.extend(encode(&["SET", "a", "2"]));
    pipeline.extend(encode(&["ECHO", &"x".repeat(1000)]).repeat(ECHOS));
    pipeline.extend(encode(&["EVAL_RO", "for i = 1, 1e12 do end", "0"]));
    pipeline.extend(encode(&["GET", "a"]));
    client.send(&pipeline);
    let killed = || eventually(SOON, || circuit.redis.command(&["SCRIPT", "KILL"]) == Value::ok());
    circuit.log_has("lane closed: redis refuses commands", 1);
    killed();
    eventually(SOON, || {
        circuit.redis.command(&["REPLICAOF", "NO", "ONE"]) == Value::ok()
    });
    assert_eq!(client.read_reply(), Value::Int(1));
    assert_eq!(client.read_reply(), Value::ok());
    killed();
    let echos = replies(&mut client, ECHOS);
    assert!(echos.iter().all(|echo| matches!(echo, Value::Bulk(_))));
    assert!(client.read_reply().is_error("ERR"));
    assert_eq!(client.read_reply(), Value::bulk("2"));
}

#[test]
fn replies_that_come_after_a_refusal_are_kept_within_a_bound() {
    const READS: usize = 60;
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let value = "v".repeat(1_000_000);
    assert_eq!(client.command(&["SET", "big", &value]), Value::ok());
    circuit.park();
    client.send(&[request("SET a 1"), request("GET big").repeat(READS), request("GET a")].concat());
    circuit.noticed();
    let status = std::fs::read_to_string(format!("/proc/{}/status", circuit.proxy.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 48 * 1024, "{kib} KiB");
    circuit.unpark();
    assert_eq!(client.read_reply(), Value::ok());
    for _ in 0..READS {
        assert_eq!(client.read_reply(), Value::bulk(&value));
    }
    assert_eq!(client.read_reply(), Value::bulk("1"));
}

#[test]
fn a_script_that_says_readonly_is_believed_and_not_repeated() {
    let circuit = Circuit::start(&["--enable-debug-command", "yes"]);
    let mut client = circuit.client();
    let text = "READONLY You can't write against a read only replica.";
    let script = format!("redis.call('incr','cnt') return redis.error_reply(\"{text}\")");
    for _ in 0..3 {
        assert_eq!(client.command(&["EVAL", &script, "0"]), Value::Error(text.into()));
    }
    let status = "redis.call('incr','cnt') return redis.status_reply('QUEUED')";
    assert_eq!(client.command(&["EVAL", status, "0"]), queued());
    assert_eq!(client.command(&["GET", "cnt"]), Value::bulk("4"));
    assert_eq!(client.command(&["DEBUG", "ERROR", text]), Value::Error(text.into()));
    // Inside a block, too.
    let mut block = encode(&["MULTI"]);
    block.extend(encode(&["EVAL", &script, "0"]));
    block.extend(encode(&["EXEC"]));
    client.send(&block);
    assert_eq!(
        replies(&mut client, 3),
        [Value::ok(), queued(), Value::Array(vec![Value::Error(text.into())])]
    );
    assert_eq!(client.command(&["GET", "cnt"]), Value::bulk("5"));
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn noreplicas_of_redis_is_shown_at_once() {
    let circuit = Circuit::start(&["--min-replicas-to-write", "1"]);
    let mut client = circuit.client();
    client.send(b"SET a 1\r\nGET a\r\n");
    assert!(client.read_reply().is_error("NOREPLICAS"));
    assert_eq!(client.read_reply(), Value::Null);
    client.send(b"MULTI\r\nSET a 1\r\nEXEC\r\n");
    let all = replies(&mut client, 3);
    assert!(all[1].is_error("NOREPLICAS") && all[2].is_error("EXECABORT"), "{all:?}");
}

#[test]
fn commands_met_by_loading_wait_for_its_end() {
    const KEYS: usize = 2000;
    let circuit = Circuit::start(&[
        "--enable-debug-command",
        "yes",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    let mut client = circuit.client();
    let fill = "for i = 1, tonumber(ARGV[1]) do redis.call('set', 'key:' .. i, string.rep('x', 100)) end return 1";
    assert_eq!(client.command(&["EVAL", fill, "0", &KEYS.to_string()]), Value::Int(1));
    circuit.redis.command(&["CONFIG", "SET", "key-load-delay", "1000"]);
    let mut reloading = circuit.redis.client();
    reloading.send(b"DEBUG RELOAD\r\n");
    eventually(SOON, || {
        circuit
            .redis
            .command(&["INFO", "persistence"])
            .text()
            .contains("loading:1")
    });
    client.send(b"SET a 1\r\nGET a\r\nGET key:1\r\n");
    client.send(&[encode(&["MULTI"]), encode(&["INCR", "a"]), encode(&["EXEC"])].concat());
    circuit.log_has("redis refuses commands", 1);
    circuit.log_has("is loading its data", 1);
    circuit.redis.command(&["CONFIG", "SET", "key-load-delay", "0"]);
    let all = replies(&mut client, 6);
    assert_eq!(all[..2], [Value::ok(), Value::bulk("1")]);
    assert_eq!(all[2], Value::bulk(&"x".repeat(100)));
    assert_eq!(all[5], Value::Array(vec![Value::Int(2)]));
    assert_eq!(reloading.read_reply(), Value::ok());
}

#[test]
fn a_whole_transaction_rides_the_lane_and_is_refused_as_a_whole() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let block = |key: &str| {
        [
            encode(&["MULTI"]),
            encode(&["INCR", key]),
            encode(&["GET", key]),
            encode(&["EXEC"]),
        ]
        .concat()
    };
    let done = |count: i64| Value::Array(vec![Value::Int(count), Value::bulk(&count.to_string())]);
    let connections = || circuit.redis.command(&["INFO", "stats"]).text();
    client.send(&block("n"));
    assert_eq!(replies(&mut client, 4), [Value::ok(), queued(), queued(), done(1)]);
    let before = received_connections(&connections());
    for count in 2..12 {
        client.send(&[encode(&["SET", "b", "1"]), block("n"), encode(&["GET", "b"])].concat());
        let all = replies(&mut client, 6);
        assert_eq!(all[4], done(count));
        assert_eq!(all[5], Value::bulk("1"));
    }
    // Only the questions of this test came by a connection of their own.
    assert_eq!(received_connections(&connections()), before + 1);
    circuit.park();
    client.send(
        &[
            encode(&["SET", "b", "2"]),
            block("n"),
            encode(&["INCR", "b"]),
            block("n"),
        ]
        .concat(),
    );
    circuit.noticed();
    circuit.unpark();
    let all = replies(&mut client, 10);
    assert_eq!(all[0], Value::ok());
    assert_eq!(all[1..5], [Value::ok(), queued(), queued(), done(12)]);
    assert_eq!(all[5], Value::Int(3));
    assert_eq!(all[6..], [Value::ok(), queued(), queued(), done(13)]);
}

#[test]
fn an_empty_transaction_and_errors_inside_one_are_answered_as_by_redis() {
    let circuit = Circuit::start(&[]);
    for lines in [
        &["MULTI", "EXEC", "GET a"][..],
        &["MULTI", "SET a 1", "LPUSH a 1", "EXEC", "GET a"],
        &["MULTI", "SET a 1", "GET", "EXEC", "GET a"],
        &["MULTI", "SET a 1", "NOSUCH", "EXEC", "GET a"],
        &["MULTI", "SET a 1", "DISCARD", "GET a"],
        &["MULTI", "SET a 1", "MULTI", "EXEC", "GET a"],
        &["MULTI", "SET a 1", "WATCH a", "EXEC", "GET a"],
        &["MULTI", "SET a 1", "NOSUCH", "DISCARD", "GET a", "EXEC"],
        &["WATCH a", "SET a 1", "MULTI", "GET a", "EXEC", "GET a"],
        &[
            "WATCH a", "MULTI", "NOSUCH", "GET a", "EXEC", "UNWATCH", "EXEC", "DISCARD",
        ],
        &["EXEC x", "MULTI", "NOSUCH", "EXEC x", "EXEC"],
        &["MULTI", "INFO nosuch", "SCRIPT EXISTS a", "EXEC x", "EXEC", "GET a"],
    ] {
        circuit.redis.command(&["FLUSHALL"]);
        let pipeline: Vec<u8> = lines.iter().flat_map(|line| request(line)).collect();
        let (mut ours, mut theirs) = (circuit.client(), circuit.redis.client());
        ours.send(&pipeline);
        let ours = replies(&mut ours, lines.len());
        circuit.redis.command(&["FLUSHALL"]);
        theirs.send(&pipeline);
        assert_eq!(ours, replies(&mut theirs, lines.len()), "{lines:?}");
        // The same in pieces: the private way.
        circuit.redis.command(&["FLUSHALL"]);
        let mut slow = circuit.client();
        for (line, reply) in lines.iter().zip(&ours) {
            slow.send(&request(line));
            assert_eq!(slow.read_reply(), *reply, "{line} of {lines:?}");
        }
    }
}

#[test]
fn what_changes_a_connection_inside_multi_leaves_other_sessions_alone() {
    let circuit = Circuit::start(&["--requirepass", "secret"]);
    let mut other = circuit.client();
    assert_eq!(other.command(&["AUTH", "secret"]), Value::ok());
    for inside in [
        "SELECT 3",
        "HELLO 3",
        "AUTH secret",
        "AUTH wrong",
        "RESET",
        "CLIENT TRACKING ON",
        "CLIENT REPLY OFF",
        "DISCARD x",
        "EXEC x",
        "UNSUBSCRIBE a b c",
        "SUBSCRIBE a b",
        "REPLCONF ACK 1",
        "MONITOR",
        "QUIT",
    ] {
        let mut client = circuit.client();
        client.send(&request("AUTH secret"));
        assert_eq!(client.read_reply(), Value::ok());
        for ending in ["EXEC", "DISCARD"] {
            let pipeline: Vec<u8> = ["MULTI", "HSET h f 1", inside, "HGETALL h", ending]
                .iter()
                .flat_map(|line| request(line))
                .collect();
            if client.try_send(&pipeline).is_err() {
                break;
            }
            // The other one is served by the lane in database 0, by RESP2, outside any transaction.
            other.send(b"HSET o f 1\r\nHGETALL o\r\n");
            assert!(matches!(other.read_reply(), Value::Int(_)), "after {inside}");
            let map = Value::Array(vec![Value::bulk("f"), Value::bulk("1")]);
            assert_eq!(other.read_reply(), map, "after {inside}");
        }
        // Others have other replies than one each, which `inside` looks at.
        let mutes_or_tells = inside.contains("SUBSCRIBE") || inside.starts_with("CLIENT REPLY");
        if !matches!(inside, "QUIT" | "RESET") && !mutes_or_tells {
            assert_eq!(replies(&mut client, 10).len(), 10, "{inside}");
        }
    }
    assert!(circuit.redis.command(&["GET", "o"]).is_error("NOAUTH"));
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn users_who_may_not_use_multi_or_exec_leave_the_lane_to_others_as_it_was() {
    let circuit = Circuit::start(&[]);
    for (user, forbidden) in [("m", "-multi"), ("e", "-exec"), ("s", "-set"), ("x", "-discard")] {
        let rule = ["ACL", "SETUSER", user, "on", ">p", "~*", "&*", "+@all", forbidden];
        assert_eq!(circuit.redis.command(&rule), Value::ok());
        let pipeline: Vec<u8> = ["GET l", "MULTI", "SET a 1", "GET l", "EXEC", "GET a"]
            .iter()
            .flat_map(|line| request(line))
            .collect();
        let (mut ours, mut second, mut theirs) = (circuit.client(), circuit.client(), circuit.redis.client());
        for client in [&mut ours, &mut second, &mut theirs] {
            assert_eq!(client.command(&["AUTH", user, "p"]), Value::ok());
        }
        theirs.send(&pipeline);
        let theirs = replies(&mut theirs, 6);
        for client in [&mut ours, &mut second] {
            circuit.redis.command(&["DEL", "a"]);
            client.send(&pipeline);
            assert_eq!(replies(client, 6), theirs, "{forbidden}");
        }
        circuit.redis.command(&["DEL", "a"]);
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_transaction_too_long_to_be_kept_is_lost_with_its_master_and_says_so_until_exec() {
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut discarding = circuit.client();
    let long = "v".repeat(100_000);
    for client in [&mut client, &mut discarding] {
        assert_eq!(client.command(&["MULTI"]), Value::ok());
        for _ in 0..3 {
            assert_eq!(client.command(&["SET", "a", &long]), queued());
        }
    }
    circuit.redis.kill9();
    circuit.redis.restart();
    circuit.log_has("lane lost", 2);
    for client in [&mut client, &mut discarding] {
        let reply = client.command(&["SET", "a", "2"]);
        assert!(reply.is_error("MASTERDOWN transaction lost"), "{reply:?}");
    }
    let aborted = Value::Error("EXECABORT Transaction discarded because of previous errors.".into());
    assert_eq!(client.command(&["EXEC"]), aborted);
    assert_eq!(discarding.command(&["DISCARD"]), Value::ok());
    for client in [&mut client, &mut discarding] {
        assert_eq!(client.command(&["GET", "a"]), Value::Null);
    }
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&["SET", "a", "3"]), queued());
    assert_eq!(client.command(&["EXEC"]), Value::Array(vec![Value::ok()]));
}

#[test]
fn a_transaction_in_pieces_goes_on_at_the_next_master() {
    let mut circuit = Circuit::start(&[]);
    let mut clients: Vec<Client> = (0..5).map(|_| circuit.client()).collect();
    let forbidden = ["ACL", "SETUSER", "alice", "on", ">p", "~*", "+@all", "-lpush"];
    circuit.redis.command(&forbidden);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.command(&["MULTI"]), Value::ok());
        let key = format!("a{number}");
        assert_eq!(client.command(&["INCR", &key]), queued());
    }
    // What is in the middle of being answered is safe to be asked again, too.
    circuit.redis.stop();
    clients[0].send(b"INCR a0\r\nINCR a0\r\n");
    clients[4].send(b"SELECT 2\r\nINCR a4\r\n");
    circuit.redis.kill9();
    circuit.redis.restart();
    circuit.log_has("lane lost", clients.len());
    assert_eq!(replies(&mut clients[0], 2), [queued(), queued()]);
    let three = Value::Array(vec![Value::Int(1), Value::Int(2), Value::Int(3)]);
    assert_eq!(clients[0].command(&["EXEC"]), three);
    assert_eq!(clients[1].command(&["EXEC"]), Value::Array(vec![Value::Int(1)]));
    assert_eq!(clients[2].command(&["DISCARD"]), Value::ok());
    // A whole new life between two of its requests, once more.
    assert_eq!(clients[3].command(&["INCR", "a3"]), queued());
    assert_eq!(replies(&mut clients[4], 2), [queued(), queued()]);
    circuit.redis.kill9();
    circuit.redis.restart();
    clients[3].send(b"INCR a3\r\nEXEC\r\nGET a3\r\n");
    let all = replies(&mut clients[3], 3);
    assert_eq!(all, [queued(), three, Value::bulk("3")]);
    clients[4].send(b"EXEC\r\nGET a4\r\nSELECT 0\r\nGET a4\r\nGET a2\r\n");
    let all = replies(&mut clients[4], 5);
    let selected = Value::Array(vec![Value::Int(1), Value::ok(), Value::Int(1)]);
    assert_eq!(
        all,
        [selected, Value::bulk("1"), Value::ok(), Value::bulk("1"), Value::Null]
    );
    circuit.proxy.assert_no_undeclared_warnings(&["no master"]);
}

#[test]
fn a_transaction_that_waits_too_long_for_a_master_is_refused_as_a_whole() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut watching = circuit.client();
    assert_eq!(client.command(&["SET", "a", "1"]), Value::ok());
    circuit.park();
    client.send(b"SET a 2\r\n");
    circuit.noticed();
    // The end of the wait falls between MULTI and EXEC.
    client.send(&[request("MULTI"), request("SET a 3")].concat());
    watching.send(b"MULTI\r\nGET a\r\nEXEC\r\nGET a\r\n");
    let all = replies(&mut client, 3);
    assert!(all[0].is_error("MASTERDOWN"), "{all:?}");
    assert_eq!(all[1], Value::ok());
    assert!(all[2].is_error("MASTERDOWN"), "{all:?}");
    let all = replies(&mut watching, 4);
    assert!(all[1].is_error("MASTERDOWN") && all[2].is_error("EXECABORT") && all[3].is_error("MASTERDOWN"));
    circuit.unpark();
    assert!(client.command(&["SET", "a", "4"]).is_error("MASTERDOWN"));
    assert!(client.command(&["EXEC"]).is_error("EXECABORT"));
    assert_eq!(client.command(&["GET", "a"]), Value::bulk("1"));
}

#[test]
fn a_lost_watch_empties_the_next_exec() {
    let mut circuit = Circuit::start(&[]);
    let (mut two, mut three) = (circuit.client(), circuit.client());
    assert!(matches!(three.command(&["HELLO", "3"]), Value::Map(_)));
    for client in [&mut two, &mut three] {
        assert_eq!(client.command(&["WATCH", "a"]), Value::ok());
    }
    circuit.redis.kill9();
    circuit.redis.restart();
    circuit.log_has("lane lost", 2);
    for client in [&mut two, &mut three] {
        assert_eq!(client.command(&["GET", "a"]), Value::Null);
        assert_eq!(client.command(&["MULTI"]), Value::ok());
        assert_eq!(client.command(&["SET", "a", "1"]), queued());
    }
    two.send(&request("EXEC"));
    assert_eq!(raw_line(&mut two), "*-1");
    three.send(&request("EXEC"));
    assert_eq!(raw_line(&mut three), "_");
    for client in [&mut two, &mut three] {
        assert_eq!(client.command(&["GET", "a"]), Value::Null);
        client.send(&[request("MULTI"), request("SET b 1"), request("EXEC")].concat());
        assert_eq!(replies(client, 3)[2], Value::Array(vec![Value::ok()]));
    }
}

#[test]
fn a_hello_leaves_alone_what_is_watched() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut executes = |hello: &[&str]| {
        assert_eq!(client.command(&["WATCH", "a"]), Value::ok());
        client.command(hello);
        assert_eq!(client.command(&["MULTI"]), Value::ok());
        client.command(&["EXEC"]) == Value::Array(Vec::new())
    };
    assert!(executes(&["HELLO"]) && executes(&["HELLO", "2"]) && executes(&["HELLO", "2", "SETNAME", "me"]));
    assert!(executes(&["HELLO", "3"]), "another protocol");
    assert!(executes(&["HELLO", "3"]) && executes(&["HELLO", "3", "AUTH", "default", ""]));
}

#[test]
fn a_transaction_that_meets_a_demoted_master_is_brought_to_the_next_one() {
    let circuit = Circuit::start(&[]);
    let mut clients: Vec<Client> = (0..5).map(|_| circuit.client()).collect();
    let [client, late, whole, watching, published] = &mut clients[..] else {
        unreachable!("there are five");
    };
    assert_eq!(watching.command(&["WATCH", "a"]), Value::ok());
    for client in [&mut *client, late, whole, watching, published] {
        assert_eq!(client.command(&["MULTI"]), Value::ok());
    }
    assert_eq!(late.command(&["INCR", "a"]), queued());
    assert_eq!(watching.command(&["INCR", "a"]), queued());
    assert_eq!(published.command(&["INCR", "c"]), queued());
    circuit.park();
    // All of them are sent before the first refusal is heard: later ones would wait.
    circuit.redis.stop();
    // A request is refused; EXEC is; EXEC is for the sake of a request; EXEC would overtake what others have heard.
    client.send(&request("INCR a"));
    late.send(&request("EXEC"));
    whole.send(&[request("INCR b"), request("EXEC"), request("GET b")].concat());
    watching.send(&request("EXEC"));
    published.send(&[request("EXEC"), request("PUBLISH x y")].concat());
    eventually(SOON, || connections_with_unread_bytes(circuit.redis.port()) == 5);
    circuit.redis.cont();
    circuit.log_has("redis refuses commands", 5);
    circuit.unpark();
    assert_eq!(client.read_reply(), queued());
    assert_eq!(late.read_reply(), Value::Array(vec![Value::Int(1)]));
    assert_eq!(client.command(&["EXEC"]), Value::Array(vec![Value::Int(2)]));
    let once = Value::Array(vec![Value::Int(1)]);
    assert_eq!(replies(whole, 3), [queued(), once, Value::bulk("1")]);
    assert_eq!(watching.read_reply(), Value::Null);
    let all = replies(published, 2);
    assert!(all[0].is_error("EXECABORT") && all[1] == Value::Int(0), "{all:?}");
    assert_eq!(published.command(&["GET", "c"]), Value::Null);
}

#[test]
fn an_exec_that_was_sent_and_not_answered_is_in_doubt() {
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut riding = circuit.client();
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&["SET", "a", "1"]), queued());
    assert_eq!(riding.command(&["GET", "a"]), Value::Null);
    circuit.redis.stop();
    client.send(&request("EXEC"));
    riding.send(&[request("MULTI"), request("SET a 1"), request("EXEC")].concat());
    eventually(SOON, || connections_with_unread_bytes(circuit.redis.port()) == 2);
    circuit.redis.kill9();
    circuit.redis.restart();
    assert!(client.read_reply().is_error("INDOUBT"));
    let all = replies(&mut riding, 3);
    assert_eq!(all[..2], [Value::ok(), queued()]);
    assert!(all[2].is_error("INDOUBT"), "{all:?}");
    assert_eq!(riding.command(&["GET", "a"]), Value::Null);
}

#[test]
fn a_blocked_command_survives_the_demotion_of_its_master() {
    let circuit = Circuit::start(&[]);
    let mut blocked = circuit.client();
    let mut other = circuit.client();
    blocked.send(b"BLPOP q 0\r\nGET a\r\n");
    circuit.has_blocked_one();
    circuit.park();
    circuit.noticed();
    circuit.unpark();
    assert_eq!(other.command(&["RPUSH", "q", "x"]), Value::Int(1));
    assert_eq!(
        blocked.read_reply(),
        Value::Array(vec![Value::bulk("q"), Value::bulk("x")])
    );
    assert_eq!(blocked.read_reply(), Value::Null);
}

#[test]
fn a_blocked_command_that_is_asked_again_waits_no_longer_than_it_would_have() {
    let circuit = Circuit::start(&[]);
    let mut blocked = circuit.client();
    let begun = ::pointsman::clock::now();
    blocked.send(b"BLPOP q 2\r\n");
    eventually(SOON, || ::pointsman::clock::now() - begun > Duration::from_millis(1200));
    circuit.park();
    circuit.noticed();
    circuit.unpark();
    assert_eq!(blocked.read_reply(), Value::Null);
    let took = ::pointsman::clock::now() - begun;
    assert!(
        took > Duration::from_millis(1900) && took < Duration::from_millis(3000),
        "{took:?}"
    );
}

#[test]
fn refusals_are_known_however_the_bytes_are_cut() {
    let redis = Redis::start(&[]);
    let relay = Relay::start(&redis.addr());
    let circuit = Circuit::before(redis, &relay.addr());
    let mut client = circuit.client();
    let mut other = circuit.client();
    let wrong = client.command(&["LPUSH", "l", "1"]);
    assert_eq!(wrong, Value::Int(1));
    for round in 1..=5 {
        circuit.park();
        let pipeline = [
            "GET l", "INCR n", "MULTI", "INCR n", "GET l", "EXEC", "GET n", "HGET l f", "PING",
        ];
        client.send(&pipeline.iter().flat_map(|line| request(line)).collect::<Vec<u8>>());
        other.send(b"SET o 1\r\nGET l\r\nGET o\r\n");
        circuit.log_has("lane closed: redis refuses commands", round);
        circuit.unpark();
        let all = replies(&mut client, pipeline.len());
        let count = i64::try_from(round).unwrap() * 2;
        assert!(all[0].is_error("WRONGTYPE"), "{all:?}");
        assert_eq!(all[1..4], [Value::Int(count - 1), Value::ok(), queued()]);
        assert_eq!(all[4], queued());
        assert!(
            matches!(&all[5], Value::Array(parts) if parts[0] == Value::Int(count)),
            "{all:?}"
        );
        assert_eq!(all[6], Value::bulk(&count.to_string()));
        assert!(all[7].is_error("WRONGTYPE"), "{all:?}");
        assert_eq!(all[8], Value::Simple("PONG".into()));
        let all = replies(&mut other, 3);
        assert_eq!((&all[0], &all[2]), (&Value::ok(), &Value::bulk("1")));
        assert!(all[1].is_error("WRONGTYPE"));
    }
}

#[test]
fn a_lane_that_somebody_left_inside_multi_is_closed_and_what_it_queued_is_sent_again() {
    let redis = Redis::start(&[]);
    let relay = Relay::start(&redis.addr());
    let circuit = Circuit::before(redis, &relay.addr());
    let (mut client, mut other) = (circuit.client(), circuit.client());
    for round in 1..4 {
        assert_eq!(client.command(&["SET", "a", "1"]), Value::ok());
        relay.inject(&request("MULTI"), "+OK\r\n".len());
        eventually(SOON, || relay.awaited() == 0);
        client.send(b"INCR n\r\nGET n\r\n");
        other.send(b"GET a\r\n");
        assert_eq!(
            replies(&mut client, 2),
            [Value::Int(round), Value::bulk(&round.to_string())]
        );
        assert_eq!(other.read_reply(), Value::bulk("1"));
    }
}

#[test]
fn a_master_that_flaps_executes_every_answered_command_once_and_in_order() {
    const ROUNDS: i64 = 3000;
    const NOTICED: Duration = Duration::from_millis(200);
    let circuit = Circuit::start(&[]);
    let flapping = std::sync::atomic::AtomicBool::new(true);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|number| (number, circuit.client())).collect();
        let circuit = &circuit;
        let flapping = &flapping;
        scope.spawn(move || {
            while flapping.load(std::sync::atomic::Ordering::SeqCst) {
                let seen = circuit.proxy.log().matches("redis refuses commands").count();
                circuit.park();
                // Some times the proxy notices, some times it has no time to.
                if seen.is_multiple_of(2) {
                    holds_within(NOTICED, || {
                        circuit.proxy.log().matches("redis refuses commands").count() > seen
                    });
                }
                circuit.unpark();
                let before = circuit.redis.command(&["GET", "n0"]);
                holds_within(NOTICED, || circuit.redis.command(&["GET", "n0"]) != before);
            }
        });
        let done: Vec<_> = clients
            .into_iter()
            .map(|(number, client)| scope.spawn(move || count_up(client, number, ROUNDS)))
            .collect();
        let counts: Vec<i64> = done.into_iter().map(|thread| thread.join().unwrap()).collect();
        flapping.store(false, std::sync::atomic::Ordering::SeqCst);
        for (number, count) in counts.into_iter().enumerate() {
            let value = circuit.client().command(&["GET", &format!("n{number}")]);
            assert_eq!(value, Value::bulk(&count.to_string()));
        }
    });
    circuit.proxy.assert_no_undeclared_warnings(&["no master"]);
}

/// Counts one key up, by single commands and by transactions, `rounds` times each in pipelines of many; every answer
/// must be one more than the last, or an error that says that nothing was done. Returns where it ended.
fn count_up(mut client: Client, number: usize, rounds: i64) -> i64 {
    let key = format!("n{number}");
    let mut round = encode(&["INCR", &key]);
    for line in [&["MULTI"][..], &["INCR", &key], &["EXEC"]] {
        round.extend(encode(line));
    }
    let mut writer = client.stream().try_clone().unwrap();
    let sender = thread::spawn(move || {
        for _ in 0..rounds {
            std::io::Write::write_all(&mut writer, &round).unwrap();
        }
    });
    let mut count = 0;
    let mut counted = |reply: &Value| match reply {
        Value::Int(value) => {
            count += 1;
            assert_eq!(*value, count, "of {number}");
        }
        reply => {
            let harmless = ["READONLY", "MASTERDOWN", "EXECABORT"];
            assert!(harmless.iter().any(|kind| reply.is_error(kind)), "{reply:?}");
        }
    };
    for _ in 0..rounds {
        counted(&client.read_reply());
        let all = replies(&mut client, 3);
        match &all[2] {
            Value::Array(parts) => parts.iter().for_each(&mut counted),
            reply => counted(reply),
        }
    }
    sender.join().unwrap();
    count
}

fn request(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

fn encode(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// The first line of the next reply, as it is.
fn raw_line(client: &mut Client) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        std::io::Read::read_exact(&mut client.stream(), &mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

fn received_connections(info: &str) -> u64 {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("total_connections_received:"))
        .unwrap();
    line.trim().parse().unwrap()
}

/// How many of a server's connections hold bytes that it has not read.
fn connections_with_unread_bytes(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let unread = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == "01" && !fields[4].ends_with(":00000000")
    };
    table.lines().skip(1).filter(unread).count()
}
