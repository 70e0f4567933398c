//! A lane: one connection to Redis and everything in flight on it, shared by the sessions of a worker or, when
//! private, owned by one of them.
//!
//! ```text
//! session --append--> out --flush--> redis --replies--> scanner --> ledger --> session.fill --> window
//! ```
//! Invariant: `out[head..]` holds exactly the bytes of the ledger's entries. They are kept until they are answered and
//! their sessions have the replies, not only until they are written, so that what was in flight on a lost lane can be
//! told apart and sent again.
//!
//! At the first reply that proves that a command was refused, all of it becomes a [`Wreck`]: nothing more is written
//! or shown, and what Redis still answers is logged there, so that each session can be judged as a whole (rule A3).

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::connect::{ConnectError, Login, connect, connect_to, identify_replica, silence};
use super::held::Held;
use super::ledger::{Cover, Ledger};
use super::life::Life;
use super::target::Target;
use super::wreck::{Traits, Wreck};
use crate::clock;
use crate::command::Table;
use crate::proxy::client::{RunId, Session};
use crate::proxy::shard::Shard;
use crate::proxy::shared::{Bond, ReplicaFacts};
use crate::proxy::wake::Wake;
use crate::proxy::worker::Worker;
use crate::resp::ReplyScanner;
use crate::route::{FenceLog, Footprint, Standing};

/// Unanswered bytes above which a lane takes no more.
pub const UNANSWERED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Unwritten reply bytes of one client above which a lane stops reading for it.
pub const CLIENT_REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Capacity that an empty out buffer keeps.
pub(super) const IDLE_CAPACITY_MAX: usize = 256 * 1024;

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
    /// The server is not what it was in this lane's epoch.
    #[error("the server is of this epoch no more")]
    Deposed,
}

/// One connection to Redis.
pub struct Lane {
    /// Unique within the worker.
    pub number: u32,
    /// Who it acts for.
    pub login: Login,
    /// The shard it belongs to.
    pub shard: Rc<Shard>,
    /// The server at its other end.
    pub target: Rc<Target>,
    /// For a lane to a replica: what is known of it.
    reader: Option<Reader>,
    wake: Wake,
    /// One session owns it: MULTI and blocking commands are at home here.
    private: Cell<bool>,
    released: Cell<bool>,
    abandoned: Cell<bool>,
    /// The server is fenced: nothing more is written, and what it still answers is judged as a whole.
    deposed: Cell<bool>,
    ended: Cell<bool>,
    /// Who gets the connection when the lane ends with nothing in flight.
    heir: RefCell<Option<oneshot::Sender<TcpStream>>>,
    /// It is opened before its target is master: what proves the epoch comes by another connection.
    ahead: Cell<bool>,
    /// Commands appended so far, and how many there were with the last one that may change something.
    appended: Cell<u64>,
    last_write: Cell<u64>,
    /// Our end of the connection, by which Redis knows it.
    local: Cell<Option<SocketAddr>>,
    /// Which life of a master is at its other end.
    pub(super) life: Life,
    /// Replies that came, and how many had come at the last look at the pace.
    pub(super) answered: Cell<u64>,
    /// Times that bytes came.
    pub(super) heard: Cell<u64>,
    looked_at: Cell<Option<(u64, u64)>>,
    /// Looks in a row that found it unused, and the replies at the last of them.
    idle: Cell<(u32, u64)>,
    pub(super) state: RefCell<State>,
}

/// The replica at the other end of a lane, and how it relates to what the sampler knows.
struct Reader {
    facts: Arc<ReplicaFacts>,
    /// Made once the connection has proven whom it leads to (rule A11).
    bond: OnceCell<Bond>,
}

/// What a lane is for.
pub enum Purpose {
    /// Everything, to a master. Its writes raise fences if somebody reads from replicas.
    Master(Option<FenceLog>),
    /// Reads, to the replica that these facts are about.
    Replica(Arc<ReplicaFacts>),
}

