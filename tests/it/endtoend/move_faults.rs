//! What dies while a master is moved on purpose: whoever it is, and at whatever moment.
//!
//! The steps of a switchover take a millisecond or two each, so a fault strikes at drawn moments after it has begun, again
//! and again; the twin world (`agent::machine`) goes through every step one by one.

use std::time::Duration;

use nix::sys::signal::Signal;
use pointsman::clock;

use super::clients::{Appender, reader};
use super::{DROPPED, NO_MASTER, SOON};
use crate::support::{Client, Pointsman, Up, Value, eventually};

/// When a fault strikes, in milliseconds after the request for a switchover is there.
const MOMENTS_MS: [u64; 5] = [0, 3, 6, 10, 16];

/// What an agent says when it takes a switchover back.
const GIVEN_UP: &str = "switchover";
/// What it says of the master that it did not move.
const STAYS: &str = "stays the master";
/// What it says of a wish that it does not grant.
const NOT_MOVED: &str = "not moving the master";
/// What it says when a proxy does not answer.
const NOT_DRAINED: &str = "not waiting any longer";

/// Who is what when a switchover begins.
struct Cast {
    master: String,
    target: String,
}

/// What is to be there after a series of faults.
struct Wanted {
    /// Every acknowledged write is to be there: a replica has it, too.
    all_kept: bool,
    /// Warnings that are as they should be.
    declared: &'static [&'static str],
}

/// Moves the master and has `strike` do its worst at each moment; `mend` puts things right. Clients of the second proxy
/// must not notice more than INDOUBT.
#[track_caller]
fn strike_at_each_moment(args: &[&str], strike: impl Fn(&Up, &Cast), mend: impl Fn(&Up, &Cast), wanted: &Wanted) {
    let up = Up::start(&[&["--replicas", "2", "--proxies", "2"], args].concat());
    up.all_count("s1");
    let listen = up.listens().pop().unwrap();
    let mut client = Client::connect(listen.as_str());
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&listen, "one"), reader(&listen, "fixed", "here"));
    for moment in MOMENTS_MS {
        appender.runner.advance();
        let master = up.master("s1");
        let target = ["s1-a", "s1-b", "s1-c"].into_iter().find(|node| *node != master);
        let cast = Cast {
            target: target.unwrap().to_owned(),
            master,
        };
        let dir = up.dir().to_str().unwrap();
        let mut moving = Pointsman::start(&["switchover", "s1", "--to", &cast.target, "--dir", dir]);
        begun(&up);
        let at = clock::now() + Duration::from_millis(moment);
        while clock::now() < at {
            std::hint::spin_loop();
        }
        strike(&up, &cast);
        let code = moving.exit_code(SOON);
        assert!(matches!(code, Some(0 | 1)), "{code:?}: {}", moving.log());
        mend(&up, &cast);
        eventually(SOON, || !up.master("s1").is_empty());
        appender.runner.advance();
        reads.advance();
        up.all_count("s1");
    }
    assert_eq!(reads.end().refused, 0);
    let appended = appender.runner.end();
    let settled = if wanted.all_kept { appended.acknowledged() } else { 0 };
    appended.check(&mut client, &[settled]);
    assert_eq!(appended.errors().1, 0, "nobody had to wait for longer than hold_max_ms");
    up.assert_calm(wanted.declared);
}

/// Waits until the request is there, or has been dealt with: who asks needs a moment to start.
#[track_caller]
fn begun(up: &Up) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let seen = runtime.unwrap().block_on(async {
        let store = pointsman::store::Store::connect(&up.store_settings()).await.unwrap();
        let end = clock::now() + SOON;
        let mut seen = false;
        while !seen && clock::now() < end {
            seen = store.get("/shards/s1/switch").await.ok().flatten().is_some();
            tokio::task::yield_now().await;
        }
        store.close().await;
        seen
    });
    assert!(seen, "nobody asks for a switchover");
}

