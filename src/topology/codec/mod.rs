//! What stands in the znodes: JSON, readable with zkCli; and the topology file that can stand in for them.
//!
//! Owns: one type for each kind of znode, [`decode`] and [`encode`], and where each stands ([`Place`]);
//! [`TopologyFile`]. Refuses: I/O, and judging whether a state is wise. Invariants: what was decoded is not
//! nonsense (names are names, what belongs together is there together); fields that this version does not know
//! are ignored, since a newer one may have written them; no bytes make it panic.

mod cluster;
mod file;
mod history;
mod place;
mod presence;
mod shard;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use cluster::{ClusterConfig, SCHEMA, SlotRange, Slots};
pub use file::{FileError, FileShard, TopologyFile};
#[cfg(test)]
pub(crate) use history::bare_record;
pub use history::{Ending, Kind, Phases, Record};
pub use place::Place;
pub use presence::{NodeInfo, ProxyInfo, Role, Suspect};
pub use shard::{Accept, ShardConfig, ShardState, SwitchRequest, WhenShort};

/// The longest name of a node, shard, proxy or cluster, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The longest value of a znode, in bytes: ZooKeeper's own default (`jute.maxbuffer`).
pub const ZNODE_BYTES_MAX: usize = 1 << 20;

/// Why the value of a znode cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{path} holds nonsense: {what}")]
pub struct CodecError {
    /// Which znode.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// Why a text is no name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-'")]
pub struct NameError(pub String);

/// The value of one kind of znode.
pub trait Znode: Serialize + DeserializeOwned {
    /// Says what JSON of the right shape can still get wrong.
    fn check(&self) -> Result<(), String>;
}

/// The value that `bytes`, read at `path`, stand for.
pub fn decode<Z: Znode>(bytes: &[u8], path: &str) -> Result<Z, CodecError> {
    let error = |what: String| CodecError {
        path: path.to_owned(),
        what,
    };
    if bytes.len() > ZNODE_BYTES_MAX {
        return Err(error(format!("{} bytes, more than {ZNODE_BYTES_MAX}", bytes.len())));
    }
    let value: Z = serde_json::from_slice(bytes).map_err(|why| error(why.to_string()))?;
    value.check().map_err(error)?;
    Ok(value)
}

/// What an operator can do about a znode that holds nonsense.
pub fn remedy(path: &str) -> &'static str {
    match Place::parse(path) {
        // Its version and epoch only ever grow (ha-rules 5.8).
        Some(Place::State(_)) => "correct it with 'set' in zkCli.sh, never delete it",
        Some(Place::Config | Place::Slots | Place::ShardConfig(_)) => "correct it with 'set' in zkCli.sh",
        Some(_) | None => "correct it with 'set' in zkCli.sh or delete it",
    }
}

/// The bytes that stand for a value.
pub fn encode<Z: Znode>(value: &Z) -> Vec<u8> {
    let Ok(bytes) = serde_json::to_vec(value) else {
        unreachable!("every map in a znode has text for keys");
    };
    bytes
}

/// Checks the name of a node, shard, proxy or cluster. It stands in paths, in ACL user names and in log lines.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    // ZooKeeper takes the names of relative paths for no name either.
    let relative = matches!(name, "." | "..");
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal) && !relative {
        Ok(())
    } else {
        Err(NameError(name.to_owned()))
    }
}

fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    let mut names = names.into_iter();
    names.try_for_each(check_name).map_err(|error| error.to_string())
}

/// A `run_id` or replication id: Redis draws 40 hex digits, tests use shorter ones.
fn check_id(what: &str, id: &str) -> Result<(), String> {
    if (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(format!("{id:?} is no {what}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_names_the_path_and_what_is_wrong() {
        let path = "/shards/s1/state";
        for (bytes, what) in [
            (&b""[..], "EOF"),
            (b"nonsense", "expected"),
            (b"{\"epoch\":1}", "missing field"),
            (b"{\"epoch\":-1}", "-1"),
            (b"\xff\xfe", "expected"),
        ] {
            let error = decode::<ShardState>(bytes, path).unwrap_err().to_string();
            assert!(error.starts_with(path) && error.contains(what), "{error}");
        }
        let long = vec![b' '; ZNODE_BYTES_MAX + 1];
        assert!(decode::<Slots>(&long, path).unwrap_err().what.contains("more than"));
    }

    #[test]
    fn names_are_checked_at_the_limit_and_one_past_it() {
        for name in ["a", "s1-a", "Redis_0.svc", &"x".repeat(64)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    fn never_panics(bytes: &[u8]) {
        let _ = decode::<ClusterConfig>(bytes, "/config");
        let _ = decode::<Slots>(bytes, "/slots");
        let _ = decode::<ShardConfig>(bytes, "/shards/s1/config");
        let _ = decode::<ShardState>(bytes, "/shards/s1/state");
        let _ = decode::<NodeInfo>(bytes, "/shards/s1/nodes/a");
        let _ = decode::<Suspect>(bytes, "/shards/s1/suspects/a");
        let _ = decode::<ProxyInfo>(bytes, "/proxies/p");
        let _ = decode::<Record>(bytes, "/history/s1/0000000000");
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            never_panics(&bytes);
        }

        #[test]
        fn any_damage_to_a_state_never_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = encode(&shard::sample());
            let at = at % bytes.len();
            bytes[at] = byte;
            never_panics(&bytes);
        }
    }
}
