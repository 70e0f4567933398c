//! What was acknowledged, or shown, is there after any kill of a master, where a replica has to acknowledge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::clients::Appender;
use super::members::{members, replicas};
use super::{DROPPED, NO_MASTER, SOON, kill_master, next_master};
use crate::support::{Client, Redis, Up, Value, eventually, holds_within};

/// How long something must not happen.
const LONG: Duration = Duration::from_secs(3);
const NOBODY: &str = "INDOUBT written on the master, acknowledged by 0 of 1 replicas";

/// What each counter is raised by.
const RAISES: [(&str, &[&[&str]]); 4] = [
    ("plain", &[&["INCR", "plain"]]),
    (
        "script",
        &[&["EVAL", "return redis.call('incr', KEYS[1])", "1", "script"]],
    ),
    ("block", &[&["MULTI"], &["INCR", "block"], &["EXEC"]]),
    (
        "pop",
        &[&["RPUSH", "list", "x"], &["BLPOP", "list", "1"], &["INCR", "pop"]],
    ),
];

#[test]
fn nothing_that_was_acknowledged_or_shown_is_gone_after_kills() {
    let up = Up::start(&["--replicas", "2"]);
    up.all_count("s1");
    assert_eq!(up.shard("s1")["ack_replicas"], 1);
    let appenders = ["one", "two"].map(|key| Appender::start(&up.listen, key));
    let ends = Arc::new(AtomicBool::new(false));
    let raisers = RAISES.map(|(_, requests)| {
        let (ends, mut client) = (ends.clone(), up.client());
        thread::spawn(move || {
            let mut acknowledged = 0;
            while !ends.load(Ordering::Relaxed) {
                let replies = requests.iter().map(|request| client.command(request)).last();
                acknowledged = acknowledged.max(number(&replies.unwrap()));
            }
            acknowledged
        })
    });
    let readers = RAISES.map(|(key, _)| {
        let (ends, mut client) = (ends.clone(), up.client());
        thread::spawn(move || {
            let mut shown = 0;
            while !ends.load(Ordering::Relaxed) {
                let reply = client.command(&["GET", key]);
                let Ok(now) = reply.text().parse::<i64>() else {
                    assert!(reply == Value::Null || reply.is_error("INDOUBT "), "{key}: {reply:?}");
                    continue;
                };
                assert!(now >= shown, "{key}: {shown} was shown, and then {now}");
                shown = now;
            }
            shown
        })
    });
    for _ in 0..3 {
        for appender in &appenders {
            appender.runner.advance();
        }
        let killed = kill_master(&up, "s1");
        next_master(&up, "s1", &killed);
        let started = up.operate("up-node", &[&killed]);
        assert_eq!((started.code, started.stderr.as_str()), (Some(0), ""));
        up.all_count("s1");
    }
    ends.store(true, Ordering::Relaxed);
    let mut client = up.client();
    for (at, (raiser, reader)) in raisers.into_iter().zip(readers).enumerate() {
        let key = RAISES[at].0;
        let (acknowledged, shown) = (raiser.join().unwrap(), reader.join().unwrap());
        let there: i64 = client.command(&["GET", key]).text().parse().unwrap();
        assert!(
            there >= acknowledged.max(shown),
            "{key}: {there}, after {acknowledged} and {shown}"
        );
        assert!(acknowledged > 0 && shown > 0, "{key}");
    }
    let mut master = Client::connect(up.redis(&up.master("s1")).as_str());
    for appender in appenders {
        appender.runner.end().check(&mut master, &[u64::MAX]);
    }
    up.assert_calm(&[NO_MASTER, DROPPED]);
}

