//! Scripts loaded ahead (rule B5): EVALSHA finds on any node what EVAL or SCRIPT LOAD brought to another.

use std::time::Duration;

use crate::support::{Circuit, Client, Pair, Redis, Value, encode, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The digest of a script, as Redis has it.
fn digest(body: &str) -> String {
    Redis::start(&[]).command(&["SCRIPT", "LOAD", body]).text()
}

fn has(redis: &Redis, digest: &str) -> bool {
    redis.command(&["SCRIPT", "EXISTS", digest]) == Value::Array(vec![Value::Int(1)])
}

fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]).text();
    let field = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(field.as_str()));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[test]
fn what_only_eval_sent_is_there_after_a_failover_for_another_client() {
    let mut pair = Pair::start();
    let body = "return redis.call('incr', KEYS[1])";
    let digest = digest(body);
    let mut first = pair.client();
    assert_eq!(first.command(&["EVAL", body, "1", "n"]), Value::Int(1));
    eventually(SOON, || has(&pair.b, &digest));
    let mut second = pair.client();
    pair.fail_over_to_b();
    // Held until there is a master, and then it must be there.
    assert_eq!(second.command(&["EVALSHA", &digest, "1", "n"]), Value::Int(2));
    assert_eq!(
        second.command(&["EVALSHA", &digest.to_uppercase(), "1", "n"]),
        Value::Int(3)
    );
    assert_eq!(
        second
            .command(&["EVALSHA_RO", &digest, "1", "n"])
            .text()
            .split(' ')
            .next(),
        Some("ERR")
    );
    // A node that comes back gets it, too.
    pair.a.restart();
    let port = pair.b.port().to_string();
    assert_eq!(pair.a.command(&["REPLICAOF", "127.0.0.1", &port]), Value::ok());
    eventually(SOON, || has(&pair.a, &digest));
}

#[test]
fn a_script_moves_with_the_master_and_nobody_meets_noscript() {
    let pair = Pair::start();
    let mut client = pair.client();
    let bodies: Vec<String> = (0..50).map(|n| format!("return {n}")).collect();
    let digests: Vec<String> = bodies
        .iter()
        .map(|body| client.command(&["SCRIPT", "LOAD", body]).text())
        .collect();
    let evaluated = "return redis.call('get', KEYS[1])";
    assert_eq!(client.command(&["EVAL", evaluated, "1", "k"]), Value::Null);
    let digest = digest(evaluated);
    eventually(SOON, || {
        has(&pair.b, &digest) && digests.iter().all(|digest| has(&pair.b, digest))
    });
    pair.move_to_b();
    for (n, digest) in digests.iter().enumerate() {
        assert_eq!(
            client.command(&["EVALSHA", digest, "0"]),
            Value::Int(i64::try_from(n).unwrap())
        );
    }
    assert_eq!(client.command(&["EVALSHA", &digest, "1", "k"]), Value::Null);
}

#[test]
fn replicas_run_what_all_of_them_have_and_nothing_else() {
    let pair = Pair::start();
    let mut client = pair.client();
    let body = "return redis.call('get', KEYS[1])";
    let digest = digest(body);
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    assert_eq!(client.command(&["EVAL_RO", body, "1", "k"]), Value::bulk("v"));
    assert_eq!(calls(&pair.a, "eval_ro"), 1, "a new script is the master's");
    // At once, from other clients: wherever it is run, it is there.
    let mut others: Vec<Client> = (0..4).map(|_| pair.client()).collect();
    for other in &mut others {
        assert_eq!(other.command(&["EVALSHA", &digest, "1", "k"]), Value::bulk("v"));
    }
    eventually(SOON, || {
        for other in &mut others {
            assert_eq!(other.command(&["EVALSHA_RO", &digest, "1", "k"]), Value::bulk("v"));
            assert_eq!(other.command(&["EVAL_RO", body, "1", "k"]), Value::bulk("v"));
        }
        calls(&pair.b, "evalsha_ro") > 20 && calls(&pair.b, "eval_ro") > 20
    });
    // What is known to nobody is asked of the master.
    let before = calls(&pair.a, "evalsha_ro");
    assert!(
        client
            .command(&["EVALSHA_RO", &"0".repeat(40), "0"])
            .is_error("NOSCRIPT")
    );
    assert_eq!(calls(&pair.a, "evalsha_ro"), before + 1);
}

