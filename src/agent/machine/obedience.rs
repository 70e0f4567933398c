//! Which commands this agent carries out on its Redis (rules R7, R10).
//!
//! Owns: the highest (epoch, step) ever obeyed. Refuses: carrying anything out. Invariant: the pair never
//! goes back, so a command that was delayed on its way cannot undo a later one: not one of an older epoch,
//! and not the park of the same epoch once the node was promoted in it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::topology::{Addr, Epoch, NodeId, RunId};

/// What an executor asks of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// Follow nobody, feed nobody, for this epoch.
    Park {
        /// The executor's epoch.
        epoch: Epoch,
    },
    /// Become the master of this epoch.
    Promote {
        /// The executor's epoch.
        epoch: Epoch,
        /// The life that was parked; another one must not be promoted (rule R7).
        run_id: RunId,
    },
    /// Become a replica of the node promoted in this epoch.
    Follow {
        /// The executor's epoch.
        epoch: Epoch,
        /// The promoted node.
        master: NodeId,
        /// Where its Redis listens.
        addr: Addr,
        /// The life that was promoted.
        run_id: RunId,
        /// Its offset at the promotion: the replica proves itself by reaching it (rule R2).
        fence: i64,
    },
}

impl Ask {
    /// The epoch it belongs to.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Park { epoch } | Self::Promote { epoch, .. } | Self::Follow { epoch, .. } => *epoch,
        }
    }
}

/// How far the node has come within the highest epoch it obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet, or a park under way. Next: parked.
    Bare,
    /// Parked in this life of Redis. Next: promoted or following.
    Parked(RunId),
    /// Promoted. Next: a higher epoch.
    Promoted,
    /// Follows this epoch's master. Next: a higher epoch.
    Following,
}

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// A newer epoch was obeyed already.
    #[error("epoch {0} was obeyed already")]
    Stale(Epoch),
    /// The node is past this step of the epoch.
    #[error("the node is past that step of epoch {0}")]
    Late(Epoch),
    /// A promotion or a follow without the park before it.
    #[error("the node was not parked for epoch {0}")]
    NotParked(Epoch),
    /// Redis is another process than the one that was parked.
    #[error("redis was restarted since it was parked")]
    Restarted,
    /// The agent started and has not yet learnt what it obeyed before (rule R10).
    #[error("the agent does not know yet what it obeyed before it started")]
    NotReady,
}

/// The memory of what was obeyed.
#[derive(Clone, Debug)]
pub struct Obedience {
    epoch: Epoch,
    step: Step,
}

