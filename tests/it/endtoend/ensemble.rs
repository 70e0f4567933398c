//! ZooKeeper away and back.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::clients::{Appender, reader};
use super::{DROPPED, NO_MASTER, SOON, kill_master, next_master, reads_arrive_at_replicas};
use crate::support::{Up, Value, eventually, holds_within};

#[test]
fn while_zookeeper_is_away_everything_serves_and_nobody_is_demoted() {
    let up = Up::start(&["--replicas", "2", "--session-timeout-ms", "1000", "--restart"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "fixed", "here"));
    appender.runner.advance();
    let (master, epoch) = (up.master("s1"), up.shard("s1")["epoch"].clone());

    // Frozen for longer than any session lives.
    up.signal_zookeeper(Signal::SIGSTOP);
    let wait_out = || {
        let goal = pointsman::clock::now() + Duration::from_secs(3);
        while pointsman::clock::now() < goal {
            appender.runner.advance();
            reads.advance();
        }
    };
    wait_out();
    up.signal_zookeeper(Signal::SIGCONT);
    up.all_count("s1");
    assert_eq!((up.master("s1"), &up.shard("s1")["epoch"]), (master.clone(), &epoch));

    // Killed, and back with the data it had.
    let old = up.json()["zookeeper"]["pid"].clone();
    up.signal_zookeeper(Signal::SIGKILL);
    eventually(SOON, || {
        appender.runner.advance();
        let new = up.json()["zookeeper"]["pid"].clone();
        !new.is_null() && new != old
    });
    wait_out();
    up.all_count("s1");
    assert_eq!((up.master("s1"), &up.shard("s1")["epoch"]), (master, &epoch));
    assert!(up.history("failover").is_empty());

    // What was told so far was told without a word of doubt; now a failover works as ever.
    let killed = kill_master(&up, "s1");
    next_master(&up, "s1", &killed);
    appender.runner.advance();
    reads.advance();
    reads.end();
    appender.runner.end().check(&mut client, &[]);
    up.assert_calm(&[NO_MASTER, DROPPED, "ZooKeeper"]);
}

#[test]
fn a_master_that_dies_while_zookeeper_is_away_is_replaced_when_it_is_back() {
    let up = Up::start(&["--replicas", "1"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let reads = reader(&up.listen, "fixed", "here");
    reads_arrive_at_replicas(&up, "s1");
    let killed = up.master("s1");
    up.signal_zookeeper(Signal::SIGSTOP);
    up.signal(&killed, "redis", Signal::SIGKILL);
    let before = reads.rounds();
    let mut told = Value::Null;
    let said = holds_within(SOON, || {
        told = client.command(&["SET", "k", "v"]);
        told.is_error("MASTERDOWN ")
    });
    assert!(said, "{told:?}");
    // As long as a replica counts as up to date without its master: `max_lag_ms`.
    let during = reads.rounds() - before;
    assert!(during > 20, "reads went on at the replica: {during} rounds");
    up.signal_zookeeper(Signal::SIGCONT);
    eventually(SOON, || client.command(&["SET", "k", "w"]) == Value::ok());
    reads.advance();
    reads.end();
    assert_ne!(up.master("s1"), killed);
    up.assert_calm(&[NO_MASTER, DROPPED, "ZooKeeper"]);
}