#[test]
fn a_restarted_replica_is_asked_to_run_a_script_only_when_it_has_it_again() {
    let mut pair = Pair::start();
    let mut client = pair.client();
    let body = "return 'here'";
    let digest = digest(body);
    assert_eq!(client.command(&["EVAL", body, "0"]), Value::bulk("here"));
    let on_replica = |client: &mut Client, pair: &Pair| {
        let before = calls(&pair.b, "evalsha_ro");
        eventually(SOON, || {
            assert_eq!(client.command(&["EVALSHA_RO", &digest, "0"]), Value::bulk("here"));
            calls(&pair.b, "evalsha_ro") > before
        });
    };
    on_replica(&mut client, &pair);
    for _ in 0..3 {
        pair.b.restart();
        on_replica(&mut client, &pair);
    }
}

#[test]
fn a_flush_is_for_all_and_for_ever() {
    let mut pair = Pair::start();
    let mut client = pair.client();
    let body = "return 1";
    let digest = client.command(&["SCRIPT", "LOAD", body]).text();
    assert_eq!(client.command(&["EVAL", "return 2", "0"]), Value::Int(2));
    let other = self::digest("return 2");
    eventually(SOON, || has(&pair.b, &digest) && has(&pair.b, &other));
    assert_eq!(client.command(&["SCRIPT", "FLUSH"]), Value::ok());
    for digest in [&digest, &other] {
        assert!(client.command(&["EVALSHA", digest, "0"]).is_error("NOSCRIPT"));
        assert!(client.command(&["EVALSHA_RO", digest, "0"]).is_error("NOSCRIPT"));
        assert!(!has(&pair.b, digest));
    }
    // What comes after it counts again.
    assert_eq!(client.command(&["EVAL", "return 3", "0"]), Value::Int(3));
    let third = self::digest("return 3");
    eventually(SOON, || has(&pair.b, &third));
    assert!(!has(&pair.b, &digest) && !has(&pair.b, &other));
    pair.fail_over_to_b();
    assert_eq!(client.command(&["EVALSHA", &third, "0"]), Value::Int(3));
    assert!(client.command(&["EVALSHA", &digest, "0"]).is_error("NOSCRIPT"));
    // One that Redis refuses changes nothing.
    assert!(client.command(&["SCRIPT", "FLUSH", "nosuch"]).is_error("ERR"));
    assert_eq!(client.command(&["EVALSHA", &third, "0"]), Value::Int(3));
}

#[test]
fn a_master_started_anew_has_the_scripts_before_it_takes_commands() {
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let digests: Vec<String> = (0..20)
        .map(|n| client.command(&["SCRIPT", "LOAD", &format!("return {n}")]).text())
        .collect();
    assert_eq!(client.command(&["EVAL", "return 'e'", "0"]), Value::bulk("e"));
    let evaluated = digest("return 'e'");
    circuit.redis.kill9();
    let asked: Vec<u8> = digests
        .iter()
        .chain([&evaluated])
        .flat_map(|digest| encode(&["EVALSHA", digest, "0"]))
        .collect();
    client.send(&asked);
    circuit.redis.restart();
    for n in 0..20 {
        assert_eq!(client.read_reply(), Value::Int(n));
    }
    assert_eq!(client.read_reply(), Value::bulk("e"));
}

#[test]
fn a_user_without_the_right_to_eval_gets_nothing_loaded() {
    let pair = Pair::start();
    let mut admin = pair.client();
    let rights = ["ACL", "SETUSER", "alice", "on", ">pw", "~*", "+evalsha", "+get"];
    assert_eq!(admin.command(&rights), Value::ok());
    let mut alice = pair.client();
    assert_eq!(alice.command(&["AUTH", "alice", "pw"]), Value::ok());
    let secret = "return redis.call('get', 'secret')";
    assert!(alice.command(&["EVAL", secret, "0"]).is_error("NOPERM"));
    let marker = "return 'marker'";
    assert_eq!(admin.command(&["EVAL", marker, "0"]), Value::bulk("marker"));
    let (secret, marker) = (digest(secret), digest(marker));
    eventually(SOON, || has(&pair.b, &marker));
    assert!(!has(&pair.a, &secret) && !has(&pair.b, &secret));
    assert!(alice.command(&["EVALSHA", &secret, "0"]).is_error("NOSCRIPT"));
}

