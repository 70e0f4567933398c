//! What a request means for a session that has a feed, or is about to have one: where it goes, or what it is told.
//!
//! In RESP2 a subscriber may do nothing else, in RESP3 it may run any command; both are answered in Redis' words and in
//! Redis' order. What cannot be taken back (other classes than those of [`may_ride`]) never reaches the feed.

use std::rc::Rc;

use super::cursor::begun_anew;
use super::dispatch::Outcome;
use super::exec_reply::Elements;
use super::feed::{FEED_LANE, Feed, Link};
use super::feedline::{Asked, Plain};
use super::listener::{Ear, Listener, reserve_for};
use super::mute::Mute;
use super::session::{Park, Session, State};
use super::stream::COLLECTED_BYTES_MAX;
use super::subscriptions::{Family, NAMES_MAX, Verb};
use super::transaction::{Told, Transaction};
use crate::clock;
use crate::command::{Class, Command, Concern, Flags, Table, refusal};
use crate::proxy::backend::{Role, Tap, put_request};
use crate::resp::Args;
use crate::route::Place;
use crate::topology::ShardIndex;

/// Bytes of unanswered requests above which a client is not read from.
const UNANSWERED_BYTES_MAX: usize = 1024 * 1024;
const TOO_MANY: &[u8] = b"-OOM pointsman keeps at most 100000 subscriptions and 8388608 bytes of their names for one client, 65536 bytes for one name\r\n";
const ONLY: &[u8] = b"only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n";

impl Session {
    /// Judges a request that begins a feed, or of a session that has one; `None`: it goes the way of all others.
    pub(super) fn feed_request(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        let family = Family::of(command.name.as_bytes());
        if self.state().feed.is_some() {
            return self.request_with_feed(family, command, args, frame);
        }
        match family {
            Some(family) if family.verb == Verb::Unsubscribe => {
                let mut state = self.state();
                if state.mute != Mute::No && state.window.unanswered() > 0 {
                    // It would go where what comes before it goes.
                    return Some(Outcome::Park(Park::Drain));
                }
                let resp3 = state.login.resp3;
                let mut told = Vec::new();
                put_unsubscribed(family, args, resp3, &mut told);
                state.tell(&told);
                Some(Outcome::Done)
            }
            Some(family) => {
                let begun = self.begin_feed();
                Some(begun.unwrap_or_else(|| self.ask_family(family, args, frame)))
            }
            None if &*command.name == "monitor" => {
                let begun = self.begin_feed();
                Some(begun.unwrap_or_else(|| self.ask(Asked::Monitor, frame)))
            }
            None => self.tracking_request(command, args, frame),
        }
    }

    /// Gives the session a feed for a command; `None`: there it is.
    pub(super) fn begin_feed(self: &Rc<Self>) -> Option<Outcome> {
        {
            let mut state = self.state();
            if state.window.unanswered() > 0 {
                return Some(Outcome::Park(Park::Drain));
            }
            if state.pinned.is_some() {
                if state.transaction.needs_connection() {
                    drop(state);
                    self.turn_into_feed();
                    return None;
                }
                // It is given back when the session is looked at next.
                self.wake();
                return Some(Outcome::Park(Park::Drain));
            }
            if state.transaction.needs_connection() {
                // What is queued is on its way to another connection.
                drop(state);
                self.wake();
                return Some(Outcome::Park(Park::Drain));
            }
            let mut feed = Box::new(Feed::of(state.login.clone()));
            if state.transaction == Transaction::Stale {
                (feed.line.watch, feed.line.stale) = (true, true);
                state.stand(Transaction::None);
            }
            state.feed = Some(feed);
        }
        if self.open_feed() {
            return None;
        }
        let stale = self.state().feed.take().is_some_and(|feed| feed.line.stale);
        if stale {
            self.state().stand(Transaction::Stale);
        }
        Some(self.hold_without_master().map_or(Outcome::Done, Outcome::Park))
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
            return Some(self.ask_plain(command, args, frame));
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
        if let Some(outcome) = self.tracking_with_feed(command, args, frame) {
            return Some(outcome);
        }
        if may_ride(command, args) && self.worker.place(command, args) != Place::Shard(ShardIndex(0)) {
            return Some(self.refuse(|out| refusal::not_yet(command, out)));
        }
        may_ride(command, args).then(|| self.ask_plain(command, args, frame))
    }

