//! From one connection to the next: what becomes of what was asked on a lost one, and what brings the next one to where the
//! client believes to be. Pure.

use std::collections::VecDeque;

use super::asked::{Asked, Entry};
use super::flight::Flight;
use super::{FeedLine, Flow, Left};
use crate::proxy::backend::put_request;
use crate::proxy::client::queue::{Prospect, Queue};
use crate::proxy::client::subscriptions::Verb;
use crate::proxy::client::window::RunId;
use crate::resp::ReplyScanner;
use crate::route::{Fate, Verdict, plan};

impl FeedLine {
    /// The connection is gone; `written` of its bytes had left.
    pub(in crate::proxy::client) fn lose(&mut self, written: u64) -> Left {
        if self.flow != Flow::None {
            return Left::CutOff;
        }
        self.tracking.lost(self.resp3);
        (self.scanner, self.partial, self.exec) = (ReplyScanner::default(), Vec::new(), None);
        let mut asked = self.asked.take();
        for mut entry in std::mem::take(&mut self.unsent) {
            entry.end = u64::MAX;
            asked.push_back(entry);
        }
        self.stale |= self.watch;
        let too_long = |queue: &Queue| queue.prospect() != Prospect::Again;
        let unkept =
            |entry: &Entry| matches!(&entry.asked, Asked::Plain(plain) if plain.queued && plain.bytes.is_empty());
        if self.queue.as_deref().is_some_and(too_long)
            || asked
                .iter()
                .any(|entry| entry.ends_transaction(written) || unkept(entry))
        {
            self.asked = Flight::of(asked);
            return Left::Transaction;
        }
        if asked
            .iter()
            .any(|entry| matches!(entry.asked, Asked::Silent | Asked::Idle))
        {
            self.tracking.consumed();
        }
        asked.retain(|entry| entry.run.is_some());
        let mut answers = Vec::new();
        // The next connection begins in the new protocol; a HELLO always stands alone, before everything else.
        while let Some(Entry {
            asked: Asked::Hello { greeting, .. },
            run: Some(run),
            ..
        }) = asked.front_mut()
        {
            answers.push((*run, std::mem::take(greeting)));
            asked.pop_front();
            self.tracking.consumed();
        }
        let fates: Vec<Fate> = asked.iter().map(|entry| entry.fate(written)).collect();
        let mut again = VecDeque::new();
        for (entry, verdict) in asked.into_iter().zip(plan(&fates)) {
            let verdict = match verdict {
                Verdict::Resend if !entry.is_kept() => Verdict::MasterDown,
                verdict => verdict,
            };
            match verdict.line() {
                Some(line) => answers.extend(self.give_up(entry, line)),
                None => again.push_back(entry),
            }
        }
        self.asked = Flight::of(again);
        self.count_unanswered();
        Left::Answers(answers)
    }

    /// Answers everything that waits for a connection, or for the server to become master once all that was sent there
    /// is answered.
    pub(in crate::proxy::client) fn expire(&mut self, line: &[u8], connected: bool) -> Vec<(RunId, Vec<u8>)> {
        if connected && self.asked.iter().any(|entry| entry.run.is_some()) {
            return Vec::new();
        }
        let waiting = if connected {
            std::mem::take(&mut self.unsent)
        } else {
            self.asked.take()
        };
        let (theirs, ours): (VecDeque<_>, _) = waiting.into_iter().partition(|entry| entry.run.is_some());
        if connected {
            self.unsent = ours;
        }
        // A transaction that lacks one of its requests must not be executed.
        self.stale |= self.multi && !theirs.is_empty();
        let given_up = theirs.into_iter().filter_map(|entry| self.give_up(entry, line));
        let answers = given_up.collect();
        self.count_unanswered();
        answers
    }

