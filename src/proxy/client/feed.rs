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
use super::dispatch::Outcome;
use super::feedline::{Asked, FeedLine, Left, Plain, Shown, Trouble};
use super::session::{Park, Session, State};
use super::subscriptions::{Family, NAMES_MAX, Verb};
use super::window::RunId;
use crate::clock;
use crate::command::{Class, Command, refusal};
use crate::proxy::backend::{ConnectError, LaneEnd, Login, Tap, put_request};
use crate::proxy::worker::Worker;
use crate::resp::Args;

/// The feed's number among the lanes of the session's window; no lane has it.
const FEED_LANE: u32 = u32::MAX - 1;
/// Unwritten bytes above which a client with a feed is closed, as `client-output-buffer-limit pubsub` of Redis.
const UNREAD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of unanswered requests above which a client is not read from.
const UNANSWERED_BYTES_MAX: usize = 1024 * 1024;
/// How often a feed without a connection is looked at.
const LOST_FEED_LOOK: Duration = Duration::from_millis(250);
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_DOUBLINGS_MAX: u32 = 7;
const TOO_MANY: &[u8] = b"-OOM pointsman keeps at most 100000 subscriptions and 8388608 bytes of their names for one client, 65536 bytes for one name\r\n";
const NO_MASTER: &[u8] = b"-MASTERDOWN no master for the shard: not executed\r\n";
const NOT_IN_MULTI: &[u8] = b"-ERR pointsman does not support this command inside MULTI\r\n";
const ONLY: &[u8] = b"only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n";

/// A session's feed.
pub(super) struct Feed {
    line: FeedLine,
    link: Link,
    /// Who the connection acts for.
    login: Login,
    /// Connections in a row that ended before everything was subscribed again.
    failures: u32,
    /// Whether [`Session::watch_lost_feed`] is running.
    watched: bool,
    /// Where a message that is shown in parts stands in the window.
    flow: Option<RunId>,
}

/// The connection of a feed.
enum Link {
    /// There is one, or it is being opened.
    Up(Rc<Tap>),
    /// There is none; from then on it waits for a master.
    Down { since_ms: u64, held: bool },
}

impl Feed {
    /// Ends the connection.
    pub(super) fn close(&self) {
        if let Link::Up(tap) = &self.link {
            tap.close();
        }
    }
}

impl Session {
    /// Judges a request that begins a feed, or of a session that has one; `None`: it goes the way of all others.
    pub(super) fn feed_request(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        let family = Family::of(command.name.as_bytes());
        let begins = &*command.name == "monitor" || family.is_some_and(|family| family.verb == Verb::Subscribe);
        if self.state().feed.is_some() {
            return self.request_with_feed(family, command, args, frame);
        }
        if begins {
            return Some(self.begin_feed(family, command, args, frame));
        }
        family.map(|family| self.unsubscribe_nothing(family, args))
    }

    fn begin_feed(self: &Rc<Self>, family: Option<Family>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        {
            let mut state = self.state();
            if state.window.unanswered() > 0 {
                return Outcome::Park(Park::Drain);
            }
            if let Some(pinned) = &state.pinned {
                if pinned.multi || pinned.watch {
                    drop(state);
                    return self.refuse(|out| refusal::not_yet(command, out));
                }
                // It is given back when the session is looked at next.
                self.wake();
                return Outcome::Park(Park::Drain);
            }
            let down = Link::Down {
                since_ms: clock::monotonic_ms(),
                held: false,
            };
            state.feed = Some(Box::new(Feed {
                line: FeedLine::default(),
                link: down,
                login: state.login.clone(),
                failures: 0,
                watched: false,
                flow: None,
            }));
        }
        if !self.open_feed() {
            self.state().feed = None;
            return Outcome::Park(self.hold());
        }
        match family {
            Some(family) => self.ask_family(family, args, frame),
            None => self.ask(Asked::Monitor, frame),
        }
    }

    fn request_with_feed(
        self: &Rc<Self>,
        family: Option<Family>,
        command: &Command,
        args: &Args,
        frame: &[u8],
    ) -> Option<Outcome> {
        let name = &*command.name;
        if matches!(name, "quit" | "reset") {
            return None;
        }
        if let Some(outcome) = self.feed_is_busy() {
            return Some(outcome);
        }
        if self.with_feed(|feed| feed.line.multi)? {
            return Some(self.request_in_multi(command, args, frame));
        }
        if let Some(family) = family {
            return Some(self.ask_family(family, args, frame));
        }
        if name == "monitor" {
            return Some(self.ask_monitor(frame));
        }
        if name == "ping" {
            return Some(self.ask_plain(command, frame));
        }
        if !self.state().login.resp3 {
            if self.state().window.unanswered() > 0 {
                return Some(Outcome::Park(Park::Drain));
            }
            if self.leave_feed() {
                return None;
            }
            if self.with_feed(|feed| !feed.line.subscriptions.is_empty())? {
                return Some(self.refuse_while_subscribed(command));
            }
        }
        may_ride(command, args).then(|| self.ask_plain(command, frame))
    }

