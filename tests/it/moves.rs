//! What is attached to sessions moves along when the master is moved on purpose: subscribers, monitors, transactions in
//! pieces, clients that block or wait. The tests do the executor's steps themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::pointsman::topology::Addr;

use crate::support::{Client, Stage, Value, eventually, field, free_port};

const SOON: Duration = Duration::from_secs(20);

impl Stage {
    fn resp3(&self) -> Client {
        let mut client = self.client();
        assert!(matches!(client.command(&["HELLO", "3"]), Value::Map(_)));
        client
    }

    /// How many clients of a node have a CLIENT LIST line that contains `text`.
    fn connections_with(&self, node: usize, text: &str) -> usize {
        let list = self.redis[node].command(&["CLIENT", "LIST"]).text();
        list.lines().filter(|line| line.contains(text)).count()
    }

    /// How many clients block at a node.
    fn blocked(&self, node: usize) -> String {
        field(
            &self.redis[node].command(&["INFO", "clients"]).text(),
            "blocked_clients",
        )
    }
}

/// Says numbers, for as long as it is not told to end.
struct Speaker {
    ends: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Speaker {
    /// Each number is the end of one request, to be answered so.
    fn start(stage: &Stage, request: &'static [&'static str], answer: Value) -> Self {
        let mut client = stage.client();
        let ends = Arc::new(AtomicBool::new(false));
        let ending = ends.clone();
        let task = thread::spawn(move || {
            let mut number = 0;
            while !ending.load(Ordering::Relaxed) {
                let text = number.to_string();
                let command: Vec<&str> = request.iter().copied().chain([&*text]).collect();
                assert_eq!(client.command(&command), answer, "{command:?}");
                number += 1;
            }
            number
        });
        Self { ends, task }
    }

    /// How many there were.
    fn end(self) -> usize {
        self.ends.store(true, Ordering::Relaxed);
        self.task.join().expect("all were answered")
    }
}

/// The numbers that a subscriber heard, up to one; everything else that it heard fails the test.
fn heard_up_to(client: &mut Client, count: usize, of: impl Fn(&Value) -> Option<String>) {
    for number in 0..count {
        let said = client.read_reply();
        assert_eq!(of(&said), Some(number.to_string()), "{said:?}");
    }
}

