//! A client that is subscribed or monitors (rules A1, B8, B9): it owns a connection to Redis, a feed, for as long as
//! it needs one, and everything it asks goes there, because Redis interleaves messages and replies.
//!
//! ```text
//! client --request--> feed_request --ask--> FeedLine --send--> Tap --> redis
//!    ^                                         |                         |
//!    +------ out <------ window <------ shown -+<---- feed_received -----+
//! ```
//! A session has a feed or lanes in use, never both: it changes only with nothing in flight. A lost feed is opened
//! again, and brought to where it was, before anything newer is sent; the client sees a gap in the messages only.

use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::close::CloseReason;
use super::feedline::{Asked, FeedLine, Left, Shown, Trouble};
use super::listener::{Which, move_to};
use super::session::{Session, State};
use super::window::RunId;
use crate::clock;
use crate::proxy::backend::{ConnectError, LaneEnd, Login, Tap, put_request};
use crate::proxy::worker::{Monitoring, Worker};
use crate::route::{FenceLog, Footprint};
use crate::topology::RunId as Life;
use crate::topology::ShardIndex;

/// The feed's number among the lanes of the session's window; no lane has it.
pub(super) const FEED_LANE: u32 = u32::MAX - 1;
/// Unwritten bytes above which a client with a feed is closed, as `client-output-buffer-limit pubsub` of Redis.
const UNREAD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How often a feed without a connection is looked at.
const LOST_FEED_LOOK: Duration = Duration::from_millis(250);
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_DOUBLINGS_MAX: u32 = 7;
const NO_MASTER: &[u8] = b"-MASTERDOWN no master for the shard: not executed\r\n";

/// A session's feed.
pub(super) struct Feed {
    pub line: FeedLine,
    pub link: Link,
    /// Who the connection acts for.
    login: Login,
    /// Which life of the master it leads to, where that is known.
    pub life: Option<Life>,
    /// Connections in a row that ended before everything was subscribed again: the next one is put off a little.
    failures: u32,
    /// Whether Redis has said anything on this connection.
    heard: bool,
    /// Whether [`Session::watch_lost_feed`] is running.
    watched: bool,
    /// Where a message that is shown in parts stands in the window.
    flow: Option<RunId>,
    /// The fences that what is unanswered holds raised.
    fences: Option<FenceLog>,
    /// For a monitor: as long as there is one, all reads are the master's (rule B6).
    pub(super) monitors: Option<Monitoring>,
}

/// The connection of a feed.
pub(super) enum Link {
    /// There is one, or it is being opened.
    Up(Rc<Tap>),
    /// There is none; from then on it waits for a master.
    Down { since_ms: u64, held: bool },
}

impl Feed {
    /// A feed without a connection.
    pub(super) fn of(login: Login) -> Self {
        Self {
            line: FeedLine::default(),
            link: Link::down(),
            login,
            life: None,
            failures: 0,
            heard: false,
            watched: false,
            flow: None,
            fences: None,
            monitors: None,
        }
    }

    /// Raises the fences for so many requests that are about to be sent. A subscriber that writes is rare: what it
    /// writes is not looked at.
    pub(super) fn fence(&mut self, requests: u32, writes: bool) {
        let Some(log) = &mut self.fences else { return };
        let mut footprint = Footprint::default();
        if writes && requests > 0 {
            footprint.writes_every_key(requests - 1);
        }
        log.appended(requests, &footprint);
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        if let Link::Up(tap) = &self.link {
            tap.close();
        }
    }
}

impl Session {
    /// Called whenever the session looks around: leaves a feed that is not needed, opens one that was lost.
    pub(super) fn tend_feed(self: &Rc<Self>) {
        if self.leave_feed() || self.is_closed() {
            return;
        }
        if !self.awaits_feed() || self.open_feed() {
            return;
        }
        let held = self.with_feed(|feed| match &mut feed.link {
            Link::Down { held, .. } => std::mem::replace(held, true),
            Link::Up(_) => true,
        });
        if held == Some(false) {
            self.worker.shard(ShardIndex(0)).hold(&self.worker, self.clone());
            self.watch_lost_feed();
        }
    }

    pub(super) fn leave_feed(&self) -> bool {
        let mut state = self.state();
        if state.window.unanswered() > 0 {
            return false;
        }
        match state.feed.take_if(|feed| feed.line.is_idle()) {
            Some(feed) => {
                feed.close();
                true
            }
            None => false,
        }
    }