impl LaneEnd {
    /// How long nothing was heard when that is why it ended, in milliseconds; `limit` is that of opening a connection.
    pub fn silent_ms(&self, limit: Duration) -> u64 {
        match self {
            Self::Network(error) if error.kind() == io::ErrorKind::TimedOut => {
                u64::try_from(silence(limit).as_millis()).unwrap_or(u64::MAX)
            }
            Self::Connect(ConnectError::Silent(..)) => u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            _ => 0,
        }
    }
}

/// Whether a lane gets on, from one look to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is in flight.
    Idle,
    /// Replies come.
    Walking,
    /// Something is in flight since the last look, and no reply ended meanwhile.
    Stalled,
    /// The same, and not a byte came, although nobody kept us from reading.
    Silent,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) out: Vec<u8>,
    pub(super) head: usize,
    pub(super) written: usize,
    pub(super) ledger: Ledger<Rc<Session>>,
    pub(super) scanner: ReplyScanner,
    /// The client whose full buffer stops the reading.
    pub(super) stuck_on: Option<Rc<Session>>,
    /// Sessions that wait for room.
    pub(super) waiting: Vec<Rc<Session>>,
    /// What is written is not kept.
    pub(super) streaming: bool,
    /// The fences that the unanswered writes hold raised.
    pub(super) fences: Option<FenceLog>,
    /// Replies that wait until replicas have what they show; `None` if none has to.
    pub(super) held: Option<Held>,
    /// The first unanswered command, if it is one whose bytes were not kept.
    pub(super) streamed: Option<Traits>,
    /// The replies to a block before that to its EXEC: if that refuses, the client must not have seen them (rule A4).
    pub(super) queued: Vec<u8>,
    /// The beginning of a reply that may become a refusal, shorter than the longest of those.
    pub(super) peeked: Vec<u8>,
    /// How many of the first entry's commands were stepped over in search of a refused one, and their bytes.
    pub(super) stepped: (u32, usize),
    /// When the first unanswered command's turn came, on a private lane: it may be one that blocks.
    pub(super) front_since_ms: u64,
    /// There since the first refusal.
    pub(super) wreck: Option<Box<Wreck>>,
}

impl Lane {
    /// A lane that connects as soon as [`Lane::run`] is spawned; it takes commands at once.
    pub fn new(number: u32, login: Login, shard: Rc<Shard>, target: Rc<Target>, purpose: Purpose) -> Rc<Self> {
        let (fences, reader) = match purpose {
            Purpose::Master(fences) => (fences, None),
            Purpose::Replica(facts) => (None, Some(facts)),
        };
        let held = (target.acks > 0 && reader.is_none()).then(Held::default);
        Rc::new(Self {
            number,
            login,
            shard,
            target,
            reader: reader.map(|facts| Reader {
                facts,
                bond: OnceCell::new(),
            }),
            wake: Wake::default(),
            private: Cell::new(false),
            released: Cell::new(false),
            abandoned: Cell::new(false),
            deposed: Cell::new(false),
            ended: Cell::new(false),
            heir: RefCell::new(None),
            ahead: Cell::new(false),
            appended: Cell::new(0),
            last_write: Cell::new(0),
            local: Cell::new(None),
            life: Life::default(),
            answered: Cell::new(0),
            heard: Cell::new(0),
            looked_at: Cell::new(None),
            idle: Cell::new((0, 0)),
            state: RefCell::new(State {
                fences,
                held,
                ..State::default()
            }),
        })
    }

    /// Makes it one session's own.
    pub fn make_private(&self) {
        self.private.set(true);
    }

    /// Opens it without asking whether its target is master yet. To be called before it runs.
    pub fn go_ahead(&self) {
        self.ahead.set(true);
    }

    /// Whether one session owns it, or did.
    pub fn is_private(&self) -> bool {
        self.private.get()
    }

    /// Whether its connection is gone: nothing that is appended would ever be answered.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Our end of the connection, once there is one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local.get()
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

    /// Whether it leads to a replica.
    pub fn is_reader(&self) -> bool {
        self.reader.is_some()
    }