    /// What a request for the feed has to wait for.
    pub(super) fn feed_is_busy(self: &Rc<Self>) -> Option<Outcome> {
        let mut state = self.state();
        let feed = state.feed.as_ref()?;
        if feed.moving.is_some() {
            return Some(Outcome::Park(Park::Drain));
        }
        if feed.awaits_master() {
            // It is in the worker's list already.
            state.held_since_ms = feed.waits_since_ms();
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

    pub(super) fn ask_plain(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        self.ask_and_answer(command, args, frame, None)
    }

    /// The same; inside a transaction `own` listens to what is said in EXEC's reply.
    pub(super) fn ask_and_answer(
        self: &Rc<Self>,
        command: &Command,
        args: &Args,
        frame: &[u8],
        own: Option<Ear>,
    ) -> Outcome {
        let (multi, stale) = self
            .with_feed(|feed| (feed.line.multi, feed.line.stale))
            .unwrap_or_default();
        let role = role(&command.name);
        if role == Role::Exec && multi && stale {
            return self.discard_stale();
        }
        let queued = role == Role::Multi || (multi && !matches!(role, Role::Exec | Role::Discard));
        // What the client itself is asked about changes no data.
        let is_write = (command.is_write() && own.is_none()) || &*command.name == "exec";
        // A script may have written before it was refused (rule A4).
        let is_script = command.flags.has(Flags::NO_MANDATORY_KEYS) || command.fences_all;
        if is_write {
            let shard = self.worker.shard(ShardIndex(0));
            self.state().wrote(&shard);
        }
        let (life, inside) = self
            .with_feed(|feed| (feed.life.clone(), feed.line.multi))
            .unwrap_or_default();
        let (mut ear, instead) = self.listen(command, args, life.as_ref());
        if own.is_some() {
            ear = own;
        }
        let blocks = command.class == Class::Blocking && !queued;
        let waits = is_write && !self.feed_takes_writes();
        let kept = waits || frame.len() <= COLLECTED_BYTES_MAX;
        let again = || match command.concern {
            Concern::Cursor(_) => begun_anew(frame, self.worker.commands()).unwrap_or_else(|| frame.to_vec()),
            Concern::None | Concern::Body | Concern::Digest | Concern::Own(_) => frame.to_vec(),
        };
        let asked = Asked::Plain(Plain {
            bytes: if kept { again() } else { Vec::new() },
            is_write,
            role,
            queued,
            again: kept && matches!(role, Role::Plain | Role::Exec) && !is_script,
            since_ms: blocks.then(clock::monotonic_ms),
        });
        self.mark_on_feed(command, args, role, queued);
        let listener = match role {
            Role::Exec if inside => self
                .with_feed(|feed| {
                    let elements = std::mem::take(&mut feed.elements);
                    feed.line.expect(elements.frames());
                    elements.listener()
                })
                .flatten(),
            Role::Discard if inside => {
                self.with_feed(|feed| feed.elements = Elements::default());
                None
            }
            _ if inside => {
                self.with_feed(|feed| {
                    feed.elements.queue(&command.name, ear);
                    if !is_write {
                        feed.elements.is_quiet();
                    }
                });
                None
            }
            _ => ear.map(Listener::One),
        };
        let frame = instead.as_deref().unwrap_or(frame);
        let outcome = if waits {
            self.ask_later(asked, frame.len(), listener)
        } else {
            self.ask_and_listen(asked, frame, listener)
        };
        self.with_feed(|feed| match &*command.name {
            "multi" => feed.line.multi = true,
            "watch" => feed.line.watch = true,
            "unwatch" if !feed.line.multi => (feed.line.watch, feed.line.stale) = (false, false),
            "exec" | "discard" if feed.line.multi => feed.line.end_transaction(),
            _ => {}
        });
        outcome
    }

    /// Begins to ask what comes in parts, of which these `bytes` are the first: nothing of it is kept. `None`: it has to
    /// be whole before it can be asked.
    pub(super) fn ask_in_parts(self: &Rc<Self>, command: &Command, args: &Args, bytes: &[u8]) -> Option<Rc<Tap>> {
        let (tap, queued, life) = self.with_feed(|feed| match &feed.link {
            Link::Up(tap) => Some((tap.clone(), feed.line.multi, feed.life.clone())),
            Link::Down => None,
        })??;
        let is_write = command.is_write();
        if is_write && !self.leads_to_master(&tap) {
            return None;
        }
        let (mut ear, _) = self.listen(command, args, life.as_ref());
        if queued {
            self.with_feed(|feed| feed.elements.queue(&command.name, ear.take()));
        }
        if is_write {
            let shard = self.worker.shard(ShardIndex(0));
            let mut state = self.state();
            state.wrote(&shard);
            // Its keys may not all be there yet.
            let mut footprint = self.worker.footprint();
            footprint.clear();
            match state.feed.as_mut().filter(|_| queued) {
                Some(feed) => feed.queued.writes_every_key(0),
                None => footprint.writes_every_key(0),
            }
        }
        let asked = Asked::Plain(Plain {
            bytes: Vec::new(),
            is_write,
            role: Role::Plain,
            queued,
            again: false,
            since_ms: None,
        });
        self.ask_and_listen(asked, bytes, ear.map(Listener::One));
        self.with_feed(|feed| feed.line.goes_on());
        Some(tap)
    }

    /// What a lost connection watched may have changed: EXEC does nothing.
    fn discard_stale(self: &Rc<Self>) -> Outcome {
        let mut discard = Vec::new();
        put_request(&mut discard, &[b"DISCARD"]);
        let nil = Told::Nil.line(self.state().login.resp3);
        let outcome = self.ask(Asked::Discard(nil), &discard);
        self.with_feed(|feed| feed.line.end_transaction());
        outcome
    }

    /// Gathers what a request changes, in the worker's footprint: at once, or when EXEC runs what was queued (A9).
    fn mark_on_feed(&self, command: &Command, args: &Args, role: Role, queued: bool) {
        let mut state = self.state();
        let Some(feed) = &mut state.feed else { return };
        let mut footprint = self.worker.footprint();
        footprint.clear();
        match role {
            Role::Multi if !feed.line.multi => feed.queued.clear(),
            Role::Exec if feed.line.multi => {
                *footprint = std::mem::take(&mut feed.queued);
                footprint.belongs_to(0);
            }
            Role::Plain if queued => {
                self.mark(command, args, 0, &mut feed.queued);
                feed.queued.bound();
            }
            Role::Plain | Role::Block | Role::Forgotten => self.mark(command, args, 0, &mut footprint),
            Role::Multi | Role::Exec | Role::Discard | Role::Watch => {}
        }
    }

    pub(super) fn ask(self: &Rc<Self>, asked: Asked, frame: &[u8]) -> Outcome {
        self.worker.footprint().clear();
        self.ask_and_listen(asked, frame, None)
    }

    /// Sends a request that changes what is in the worker's footprint, which is empty afterwards.
    pub(super) fn ask_and_listen(self: &Rc<Self>, asked: Asked, frame: &[u8], listener: Option<Listener>) -> Outcome {
        let mut state = self.state();
        let State {
            feed,
            window,
            listeners,
            ..
        } = &mut *state;
        if let Some(feed) = feed
            && let Link::Up(tap) = &feed.link
        {
            let tap = tap.clone();
            if matches!(asked, Asked::Monitor) {
                feed.monitors = Some(self.worker.monitoring());
            }
            let run = reserve_for(window, listeners, FEED_LANE, listener);
            feed.fence(1, &self.worker.footprint());
            self.worker.footprint().clear();
            feed.line.ask(asked, Some(run), tap.send(frame), frame.len());
            feed.count_writes();
        }
        Outcome::Done
    }

    /// Whether the feed leads to a server that may get what changes something.
    fn feed_takes_writes(&self) -> bool {
        let tap = self.with_feed(|feed| match &feed.link {
            Link::Up(tap) => Some(tap.clone()),
            Link::Down => None,
        });
        tap.flatten().is_some_and(|tap| self.leads_to_master(&tap))
    }

    /// Keeps a request until the feed leads to a master.
    fn ask_later(self: &Rc<Self>, asked: Asked, bytes: usize, listener: Option<Listener>) -> Outcome {
        let mut state = self.state();
        let State {
            feed,
            window,
            listeners,
            ..
        } = &mut *state;
        if let Some(feed) = feed {
            let run = reserve_for(window, listeners, FEED_LANE, listener);
            feed.fence(1, &self.worker.footprint());
            self.worker.footprint().clear();
            feed.line.ask_later(asked, run, bytes);
            feed.wait_from_now();
        }
        drop(state);
        self.wake();
        Outcome::Done
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
}

/// What Redis answers to an unsubscribe of who has no subscription.
pub(super) fn put_unsubscribed(family: Family, args: &Args, resp3: bool, out: &mut Vec<u8>) {
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
    if args.len() == 1 {
        put(None);
    }
    args.iter().skip(1).for_each(|name| put(Some(name)));
}

/// What a command is to a transaction.
fn role(name: &str) -> Role {
    match name {
        "multi" => Role::Multi,
        "exec" => Role::Exec,
        "discard" => Role::Discard,
        "watch" | "unwatch" => Role::Watch,
        _ => Role::Plain,
    }
}

/// Whether the feed takes a command that has nothing to do with it: one reply, and nothing left behind but what a
/// transaction leaves.
pub(super) fn may_ride(command: &Command, args: &Args) -> bool {
    match command.class_for(args) {
        Class::Node | Class::Everywhere | Class::Transaction => true,
        Class::Blocking => !matches!(&*command.name, "wait" | "waitaof"),
        Class::Read | Class::Write | Class::ManyKey => command.rides_lane(args) || !Table::knows(command),
        Class::Subscribe | Class::Session | Class::EveryNode | Class::Refused => false,
    }
}
