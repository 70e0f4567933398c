//! Replies that their sessions do not have yet, because replicas may lack what they show (design §8, rules A7 and R11).
//!
//! ```text
//! reply --needs_cover?--> entry.held --acknowledged--> session.fill
//!                              |
//!                              +-- not in time --> INDOUBT in place of what was written
//!                              '-- lane lost ----> Wreck: as if it had not come
//! ```
//! A held reply counts as unanswered wherever commands are in flight: its request is kept, its fences stay raised, its
//! client's window has room for so many. Invariant: what one session gets of a lane is in the order of the ledger.

use std::rc::Rc;

use super::lane::{CLIENT_REPLY_BYTES_MAX, Lane, State};
use super::ledger::{Cover, Entry};
use super::wreck::Frames;
use crate::clock;
use crate::proxy::client::{CloseReason, RunId, Session};
use crate::proxy::shard::Ticket;
use crate::proxy::worker::Worker;
use crate::resp::{Heed, ReplyScanner};
use crate::route::FenceLog;

/// Held reply bytes above which a lane reads no more.
const HELD_BYTES_MAX: usize = 1024 * 1024;

/// Reply bytes that came in one go.
#[derive(Debug)]
pub struct Chunk {
    ticket: Ticket,
    since_ms: u64,
    bytes: Vec<u8>,
    /// Replies that end within them.
    replies: u32,
    /// Whether a reply begins within them and does not end.
    ends_inside: bool,
}

/// What a lane holds; there for a master whose writes are acknowledged.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: usize,
    /// Chunks, and how many of them answer something that may have changed something.
    chunks: usize,
    writes: usize,
    /// The fences of what was in flight when it was lost.
    pub fences: Option<FenceLog>,
}

impl Held {
    /// Whether no more is to be read.
    pub fn is_full(&self) -> bool {
        self.bytes > HELD_BYTES_MAX
    }

    /// Whether the reply to something that may have changed something is held.
    pub fn has_writes(&self) -> bool {
        self.writes > 0
    }

    /// The lane is gone that these fences are of.
    pub fn lose(&mut self, fences: FenceLog) {
        match &mut self.fences {
            Some(lost) => lost.absorb(fences),
            None => self.fences = Some(fences),
        }
    }

    fn adds(&mut self, chunk: &Chunk, cover: Cover) {
        self.bytes += chunk.bytes.len();
        self.chunks += 1;
        self.writes += usize::from(cover == Cover::Needed);
    }

    /// Nothing is held any more.
    pub fn clear(&mut self) {
        (self.bytes, self.chunks, self.writes) = (0, 0, 0);
    }

    fn drops(&mut self, chunk: &Chunk, cover: Cover) {
        self.bytes -= chunk.bytes.len();
        self.chunks -= 1;
        self.writes -= usize::from(cover == Cover::Needed);
    }
}

impl Lane {
    /// Holds reply bytes of the entry that is answered next, if they need an acknowledgement or stand behind some that
    /// do. `false`: they may be shown.
    pub(super) fn hold_back(
        self: &Rc<Self>,
        state: &mut State,
        bytes: &[u8],
        replies: u32,
        worker: &Rc<Worker>,
    ) -> bool {
        if state.held.is_none() || !state.needs_cover(self) {
            return false;
        }
        let ends_inside = state.scanner.is_inside();
        let (Some(held), Some(entry)) = (&mut state.held, state.ledger.next_mut()) else {
            return false;
        };
        // Without a connection that was open before this came, nothing can vouch for it (rule R11).
        let ticket = self.shard.ticket(&self.target);
        let chunk = Chunk {
            ticket: ticket.unwrap_or(Ticket::NEVER),
            since_ms: if ticket.is_some() { clock::monotonic_ms() } else { 0 },
            bytes: bytes.to_vec(),
            replies,
            ends_inside,
        };
        if held.chunks == 0 || ticket.is_none() {
            self.shard.holds(worker, self, ticket.is_some());
        }
        held.adds(&chunk, entry.cover);
        entry.session.is_held(true);
        entry.held.push(chunk);
        true
    }

