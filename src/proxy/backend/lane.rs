//! A lane: one connection to Redis and everything in flight on it, shared by the sessions of a worker or, when
//! private, owned by one of them.
//!
//! ```text
//! session --append--> out --flush--> redis --replies--> scanner --> ledger --> session.fill --> window
//! ```
//! Invariant: `out[head..]` holds exactly the bytes of the ledger's entries. They are kept until they are answered,
//! not only until they are written, so that what was in flight on a lost lane can be told apart and sent again.
//!
//! At the first reply that proves that a command was refused, all of it becomes a [`Wreck`]: nothing more is written
//! or shown, and what Redis still answers is logged there, so that each session can be judged as a whole (rule A3).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::connect::{ConnectError, Login, connect};
use super::ledger::Ledger;
use super::wreck::{Frames, Wreck};
use crate::command::Table;
use crate::proxy::client::{RunId, Session};
use crate::proxy::wake::Wake;
use crate::proxy::worker::Worker;
use crate::resp::{Heed, ReplyScanner, Stop};
use crate::route::{Line, refusal};
use crate::topology::Addr;

/// Unanswered bytes above which a lane takes no more.
pub const UNANSWERED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Unwritten reply bytes of one client above which a lane stops reading for it.
const CLIENT_REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Capacity that an empty out buffer keeps.
const IDLE_CAPACITY_MAX: usize = 256 * 1024;

/// Why a lane ended.
#[derive(Debug, Error)]
pub enum LaneEnd {
    /// It never came to be.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Redis closed it.
    #[error("redis closed the connection")]
    Eof,
    /// The network failed.
    #[error("connection failed: {0}")]
    Network(#[from] io::Error),
    /// A byte came that no command asked for, or that is no RESP: never re-synchronised.
    #[error("unexpected bytes from redis")]
    Poisoned,
    /// Redis refused a command because of what it is now: a replica, or loading.
    #[error("redis refuses commands")]
    Refused,
    /// We need it no more.
    #[error("closed by pointsman")]
    Released,
}

/// One connection to Redis.
pub struct Lane {
    /// Unique within the worker.
    pub number: u32,
    /// Who it acts for.
    pub login: Login,
    wake: Wake,
    /// One session owns it: MULTI and blocking commands are at home here.
    private: Cell<bool>,
    released: Cell<bool>,
    abandoned: Cell<bool>,
    ended: Cell<bool>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    out: Vec<u8>,
    head: usize,
    written: usize,
    ledger: Ledger<Rc<Session>>,
    scanner: ReplyScanner,
    /// The client whose full buffer stops the reading.
    stuck_on: Option<Rc<Session>>,
    /// Sessions that wait for room.
    waiting: Vec<Rc<Session>>,
    /// What is written is not kept.
    streaming: bool,
    /// The replies to a block before that to its EXEC: if that refuses, the client must not have seen them (rule A4).
    queued: Vec<u8>,
    /// The beginning of a reply that may become a refusal, shorter than the longest of those.
    peeked: Vec<u8>,
    /// How many of the first entry's commands were stepped over in search of a refused one, and their bytes.
    stepped: (u32, usize),
    /// There since the first refusal.
    wreck: Option<Box<Wreck>>,
}

impl Lane {
    /// A lane that connects as soon as [`Lane::run`] is spawned; it takes commands at once.
    pub fn new(number: u32, login: Login) -> Rc<Self> {
        Rc::new(Self {
            number,
            login,
            wake: Wake::default(),
            private: Cell::new(false),
            released: Cell::new(false),
            abandoned: Cell::new(false),
            ended: Cell::new(false),
            state: RefCell::default(),
        })
    }

    /// Makes it one session's own.
    pub fn make_private(&self) {
        self.private.set(true);
    }

    /// Whether one session owns it, or did.
    pub fn is_private(&self) -> bool {
        self.private.get()
    }

    /// Whether its connection is gone: nothing that is appended would ever be answered.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        let state = self.state.borrow();
        state.out.len() - state.head < UNANSWERED_BYTES_MAX
    }

    /// Wakes `session` once there is room again.
    pub fn wait_for_room(&self, session: &Rc<Session>) {
        self.state.borrow_mut().waiting.push(session.clone());
    }

