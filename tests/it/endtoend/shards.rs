//! Two shards, and requests of both at once, while the master of one dies and that of the other moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use super::{DROPPED, NO_MASTER, SOON, kill_master, next_master};
use crate::support::{Up, Value, eventually};

/// CLUSTER KEYSLOT hello = 866, foo = 12182.
const KEYS: [&str; 2] = ["hello", "foo"];

#[test]
fn what_was_set_on_both_shards_is_there_whatever_becomes_of_their_masters() {
    let up = Up::start(&["--shards", "2", "--replicas", "2"]);
    for shard in ["s1", "s2"] {
        up.all_count(shard);
    }
    let (ends, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let writer = {
        let (ends, acknowledged, mut client) = (ends.clone(), acknowledged.clone(), up.client());
        thread::spawn(move || {
            for number in 1.. {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                let value = number.to_string();
                let reply = client.command(&["MSET", KEYS[0], &value, KEYS[1], &value]);
                if reply == Value::ok() {
                    acknowledged.store(number, Ordering::Release);
                } else {
                    assert!(reply.is_error("INDOUBT ") || reply.is_error("MASTERDOWN "), "{reply:?}");
                }
            }
        })
    };
    let reader = {
        let (ends, acknowledged, mut client) = (ends.clone(), acknowledged.clone(), up.client());
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let least = acknowledged.load(Ordering::Acquire);
                let reply = client.command(&["MGET", KEYS[0], KEYS[1]]);
                let Value::Array(values) = &reply else {
                    assert!(reply.is_error("INDOUBT ") || reply.is_error("MASTERDOWN "), "{reply:?}");
                    continue;
                };
                for value in values.iter().filter(|_| least > 0) {
                    let value: i64 = value.text().parse().unwrap();
                    assert!(value >= least, "{least} was acknowledged, and then {reply:?} seen");
                }
            }
        })
    };
    let gets_on = || {
        let goal = acknowledged.load(Ordering::Acquire) + 20;
        eventually(SOON, || acknowledged.load(Ordering::Acquire) > goal);
    };
    gets_on();
    let killed = kill_master(&up, "s2");
    next_master(&up, "s2", &killed);
    gets_on();
    let moved = up.operate("switchover", &["s1"]);
    assert_eq!((moved.code, moved.stderr.as_str()), (Some(0), ""));
    gets_on();
    let killed = kill_master(&up, "s1");
    next_master(&up, "s1", &killed);
    gets_on();
    ends.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    reader.join().unwrap();
    assert_eq!(up.client().command(&["DBSIZE"]), Value::Int(2));
    up.assert_calm(&[NO_MASTER, DROPPED]);
}
