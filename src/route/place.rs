//! Which shard a request belongs to. Pure.
//!
//! With one shard everything belongs to it, and nothing is looked at. With several, keys decide, by Redis Cluster's
//! slots; what names no key belongs to the first shard, whatever the class. Channels are no keys here: publishers and
//! subscribers meet on the first shard.

use super::cursor::Scope;
use crate::command::{Class, Command, Concern, Flags, KeyPositions, Table};
use crate::resp::Args;
use crate::topology::{ShardIndex, SlotMap, slot_of_key};

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To this shard.
    Shard(ShardIndex),
    /// To several shards, which would have to be split and joined, or nobody can tell to which.
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
    // Which keys are a module's only the module can tell: the rest of them may belong elsewhere.
    if !keys.is_complete() && command.flags.has(Flags::MOVABLEKEYS) && !Table::knows(command) {
        return Place::Several;
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
    use redis_protocol::resp2::decode::decode_bytes;

    use crate::command::Lookup;
    use crate::resp::{RequestLimits, RequestScanner, put_inline_as_request};

    use super::*;

    fn placed(line: &str, shards: usize) -> Place {
        placed_by(Table::builtin(), line, shards)
    }

    fn placed_by(table: &Table, line: &str, shards: usize) -> Place {
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

    #[test]
    fn keys_that_only_a_module_can_tell_are_not_guessed_among_several() {
        let command = |name: &str, flag: &str| {
            format!("*6\r\n$7\r\n{name}\r\n:-2\r\n*2\r\n+write\r\n+{flag}\r\n:1\r\n:1\r\n:1\r\n")
        };
        let said = format!(
            "*2\r\n{}{}",
            command("mod.one", "fast"),
            command("mod.any", "movablekeys")
        );
        let (reply, _) = decode_bytes(&said.into()).unwrap().unwrap();
        let table = Table::builtin().merged_with(&reply).unwrap();
        assert_eq!(placed_by(&table, "MOD.ONE foo x", 2), Place::Shard(ShardIndex(1)));
        assert_eq!(placed_by(&table, "MOD.ANY foo x", 2), Place::Several);
        assert_eq!(placed_by(&table, "MOD.ANY foo x", 1), Place::Shard(ShardIndex(0)));
    }
}