    fn give_up(&mut self, entry: Entry, line: &[u8]) -> Option<(RunId, Vec<u8>)> {
        if let Asked::Names(family, names) = &entry.asked
            && family.verb == Verb::Subscribe
        {
            names.iter().for_each(|name| self.subscriptions.forget(name));
        }
        if entry.asked.consumes_caching() {
            self.tracking.consumed();
        }
        entry.run.map(|run| (run, line.to_vec()))
    }

    fn count_unanswered(&mut self) {
        let all = self.asked.iter().chain(&self.unsent);
        self.unanswered_bytes = all.map(|entry| entry.bytes).sum();
    }

    /// Begins anew on a fresh connection, which speaks the protocol `resp3` says: subscribes again, then sends what is
    /// unanswered, as far as it may. `send` takes bytes and says how many were sent with them.
    pub(in crate::proxy::client) fn begin(&mut self, resp3: bool, is_master: bool, mut send: impl FnMut(&[u8]) -> u64) {
        self.unsent = self.asked.take();
        self.drained = false;
        self.resp3 = resp3;
        self.ask_again(&mut send);
        if let Some(queue) = &self.queue {
            let (bytes, count) = queue.answered([].iter());
            self.unsent.push_front(Entry {
                asked: Asked::Queue(count, bytes),
                run: None,
                end: u64::MAX,
                bytes: 0,
            });
        }
        self.release(is_master, send);
    }

    /// Asks for a sign that everything before it was heard.
    pub(in crate::proxy::client) fn mark(&mut self, send: impl FnMut(&[u8]) -> u64) {
        self.ask_nothing(Asked::Marker, send);
    }

    /// Between two connections: lets a request that blocks, if it is the first, be replaced by one that does so for
    /// less long. `shorter` is told for how many milliseconds it has.
    pub(in crate::proxy::client) fn shorten(
        &mut self,
        now_ms: u64,
        shorter: impl FnOnce(&[u8], u64) -> Option<Vec<u8>>,
    ) {
        if let Some(Asked::Plain(plain)) = self.asked.front_mut().map(|entry| &mut entry.asked)
            && let Some(since_ms) = plain.since_ms
            && let Some(bytes) = shorter(&plain.bytes, now_ms.saturating_sub(since_ms))
        {
            plain.bytes = bytes;
            plain.since_ms = Some(now_ms);
        }
    }

    /// Sends what was not sent yet, up to the first that only a master may get unless it is one.
    pub(in crate::proxy::client) fn release(&mut self, is_master: bool, mut send: impl FnMut(&[u8]) -> u64) {
        let mut bytes = Vec::new();
        while let Some(front) = self.unsent.front()
            && (is_master || !front.asked.may_write())
            && let Some(mut entry) = self.unsent.pop_front()
        {
            bytes.clear();
            entry.put(&mut bytes);
            entry.end = send(&bytes);
            self.asked.push(entry);
        }
    }

    /// Asks for everything that the client believes to hear.
    fn ask_again(&mut self, send: &mut impl FnMut(&[u8]) -> u64) {
        let mut bytes = Vec::new();
        let tracking = self.tracking.put_again(&mut bytes);
        let end = send(&bytes);
        (0..tracking).for_each(|_| self.ask(Asked::TrackAgain, None, end, 0));
        bytes.clear();
        let requests = self.subscriptions.put_again(&mut bytes);
        let end = send(&bytes);
        for (kind, frames) in requests {
            self.ask(Asked::Again(kind, frames), None, end, 0);
        }
        if self.monitoring {
            bytes.clear();
            put_request(&mut bytes, &[b"MONITOR"]);
            let end = send(&bytes);
            self.ask(Asked::MonitorAgain, None, end, 0);
        }
        // Last: it is said of what comes next. A subscriber of RESP2 may not say it, and is told of no key.
        bytes.clear();
        let comes = self.queue.is_some() || self.unsent.iter().any(|entry| entry.asked.consumes_caching());
        if self.resp3 && self.tracking.put_caching(comes, &mut bytes) {
            let end = send(&bytes);
            self.ask(Asked::TrackAgain, None, end, 0);
        }
    }
}
