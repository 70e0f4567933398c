//! What a session tells its client, and what it sends again, when a backend connection is lost or refuses commands.

use std::rc::Rc;
use std::time::Duration;

use super::session::{Held, Pinned, Session};
use super::transaction::{Told, Transaction, bury};
use crate::clock;
use crate::command::{Lookup, Table, Unit};
use crate::proxy::backend::{Lane, Lost, Role, put_request};
use crate::resp::{Args, RequestLimits, RequestScanner, Scan};
use crate::route::{Verdict, plan};

impl Session {
    /// Applies the in-flight rules to what this session had on a lane that is gone.
    pub fn lane_lost(self: &Rc<Self>, lane: &Rc<Lane>, lost: Vec<Lost>) {
        let told = self.judge_lost(lane, &lost);
        let worker = self.worker.clone();
        let now_ms = clock::monotonic_ms();
        let too_late = self.has_waited_ms(now_ms) > worker.hold_max_ms();
        let mut held = Vec::new();
        for (told, lost) in told.into_iter().zip(lost) {
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
        let mut state = self.state();
        state.held.extend(held);
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
            state.transaction = state.transaction.unopened();
        }
        if let Some(streaming) = &mut state.streaming {
            streaming.lane.take_if(|lane| lane.has_ended());
        }
        for seat in &mut state.seats {
            seat.lane.take_if(|lane| lane.has_ended());
        }
        drop(state);
        self.wake();
    }

    /// How long the client has been waiting through one loss after the other without an answer; begins anew after one.
    fn has_waited_ms(&self, now_ms: u64) -> u64 {
        let written = self.written();
        let mut state = self.state();
        if state.held_at_written != written {
            (state.held_since_ms, state.held_at_written) = (now_ms, written);
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
        // One that is retired ends at once, too.
        let idle = state.window.unanswered() == 0;
        let is_lost = |pinned: &mut Box<Pinned>| pinned.lane.has_ended() || (idle && pinned.lane.is_released());
        if state.pinned.take_if(is_lost).is_some() {
            state.transaction = state.transaction.lost();
        }
    }
}

/// A blocking request with a time-out that is shorter by what it has waited already; `None` if it has none, or waits for
/// ever. Redis takes no zero for "no time left", so a millisecond always is.
fn with_time_left(request: &[u8], waited_ms: u64, table: &Table) -> Option<Vec<u8>> {
    let mut spans = Vec::new();
    let scan = RequestScanner::default().scan(request, &mut spans, &RequestLimits::default());
    let Ok(Scan::Frame(_)) = scan else { return None };
    let args = Args::new(request, &spans);
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
    let mut words: Vec<&[u8]> = args.iter().collect();
    words[at] = left.as_bytes();
    let mut shorter = Vec::new();
    put_request(&mut shorter, &words);
    Some(shorter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(words: &[&str], waited_ms: u64) -> Option<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut request = Vec::new();
        put_request(&mut request, &words);
        let shorter = with_time_left(&request, waited_ms, &Table::builtin())?;
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
