//! What a session tells its client, and what it sends again, when a backend connection is lost or refuses commands.

use std::rc::Rc;

use super::session::{Held, Session};
use super::transaction::{Told, Transaction, bury};
use crate::proxy::backend::{Lane, Lost, Role};
use crate::route::{Verdict, plan};

impl Session {
    /// Applies the in-flight rules to what this session had on a lane that is gone.
    pub fn lane_lost(self: &Rc<Self>, lane: &Rc<Lane>, lost: Vec<Lost>) {
        let told = self.judge_lost(lane, &lost);
        let worker = self.worker.clone();
        let resp3 = self.state().login.resp3;
        let mut held = Vec::new();
        for (told, lost) in told.into_iter().zip(lost) {
            match told {
                Told::Verdict(Verdict::Show) => {
                    self.fill(lost.run, &lost.answer, lost.replies, &worker);
                }
                Told::Verdict(Verdict::Resend) => held.push(Held {
                    run: lost.run,
                    count: lost.replies,
                    bytes: lost.bytes,
                    block: lost.role == Role::Block,
                    private: lane.is_private(),
                }),
                told => {
                    if lost.role == Role::Block {
                        let queued = lost.replies.saturating_sub(2) as usize;
                        let before = [Told::Ok.line(resp3), &Told::Queued.line(resp3).repeat(queued)].concat();
                        self.fill(lost.run, &before, lost.replies.saturating_sub(1), &worker);
                    }
                    self.fill(lost.run, told.line(resp3), 1, &worker);
                }
            }
        }
        let mut state = self.state();
        state.held.extend(held);
        state.held_since_ms = crate::clock::monotonic_ms();
        state.lane = None;
        drop(state);
        self.wake();
    }

    fn judge_lost(&self, lane: &Rc<Lane>, lost: &[Lost]) -> Vec<Told> {
        let mut state = self.state();
        if let Some(streaming) = &mut state.streaming {
            streaming.lane.take_if(|known| Rc::ptr_eq(known, lane));
        }
        if !lane.is_private() {
            let fates: Vec<_> = lost.iter().map(|lost| lost.fate).collect();
            return plan(&fates).into_iter().map(Told::Verdict).collect();
        }
        let commands: Vec<_> = lost.iter().map(|lost| (lost.role, lost.fate)).collect();
        if state.pinned.take_if(|pinned| Rc::ptr_eq(&pinned.lane, lane)).is_none() {
            // It was given up inside MULTI.
            return bury(&commands, Transaction::Queueing);
        }
        let now = state.transaction;
        state.transaction = now.lost();
        bury(&commands, now)
    }

    /// Notices that the session's own connection went with nothing in flight on it.
    pub(super) fn check_pinned(&self) {
        let mut state = self.state();
        if state.pinned.take_if(|pinned| pinned.lane.has_ended()).is_some() {
            state.transaction = state.transaction.lost();
        }
    }
}
