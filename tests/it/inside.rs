//! What concerns the client itself inside a transaction, or behind a WATCH: byte for byte what Redis says.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{Circuit, Client, Value, encode, eventually, hear_until};

const SOON: Duration = Duration::from_secs(20);
/// The last words of each talk, answered whatever state the connection is in.
const LAST_WORDS: &[u8] = b"RESET\r\nPING that-was-all\r\n";
const LAST_ANSWER: &[u8] = b"+RESET\r\n$12\r\nthat-was-all\r\n";

fn request(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

/// How a talk is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    /// In one write.
    AtOnce,
    /// Each request when that before it is likely to have been answered.
    InPieces,
}

/// All bytes that come in answer to these requests, ids left out.
fn heard(addr: &str, lines: &[&str], pace: Pace) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 64 * 1024];
    if pace == Pace::AtOnce {
        let all: Vec<u8> = lines.iter().flat_map(|line| request(line)).collect();
        stream.write_all(&all).unwrap();
    } else {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        for line in lines {
            if stream.write_all(&request(line)).is_err() {
                break;
            }
            if let Ok(count) = stream.read(&mut buffer) {
                answer.extend_from_slice(&buffer[..count]);
            }
        }
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    // After QUIT it may be closed.
    let _closed = stream.write_all(LAST_WORDS);
    hear_until(&mut stream, LAST_ANSWER, &mut answer);
    without_ids(&String::from_utf8_lossy(&answer))
}

/// HELLO tells the connection's id.
fn without_ids(answer: &str) -> String {
    let mut parts = answer.split("$2\r\nid\r\n:");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str("$2\r\nid\r\n:");
        plain.push_str(part.trim_start_matches(|byte: char| byte.is_ascii_digit()));
    }
    plain
}

/// Holds the talk with Redis and through the proxy, in both protocols and at both paces.
#[track_caller]
fn same(circuit: &Circuit, lines: &[&str]) {
    same_after(circuit, &["HELLO 2", "HELLO 3"], lines);
}

/// The same in RESP3 only.
#[track_caller]
fn same3(circuit: &Circuit, lines: &[&str]) {
    same_after(circuit, &["HELLO 3"], lines);
}

#[track_caller]
fn same_after(circuit: &Circuit, hellos: &[&str], lines: &[&str]) {
    for hello in hellos {
        let lines: Vec<&str> = [*hello].into_iter().chain(lines.iter().copied()).collect();
        for pace in [Pace::AtOnce, Pace::InPieces] {
            circuit.redis.command(&["FLUSHALL"]);
            let theirs = heard(&circuit.redis.addr(), &lines, pace);
            circuit.redis.command(&["FLUSHALL"]);
            assert_eq!(heard(&circuit.listen, &lines, pace), theirs, "{pace:?} {lines:?}");
        }
    }
}

