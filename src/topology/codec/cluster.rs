//! What concerns the whole cluster: `/config` and `/slots`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Znode, check_names};
use crate::topology::{SLOT_COUNT, ShardId, ShardIndex, SlotMap, SlotMapError};

/// The layout of the znodes that this version writes and understands.
pub const SCHEMA: u32 = 1;

/// `/config`: settings of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// The layout of the znodes. A higher one than [`SCHEMA`] is not for this version to touch.
    pub schema: u32,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { schema: SCHEMA }
    }
}

impl Znode for ClusterConfig {
    fn check(&self) -> Result<(), String> {
        match self.schema {
            SCHEMA => Ok(()),
            other => Err(format!(
                "schema {other}, but this pointsman knows schema {SCHEMA} only: use the version that wrote it"
            )),
        }
    }
}

/// `/slots`: which shard owns which slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// Grows with each change of ownership.
    pub version: u64,
    /// Every slot exactly once.
    pub ranges: Vec<SlotRange>,
}

/// One range of slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRange {
    /// The first slot.
    pub from: u16,
    /// The last slot.
    pub to: u16,
    /// Who owns them.
    pub shard: ShardId,
}

impl Slots {
    /// All slots spread over `shards` in order, as evenly as they go.
    pub fn spread(shards: &[ShardId]) -> Self {
        let count = u32::try_from(shards.len()).unwrap_or(u32::MAX).max(1);
        let edge = |number: u32| u16::try_from(u32::from(SLOT_COUNT) * number / count).unwrap_or(SLOT_COUNT);
        let ranges = (0..).zip(shards).filter_map(|(number, shard)| {
            let (from, end) = (edge(number), edge(number + 1));
            (from < end).then(|| SlotRange {
                from,
                to: end - 1,
                shard: shard.clone(),
            })
        });
        Self {
            version: 1,
            ranges: ranges.collect(),
        }
    }

    /// The map over `shards`, whose order gives the indices. A range of a shard that is not among them fails.
    pub fn map(&self, shards: &[ShardId]) -> Result<SlotMap, String> {
        let mut ranges = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let found = (0..).zip(shards).find(|(_, shard)| **shard == range.shard);
            let (index, _) = found.ok_or_else(|| {
                format!(
                    "slots {}-{} belong to {}, which is no shard",
                    range.from, range.to, range.shard
                )
            })?;
            ranges.push((range.from..=range.to, ShardIndex(index)));
        }
        SlotMap::from_ranges(&ranges).map_err(|error: SlotMapError| error.to_string())
    }
}

impl Znode for Slots {
    fn check(&self) -> Result<(), String> {
        if self.ranges.len() > usize::from(SLOT_COUNT) {
            return Err(format!("{} ranges, more than there are slots", self.ranges.len()));
        }
        check_names(self.ranges.iter().map(|range| range.shard.as_str()))?;
        let shards: BTreeSet<&ShardId> = self.ranges.iter().map(|range| &range.shard).collect();
        let shards: Vec<ShardId> = shards.into_iter().cloned().collect();
        self.map(&shards).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode, encode};
    use super::*;

    #[test]
    fn slots_are_spread_evenly_and_survive_a_round_trip() {
        for count in [1, 2, 3, 16] {
            let shards: Vec<ShardId> = (1..=count).map(|n| ShardId::new(format!("s{n}"))).collect();
            let slots = Slots::spread(&shards);
            assert_eq!(decode::<Slots>(&encode(&slots), "/slots").unwrap(), slots);
            let map = slots.map(&shards).unwrap();
            for index in 0..count {
                let owned = map.ranges_of(ShardIndex(index));
                assert_eq!(owned.len(), 1, "{owned:?}");
                assert!(owned[0].1 - owned[0].0 + 1 >= SLOT_COUNT / count);
            }
        }
    }

    #[test]
    fn slots_with_holes_or_strangers_are_refused() {
        let text = |ranges: &str| format!("{{\"version\":1,\"ranges\":[{ranges}]}}");
        for (ranges, what) in [
            ("", "belongs to no shard"),
            (
                r#"{"from":0,"to":16382,"shard":"s1"}"#,
                "slot 16383 belongs to no shard",
            ),
            (r#"{"from":0,"to":16384,"shard":"s1"}"#, "not within"),
            (r#"{"from":0,"to":16383,"shard":"s/1"}"#, "no name"),
            (
                r#"{"from":0,"to":16383,"shard":"a"},{"from":3,"to":3,"shard":"b"}"#,
                "twice",
            ),
        ] {
            let error = decode::<Slots>(text(ranges).as_bytes(), "/slots").unwrap_err();
            assert!(error.what.contains(what), "{error}");
        }
        let slots = Slots::spread(&[ShardId::from("s1")]);
        assert!(slots.map(&[ShardId::from("s2")]).unwrap_err().contains("is no shard"));
    }

    #[test]
    fn another_schema_is_refused_and_unknown_fields_are_not() {
        assert!(decode::<ClusterConfig>(b"{\"schema\":2}", "/config").is_err());
        assert!(decode::<ClusterConfig>(b"{\"schema\":1,\"later\":[]}", "/config").is_ok());
    }
}
