//! Splitting a request over its keys' shards. Pure.
//!
//! ```text
//! MGET a b c d --split--> MGET a c (shard 0), MGET b d (shard 1) --replies--> join --> one reply, in the order of the keys
//! ```
//! By shard, never by key: a request becomes as many as there are shards among its keys.

use crate::command::Command;
use crate::resp::{Args, put_i64};
use crate::topology::{ShardIndex, SlotMap, slot_of_key};

/// What the replies of the parts come to together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// An array, an element for each key (MGET).
    Elements,
    /// All elements of all arrays (KEYS).
    Concatenation,
    /// A number (DEL, UNLINK, EXISTS, TOUCH, DBSIZE).
    Sum,
    /// What all of them say (MSET, FLUSHALL).
    Agreement,
    /// One of them, by how many keys each has: a number, and a key (DBSIZE and RANDOMKEY).
    Draw,
}

/// A request for one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where its keys are.
    pub shard: ShardIndex,
    /// The whole request, or several.
    pub request: Vec<u8>,
    /// How many.
    pub replies: u32,
    /// How many keys it names; 0 if it is not split by them.
    pub keys: u32,
}

/// A request in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// What their replies come to.
    pub joining: Joining,
    /// Whether they change something.
    pub writes: bool,
    /// By the first of their keys.
    pub parts: Vec<Part>,
    /// For each key of the request its part; empty where that does not matter.
    pub order: Vec<u16>,
}

/// Splits a request that names a list of keys and nothing else. `None`: it cannot be split, or is refused by any server
/// (MSET with a key that has no value).
pub fn split(slots: &SlotMap, command: &Command, args: &Args) -> Option<Split> {
    let (joining, step) = match &*command.name {
        "mget" => (Joining::Elements, 1),
        "mset" => (Joining::Agreement, 2),
        "del" | "unlink" | "exists" | "touch" => (Joining::Sum, 1),
        _ => return None,
    };
    let words = args.len().checked_sub(1)?;
    if words == 0 || words % step != 0 {
        return None;
    }
    let owners: Vec<ShardIndex> = (1..args.len())
        .step_by(step)
        .filter_map(|at| args.get(at))
        .map(|key| slots.owner(slot_of_key(key)))
        .collect();
    let mut parts: Vec<Part> = Vec::new();
    let order = owners.iter().map(|owner| {
        let known = parts.iter().position(|part| part.shard == *owner);
        let at = known.unwrap_or_else(|| {
            parts.push(Part {
                shard: *owner,
                request: Vec::new(),
                replies: 1,
                keys: 0,
            });
            parts.len() - 1
        });
        parts[at].keys += 1;
        u16::try_from(at).ok()
    });
    let order = order.collect::<Option<Vec<u16>>>()?;
    for part in &mut parts {
        let keys = usize::try_from(part.keys).ok()?;
        put_header(&mut part.request, b'*', keys * step + 1);
        put_word(&mut part.request, args.name());
    }
    for (number, at) in order.iter().enumerate() {
        let first = 1 + number * step;
        for word in (first..first + step).filter_map(|at| args.get(at)) {
            put_word(&mut parts[usize::from(*at)].request, word);
        }
    }
    Some(Split {
        joining,
        writes: command.is_write(),
        parts,
        order: if joining == Joining::Elements {
            order
        } else {
            Vec::new()
        },
    })
}

/// The same request for each of `shards` shards. `None`: what is answered cannot be joined so.
pub fn everywhere(shards: usize, command: &Command, request: &[u8]) -> Option<Split> {
    let joining = match &*command.name {
        "dbsize" => Joining::Sum,
        "randomkey" => Joining::Draw,
        "keys" => Joining::Concatenation,
        "flushall" | "flushdb" | "swapdb" => Joining::Agreement,
        "function|load" | "function|delete" | "function|flush" | "function|restore" => Joining::Agreement,
        _ => return None,
    };
    let (request, replies) = match joining {
        Joining::Draw => ([b"*1\r\n$6\r\nDBSIZE\r\n", request].concat(), 2),
        _ => (request.to_vec(), 1),
    };
    let part = |at| Part {
        shard: ShardIndex(at),
        request: request.clone(),
        replies,
        keys: 0,
    };
    Some(Split {
        joining,
        writes: command.is_write(),
        parts: (0..u16::try_from(shards).ok()?).map(part).collect(),
        order: Vec::new(),
    })
}

fn put_word(out: &mut Vec<u8>, word: &[u8]) {
    put_header(out, b'$', word.len());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

fn put_header(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    put_i64(out, i64::try_from(count).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use crate::command::{Lookup, Table};
    use crate::resp::put_inline_as_request;

    use super::*;

    /// By its shard, as a line.
    type Shown = (u16, String);

    /// Parts and the order.
    fn parts(line: &str) -> Option<(Vec<Shown>, Vec<u16>)> {
        let ranges = [
            (0..=5000, ShardIndex(0)),
            (5001..=10_000, ShardIndex(1)),
            (10_001..=16_383, ShardIndex(2)),
        ];
        let slots = SlotMap::from_ranges(&ranges).unwrap();
        let (mut request, mut spans) = (Vec::new(), Vec::new());
        put_inline_as_request(format!("{line}\r\n").as_bytes(), &mut request).unwrap();
        let args = Args::read(&request, &mut spans).unwrap();
        let table = Table::builtin();
        let Lookup::Known(command) = table.lookup(&args) else {
            panic!("{line} is not known")
        };
        let split = split(&slots, command, &args)?;
        let line = |part: &Part| {
            let mut spans = Vec::new();
            let args = Args::read(&part.request, &mut spans).unwrap();
            let words: Vec<_> = args.iter().map(|word| String::from_utf8_lossy(word)).collect();
            (part.shard.0, words.join(" "))
        };
        Some((split.parts.iter().map(line).collect(), split.order))
    }

    #[test]
    fn each_shard_gets_one_request_with_its_keys_in_their_order() {
        // CLUSTER KEYSLOT foo = 12182, bar = 5061, hello = 866.
        let of = |parts: &[(u16, &str)]| parts.iter().map(|(shard, line)| (*shard, (*line).to_owned())).collect();
        assert_eq!(
            parts("mget foo bar {foo}2 hello bar"),
            Some((
                of(&[(2, "mget foo {foo}2"), (1, "mget bar bar"), (0, "mget hello")]),
                vec![0, 1, 0, 2, 1]
            ))
        );
        assert_eq!(
            parts("MSET foo 1 hello 2 {foo}b 3"),
            Some((of(&[(2, "MSET foo 1 {foo}b 3"), (0, "MSET hello 2")]), vec![]))
        );
        assert_eq!(
            parts("UNLINK bar foo"),
            Some((of(&[(1, "UNLINK bar"), (2, "UNLINK foo")]), vec![]))
        );
    }

    #[test]
    fn what_any_server_refuses_and_what_is_no_list_of_keys_is_not_split() {
        for line in [
            "MSET foo 1 bar",
            "DEL",
            "SUNION foo bar",
            "MSETNX foo 1 bar 2",
            "BITOP AND foo bar",
        ] {
            assert_eq!(parts(line), None, "{line}");
        }
    }
}
