//! What a session tells its client, and what it sends again, when a backend connection is lost or refuses commands.

use std::rc::Rc;
use std::time::Duration;

use super::queue::{Prospect, Queue};
use super::session::{Held, Pinned, Session, State};
use super::transaction::{Told, Transaction, bury};
use crate::clock;
use crate::command::{Lookup, Table, Unit};
use crate::proxy::backend::{Lane, Lost, Role, with_words};
use crate::resp::Args;
use crate::route::{Fate, Verdict, plan};

/// How long a request must have been blocked at a master for that to be no wait for one.
const SERVED_MS: u64 = 100;

impl Session {
    /// Applies the in-flight rules to what this session had on a lane that is gone, and was silent for so long before.
    pub fn lane_lost(self: &Rc<Self>, lane: &Rc<Lane>, lost: Vec<Lost>, silent_ms: u64) {
        let worker = self.worker.clone();
        let now_ms = clock::monotonic_ms();
        let served = lost.first().and_then(|lost| lost.since_ms);
        if served.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) > SERVED_MS) {
            // It was blocked there, as it is meant to be.
            self.state().held_at_written = u64::MAX;
        }
        let too_late = self.has_waited_ms(now_ms, silent_ms) > worker.hold_max_ms();
        let told = self.judge_lost(lane, &lost, too_late);
        let demoted = lost.iter().any(|lost| lost.fate == Fate::Refused);
        let mut held = Vec::new();
        for (told, lost) in told.into_iter().zip(lost) {
            if !self.state().window.holds(lost.run) {
                // Nobody waits for it: it was part of what is brought to the next connection anyway.
                continue;
            }
            match told {
                // Too large to have been kept, or held long enough.
                Told::Verdict(Verdict::Resend) if too_late || lost.bytes.is_empty() => {
                    lane.shard.count_failed(lost.replies);
                    self.answer_lost(&lost, Told::Verdict(Verdict::MasterDown));
                }
                Told::Verdict(Verdict::Show) => {
                    self.fill(lost.run, &lost.answer, lost.replies, &worker);
                }
                Told::Verdict(Verdict::Resend) => {
                    lane.shard.count_resent(lost.replies);
                    held.push(Held {
                        shard: lane.shard.clone(),
                        run: lost.run,
                        count: lost.replies,
                        bytes: match lost.since_ms {
                            Some(since_ms) => {
                                with_time_left(&lost.bytes, now_ms.saturating_sub(since_ms), worker.commands())
                                    .unwrap_or(lost.bytes)
                            }
                            None => lost.bytes,
                        },
                        block: lost.role == Role::Block,
                        private: lane.is_private(),
                    });
                }
                told => {
                    match told {
                        Told::Verdict(Verdict::InDoubt) => lane.shard.count_indoubt(lost.replies),
                        Told::Verdict(Verdict::MasterDown) => lane.shard.count_failed(lost.replies),
                        _ => {}
                    }
                    self.answer_lost(&lost, told);
                }
            }
        }
        if demoted {
            self.hold_lost(lane, held);
        } else {
            self.state().held.extend(held);
        }
        let mut state = self.state();
        state.seat(&lane.shard).lane.take_if(|known| Rc::ptr_eq(known, lane));
        drop(state);
        self.wake();
    }

    /// A connection was not opened because the server runs a script, or the user may not: nothing of what was meant for
    /// it was sent, and each request hears what Redis said.
    pub fn login_refused(self: &Rc<Self>, lost: &[Lost], line: &str) {
        let worker = self.worker.clone();
        let refusal = [line.as_bytes(), b"\r\n"].concat();
        let resp3 = self.state().login.resp3;
        for lost in lost {
            match lost.role {
                Role::Plain | Role::Forgotten => drop(self.fill(lost.run, &refusal, lost.replies, &worker)),
                Role::Multi | Role::Discard | Role::Watch => {
                    self.fill(lost.run, Told::Ok.line(resp3), 1, &worker);
                }
                Role::Exec => drop(self.fill(lost.run, Told::Aborted.line(resp3), 1, &worker)),
                Role::Block => {
                    let inside = lost.replies.saturating_sub(2) as usize;
                    let replies = [Told::Ok.line(resp3), &refusal.repeat(inside), Told::Aborted.line(resp3)].concat();
                    self.fill(lost.run, &replies, lost.replies, &worker);
                }
            }
        }
        let mut state = self.state();
        if state.pinned.take_if(|pinned| pinned.lane.has_ended()).is_some() {
            let after = state.transaction.unopened();
            state.stand(after);
        }
        if let Some(streaming) = &mut state.streaming {
            streaming.lose_if(|lane| lane.has_ended());
        }
        for seat in &mut state.seats {
            seat.lane.take_if(|lane| lane.has_ended());
        }
        drop(state);
        self.wake();
    }

    /// How long the client has been waiting through one loss after the other without an answer; begins anew after one.
    fn has_waited_ms(&self, now_ms: u64, silent_ms: u64) -> u64 {
        let written = self.written();
        let mut state = self.state();
        if state.held_at_written != written {
            (state.held_since_ms, state.held_at_written) = (now_ms.saturating_sub(silent_ms), written);
        }
        now_ms.saturating_sub(state.held_since_ms)
    }

    /// Answers a command of a lost lane in our own words.
    fn answer_lost(self: &Rc<Self>, lost: &Lost, told: Told) {
        let resp3 = self.state().login.resp3;
        let worker = self.worker.clone();
        if lost.role == Role::Block {
            let queued = lost.replies.saturating_sub(2) as usize;
            let before = [Told::Ok.line(resp3), &Told::Queued.line(resp3).repeat(queued)].concat();
            self.fill(lost.run, &before, lost.replies.saturating_sub(1), &worker);
        }
        self.fill(lost.run, told.line(resp3), 1, &worker);
    }

    fn judge_lost(&self, lane: &Rc<Lane>, lost: &[Lost], too_late: bool) -> Vec<Told> {
        let mut state = self.state();
        if let Some(streaming) = &mut state.streaming {
            streaming.lose_if(|known| Rc::ptr_eq(known, lane));
        }
        if !lane.is_private() {
            let fates: Vec<_> = lost.iter().map(|lost| lost.fate).collect();
            return plan(&fates).into_iter().map(Told::Verdict).collect();
        }
        let commands: Vec<_> = lost.iter().map(|lost| (lost.role, lost.fate)).collect();
        let Some(pinned) = state.pinned.take_if(|pinned| Rc::ptr_eq(&pinned.lane, lane)) else {
            // It was given up inside MULTI.
            return bury(&commands, Transaction::Queueing);
        };
        let now = state.transaction;
        let Some((queue, end)) = state.queue_of(pinned, lost) else {
            state.stand(now.lost());
            return bury(&commands, now);
        };
        let own = end - queue.share(end)..end;
        let prospect = state.lose_queue(queue, &lost[own.clone()], too_late);
        let said = |role: &Role| match (prospect, role) {
            (Prospect::Again, _) => Told::Verdict(Verdict::Resend),
            (_, Role::Multi) => Told::Ok,
            (_, Role::Exec) => Told::Nil,
            (_, Role::Plain | Role::Block | Role::Discard | Role::Watch | Role::Forgotten) => Told::Queued,
        };
        if prospect == Prospect::Lost {
            return bury(&commands, now);
        }
        let mut told = bury(&commands[..own.start], Transaction::None);
        told.extend(commands[own].iter().map(|(role, _)| said(role)));
        // What follows an EXEC that is sent again is, too, or is what Redis said behind one that does nothing.
        let again = prospect == Prospect::Again;
        let exec = again.then_some(Fate::Refused);
        let fates: Vec<Fate> = exec
            .into_iter()
            .chain(lost[end..].iter().map(|lost| lost.fate))
            .collect();
        told.extend(plan(&fates).into_iter().skip(usize::from(again)).map(Told::Verdict));
        told
    }

    /// Notices that the session's own connection went with nothing in flight on it. `false`: what was queued there has
    /// to be brought to another one first.
    pub(super) fn check_pinned(self: &Rc<Self>) -> bool {
        let again = {
            let mut state = self.state();
            // One that is retired ends at once, too.
            let idle = state.window.unanswered() == 0;
            let is_lost = |pinned: &mut Box<Pinned>| pinned.lane.has_ended() || (idle && pinned.lane.is_released());
            let Some(pinned) = state.pinned.take_if(is_lost) else {
                return true;
            };
            state.held_since_ms = clock::monotonic_ms();
            match state.queue_of(pinned, &[]) {
                Some((queue, _)) => state.lose_queue(queue, &[], false) == Prospect::Again,
                None => {
                    let after = state.transaction.lost();
                    state.stand(after);
                    false
                }
            }
        };
        !again || self.send_held()
    }
}

