//! A session: one client connection, its place in the reply window, and what it waits for.
//!
//! ```text
//! client --read--> (tail) --scan--> dispatch --append--> lane
//!    ^                                                    |
//!    +---- out <---- window <---- fill(run, bytes) <------+
//! ```
//! Owns the socket's life and all waiting; what a request means is decided in `dispatch`. Invariant: a session that
//! is parked reads no more from its client, so that what it holds is bounded by one read past the limit.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::close::CloseReason;
use super::copying::Said;
use super::exec_reply::Elements;
use super::feed::Feed;
use super::held_count::HeldCount;
use super::listener::Listeners;
use super::mute::Mute;
use super::pausing::Function;
use super::queue::Queue;
use super::redirection::Redirection;
use super::transaction::Transaction;
use super::wait::{Awaits, Unproven};
use super::window::{RunId, Window};
use crate::clock;
use crate::command::CommandId;
use crate::proxy::backend::{CLIENT_REPLY_BYTES_MAX, Lane, Login, Tap};
use crate::proxy::shard::Shard;
use crate::proxy::wake::Wake;
use crate::proxy::worker::Worker;
use crate::resp::{FrameStream, RequestScanner, Span};
use crate::route::{Footprint, SampleNumber, Stickiness};

/// Commands in flight above which a session is not read from.
pub const IN_FLIGHT_MAX: u32 = 4096;
/// Unwritten reply bytes above which a session is not read from.
const UNWRITTEN_BYTES_MAX: usize = 1024 * 1024;
/// Capacity that an empty out buffer keeps.
const IDLE_CAPACITY_MAX: usize = 32 * 1024;

/// What a session waits for before it goes on with its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Park {
    /// Nothing: it reads.
    Open,
    /// Until fewer commands are in flight.
    Full,
    /// Until nothing is in flight.
    Drain,
    /// Until a lane has room.
    Lane,
    /// Until the shard has a master. Bounded by `hold_max_ms`.
    Hold,
    /// Until a CLIENT PAUSE ends.
    Pause,
    /// Until a connection aside has answered: a password is verified, or every node is told.
    Verify,
}

/// Requests to be sent again, in order.
pub(super) struct Held {
    pub shard: Rc<Shard>,
    pub run: RunId,
    pub count: u32,
    pub bytes: Vec<u8>,
    /// A transaction from MULTI to EXEC.
    pub block: bool,
    /// To be sent on a connection of the session's own.
    pub private: bool,
}

/// A request that is not whole, or whole ones that wait.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub bytes: Vec<u8>,
    pub scanner: RequestScanner,
    pub spans: Vec<Span>,
}

/// A request too large to be collected, on its way.
pub(super) struct Streaming {
    pub frame: FrameStream,
    /// Where it goes.
    pub way: Way,
}

/// Where a request goes that is passed on in parts.
pub(super) enum Way {
    /// The connection that the session has for it.
    Lane(Rc<Lane>),
    /// The session's feed.
    Feed(Rc<Tap>),
    /// That is lost: the rest is read and dropped.
    Lost,
}

/// A backend connection of the session's own.
pub(super) struct Pinned {
    pub lane: Rc<Lane>,
    /// What the connection is now; it may have changed its database since it was opened.
    pub login: Login,
    /// How many commands it had been given with the last one that blocks; 0 for none.
    pub blocked_by: u64,
    /// What the commands queued since MULTI will change when EXEC runs them.
    pub queued: Footprint,
    /// What is listened to in the reply to that EXEC.
    pub elements: Elements,
    /// How many they are.
    pub queued_count: usize,
    /// Whether one of them may change something.
    pub queued_writes: bool,
    /// Nothing was left behind on it.
    pub clean: bool,
    /// The transaction whose EXEC was sent last.
    pub closing: Option<Box<Queue>>,
}

/// What few clients say of themselves.
#[derive(Debug, Default)]
pub(super) struct About {
    /// CLIENT SETNAME; empty for none.
    pub name: Box<[u8]>,
    /// CLIENT SETINFO LIB-NAME.
    pub library: Box<[u8]>,
    /// CLIENT SETINFO LIB-VER.
    pub library_version: Box<[u8]>,
    /// CLIENT NO-EVICT.
    pub no_evict: bool,
    /// REPLCONF.
    pub as_replica: Said,
    /// The user of the proxy's own that it logged in as; empty where clients log in to the servers.
    pub guest: Box<[u8]>,
    /// Since SYNC or PSYNC: it is a replica to Redis' mind.
    pub copies: bool,
}

/// What a session has at one shard.
pub(super) struct Seat {
    pub shard: Rc<Shard>,
    /// Its current lane there (rule A8).
    pub lane: Option<Rc<Lane>>,
    /// Which replica it reads from (rule B11).
    pub sticky: Stickiness,
    /// What it wrote there that no WAIT has vouched for.
    pub unproven: Unproven,
}

