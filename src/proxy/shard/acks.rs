//! Acknowledgement by replicas, as one worker's view of a shard has it (design §8): what waits for which round, and what
//! becomes of it.
//!
//! ```text
//! lane, feed --ticket--> Rounds of the witness --acknowledged / too late--> lane, feed --> session
//! ```
//! Invariant (rule R11): a reply waits for the connection that was open when it came, or is in doubt.

use std::rc::Rc;

use tokio::task::spawn_local;

use super::Shard;
use super::rounds::Ticket;
use crate::proxy::backend::{Lane, Target};
use crate::proxy::client::Session;
use crate::proxy::worker::Worker;
use crate::route::FenceLog;

/// Who holds replies.
pub(super) enum Holder {
    Lane(Rc<Lane>),
    Feed(Rc<Session>),
}

/// Fences of what was executed, or may have been, and was not acknowledged in time: until a later round is.
pub(super) struct Doubtful {
    ticket: Ticket,
    fences: FenceLog,
}

impl Shard {
    /// How many replicas must acknowledge a write in the last epoch that was heard of.
    pub fn acks(&self) -> u32 {
        self.acks.get()
    }

    /// What a reply of `target` waits for that has come just now; `None`: nothing vouches for it.
    pub fn ticket(&self, target: &Target) -> Option<Ticket> {
        let witness = self.witness.borrow();
        witness.as_ref().filter(|witness| *witness.target == *target)?.ticket()
    }

    /// A lane begins to hold replies. `vouched`: a round will tell of them; else nothing does.
    pub fn holds(&self, worker: &Rc<Worker>, lane: &Rc<Lane>, vouched: bool) {
        self.holders.borrow_mut().push(Holder::Lane(lane.clone()));
        if !vouched {
            let (lane, worker) = (lane.clone(), worker.clone());
            spawn_local(async move {
                lane.not_acknowledged(1, 0, lane.target.acks, &worker);
                worker.flush_dirty();
            });
        }
    }

    /// A session holds what its feed heard.
    pub fn feed_holds(&self, session: &Rc<Session>) {
        self.holders.borrow_mut().push(Holder::Feed(session.clone()));
    }

    /// Keeps fences raised of what may be lost yet, and may be seen at the master.
    pub fn doubts(&self, fences: Option<FenceLog>) {
        let Some(fences) = fences.filter(|fences| fences.held() > 0) else {
            return;
        };
        // Nothing more is asked of a master that is being left; the next one's first round will do.
        let answering = self.answering();
        let ticket = answering
            .and_then(|target| self.ticket(&target))
            .unwrap_or(Ticket::NEVER);
        let mut doubtful = self.doubtful.borrow_mut();
        match &mut *doubtful {
            Some(known) => {
                known.fences.absorb(fences);
                known.ticket = ticket;
            }
            None => *doubtful = Some(Doubtful { ticket, fences }),
        }
    }

    /// Another connection asks for acknowledgements from now on.
    pub(super) fn doubts_anew(&self) {
        let mut doubtful = self.doubtful.borrow_mut();
        let Some(known) = &mut *doubtful else { return };
        match self.witness.borrow().as_ref().and_then(|witness| witness.ticket()) {
            Some(ticket) => known.ticket = ticket,
            None => *doubtful = None,
        }
    }

    /// Whether somebody holds replies.
    pub(super) fn holds_replies(&self) -> bool {
        !self.holders.borrow().is_empty()
    }

    /// Everything up to `upto` is acknowledged.
    pub(super) fn acknowledged(&self, worker: &Rc<Worker>, upto: Ticket) {
        self.doubtful.borrow_mut().take_if(|doubtful| doubtful.ticket <= upto);
        self.for_holders(worker, |holder| match holder {
            Holder::Lane(lane) => lane.acknowledged(upto, worker),
            Holder::Feed(session) => session.feed_acknowledged(upto),
        });
    }

    /// What has been held since before `until_ms` is in doubt: `counted` replicas have it, as far as is known.
    pub(super) fn not_acknowledged(&self, worker: &Rc<Worker>, until_ms: u64, counted: u32, wanted: u32) {
        self.for_holders(worker, |holder| match holder {
            Holder::Lane(lane) => lane.not_acknowledged(until_ms, counted, wanted, worker),
            Holder::Feed(session) => session.feed_not_acknowledged(until_ms, (counted, wanted)),
        });
    }

    /// The connection that acknowledges has ended: what feeds hold is unanswered for good. Lanes see to it themselves.
    pub(super) fn nobody_acknowledges(&self) {
        self.holders.borrow_mut().retain(|holder| match holder {
            Holder::Lane(_) => true,
            Holder::Feed(session) => {
                session.feed_has_no_witness();
                false
            }
        });
    }

    fn for_holders(&self, worker: &Rc<Worker>, still: impl FnMut(&Holder) -> bool) {
        let mut holders = std::mem::take(&mut *self.holders.borrow_mut());
        let mut still = still;
        holders.retain(|holder| still(holder));
        self.holders.borrow_mut().append(&mut holders);
        worker.flush_dirty();
        self.drained_some(worker);
    }
}