impl Obedience {
    /// Begins with the epoch found on disk.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            step: Step::Bare,
        }
    }

    /// The highest epoch obeyed.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Learns the epoch that Redis itself carries, and how far it has come in it.
    pub fn learn(&mut self, epoch: Epoch, step: Step) {
        if epoch > self.epoch || (epoch == self.epoch && self.step == Step::Bare) {
            self.epoch = epoch;
            self.step = step;
        }
    }

    /// Whether to carry `ask` out. `ready` as rule R10 has it, `run_id` the present life of Redis.
    pub fn admit(&self, ask: &Ask, ready: bool, run_id: Option<&RunId>) -> Result<(), Refusal> {
        let epoch = ask.epoch();
        if epoch < self.epoch {
            return Err(Refusal::Stale(self.epoch));
        }
        if let Ask::Park { .. } = ask {
            let moved_on = matches!(self.step, Step::Promoted | Step::Following);
            return if epoch == self.epoch && moved_on {
                Err(Refusal::Late(epoch))
            } else {
                Ok(())
            };
        }
        if !ready {
            return Err(Refusal::NotReady);
        }
        if epoch > self.epoch {
            return Err(Refusal::NotParked(epoch));
        }
        match (ask, &self.step) {
            (_, Step::Bare) => Err(Refusal::NotParked(epoch)),
            (_, Step::Parked(parked)) if run_id != Some(parked) => Err(Refusal::Restarted),
            (Ask::Promote { run_id, .. }, Step::Parked(parked)) if run_id != parked => Err(Refusal::Restarted),
            (_, Step::Parked(_)) => Ok(()),
            // Repeating a promotion is a no-op in Redis as long as it was not parked between.
            (Ask::Promote { run_id: asked, .. }, Step::Promoted) if run_id == Some(asked) => Ok(()),
            (Ask::Follow { .. }, Step::Following) => Ok(()),
            (_, Step::Promoted | Step::Following) => Err(Refusal::Late(epoch)),
        }
    }

    /// Notes that `ask` is being carried out: from here on nothing older is.
    pub fn begin(&mut self, ask: &Ask) {
        self.epoch = ask.epoch();
        self.step = match ask {
            Ask::Park { .. } => Step::Bare,
            Ask::Promote { .. } => Step::Promoted,
            Ask::Follow { .. } => Step::Following,
        };
    }

    /// Notes that Redis is parked for `epoch`.
    pub fn parked(&mut self, epoch: Epoch, run_id: RunId) {
        if epoch == self.epoch && matches!(self.step, Step::Bare | Step::Parked(_)) {
            self.step = Step::Parked(run_id);
        }
    }

    /// Notes that the node follows the published master of `epoch`, read from ZooKeeper.
    pub fn follow_published(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.step = Step::Following;
    }

    /// Whether this node was promoted in `epoch`.
    pub fn promoted_in(&self, epoch: Epoch) -> bool {
        self.epoch == epoch && self.step == Step::Promoted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn park(epoch: u64) -> Ask {
        Ask::Park { epoch: Epoch(epoch) }
    }

    fn promote(epoch: u64) -> Ask {
        Ask::Promote {
            epoch: Epoch(epoch),
            run_id: RunId::from("a"),
        }
    }

    fn parked(epoch: u64) -> Obedience {
        let mut obedience = Obedience::new(Epoch(1));
        obedience.begin(&park(epoch));
        obedience.parked(Epoch(epoch), RunId::from("a"));
        obedience
    }

    #[test]
    fn a_late_park_does_not_hit_the_promoted_node() {
        let life = RunId::from("a");
        let mut obedience = parked(2);
        assert_eq!(obedience.admit(&promote(2), true, Some(&life)), Ok(()));
        obedience.begin(&promote(2));
        assert_eq!(
            obedience.admit(&park(2), true, Some(&life)),
            Err(Refusal::Late(Epoch(2)))
        );
        assert_eq!(
            obedience.admit(&promote(2), true, Some(&life)),
            Ok(()),
            "repeating is a no-op"
        );
        assert_eq!(obedience.admit(&park(3), true, Some(&life)), Ok(()));
    }

    #[test]
    fn only_the_life_that_was_parked_is_promoted() {
        let obedience = parked(2);
        let other = RunId::from("b");
        assert_eq!(
            obedience.admit(&promote(2), true, Some(&other)),
            Err(Refusal::Restarted)
        );
        assert_eq!(obedience.admit(&promote(2), true, None), Err(Refusal::Restarted));
        assert_eq!(
            obedience.admit(&promote(3), true, Some(&other)),
            Err(Refusal::NotParked(Epoch(3)))
        );
        assert_eq!(
            obedience.admit(&promote(1), true, Some(&other)),
            Err(Refusal::Stale(Epoch(2)))
        );
    }

    #[test]
    fn before_it_is_ready_an_agent_obeys_only_parks() {
        let life = RunId::from("a");
        assert_eq!(parked(2).admit(&promote(2), false, Some(&life)), Err(Refusal::NotReady));
        assert_eq!(parked(2).admit(&park(2), false, Some(&life)), Ok(()));
    }

    #[test]
    fn what_redis_carries_outlives_the_agent() {
        let mut obedience = Obedience::new(Epoch(0));
        obedience.learn(Epoch(7), Step::Promoted);
        obedience.learn(Epoch(6), Step::Following);
        assert_eq!(
            obedience.admit(&park(7), true, Some(&RunId::from("a"))),
            Err(Refusal::Late(Epoch(7)))
        );
    }
}