pub(super) struct State {
    pub out: Vec<u8>,
    pub sent: usize,
    pub window: Window,
    /// Who listens to replies that are to come.
    pub listeners: Listeners,
    pub tail: Option<Box<Tail>>,
    pub park: Park,
    /// One for each shard that the session has used.
    pub seats: Vec<Seat>,
    pub held: Vec<Held>,
    pub pinned: Option<Box<Pinned>>,
    pub transaction: Transaction,
    /// What was asked for since MULTI; there exactly while the transaction is `Queueing`.
    pub queue: Option<Box<Queue>>,
    pub feed: Option<Box<Feed>>,
    /// What is known of the function that it called last, during a pause.
    pub function: Option<Box<Function>>,
    /// Where what it tracks is told.
    pub redirection: Option<Box<Redirection>>,
    /// Others have what they track told here.
    pub is_redirected_to: bool,
    pub streaming: Option<Box<Streaming>>,
    pub login: Login,
    pub authenticated: bool,
    pub about: Option<Box<About>>,
    /// Which replies the client does not hear.
    pub mute: Mute,
    /// Which reply everything that follows has to wait for.
    pub awaits: Awaits,
    /// All reads go to the master (READWRITE).
    pub masters_only: bool,
    pub closing: Option<CloseReason>,
    /// The client sends no more, and waits for its last replies.
    pub left: bool,
    pub stalled: Option<Rc<Lane>>,
    pub held_since_ms: u64,
    /// What of it the toll of a change has counted.
    pub counted: HeldCount,
    /// How much was written to the client when that time was taken: if it is still as much, the wait goes on.
    pub held_at_written: u64,
}

/// One client connection.
pub struct Session {
    /// Unique within the proxy; what CLIENT ID answers.
    pub id: u64,
    pub(super) worker: Rc<Worker>,
    /// When the client came.
    pub(super) since_ms: u64,
    /// When it was last heard, as coarse as the worker's own idea of the time.
    heard_ms: Cell<u64>,
    /// What it asked last.
    last: Cell<Option<CommandId>>,
    writer: OwnedWriteHalf,
    wake: Wake,
    dirty: Cell<bool>,
    /// Parts of replies that lanes hold for it until they are acknowledged.
    held: Cell<u32>,
    written: Cell<u64>,
    state: RefCell<State>,
}

impl Session {
    /// Serves one client until it leaves.
    pub async fn serve(id: u64, stream: TcpStream, worker: Rc<Worker>) -> CloseReason {
        let (mut reader, writer) = stream.into_split();
        let authenticated = !worker.auth_required();
        let state = State {
            out: Vec::new(),
            sent: 0,
            window: Window::default(),
            listeners: None,
            tail: None,
            park: Park::Open,
            seats: Vec::new(),
            held: Vec::new(),
            pinned: None,
            transaction: Transaction::None,
            queue: None,
            feed: None,
            function: None,
            redirection: None,
            is_redirected_to: false,
            streaming: None,
            login: Login::default(),
            authenticated,
            about: None,
            mute: Mute::No,
            awaits: Awaits::Nothing,
            masters_only: false,
            closing: None,
            left: false,
            stalled: None,
            held_since_ms: 0,
            counted: HeldCount::default(),
            held_at_written: u64::MAX,
        };
        let session = Rc::new(Self {
            id,
            since_ms: clock::monotonic_ms(),
            heard_ms: Cell::new(clock::monotonic_ms()),
            last: Cell::new(None),
            worker,
            writer,
            wake: Wake::default(),
            dirty: Cell::new(false),
            held: Cell::new(0),
            written: Cell::new(0),
            state: RefCell::new(state),
        });
        session.worker.enter(&session);
        let _counted = session.worker.census().connects();
        let reason = std::future::poll_fn(|context| session.poll(context, &mut reader)).await;
        session.worker.leave(session.id);
        session.end(reason);
        reason
    }

    /// Asks the session to look again at what it waits for.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// Closes the connection as soon as what is written so far has left.
    pub fn close(&self, reason: CloseReason) {
        self.state.borrow_mut().closing.get_or_insert(reason);
        self.wake.wake();
    }

