//! What the machine knows of the store, and its one outstanding write.
//!
//! Owns: [`Pending`], the handling of lost outcomes, and the distrust of a store that went back. Refuses:
//! choosing what to write. Invariant: an outcome that was lost is found out by reading (our nonce, or a
//! higher version) before anything else is written or done (ha-rules 5.8).

use std::time::{Duration, Instant};

use super::action::{Action, Level, Written};
use super::state::{State, Versioned};
use super::{Knowledge, Machine};

/// Until a read that decides over a write is asked for again.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// A write whose outcome is not known yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    expect: Option<i32>,
    state: State,
    purpose: Purpose,
    /// The outcome was lost or contradicted; the next synchronised read decides, which is asked for again after this.
    doubtful: Option<Instant>,
}

/// What a write is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step of the election or switchover under way.
    Course,
    /// Our seat: being valid again (rule R3), or the name of our stream.
    Seat,
    /// Our seat: joining (rule R4).
    Join,
    /// Nobody else's seat, for this reason.
    Shrink(String),
}

impl Pending {
    /// Whether an election or a switchover waits for it.
    pub(super) fn of_course(&self) -> bool {
        self.purpose == Purpose::Course
    }

    /// Whether a state that was read shows that this write happened, perhaps with another on top.
    fn landed(&self, read: &State) -> bool {
        let ours = read.epoch == self.state.epoch && read.nonce == self.state.nonce;
        match self.purpose {
            Purpose::Course => ours && read.phase == self.state.phase && read.lineage == self.state.lineage,
            Purpose::Seat | Purpose::Join | Purpose::Shrink(_) => ours && self.state.same_seats(read),
        }
    }
}

impl Machine {
    /// Writes `state` on top of the one last known.
    pub(super) fn write(&mut self, state: State, purpose: Purpose) {
        let expect = self.state().map(|known| known.version);
        self.pending = Some(Pending {
            expect,
            state: state.clone(),
            purpose,
            doubtful: None,
        });
        self.actions.push_back(Action::Write { expect, state });
    }

    pub(super) fn handle_written(&mut self, now: Instant, written: Written) {
        let Some(pending) = &mut self.pending else { return };
        match written {
            Written::Done(version) => {
                let state = pending.state.clone();
                self.settle_pending(now, Versioned { version, state });
            }
            Written::Conflict | Written::Unknown => {
                pending.doubtful = Some(now + READ_AGAIN);
                self.actions.push_back(Action::ReadState);
            }
        }
    }

    /// The pending write happened and made `written` the state.
    fn settle_pending(&mut self, now: Instant, written: Versioned) {
        let Some(pending) = self.pending.take() else { return };
        self.learn(now, written.clone());
        let epoch = written.state.epoch;
        match pending.purpose {
            Purpose::Course => self.handle_course_written(now, written),
            Purpose::Seat => self.say(Level::Info, format!("{} keeps its seat in epoch {epoch}", self.me.node)),
            Purpose::Join => {
                let sentence = format!("{} joins", self.me.node);
                self.say(Level::Info, format!("{sentence} the shard in epoch {epoch}"));
                self.record_seats(&written.state, sentence);
            }
            Purpose::Shrink(why) => {
                self.say(Level::Warn, format!("{why}; what the master takes now is on it alone"));
                self.record_seats(&written.state, why);
                self.actions.push_back(Action::Relay(written));
            }
        }
    }

    /// A state came. Older ones than the one known are lags of the source, not news.
    pub(super) fn learn(&mut self, now: Instant, read: Versioned) {
        if self.state().is_some_and(|known| known.version >= read.version) {
            return;
        }
        // Overtaken by a command of a newer epoch, or the ensemble was restored: a synchronised read tells which (R10).
        if read.state.reach() < self.obedience.epoch() {
            self.actions.push_back(Action::ReadState);
            return;
        }
        if self.course.as_ref().is_some_and(|course| !course.stands(&read.state)) {
            let why = format!("{} claimed epoch {}", read.state.executor, read.state.epoch);
            self.say(Level::Info, format!("{why}; what this agent was about ends"));
            self.drop_course(why);
        }
        if let Some(course) = &mut self.course {
            course.note(&read.state);
        }
        self.note_begun(&read.state);
        self.knowledge = Knowledge::Known(read, now);
    }

    /// The store is connected, and says this after a `sync`.
    pub(super) fn handle_synced(&mut self, now: Instant, read: Option<Versioned>) {
        self.connected = true;
        self.synced.get_or_insert(now);
        if self.went_back(read.as_ref()) {
            return;
        }
        match read {
            None if matches!(self.knowledge, Knowledge::Unread) => self.knowledge = Knowledge::Absent,
            None => {}
            Some(read) => self.learn(now, read),
        }
        self.resolve_doubt(now);
    }

    /// A state below what we obeyed, or gone: the ensemble was restored or emptied (rule R10).
    fn went_back(&mut self, read: Option<&Versioned>) -> bool {
        let obeyed = self.obedience.epoch();
        let known = self.state().map(|known| known.version);
        let (epoch, version) = read.map_or((None, None), |read| (Some(read.state.epoch), Some(read.version)));
        let back = version < known
            || read.is_some_and(|read| read.state.reach() < obeyed)
            || (epoch.is_none() && obeyed.0 > 0);
        // The read may have been overtaken by a watch or a relay; one that is asked for now cannot be.
        if back && !std::mem::replace(&mut self.doubted, true) {
            self.actions.push_back(Action::ReadState);
        } else if back {
            self.distrusted = true;
            let found = epoch.map_or("no state".to_owned(), |epoch| format!("epoch {epoch}"));
            let sentence = format!(
                "the store says {found}, but this node obeyed epoch {obeyed}: was the ensemble restored or emptied? \
                 Taking no step until it says more"
            );
            self.shout(Level::Error, sentence);
        } else {
            self.doubted = false;
            self.distrusted = false;
        }
        back
    }

    /// Asks again for the read that decides: the question may have been lost on its way.
    pub(super) fn doubt_on(&mut self, now: Instant) {
        let again = self.pending.as_mut().and_then(|pending| pending.doubtful.as_mut());
        if self.connected
            && let Some(again) = again.filter(|again| now >= **again)
        {
            *again = now + READ_AGAIN;
            self.actions.push_back(Action::ReadState);
        }
    }

    fn resolve_doubt(&mut self, now: Instant) {
        let Some(pending) = self.pending.as_ref().filter(|pending| pending.doubtful.is_some()) else {
            return;
        };
        match self.state().cloned() {
            Some(read) if pending.landed(&read.state) => self.settle_pending(now, read),
            read if read.as_ref().map(|read| read.version) == pending.expect => {
                // It did not happen, but may still be on its way: the same write again, which is
                // the same whether one or both of them arrive.
                let mut again = pending.clone();
                again.doubtful = None;
                self.actions.push_back(Action::Write {
                    expect: again.expect,
                    state: again.state.clone(),
                });
                self.pending = Some(again);
            }
            _ => {
                self.pending = None;
                self.drop_course("the state was written by somebody else".to_owned());
                self.write_again = now + Duration::from_millis(50);
            }
        }
    }
}