#[test]
fn scripts_in_transactions_streams_and_large_ones_are_known_too() {
    let pair = Pair::start();
    let mut client = pair.client();
    // Whole, and in pieces.
    let transaction = [
        &["MULTI"][..],
        &["EVAL", "return 'whole'", "0"],
        &["SET", "k", "v"],
        &["EXEC"],
    ];
    client.send(
        &transaction
            .iter()
            .flat_map(|command| encode(command))
            .collect::<Vec<u8>>(),
    );
    let replies: Vec<Value> = (0..4).map(|_| client.read_reply()).collect();
    assert_eq!(replies[3], Value::Array(vec![Value::bulk("whole"), Value::ok()]));
    for command in [&["MULTI"][..], &["PING"], &["EVAL", "return 'pieces'", "0"]] {
        client.command(command);
    }
    assert!(matches!(client.command(&["EXEC"]), Value::Array(_)));
    // A subscriber's, one with a long argument, and long ones.
    let mut subscriber = pair.client();
    subscriber.command(&["HELLO", "3"]);
    subscriber.command(&["SUBSCRIBE", "c"]);
    assert_eq!(subscriber.command(&["EVAL", "return 'feed'", "0"]), Value::bulk("feed"));
    let argument = "x".repeat(2_000_000);
    let echo = "return #ARGV[1]";
    assert_eq!(client.command(&["EVAL", echo, "0", &argument]), Value::Int(2_000_000));
    let long = format!("return #'{}'", "y".repeat(1024 * 1024));
    assert_eq!(client.command(&["EVAL", &long, "0"]), Value::Int(1024 * 1024));
    let loaded = format!("return #'{}' + 1", "z".repeat(1024 * 1024));
    let loaded_digest = client.command(&["SCRIPT", "LOAD", &loaded]).text();
    assert_eq!(loaded_digest.len(), 40);
    for body in [
        "return 'whole'",
        "return 'pieces'",
        "return 'feed'",
        echo,
        &long,
        &loaded,
    ] {
        let digest = digest(body);
        eventually(SOON, || has(&pair.b, &digest));
    }
}

#[test]
fn only_so_many_scripts_are_kept_and_the_newest_are() {
    const MAX: usize = 1000;
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let body = |n: usize| format!("return {n}");
    let asked: Vec<u8> = (0..MAX + 10).flat_map(|n| encode(&["EVAL", &body(n), "0"])).collect();
    client.send(&asked);
    for n in 0..MAX + 10 {
        assert_eq!(client.read_reply(), Value::Int(i64::try_from(n).unwrap()));
    }
    circuit.redis.kill9();
    circuit.redis.restart();
    assert_eq!(client.command(&["EVAL", "return 'up'", "0"]), Value::bulk("up"));
    let last = digest(&body(MAX + 9));
    eventually(SOON, || has(&circuit.redis, &last));
    assert_eq!(
        client.command(&["EVALSHA", &last, "0"]),
        Value::Int(i64::try_from(MAX + 9).unwrap())
    );
    assert!(
        client
            .command(&["EVALSHA", &digest(&body(0)), "0"])
            .is_error("NOSCRIPT")
    );
}

#[test]
fn nobody_stands_behind_a_script_of_another_that_never_ends() {
    let circuit = Circuit::start(&["--lua-time-limit", "10"]);
    let mut all: Vec<Client> = (0..4).map(|_| circuit.client()).collect();
    for client in &mut all {
        assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
        assert_eq!(client.command(&["EVAL", "return 1", "0"]), Value::Int(1));
    }
    let [endless, reader, writer, other] = all.as_mut_slice() else {
        unreachable!()
    };
    endless.send(&encode(&["EVAL", "while true do end", "0"]));
    eventually(SOON, || circuit.redis.command(&["PING"]).is_error("BUSY"));
    // At once, before the lane counts as stalled.
    reader.send(&encode(&["GET", "k"]));
    writer.send(&encode(&["EVAL", "return 2", "0"]));
    other.send(b"MULTI\r\nEVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0\r\nEXEC\r\n");
    for client in [&mut *reader, &mut *writer] {
        assert!(client.read_reply().is_error("BUSY"));
    }
    assert_eq!(other.read_reply(), Value::ok());
    assert!(other.read_reply().is_error("BUSY"));
    assert!(other.read_reply().is_error("EXECABORT"));
    assert_eq!(reader.command(&["SCRIPT", "KILL"]), Value::ok());
    assert!(endless.read_reply().text().contains("Script killed by user"));
    for client in &mut all {
        assert_eq!(
            client.command(&["EVAL", "return redis.call('get', 'k')", "0"]),
            Value::bulk("v")
        );
    }
}

#[test]
fn a_script_that_never_ends_on_a_replica_is_killed_through_the_proxy() {
    let pair = Pair::start();
    let mut client = pair.client();
    let slow = "local n = 0 while true do n = n + 1 end";
    pair.b.command(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
    let mut at_replica = Client::connect(pair.b.addr().as_str());
    at_replica.send(&encode(&["EVAL_RO", slow, "0"]));
    eventually(SOON, || pair.b.command(&["PING"]).is_error("BUSY"));
    assert_eq!(client.command(&["SCRIPT", "KILL"]), Value::ok());
    assert!(at_replica.read_reply().text().contains("Script killed by user"));
    assert!(client.command(&["SCRIPT", "KILL"]).is_error("NOTBUSY"));
    assert!(client.command(&["FUNCTION", "KILL"]).is_error("NOTBUSY"));
}
