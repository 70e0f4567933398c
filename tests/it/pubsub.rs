//! Subscribers and monitors through the proxy: what they see is what a direct connection shows, also when the master
//! dies under them.

use std::io::Read;
use std::time::Duration;

use crate::support::{Circuit, Client, Value, eventually};

const SOON: Duration = Duration::from_secs(20);

impl Circuit {
    fn resp3(&self) -> Client {
        let mut client = self.client();
        assert!(matches!(client.command(&["HELLO", "3"]), Value::Map(_)));
        client
    }

    /// How many connections Redis has whose CLIENT LIST line contains `text`.
    fn connections_with(&self, text: &str) -> usize {
        let list = self.redis.command(&["CLIENT", "LIST"]).text();
        list.lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until Redis has `count` subscribers of `channel`.
    fn await_subscribers(&self, channel: &str, count: i64) {
        eventually(SOON, || {
            self.redis.command(&["PUBSUB", "NUMSUB", channel])
                == Value::Array(vec![Value::bulk(channel), Value::Int(count)])
        });
    }

    /// Sends `script` to the proxy and to Redis itself, and compares every byte that comes back, up to and including
    /// the reply to a last PING.
    #[track_caller]
    fn compare(&self, greeting: &str, script: &str) {
        let mut seen = Vec::new();
        for mut client in [self.client(), self.redis.client()] {
            self.redis.command(&["FLUSHALL"]);
            // Nobody is left to receive what the next one publishes.
            eventually(SOON, || {
                self.redis.command(&["PUBSUB", "CHANNELS"]) == Value::Array(Vec::new())
            });
            if !greeting.is_empty() {
                client.send(greeting.as_bytes());
                client.read_reply();
            }
            client.send(script.as_bytes());
            client.send(b"PING sentinel\r\n");
            seen.push(read_until(&mut client, b"sentinel\r\n"));
        }
        assert_eq!(seen[0], seen[1], "{script}");
    }
}

fn read_until(client: &mut Client, end: &[u8]) -> String {
    let mut stream = client.stream();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !bytes.ends_with(end) {
        let count = stream.read(&mut buffer).expect("bytes");
        assert!(count > 0, "closed after {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The message a RESP3 subscriber sent itself, and the reply to PUBLISH: in this order up to Redis 7.0, the other way
/// round from 7.2 on.
#[track_caller]
fn expect_own_message(client: &mut Client, channel: &str, text: &str) {
    let seen = [client.read_reply(), client.read_reply()];
    assert!(seen.contains(&Value::Push(message(channel, text))), "{seen:?}");
    assert!(seen.contains(&Value::Int(1)), "{seen:?}");
}

fn message(channel: &str, text: &str) -> Vec<Value> {
    vec![Value::bulk("message"), Value::bulk(channel), Value::bulk(text)]
}

fn confirmation(word: &str, name: &str, count: i64) -> Vec<Value> {
    vec![Value::bulk(word), Value::bulk(name), Value::Int(count)]
}

#[test]
fn subscribers_of_both_protocols_get_what_is_published() {
    let circuit = Circuit::start(&[]);
    let (mut two, mut three, mut other) = (circuit.client(), circuit.resp3(), circuit.client());
    assert_eq!(
        two.command(&["SUBSCRIBE", "c"]),
        Value::Array(confirmation("subscribe", "c", 1))
    );
    assert_eq!(
        three.command(&["SUBSCRIBE", "c"]),
        Value::Push(confirmation("subscribe", "c", 1))
    );
    assert_eq!(
        two.command(&["PSUBSCRIBE", "p*"]),
        Value::Array(confirmation("psubscribe", "p*", 2))
    );
    assert_eq!(
        three.command(&["SSUBSCRIBE", "s"]),
        Value::Push(confirmation("ssubscribe", "s", 1))
    );
    assert_eq!(other.command(&["PUBLISH", "c", "x"]), Value::Int(2));
    assert_eq!(other.command(&["PUBLISH", "pq", "y"]), Value::Int(1));
    assert_eq!(other.command(&["SPUBLISH", "s", "z"]), Value::Int(1));
    assert_eq!(two.read_reply(), Value::Array(message("c", "x")));
    let by_pattern = ["pmessage", "p*", "pq", "y"].map(Value::bulk);
    assert_eq!(two.read_reply(), Value::Array(by_pattern.to_vec()));
    assert_eq!(three.read_reply(), Value::Push(message("c", "x")));
    let sharded = ["smessage", "s", "z"].map(Value::bulk);
    assert_eq!(three.read_reply(), Value::Push(sharded.to_vec()));
    // Each has a connection of its own, and only as long as it needs one (rule B8).
    assert_eq!(circuit.connections_with(" sub=1 "), 2);
    two.send(b"UNSUBSCRIBE\r\nPUNSUBSCRIBE\r\n");
    assert_eq!(two.read_reply(), Value::Array(confirmation("unsubscribe", "c", 1)));
    assert_eq!(two.read_reply(), Value::Array(confirmation("punsubscribe", "p*", 0)));
    assert_eq!(two.command(&["SET", "k", "v"]), Value::ok());
    assert_eq!(two.command(&["GET", "k"]), Value::bulk("v"));
    eventually(SOON, || circuit.connections_with(" sub=1 ") == 1);
    drop(three);
    eventually(SOON, || circuit.connections_with(" sub=1 ") == 0);
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_subscriber_of_resp2_is_told_what_redis_would_tell_it() {
    let circuit = Circuit::start(&[]);
    for script in [
        "UNSUBSCRIBE\r\nUNSUBSCRIBE a b\r\nPUNSUBSCRIBE\r\nSUNSUBSCRIBE\r\nSUNSUBSCRIBE x\r\n",
        "SUBSCRIBE a b a\r\nUNSUBSCRIBE zz a\r\nUNSUBSCRIBE b b\r\nSET k 1\r\nGET k\r\n",
        "SUBSCRIBE a\r\nGET k\r\nNOSUCH\r\nGET\r\nCONFIG NOSUCH\r\nCONFIG GET save\r\nCLIENT ID\r\nPING\r\nPING x y\r\nSUBSCRIBE\r\n",
        "SUBSCRIBE a\r\nMULTI\r\nEXEC\r\nHELLO 3\r\nMONITOR\r\nAUTH x\r\nSELECT 1\r\nUNSUBSCRIBE zz\r\nRESET\r\nGET k\r\n",
        "SUBSCRIBE a\r\nPSUBSCRIBE p*\r\nSSUBSCRIBE s\r\nUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nGET k\r\nSUNSUBSCRIBE\r\nINCR n\r\n",
        "SET k 1\r\nINCR k\r\nSUBSCRIBE a\r\nPING\r\nUNSUBSCRIBE\r\nRPUSH q 1\r\nBLPOP q 0\r\nPSUBSCRIBE p\r\nPUNSUBSCRIBE\r\nGET k\r\n",
        "SSUBSCRIBE s\r\nPING\r\nGET k\r\nSUNSUBSCRIBE\r\nINCR n\r\nSUBSCRIBE a\r\nPING\r\nUNSUBSCRIBE a\r\nDECR n\r\nDECR n\r\n",
    ] {
        circuit.compare("", script);
    }
    let mut leaver = circuit.client();
    leaver.send(b"SUBSCRIBE a\r\nQUIT\r\n");
    assert_eq!(leaver.read_reply(), Value::Array(confirmation("subscribe", "a", 1)));
    assert_eq!(leaver.read_reply(), Value::ok());
    assert!(leaver.is_closed());
    circuit.await_subscribers("a", 0);
}

#[test]
fn a_subscriber_of_resp3_runs_any_command_in_the_order_of_redis() {
    let circuit = Circuit::start(&[]);
    for script in [
        "UNSUBSCRIBE\r\nUNSUBSCRIBE a b\r\nPUNSUBSCRIBE\r\nSUNSUBSCRIBE\r\n",
        "SUBSCRIBE a\r\nPING\r\nPUBLISH a x\r\nPING 2\r\nSET k 1\r\nPUBLISH a y\r\nGET k\r\nUNSUBSCRIBE\r\nPUBLISH a z\r\nGET k\r\n",
        "SUBSCRIBE a\r\nMULTI\r\nPUBLISH a y\r\nSET k 2\r\nEXEC\r\nMULTI\r\nSET k 3\r\nDISCARD\r\nGET k\r\nUNSUBSCRIBE\r\nGET k\r\n",
        "SUBSCRIBE a\r\nWATCH k\r\nUNSUBSCRIBE\r\nMULTI\r\nSET k 4\r\nEXEC\r\nGET k\r\nEVAL \"redis.call('publish','a','l') return 1\" 0\r\n",
        "RPUSH q 1\r\nBLPOP q 0\r\nSUBSCRIBE a\r\nRPUSH q 2\r\nBLPOP q 0\r\nMGET k l\r\nCONFIG GET save\r\nECHO x\r\nPUBSUB NUMSUB a\r\n",
        "SELECT 3\r\nSUBSCRIBE a\r\nSET k three\r\nSELECT 4\r\nGET k\r\nSELECT 3\r\nGET k\r\nUNSUBSCRIBE\r\nGET k\r\nSELECT 0\r\nSUBSCRIBE a\r\nPUBLISH a 0\r\nSET k 0\r\nRESET\r\nGET k\r\n",
    ] {
        circuit.compare("HELLO 3\r\n", script);
    }
}

#[test]
fn a_subscriber_changes_its_protocol_without_missing_a_message() {
    let circuit = Circuit::start(&[]);
    let (mut client, mut other) = (circuit.resp3(), circuit.client());
    assert_eq!(
        client.command(&["SUBSCRIBE", "c"]),
        Value::Push(confirmation("subscribe", "c", 1))
    );
    client.send(b"PUBLISH c 3\r\nHELLO 2\r\nGET k\r\nPING\r\n");
    expect_own_message(&mut client, "c", "3");
    assert!(matches!(client.read_reply(), Value::Array(greeting) if greeting.len() == 14));
    assert!(client.read_reply().is_error("ERR Can't execute 'get'"));
    let pong = vec![Value::bulk("pong"), Value::bulk("")];
    assert_eq!(client.read_reply(), Value::Array(pong));
    assert_eq!(other.command(&["PUBLISH", "c", "2"]), Value::Int(1));
    assert_eq!(client.read_reply(), Value::Array(message("c", "2")));
}

#[test]
fn many_channels_and_huge_messages_pass() {
    const CHANNELS: i64 = 5_000;
    let circuit = Circuit::start(&[]);
    let (mut client, mut other) = (circuit.client(), circuit.client());
    let names: Vec<String> = (0..CHANNELS).map(|number| format!("channel-{number}")).collect();
    let mut request = vec!["SUBSCRIBE"];
    request.extend(names.iter().map(String::as_str));
    let first = client.command(&request);
    assert_eq!(first, Value::Array(confirmation("subscribe", "channel-0", 1)));
    for (count, name) in (2..).zip(&names[1..]) {
        assert_eq!(
            client.read_reply(),
            Value::Array(confirmation("subscribe", name, count))
        );
    }
    let text = "m".repeat(3_000_000);
    assert_eq!(other.command(&["PUBLISH", "channel-7", &text]), Value::Int(1));
    // What is answered by us does not get into the middle of the message.
    client.send(b"GET k\r\n");
    let replies = [client.read_reply(), client.read_reply()];
    assert!(
        replies.contains(&Value::Array(message("channel-7", &text))),
        "no message"
    );
    assert!(replies.iter().any(|reply| reply.is_error("ERR Can't execute 'get'")));
    client.send(b"UNSUBSCRIBE\r\n");
    for count in (0..CHANNELS).rev() {
        let Value::Array(parts) = client.read_reply() else {
            panic!("no confirmation");
        };
        assert_eq!(
            (&parts[0], &parts[2]),
            (&Value::bulk("unsubscribe"), &Value::Int(count))
        );
    }
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    let long = "n".repeat(65_537);
    assert!(client.command(&["SUBSCRIBE", &long]).is_error("OOM"));
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
}

#[test]
fn a_subscriber_whose_master_died_is_subscribed_again_without_hearing_of_it() {
    let mut circuit = Circuit::start(&[]);
    let (mut two, mut three) = (circuit.client(), circuit.resp3());
    two.send(b"SUBSCRIBE a gone b\r\nPSUBSCRIBE p*\r\nUNSUBSCRIBE gone\r\nSSUBSCRIBE s\r\n");
    (0..6).for_each(|_| drop(two.read_reply()));
    three.send(b"SUBSCRIBE a\r\nSELECT 2\r\nSET k v\r\n");
    (0..3).for_each(|_| drop(three.read_reply()));
    circuit.redis.kill9();
    eventually(SOON, || circuit.proxy.log().contains("no master:"));
    // Asked while nobody is there: waits.
    two.send(b"SUBSCRIBE later\r\n");
    circuit.redis.restart();
    assert_eq!(two.read_reply(), Value::Array(confirmation("subscribe", "later", 4)));
    circuit.await_subscribers("a", 2);
    let mut publisher = circuit.client();
    for (channel, receivers) in [("a", 2), ("b", 1), ("gone", 0), ("pp", 1), ("later", 1)] {
        assert_eq!(
            publisher.command(&["PUBLISH", channel, "x"]),
            Value::Int(receivers),
            "{channel}"
        );
    }
    assert_eq!(publisher.command(&["SPUBLISH", "s", "x"]), Value::Int(1));
    for channel in ["a", "b"] {
        assert_eq!(two.read_reply(), Value::Array(message(channel, "x")));
    }
    let by_pattern = ["pmessage", "p*", "pp", "x"].map(Value::bulk);
    assert_eq!(two.read_reply(), Value::Array(by_pattern.to_vec()));
    assert_eq!(two.read_reply(), Value::Array(message("later", "x")));
    let sharded = ["smessage", "s", "x"].map(Value::bulk);
    assert_eq!(two.read_reply(), Value::Array(sharded.to_vec()));
    assert_eq!(three.read_reply(), Value::Push(message("a", "x")));
    // Nothing else came, and the connection is in the session's database.
    let pong = vec![Value::bulk("pong"), Value::bulk("")];
    assert_eq!(two.command(&["PING"]), Value::Array(pong));
    assert_eq!(three.command(&["SET", "k", "w"]), Value::ok());
    publisher.send(b"SELECT 2\r\nGET k\r\n");
    assert_eq!(publisher.read_reply(), Value::ok());
    assert_eq!(publisher.read_reply(), Value::bulk("w"));
    circuit.proxy.assert_no_undeclared_warnings(&["no master"]);
}

#[test]
fn without_a_master_a_subscriber_is_refused_news_and_keeps_what_it_has() {
    let mut circuit = Circuit::start(&[]);
    let (mut subscriber, mut newcomer) = (circuit.client(), circuit.client());
    subscriber.command(&["SUBSCRIBE", "a"]);
    circuit.redis.kill9();
    eventually(SOON, || circuit.proxy.log().contains("no master:"));
    newcomer.send(b"SUBSCRIBE a\r\n");
    subscriber.send(b"SUBSCRIBE b\r\n");
    assert!(newcomer.read_reply().is_error("MASTERDOWN"));
    assert!(subscriber.read_reply().is_error("MASTERDOWN"));
    circuit.redis.restart();
    circuit.await_subscribers("a", 1);
    assert_eq!(circuit.client().command(&["PUBLISH", "a", "x"]), Value::Int(1));
    assert_eq!(subscriber.read_reply(), Value::Array(message("a", "x")));
    assert_eq!(newcomer.command(&["SET", "k", "v"]), Value::ok());
}

#[test]
fn a_command_of_a_subscriber_that_is_in_doubt_is_told_so() {
    let mut circuit = Circuit::start(&[]);
    let mut client = circuit.resp3();
    client.command(&["SUBSCRIBE", "a"]);
    circuit.redis.stop();
    client.send(b"SET k 1\r\nGET k\r\n");
    let unread = || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{:04X} ", circuit.redis.port());
        // Bytes that lie in the sockets of the frozen server.
        sockets.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            line.contains(&port) && fields[1].ends_with(port.trim()) && !fields[4].ends_with(":00000000")
        })
    };
    eventually(SOON, unread);
    circuit.redis.kill9();
    circuit.redis.restart();
    assert!(client.read_reply().is_error("INDOUBT"));
    assert_eq!(client.read_reply(), Value::Null);
    assert_eq!(client.command(&["PUBLISH", "b", "x"]), Value::Int(0));
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_and_costs_a_bounded_amount() {
    let circuit = Circuit::start(&["--client-output-buffer-limit", "pubsub", "0", "0", "0"]);
    let (mut deaf, mut publisher) = (circuit.client(), circuit.client());
    deaf.command(&["SUBSCRIBE", "a"]);
    let text = "x".repeat(100_000);
    eventually(SOON, || publisher.command(&["PUBLISH", "a", &text]) == Value::Int(0));
    eventually(SOON, || circuit.connections_with(" sub=1 ") == 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", circuit.proxy.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 160 * 1024, "{kib} KiB for one subscriber that does not read");
}

#[test]
fn a_monitor_sees_what_other_sessions_do_and_survives_its_master() {
    let mut circuit = Circuit::start(&[]);
    let (mut monitor, mut other) = (circuit.client(), circuit.client());
    let await_line = |monitor: &mut Client, wanted: &str| {
        loop {
            let line = monitor.read_reply();
            assert!(
                matches!(&line, Value::Simple(text) if text.starts_with(|byte: char| byte.is_ascii_digit())),
                "{line:?}"
            );
            if line.text().ends_with(wanted) {
                break;
            }
        }
    };
    assert_eq!(monitor.command(&["MONITOR"]), Value::ok());
    assert_eq!(other.command(&["PING"]), Value::Simple("PONG".into()));
    assert_eq!(other.command(&["SET", "k", "v"]), Value::ok());
    await_line(&mut monitor, "\"PING\"");
    await_line(&mut monitor, "\"SET\" \"k\" \"v\"");
    monitor.send(b"GET k\r\n");
    assert!(
        monitor
            .read_reply()
            .is_error("ERR Replica can't interact with the keyspace")
    );
    circuit.redis.kill9();
    eventually(SOON, || circuit.proxy.log().contains("no master:"));
    circuit.redis.restart();
    eventually(SOON, || circuit.connections_with(" cmd=monitor ") == 1);
    assert_eq!(other.command(&["SET", "k", "w"]), Value::ok());
    await_line(&mut monitor, "\"SET\" \"k\" \"w\"");
    monitor.send(b"RESET\r\n");
    eventually(SOON, || monitor.read_reply() == Value::Simple("RESET".into()));
    assert_eq!(monitor.command(&["GET", "k"]), Value::bulk("w"));
    eventually(SOON, || circuit.connections_with(" cmd=monitor ") == 0);
    monitor.send(b"MONITOR\r\nQUIT\r\n");
    assert_eq!([monitor.read_reply(), monitor.read_reply()], [Value::ok(), Value::ok()]);
    assert!(monitor.is_closed());
}

#[test]
fn a_subscriber_of_a_demoted_master_goes_to_the_next_one() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.resp3();
    client.command(&["SUBSCRIBE", "a"]);
    circuit.redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    client.send(b"SET k v\r\nGET k\r\n");
    eventually(SOON, || circuit.proxy.log().contains("is no master"));
    circuit.redis.command(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.read_reply(), Value::bulk("v"));
    circuit.await_subscribers("a", 1);
    client.send(b"PUBLISH a x\r\n");
    expect_own_message(&mut client, "a", "x");
}

#[test]
fn a_subscriber_that_may_not_subscribe_any_more_is_closed_with_a_reason() {
    let mut circuit = Circuit::start(&[]);
    let alice = ["ACL", "SETUSER", "alice", "on", ">pw", "&news", "+@all"];
    circuit.redis.command(&alice);
    let mut client = circuit.client();
    assert_eq!(client.command(&["AUTH", "alice", "pw"]), Value::ok());
    assert!(client.command(&["SUBSCRIBE", "other"]).is_error("NOPERM"));
    assert_eq!(
        client.command(&["SUBSCRIBE", "news"]),
        Value::Array(confirmation("subscribe", "news", 1))
    );
    // The next life of the server does not know her.
    circuit.redis.kill9();
    circuit.redis.restart();
    assert!(client.is_closed());
    let log = circuit.proxy.log();
    assert!(log.contains("login is refused: -WRONGPASS"), "{log}");
}

#[test]
fn a_subscriber_that_becomes_somebody_else_takes_its_subscriptions_along() {
    let circuit = Circuit::start(&[]);
    circuit.redis.command(&[
        "ACL",
        "SETUSER",
        "alice",
        "on",
        ">pw",
        "allchannels",
        "allkeys",
        "+@all",
        "-set",
    ]);
    let mut client = circuit.resp3();
    client.send(b"SUBSCRIBE a\r\nSET k v\r\nAUTH alice wrong\r\nSET k w\r\nAUTH alice pw\r\nSET k x\r\nGET k\r\n");
    assert_eq!(client.read_reply(), Value::Push(confirmation("subscribe", "a", 1)));
    assert_eq!(client.read_reply(), Value::ok());
    assert!(client.read_reply().is_error("WRONGPASS"));
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(client.read_reply(), Value::ok());
    assert!(client.read_reply().is_error("NOPERM"));
    assert_eq!(client.read_reply(), Value::bulk("w"));
    assert_eq!(circuit.client().command(&["PUBLISH", "a", "x"]), Value::Int(1));
    assert_eq!(client.read_reply(), Value::Push(message("a", "x")));
    assert_eq!(circuit.connections_with(" user=alice "), 1);
}
