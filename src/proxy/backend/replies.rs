//! What a lane does with the bytes that Redis sends.
//!
//! ```text
//! bytes --scanner--> session.fill          the common path: nothing is copied but into the client's buffer
//!            |-----> held ----> session.fill    what replicas have to acknowledge first
//!            |-----> queued --> session.fill    a block's replies before EXEC's, kept back until that one comes
//!            '-----> wreck                      everything from the first refusal on (rule A3)
//! ```
//! Only a reply that begins with `-` or `+Q` is looked at; the rest costs the scanner's comparison of a byte.

use std::rc::Rc;

use super::lane::{Lane, LaneEnd, State};
use super::wreck::Frames;
use crate::clock;
use crate::command::Table;
use crate::proxy::worker::Worker;
use crate::resp::{Heed, Stop};
use crate::route::{Line, refusal};

/// What is at the front of the replies to a block.
enum KeptBack {
    /// Replies before EXEC's, so many bytes of them.
    Queued(usize),
    /// The reply to EXEC.
    Exec,
    /// MULTI was refused: what follows are commands like any others.
    NoBlock,
    /// No RESP.
    Malformed,
}

impl Lane {
    pub(super) fn received(self: &Rc<Self>, bytes: &[u8], worker: &Rc<Worker>) -> Result<(), LaneEnd> {
        self.heard.set(self.heard.get() + 1);
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.peeked.is_empty() {
            return self.take_replies(state, bytes, worker);
        }
        let mut joined = std::mem::take(&mut state.peeked);
        joined.extend_from_slice(bytes);
        self.take_replies(state, &joined, worker)
    }

    fn take_replies(self: &Rc<Self>, state: &mut State, bytes: &[u8], worker: &Rc<Worker>) -> Result<(), LaneEnd> {
        let mut at = 0;
        let mut seen = false;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let Some(wreck) = &mut state.wreck {
                return if wreck.log(rest) { Ok(()) } else { Err(LaneEnd::Refused) };
            }
            let Some(entry) = state.ledger.next_mut() else {
                return Err(LaneEnd::Poisoned);
            };
            if entry.keeps_back() {
                match state.keep_back(rest) {
                    KeptBack::Queued(used) => at += used,
                    KeptBack::Exec if rest[0] == b'-' && !seen => match refusal::of_exec(rest, Some(&state.queued)) {
                        Line::Refusal => self.begin_wreck(state, worker),
                        Line::Unfinished => {
                            state.peeked.extend_from_slice(rest);
                            break;
                        }
                        Line::Answer => seen = true,
                    },
                    KeptBack::Exec | KeptBack::NoBlock => self.show_queued(state, worker),
                    KeptBack::Malformed => return Err(LaneEnd::Poisoned),
                }
                continue;
            }
            let (want, heed) = if std::mem::take(&mut seen) {
                (1, Heed::Nothing)
            } else {
                (entry.count - entry.answered, Heed::Refusals)
            };
            let scanned = state.scanner.scan(rest, want, heed);
            entry.answered += scanned.replies;
            self.answered.set(self.answered.get() + u64::from(scanned.replies));
            if !self.hold_back(state, &rest[..scanned.used], scanned.replies, worker) {
                self.pass_on(state, &rest[..scanned.used], scanned.replies, worker);
            }
            at += scanned.used;
            if scanned.replies > 0 && self.is_private() {
                state.front_since_ms = clock::monotonic_ms();
            }
            state.answered_some();
            match scanned.stop {
                Stop::Starved | Stop::Counted => {}
                Stop::Push | Stop::Malformed => return Err(LaneEnd::Poisoned),
                Stop::Noted => match state.judge(&bytes[at..], self.is_private(), worker.commands()) {
                    Line::Answer => seen = true,
                    Line::Refusal => self.begin_wreck(state, worker),
                    Line::Unfinished => {
                        state.peeked.extend_from_slice(&bytes[at..]);
                        break;
                    }
                },
            }
        }
        state.trim();
        Ok(())
    }

    /// Gives reply bytes of the entry that is answered next to its session.
    #[inline]
    fn pass_on(self: &Rc<Self>, state: &mut State, bytes: &[u8], replies: u32, worker: &Rc<Worker>) {
        let inside = state.scanner.is_inside();
        let Some(entry) = state.ledger.next_mut() else { return };
        entry.released += replies;
        if state.held.is_some() {
            entry.cut = inside;
        } else if let Some(fences) = &mut state.fences {
            // Before anybody is shown the replies (rule A9).
            fences.answered(replies);
        }
        if self.is_reader() {
            entry
                .session
                .read_from_replica(&self.shard, worker.fences().requested());
        }
        let (session, run) = (entry.session.clone(), entry.run);
        self.show(state, &session, run, bytes, replies, worker);
    }

    /// Gives the client what was kept back of a block.
    fn show_queued(self: &Rc<Self>, state: &mut State, worker: &Rc<Worker>) {
        let queued = std::mem::take(&mut state.queued);
        let Some(entry) = state.ledger.next_mut() else { return };
        entry.opened = true;
        let replies = entry.answered;
        if !self.hold_back(state, &queued, replies, worker)
            && let Some(entry) = state.ledger.next_mut()
        {
            entry.released += replies;
            let (session, run) = (entry.session.clone(), entry.run);
            self.show(state, &session, run, &queued, replies, worker);
        }
    }

    /// Ends the lane's service at its first refusal.
    fn begin_wreck(self: &Rc<Self>, state: &mut State, worker: &Rc<Worker>) {
        let queued = std::mem::take(&mut state.queued);
        let mut wreck = state.take_wreck(self.is_private(), worker.commands());
        wreck.log(&queued);
        state.wreck = Some(Box::new(wreck));
        state.stuck_on = None;
        self.shard.lane_refused(worker, self);
    }
}