fn back(up: &Up, node: &str) {
    let started = up.operate("up-node", &[node]);
    assert_eq!((started.code, started.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_target_that_is_killed_costs_nothing_but_the_move() {
    strike_at_each_moment(
        &[],
        |up, cast| up.signal(&cast.target, "redis", Signal::SIGKILL),
        |up, cast| back(up, &cast.target),
        &Wanted {
            all_kept: true,
            declared: &[
                NO_MASTER,
                GIVEN_UP,
                STAYS,
                NOT_MOVED,
                "no master for epoch",
                "attach to the master",
            ],
        },
    );
}

#[test]
fn an_old_master_that_is_killed_is_replaced_like_any_other() {
    strike_at_each_moment(
        &[],
        |up, cast| up.signal(&cast.master, "redis", Signal::SIGKILL),
        |up, cast| back(up, &cast.master),
        &Wanted {
            all_kept: true,
            declared: &[
                NO_MASTER,
                GIVEN_UP,
                STAYS,
                NOT_MOVED,
                NOT_DRAINED,
                "no master for epoch",
            ],
        },
    );
}

#[test]
fn an_executor_that_is_killed_leaves_a_shard_that_serves_again() {
    strike_at_each_moment(
        &["--session-timeout-ms", "2000"],
        |up, cast| up.signal(&cast.master, "agent", Signal::SIGKILL),
        |up, cast| back(up, &cast.master),
        &Wanted {
            all_kept: true,
            declared: &[
                NO_MASTER,
                DROPPED,
                GIVEN_UP,
                STAYS,
                NOT_MOVED,
                NOT_DRAINED,
                "no master for epoch",
                "lives without its agent",
            ],
        },
    );
}

#[test]
fn an_agent_of_the_target_that_is_killed_leaves_a_shard_that_serves_again() {
    strike_at_each_moment(
        &["--session-timeout-ms", "2000"],
        |up, cast| up.signal(&cast.target, "agent", Signal::SIGKILL),
        |up, cast| back(up, &cast.target),
        &Wanted {
            all_kept: true,
            declared: &[
                NO_MASTER,
                GIVEN_UP,
                STAYS,
                NOT_MOVED,
                NOT_DRAINED,
                "no master for epoch",
            ],
        },
    );
}

#[test]
fn a_proxy_that_is_killed_is_waited_for_in_vain_and_not_for_long() {
    strike_at_each_moment(
        &["--restart"],
        |up, _| up.signal_proxy(0, Signal::SIGKILL),
        |up, _| eventually(SOON, || !up.json()["proxies"][0]["pid"].is_null()),
        &Wanted {
            all_kept: true,
            declared: &[NO_MASTER, GIVEN_UP, STAYS, NOT_MOVED, NOT_DRAINED],
        },
    );
}

#[test]
fn a_zookeeper_leader_that_is_killed_leaves_a_shard_that_serves() {
    strike_at_each_moment(
        &["--zookeepers", "3", "--restart"],
        |up, _| up.signal_zookeeper_leader(Signal::SIGKILL),
        |up, _| {
            let all_run = || {
                let json = up.json();
                let mut pids = json["zookeeper"]["pids"].as_array().unwrap().iter();
                pids.all(|pid| !pid.is_null())
            };
            eventually(SOON, all_run);
        },
        &Wanted {
            all_kept: true,
            declared: &[
                NO_MASTER,
                GIVEN_UP,
                STAYS,
                NOT_MOVED,
                NOT_DRAINED,
                "ZooKeeper",
                "no master for epoch",
                "store",
            ],
        },
    );
}

#[test]
fn a_target_that_hangs_is_given_up() {
    strike_at_each_moment(
        &[],
        |up, cast| up.signal(&cast.target, "redis", Signal::SIGSTOP),
        |up, cast| up.signal(&cast.target, "redis", Signal::SIGCONT),
        &Wanted {
            all_kept: true,
            declared: &[
                NO_MASTER,
                GIVEN_UP,
                STAYS,
                NOT_MOVED,
                "no master for epoch",
                "attach to the master",
            ],
        },
    );
}