/// Whatever concerns the client itself.
const REQUESTS: [&str; 62] = [
    "AUTH x",
    "AUTH default x",
    "AUTH a b c",
    "HELLO",
    "HELLO 2",
    "HELLO 3",
    "HELLO 4",
    "HELLO x",
    "HELLO 3 SETNAME n",
    "HELLO 2 SETNAME",
    "HELLO 3 AUTH default x",
    "HELLO 3 AUTH no one",
    "SUBSCRIBE a",
    "SUBSCRIBE a b a",
    "SUBSCRIBE",
    "PSUBSCRIBE a*",
    "SSUBSCRIBE a",
    "UNSUBSCRIBE",
    "UNSUBSCRIBE a b",
    "PUNSUBSCRIBE",
    "SUNSUBSCRIBE x",
    "MONITOR",
    "CLIENT",
    "CLIENT GETNAME",
    "CLIENT GETNAME x",
    "CLIENT SETNAME n",
    "CLIENT SETNAME with\nlines",
    "CLIENT SETINFO LIB-NAME x",
    "CLIENT KILL ID 99999",
    "CLIENT KILL 1.2.3.4:5",
    "CLIENT KILL USER nobody",
    "CLIENT KILL TYPE what",
    "CLIENT REPLY ON",
    "CLIENT REPLY OFF",
    "CLIENT REPLY SKIP",
    "CLIENT REPLY x",
    "CLIENT NO-EVICT ON",
    "CLIENT NO-EVICT x",
    "CLIENT NO-TOUCH ON",
    "CLIENT GETREDIR",
    "CLIENT TRACKING ON",
    "CLIENT TRACKING ON BCAST PREFIX z",
    "CLIENT TRACKING ON OPTIN OPTOUT",
    "CLIENT TRACKING ON REDIRECT 99999",
    "CLIENT TRACKING OFF",
    "CLIENT TRACKING x",
    "CLIENT TRACKINGINFO",
    "CLIENT CACHING YES",
    "CLIENT UNBLOCK 99999",
    "CLIENT UNBLOCK x",
    "CLIENT UNBLOCK 1 maybe",
    "CLIENT PAUSE x",
    "CLIENT UNPAUSE",
    "ACL WHOAMI",
    "SELECT 1",
    "SELECT 99",
    "WAIT 0 10",
    "WAIT x 1",
    "WAIT 1 x",
    "WAIT 1 -1",
    "RESET",
    "QUIT",
];

