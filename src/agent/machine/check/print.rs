//! The fingerprint of a machine, by which states that differ only in moments and numbering are one.
//!
//! A machine reads clocks only to compare moments, and here they are either a few microseconds apart or a whole [`PASS`].
//! So a moment is printed as how many passes ago it was; the order of the few that are compared with each other (what was
//! read before what was done) is added.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::agent::machine::{Knowledge, Machine};

/// Longer than everything the machine waits for.
pub(super) const PASS: Duration = Duration::from_secs(20);
/// Longer ago than this many passes is all the same.
const PASSES_MAX: i64 = 2;

/// What a machine will do from here on, as a number.
pub(super) fn machine(machine: &Machine, now: Instant) -> u64 {
    let mut plain = machine.clone();
    (plain.ids, plain.random) = (0, 0);
    plain.shouted.clear();
    let known = match &plain.knowledge {
        Knowledge::Known(_, since) => Some(*since),
        Knowledge::Unread | Knowledge::Absent => None,
    };
    let theirs = plain.master_reading.as_ref().map(|(_, at)| *at);
    let mut hasher = DefaultHasher::new();
    // The comparisons of `handle_own`, `follow_published`, `verdict`, `caught_up` and `keep_lineage`.
    let orders = [
        plain.own_reading.map(|read| read >= plain.own_since),
        plain.own_reading.zip(known).map(|(read, since)| read > since),
        theirs.zip(known).map(|(at, since)| at >= since),
        plain.own_reading.zip(theirs).map(|(read, at)| read >= at),
    ];
    orders.hash(&mut hasher);
    value(&plain, now, &mut hasher);
    hasher.finish()
}

/// Feeds what a value shows of itself to the hasher, moments as passes before `now`.
pub(super) fn value(value: &impl fmt::Debug, now: Instant, hasher: &mut impl Hasher) {
    let mut text = String::with_capacity(4096);
    // Writing to a string does not fail.
    let _ = write!(text, "{value:?}");
    let now = nanoseconds(&format!("{now:?}")).unwrap_or(0);
    let mut rest = text.as_str();
    while let Some(at) = rest.find("Instant {") {
        let (before, moment) = rest.split_at(at);
        hasher.write(before.as_bytes());
        let end = moment.find('}').map_or(moment.len(), |end| end + 1);
        let then = nanoseconds(&moment[..end]).unwrap_or(0);
        let ago = (now - then).div_euclid(i128::try_from(PASS.as_nanos()).unwrap_or(1));
        hasher.write_i64(i64::try_from(ago).unwrap_or(PASSES_MAX).min(PASSES_MAX));
        rest = &moment[end..];
    }
    hasher.write(rest.as_bytes());
}

/// Reads `Instant { tv_sec: 1, tv_nsec: 2 }`.
fn nanoseconds(text: &str) -> Option<i128> {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty());
    let seconds: i128 = numbers.next()?.parse().ok()?;
    let nanoseconds: i128 = numbers.next()?.parse().ok()?;
    Some(seconds * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn moments_count_in_passes() {
        let now = clock::now() + 10 * PASS;
        let print = |then: Instant| {
            let mut hasher = DefaultHasher::new();
            value(&Some(then), now, &mut hasher);
            hasher.finish()
        };
        let ms = Duration::from_millis(1);
        assert_eq!(print(now), print(now - ms));
        assert_ne!(print(now), print(now + ms), "what is yet to come");
        assert_ne!(print(now), print(now - PASS));
        assert_eq!(print(now - 2 * PASS), print(now - 5 * PASS));
    }
}