    /// Opens a connection for the feed and brings it to where the session is. `false`: there is no master.
    pub(super) fn open_feed(self: &Rc<Self>) -> bool {
        let shard = self.worker.shard(ShardIndex(0));
        let Some(master) = shard.serving() else { return false };
        let mut state = self.state();
        let State {
            feed, login, listeners, ..
        } = &mut *state;
        let Some(feed) = feed else { return false };
        let tap = Rc::new(Tap::default());
        shard.watch_tap(&tap);
        let log = || FenceLog::new(self.worker.fences().clone(), shard.fences().clone());
        feed.fences = self.worker.splits_reads().then(log);
        feed.fence(feed.line.awaited(), true);
        feed.life = shard.life();
        // The requests of scans are kept so that they begin anew.
        move_to(listeners, Which::Lane(FEED_LANE), feed.life.as_ref());
        feed.line.begin(login.resp3, |bytes| tap.send(bytes));
        feed.login = login.clone();
        feed.link = Link::Up(tap.clone());
        feed.heard = false;
        let delay = match feed.failures {
            0 => Duration::ZERO,
            failures => RETRY_FIRST * (1 << (failures - 1).min(RETRY_DOUBLINGS_MAX)),
        };
        let (session, login) = (self.clone(), login.clone());
        tokio::task::spawn_local(async move {
            let end = tap.run(&session, &session.worker, &master.addr, &login, delay).await;
            session.feed_ended(&tap, &end);
        });
        true
    }

    /// Takes what Redis sent on the feed.
    pub fn feed_received(self: &Rc<Self>, tap: &Rc<Tap>, bytes: &[u8]) -> Result<(), LaneEnd> {
        let mut state = self.state();
        if state.closing.is_some() || !state.feed.as_ref().is_some_and(|feed| feed.is_on(tap)) {
            return Err(LaneEnd::Released);
        }
        let Some(mut feed) = state.feed.take() else {
            return Ok(());
        };
        let taken = feed.take(bytes, &mut state);
        feed.heard = true;
        if taken.is_ok() && feed.line.is_caught_up() {
            feed.failures = 0;
        }
        let idle = feed.line.is_idle();
        state.feed = Some(feed);
        let unread = self.settle(&mut state, &self.worker.clone());
        drop(state);
        if unread > UNREAD_BYTES_MAX {
            self.close(CloseReason::SlowReader);
        }
        if idle {
            self.wake();
        }
        taken.map_err(|trouble| self.feed_in_trouble(trouble))
    }

    fn feed_in_trouble(self: &Rc<Self>, trouble: Trouble) -> LaneEnd {
        let line = match trouble {
            Trouble::Poisoned => return LaneEnd::Poisoned,
            Trouble::Demoted => {
                self.suspect_master();
                return LaneEnd::Eof;
            }
            Trouble::Refused(line) => line,
        };
        if is_final(&line) {
            warn!(client = self.id, "a client's subscriptions cannot be restored: {line}");
            self.close(CloseReason::FeedRefused);
        } else {
            info!(client = self.id, "the feed is not ready: {line}; trying again");
        }
        LaneEnd::Eof
    }

    fn feed_ended(self: &Rc<Self>, tap: &Rc<Tap>, end: &LaneEnd) {
        match end {
            LaneEnd::Released => return debug!(client = self.id, "feed closed"),
            LaneEnd::Poisoned => warn!(client = self.id, "feed closed: {end}"),
            LaneEnd::Connect(ConnectError::Refused(_, line)) if is_final(line) => {
                warn!(client = self.id, "a client's login is refused: {line}");
                self.close(CloseReason::FeedRefused);
            }
            LaneEnd::Connect(ConnectError::Network(..) | ConnectError::Silent(..)) => self.suspect_master(),
            LaneEnd::Connect(ConnectError::Refused(..) | ConnectError::Unfit(..))
            | LaneEnd::Eof
            | LaneEnd::Refused
            | LaneEnd::Network(_) => {}
        }
        let left = {
            let mut state = self.state();
            let Some(feed) = state.feed.as_mut().filter(|feed| feed.is_on(tap)) else {
                return;
            };
            debug!(client = self.id, "feed lost: {end}");
            let failed = !feed.heard || !feed.line.is_caught_up() || matches!(end, LaneEnd::Poisoned);
            feed.failures += u32::from(failed);
            feed.link = Link::down();
            // What was asked may still be executed.
            feed.fences = None;
            feed.line.lose(tap.written())
        };
        let worker = self.worker.clone();
        match left {
            Left::Answers(answers) => self.answer(&worker, answers),
            Left::CutOff => self.close(CloseReason::ReplyCutOff),
            Left::Transaction => self.close(CloseReason::TransactionLost),
        }
        worker.flush_dirty();
        self.tend_feed();
    }

    fn suspect_master(&self) {
        self.worker.shard(ShardIndex(0)).suspect(&self.worker);
    }

    fn answer(self: &Rc<Self>, worker: &Worker, answers: Vec<(RunId, Vec<u8>)>) {
        for (run, line) in answers {
            self.fill(run, &line, 1, worker);
        }
    }

