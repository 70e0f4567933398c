//! Which commands this agent carries out on its Redis (rules R7, R8, R10).
//!
//! Owns: the highest (epoch, step) ever obeyed. Refuses: carrying anything out. Invariant: the pair never
//! goes back, so a command that was delayed on its way cannot undo a later one: not one of an older epoch,
//! and not the park of the same epoch once the node was promoted in it.
//!
//! An election parks before it promotes or re-points. A switchover does not, and need not:
//! - its **fence** is a park of the published master that leaves its replicas their links. It is obeyed once per epoch,
//!   by the life it names, and leaves the node parked, so that what follows is as after any park;
//! - its **promotion** names what the node must have applied, which is all that the fenced master had. It is obeyed
//!   without a park only in an epoch above all obeyed: delayed past a later park it is stale, delayed past nothing it
//!   promotes a node that no acknowledged write is missing from, in an epoch that can then not be published;
//! - the **renewal** of a master that stays is obeyed like a fence: once, by the life it names, in an epoch above all
//!   obeyed; what comes late meets a newer epoch;
//! - its **follow** goes out after the promotion, when the old master is fenced and can acknowledge nothing. The park
//!   before a follow keeps a replica from acknowledging to the old master while a new one is chosen; here none is left
//!   to acknowledge to, and nothing is chosen. Agents do the same on their own when they read a published state.

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
    /// As a park of the published master, but the replicas keep their links and get what is still on its way to them
    /// (rule R8).
    Fence {
        /// The executor's epoch.
        epoch: Epoch,
        /// The life that was published.
        run_id: RunId,
    },
    /// Say what is there, if a mark is given once it is reached or after a while. Changes nothing.
    Reach {
        /// The executor's epoch.
        epoch: Epoch,
        /// What is to be applied.
        mark: Option<Mark>,
    },
    /// Become the master of this epoch.
    Promote {
        /// The executor's epoch.
        epoch: Epoch,
        /// The life that was parked or has reached the mark; another one must not be promoted (rule R7).
        run_id: RunId,
        /// A node that was not parked must have applied this, or the promotion is a failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// Stay the master, in this epoch: what those of the old one log in with goes (rule R5).
    Renew {
        /// The executor's epoch.
        epoch: Epoch,
        /// The life that is published.
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

/// A place in a replication stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The stream's id.
    pub replid: String,
    /// Bytes of it.
    pub offset: i64,
}

impl Ask {
    /// The epoch it belongs to.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Park { epoch }
            | Self::Fence { epoch, .. }
            | Self::Reach { epoch, .. }
            | Self::Promote { epoch, .. }
            | Self::Renew { epoch, .. }
            | Self::Follow { epoch, .. } => *epoch,
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
    /// Redis holds data that never was this shard's.
    #[error("it holds data of another origin")]
    Foreign,
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
            return match ask {
                Ask::Fence { run_id: asked, .. }
                | Ask::Renew { run_id: asked, .. }
                | Ask::Promote {
                    run_id: asked,
                    mark: Some(_),
                    ..
                } => {
                    if run_id == Some(asked) {
                        Ok(())
                    } else {
                        Err(Refusal::Restarted)
                    }
                }
                Ask::Reach { .. } | Ask::Follow { .. } => Ok(()),
                Ask::Park { .. } | Ask::Promote { mark: None, .. } => Err(Refusal::NotParked(epoch)),
            };
        }
        match (ask, &self.step) {
            (Ask::Reach { .. }, _) => Ok(()),
            // Once per epoch: the first one is under way, or done.
            (Ask::Fence { .. } | Ask::Renew { .. }, _) => Err(Refusal::Late(epoch)),
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
        self.step = match ask {
            Ask::Park { .. } | Ask::Fence { .. } => Step::Bare,
            Ask::Promote { .. } | Ask::Renew { .. } => Step::Promoted,
            Ask::Follow { .. } => Step::Following,
            // It changes nothing, so nothing was obeyed.
            Ask::Reach { .. } => return,
        };
        self.epoch = ask.epoch();
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
            mark: None,
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

    fn fence(epoch: u64) -> Ask {
        Ask::Fence {
            epoch: Epoch(epoch),
            run_id: RunId::from("a"),
        }
    }

    fn take_over(epoch: u64) -> Ask {
        Ask::Promote {
            epoch: Epoch(epoch),
            run_id: RunId::from("a"),
            mark: Some(Mark {
                replid: "r1".to_owned(),
                offset: 7,
            }),
        }
    }

    #[test]
    fn a_fence_is_obeyed_once_by_the_life_it_names_and_leaves_the_node_parked() {
        let life = RunId::from("a");
        let mut obedience = Obedience::new(Epoch(1));
        assert_eq!(
            obedience.admit(&fence(2), true, Some(&RunId::from("b"))),
            Err(Refusal::Restarted)
        );
        assert_eq!(obedience.admit(&fence(2), false, Some(&life)), Err(Refusal::NotReady));
        assert_eq!(obedience.admit(&fence(2), true, Some(&life)), Ok(()));
        obedience.begin(&fence(2));
        assert_eq!(
            obedience.admit(&fence(2), true, Some(&life)),
            Err(Refusal::Late(Epoch(2)))
        );
        obedience.parked(Epoch(2), life.clone());
        let follow = Ask::Follow {
            epoch: Epoch(2),
            master: NodeId::from("b"),
            addr: Addr::new("127.0.0.1", 1),
            run_id: RunId::from("b"),
            fence: 0,
        };
        assert_eq!(obedience.admit(&follow, true, Some(&life)), Ok(()));
        obedience.begin(&follow);
        for late in [fence(2), park(2), take_over(2)] {
            assert_eq!(
                obedience.admit(&late, true, Some(&life)),
                Err(Refusal::Late(Epoch(2))),
                "{late:?}"
            );
        }
        assert_eq!(
            obedience.admit(&fence(1), true, Some(&life)),
            Err(Refusal::Stale(Epoch(2)))
        );
    }

    #[test]
    fn without_a_park_only_what_has_reached_a_mark_is_promoted_and_only_in_a_new_epoch() {
        let life = RunId::from("a");
        let mut obedience = Obedience::new(Epoch(1));
        assert_eq!(
            obedience.admit(&promote(2), true, Some(&life)),
            Err(Refusal::NotParked(Epoch(2)))
        );
        assert_eq!(
            obedience.admit(&take_over(2), true, Some(&RunId::from("b"))),
            Err(Refusal::Restarted)
        );
        assert_eq!(obedience.admit(&take_over(2), true, Some(&life)), Ok(()));
        obedience.begin(&park(3));
        assert_eq!(
            obedience.admit(&take_over(2), true, Some(&life)),
            Err(Refusal::Stale(Epoch(3)))
        );
        assert_eq!(
            obedience.admit(&take_over(3), true, Some(&life)),
            Err(Refusal::NotParked(Epoch(3)))
        );
    }

    #[test]
    fn a_renewal_is_obeyed_once_by_the_life_it_names() {
        let life = RunId::from("a");
        let renew = |epoch| Ask::Renew {
            epoch: Epoch(epoch),
            run_id: RunId::from("a"),
        };
        let mut obedience = Obedience::new(Epoch(1));
        assert_eq!(
            obedience.admit(&renew(2), true, Some(&RunId::from("b"))),
            Err(Refusal::Restarted)
        );
        assert_eq!(obedience.admit(&renew(2), false, Some(&life)), Err(Refusal::NotReady));
        assert_eq!(obedience.admit(&renew(2), true, Some(&life)), Ok(()));
        obedience.begin(&renew(2));
        for late in [renew(2), park(2)] {
            assert_eq!(obedience.admit(&late, true, Some(&life)), Err(Refusal::Late(Epoch(2))));
        }
        obedience.begin(&park(3));
        assert_eq!(
            obedience.admit(&renew(2), true, Some(&life)),
            Err(Refusal::Stale(Epoch(3)))
        );
        assert_eq!(
            obedience.admit(&renew(3), true, Some(&life)),
            Err(Refusal::Late(Epoch(3)))
        );
    }

    #[test]
    fn a_look_changes_nothing() {
        let look = Ask::Reach {
            epoch: Epoch(5),
            mark: None,
        };
        let mut obedience = parked(2);
        assert_eq!(obedience.admit(&look, true, None), Ok(()));
        obedience.begin(&look);
        assert_eq!(obedience.epoch(), Epoch(2));
        assert_eq!(obedience.admit(&promote(2), true, Some(&RunId::from("a"))), Ok(()));
    }
}
