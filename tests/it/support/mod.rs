//! Starting, watching and ending the real servers that tests talk to.
//!
//! Invariant: whatever a test starts ends with it: on drop, and by the parent-death signal when the
//! test binary is killed. Nothing waits for a fixed time: conditions are polled against a deadline.

#![allow(
    dead_code,
    unused_imports,
    reason = "each subject uses its own part of the support code"
)]

mod circuit;
mod client;
mod dice;
mod pair;
mod pointsman;
mod process;
mod redis;
mod relay;
mod slow;
mod stage;
mod up;
mod witness;
pub mod zookeeper;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use ::pointsman::clock;

pub use circuit::Circuit;
pub use client::{Client, Value, encode, hear_until};
pub use dice::Dice;
pub use pair::Pair;
pub use pointsman::Pointsman;
pub use process::{Output, Process, Spawner, run, run_by, run_within};
pub use redis::Redis;
pub use relay::Relay;
pub use slow::Slow;
pub use stage::{Stage, field};
pub use up::{Up, assert_gone, runs};
pub use witness::{Account, Witness};
pub use zookeeper::ZooKeeper;

/// How long a server may take to come up on a busy machine.
pub const START_DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics at the caller's line when it does not before `deadline` is over.
#[track_caller]
pub fn eventually(deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(
        holds_within(deadline, condition),
        "the condition did not come true within {deadline:?}"
    );
}

/// Waits until `condition` holds, at most for `deadline`; says whether it did.
pub fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = clock::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if clock::now() >= end {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// A loopback port that nobody listens on now, and that no other call in this process returns.
///
/// Taken from below the range from which the kernel draws ports for outgoing connections, so that
/// none of those takes it before the server binds it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7_919);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free loopback port between {FIRST} and {}", FIRST + COUNT);
}