    /// What is known of the replica at its other end; nothing before it is connected, or if it is no replica.
    pub fn standing(&self) -> Standing {
        let bond = self.reader.as_ref().and_then(|reader| reader.bond.get());
        bond.map_or(Standing::NONE, Bond::standing)
    }

    /// Appends `count` whole requests, whose writes are in `footprint`; the flusher runs after all ready sessions of
    /// this turn. `cover` says what their replies wait for, where writes are acknowledged.
    pub fn append(
        &self,
        session: &Rc<Session>,
        run: RunId,
        count: u32,
        bytes: &[u8],
        footprint: &Footprint,
        cover: Cover,
    ) {
        self.appended.set(self.appended.get() + u64::from(count));
        let mut state = self.state.borrow_mut();
        if let Some(fences) = &mut state.fences {
            fences.appended(count, footprint);
        }
        if self.private.get() && !state.ledger.awaits() {
            state.front_since_ms = clock::monotonic_ms();
        }
        state.out.extend_from_slice(bytes);
        state
            .ledger
            .push(session.clone(), run, count, bytes.len(), cover, Rc::ptr_eq);
        self.wake.wake();
    }

    /// Appends a whole transaction of `count` commands, MULTI and EXEC included.
    pub fn append_block(&self, session: &Rc<Session>, run: RunId, count: u32, bytes: &[u8], footprint: &Footprint) {
        self.appended.set(self.appended.get() + u64::from(count));
        self.writes();
        let mut state = self.state.borrow_mut();
        if let Some(fences) = &mut state.fences {
            fences.appended(count, footprint);
        }
        state.out.extend_from_slice(bytes);
        state.ledger.push_block(session.clone(), run, count, bytes.len());
        self.wake.wake();
    }

    /// Passes on a part of a request too large to be kept: it is dropped once written, and never sent again. The
    /// first part says whose it is. Only for private lanes with nothing else in flight.
    pub fn append_part(&self, first: Option<(&Rc<Session>, RunId, Traits, &Footprint)>, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        if let Some((session, run, traits, footprint)) = first {
            self.appended.set(self.appended.get() + 1);
            self.writes();
            if let Some(fences) = &mut state.fences {
                fences.appended(1, footprint);
            }
            state
                .ledger
                .push(session.clone(), run, 1, 0, Cover::Needed, |_, _| false);
            state.streaming = true;
            state.streamed = Some(traits);
        }
        state.out.extend_from_slice(bytes);
        self.wake.wake();
    }

    /// What was appended last may change something.
    #[inline]
    pub fn writes(&self) {
        self.last_write.set(self.appended.get());
    }

    /// How many commands it was given so far.
    pub fn appended(&self) -> u64 {
        self.appended.get()
    }

    /// Whether the first `count` commands that it was given are answered.
    pub fn has_answered(&self, count: u64) -> bool {
        let unanswered = self.state.borrow().ledger.unanswered();
        self.appended.get().saturating_sub(unanswered) >= count
    }

    /// Whether something is in flight that may change something, and does not block, or is answered and not acknowledged.
    pub fn has_write_in_flight(&self) -> bool {
        let state = self.state.borrow();
        let answered = self.appended.get() - state.ledger.unanswered();
        let held = state.held.as_ref().is_some_and(Held::has_writes);
        !self.ended.get() && (state.wreck.is_some() || held || answered < self.last_write.get())
    }

    /// Ends the lane once nothing is in flight on it.
    pub fn release(&self) {
        self.released.set(true);
        self.wake.wake();
    }

    /// Ends the lane as [`Lane::release`] does, and hands its connection over, unless that is lost before.
    pub fn bequeath(&self) -> oneshot::Receiver<TcpStream> {
        let (heir, inheritance) = oneshot::channel();
        self.heir.replace(Some(heir));
        self.release();
        inheritance
    }

    /// Whether nothing is in flight on it, and nobody waits for a reply.
    pub fn is_idle(&self) -> bool {
        self.state.borrow().ledger.is_empty()
    }

