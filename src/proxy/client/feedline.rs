//! What is in flight on a connection that speaks without being asked, and what each frame on it means.
//!
//! ```text
//! request --ask--> asked (in order)          redis --take--> frames --> Shown::Reply | Shown::Push --> client
//! ```
//! Pure. Frames are judged one by one: a message answers nothing, a confirmation answers a part of the oldest request,
//! everything else answers it whole (rule A1: one reply per command does not hold here). Invariant: a frame that fits
//! `FRAME_BYTES_MAX` is shown whole or not at all, so that a lost connection costs the client none of its own.

use std::collections::VecDeque;

use super::exec_frames::ExecFrames;
use super::queue::Queue;
use super::subscriptions::{Family, Subscriptions, Verb};
use super::tracking::{Tracking, Word};
use super::window::RunId;
use crate::proxy::backend::{Role, put_request};
use crate::resp::{Heed, ReplyScanner, Stop};
use asked::Entry;
pub(super) use asked::{Asked, POISON, Plain};
pub(super) use changes::Change;
use changes::Exec;
use flight::Flight;
pub(super) use frames::words;
use frames::{Meaning, is_monitor_line, is_own_line};

/// A longer frame is passed on in parts. Every confirmation is shorter, because names are.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// What a client gets to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown<'b> {
    /// Bytes that complete a reply.
    Reply(RunId, &'b [u8]),
    /// A part of a reply too long to be shown at once.
    Part(RunId, &'b [u8]),
    /// Bytes that complete none.
    Push(&'b [u8]),
    /// A message too long to be shown at once begins: nothing of our own may be said until it ends.
    Begins,
    /// It ended.
    Ends,
}

/// Why a connection cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Bytes that nothing explains: never re-synchronised.
    Poisoned,
    /// It is no master any more, and has not executed what it was asked.
    Demoted,
    /// Redis refuses what brings the connection to where the session is.
    Refused(String),
}

/// What a lost connection leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// These are answered so; everything else waits for the next connection.
    Answers(Vec<(RunId, Vec<u8>)>),
    /// Half of a frame was shown: nothing true can follow.
    CutOff,
    /// A transaction was open, and cannot be brought to another connection.
    Transaction,
}

/// The conversation on one session's connection, which outlives a lost one.
#[derive(Debug, Default)]
pub(super) struct FeedLine {
    pub subscriptions: Subscriptions,
    /// Which keys Redis tells the client of.
    pub tracking: Tracking,
    /// Other clients redirect to this one.
    pub redirected: bool,
    /// MULTI was asked for, and neither EXEC nor DISCARD.
    pub multi: bool,
    /// WATCH was asked for, and nothing that ends it.
    pub watch: bool,
    /// What was watched may have changed unseen: EXEC has to do nothing.
    pub stale: bool,
    /// What was answered since MULTI.
    queue: Option<Box<Queue>>,
    monitoring: bool,
    resp3: bool,
    /// Sent, in this order.
    asked: Flight,
    /// Behind those, what the server at the other end must not get before it is master.
    unsent: VecDeque<Entry>,
    /// The marker was answered: what this connection says is of no more interest.
    drained: bool,
    unanswered_bytes: usize,
    scanner: ReplyScanner,
    /// A frame that is not whole.
    partial: Vec<u8>,
    flow: Flow,
    /// What the requests since MULTI will change with EXEC.
    changes: VecDeque<(u32, Change)>,
    /// The reply to such an EXEC is coming.
    exec: Option<Exec>,
    /// How its frames will be told apart.
    frames: ExecFrames,
    /// What is taken in was not acknowledged in time: so many replicas have it, of so many.
    doubt: Option<(u32, u32)>,
}

/// Whether a frame is being passed on in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    None,
    Reply,
    Push,
}