impl State {
    /// What a lost connection had been asked for since MULTI, and where in what was in flight there it ends, if it may
    /// go on elsewhere: EXEC was not sent, or not executed.
    fn queue_of(&mut self, mut pinned: Box<Pinned>, lost: &[Lost]) -> Option<(Box<Queue>, usize)> {
        let closing = pinned.closing.take();
        if let Some(mut queue) = self.queue.take() {
            queue.before = Some(pinned);
            return Some((queue, lost.len()));
        }
        let mut queue = closing?;
        let exec = lost.iter().rposition(|lost| lost.role == Role::Exec)?;
        let mut fates: Vec<Fate> = lost[exec..].iter().map(|lost| lost.fate).collect();
        let own = &lost[exec + 1 - queue.share(exec + 1)..exec];
        if lost[exec].answer.starts_with(b"-EXECABORT ") && own.iter().any(|lost| lost.fate == Fate::Refused) {
            // It was not executed for the sake of what a demoted master did not queue.
            fates[0] = Fate::Refused;
        }
        let refused = matches!(fates[0], Fate::Refused | Fate::Unsent) && plan(&fates)[0] == Verdict::Resend;
        let alone = lost[exec + 1..].iter().all(|lost| lost.role == Role::Plain);
        queue.before = Some(pinned);
        (refused && alone).then_some((queue, exec + 1))
    }