    /// Whether it is on its way to its end.
    pub fn is_released(&self) -> bool {
        self.released.get()
    }

    /// How it got on since the last look.
    pub fn pace(&self) -> Pace {
        let state = self.state.borrow();
        if !state.ledger.awaits() {
            self.looked_at.set(None);
            return Pace::Idle;
        }
        let (answered, heard) = (self.answered.get(), self.heard.get());
        match self.looked_at.replace(Some((answered, heard))) {
            Some(before) if before == (answered, heard) && state.stuck_on.is_none() => Pace::Silent,
            Some((before, _)) if before == answered => Pace::Stalled,
            Some(_) | None => Pace::Walking,
        }
    }

    /// How many looks in a row found it unused.
    pub fn idle_ticks(&self) -> u32 {
        let (ticks, before) = self.idle.get();
        let answered = self.answered.get();
        let used = answered != before || !self.state.borrow().ledger.is_empty();
        let ticks = if used { 0 } else { ticks + 1 };
        self.idle.set((ticks, answered));
        ticks
    }

    /// Ends the lane at once: its only owner is gone.
    pub fn abandon(&self) {
        self.abandoned.set(true);
        self.wake.wake();
    }

    /// Ends the lane once what its server was sent is answered: no more is written to it.
    pub fn depose(&self) {
        self.deposed.set(true);
        self.wake.wake();
    }

    /// Whether it is heard out already, for a while: nothing more is written to it.
    pub fn is_condemned(&self) -> bool {
        self.deposed.get() || self.state.borrow().wreck.is_some()
    }

    /// Looks again whether reading may go on.
    pub fn nudge(&self) {
        self.wake.wake();
    }

    /// Lives until the connection ends, and then says why.
    pub async fn run(self: &Rc<Self>, worker: &Rc<Worker>) -> LaneEnd {
        let addr = &self.target.addr;
        let opened = if self.ahead.get() {
            connect(addr, &self.login, worker.connect_timeout()).await
        } else {
            connect_to(&self.target, &self.login, worker.connect_timeout()).await
        };
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(error) => return error.into(),
        };
        if !self.ahead.get()
            && let Err(error) = self.life.prove(&mut stream, addr, worker.connect_timeout()).await
        {
            return error.into();
        }
        self.local.set(stream.local_addr().ok());
        if let Some(reader) = &self.reader {
            match identify_replica(&mut stream, addr, worker.connect_timeout()).await {
                Ok(identity) => drop(reader.bond.set(Bond::new(reader.facts.clone(), identity))),
                Err(error) => return error.into(),
            }
        }
        let (mut reader, writer) = stream.into_split();
        let end = std::future::poll_fn(|context| match self.poll(context, &mut reader, &writer, worker) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await;
        let heir = self.heir.take();
        if self.deposed.get() {
            LaneEnd::Deposed
        } else if self.state.borrow().wreck.is_some() {
            LaneEnd::Refused
        } else {
            if let (LaneEnd::Released, false, Some(heir), Ok(stream)) =
                (&end, self.abandoned.get(), heir, reader.reunite(writer))
            {
                // If nobody wants it any more, it is closed.
                let _unwanted = heir.send(stream);
            }
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
        let cut_off = if state.wreck.is_none() {
            state.cut_off()
        } else {
            Vec::new()
        };
        let mut wreck = state.take_wreck(self.private.get(), commands);
        wreck.interrupt(cut_off);
        let lost = state.held.as_mut().and_then(|held| held.fences.take());
        self.shard.doubts(lost);
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
            self.shard.drained_some(worker);
        }
        if self.deposed.get() {
            return self.state.borrow_mut().condemn(self.private.get(), worker.commands());
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
        if state.held.as_ref().is_some_and(Held::is_full) {
            return false;
        }
        let Some(session) = &state.stuck_on else { return true };
        if !session.is_closed() && session.unwritten() > CLIENT_REPLY_BYTES_MAX / 2 {
            return false;
        }
        state.stuck_on = None;
        true
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
