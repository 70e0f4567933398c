//! What `[topology]` may say: the shards of a proxy without ZooKeeper.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::Problem;
use super::value::Name;
use crate::topology::{Addr, ShardId, ShardIndex, SlotMap};

/// The most shards one file may list.
const SHARDS_MAX: usize = 1000;

/// `[topology]` as it stands in the file; `conf/topology.toml` documents each key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyFile {
    /// The shards.
    pub shards: Vec<ShardFile>,
}

/// One `[[topology.shards]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFile {
    /// Its name.
    pub id: Name,
    /// The slots it owns.
    #[serde(default = "all_slots")]
    pub slots: Vec<SlotRange>,
    /// Its redis-servers; which of them is the master they say themselves.
    pub nodes: Vec<Addr>,
}

fn all_slots() -> Vec<SlotRange> {
    vec![SlotRange(0, 16_383)]
}

/// Slots from the first to the last, both included: `0-8191`, or one alone: `7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange(pub u16, pub u16);

impl FromStr for SlotRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self(first, last)),
            _ => Err(format!(
                "'{text}' is no range of slots: write FIRST-LAST within 0-16383"
            )),
        }
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl Serialize for SlotRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `[topology]`, checked: every slot has one owner, every shard a node, no name and no address stands twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The shards; the slot map's indices point in here.
    pub shards: Vec<TopologyShard>,
    /// Who owns which slot.
    pub slots: SlotMap,
}

/// A shard and its redis-servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyShard {
    /// Its name.
    pub id: ShardId,
    /// Its redis-servers; at least one.
    pub nodes: Vec<Addr>,
}

impl TopologyFile {
    /// Checks what single values cannot show.
    pub fn check(&self) -> Result<Topology, Problem> {
        let problem = |key: &str, what: String| Err(Problem::new(&format!("shards.{key}"), what));
        if self.shards.len() > SHARDS_MAX {
            return Err(Problem::new("shards", format!("at most {SHARDS_MAX} are allowed")));
        }
        let (mut ids, mut addrs) = (BTreeSet::new(), BTreeSet::new());
        for shard in &self.shards {
            if !ids.insert(shard.id.as_str()) {
                return problem(
                    "id",
                    format!("{} stands twice: give each shard a name of its own", shard.id),
                );
            }
            if shard.nodes.is_empty() {
                return problem("nodes", format!("shard {} has none: list its redis-servers", shard.id));
            }
            if let Some(twice) = shard.nodes.iter().find(|addr| !addrs.insert((*addr).clone())) {
                return problem(
                    "nodes",
                    format!("{twice} stands twice: a redis-server belongs to one shard"),
                );
            }
        }
        let ranges: Vec<_> = (0..)
            .zip(&self.shards)
            .flat_map(|(index, shard)| {
                shard
                    .slots
                    .iter()
                    .map(move |range| (range.0..=range.1, ShardIndex(index)))
            })
            .collect();
        let slots = match SlotMap::from_ranges(&ranges) {
            Ok(slots) => slots,
            Err(error) => return problem("slots", format!("{error}: give each of the slots 0-16383 to one shard")),
        };
        let shards = self.shards.iter().map(|shard| TopologyShard {
            id: ShardId::from(shard.id.as_str()),
            nodes: shard.nodes.clone(),
        });
        Ok(Topology {
            shards: shards.collect(),
            slots,
        })
    }
}
