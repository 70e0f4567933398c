//! A client that is subscribed, monitors or tracks keys (rules A1, B6 to B9): it owns a connection to Redis, a feed, for
//! as long as it needs one, and everything it asks goes there, because Redis interleaves messages and replies.
//!
//! ```text
//! client --request--> feed_request --ask--> FeedLine --send--> Tap --> redis
//!    ^                                         |                         |
//!    +------ out <------ window <------ shown -+<---- feed_received -----+
//! ```
//! A session has a feed or lanes in use, never both: it changes only with nothing in flight. A lost feed is opened
//! again, and brought to where it was, before anything newer is sent; the client sees a gap in the messages only, and
//! not even that when the master is changed on purpose (see `attach`).

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::attach::Moving;
use super::close::CloseReason;
use super::exec_reply::Elements;
use super::feed_held::Heard;
use super::feedline::{Asked, FeedLine, Left, Trouble};
use super::listener::{Which, move_to};
use super::lost::with_time_left;
use super::session::{Pinned, Session, State, Way};
use super::transaction::Transaction;
use super::window::RunId;
use crate::clock;
use crate::proxy::backend::{ConnectError, LaneEnd, Login, Tap, Target, put_request};
use crate::proxy::worker::{Monitoring, Worker};
use crate::route::{FenceLog, Footprint};
use crate::topology::RunId as Life;
use crate::topology::ShardIndex;

/// The feed's number among the lanes of the session's window; no lane has it.
pub(super) const FEED_LANE: u32 = u32::MAX - 1;
/// How often a feed without a connection is looked at.
const LOST_FEED_LOOK: Duration = Duration::from_millis(250);
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_DOUBLINGS_MAX: u32 = 7;
const NO_MASTER: &[u8] = b"-MASTERDOWN no master for the shard: not executed\r\n";

/// A session's feed.
pub(super) struct Feed {
    pub line: FeedLine,
    pub link: Link,
    /// The connection that takes over once this one is drained.
    pub(super) moving: Option<Moving>,
    /// Dropped once everything is heard from the server that a switchover chose, or will not be.
    pub(super) attaching: Option<mpsc::Sender<()>>,
    /// Since when something waits for a master, and whether the shard knows of it.
    waits: Waits,
    /// Who the connection acts for.
    login: Login,
    /// Which life of the master it leads to, where that is known.
    pub life: Option<Life>,
    /// Connections in a row that ended before everything was subscribed again: the next one is put off a little.
    pub(super) failures: u32,
    /// Whether Redis has said anything on this connection.
    pub(super) heard: bool,
    /// Whether [`Session::watch_lost_feed`] is running.
    watched: bool,
    /// Where a message that is shown in parts stands in the window.
    pub(super) flow: Option<RunId>,
    /// The fences that what is unanswered holds raised.
    pub(super) fences: Option<FenceLog>,
    /// Those of what was just told to be in doubt.
    pub(super) aside: Option<FenceLog>,
    /// What the commands queued since MULTI will change when EXEC runs them.
    pub(super) queued: Footprint,
    /// What is listened to in the reply to that EXEC.
    pub(super) elements: Elements,
    /// The connection is not read from, because the client does not read.
    pub(super) held_back: Cell<bool>,
    /// What was heard and is not acknowledged.
    pub(super) held: VecDeque<Heard>,
    /// For a monitor: as long as there is one, all reads are the master's (rule B6).
    pub(super) monitors: Option<Monitoring>,
}

/// The connection of a feed.
pub(super) enum Link {
    /// There is one, or it is being opened.
    Up(Rc<Tap>),
    /// There is none; it waits for a master.
    Down,
}

/// How long a feed has been waiting.
#[derive(Clone, Copy, Debug)]
struct Waits {
    since_ms: u64,
    held: bool,
}

impl Feed {
    /// A feed without a connection.
    pub(super) fn of(login: Login) -> Self {
        Self {
            line: FeedLine::default(),
            link: Link::Down,
            moving: None,
            attaching: None,
            waits: Waits::from_now(),
            login,
            life: None,
            failures: 0,
            heard: false,
            watched: false,
            flow: None,
            fences: None,
            aside: None,
            queued: Footprint::default(),
            elements: Elements::default(),
            held_back: Cell::new(false),
            held: VecDeque::new(),
            monitors: None,
        }
    }