    /// Gives out what is acknowledged with `upto`. Says whether something is still held.
    pub fn acknowledged(self: &Rc<Self>, upto: Ticket, worker: &Worker) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        while let (Some(held), Some(first)) = (&mut state.held, state.ledger.first_mut()) {
            let covered = first.held.iter().take_while(|chunk| chunk.ticket <= upto).count();
            if covered == 0 {
                break;
            }
            let chunks: Vec<Chunk> = first.held.drain(..covered).collect();
            for chunk in &chunks {
                held.drops(chunk, first.cover);
                first.released += chunk.replies;
                first.cut = chunk.ends_inside;
            }
            let (session, run) = (first.session.clone(), first.run);
            state.pop_released();
            for chunk in chunks {
                session.is_held(false);
                self.show(state, &session, run, &chunk.bytes, chunk.replies, worker);
            }
        }
        self.held_less(state)
    }

    /// Puts in doubt what has been held since before `until_ms`: `counted` of `wanted` replicas have it, as far as is
    /// known. Says whether something is still held.
    pub fn not_acknowledged(self: &Rc<Self>, until_ms: u64, counted: u32, wanted: u32, worker: &Worker) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        loop {
            let begin = state.head;
            let (Some(held), Some(first)) = (&mut state.held, state.ledger.first_mut()) else {
                break;
            };
            let late = first.late(until_ms);
            if late == 0 {
                break;
            }
            let chunks: Vec<Chunk> = first.held.drain(..late).collect();
            let (mut bytes, mut replies) = (Vec::new(), 0);
            for chunk in &chunks {
                held.drops(chunk, first.cover);
                bytes.extend_from_slice(&chunk.bytes);
                replies += chunk.replies;
            }
            let (session, run) = (first.session.clone(), first.run);
            let ends_inside = chunks.last().is_some_and(|chunk| chunk.ends_inside);
            let doubts = if first.cut || ends_inside {
                // What was shown, or will come, of a reply cannot be taken back.
                session.close(CloseReason::ReplyCutOff);
                Vec::new()
            } else {
                let requests = state.out.get(begin..).unwrap_or_default();
                in_doubt(first, requests, &bytes, (counted, wanted), worker)
            };
            first.cut = ends_inside;
            first.released += replies;
            first.settled += replies;
            let aside = state.fences.as_mut().and_then(|fences| fences.set_aside(replies));
            self.shard.doubts(aside);
            state.pop_released();
            chunks.iter().for_each(|_| session.is_held(false));
            self.show(state, &session, run, &doubts, replies, worker);
        }
        self.held_less(state)
    }

    /// Gives a session reply bytes. Those of a client that does not take them keep the lane from reading on.
    pub(super) fn show(
        self: &Rc<Self>,
        state: &mut State,
        session: &Rc<Session>,
        run: RunId,
        bytes: &[u8],
        replies: u32,
        worker: &Worker,
    ) {
        let unwritten = session.fill(run, bytes, replies, worker);
        if unwritten > CLIENT_REPLY_BYTES_MAX && state.stuck_on.is_none() {
            session.stalls(self);
            worker.watch_slow_reader(session);
            state.stuck_on = Some(session.clone());
        }
    }

    fn held_less(&self, state: &mut State) -> bool {
        state.trim();
        // It may read on, or end.
        self.nudge();
        state.held.as_ref().is_some_and(|held| held.chunks > 0)
    }
}

impl State {
    /// Whether the next reply bytes have to wait.
    fn needs_cover(&mut self, lane: &Lane) -> bool {
        let begin = self.head + self.ledger.before_next();
        let Some(entry) = self.ledger.next_mut() else {
            return false;
        };
        let looks = || {
            let requests = self.out.get(begin..begin + entry.bytes).unwrap_or_default();
            entry.session.shows_unacknowledged(requests, &lane.shard)
        };
        match entry.cover {
            Cover::Needed => true,
            _ if entry.session.holds() => true,
            Cover::Looked => looks(),
            Cover::Needless => false,
        }
    }

    /// Drops entries whose sessions have all replies, and tells the fences first (rule A9).
    pub(super) fn pop_released(&mut self) {
        loop {
            if self.held.is_some()
                && let Some(first) = self.ledger.first_mut()
                && first.released > first.settled
            {
                if let Some(fences) = &mut self.fences {
                    fences.answered(first.released - first.settled);
                }
                first.settled = first.released;
            }
            let Some((bytes, was_next)) = self.ledger.pop_released() else {
                return;
            };
            if was_next {
                self.next_entry();
            }
            if !self.streaming {
                self.head += bytes;
            }
        }
    }
}

impl<S> Entry<S> {
    /// How many of the first chunks have been held since before `until_ms`; they end with a reply, if one has ended.
    fn late(&self, until_ms: u64) -> usize {
        let late = self.held.iter().take_while(|chunk| chunk.since_ms < until_ms).count();
        if late == 0 {
            return 0;
        }
        let whole = self.held[late - 1..].iter().position(|chunk| !chunk.ends_inside);
        whole.map_or(self.held.len(), |more| late + more)
    }
}

/// The replies `bytes` to the entry's next commands as a client may see them although they are not acknowledged.
/// `requests` begins with the entry's first one.
fn in_doubt<S>(entry: &Entry<S>, requests: &[u8], bytes: &[u8], counts: (u32, u32), worker: &Worker) -> Vec<u8> {
    let (mut frames, mut at) = (Frames::default(), 0);
    let requests = requests.get(..entry.bytes).unwrap_or_default();
    let mut next = || {
        let found = frames.next(requests.get(at..).unwrap_or_default(), worker.commands());
        at += found.map_or(0, |(len, _)| len);
        found.map(|(_, traits)| traits)
    };
    for _ in 0..entry.released {
        next();
    }
    let (mut scanner, mut shown, mut from) = (ReplyScanner::default(), Vec::new(), 0);
    while from < bytes.len() {
        let rest = &bytes[from..];
        let reply = &rest[..scanner.scan(rest, 1, Heed::Nothing).used.max(1)];
        from += reply.len();
        let traits = next();
        if reply == b"+QUEUED\r\n" || traits.is_some_and(|traits| traits.changed_nothing(reply)) {
            shown.extend_from_slice(reply);
            continue;
        }
        let writes = traits.is_none_or(|traits| traits.writes());
        shown.extend_from_slice(doubt_line(writes, counts).as_bytes());
    }
    shown
}

/// What a client is told in place of a reply to what may have changed something, or only read, while `k` of `w` replicas
/// have what it shows (design §8).
pub fn doubt_line(writes: bool, (k, w): (u32, u32)) -> String {
    let what = if writes {
        "written on the master,"
    } else {
        "read on the master, what it shows is"
    };
    format!("-INDOUBT {what} acknowledged by {k} of {w} replicas\r\n")
}