impl FeedLine {
    /// Whether the client needs no connection of its own any more.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty()
            && self.unsent.is_empty()
            && self.subscriptions.is_empty()
            && !self.tracking.is_on()
            && !self.redirected
            && !(self.monitoring || self.multi || self.watch)
            && self.flow == Flow::None
    }

    /// Whether the client hears what it did not ask for, in any amount.
    pub(super) fn is_listening(&self) -> bool {
        self.monitoring || !self.subscriptions.is_empty()
    }

    /// Whether a request that blocks is in flight.
    pub(super) fn blocks(&self) -> bool {
        self.asked.blocks()
    }

    /// How many requests are queued since MULTI.
    pub(super) fn queued(&self) -> Option<usize> {
        let queue = self.queue.as_ref().filter(|_| self.multi);
        queue.map(|queue| queue.len().saturating_sub(1))
    }

    /// Whether everything is subscribed again after a loss.
    pub(super) fn is_caught_up(&self) -> bool {
        !self.asked.has_ours()
    }

    /// Whether something waits for the server to become master.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether everything that came before the marker was heard.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Whether MONITOR was confirmed.
    pub(super) fn is_monitoring(&self) -> bool {
        self.monitoring
    }

    /// Whether a MONITOR waits for its confirmation.
    pub(super) fn awaits_monitor(&self) -> bool {
        let mut all = self.asked.iter().chain(&self.unsent);
        all.any(|entry| matches!(entry.asked, Asked::Monitor))
    }

    /// Bytes of requests that are not answered.
    pub(super) fn unanswered_bytes(&self) -> usize {
        self.unanswered_bytes
    }

    /// Notes a request of `bytes` bytes that was sent; `end` as [`Tap::send`](crate::proxy::backend::Tap::send) said.
    pub(super) fn ask(&mut self, asked: Asked, run: Option<RunId>, end: u64, bytes: usize) {
        self.unanswered_bytes += bytes;
        self.note(&asked);
        self.asked.push(Entry { asked, run, end, bytes });
    }

    /// More comes of the last request: until [it ends](Self::ends_at), Redis does not run it.
    pub(super) fn goes_on(&mut self) {
        self.ends_at(u64::MAX);
    }

    /// The last request, which came in parts, is sent; `end` as for [`FeedLine::ask`].
    pub(super) fn ends_at(&mut self, end: u64) {
        self.asked.ends_at(end);
    }

    fn note(&mut self, asked: &Asked) {
        let speaks = matches!(asked, Asked::Tracking(Word::Caching(_), _));
        if speaks || asked.consumes_caching() {
            self.tracking.asked(speaks);
        }
    }

    /// Asks for what Redis refuses by the number of its arguments, in any mode, without a line to those who monitor.
    pub(super) fn ask_nothing(&mut self, asked: Asked, mut send: impl FnMut(&[u8]) -> u64) {
        let mut bytes = Vec::new();
        put_request(&mut bytes, &[b"GET"]);
        let end = send(&bytes);
        self.ask(asked, None, end, 0);
    }

    /// Whether something may change because of what was sent. What stands behind a request that blocks has not begun.
    pub(super) fn writes(&self) -> bool {
        self.asked.writes()
    }

    /// EXEC or DISCARD was asked for.
    pub(super) fn end_transaction(&mut self) {
        (self.multi, self.watch, self.stale) = (false, false, false);
    }

    /// Whether the reply to something that was sent may show data: that to a write, or to what `shows` says it of.
    pub(super) fn awaits_data(&self, shows: impl Fn(&[u8]) -> bool) -> bool {
        self.asked.iter().any(|entry| entry.asked.shows_data(&shows))
    }

    /// Notes a request that is sent once the server at the other end is master.
    pub(super) fn ask_later(&mut self, asked: Asked, run: RunId, bytes: usize) {
        self.unanswered_bytes += bytes;
        self.note(&asked);
        self.unsent.push_back(Entry {
            asked,
            run: Some(run),
            end: u64::MAX,
            bytes,
        });
    }

    /// How many requests of the client are unanswered.
    pub(super) fn awaited(&self) -> u32 {
        let all = self.asked.iter().chain(&self.unsent);
        let awaited = all.filter(|entry| entry.run.is_some()).count();
        u32::try_from(awaited).unwrap_or(u32::MAX)
    }

    /// Takes what Redis sent and too few replicas acknowledged, `doubt.0` of `doubt.1`: as it is but for replies that may
    /// show what can be lost.
    pub(super) fn take_in_doubt(
        &mut self,
        bytes: &[u8],
        doubt: (u32, u32),
        show: &mut impl FnMut(Shown),
    ) -> Result<(), Trouble> {
        self.doubt = Some(doubt);
        let taken = self.take(bytes, show);
        self.doubt = None;
        taken
    }

    /// Whether a part of a reply was shown and its rest was not, which nothing but that can follow.
    pub(super) fn is_inside_reply(&self) -> bool {
        self.flow == Flow::Reply
    }

    /// Takes what Redis sent.
    pub(super) fn take(&mut self, bytes: &[u8], show: &mut impl FnMut(Shown)) -> Result<(), Trouble> {
        let mut at = 0;
        while at < bytes.len() && !self.drained {
            let rest = &bytes[at..];
            let (used, whole) = self.scan(rest)?;
            let exec = self.exec.take_if(|_| whole).is_some();
            at += used;
            let part = &rest[..used];
            if self.flow != Flow::None {
                self.flow_on(part, whole, show);
            } else if whole && self.partial.is_empty() {
                self.frame(part, exec, show)?;
            } else {
                let mut frame = std::mem::take(&mut self.partial);
                frame.extend_from_slice(part);
                if whole {
                    self.frame(&frame, exec, show)?;
                } else if frame.len() > FRAME_BYTES_MAX && self.doubt.is_none() {
                    self.begin_flow(&frame, show)?;
                } else {
                    self.partial = frame;
                }
            }
        }
        Ok(())
    }

    /// How many bytes belong to the frame at the front, and whether they end it.
    fn scan(&mut self, bytes: &[u8]) -> Result<(usize, bool), Trouble> {
        let begins = !self.scanner.is_inside();
        if self.exec.is_some() || (begins && self.begins_exec(bytes)) {
            return self.scan_exec(bytes).ok_or(Trouble::Poisoned);
        }
        let skipped = usize::from(begins && bytes.first() == Some(&b'>'));
        if skipped == 1 {
            // A frame like any other here: it is counted as the array that it is.
            self.scanner.scan(b"*", 1, Heed::Nothing);
        }
        let scanned = self.scanner.scan(&bytes[skipped..], 1, Heed::Nothing);
        match scanned.stop {
            Stop::Counted => Ok((skipped + scanned.used, true)),
            Stop::Starved => Ok((skipped + scanned.used, scanned.replies == 1)),
            Stop::Noted | Stop::Push | Stop::Malformed => Err(Trouble::Poisoned),
        }
    }

    fn begin_flow(&mut self, part: &[u8], show: &mut impl FnMut(Shown)) -> Result<(), Trouble> {
        match (self.meaning(part), self.asked.front().map(|entry| &entry.asked)) {
            (Meaning::Message, _) if self.exec.is_none() => {
                self.flow = Flow::Push;
                show(Shown::Begins);
            }
            (Meaning::Reply, Some(Asked::Plain(_))) => self.flow = Flow::Reply,
            _ if self.exec.is_some() => self.flow = Flow::Reply,
            (Meaning::Reply | Meaning::Confirms(_) | Meaning::Message, _) => return Err(Trouble::Poisoned),
        }
        self.show_part(part, show);
        Ok(())
    }

    fn show_part(&self, part: &[u8], show: &mut impl FnMut(Shown)) {
        let run = self.asked.front().and_then(|entry| entry.run);
        match run.filter(|_| self.flow == Flow::Reply) {
            Some(run) => show(Shown::Part(run, part)),
            None => show(Shown::Push(part)),
        }
    }

    fn flow_on(&mut self, part: &[u8], whole: bool, show: &mut impl FnMut(Shown)) {
        self.show_part(part, show);
        if !whole {
            return;
        }
        match std::mem::take(&mut self.flow) {
            Flow::Reply => self.answered(b"", show),
            Flow::Push => show(Shown::Ends),
            Flow::None => {}
        }
    }

    fn frame(&mut self, frame: &[u8], exec: bool, show: &mut impl FnMut(Shown)) -> Result<(), Trouble> {
        match self.meaning(frame) {
            _ if exec => return self.reply(frame, show),
            Meaning::Message if frame.starts_with(b"+") && is_own_line(frame) => {}
            Meaning::Message => show(Shown::Push(frame)),
            Meaning::Confirms(family) => self.confirmed(family, frame, show),
            Meaning::Reply => return self.reply(frame, show),
        }
        Ok(())
    }

    fn meaning(&self, frame: &[u8]) -> Meaning {
        match frame.first() {
            Some(b'>') => words(frame)
                .next()
                .and_then(Family::of)
                .map_or(Meaning::Message, Meaning::Confirms),
            Some(b'*') if !self.resp3 => match words(frame).next() {
                Some(b"message" | b"pmessage" | b"smessage") => Meaning::Message,
                Some(word) => Family::of(word).map_or(Meaning::Reply, Meaning::Confirms),
                None => Meaning::Reply,
            },
            Some(b'+') if self.monitoring && is_monitor_line(&frame[1..]) => Meaning::Message,
            _ => Meaning::Reply,
        }
    }

    fn confirmed(&mut self, family: Family, frame: &[u8], show: &mut impl FnMut(Shown)) {
        let Self {
            asked, subscriptions, ..
        } = self;
        let done = match asked.front_mut().map(|entry| &mut entry.asked) {
            Some(Asked::Names(wanted, names)) if *wanted == family => {
                let name = names.pop_front().unwrap_or_default();
                match family.verb {
                    Verb::Subscribe => subscriptions.add(family.kind, name),
                    Verb::Unsubscribe => subscriptions.remove(family.kind, &name),
                }
                names.is_empty()
            }
            Some(Asked::All(kind)) if family.verb == Verb::Unsubscribe && *kind == family.kind => {
                if let Some(name) = words(frame).nth(1) {
                    subscriptions.remove(family.kind, name);
                }
                subscriptions.has_none(family.kind)
            }
            Some(Asked::Again(kind, frames)) if family.verb == Verb::Subscribe && *kind == family.kind => {
                *frames -= 1;
                if *frames == 0 {
                    self.pop();
                }
                return;
            }
            _ => {
                // Redis takes subscriptions away unasked, too.
                if let (Verb::Unsubscribe, Some(name)) = (family.verb, words(frame).nth(1)) {
                    subscriptions.remove(family.kind, name);
                }
                false
            }
        };
        if done {
            self.answered(frame, show);
        } else {
            show(Shown::Push(frame));
        }
    }

    fn reply(&mut self, frame: &[u8], show: &mut impl FnMut(Shown)) -> Result<(), Trouble> {
        let is_error = matches!(frame.first(), Some(b'-' | b'!'));
        let refused = || Trouble::Refused(String::from_utf8_lossy(frame).trim_end().to_owned());
        match self.asked.front_mut().map(|entry| &mut entry.asked) {
            None => return Err(Trouble::Poisoned),
            Some(Asked::Plain(plain)) if plain.is_refused(frame) => {
                if let Some(entry) = self.asked.front_mut() {
                    entry.end = u64::MAX;
                }
                return Err(Trouble::Demoted);
            }
            Some(Asked::Marker) => {
                self.pop();
                self.drained = true;
                return Ok(());
            }
            Some(Asked::Again(..) | Asked::MonitorAgain | Asked::TrackAgain | Asked::Silent | Asked::Hello { .. })
                if is_error =>
            {
                return Err(refused());
            }
            Some(Asked::Again(..)) => return Err(Trouble::Poisoned),
            Some(Asked::MonitorAgain | Asked::Silent | Asked::Idle) => {
                self.pop();
                return Ok(());
            }
            Some(Asked::TrackAgain) => {
                self.pop();
                self.tracking.lives_again();
                return Ok(());
            }
            Some(Asked::Tracking(word, _)) => {
                if frame == b"+OK\r\n" {
                    self.tracking.confirmed(std::mem::replace(word, Word::Asks));
                }
            }
            Some(Asked::Hello { greeting, resp3 }) => {
                self.resp3 = *resp3;
                let greeting = std::mem::take(greeting);
                self.answered(&greeting, show);
                return Ok(());
            }
            Some(Asked::Queue(replies, _)) => {
                *replies -= 1;
                if *replies == 0 {
                    self.pop();
                }
                return Ok(());
            }
            Some(Asked::Poison(line)) => {
                let line = std::mem::take(line);
                let mut poison = Vec::new();
                put_request(&mut poison, &POISON);
                self.queue_answered(&poison);
                self.answered(&line, show);
                return Ok(());
            }
            Some(Asked::Discard(line)) => {
                let line = *line;
                self.queue = None;
                self.forget_changes();
                self.answered(line, show);
                return Ok(());
            }
            Some(Asked::Names(family, names)) => {
                if family.verb == Verb::Subscribe {
                    names.iter().for_each(|name| self.subscriptions.forget(name));
                }
            }
            Some(Asked::Monitor) => self.monitoring |= !is_error,
            Some(Asked::Plain(plain)) if plain.queued => {
                let bytes = std::mem::take(&mut plain.bytes);
                if plain.role == Role::Multi && self.queue.is_none() {
                    self.queue = Some(Queue::begin(&bytes, false));
                } else {
                    self.queue_answered(&bytes);
                }
            }
            Some(Asked::Plain(plain)) => {
                if matches!(plain.role, Role::Exec | Role::Discard) {
                    self.queue = None;
                    self.forget_changes();
                }
            }
            Some(Asked::All(_)) => {}
        }
        self.answered(frame, show);
        Ok(())
    }

    fn queue_answered(&mut self, request: &[u8]) {
        if let Some(queue) = &mut self.queue {
            if request.is_empty() {
                queue.forget();
            } else {
                queue.add(request);
            }
        }
    }

    /// The oldest request is done.
    fn answered(&mut self, bytes: &[u8], show: &mut impl FnMut(Shown)) {
        let asked = self.asked.front().map(|entry| &entry.asked);
        let doubtful = asked.and_then(|asked| asked.doubtful(bytes, self.doubt?));
        match self.pop() {
            Some(run) => show(Shown::Reply(run, doubtful.as_deref().unwrap_or(bytes))),
            None => show(Shown::Push(bytes)),
        }
    }

    fn pop(&mut self) -> Option<RunId> {
        let entry = self.asked.pop()?;
        self.unanswered_bytes -= entry.bytes;
        if entry.asked.consumes_caching() {
            self.tracking.consumed();
        }
        entry.run
    }
}

mod asked;
mod changes;
mod flight;
mod frames;
mod renewal;
#[cfg(test)]
mod tests;