    /// Whether the client is gone or about to be.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closing.is_some()
    }

    /// Reply bytes that are not written yet.
    pub fn unwritten(&self) -> usize {
        self.state.borrow().unwritten()
    }

    /// Reply bytes written since the client came: tells a slow reader from one that does not read.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Whether the client reads too slowly for its feed to be read on; that goes on once it does. A subscriber is heard
    /// in any case: it does not miss messages, it is closed.
    pub fn holds_feed_back(&self) -> bool {
        let state = self.state.borrow();
        let feed = state.feed.as_ref().filter(|feed| !feed.line.is_listening());
        let holds = state.unwritten() > UNWRITTEN_BYTES_MAX;
        feed.is_some_and(|feed| {
            feed.held_back.set(holds);
            holds
        })
    }

    /// Remembers a lane that stopped reading because of this client.
    pub fn stalls(&self, lane: &Rc<Lane>) {
        self.state.borrow_mut().stalled = Some(lane.clone());
    }

    /// Replies of a replica arrived when `requested` was the newest sample.
    pub fn read_from_replica(&self, shard: &Rc<Shard>, requested: SampleNumber) {
        self.state.borrow_mut().seat(shard).sticky.answered(requested);
    }

    /// A lane holds one more part of a reply for it, or one less.
    pub fn is_held(&self, more: bool) {
        let held = self.held.get();
        self.held.set(if more { held + 1 } else { held.saturating_sub(1) });
    }

    /// Whether a lane holds parts of replies for it: what comes after them has to wait, too.
    #[inline]
    pub fn holds(&self) -> bool {
        self.held.get() > 0
    }

    /// Whether a lane has stopped reading because of this client.
    pub fn is_stalling(&self) -> bool {
        let state = self.state.borrow();
        let holds_back = state.out.len() - state.sent > CLIENT_REPLY_BYTES_MAX / 2;
        state.stalled.is_some() && holds_back && state.closing.is_none()
    }

    /// Takes reply bytes for a run; returns how many bytes are unwritten now.
    pub fn fill(self: &Rc<Self>, run: RunId, bytes: &[u8], replies: u32, worker: &Worker) -> usize {
        let mut state = self.state.borrow_mut();
        if state.closing.is_some() {
            return 0;
        }
        state.fill(self, run, bytes, replies);
        self.settle(&mut state, worker)
    }

    /// After new replies: goes on if they were waited for, and sees to it that they are written.
    pub(super) fn settle(self: &Rc<Self>, state: &mut State, worker: &Worker) -> usize {
        let unanswered = state.window.unanswered();
        let resume = match state.park {
            Park::Drain => unanswered == 0,
            Park::Full => unanswered < IN_FLIGHT_MAX / 2,
            Park::Open => unanswered == 0 && (state.pinned.is_some() || state.feed.is_some() || state.left),
            Park::Lane | Park::Hold | Park::Pause | Park::Verify => false,
        };
        if resume {
            self.wake.wake();
        }
        if !self.dirty.replace(true) {
            worker.add_dirty(self.clone());
        }
        state.unwritten()
    }

    /// Writes what can be written without waiting; the session's own task waits for the rest.
    pub fn flush(&self) {
        self.dirty.set(false);
        let mut state = self.state.borrow_mut();
        if self.write_some(&mut state).is_err() {
            state.closing.get_or_insert(CloseReason::Network);
            self.wake.wake();
        } else if state.sent < state.out.len() {
            self.wake.wake();
        }
    }

    /// The client's connection, to ask for its addresses.
    pub(super) fn socket(&self) -> &TcpStream {
        self.writer.as_ref()
    }

    /// When the client was last heard.
    pub(super) fn heard_ms(&self) -> u64 {
        self.heard_ms.get()
    }

    /// The command that the client sent last.
    pub(super) fn last_command(&self) -> Option<CommandId> {
        self.last.get()
    }

    /// Remembers what the client asks.
    #[inline]
    pub(super) fn asks(&self, command: CommandId) {
        self.last.set(Some(command));
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    fn poll(self: &Rc<Self>, context: &mut Context<'_>, reader: &mut OwnedReadHalf) -> Poll<CloseReason> {
        self.wake.listen(context);
        self.go_on();
        loop {
            if let Poll::Ready(reason) = self.poll_write(context) {
                return Poll::Ready(reason);
            }
            if !self.may_read() {
                return Poll::Pending;
            }
            let mut scratch = self.worker.scratch();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *reader).poll_read(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::Network),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    drop(scratch);
                    if let Poll::Ready(reason) = self.client_left() {
                        return Poll::Ready(reason);
                    }
                }
                Poll::Ready(Ok(())) => {
                    self.heard_ms.set(self.worker.about_now_ms());
                    self.received(buffer.filled());
                }
            }
        }
    }

    /// Writes; ready when the session is to end.
    fn poll_write(&self, context: &mut Context<'_>) -> Poll<CloseReason> {
        let mut state = self.state.borrow_mut();
        loop {
            if self.write_some(&mut state).is_err() {
                return Poll::Ready(CloseReason::Network);
            }
            if state.sent == state.out.len() {
                let left = state.left && state.awaits_nothing();
                return match state.closing {
                    Some(reason) => Poll::Ready(reason),
                    None if left => Poll::Ready(CloseReason::Left),
                    None => Poll::Pending,
                };
            }
            if let Some(reason @ (CloseReason::SlowReader | CloseReason::Killed)) = state.closing {
                return Poll::Ready(reason);
            }
            match self.writer.as_ref().poll_write_ready(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::Network),
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    /// The client sends no more. What it asked before is answered, as Redis does, unless it blocks or is subscribed:
    /// then it is gone.
    fn client_left(&self) -> Poll<CloseReason> {
        let mut state = self.state.borrow_mut();
        let waits = state.awaits == Awaits::Replicas;
        let blocks = waits || state.pinned.as_ref().is_some_and(|pinned| pinned.blocks());
        let listens = |feed: &Feed| feed.line.is_listening() || feed.line.blocks();
        if blocks || state.feed.as_deref().is_some_and(listens) || state.awaits_nothing() {
            return Poll::Ready(CloseReason::Left);
        }
        state.left = true;
        Poll::Pending
    }

    fn write_some(&self, state: &mut State) -> io::Result<()> {
        while state.sent < state.out.len() {
            match self.writer.try_write(&state.out[state.sent..]) {
                Ok(count) => {
                    state.sent += count;
                    self.written.set(self.written.get().wrapping_add(count as u64));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if let Some(feed) = &state.feed
            && state.out.len() - state.sent < UNWRITTEN_BYTES_MAX / 2
        {
            feed.nudge();
        }
        if state.sent == state.out.len() {
            state.out.clear();
            state.sent = 0;
            if state.out.capacity() > IDLE_CAPACITY_MAX {
                state.out = Vec::new();
            }
            if let Some(lane) = state.stalled.take() {
                lane.nudge();
            }
        } else if state.sent > UNWRITTEN_BYTES_MAX {
            state.out.drain(..state.sent);
            state.sent = 0;
            if let Some(lane) = &state.stalled {
                lane.nudge();
            }
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        let state = self.state.borrow();
        let open = state.park == Park::Open && state.closing.is_none() && !state.left;
        open && state.out.len() - state.sent < UNWRITTEN_BYTES_MAX
    }

    fn end(&self, reason: CloseReason) {
        let mut state = self.state.borrow_mut();
        state.closing = Some(reason);
        (state.out, state.sent, state.tail, state.listeners) = (Vec::new(), 0, None, None);
        state.held.clear();
        if let Some(pinned) = state.pinned.take() {
            pinned.lane.abandon();
        }
        if let Some(feed) = state.feed.take() {
            feed.close();
        }
        if let Some(lane) = state.stalled.take() {
            lane.nudge();
        }
    }
}

impl State {
    /// What the client says of itself, made if need be.
    pub(super) fn about(&mut self) -> &mut About {
        self.about.get_or_insert_default()
    }

    /// The user that the client logged in as.
    pub(super) fn user(&self) -> &[u8] {
        match &self.about {
            Some(about) if !about.guest.is_empty() => &about.guest,
            Some(_) | None => self.login.user(),
        }
    }

    /// Whether what is sent on a lane of the session's own may stand behind a command that blocks.
    pub(super) fn blocks_on(&self, lane: &Rc<Lane>) -> bool {
        self.pinned
            .as_ref()
            .is_some_and(|pinned| pinned.blocks() && Rc::ptr_eq(&pinned.lane, lane))
    }

    /// Moves on between MULTI and EXEC; what was queued is forgotten outside.
    pub(super) fn stand(&mut self, transaction: Transaction) {
        self.transaction = transaction;
        if transaction != Transaction::Queueing {
            self.queue = None;
        }
    }

    /// What the commands queued since MULTI make of EXEC, even if the connection that has them is gone.
    pub(super) fn queued(&self) -> Option<&Pinned> {
        let before = || self.queue.as_ref().and_then(|queue| queue.before.as_deref());
        self.pinned.as_deref().or_else(before)
    }

    /// Something is about to be written to `shard`.
    pub(super) fn wrote(&mut self, shard: &Rc<Shard>) {
        let unproven = &mut self.seat(shard).unproven;
        *unproven = unproven.wrote(shard.reign());
    }

    /// Whether nothing of the client is unanswered.
    fn awaits_nothing(&self) -> bool {
        self.window.unanswered() == 0 && self.park == Park::Open
    }

    /// What the session has at `shard`, made if need be.
    pub(super) fn seat(&mut self, shard: &Rc<Shard>) -> &mut Seat {
        let place = match self.seats.iter().position(|seat| Rc::ptr_eq(&seat.shard, shard)) {
            Some(place) => place,
            None => {
                self.seats.push(Seat {
                    shard: shard.clone(),
                    lane: None,
                    sticky: Stickiness::default(),
                    unproven: Unproven::default(),
                });
                self.seats.len() - 1
            }
        };
        &mut self.seats[place]
    }
}
