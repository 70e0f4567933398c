//! The topology file: shards and nodes for a proxy without ZooKeeper.
//!
//! ```toml
//! [[topology.shards]]
//! id = "s1"
//! slots = ["0-8191"]                                # may be left out if there is one shard only
//! nodes = ["127.0.0.1:7001", "127.0.0.1:7002"]      # the master among them is found by ROLE
//! ```
//!
//! Owns: reading that text. Refuses: unknown keys and everything else that is not exactly this, naming the line.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::check_name;
use crate::topology::{Addr, ShardId, ShardIndex, SlotMap};

/// The most shards a file may list.
const SHARDS_MAX: usize = 1024;

/// A topology file, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyFile {
    /// The shards in the order of the file, which is that of their indices.
    pub shards: Vec<FileShard>,
    /// Who owns which slot.
    pub slots: SlotMap,
}

/// A shard of a topology file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileShard {
    /// Its name.
    pub id: ShardId,
    /// Its nodes, at least one.
    pub nodes: Vec<Addr>,
}

/// Why a topology file cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{path}:{line}: {what}")]
pub struct FileError {
    /// Which file.
    pub path: String,
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    topology: RawTopology,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTopology {
    shards: Spanned<Vec<RawShard>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShard {
    id: Spanned<String>,
    slots: Option<Spanned<Vec<String>>>,
    nodes: Spanned<Vec<Spanned<Addr>>>,
}

impl TopologyFile {
    /// Reads the text of the file at `path`.
    pub fn parse(text: &str, path: &str) -> Result<Self, FileError> {
        let at = |span: Option<usize>, what: String| FileError {
            path: path.to_owned(),
            line: 1 + text
                .bytes()
                .take(span.unwrap_or(0))
                .filter(|byte| *byte == b'\n')
                .count(),
            what,
        };
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let start = error.span().map(|span| span.start);
            at(start, error.message().to_owned())
        })?;
        check(&raw.topology.shards).map_err(|(offset, what)| at(Some(offset), what))
    }
}

/// Where, as an offset into the text, and what.
type Fault = (usize, String);

fn check(raw: &Spanned<Vec<RawShard>>) -> Result<TopologyFile, Fault> {
    let whole = raw.span().start;
    let shards = raw.get_ref();
    if shards.is_empty() || shards.len() > SHARDS_MAX {
        return Err((whole, format!("{} shards: list 1 to {SHARDS_MAX}", shards.len())));
    }
    let mut ids = BTreeSet::new();
    let mut addrs = BTreeSet::new();
    for shard in shards {
        let at = shard.id.span().start;
        check_name(shard.id.get_ref()).map_err(|error| (at, error.to_string()))?;
        if !ids.insert(shard.id.get_ref()) {
            return Err((at, format!("shard {} is listed twice", shard.id.get_ref())));
        }
        if shard.nodes.get_ref().is_empty() {
            let what = format!("shard {} has no nodes", shard.id.get_ref());
            return Err((shard.nodes.span().start, what));
        }
        for node in shard.nodes.get_ref() {
            if !addrs.insert(node.get_ref()) {
                return Err((node.span().start, format!("{} is listed twice", node.get_ref())));
            }
        }
    }
    let slots = slots(shards, whole)?;
    let shards = shards.iter().map(|shard| FileShard {
        id: ShardId::from(shard.id.get_ref().as_str()),
        nodes: shard
            .nodes
            .get_ref()
            .iter()
            .map(|node| node.get_ref().clone())
            .collect(),
    });
    Ok(TopologyFile {
        shards: shards.collect(),
        slots,
    })
}

fn slots(shards: &[RawShard], whole: usize) -> Result<SlotMap, Fault> {
    let mut ranges = Vec::new();
    for (index, shard) in (0..).zip(shards) {
        let Some(slots) = &shard.slots else {
            if shards.len() == 1 {
                return Ok(SlotMap::single());
            }
            let what = format!("shard {} has no slots: write slots = [\"A-B\"]", shard.id.get_ref());
            return Err((shard.id.span().start, what));
        };
        for text in slots.get_ref() {
            let range = range(text).ok_or_else(|| {
                let what = format!("'{text}' is no range of slots: write \"A-B\" within 0-16383");
                (slots.span().start, what)
            })?;
            ranges.push((range, ShardIndex(index)));
        }
    }
    SlotMap::from_ranges(&ranges).map_err(|error| (whole, error.to_string()))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::Slot;

    const TWO: &str = "[[topology.shards]]\nid = \"s1\"\nslots = [\"0-99\", \"200-16383\"]\nnodes = [\"a:1\", \"b:1\"]\n\
        [[topology.shards]]\nid = \"s2\"\nslots = [\"100-199\"]\nnodes = [\"[::1]:3\"]\n";

    #[test]
    fn a_file_gives_shards_and_slots() {
        let file = TopologyFile::parse(TWO, "t.toml").unwrap();
        assert_eq!(file.shards.len(), 2);
        assert_eq!(file.shards[0].nodes, ["a:1".parse().unwrap(), "b:1".parse().unwrap()]);
        assert_eq!(file.slots.owner(Slot(150)), ShardIndex(1));
        let one = "[topology]\nshards = [{ id = \"s1\", nodes = [\"a:1\"] }]\n";
        assert_eq!(TopologyFile::parse(one, "t.toml").unwrap().slots, SlotMap::single());
    }

    #[test]
    fn an_error_names_the_file_the_line_and_the_remedy() {
        for (from, to, line, what) in [
            ("id = \"s2\"", "id = \"s1\"", 6, "listed twice"),
            ("id = \"s2\"", "id = \"s 2\"", 6, "no name"),
            ("\"[::1]:3\"", "\"a:1\"", 8, "a:1 is listed twice"),
            ("\"[::1]:3\"", "", 8, "has no nodes"),
            ("\"[::1]:3\"", "\"nowhere\"", 8, "HOST:PORT"),
            ("\"100-199\"", "\"100-\"", 7, "write \"A-B\""),
            ("\"100-199\"", "\"100-198\"", 1, "slot 199 belongs to no shard"),
            ("slots = [\"100-199\"]", "", 6, "has no slots"),
            ("id = \"s2\"", "name = \"s2\"", 6, "unknown field `name`"),
            (
                "[[topology.shards]]\nid = \"s2\"",
                "[other]\nid = \"s2\"",
                5,
                "unknown field `other`",
            ),
            ("id = \"s2\"", "id = ", 6, ""),
        ] {
            let text = TWO.replace(from, to);
            let error = TopologyFile::parse(&text, "t.toml").unwrap_err();
            assert!(error.what.contains(what), "{error}");
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().starts_with(&format!("t.toml:{line}: ")));
        }
        assert!(TopologyFile::parse("", "t.toml").is_err());
        assert!(TopologyFile::parse("[topology]\nshards = []", "t.toml").is_err());
    }

    proptest! {
        #[test]
        fn any_text_never_panics(at in 0usize..200, text in "\\PC{0,12}") {
            let mut damaged = TWO.to_owned();
            let at = at % damaged.len();
            damaged.insert_str(at, &text);
            let _ = TopologyFile::parse(&damaged, "t");
            let _ = TopologyFile::parse(&text, "t");
        }
    }
}