    /// Appends `count` whole requests; the flusher runs after all ready sessions of this turn.
    pub fn append(&self, session: &Rc<Session>, run: RunId, count: u32, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.out.extend_from_slice(bytes);
        state.ledger.push(session.clone(), run, count, bytes.len(), Rc::ptr_eq);
        self.wake.wake();
    }

    /// Appends a whole transaction of `count` commands, MULTI and EXEC included.
    pub fn append_block(&self, session: &Rc<Session>, run: RunId, count: u32, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.out.extend_from_slice(bytes);
        state.ledger.push_block(session.clone(), run, count, bytes.len());
        self.wake.wake();
    }

    /// Passes on a part of a request too large to be kept: it is dropped once written, and never sent again. The
    /// first part says whose it is. Only for private lanes with nothing else in flight.
    pub fn append_part(&self, first: Option<(&Rc<Session>, RunId)>, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        if let Some((session, run)) = first {
            state.ledger.push(session.clone(), run, 1, 0, |_, _| false);
            state.streaming = true;
        }
        state.out.extend_from_slice(bytes);
        self.wake.wake();
    }

    /// Ends the lane once nothing is in flight on it.
    pub fn release(&self) {
        self.released.set(true);
        self.wake.wake();
    }

    /// Ends the lane at once: its only owner is gone.
    pub fn abandon(&self) {
        self.abandoned.set(true);
        self.wake.wake();
    }

    /// Looks again whether reading may go on.
    pub fn nudge(&self) {
        self.wake.wake();
    }

    /// Lives until the connection ends, and then says why.
    pub async fn run(self: &Rc<Self>, worker: &Rc<Worker>, addr: &Addr) -> LaneEnd {
        let stream = match connect(addr, &self.login, worker.connect_timeout()).await {
            Ok(stream) => stream,
            Err(error) => return error.into(),
        };
        let (mut reader, writer) = stream.into_split();
        let end = std::future::poll_fn(|context| match self.poll(context, &mut reader, &writer, worker) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await;
        if self.state.borrow().wreck.is_some() {
            LaneEnd::Refused
        } else {
            end
        }
    }

    /// Takes everything unanswered out of a lane that ended.
    pub fn salvage(&self, commands: &Table) -> Wreck {
        self.ended.set(true);
        let mut state = self.state.borrow_mut();
        for session in std::mem::take(&mut state.waiting) {
            session.wake();
        }
        let kept_back = state.ledger.front_mut().is_some_and(|entry| entry.block);
        let shown_in_part = state.scanner.is_inside() && !kept_back && state.wreck.is_none();
        let mut wreck = state.take_wreck(self.private.get(), commands);
        if shown_in_part {
            wreck.interrupt();
        }
        wreck
    }

    fn poll(
        self: &Rc<Self>,
        context: &mut Context<'_>,
        reader: &mut OwnedReadHalf,
        writer: &OwnedWriteHalf,
        worker: &Rc<Worker>,
    ) -> Result<(), LaneEnd> {
        self.wake.listen(context);
        if self.abandoned.get() {
            return Err(LaneEnd::Released);
        }
        while self.may_read() {
            let mut scratch = worker.scratch();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *reader).poll_read(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(LaneEnd::Eof),
                Poll::Ready(Ok(())) => self.received(buffer.filled(), worker)?,
            }
            drop(scratch);
            worker.flush_dirty();
        }
        self.flush(context, writer)?;
        let state = self.state.borrow();
        if self.released.get() && state.ledger.is_empty() && state.wreck.is_none() {
            return Err(LaneEnd::Released);
        }
        Ok(())
    }