    /// Looks after a lost feed until it has a connection: the worker may forget a session that it woke, and what waits
    /// too long is told that there is no master.
    fn watch_lost_feed(self: &Rc<Self>) {
        if self.with_feed(|feed| std::mem::replace(&mut feed.watched, true)) != Some(false) {
            return;
        }
        let session = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(LOST_FEED_LOOK).await;
                if session.is_closed() || !session.awaits_feed() {
                    break;
                }
                session.expire_feed(clock::monotonic_ms());
                session.wake();
            }
            session.with_feed(|feed| feed.watched = false);
        });
    }

    fn expire_feed(self: &Rc<Self>, now_ms: u64) {
        let worker = self.worker.clone();
        let expired = self.with_feed(|feed| match feed.link {
            Link::Down { since_ms, .. } if since_ms + worker.hold_max_ms() < now_ms => feed.line.expire(NO_MASTER),
            Link::Down { .. } | Link::Up(_) => Vec::new(),
        });
        self.answer(&worker, expired.unwrap_or_default());
        worker.flush_dirty();
    }

    /// Whether a lost feed waits for a master, which the worker must not forget.
    pub(super) fn awaits_feed(&self) -> bool {
        matches!(
            self.with_feed(|feed| matches!(feed.link, Link::Down { .. })),
            Some(true)
        )
    }

    /// Brings the feed to the session's login after that changed.
    pub(super) fn feed_follows(self: &Rc<Self>) {
        let mut state = self.state();
        let State { feed, login, .. } = &mut *state;
        let Some(feed) = feed else { return };
        let Link::Up(tap) = &feed.link else { return };
        let mut say = |args: &[&[u8]]| {
            let mut bytes = Vec::new();
            put_request(&mut bytes, args);
            feed.line.ask(Asked::Silent, None, tap.send(&bytes), 0);
        };
        if feed.login.credential != login.credential
            && let Some(credential) = &login.credential
        {
            say(&[b"AUTH", &credential.user, &credential.password]);
        }
        if feed.login.database != login.database {
            say(&[b"SELECT", login.database.to_string().as_bytes()]);
        }
        feed.login.credential.clone_from(&login.credential);
        feed.login.database = login.database;
    }

    /// Greets the client: at once, or when its feed speaks the protocol of the greeting.
    pub(super) fn greet_with(self: &Rc<Self>, put: impl FnOnce(&mut Vec<u8>)) {
        let mut greeting = Vec::new();
        put(&mut greeting);
        {
            let mut state = self.state();
            let State {
                feed, login, window, ..
            } = &mut *state;
            if let Some(feed) = feed
                && let Link::Up(tap) = &feed.link
                && feed.login.resp3 != login.resp3
            {
                let resp3 = login.resp3;
                feed.login.resp3 = resp3;
                let mut bytes = Vec::new();
                put_request(&mut bytes, &[b"HELLO", if resp3 { b"3" } else { b"2" }]);
                let run = window.reserve(FEED_LANE, 1);
                let sent = tap.send(&bytes);
                feed.fence(1, false);
                feed.line.ask(Asked::Hello { greeting, resp3 }, Some(run), sent, 0);
                return;
            }
        }
        self.refuse(|out| out.extend_from_slice(&greeting));
    }

    pub(super) fn with_feed<T>(&self, look: impl FnOnce(&mut Feed) -> T) -> Option<T> {
        self.state().feed.as_mut().map(|feed| look(feed))
    }
}

impl Feed {
    fn is_on(&self, tap: &Rc<Tap>) -> bool {
        matches!(&self.link, Link::Up(own) if Rc::ptr_eq(own, tap))
    }

    fn take(&mut self, bytes: &[u8], state: &mut State) -> Result<(), Trouble> {
        let (flow, fences) = (&mut self.flow, &mut self.fences);
        self.line.take(bytes, &mut |shown| match shown {
            Shown::Reply(run, bytes) => {
                if let Some(log) = fences {
                    log.answered(1);
                }
                state.feed_reply(run, bytes);
            }
            Shown::Push(bytes) => state.window.push(bytes, &mut state.out),
            Shown::Begins => *flow = Some(state.window.reserve(FEED_LANE, 1)),
            Shown::Ends => {
                if let Some(run) = flow.take() {
                    state.window.fill(run, b"", 1, &mut state.out);
                }
            }
        })
    }
}

impl Link {
    fn down() -> Self {
        Self::Down {
            since_ms: clock::monotonic_ms(),
            held: false,
        }
    }
}

/// Whether asking again would give the same answer.
fn is_final(line: &str) -> bool {
    let word = line.trim_start_matches('-').split(' ').next().unwrap_or_default();
    matches!(word, "NOAUTH" | "WRONGPASS" | "NOPERM")
}
