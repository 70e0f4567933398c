//! Which shard a request belongs to. Pure.
//!
//! With one shard everything belongs to it, and nothing is looked at. With several, keys decide, by Redis Cluster's
//! slots; what names no key belongs to the first shard, whatever the class. Channels are no keys here: publishers and
//! subscribers meet on the first shard.

use super::cursor::Scope;
use crate::command::{Class, Command, Concern, KeyPositions};
use crate::resp::Args;
use crate::topology::{ShardIndex, SlotMap, slot_of_key};

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To this shard.
    Shard(ShardIndex),
    /// To several shards, which would have to be split and joined.
    Several,
    /// Nowhere: its keys belong to several shards, and it cannot be split.
    CrossSlot,
}

/// Finds the shard of a request; `keys` is room that is used again.
#[inline]
pub fn place(slots: &SlotMap, shards: usize, command: &Command, args: &Args, keys: &mut KeyPositions) -> Place {
    if shards <= 1 {
        return Place::Shard(ShardIndex(0));
    }
    by_keys(slots, shards, command, args, keys)
}

fn by_keys(slots: &SlotMap, shards: usize, command: &Command, args: &Args, keys: &mut KeyPositions) -> Place {
    if command.class == Class::Everywhere {
        // A scan is at one shard at a time.
        return match command.concern {
            Concern::Cursor(at) => {
                let cursor = args.get(at).unwrap_or_default();
                Place::Shard(Scope::of_scan(cursor, shards).shard())
            }
            _ => Place::Several,
        };
    }
    // A server refuses a request whose keys cannot be found, in its own words: any server will do.
    if command.keys(args, keys).is_err() {
        return Place::Shard(ShardIndex(0));
    }
    let mut owners = keys
        .keys()
        .filter_map(|at| args.get(at))
        .map(|key| slots.owner(slot_of_key(key)));
    let Some(first) = owners.next() else {
        return Place::Shard(ShardIndex(0));
    };
    if owners.all(|owner| owner == first) {
        return Place::Shard(first);
    }
    if command.class == Class::ManyKey {
        Place::Several
    } else {
        Place::CrossSlot
    }
}

#[cfg(test)]
mod tests {
    use crate::command::{Lookup, Table};
    use crate::resp::{RequestLimits, RequestScanner, put_inline_as_request};

    use super::*;

    fn placed(line: &str, shards: usize) -> Place {
        let (low, high) = (ShardIndex(0), ShardIndex(1));
        let slots = if shards == 1 {
            SlotMap::single()
        } else {
            SlotMap::from_ranges(&[(0..=8191, low), (8192..=16_383, high)]).unwrap()
        };
        let (mut request, mut spans) = (Vec::new(), Vec::new());
        put_inline_as_request(format!("{line}\r\n").as_bytes(), &mut request).unwrap();
        RequestScanner::default()
            .scan(&request, &mut spans, &RequestLimits::default())
            .unwrap();
        let args = Args::new(&request, &spans);
        let table = Table::builtin();
        let Lookup::Known(command) = table.lookup(&args) else {
            panic!("{line} is not known")
        };
        place(&slots, shards, command, &args, &mut KeyPositions::new())
    }

    #[test]
    fn one_shard_takes_everything() {
        for line in ["MGET foo bar", "RENAME foo bar", "FLUSHALL", "PING"] {
            assert_eq!(placed(line, 1), Place::Shard(ShardIndex(0)), "{line}");
        }
    }

    #[test]
    fn keys_decide_among_several() {
        // CLUSTER KEYSLOT foo = 12182, bar = 5061.
        for (line, place) in [
            ("GET foo", Place::Shard(ShardIndex(1))),
            ("GET bar", Place::Shard(ShardIndex(0))),
            ("RENAME {foo}a {foo}b", Place::Shard(ShardIndex(1))),
            ("RENAME foo bar", Place::CrossSlot),
            ("MGET foo bar", Place::Several),
            ("DEL foo {foo}x", Place::Shard(ShardIndex(1))),
            ("EVAL x 2 foo bar", Place::CrossSlot),
            ("EVAL x 0", Place::Shard(ShardIndex(0))),
            ("DBSIZE", Place::Several),
            ("SCAN 0", Place::Shard(ShardIndex(0))),
            ("SCAN 4503599627370496", Place::Shard(ShardIndex(1))),
            ("PUBLISH foo x", Place::Shard(ShardIndex(0))),
            ("PING", Place::Shard(ShardIndex(0))),
        ] {
            assert_eq!(placed(line, 2), place, "{line}");
        }
    }
}
