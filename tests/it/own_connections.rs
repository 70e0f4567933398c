//! Connections of a session's own to Redis (transactions in pieces, blocking commands, huge requests): who does not need
//! one any more has given it back within a second, seen in Redis' CLIENT LIST.

use std::collections::BTreeSet;
use std::time::Duration;

use pointsman::clock;

use crate::support::{Circuit, Client, Value, eventually};

const SOON: Duration = Duration::from_secs(20);
/// How long giving one back may take.
const GIVEN_BACK: Duration = Duration::from_secs(1);

impl Circuit {
    /// The ids of Redis' clients, except who asks.
    fn connections(&self) -> BTreeSet<i64> {
        let mut asker = self.redis.client();
        let Value::Int(own) = asker.command(&["CLIENT", "ID"]) else {
            panic!("CLIENT ID says no number");
        };
        let list = asker.command(&["CLIENT", "LIST"]).text();
        let ids = list.lines().map(|line| {
            let id = line.split(' ').find_map(|field| field.strip_prefix("id="));
            id.unwrap().parse().unwrap()
        });
        ids.filter(|id| *id != own).collect()
    }

    /// The id of the connection on which somebody blocks.
    fn blocked(&self) -> Option<i64> {
        let list = self.redis.command(&["CLIENT", "LIST"]).text();
        let line = list
            .lines()
            .find(|line| line.split(' ').any(|field| field == "flags=b"))?;
        line.split(' ')
            .find_map(|field| field.strip_prefix("id="))?
            .parse()
            .ok()
    }

    /// The connections of a client that only reads and writes, once they are there.
    fn settled(&self, client: &mut Client) -> BTreeSet<i64> {
        assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
        let mut last = self.connections();
        eventually(SOON, || {
            let before = std::mem::replace(&mut last, self.connections());
            before == last
        });
        last
    }

    /// What `begin` asks needs a connection more, which is closed within a second after what `end` asks was answered, or
    /// at once; the session stays.
    #[track_caller]
    fn is_closed_after(&self, what: &str, begin: impl FnOnce(&mut Client), end: impl FnOnce(&mut Client)) {
        let mut client = self.client();
        let before = self.settled(&mut client);
        begin(&mut client);
        let during = self.connections();
        assert_eq!(
            during.difference(&before).count(),
            1,
            "{what}: {before:?} became {during:?}"
        );
        end(&mut client);
        let since = clock::now();
        eventually(SOON, || self.connections().is_subset(&before));
        assert!(since.elapsed() < GIVEN_BACK, "{what}: it took {:?}", since.elapsed());
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"), "{what}");
    }
}

fn watch(client: &mut Client) {
    assert_eq!(client.command(&["WATCH", "k"]), Value::ok());
}

fn watch_and_queue(client: &mut Client) {
    watch(client);
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&["INCR", "n"]), Value::Simple("QUEUED".to_owned()));
}

#[test]
fn a_transaction_leaves_no_connection_behind() {
    let circuit = Circuit::start(&[]);
    circuit.is_closed_after("UNWATCH", watch, |client| {
        assert_eq!(client.command(&["UNWATCH"]), Value::ok());
    });
    circuit.is_closed_after("EXEC", watch_and_queue, |client| {
        assert_eq!(client.command(&["EXEC"]), Value::Array(vec![Value::Int(1)]));
    });
    circuit.is_closed_after("DISCARD", watch_and_queue, |client| {
        assert_eq!(client.command(&["DISCARD"]), Value::ok());
    });
    circuit.is_closed_after("EXEC that aborts", watch_and_queue, |client| {
        assert_eq!(circuit.redis.command(&["SET", "k", "v"]), Value::ok());
        assert_eq!(client.command(&["EXEC"]), Value::Null);
    });
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn who_blocked_lends_its_connection_to_the_next_one_that_blocks() {
    let circuit = Circuit::start(&[]);
    let (mut one, mut other) = (circuit.client(), circuit.client());
    one.send(b"BLPOP list 0\r\n");
    eventually(SOON, || circuit.blocked().is_some());
    let (lent, during) = (circuit.blocked(), circuit.connections());
    assert_eq!(circuit.redis.command(&["RPUSH", "list", "a"]), Value::Int(1));
    assert_eq!(one.read_reply(), Value::Array(["list", "a"].map(Value::bulk).to_vec()));
    // Both sessions are there; one of them needs the connection now.
    other.send(b"BLPOP list 0\r\n");
    let since = clock::now();
    eventually(SOON, || circuit.blocked().is_some());
    assert!(since.elapsed() < GIVEN_BACK);
    assert_eq!(circuit.blocked(), lent, "a connection at rest was there");
    assert!(circuit.connections().is_subset(&during), "no other one was opened");
    assert_eq!(one.command(&["PING"]), Value::Simple("PONG".to_owned()));
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_script_too_large_to_be_collected_leaves_no_more_than_a_connection_at_rest() {
    const SCRIPT_BYTES: usize = 1024 * 1024;
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let before = circuit.settled(&mut client);
    let script = format!("return 1 -- {}", "x".repeat(SCRIPT_BYTES));
    for round in 0..3 {
        let Value::Bulk(digest) = client.command(&["SCRIPT", "LOAD", &script]) else {
            panic!("no digest in round {round}");
        };
        let digest = String::from_utf8(digest).unwrap();
        assert_eq!(client.command(&["EVALSHA", &digest, "0"]), Value::Int(1));
        assert_eq!(client.command(&["EVAL", &script, "0"]), Value::Int(1));
    }
    let since = clock::now();
    // One at rest, and the lane that scripts have.
    eventually(SOON, || circuit.connections().difference(&before).count() <= 2);
    assert!(since.elapsed() < GIVEN_BACK, "it took {:?}", since.elapsed());
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}