    fn may_read(self: &Rc<Self>) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(session) = &state.stuck_on else { return true };
        if !session.is_closed() && session.unwritten() > CLIENT_REPLY_BYTES_MAX / 2 {
            return false;
        }
        state.stuck_on = None;
        true
    }

    fn received(self: &Rc<Self>, bytes: &[u8], worker: &Rc<Worker>) -> Result<(), LaneEnd> {
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
            let Some(entry) = state.ledger.front_mut() else {
                return Err(LaneEnd::Poisoned);
            };
            if entry.block {
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
            let unwritten = entry
                .session
                .fill(entry.run, &rest[..scanned.used], scanned.replies, worker);
            if unwritten > CLIENT_REPLY_BYTES_MAX && state.stuck_on.is_none() {
                entry.session.stalls(self);
                worker.watch_slow_reader(&entry.session);
                state.stuck_on = Some(entry.session.clone());
            }
            at += scanned.used;
            state.pop_answered();
            match scanned.stop {
                Stop::Starved | Stop::Counted => {}
                Stop::Push | Stop::Malformed => return Err(LaneEnd::Poisoned),
                Stop::Noted => match state.judge(&bytes[at..], self.private.get(), worker.commands()) {
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

    /// Gives the client what was kept back of a block.
    fn show_queued(self: &Rc<Self>, state: &mut State, worker: &Rc<Worker>) {
        if let Some(entry) = state.ledger.front_mut() {
            entry.block = false;
            entry.session.fill(entry.run, &state.queued, entry.answered, worker);
        }
        state.queued = Vec::new();
    }

    /// Ends the lane's service at its first refusal.
    fn begin_wreck(self: &Rc<Self>, state: &mut State, worker: &Rc<Worker>) {
        let queued = std::mem::take(&mut state.queued);
        let mut wreck = state.take_wreck(self.private.get(), worker.commands());
        wreck.log(&queued);
        state.wreck = Some(Box::new(wreck));
        state.stuck_on = None;
        worker.lane_refused(self);
    }

    fn flush(&self, context: &mut Context<'_>, writer: &OwnedWriteHalf) -> Result<(), LaneEnd> {
        let mut state = self.state.borrow_mut();
        if state.wreck.is_some() {
            return Ok(());
        }
        while state.written < state.out.len() {
            match writer.try_write(&state.out[state.written..]) {
                Ok(count) => state.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if writer.as_ref().poll_write_ready(context)?.is_pending() {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if state.streaming {
            state.head = state.written;
            state.trim();
        }
        Ok(())
    }
}

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

impl State {
    /// Everything unanswered, behind what is a wreck already.
    fn take_wreck(&mut self, private: bool, commands: &Table) -> Wreck {
        let mut wreck = match self.wreck.take() {
            Some(wreck) => *wreck,
            None => Wreck::new(private),
        };
        let head = if self.streaming { self.out.len() } else { self.head };
        let written = self.written.saturating_sub(head);
        wreck.cut(self.ledger.take(), &self.out[head..], written, commands);
        self.out = Vec::new();
        (self.head, self.written) = (0, 0);
        wreck
    }

    /// Keeps the replies before EXEC's.
    fn keep_back(&mut self, bytes: &[u8]) -> KeptBack {
        let Some(entry) = self.ledger.front_mut() else {
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
        let Some(entry) = self.ledger.front_mut().filter(|_| !self.streaming) else {
            return Line::Answer;
        };
        let mut frames = Frames::default();
        loop {
            let begin = self.head + self.stepped.1;
            let Some((len, traits)) = frames.next(self.out.get(begin..).unwrap_or_default(), commands) else {
                return Line::Answer;
            };
            if self.stepped.0 >= entry.answered {
                return traits.line(bytes, b"", private);
            }
            self.stepped = (self.stepped.0 + 1, self.stepped.1 + len);
        }
    }

    fn pop_answered(&mut self) {
        let Some(bytes) = self.ledger.pop_answered() else {
            return;
        };
        self.stepped = (0, 0);
        if !self.streaming {
            self.head += bytes;
        }
    }

    /// Gives back what is answered, and tells who waits for room.
    fn trim(&mut self) {
        if self.head == self.out.len() {
            self.out.clear();
            self.out.shrink_to(IDLE_CAPACITY_MAX);
            (self.head, self.written) = (0, 0);
        } else if self.head > IDLE_CAPACITY_MAX {
            self.out.drain(..self.head);
            self.written -= self.head;
            self.head = 0;
        }
        if !self.waiting.is_empty() && self.out.len() - self.head < UNANSWERED_BYTES_MAX / 2 {
            for session in self.waiting.drain(..) {
                session.wake();
            }
        }
    }
}