    /// Raises the fences for so many requests that are about to be sent, and change this.
    pub(super) fn fence(&mut self, requests: u32, footprint: &Footprint) {
        if let Some(log) = &mut self.fences {
            log.appended(requests, footprint);
        }
    }

    /// The same for those that are sent again: what they change is not looked at any more.
    fn fence_again(&mut self) {
        let (requests, mut footprint) = (self.line.awaited(), Footprint::default());
        if requests > 0 {
            footprint.writes_every_key(requests - 1);
        }
        self.fence(requests, &footprint);
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        if let Link::Up(tap) = &self.link {
            tap.close();
        }
        if let Some(moving) = &self.moving {
            moving.tap.close();
        }
    }

    /// A request that was passed on in parts has left us.
    pub(super) fn streamed(&mut self, tap: &Rc<Tap>) {
        if !self.is_on(tap) {
            return;
        }
        self.line.ends_at(tap.send(b""));
        if self.moving.is_some() {
            self.line.mark(|bytes| tap.send(bytes));
        }
    }

    /// The client has read: goes on reading from the connection.
    pub(super) fn nudge(&self) {
        if self.held_back.take()
            && let Link::Up(tap) = &self.link
        {
            tap.nudge();
        }
    }

    /// Whether something waits for a master.
    pub(super) fn awaits_master(&self) -> bool {
        self.moving.is_none() && (matches!(self.link, Link::Down) || self.line.has_unsent())
    }

    /// Since when.
    pub(super) fn waits_since_ms(&self) -> u64 {
        self.waits.since_ms
    }

    /// Begins to count how long something waits.
    pub(super) fn wait_from_now(&mut self) {
        self.waits = Waits::from_now();
    }

    /// How long to wait before a connection that replaces others, which ended early.
    fn delay(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            failures => RETRY_FIRST * (1 << (failures - 1).min(RETRY_DOUBLINGS_MAX)),
        }
    }

    /// Says whether the last write has been answered just now. A switchover waits for that.
    pub(super) fn count_writes(&self) -> bool {
        let Link::Up(tap) = &self.link else { return false };
        let writes = self.line.writes();
        tap.set_writing(writes) && !writes
    }

    /// Tells who waits for it that everything is heard.
    pub(super) fn settle_down(&mut self) {
        if self.moving.is_none() && self.line.is_caught_up() {
            self.attaching = None;
        }
    }
}