    /// Sees to it that what was queued since MULTI goes on elsewhere, without the last of it, `unanswered`: what was
    /// answered is sent again before everything else. Says whether it does.
    fn lose_queue(&mut self, queue: Box<Queue>, unanswered: &[Lost], too_late: bool) -> Prospect {
        let queueing = self.transaction == Transaction::Queueing;
        let prospect = if too_late { Prospect::Lost } else { queue.prospect() };
        match prospect {
            Prospect::Again => {
                let nobody = self.window.nobody();
                let asked = unanswered.iter().filter(|lost| self.window.holds(lost.run));
                let (bytes, count) = queue.answered(asked);
                if let Some(before) = queue.before.as_ref().filter(|_| count > 0) {
                    self.held.push(Held {
                        shard: before.lane.shard.clone(),
                        run: nobody,
                        count: u32::try_from(count).unwrap_or(u32::MAX),
                        bytes,
                        block: false,
                        private: true,
                    });
                }
                self.queue = Some(queue).filter(|_| queueing);
            }
            Prospect::Lost if queueing => self.stand(Transaction::Lost),
            Prospect::Empty if queueing => self.stand(Transaction::Doomed),
            Prospect::Lost | Prospect::Empty => {}
        }
        prospect
    }
}

/// A blocking request with a time-out that is shorter by what it has waited already; `None` if it has none, or waits for
/// ever. Redis takes no zero for "no time left", so a millisecond always is.
pub(super) fn with_time_left(request: &[u8], waited_ms: u64, table: &Table) -> Option<Vec<u8>> {
    let mut spans = Vec::new();
    let args = Args::read(request, &mut spans)?;
    let Lookup::Known(command) = table.lookup(&args) else {
        return None;
    };
    let (at, unit) = command.timeout_at(&args)?;
    let given: f64 = std::str::from_utf8(args.get(at)?).ok()?.parse().ok()?;
    if given <= 0.0 || !given.is_finite() {
        return None;
    }
    let waited = Duration::from_millis(waited_ms).as_secs_f64();
    let left = match unit {
        Unit::Seconds => format!("{:.3}", (given - waited).max(0.001)),
        Unit::Milliseconds => format!("{:.0}", (given - waited * 1000.0).max(1.0)),
    };
    Some(with_words(&args, &[(at, left.as_bytes())]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::backend::put_request;

    fn left(words: &[&str], waited_ms: u64) -> Option<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut request = Vec::new();
        put_request(&mut request, &words);
        let shorter = with_time_left(&request, waited_ms, Table::builtin())?;
        Some(String::from_utf8_lossy(&shorter).into_owned())
    }

    #[test]
    fn a_blocking_request_gets_the_time_that_is_left() {
        assert!(left(&["BLPOP", "q", "5"], 2000).is_some_and(|request| request.ends_with("$5\r\n3.000\r\n")));
        assert!(left(&["BLPOP", "q", "5"], 9000).is_some_and(|request| request.ends_with("$5\r\n0.001\r\n")));
        assert!(
            left(&["XREAD", "BLOCK", "500", "STREAMS", "s", "$"], 200)
                .is_some_and(|request| request.contains("$5\r\nBLOCK\r\n$3\r\n300\r\n"))
        );
        for unchanged in [&["BLPOP", "q", "0"][..], &["BLPOP", "q", "x"], &["GET", "5"]] {
            assert_eq!(left(unchanged, 2000), None);
        }
    }
}
