//! A master that hangs, alone or with its whole host, and goes on later.

use nix::sys::signal::Signal;

use super::clients::{Appender, Receiver, reader, transactor};
use super::{DROPPED, NO_MASTER, SOON, next_master, reads_arrive_at_replicas};
use crate::support::{Client, Up, Value, encode, eventually};

#[test]
fn a_master_that_hung_takes_no_writes_again_and_what_it_executed_late_is_seen_by_nobody() {
    let up = Up::start(&["--replicas", "2"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "fixed", "here"));
    let transactions = transactor(&up.listen, "tx");
    let blocked = Receiver::blocked(&up.listen, "queue");
    appender.runner.advance();
    reads.advance();
    transactions.advance();

    reads_arrive_at_replicas(&up, "s1");
    let hung = up.master("s1");
    // A client that goes around the proxy.
    let mut direct = Client::connect(up.redis(&hung).as_str());
    assert_eq!(direct.command(&["SET", "direct", "1"]), Value::ok());
    up.signal(&hung, "redis", Signal::SIGSTOP);
    direct.send(&encode(&["SET", "late", "1"]));
    let before = reads.rounds();
    let next = next_master(&up, "s1", &hung);
    let during = reads.rounds() - before;
    assert!(during > 20, "reads went on at the replicas: {during} rounds");
    appender.runner.advance();
    transactions.advance();

    up.signal(&hung, "redis", Signal::SIGCONT);
    let answer = direct.try_read_reply();
    let told = answer
        .as_ref()
        .is_ok_and(|reply| *reply == Value::ok() || reply.is_error("READONLY"));
    assert!(told || answer.is_err(), "{answer:?}");
    up.all_count("s1");
    let mut old = Client::connect(up.redis(&hung).as_str());
    assert!(old.command(&["SET", "late", "2"]).is_error("READONLY"));
    for node in ["s1-a", "s1-b", "s1-c"] {
        let mut redis = Client::connect(up.redis(node).as_str());
        eventually(SOON, || redis.command(&["EXISTS", "late"]) == Value::Int(0));
    }
    assert_eq!(client.command(&["GET", "late"]), Value::Null);
    assert_eq!(up.master("s1"), next);

    let mut push = |text: &str| drop(client.command(&["RPUSH", "queue", text]));
    blocked.receives(1, &mut push);
    blocked.end(&mut push);
    appender.runner.advance();
    assert_eq!(reads.end().refused, 0);
    transactions.end().check(&mut client, "tx");
    appender.runner.end().check(&mut client, &[]);
    let why = up.history("failover")[0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("does not answer"), "{why}");
    up.assert_calm(&[NO_MASTER, DROPPED]);
}

#[test]
fn a_master_whose_host_falls_silent_is_replaced_and_follows_when_it_is_heard_again() {
    let up = Up::start(&["--replicas", "2", "--session-timeout-ms", "2000"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "fixed", "here"));
    appender.runner.advance();
    let silent = up.master("s1");
    // Nothing answers and nothing is refused: what a cut network or a frozen host looks like from outside.
    for part in ["agent", "redis"] {
        up.signal(&silent, part, Signal::SIGSTOP);
    }
    let next = next_master(&up, "s1", &silent);
    appender.runner.advance();
    reads.advance();
    for part in ["agent", "redis"] {
        up.signal(&silent, part, Signal::SIGCONT);
    }
    up.all_count("s1");
    assert_eq!(up.master("s1"), next);
    let mut old = Client::connect(up.redis(&silent).as_str());
    assert!(old.command(&["SET", "late", "2"]).is_error("READONLY"));
    appender.runner.advance();
    assert_eq!(reads.end().refused, 0);
    appender.runner.end().check(&mut client, &[]);
    assert_eq!(up.history("failover").len(), 1);
    up.assert_calm(&[NO_MASTER, DROPPED, "ZooKeeper", "nor its agent answers"]);
}
