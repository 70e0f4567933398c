//! What was acknowledged, or shown, is there after any kill of a master, where a replica has to acknowledge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::clients::Appender;
use super::{DROPPED, NO_MASTER, kill_master, next_master};
use crate::support::{Client, Up, Value};

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