impl Session {
    /// Called whenever the session looks around: leaves a feed that is not needed, opens one that was lost.
    pub(super) fn tend_feed(self: &Rc<Self>) {
        if self.leave_feed() || self.is_closed() {
            return;
        }
        self.tend_redirection();
        if !self.awaits_feed() || self.open_feed() {
            return;
        }
        let held = self.with_feed(|feed| std::mem::replace(&mut feed.waits.held, true));
        if held == Some(false) {
            let shard = self.worker.shard(ShardIndex(0));
            shard.count_held(1);
            shard.hold(&self.worker, self.clone());
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

    /// Opens a connection for the feed and brings it to where the session is, or sends there what waited until it leads
    /// to the master. `false`: there is no master.
    pub(super) fn open_feed(self: &Rc<Self>) -> bool {
        let shard = self.worker.shard(ShardIndex(0));
        let Some(master) = shard.serving() else { return false };
        let (delay, login) = {
            let mut state = self.state();
            let State { feed, login, .. } = &mut *state;
            let Some(feed) = feed else { return false };
            if let Link::Up(tap) = &feed.link {
                if *tap.target != *master {
                    return false;
                }
                feed.line.release(true, |bytes| tap.send(bytes));
                feed.count_writes();
                return true;
            }
            (feed.delay(), login.clone())
        };
        let tap = self.open_tap(master, login.clone(), delay);
        self.go_on_over(tap, login);
        true
    }

    /// Brings a fresh connection to where the session is.
    pub(super) fn go_on_over(self: &Rc<Self>, tap: Rc<Tap>, login: Login) {
        let shard = self.worker.shard(ShardIndex(0));
        let is_master = self.leads_to_master(&tap);
        let log = || FenceLog::new(self.worker.fences().clone(), shard.fences().clone());
        let fences = self.worker.splits_reads().then(log);
        let (now_ms, table) = (clock::monotonic_ms(), self.worker.commands());
        let life = shard.life_of(&tap.target);
        // The requests of scans are kept so that they begin anew.
        move_to(&mut self.state().listeners, Which::Lane(FEED_LANE), life.as_ref());
        self.with_feed(|feed| {
            shard.count_resent(feed.line.awaited());
            feed.elements.moves_to(life.as_ref());
            feed.life = life;
            feed.line
                .shorten(now_ms, |request, waited_ms| with_time_left(request, waited_ms, table));
            feed.fences = fences;
            feed.fence_again();
            feed.line.begin(login.resp3, is_master, |bytes| tap.send(bytes));
            feed.login = login;
            feed.link = Link::Up(tap);
            feed.heard = false;
            feed.wait_from_now();
            feed.settle_down();
            feed.count_writes();
        });
    }

    /// Makes a feed of the session's own connection, with nothing in flight there: what it watches and what is queued
    /// goes along.
    pub(super) fn turn_into_feed(self: &Rc<Self>) {
        let (session, inheritance, tap, login) = {
            let mut state = self.state();
            let state = &mut *state;
            let Some(pinned) = state.pinned.take() else { return };
            let Pinned {
                lane,
                login,
                queued,
                elements,
                ..
            } = *pinned;
            let tap = Tap::to(lane.target.clone());
            let mut feed = Box::new(Feed::of(login.clone()));
            (feed.queued, feed.elements) = (queued, elements);
            state.feed = Some(feed);
            (self.clone(), lane.bequeath(), tap, login)
        };
        self.worker.shard(ShardIndex(0)).watch_tap(&tap);
        let running = tap.clone();
        tokio::task::spawn_local(async move {
            let end = running.run_on(inheritance, &session, &session.worker).await;
            session.feed_ended(&running, &end);
        });
        self.go_on_over(tap, login);
        let mut state = self.state();
        let (transaction, queue) = (state.transaction, state.queue.take());
        state.stand(Transaction::None);
        if let Some(feed) = &mut state.feed {
            feed.line.adopt(transaction, queue);
        }
    }

    /// A connection of a feed, which the shard ends when another server is master.
    pub(super) fn open_tap(self: &Rc<Self>, target: Rc<Target>, login: Login, delay: Duration) -> Rc<Tap> {
        let tap = Tap::to(target);
        self.worker.shard(ShardIndex(0)).watch_tap(&tap);
        let (session, running) = (self.clone(), tap.clone());
        tokio::task::spawn_local(async move {
            let end = running.run(&session, &session.worker, &login, delay).await;
            session.feed_ended(&running, &end);
        });
        tap
    }

    pub(super) fn feed_in_trouble(self: &Rc<Self>, tap: &Tap, trouble: Trouble) -> LaneEnd {
        let line = match trouble {
            Trouble::Poisoned => return LaneEnd::Poisoned,
            Trouble::Demoted => {
                self.suspect_master(tap);
                return LaneEnd::Eof;
            }
            Trouble::Refused(line) => line,
        };
        if is_final(&line) && self.leads_to_master(tap) {
            warn!(client = self.id, "a client's subscriptions cannot be restored: {line}");
            self.close(CloseReason::FeedRefused);
        } else {
            info!(client = self.id, "the feed is not ready: {line}; trying again");
        }
        LaneEnd::Eof
    }

    fn feed_ended(self: &Rc<Self>, tap: &Rc<Tap>, end: &LaneEnd) {
        if self.did_not_move(tap, end) {
            return;
        }
        match end {
            LaneEnd::Released => return debug!(client = self.id, "feed closed"),
            LaneEnd::Poisoned => warn!(client = self.id, "feed closed: {end}"),
            LaneEnd::Connect(ConnectError::Refused(_, line)) if is_final(line) && self.leads_to_master(tap) => {
                warn!(client = self.id, "a client's login is refused: {line}");
                self.close(CloseReason::FeedRefused);
            }
            LaneEnd::Connect(ConnectError::Network(..) | ConnectError::Silent(..) | ConnectError::NotOfEpoch(..)) => {
                self.suspect_master(tap)
            }
            LaneEnd::Connect(ConnectError::Refused(..) | ConnectError::Unfit(..))
            | LaneEnd::Eof
            | LaneEnd::Refused
            | LaneEnd::Deposed
            | LaneEnd::Network(_) => {}
        }
        let left = {
            let mut state = self.state();
            let Some(feed) = state.feed.as_mut().filter(|feed| feed.is_on(tap)) else {
                return;
            };
            debug!(client = self.id, "feed lost: {end}");
            let failed = !feed.heard || !feed.line.is_caught_up() || matches!(end, LaneEnd::Poisoned);
            feed.failures += u32::from(failed && feed.moving.is_none());
            feed.lose(tap)
        };
        self.put_up_with(left);
        self.take_over();
        self.tend_feed();
    }

    /// Answers what a lost connection left, or gives the client up.
    pub(super) fn put_up_with(self: &Rc<Self>, left: Left) {
        let worker = self.worker.clone();
        self.give_up_redirection();
        self.tell_of_lost_tracking();
        if let Some(streaming) = &mut self.state().streaming {
            streaming.way = Way::Lost;
            self.wake();
        }
        match left {
            Left::Answers(answers) => {
                let shard = worker.shard(ShardIndex(0));
                let begin = |word: &[u8]| answers.iter().filter(|(_, line)| line.starts_with(word)).count();
                shard.count_indoubt(u32::try_from(begin(b"-INDOUBT ")).unwrap_or(u32::MAX));
                shard.count_failed(u32::try_from(begin(b"-MASTERDOWN ")).unwrap_or(u32::MAX));
                self.answer(&worker, answers);
            }
            Left::CutOff => self.close(CloseReason::ReplyCutOff),
            Left::Transaction => self.close(CloseReason::TransactionLost),
        }
        worker.flush_dirty();
        worker.shard(ShardIndex(0)).drained_some(&worker);
    }

    /// A tap to a server that is not master yet says nothing against the one that is.
    pub(super) fn leads_to_master(&self, tap: &Tap) -> bool {
        let serving = self.worker.shard(ShardIndex(0)).serving();
        serving.is_some_and(|master| *master == *tap.target)
    }

    fn suspect_master(&self, tap: &Tap) {
        if self.leads_to_master(tap) {
            self.worker.shard(ShardIndex(0)).suspect(&self.worker);
        }
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
        let expired = self.with_feed(|feed| {
            let late = feed.awaits_master() && feed.waits.since_ms + worker.hold_max_ms() < now_ms;
            let connected = matches!(feed.link, Link::Up(_));
            late.then(|| feed.line.expire(NO_MASTER, connected))
        });
        self.answer(&worker, expired.flatten().unwrap_or_default());
        worker.flush_dirty();
    }

    /// Whether a feed waits for a master, which the worker must not forget.
    pub(super) fn awaits_feed(&self) -> bool {
        self.with_feed(|feed| feed.awaits_master()) == Some(true)
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
                feed.fence(1, &Footprint::default());
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
    /// Gives its connection up, if it has one: says what becomes of what was asked there.
    pub(super) fn lose(&mut self, tap: &Tap) -> Left {
        self.link = Link::Down;
        self.held.clear();
        self.waits = Waits::from_now();
        tap.set_writing(false);
        // What was asked may still be executed.
        self.fences = None;
        if self.moving.is_none() {
            self.attaching = None;
        }
        self.line.lose(tap.written())
    }

    /// Its connection has become somebody else's.
    pub(super) fn acts_for(&mut self, login: &Login) {
        self.login.clone_from(login);
    }

    /// Whether its connection leads to this server.
    pub(super) fn leads_to(&self, target: &Target) -> bool {
        let tap = self.moving.as_ref().map(|moving| &moving.tap);
        let tap = tap.or(match &self.link {
            Link::Up(tap) => Some(tap),
            Link::Down => None,
        });
        tap.is_some_and(|tap| *tap.target == *target)
    }

    pub(super) fn is_on(&self, tap: &Rc<Tap>) -> bool {
        matches!(&self.link, Link::Up(own) if Rc::ptr_eq(own, tap))
    }
}

impl Waits {
    fn from_now() -> Self {
        Self {
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