/// The last part of a message whose other parts are these.
fn text_of<'p>(parts: &'p [&'p str]) -> impl Fn(&Value) -> Option<String> + 'p {
    move |said| match said {
        Value::Array(all) | Value::Push(all) => {
            let (last, before) = all.split_last()?;
            let same = before
                .iter()
                .map(Value::text)
                .eq(parts.iter().map(|part| (*part).to_owned()));
            same.then(|| last.text())
        }
        _ => None,
    }
}

fn replies(client: &mut Client, count: usize) -> Vec<Value> {
    (0..count).map(|_| client.read_reply()).collect()
}

fn queued() -> Value {
    Value::Simple("QUEUED".into())
}

#[test]
fn subscribers_miss_nothing_and_hear_nothing_twice() {
    const MOVES: usize = 6;
    let mut stage = Stage::start();
    let (mut two, mut pattern, mut three, mut sharded) = (stage.client(), stage.client(), stage.resp3(), stage.resp3());
    two.command(&["SUBSCRIBE", "c"]);
    pattern.send(b"SUBSCRIBE other\r\nPSUBSCRIBE c*\r\n");
    replies(&mut pattern, 2);
    three.command(&["SUBSCRIBE", "c"]);
    sharded.command(&["SSUBSCRIBE", "s"]);
    let channel = Speaker::start(&stage, &["PUBLISH", "c"], Value::Int(3));
    let shard = Speaker::start(&stage, &["SPUBLISH", "s"], Value::Int(1));
    for _ in 0..MOVES {
        stage.switch_over();
    }
    let (channel, shard) = (channel.end(), shard.end());
    assert!(channel > MOVES && shard > MOVES, "{channel}, {shard}");
    heard_up_to(&mut two, channel, text_of(&["message", "c"]));
    heard_up_to(&mut pattern, channel, text_of(&["pmessage", "c*", "c"]));
    heard_up_to(&mut three, channel, text_of(&["message", "c"]));
    heard_up_to(&mut sharded, shard, text_of(&["smessage", "s"]));
    // Nothing else was said, and each has one connection, to the master.
    let pong = Value::Array(vec![Value::bulk("pong"), Value::bulk("")]);
    for client in [&mut two, &mut pattern] {
        assert_eq!(client.command(&["PING"]), pong);
    }
    for client in [&mut three, &mut sharded] {
        assert_eq!(client.command(&["PING"]).text(), "PONG");
    }
    let master = stage.master;
    eventually(SOON, || stage.connections_with(1 - master, " cmd=subscribe ") == 0);
    assert_eq!(stage.redis[master].command(&["PUBSUB", "NUMPAT"]), Value::Int(1));
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_monitor_sees_every_write_once() {
    let mut stage = Stage::start();
    let mut monitor = stage.client();
    assert_eq!(monitor.command(&["MONITOR"]), Value::ok());
    let writer = Speaker::start(&stage, &["SET", "n"], Value::ok());
    for _ in 0..4 {
        stage.switch_over();
    }
    let count = writer.end();
    let mut next = 0;
    while next < count {
        let line = monitor.read_reply().text();
        assert!(!line.contains("\"GET\""), "{line}");
        if line.contains("\"SET\" \"n\"") {
            assert!(
                line.ends_with(&format!("\"SET\" \"n\" \"{next}\"")),
                "{line} for {next}"
            );
            next += 1;
        }
    }
}

#[test]
fn what_a_subscriber_asks_meanwhile_is_answered_in_order_by_the_right_server() {
    let mut stage = Stage::start();
    let (mut three, mut two) = (stage.resp3(), stage.client());
    three.command(&["SUBSCRIBE", "c"]);
    two.command(&["SUBSCRIBE", "c"]);
    stage.begin();
    stage.drained();
    // What changes something waits, and everything behind it.
    three.send(b"GET k\r\nPUBLISH c x\r\nSUBSCRIBE d\r\nSET k v\r\nGET k\r\nPING\r\n");
    assert_eq!(three.read_reply(), Value::Null);
    two.send(b"SUBSCRIBE e\r\nPING\r\n");
    let confirmed = |name: &str, count| vec![Value::bulk("subscribe"), Value::bulk(name), Value::Int(count)];
    let pong = || Value::Array(vec![Value::bulk("pong"), Value::bulk("")]);
    assert_eq!(replies(&mut two, 2), [Value::Array(confirmed("e", 2)), pong()]);
    stage.fence();
    stage.attach();
    stage.attached();
    // Not master yet, but it hears.
    let next = stage.other();
    let channels = |channel| stage.redis[next].command(&["PUBSUB", "NUMSUB", channel]);
    assert_eq!(channels("c"), Value::Array(vec![Value::bulk("c"), Value::Int(2)]));
    two.send(b"SUBSCRIBE f\r\nUNSUBSCRIBE e\r\nPING\r\n");
    let gone = Value::Array(vec![Value::bulk("unsubscribe"), Value::bulk("e"), Value::Int(2)]);
    assert_eq!(replies(&mut two, 3), [Value::Array(confirmed("f", 3)), gone, pong()]);
    stage.promote();
    stage.publish();
    let message = vec![Value::bulk("message"), Value::bulk("c"), Value::bulk("x")];
    let seen = replies(&mut three, 6);
    let mut own = seen[..2].to_vec();
    own.sort_by_key(|value| matches!(value, Value::Push(_)));
    assert_eq!(own, [Value::Int(2), Value::Push(message.clone())]);
    assert_eq!(seen[2], Value::Push(confirmed("d", 2)));
    assert_eq!(seen[3..5], [Value::ok(), Value::bulk("v")]);
    assert_eq!(seen[5].text(), "PONG");
    assert_eq!(two.read_reply(), Value::Array(message));
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_switchover_that_is_taken_back_leaves_subscribers_where_they_are() {
    let mut stage = Stage::start();
    let mut three = stage.resp3();
    three.command(&["SUBSCRIBE", "c"]);
    let id = |stage: &Stage| {
        let list = stage.redis[0].command(&["CLIENT", "LIST", "TYPE", "pubsub"]).text();
        field(&list.replace(' ', "\n").replace('=', ":"), "id")
    };
    let before = id(&stage);
    stage.begin();
    stage.drained();
    three.send(b"PUBLISH c x\r\nGET k\r\n");
    stage.roll_back();
    let seen = replies(&mut three, 3);
    assert!(seen[..2].contains(&Value::Int(1)), "{seen:?}");
    assert_eq!(seen[2], Value::Null);
    assert!(!before.is_empty());
    assert_eq!(id(&stage), before);
    stage.switch_over();
    let mut publisher = stage.client();
    assert_eq!(publisher.command(&["PUBLISH", "c", "y"]), Value::Int(1));
    assert_eq!(text_of(&["message", "c"])(&three.read_reply()), Some("y".to_owned()));
}

#[test]
fn subscribers_come_back_when_another_master_than_the_chosen_one_is_published() {
    let mut stage = Stage::start();
    let (mut three, mut two) = (stage.resp3(), stage.client());
    three.command(&["SUBSCRIBE", "c"]);
    two.command(&["SUBSCRIBE", "c"]);
    stage.begin();
    stage.drained();
    stage.fence();
    stage.attach();
    stage.attached();
    three.send(b"SET k v\r\n");
    let old = stage.master;
    stage.epoch += 2;
    stage.elect();
    stage.promote_in(old, stage.epoch);
    stage.publish();
    assert_eq!(three.read_reply(), Value::ok());
    eventually(SOON, || {
        stage.redis[old].command(&["PUBSUB", "NUMSUB", "c"]) == Value::Array(vec![Value::bulk("c"), Value::Int(2)])
    });
    assert_eq!(stage.client().command(&["PUBLISH", "c", "x"]), Value::Int(2));
    assert_eq!(text_of(&["message", "c"])(&three.read_reply()), Some("x".to_owned()));
    assert_eq!(text_of(&["message", "c"])(&two.read_reply()), Some("x".to_owned()));
    let next = stage.other();
    eventually(SOON, || stage.connections_with(next, " cmd=subscribe ") == 0);
}

#[test]
fn subscribers_that_cannot_move_ahead_are_subscribed_again_afterwards() {
    let mut stage = Stage::start();
    let mut two = stage.client();
    two.command(&["SUBSCRIBE", "c"]);
    stage.begin();
    stage.drained();
    stage.fence();
    // Nobody listens there.
    stage.attach_at(Addr::new("127.0.0.1", free_port()));
    stage.attached();
    stage.promote();
    stage.publish();
    let master = stage.master;
    eventually(SOON, || {
        stage.redis[master].command(&["PUBSUB", "NUMSUB", "c"]) == Value::Array(vec![Value::bulk("c"), Value::Int(1)])
    });
    assert_eq!(stage.client().command(&["PUBLISH", "c", "x"]), Value::Int(1));
    assert_eq!(text_of(&["message", "c"])(&two.read_reply()), Some("x".to_owned()));
}

#[test]
fn a_frozen_old_master_does_not_keep_subscribers_from_the_next_one() {
    let mut stage = Stage::start();
    let mut two = stage.client();
    two.command(&["SUBSCRIBE", "c"]);
    stage.begin();
    stage.drained();
    stage.fence();
    stage.redis[stage.master].stop();
    stage.attach();
    stage.attached();
    let old = stage.master;
    stage.promote();
    stage.publish();
    assert_eq!(stage.client().command(&["PUBLISH", "c", "x"]), Value::Int(1));
    assert_eq!(text_of(&["message", "c"])(&two.read_reply()), Some("x".to_owned()));
    stage.redis[old].cont();
}

#[test]
fn transactions_in_pieces_are_finished_by_the_next_master() {
    let mut stage = Stage::start();
    let (mut plain, mut watching, mut whole) = (stage.client(), stage.client(), stage.client());
    assert_eq!(watching.command(&["WATCH", "a"]), Value::ok());
    for client in [&mut plain, &mut watching] {
        assert_eq!(client.command(&["MULTI"]), Value::ok());
        assert_eq!(client.command(&["INCR", "a"]), queued());
    }
    stage.begin();
    stage.drained();
    plain.send(b"INCR a\r\nGET a\r\n");
    whole.send(b"MULTI\r\nINCR b\r\nINCR b\r\nEXEC\r\n");
    stage.fence();
    stage.attach();
    stage.attached();
    stage.promote();
    stage.publish();
    assert_eq!(replies(&mut plain, 2), [queued(), queued()]);
    let done = Value::Array(vec![Value::Int(1), Value::Int(2), Value::bulk("2")]);
    assert_eq!(plain.command(&["EXEC"]), done);
    assert_eq!(watching.command(&["EXEC"]), Value::Null);
    let both = Value::Array(vec![Value::Int(1), Value::Int(2)]);
    assert_eq!(replies(&mut whole, 4), [Value::ok(), queued(), queued(), both]);
    assert_eq!(plain.command(&["GET", "a"]), Value::bulk("2"));
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn transactions_of_subscribers_move_along_too() {
    let mut stage = Stage::start();
    let (mut plain, mut watching) = (stage.resp3(), stage.resp3());
    for client in [&mut plain, &mut watching] {
        client.command(&["SUBSCRIBE", "c"]);
    }
    assert_eq!(watching.command(&["WATCH", "a"]), Value::ok());
    for client in [&mut plain, &mut watching] {
        assert_eq!(client.command(&["MULTI"]), Value::ok());
        assert_eq!(client.command(&["INCR", "a"]), queued());
    }
    stage.switch_over();
    plain.send(b"GET a\r\nEXEC\r\nMULTI\r\nGET a\r\n");
    let done = Value::Array(vec![Value::Int(1), Value::bulk("1")]);
    assert_eq!(replies(&mut plain, 4), [queued(), done, Value::ok(), queued()]);
    watching.send(b"EXEC\r\nGET a\r\n");
    assert_eq!(replies(&mut watching, 2), [Value::Null, Value::bulk("1")]);
    stage.switch_over();
    assert_eq!(plain.command(&["EXEC"]), Value::Array(vec![Value::bulk("1")]));
    assert_eq!(stage.client().command(&["PUBLISH", "c", "x"]), Value::Int(2));
    for client in [&mut plain, &mut watching] {
        assert_eq!(text_of(&["message", "c"])(&client.read_reply()), Some("x".to_owned()));
    }
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn clients_that_block_go_on_blocking_at_the_next_master_and_get_each_value_once() {
    let mut stage = Stage::start();
    let mut other = stage.client();
    other.command(&["XGROUP", "CREATE", "g", "g", "$", "MKSTREAM"]);
    let requests = [
        "BLPOP l 0",
        "BRPOP r 0",
        "BLMOVE m to LEFT RIGHT 0",
        "BZPOPMIN z 0",
        "XREAD BLOCK 0 STREAMS x $",
        "XREADGROUP GROUP g c BLOCK 0 STREAMS g >",
        "BLPOP never 1.5",
        "BLPOP unblocked 0",
    ];
    let mut clients: Vec<Client> = requests
        .iter()
        .map(|request| {
            let mut client = stage.client();
            client.send(format!("{request}\r\n").as_bytes());
            client
        })
        .collect();
    let mut subscriber = stage.resp3();
    subscriber.command(&["SUBSCRIBE", "c"]);
    subscriber.send(b"BLPOP s 0\r\nPING\r\n");
    let all = (requests.len() + 1).to_string();
    eventually(SOON, || stage.blocked(0) == all);
    let id = {
        let list = other.command(&["CLIENT", "LIST"]).text();
        let port = clients[7].stream().local_addr().unwrap().to_string();
        let line = list.lines().find(|line| line.contains(&format!(" addr={port} ")));
        field(&line.unwrap().replace(' ', "\n").replace('=', ":"), "id")
    };
    stage.switch_over();
    stage.switch_over();
    stage.switch_over();
    let master = stage.master;
    // It had its time.
    assert_eq!(clients[6].read_reply(), Value::Null);
    let rest = requests.len().to_string();
    eventually(SOON, || stage.blocked(master) == rest);
    assert_eq!(other.command(&["CLIENT", "UNBLOCK", &id, "ERROR"]), Value::Int(1));
    assert!(clients[7].read_reply().is_error("UNBLOCKED client unblocked"));
    for key in ["l", "r", "m", "s"] {
        assert_eq!(other.command(&["RPUSH", key, "1", "2"]), Value::Int(2));
    }
    other.command(&["ZADD", "z", "1", "one", "2", "two"]);
    for key in ["x", "g"] {
        other.command(&["XADD", key, "1-1", "f", "v"]);
    }
    let popped = |key: &str, value: &str| Value::Array(vec![Value::bulk(key), Value::bulk(value)]);
    assert_eq!(clients[0].read_reply(), popped("l", "1"));
    assert_eq!(clients[1].read_reply(), popped("r", "2"));
    assert_eq!(clients[2].read_reply(), Value::bulk("1"));
    let least = ["z", "one", "1"].map(Value::bulk);
    assert_eq!(clients[3].read_reply(), Value::Array(least.to_vec()));
    let entry = Value::Array(vec![Value::bulk("1-1"), popped("f", "v")]);
    for (client, key) in clients[4..6].iter_mut().zip(["x", "g"]) {
        let stream = Value::Array(vec![Value::bulk(key), Value::Array(vec![entry.clone()])]);
        assert_eq!(client.read_reply(), Value::Array(vec![stream]), "{key}");
    }
    assert_eq!(subscriber.read_reply(), popped("s", "1"));
    assert_eq!(subscriber.read_reply().text(), "PONG");
    // Once each.
    for key in ["l", "r", "m", "s", "to"] {
        assert_eq!(other.command(&["LLEN", key]), Value::Int(1), "{key}");
    }
    assert_eq!(other.command(&["ZCARD", "z"]), Value::Int(1));
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_client_may_block_through_moves_for_longer_than_anything_waits_for_a_master() {
    let mut stage = Stage::with("hold_max_ms = 2000\n");
    let (mut blocked, mut other) = (stage.client(), stage.client());
    blocked.send(b"BLPOP l 0\r\n");
    for timeout in ["0.2", "2.2"] {
        let master = stage.master;
        eventually(SOON, || stage.blocked(master) == "1");
        assert_eq!(other.command(&["BLPOP", "none", timeout]), Value::Null);
        stage.switch_over();
    }
    assert_eq!(other.command(&["RPUSH", "l", "1"]), Value::Int(1));
    let popped = Value::Array(vec![Value::bulk("l"), Value::bulk("1")]);
    assert_eq!(blocked.read_reply(), popped);
}

#[test]
fn what_is_added_to_a_stream_during_a_move_reaches_who_waits_for_news() {
    let mut stage = Stage::start();
    let (mut adding, mut waiting, mut empty) = (stage.client(), stage.client(), stage.client());
    adding.command(&["XADD", "x", "1-1", "f", "old"]);
    waiting.send(b"XREAD BLOCK 0 STREAMS y x 0 $\r\n");
    empty.send(b"XREAD BLOCK 0 STREAMS z $\r\n");
    let master = stage.master;
    eventually(SOON, || stage.blocked(master) == "2");
    stage.begin();
    stage.drained();
    stage.fence();
    stage.attach();
    stage.attached();
    stage.promote();
    // Before anybody who waits can be there.
    for key in ["x", "z"] {
        stage.redis[stage.master].command(&["XADD", key, "2-1", "f", "new"]);
    }
    stage.publish();
    let entry = Value::Array(vec![
        Value::bulk("2-1"),
        Value::Array(vec![Value::bulk("f"), Value::bulk("new")]),
    ]);
    for (client, key) in [(&mut waiting, "x"), (&mut empty, "z")] {
        let stream = Value::Array(vec![Value::bulk(key), Value::Array(vec![entry.clone()])]);
        assert_eq!(client.read_reply(), Value::Array(vec![stream]), "{key}");
    }
}

#[test]
fn a_wait_is_asked_of_the_next_master_and_has_the_right_number() {
    let mut stage = Stage::start();
    let (mut waiting, mut late) = (stage.client(), stage.client());
    assert_eq!(waiting.command(&["SET", "a", "1"]), Value::ok());
    assert_eq!(late.command(&["SET", "b", "1"]), Value::ok());
    // More than there are: it waits through the whole move.
    waiting.send(b"WAIT 2 3000\r\n");
    stage.switch_over();
    assert_eq!(late.command(&["WAIT", "1", "10000"]), Value::Int(1));
    assert_eq!(waiting.read_reply(), Value::Int(1));
    assert_eq!(late.command(&["SET", "b", "2"]), Value::ok());
    assert_eq!(late.command(&["WAIT", "1", "10000"]), Value::Int(1));
}
