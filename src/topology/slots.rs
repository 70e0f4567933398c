//! Slots: CRC16 of a key or of its hash tag, modulo 16384, as Redis Cluster defines them
//! (Redis Cluster specification, "Key distribution model" and "Hash tags").

use std::ops::RangeInclusive;

use crc::{CRC_16_XMODEM, Crc, Table};
use memchr::memchr;
use thiserror::Error;

use super::snapshot::ShardIndex;

/// How many slots there are.
pub const SLOT_COUNT: u16 = 16_384;

const CRC16: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_XMODEM);

/// One of the 16384 slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

/// The slot of a key: CRC16 over the first non-empty `{tag}`, or over the whole key if there is none.
pub fn slot_of_key(key: &[u8]) -> Slot {
    Slot(CRC16.checksum(hash_tag(key)) % SLOT_COUNT)
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr(b'{', key) else { return key };
    let rest = &key[open + 1..];
    match memchr(b'}', rest) {
        None | Some(0) => key,
        Some(close) => &rest[..close],
    }
}

/// Which shard owns each slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    owners: Box<[u16]>,
}

/// Why ranges do not make a slot map.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SlotMapError {
    /// A range ends past the last slot or before it begins.
    #[error("slot range {0}-{1} is not within 0-16383")]
    OutOfRange(u16, u16),
    /// Two ranges claim one slot.
    #[error("slot {0} is claimed twice")]
    Twice(u16),
    /// Nobody claims a slot.
    #[error("slot {0} belongs to no shard")]
    Unowned(u16),
}

impl SlotMap {
    /// All slots on one shard.
    pub fn single() -> Self {
        Self {
            owners: vec![0; SLOT_COUNT.into()].into(),
        }
    }

    /// Slots as the ranges say; every slot must be claimed exactly once.
    pub fn from_ranges(ranges: &[(RangeInclusive<u16>, ShardIndex)]) -> Result<Self, SlotMapError> {
        const NOBODY: u16 = u16::MAX;
        let mut owners = vec![NOBODY; SLOT_COUNT.into()];
        for (range, shard) in ranges {
            if range.start() > range.end() || *range.end() >= SLOT_COUNT {
                return Err(SlotMapError::OutOfRange(*range.start(), *range.end()));
            }
            for slot in range.clone() {
                let owner = &mut owners[usize::from(slot)];
                if *owner != NOBODY {
                    return Err(SlotMapError::Twice(slot));
                }
                *owner = shard.0;
            }
        }
        match (0..).zip(&owners).find(|(_, owner)| **owner == NOBODY) {
            Some((slot, _)) => Err(SlotMapError::Unowned(slot)),
            None => Ok(Self { owners: owners.into() }),
        }
    }

    /// The shard that owns a slot.
    pub fn owner(&self, slot: Slot) -> ShardIndex {
        ShardIndex(self.owners[usize::from(slot.0 % SLOT_COUNT)])
    }

    /// The ranges a shard owns, in order.
    pub fn ranges_of(&self, shard: ShardIndex) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for (slot, owner) in (0..).zip(&self.owners) {
            if *owner != shard.0 {
                continue;
            }
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == slot => *end = slot,
                _ => ranges.push((slot, slot)),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_agree_with_redis_cluster() {
        // Values of CLUSTER KEYSLOT on redis-server 7.0.15.
        for (key, slot) in [
            ("foo", 12182),
            ("{user1000}.following", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("", 0),
        ] {
            assert_eq!(slot_of_key(key.as_bytes()), Slot(slot), "{key}");
        }
    }

    #[test]
    fn a_tag_moves_keys_together() {
        assert_eq!(slot_of_key(b"a{x}"), slot_of_key(b"b{x}c"));
        assert_ne!(slot_of_key(b"a{}"), slot_of_key(b"b{}"));
    }

    #[test]
    fn ranges_must_cover_everything_once() {
        let (a, b) = (ShardIndex(0), ShardIndex(1));
        let map = SlotMap::from_ranges(&[(0..=9, a), (10..=16_383, b)]).unwrap();
        assert_eq!(map.owner(Slot(9)), a);
        assert_eq!(map.owner(Slot(10)), b);
        assert_eq!(map.ranges_of(b), [(10, 16_383)]);
        assert_eq!(
            SlotMap::from_ranges(&[(0..=16_382, a)]),
            Err(SlotMapError::Unowned(16_383))
        );
        assert_eq!(
            SlotMap::from_ranges(&[(0..=16_383, a), (5..=5, b)]),
            Err(SlotMapError::Twice(5))
        );
        assert_eq!(
            SlotMap::from_ranges(&[(0..=16_384, a)]),
            Err(SlotMapError::OutOfRange(0, 16_384))
        );
    }
}