impl State {
    /// Keeps the replies before EXEC's.
    fn keep_back(&mut self, bytes: &[u8]) -> KeptBack {
        let Some(entry) = self.ledger.next_mut() else {
            return KeptBack::Malformed;
        };
        if entry.answered == 1 && self.queued.starts_with(b"-") {
            return KeptBack::NoBlock;
        }
        let before_exec = entry.count.saturating_sub(1);
        if entry.answered >= before_exec {
            return KeptBack::Exec;
        }
        // MULTI's alone first: it says whether this is a transaction at all.
        let want = if entry.answered == 0 {
            1
        } else {
            before_exec - entry.answered
        };
        let scanned = self.scanner.scan(bytes, want, Heed::Nothing);
        entry.answered += scanned.replies;
        if self.held.is_none()
            && let Some(fences) = &mut self.fences
        {
            fences.answered(scanned.replies);
        }
        self.queued.extend_from_slice(&bytes[..scanned.used]);
        match scanned.stop {
            Stop::Push | Stop::Malformed => KeptBack::Malformed,
            Stop::Starved | Stop::Counted | Stop::Noted => KeptBack::Queued(scanned.used),
        }
    }

    /// What a reply is of which `bytes` have come, by its words and by whose reply it is.
    fn judge(&mut self, bytes: &[u8], private: bool, commands: &Table) -> Line {
        let words = match (refusal::of_shared_command(bytes), refusal::of_exec(bytes, None)) {
            (Line::Answer, other) | (other, _) => other,
        };
        if words != Line::Refusal {
            return words;
        }
        if self.streaming {
            return self
                .streamed
                .map_or(Line::Answer, |traits| traits.line(bytes, b"", private));
        }
        let before = self.head + self.ledger.before_next();
        let Some(entry) = self.ledger.next_mut() else {
            return Line::Answer;
        };
        let mut frames = Frames::default();
        loop {
            let begin = before + self.stepped.1;
            let Some((len, traits)) = frames.next(self.out.get(begin..).unwrap_or_default(), commands) else {
                return Line::Answer;
            };
            if self.stepped.0 >= entry.answered {
                return traits.line(bytes, b"", private);
            }
            self.stepped = (self.stepped.0 + 1, self.stepped.1 + len);
        }
    }
}