#[test]
fn requests_about_the_client_are_elements_of_the_reply_to_exec() {
    let circuit = Circuit::start(&[]);
    for inside in REQUESTS {
        same(&circuit, &["MULTI", "SET k v", inside, "INCR n", "EXEC", "INCR n"]);
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn they_are_so_on_the_connection_of_a_subscriber_a_monitor_and_who_tracks() {
    let circuit = Circuit::start(&[]);
    let more = [
        "SCAN 0",
        "HSCAN h 0",
        "CONFIG GET maxmemory",
        "CONFIG GET masterauth",
        "CONFIG SET maxmemory 104857600",
        "CONFIG SET maxmemory bla",
        "SCRIPT LOAD return",
        "INFO nosuch",
        "ACL LIST",
        "ACL USERS",
        "SLOWLOG GET",
        "EVAL return(1) 0",
        "NOSUCH",
        "GET",
        "WATCH k",
        "MULTI",
    ];
    for begin in ["SUBSCRIBE z", "CLIENT TRACKING ON", "CLIENT TRACKING ON BCAST PREFIX z"] {
        for inside in REQUESTS.iter().chain(&more) {
            same3(
                &circuit,
                &[begin, "MULTI", "SET k v", inside, "INCR n", "EXEC", "INCR n"],
            );
        }
        same3(
            &circuit,
            &[begin, "MULTI", "SUBSCRIBE a", "EXEC x", "EXEC", "INCR n", "UNSUBSCRIBE"],
        );
        same3(
            &circuit,
            &[
                begin,
                "MULTI",
                "CLIENT SETNAME n",
                "SELECT 2",
                "DISCARD",
                "CLIENT GETNAME",
                "DBSIZE",
            ],
        );
        same3(
            &circuit,
            &[
                begin,
                "WATCH k",
                "SET k v",
                "MULTI",
                "CLIENT SETNAME n",
                "EXEC",
                "CLIENT GETNAME",
            ],
        );
        same3(
            &circuit,
            &[
                begin,
                "WATCH k",
                "HELLO 3",
                "AUTH default x",
                "SET k v",
                "MULTI",
                "INCR n",
                "EXEC",
            ],
        );
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_subscription_begins_and_ends_with_exec() {
    let circuit = Circuit::start(&[]);
    for lines in [
        &[
            "MULTI",
            "SUBSCRIBE a",
            "PUBLISH a x",
            "UNSUBSCRIBE",
            "INCR n",
            "EXEC",
            "INCR n",
        ][..],
        &[
            "MULTI",
            "SUBSCRIBE a",
            "SUBSCRIBE a",
            "UNSUBSCRIBE",
            "SELECT 2",
            "EXEC",
            "INCR n",
        ],
        &[
            "MULTI",
            "PSUBSCRIBE p*",
            "PUBLISH pp x",
            "PUBLISH q x",
            "EXEC",
            "PUNSUBSCRIBE",
            "INCR n",
        ],
        &["MULTI", "SUBSCRIBE a", "EXEC", "PING", "GET k", "UNSUBSCRIBE", "GET k"],
        &["MULTI", "SUBSCRIBE a", "DISCARD", "GET k", "PUBLISH a x"],
        &["MULTI", "SUBSCRIBE a", "NOSUCH", "EXEC", "GET k"],
        &["MULTI", "SUBSCRIBE a", "GET", "CLIENT GETNAME", "EXEC", "GET k"],
        &["MULTI", "SUBSCRIBE a", "EXEC x", "EXEC", "GET k"],
        &["WATCH k", "SET k v", "MULTI", "SUBSCRIBE a", "EXEC", "GET k"],
        &[
            "WATCH k",
            "MULTI",
            "SUBSCRIBE a",
            "INCR n",
            "EXEC",
            "UNSUBSCRIBE a",
            "GET n",
        ],
        &[
            "WATCH k",
            "SUBSCRIBE a",
            "UNSUBSCRIBE",
            "SET k v",
            "MULTI",
            "INCR n",
            "EXEC",
        ],
        &["WATCH k", "SUBSCRIBE a", "UNSUBSCRIBE", "MULTI", "INCR n", "EXEC"],
        &[
            "SELECT 3",
            "MULTI",
            "SET k three",
            "SUBSCRIBE a",
            "GET k",
            "EXEC",
            "UNSUBSCRIBE",
            "GET k",
        ],
        &[
            "MULTI",
            "CLIENT REPLY OFF",
            "SUBSCRIBE a",
            "INCR n",
            "EXEC",
            "INCR n",
            "UNSUBSCRIBE",
            "CLIENT REPLY ON",
        ],
        &[
            "MULTI",
            "HELLO 3",
            "SUBSCRIBE c",
            "PUBLISH c x",
            "HELLO 2",
            "PUBLISH c y",
            "UNSUBSCRIBE c",
            "EXEC",
            "GET n",
        ],
        &[
            "MULTI",
            "SUBSCRIBE c",
            "HELLO 3",
            "PUBLISH c x",
            "EXEC",
            "GET n",
            "CLIENT GETNAME",
        ],
        &[
            "MULTI",
            "LPUSH l x a message",
            "SUBSCRIBE c",
            "LRANGE l 1 2",
            "LRANGE l 0 0",
            "UNSUBSCRIBE",
            "EXEC",
        ],
    ] {
        same(&circuit, lines);
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn what_is_told_of_keys_begins_and_ends_with_exec() {
    let circuit = Circuit::start(&[]);
    for lines in [
        &[
            "MULTI",
            "CLIENT TRACKING ON",
            "GET k",
            "SET k 3",
            "CLIENT TRACKING OFF",
            "EXEC",
            "SET k 4",
        ][..],
        &[
            "MULTI",
            "CLIENT TRACKING ON",
            "CLIENT TRACKINGINFO",
            "GET k",
            "EXEC",
            "SET k 4",
            "CLIENT TRACKINGINFO",
        ],
        &[
            "MULTI",
            "CLIENT TRACKING ON",
            "DISCARD",
            "GET k",
            "SET k 4",
            "CLIENT TRACKINGINFO",
        ],
        &[
            "MULTI",
            "CLIENT TRACKING ON OPTIN",
            "CLIENT CACHING YES",
            "GET k",
            "SET k 3",
            "EXEC",
            "SET k 3",
            "GET k",
            "SET k 4",
        ],
        &[
            "WATCH k",
            "CLIENT TRACKING ON",
            "MULTI",
            "GET k",
            "EXEC",
            "SET k 3",
            "CLIENT TRACKING OFF",
            "SET k 3",
        ],
        &[
            "WATCH k",
            "CLIENT TRACKING ON",
            "SET k 1",
            "MULTI",
            "GET k",
            "EXEC",
            "GET k",
            "SET k 3",
        ],
        &[
            "WATCH k",
            "MULTI",
            "CLIENT TRACKING ON BCAST PREFIX z",
            "SET k 1",
            "EXEC",
            "CLIENT GETREDIR",
            "SET k 3",
        ],
    ] {
        same(&circuit, lines);
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn what_one_of_them_does_the_next_one_sees() {
    let circuit = Circuit::start(&[]);
    for lines in [
        &["MULTI", "CLIENT SETNAME n", "CLIENT GETNAME", "EXEC", "CLIENT GETNAME"][..],
        &[
            "CLIENT SETNAME o",
            "MULTI",
            "CLIENT SETNAME n",
            "CLIENT GETNAME",
            "DISCARD",
            "CLIENT GETNAME",
        ],
        &["MULTI", "CLIENT SETNAME n", "NOSUCH", "EXEC", "CLIENT GETNAME"],
        &[
            "WATCH k",
            "SET k v",
            "MULTI",
            "CLIENT SETNAME n",
            "HELLO 3",
            "SELECT 2",
            "EXEC",
            "CLIENT GETNAME",
            "DBSIZE",
        ],
        &[
            "MULTI",
            "HSET h f v",
            "HELLO 3",
            "HGETALL h",
            "CLIENT GETNAME",
            "HELLO 2",
            "HGETALL h",
            "EXEC",
            "HGETALL h",
        ],
        &[
            "MULTI",
            "HELLO 3",
            "EXEC",
            "HGETALL h",
            "MULTI",
            "HGETALL h",
            "EXEC",
            "CLIENT GETNAME",
        ],
        &[
            "MULTI",
            "SELECT 3",
            "SET k three",
            "HELLO 3",
            "EXEC",
            "GET k",
            "SELECT 0",
            "GET k",
        ],
        &[
            "MULTI",
            "UNSUBSCRIBE",
            "HELLO 3",
            "UNSUBSCRIBE a b",
            "HELLO 2",
            "PUNSUBSCRIBE",
            "EXEC",
        ],
        &[
            "MULTI",
            "CLIENT REPLY OFF",
            "INCR n",
            "CLIENT REPLY ON",
            "INCR n",
            "EXEC",
            "INCR n",
        ],
        &[
            "CLIENT REPLY OFF",
            "MULTI",
            "INCR n",
            "CLIENT REPLY ON",
            "INCR n",
            "EXEC",
            "INCR n",
        ],
        &["MULTI", "INCR n", "CLIENT REPLY SKIP", "EXEC", "INCR n", "INCR n"],
        &[
            "MULTI",
            "INCR n",
            "CLIENT REPLY SKIP",
            "CLIENT REPLY ON",
            "EXEC",
            "INCR n",
            "INCR n",
        ],
        &[
            "MULTI",
            "CLIENT REPLY OFF",
            "CLIENT REPLY SKIP",
            "EXEC",
            "INCR n",
            "CLIENT REPLY ON",
            "INCR n",
        ],
        &[
            "CLIENT REPLY SKIP",
            "MULTI",
            "INCR n",
            "CLIENT GETNAME",
            "EXEC",
            "INCR n",
        ],
        &[
            "MULTI",
            "INCR n",
            "CLIENT REPLY SKIP",
            "CLIENT KILL ID 99999",
            "CLIENT REPLY OFF",
            "EXEC",
            "CLIENT REPLY ON",
        ],
        &[
            "MULTI",
            "CLIENT KILL ID 99999",
            "INCR n",
            "CLIENT KILL 1.2.3.4:5",
            "CLIENT UNBLOCK 9999",
            "INCR n",
            "EXEC",
        ],
    ] {
        same(&circuit, lines);
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_watch_outlives_another_login_and_another_protocol() {
    let circuit = Circuit::start(&[]);
    for lines in [
        &["WATCH k", "HELLO 3", "MULTI", "INCR n", "EXEC", "HGETALL h"][..],
        &["WATCH k", "HELLO 3", "SET k v", "MULTI", "INCR n", "EXEC", "GET n"],
        &["WATCH k", "HELLO 2", "SET k v", "MULTI", "INCR n", "EXEC"],
        &["WATCH k", "HELLO 4", "MULTI", "INCR n", "EXEC"],
        &["WATCH k", "AUTH default x", "MULTI", "INCR n", "EXEC"],
        &["WATCH k", "AUTH default x", "SET k v", "MULTI", "INCR n", "EXEC"],
        &["WATCH k", "AUTH no one", "MULTI", "INCR n", "EXEC"],
        &[
            "WATCH k",
            "HELLO 3 AUTH default x SETNAME n",
            "CLIENT GETNAME",
            "UNWATCH",
            "MULTI",
            "INCR n",
            "EXEC",
        ],
    ] {
        same(&circuit, lines);
    }
    // Somebody else's change is still seen.
    let (mut client, mut other) = (circuit.client(), circuit.client());
    assert_eq!(client.command(&["WATCH", "k"]), Value::ok());
    assert!(matches!(client.command(&["HELLO", "3"]), Value::Map(_)));
    assert_eq!(other.command(&["SET", "k", "theirs"]), Value::ok());
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]).text(), "QUEUED");
    assert_eq!(client.command(&["EXEC"]), Value::Null);
}

#[test]
fn a_transaction_goes_on_as_another_user() {
    let circuit = Circuit::start(&[]);
    let rule = ["ACL", "SETUSER", "alice", "on", ">pw", "~a*", "&*", "+@all"];
    assert_eq!(circuit.redis.command(&rule), Value::ok());
    same(
        &circuit,
        &[
            "MULTI",
            "SET b 1",
            "AUTH alice pw",
            "SET b 2",
            "SET a 1",
            "ACL WHOAMI",
            "EXEC",
            "GET b",
            "GET a",
            "ACL WHOAMI",
        ],
    );
    same(
        &circuit,
        &["MULTI", "AUTH alice wrong", "SET b 2", "EXEC", "GET b", "ACL WHOAMI"],
    );
    same(
        &circuit,
        &[
            "MULTI",
            "HELLO 3 AUTH alice pw",
            "SET b 2",
            "EXEC",
            "GET b",
            "ACL WHOAMI",
        ],
    );
    same(
        &circuit,
        &["MULTI", "AUTH alice pw", "DISCARD", "SET b 3", "ACL WHOAMI"],
    );
    same(
        &circuit,
        &[
            "WATCH a",
            "AUTH alice pw",
            "GET b",
            "MULTI",
            "SET a 1",
            "EXEC",
            "ACL WHOAMI",
        ],
    );
}

/// The elements of the reply to EXEC that are text, of a transaction of these.
fn elements(client: &mut Client, lines: &[&str]) -> Vec<Value> {
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    for line in lines {
        client.send(&request(line));
        assert_eq!(client.read_reply().text(), "QUEUED", "{line}");
    }
    match client.command(&["EXEC"]) {
        Value::Array(elements) => elements,
        other => panic!("no array: {other:?}"),
    }
}

#[test]
fn clients_are_those_of_the_proxy_inside_a_transaction_too() {
    let circuit = Circuit::start(&[]);
    let (mut client, mut other) = (circuit.client(), circuit.client());
    let ids = [&mut client, &mut other].map(|client| match client.command(&["CLIENT", "ID"]) {
        Value::Int(id) => id,
        other => panic!("no id: {other:?}"),
    });
    let info = format!("CLIENT LIST ID {} {}", ids[0], ids[1]);
    let seen = elements(
        &mut client,
        &[
            "CLIENT ID",
            "CLIENT SETNAME me",
            "SELECT 2",
            "CLIENT INFO",
            &info,
            "SET k v",
        ],
    );
    assert_eq!(seen[0], Value::Int(ids[0]));
    assert_eq!([&seen[1], &seen[2], &seen[5]], [&Value::ok(); 3]);
    let own = format!("id={} ", ids[0]);
    for text in [seen[3].text(), seen[4].text()] {
        let line = text.lines().find(|line| line.starts_with(&own)).unwrap_or_default();
        for field in [" name=me ", " db=2 ", " flags=x ", " multi=6 ", " cmd=exec "] {
            assert!(line.contains(field), "{field}: {line}");
        }
    }
    assert_eq!((seen[3].text().lines().count(), seen[4].text().lines().count()), (1, 2));
    // Killed when EXEC runs, and not before.
    let kill = format!("CLIENT KILL ID {}", ids[1]);
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    client.send(&request(&kill));
    assert_eq!(client.read_reply().text(), "QUEUED");
    assert_eq!(client.command(&["DISCARD"]), Value::ok());
    assert_eq!(other.command(&["PING"]).text(), "PONG");
    assert_eq!(
        elements(&mut client, &["INCR n", &kill, "INCR n"]),
        [1, 1, 2].map(Value::Int)
    );
    eventually(SOON, || other.is_closed());
    // Who kills itself hears nothing after that.
    let kill = format!("CLIENT KILL ID {} SKIPME no", ids[0]);
    client.send(
        &[
            request("MULTI"),
            request("INCR n"),
            request(&kill),
            request("INCR n"),
            request("EXEC"),
        ]
        .concat(),
    );
    let mut said = Vec::new();
    let mut stream = client.stream().try_clone().unwrap();
    stream.read_to_end(&mut said).unwrap();
    assert!(
        String::from_utf8_lossy(&said).ends_with("+QUEUED\r\n*3\r\n:3\r\n:1\r\n"),
        "{said:?}"
    );
}

#[test]
fn a_client_that_blocks_is_unblocked_when_exec_runs() {
    let circuit = Circuit::start(&[]);
    let (mut client, mut blocked) = (circuit.client(), circuit.client());
    let Value::Int(id) = blocked.command(&["CLIENT", "ID"]) else {
        panic!("no id")
    };
    blocked.send(&request("BLPOP q 0"));
    circuit.has_blocked_one();
    let unblock = format!("CLIENT UNBLOCK {id}");
    assert_eq!(
        elements(&mut client, &["INCR n", &unblock, "INCR n"]),
        [1, 1, 2].map(Value::Int)
    );
    assert_eq!(blocked.read_reply(), Value::Null);
}

#[test]
fn a_transaction_with_requests_about_the_client_goes_on_at_the_next_master() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    for line in ["INCR n", "CLIENT SETNAME n", "SELECT 1", "HELLO 3"] {
        client.send(&request(line));
        assert_eq!(client.read_reply().text(), "QUEUED");
    }
    assert_eq!(circuit.redis.command(&["REPLICAOF", "127.0.0.1", "1"]), Value::ok());
    client.send(&[request("CLIENT GETNAME"), request("EXEC"), request("CLIENT GETNAME")].concat());
    eventually(SOON, || circuit.proxy.log().contains("is no master"));
    assert_eq!(circuit.redis.command(&["REPLICAOF", "NO", "ONE"]), Value::ok());
    assert_eq!(client.read_reply().text(), "QUEUED");
    let Value::Array(elements) = client.read_reply() else {
        panic!("no array")
    };
    assert_eq!(elements[..3], [Value::Int(1), Value::ok(), Value::ok()]);
    assert!(matches!(elements[3], Value::Map(_)));
    assert_eq!([&elements[4], &client.read_reply()], [&Value::bulk("n"); 2]);
    assert_eq!(client.command(&["HGETALL", "h"]), Value::Map(Vec::new()));
}
