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

#[test]
fn an_ensemble_of_three_outlives_each_of_its_servers() {
    let up = Up::start(&["--replicas", "1", "--zookeepers", "3", "--restart"]);
    up.all_count("s1");
    let servers = up.json()["zookeeper"]["servers"].as_array().unwrap().clone();
    let connect: Vec<&str> = servers.iter().map(|server| server["addr"].as_str().unwrap()).collect();
    assert_eq!(up.json()["zookeeper"]["connect"], connect.join(","));
    assert_eq!(up.json()["zookeeper"]["pid"], servers[0]["pid"]);
    let mut client = up.client();
    let appender = Appender::start(&up.listen, "one");
    for index in 0..3 {
        let old = up.json()["zookeeper"]["servers"][index]["pid"].clone();
        up.signal_zookeeper_server(index, Signal::SIGKILL);
        // With a server away a master moves as ever.
        eventually(SOON, || up.operate("switchover", &["s1"]).code == Some(0));
        appender.runner.advance();
        eventually(SOON, || {
            let new = up.json()["zookeeper"]["servers"][index]["pid"].clone();
            !new.is_null() && new != old
        });
        up.zookeeper_serves(index);
        up.all_count("s1");
    }
    assert!(up.history("failover").is_empty());
    let appended = appender.runner.end();
    let settled = appended.acknowledged();
    appended.check(&mut client, &[settled]);
    assert_eq!(appended.errors().1, 0);
    up.assert_calm(&[
        NO_MASTER,
        "ZooKeeper",
        "switchover",
        "stays the master",
        // At the founding: an agent that is slow to start is asked before it has read.
        "does not know yet what it obeyed",
        "not moving the master",
    ]);
}

#[test]
fn a_master_that_dies_with_the_leader_of_the_ensemble_is_replaced_once_there_is_another() {
    let up = Up::start(&["--replicas", "2", "--zookeepers", "3"]);
    up.all_count("s1");
    let mut client = up.client();
    for number in 0..100 {
        assert_eq!(client.command(&["SET", &format!("k{number}"), "v"]), Value::ok());
    }
    let master = up.master("s1");
    let mut direct = crate::support::Client::connect(up.redis(&master).as_str());
    // WAIT on a connection of its own returns at once for what others wrote; a write of its own makes it ask.
    direct.command(&["SET", "settled", "v"]);
    assert_eq!(direct.command(&["WAIT", "2", "5000"]), Value::Int(2));
    up.signal_zookeeper_leader(Signal::SIGKILL);
    up.signal(&master, "redis", Signal::SIGKILL);
    let start = pointsman::clock::now();
    eventually(SOON, || client.command(&["SET", "k", "w"]) == Value::ok());
    println!(
        "leader and master killed, to the next write: {:?}",
        pointsman::clock::now() - start
    );
    for number in 0..100 {
        assert_eq!(client.command(&["GET", &format!("k{number}")]).text(), "v", "k{number}");
    }
    assert_ne!(up.master("s1"), master);
    let failovers = up.history("failover");
    assert_eq!(failovers.len(), 1, "{failovers:?}");
    up.assert_calm(&[NO_MASTER, DROPPED, "ZooKeeper"]);
}
