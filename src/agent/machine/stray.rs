//! What a node that comes back holds and the published master does not have.
//!
//! Owns: the comparison, by replication ids and offsets. Refuses: keeping any of it: the stream of the published master is
//! the shard's, and following it drops the rest. Invariant: nothing is said of streams that cannot be compared.

use crate::topology::{Epoch, RunId};

use super::facts::Facts;
use super::state::State;

/// What our Redis held just before it was told to follow the published master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    /// The epoch of that master.
    pub(super) epoch: Epoch,
    /// Its life.
    life: RunId,
    /// Our stream.
    replid: String,
    /// How far we were in it.
    offset: i64,
}

impl Stray {
    /// What a node with these facts brings to the serving shard; nothing if it has no data.
    pub(super) fn of(state: &State, facts: &Facts) -> Option<Self> {
        let master = state.serving().filter(|_| facts.keys > 0)?;
        Some(Self {
            epoch: state.epoch,
            life: master.run_id.clone(),
            replid: facts.replid.clone(),
            offset: facts.offset,
        })
    }

    /// Whether this is a reading of that master.
    pub(super) fn concerns(&self, master: &Facts) -> bool {
        master.run_id == self.life
    }

    /// How many bytes of the stream that the master came from it did not have at its promotion, and we had; none where
    /// our stream is another.
    pub(super) fn bytes(&self, master: &Facts) -> Option<u64> {
        if self.replid == master.replid {
            return Some(0);
        }
        let left_at =
            (self.replid == master.replid2 && master.second_offset > 0).then_some(master.second_offset - 1)?;
        Some(u64::try_from(self.offset - left_at).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample;
    use super::*;

    #[test]
    fn only_what_went_on_beyond_the_promotion_is_stray() {
        let stray = |replid: &str, offset| Stray {
            epoch: Epoch(2),
            life: RunId::from("b"),
            replid: replid.to_owned(),
            offset,
        };
        let master = Facts {
            replid2: "r1".to_owned(),
            second_offset: 101,
            ..sample("b", "r2", 500)
        };
        assert_eq!(stray("r1", 100).bytes(&master), Some(0));
        assert_eq!(stray("r1", 130).bytes(&master), Some(30));
        assert_eq!(stray("r1", 70).bytes(&master), Some(0), "it is behind");
        assert_eq!(stray("r2", 400).bytes(&master), Some(0), "the master's own stream");
        assert_eq!(stray("r0", 700).bytes(&master), None, "not to be compared");
        assert!(stray("r1", 1).concerns(&master));
        assert!(!stray("r1", 1).concerns(&sample("c", "r2", 500)));
    }
}