    /// A transaction on the feed: what may stand in one goes there, anything else ends it.
    fn request_in_multi(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        if may_ride(command, args) {
            return self.ask_plain(command, frame);
        }
        // Redis refuses it for its arity and remembers that, so that EXEC runs nothing.
        let mut poison = Vec::new();
        put_request(&mut poison, &[b"SUBSCRIBE"]);
        self.ask(Asked::Poison(NOT_IN_MULTI), &poison)
    }

    /// What a request for the feed has to wait for.
    fn feed_is_busy(self: &Rc<Self>) -> Option<Outcome> {
        let mut state = self.state();
        let feed = state.feed.as_ref()?;
        if let Link::Down { since_ms, .. } = feed.link {
            // It is in the worker's list already.
            state.held_since_ms = since_ms;
            return Some(Outcome::Park(Park::Hold));
        }
        let full = feed.line.unanswered_bytes() > UNANSWERED_BYTES_MAX;
        full.then_some(Outcome::Park(Park::Drain))
    }

    fn ask_family(self: &Rc<Self>, family: Family, args: &Args, frame: &[u8]) -> Outcome {
        if args.len() == 1 {
            return self.ask(Asked::All(family.kind), frame);
        }
        let names = || args.iter().skip(1);
        let allowed = match family.verb {
            Verb::Subscribe => self.with_feed(|feed| feed.line.subscriptions.ask(names()).is_ok()),
            Verb::Unsubscribe => Some(args.len() <= NAMES_MAX),
        };
        if allowed != Some(true) {
            return self.refuse(|out| out.extend_from_slice(TOO_MANY));
        }
        self.ask(Asked::Names(family, names().map(Into::into).collect()), frame)
    }

    /// Redis does not answer a second MONITOR.
    fn ask_monitor(self: &Rc<Self>, frame: &[u8]) -> Outcome {
        match self.with_feed(|feed| (feed.line.awaits_monitor(), feed.line.is_monitoring())) {
            Some((true, _)) => Outcome::Park(Park::Drain),
            Some((false, true)) => Outcome::Done,
            Some((false, false)) | None => self.ask(Asked::Monitor, frame),
        }
    }

    fn ask_plain(self: &Rc<Self>, command: &Command, frame: &[u8]) -> Outcome {
        let transaction = command.class == Class::Transaction;
        let asked = Asked::Plain(Plain {
            bytes: frame.to_vec(),
            is_write: command.is_write() || &*command.name == "exec",
            transaction,
        });
        let outcome = self.ask(asked, frame);
        self.with_feed(|feed| match &*command.name {
            "multi" => feed.line.multi = true,
            "watch" => feed.line.watch = true,
            "unwatch" if !feed.line.multi => feed.line.watch = false,
            "exec" | "discard" if feed.line.multi => (feed.line.multi, feed.line.watch) = (false, false),
            _ => {}
        });
        outcome
    }

    fn ask(self: &Rc<Self>, asked: Asked, frame: &[u8]) -> Outcome {
        let mut state = self.state();
        let State { feed, window, .. } = &mut *state;
        if let Some(feed) = feed
            && let Link::Up(tap) = &feed.link
        {
            let run = window.reserve(FEED_LANE, 1);
            feed.line.ask(asked, Some(run), tap.send(frame), frame.len());
        }
        Outcome::Done
    }

    /// As Redis answers who has no subscription.
    fn unsubscribe_nothing(self: &Rc<Self>, family: Family, args: &Args) -> Outcome {
        let resp3 = self.state().login.resp3;
        let names: Vec<&[u8]> = args.iter().skip(1).collect();
        self.refuse(|out| {
            let (push, null) = if resp3 { (">3", "_") } else { ("*3", "$-1") };
            let mut put = |name: Option<&[u8]>| {
                let word = family.name();
                out.extend_from_slice(format!("{push}\r\n${}\r\n", word.len()).as_bytes());
                out.extend_from_slice(word);
                match name {
                    None => out.extend_from_slice(format!("\r\n{null}").as_bytes()),
                    Some(name) => {
                        out.extend_from_slice(format!("\r\n${}\r\n", name.len()).as_bytes());
                        out.extend_from_slice(name);
                    }
                }
                out.extend_from_slice(b"\r\n:0\r\n");
            };
            if names.is_empty() {
                put(None);
            }
            names.into_iter().for_each(|name| put(Some(name)));
        })
    }

