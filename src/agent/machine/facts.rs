//! What one Redis says of itself.
//!
//! Owns: [`Facts`] (one reading of INFO and of the epoch that Redis carries in `masteruser`) and
//! [`Cleanliness`] (whether its data set may be half of something). Refuses: judging; that is `quorum`.

use serde::{Deserialize, Serialize};

use crate::topology::{Addr, Epoch, RunId};

/// The role Redis itself reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes writes.
    Master,
    /// Follows somebody, or nobody when parked.
    Replica,
}

/// One reading of a Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The life of the process.
    pub run_id: RunId,
    /// Master or replica.
    pub role: Role,
    /// The id of the replication stream its data comes from.
    pub replid: String,
    /// The stream it was promoted out of; zeros if none.
    pub replid2: String,
    /// First byte that is no longer part of `replid2`; -1 if there is none.
    pub second_offset: i64,
    /// Bytes of the stream that it has applied (`slave_repl_offset`, or `master_repl_offset` of a master).
    pub offset: i64,
    /// Whom it follows, as configured in it; none for a master.
    pub follows: Option<Addr>,
    /// Whether the link to its master is up.
    pub link_up: bool,
    /// Whether a full synchronisation is running.
    pub syncing: bool,
    /// Whether it is still loading its data set from disk.
    pub loading: bool,
    /// Keys over all databases.
    pub keys: u64,
    /// The epoch in its `masteruser` (rule R9); it lives exactly as long as the memory it protects.
    pub epoch: Epoch,
    /// Whether its data set may be half of a synchronisation that did not end (ha-rules 5.7).
    pub dirty: bool,
    /// The operator's preference: of equals the lowest is promoted, 0 never is (as `replica-priority`).
    pub priority: u32,
    /// Replicas that are linked to it and have said so within the last seconds.
    #[serde(default)]
    pub replicas: u32,
}

/// Where a parked node points: a port at which nobody answers.
pub const PARKED_AT: &str = "127.0.0.1:1";

impl Facts {
    /// Whether it follows nobody: `REPLICAOF 127.0.0.1 1`.
    pub fn parked(&self) -> bool {
        self.role == Role::Replica && self.follows.as_ref().is_some_and(|at| at.to_string() == PARKED_AT)
    }

    /// Whether it is a replica of the server at `addr` with the credential of `epoch`.
    pub fn follows_in(&self, addr: &Addr, epoch: Epoch) -> bool {
        self.role == Role::Replica && self.epoch == epoch && self.follows.as_ref() == Some(addr)
    }
}

/// Remembers whether a full synchronisation began and did not end in the life of a process.
///
/// An unfinished one leaves an emptied data set under its old name (replid), so INFO alone, read later,
/// cannot tell. What is not known to be clean is dirty.
#[derive(Clone, Debug, Default)]
pub struct Cleanliness {
    life: Option<Life>,
}

#[derive(Clone, Debug)]
struct Life {
    run_id: RunId,
    dirty: bool,
    /// The highest offset seen: one that falls back means that the position was thrown away.
    offset: i64,
}

impl Cleanliness {
    /// Takes a reading into account and writes the verdict into it.
    pub fn judge(&mut self, facts: &mut Facts) {
        let known = self.life.take().filter(|life| life.run_id == facts.run_id);
        let sound = facts.role == Role::Master || facts.link_up;
        let dirty = match &known {
            _ if facts.syncing => true,
            _ if sound => false,
            // A replica that lost its stream's position before we watched it shows offset 0 or 1.
            None => facts.offset <= 1,
            Some(life) => life.dirty || facts.offset < life.offset,
        };
        facts.dirty = dirty;
        self.life = Some(Life {
            run_id: facts.run_id.clone(),
            dirty,
            offset: facts.offset,
        });
    }
}

#[cfg(test)]
pub(super) fn sample(run_id: &str, replid: &str, offset: i64) -> Facts {
    Facts {
        run_id: RunId::from(run_id),
        role: Role::Replica,
        replid: replid.to_owned(),
        replid2: "0".repeat(40),
        second_offset: -1,
        offset,
        follows: PARKED_AT.parse().ok(),
        link_up: false,
        syncing: false,
        loading: false,
        keys: 1,
        epoch: Epoch(0),
        dirty: false,
        priority: 100,
        replicas: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synchronisation_that_did_not_end_leaves_a_dirty_node() {
        let mut memory = Cleanliness::default();
        let mut linked = Facts {
            link_up: true,
            ..sample("a", "r1", 500)
        };
        memory.judge(&mut linked);
        assert!(!linked.dirty);
        let mut syncing = Facts {
            syncing: true,
            ..sample("a", "r1", 500)
        };
        memory.judge(&mut syncing);
        let mut parked = sample("a", "r1", 500);
        memory.judge(&mut parked);
        assert!(parked.dirty, "the old name of the stream proves nothing");
        let mut linked = Facts {
            link_up: true,
            ..sample("a", "r2", 600)
        };
        memory.judge(&mut linked);
        assert!(!linked.dirty);
    }

    #[test]
    fn a_synchronisation_between_two_readings_shows_in_the_lost_position() {
        let mut memory = Cleanliness::default();
        memory.judge(&mut Facts {
            link_up: true,
            ..sample("a", "r1", 500)
        });
        let mut parked = sample("a", "r1", 1);
        memory.judge(&mut parked);
        assert!(parked.dirty);
    }

    #[test]
    fn an_unknown_past_is_dirty_unless_redis_still_has_a_position() {
        let mut gone = sample("a", "r1", 0);
        Cleanliness::default().judge(&mut gone);
        assert!(gone.dirty);
        let mut known = sample("a", "r1", 77);
        Cleanliness::default().judge(&mut known);
        assert!(!known.dirty);
    }
}
