//! A tap: a connection to Redis that one session owns and that speaks without being asked (pub/sub, MONITOR,
//! tracking).
//!
//! ```text
//! session --send--> out --flush--> redis --bytes--> session.feed_received
//! ```
//! Only bytes here: what they mean, and which of them the client sees, is the session's. The queue is bounded by the
//! session, which asks for nothing more while too much of it is unanswered; what is read waits for a slow client.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::connect::{Login, connect_to};
use super::lane::LaneEnd;
use super::target::Target;
use crate::proxy::client::Session;
use crate::proxy::wake::Wake;
use crate::proxy::worker::Worker;

/// Capacity that an empty out buffer keeps.
const IDLE_CAPACITY_MAX: usize = 4 * 1024;

/// Unwritten bytes above which a request that comes in parts is not passed on.
const UNWRITTEN_BYTES_MAX: usize = 1024 * 1024;

/// One connection to Redis.
pub struct Tap {
    /// The server at its other end: a master, or who is about to be one.
    pub target: Rc<Target>,
    wake: Wake,
    local: Cell<Option<SocketAddr>>,
    closed: Cell<bool>,
    /// Something may change because of what was sent and is not answered.
    writing: Cell<bool>,
    /// It leads to a server that is master no more.
    astray: Cell<bool>,
    /// The session waits until everything is written.
    full: Cell<bool>,
    out: RefCell<Vec<u8>>,
    /// How many bytes of `out` are written.
    sent: Cell<usize>,
    /// Bytes written that are no longer in `out`.
    gone: Cell<u64>,
}

impl Tap {
    /// A connection that comes to be in [`Tap::run`]; it takes bytes at once.
    pub fn to(target: Rc<Target>) -> Rc<Self> {
        Rc::new(Self {
            target,
            wake: Wake::default(),
            local: Cell::new(None),
            closed: Cell::new(false),
            writing: Cell::new(false),
            astray: Cell::new(false),
            full: Cell::new(false),
            out: RefCell::default(),
            sent: Cell::new(0),
            gone: Cell::new(0),
        })
    }

    /// Sends bytes; returns how many were sent on this connection with them, written or not.
    pub fn send(&self, bytes: &[u8]) -> u64 {
        let mut out = self.out.borrow_mut();
        out.extend_from_slice(bytes);
        self.wake.wake();
        self.gone.get() + out.len() as u64
    }

    /// Whether more of a request may be passed on now. If not, the session is woken once all of it is written.
    pub fn has_room(&self) -> bool {
        let full = self.out.borrow().len() - self.sent.get() > UNWRITTEN_BYTES_MAX;
        self.full.set(full);
        !full
    }

    /// Remembers whether a write is in flight; says whether there was one.
    pub fn set_writing(&self, writing: bool) -> bool {
        self.writing.replace(writing)
    }

    /// Whether a write is in flight.
    pub fn is_writing(&self) -> bool {
        self.writing.get()
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.gone.get() + self.sent.get() as u64
    }

    /// Looks again whether it may be read from.
    pub fn nudge(&self) {
        self.wake.wake();
    }

    /// Our end of it, once it is open.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local.get()
    }

    /// Ends the connection at once.
    pub fn close(&self) {
        self.closed.set(true);
        self.wake.wake();
    }

    /// Ends the connection as if Redis had: there is another master.
    pub fn lose(&self) {
        self.astray.set(true);
        self.wake.wake();
    }

    /// Waits for `delay`, connects, and lives until the connection ends; then says why.
    pub async fn run(
        self: &Rc<Self>,
        session: &Rc<Session>,
        worker: &Rc<Worker>,
        login: &Login,
        delay: Duration,
    ) -> LaneEnd {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let stream = match connect_to(&self.target, login, worker.connect_timeout()).await {
            Ok(stream) => stream,
            Err(error) => return error.into(),
        };
        self.live(stream, session, worker).await
    }

    /// The same over a connection that is handed over: it ends at once if there comes none.
    pub async fn run_on(
        self: &Rc<Self>,
        inheritance: oneshot::Receiver<TcpStream>,
        session: &Rc<Session>,
        worker: &Rc<Worker>,
    ) -> LaneEnd {
        match inheritance.await {
            Ok(stream) => self.live(stream, session, worker).await,
            Err(_) => LaneEnd::Eof,
        }
    }

    async fn live(self: &Rc<Self>, stream: TcpStream, session: &Rc<Session>, worker: &Rc<Worker>) -> LaneEnd {
        self.local.set(stream.local_addr().ok());
        let (mut reader, writer) = stream.into_split();
        std::future::poll_fn(
            |context| match self.poll(context, &mut reader, &writer, session, worker) {
                Ok(()) => Poll::Pending,
                Err(end) => Poll::Ready(end),
            },
        )
        .await
    }

    fn poll(
        self: &Rc<Self>,
        context: &mut Context<'_>,
        reader: &mut OwnedReadHalf,
        writer: &OwnedWriteHalf,
        session: &Rc<Session>,
        worker: &Rc<Worker>,
    ) -> Result<(), LaneEnd> {
        self.wake.listen(context);
        if self.astray.get() {
            return Err(LaneEnd::Eof);
        }
        while !self.closed.get() && !session.holds_feed_back() {
            let mut scratch = worker.scratch();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *reader).poll_read(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(LaneEnd::Eof),
                Poll::Ready(Ok(())) => session.feed_received(self, buffer.filled())?,
            }
            drop(scratch);
            worker.flush_dirty();
        }
        if self.closed.get() {
            return Err(LaneEnd::Released);
        }
        self.flush(context, writer)?;
        if self.out.borrow().is_empty() && self.full.take() {
            session.wake();
        }
        Ok(())
    }

    fn flush(&self, context: &mut Context<'_>, writer: &OwnedWriteHalf) -> Result<(), LaneEnd> {
        let mut out = self.out.borrow_mut();
        while self.sent.get() < out.len() {
            match writer.try_write(&out[self.sent.get()..]) {
                Ok(count) => self.sent.set(self.sent.get() + count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if writer.as_ref().poll_write_ready(context)?.is_pending() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.gone.set(self.written());
        self.sent.set(0);
        out.clear();
        out.shrink_to(IDLE_CAPACITY_MAX);
        Ok(())
    }
}