    fn refuse_while_subscribed(self: &Rc<Self>, command: &Command) -> Outcome {
        self.refuse(|out| {
            out.extend_from_slice(match &*command.name {
                "exec" => b"-EXECABORT Transaction discarded because of: Can't execute '",
                _ => &b"-ERR Can't execute '"[..],
            });
            out.extend_from_slice(command.name.as_bytes());
            out.extend_from_slice(b"': ");
            out.extend_from_slice(ONLY);
        })
    }

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
            self.worker.hold(self.clone());
            self.watch_lost_feed();
        }
    }

    fn leave_feed(&self) -> bool {
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
    fn open_feed(self: &Rc<Self>) -> bool {
        let Some(addr) = self.worker.master() else { return false };
        let mut state = self.state();
        let State { feed, login, .. } = &mut *state;
        let Some(feed) = feed else { return false };
        let tap = Rc::new(Tap::default());
        feed.line.begin(login.resp3, |bytes| tap.send(bytes));
        feed.login = login.clone();
        feed.link = Link::Up(tap.clone());
        let delay = match feed.failures {
            0 => Duration::ZERO,
            failures => RETRY_FIRST * (1 << (failures - 1).min(RETRY_DOUBLINGS_MAX)),
        };
        let (session, login) = (self.clone(), login.clone());
        tokio::task::spawn_local(async move {
            let end = tap.run(&session, &session.worker, &addr, &login, delay).await;
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
        if feed.failures > 0 && feed.line.is_caught_up() {
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
        let Trouble::Refused(line) = trouble else {
            return LaneEnd::Poisoned;
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
            LaneEnd::Connect(ConnectError::Network(..) | ConnectError::Silent(..)) => self.worker.suspect_master(),
            LaneEnd::Connect(ConnectError::Refused(..)) | LaneEnd::Eof | LaneEnd::Network(_) => {}
        }
        let left = {
            let mut state = self.state();
            let Some(feed) = state.feed.as_mut().filter(|feed| feed.is_on(tap)) else {
                return;
            };
            info!(client = self.id, "feed lost: {end}");
            feed.failures += u32::from(!feed.line.is_caught_up() || matches!(end, LaneEnd::Connect(_)));
            feed.link = Link::Down {
                since_ms: clock::monotonic_ms(),
                held: false,
            };
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
                feed.line
                    .ask(Asked::Hello { greeting, resp3 }, Some(run), tap.send(&bytes), 0);
                return;
            }
        }
        self.refuse(|out| out.extend_from_slice(&greeting));
    }

    fn with_feed<T>(&self, look: impl FnOnce(&mut Feed) -> T) -> Option<T> {
        self.state().feed.as_mut().map(|feed| look(feed))
    }
}

impl Feed {
    fn is_on(&self, tap: &Rc<Tap>) -> bool {
        matches!(&self.link, Link::Up(own) if Rc::ptr_eq(own, tap))
    }

    fn take(&mut self, bytes: &[u8], state: &mut State) -> Result<(), Trouble> {
        let State { window, out, .. } = state;
        let flow = &mut self.flow;
        self.line.take(bytes, &mut |shown| match shown {
            Shown::Reply(run, bytes) => window.fill(run, bytes, 1, out),
            Shown::Push(bytes) => window.push(bytes, out),
            Shown::Begins => *flow = Some(window.reserve(FEED_LANE, 1)),
            Shown::Ends => {
                if let Some(run) = flow.take() {
                    window.fill(run, b"", 1, out);
                }
            }
        })
    }
}

/// Whether the feed takes a command that has nothing to do with it: one reply, and nothing left behind but what a
/// transaction leaves.
fn may_ride(command: &Command, args: &Args) -> bool {
    match command.class {
        Class::Node | Class::Everywhere | Class::Transaction => true,
        Class::Blocking => !matches!(&*command.name, "wait" | "waitaof"),
        Class::Read | Class::Write | Class::ManyKey => command.rides_lane(args),
        Class::Subscribe | Class::Session | Class::EveryNode | Class::Refused => false,
    }
}

/// Whether asking again would give the same answer.
fn is_final(line: &str) -> bool {
    let word = line.trim_start_matches('-').split(' ').next().unwrap_or_default();
    matches!(word, "NOAUTH" | "WRONGPASS" | "NOPERM")
}