/// The number in a reply, or in the last element of one.
fn number(reply: &Value) -> i64 {
    match reply {
        Value::Int(number) => *number,
        Value::Null => 0,
        Value::Array(elements) => elements.last().map_or(0, number),
        Value::Error(line) => {
            assert!(
                line.starts_with("INDOUBT ") || line.starts_with("MASTERDOWN "),
                "{line}"
            );
            0
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn foreign_replicas_acknowledge_nothing_while_the_members_are_frozen() {
    let up = Up::start(&["--replicas", "2"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    let members = replicas(&up);
    members
        .iter()
        .for_each(|member| up.signal(member, "redis", Signal::SIGSTOP));
    // They log in as anybody may, and come again as often as the master's agent closes them.
    let master = up.redis(&up.master("s1"));
    let (_, port) = master.rsplit_once(':').unwrap();
    let foreign: Vec<Redis> = (0..2)
        .map(|_| Redis::start(&["--replicaof", "127.0.0.1", port]))
        .collect();
    let has = |stranger: &Redis, value: &str| stranger.command(&["GET", "k"]) == Value::bulk(value);
    let mut told = 0;
    let mut number = 1;
    let ended = holds_within(LONG, || {
        number += 1;
        let reply = client.command(&["SET", "k", &number.to_string()]);
        assert!(
            reply == Value::Error(NOBODY.to_owned()) || reply.is_error("INDOUBT "),
            "{reply:?}"
        );
        told += 1;
        false
    });
    assert!(!ended && told > 0);
    let last = Client::connect(master.as_str()).command(&["GET", "k"]).text();
    eventually(SOON, || foreign.iter().any(|stranger| has(stranger, &last)));
    members
        .iter()
        .for_each(|member| up.signal(member, "redis", Signal::SIGCONT));
    eventually(SOON, || client.command(&["SET", "k", "new"]) == Value::ok());
}

#[test]
fn w_that_is_raised_holds_for_every_write_of_its_epoch() {
    let up = Up::start(&["--replicas", "2", "--proxies", "2"]);
    up.all_count("s1");
    let epoch = up.state("s1")["epoch"].as_u64().unwrap();
    let listens = up.listens();
    let appenders: Vec<Appender> = ["one", "two"]
        .iter()
        .zip(&listens)
        .map(|(key, listen)| Appender::start(listen, key))
        .collect();
    appenders.iter().for_each(|appender| appender.runner.advance());
    let frozen = replicas(&up).pop().unwrap();
    up.signal(&frozen, "redis", Signal::SIGSTOP);
    thread::scope(|scope| {
        let raising = scope.spawn(|| members(&up, &["--ack-replicas", "2"]));
        let raised = |state: &serde_json::Value| state["w"] == 2 && state["phase"] == "serving";
        eventually(SOON, || raised(&up.state("s1")));
        assert_eq!(up.state("s1")["epoch"], epoch + 1);
        // From here on nothing that is sent is acknowledged by one.
        let mut late: Vec<Client> = listens.iter().map(|listen| Client::connect(listen.as_str())).collect();
        let ended = holds_within(LONG, || {
            for client in &mut late {
                let reply = client.command(&["SET", "late", "x"]);
                let short = "INDOUBT written on the master, acknowledged by 1 of 2 replicas";
                assert!(reply.is_error(short) || reply.is_error("INDOUBT "), "{reply:?}");
            }
            false
        });
        assert!(!ended);
        up.signal(&frozen, "redis", Signal::SIGCONT);
        raising.join().unwrap();
    });
    up.all_count("s1");
    appenders.iter().for_each(|appender| appender.runner.advance());
    let nodes: Vec<String> = replicas(&up).iter().map(|node| up.redis(node)).collect();
    let settled: Vec<u64> = appenders.iter().map(|appender| appender.settle(&nodes)).collect();
    let mut master = Client::connect(up.redis(&up.master("s1")).as_str());
    for (appender, settled) in appenders.into_iter().zip(settled) {
        appender.runner.end().check(&mut master, &[settled]);
    }
}

#[test]
fn a_wait_of_a_client_over_a_failover_says_no_more_than_is_true() {
    let up = Up::start(&["--replicas", "2"]);
    for round in 0..3 {
        up.all_count("s1");
        let mut client = up.client();
        let value = round.to_string();
        assert_eq!(client.command(&["SET", "k", &value]), Value::ok());
        let killed = kill_master(&up, "s1");
        // The others have it, and one of them is master in a moment.
        let Value::Int(counted) = client.command(&["WAIT", "2", "3000"]) else {
            panic!("no number");
        };
        let master = next_master(&up, "s1", &killed);
        let others = replicas(&up);
        let having = others.iter().filter(|node| **node != killed).filter(|node| {
            let mut redis = Client::connect(up.redis(node).as_str());
            redis.command(&["GET", "k"]) == Value::bulk(&value)
        });
        let having = having.count();
        assert!(counted <= i64::try_from(having).unwrap(), "{counted} of {having}");
        // What was acknowledged is there, and counts again once somebody follows.
        let mut redis = Client::connect(up.redis(&master).as_str());
        assert_eq!(redis.command(&["GET", "k"]), Value::bulk(&value));
        eventually(SOON, || client.command(&["WAIT", "1", "100"]) == Value::Int(1));
        let started = up.operate("up-node", &[&killed]);
        assert_eq!((started.code, started.stderr.as_str()), (Some(0), ""));
    }
    up.assert_calm(&[NO_MASTER, DROPPED]);
}
