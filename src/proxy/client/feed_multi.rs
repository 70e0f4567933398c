//! A transaction on a feed: everything that may stand in one, which there is also what changes the feed itself.
//!
//! SUBSCRIBE, UNSUBSCRIBE and CLIENT TRACKING take effect with EXEC; what that will be is noted in the
//! [line](super::feedline::FeedLine) when they are queued. Invariant: they are noted with nothing in flight, and nothing is
//! asked before the EXEC that runs them is answered.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::everynode::line_for_all;
use super::exec_reply::Elements;
use super::feed::Feed;
use super::feed_request::may_ride;
use super::feed_tracking::NO_CLIENT;
use super::feedline::{Asked, Change, POISON};
use super::listener::Ear;
use super::session::{Park, Session};
use super::subscriptions::{Family, Kind, Name, Verb, put_family};
use super::tracking::{Unfit, Word};
use super::wait::Awaits;
use crate::command::{Class, Command, Concern, Flags, refusal};
use crate::proxy::backend::{put_own, put_request};
use crate::resp::Args;
use crate::route::Place;
use crate::topology::ShardIndex;

const TOO_MANY_NAMES: &[u8] = b"-OOM pointsman keeps at most 100000 subscriptions and 8388608 bytes of their names for one client, 65536 bytes for one name\r\n";
const TOO_MUCH: &[u8] =
    b"-ERR pointsman takes at most 1024 scans, new scripts and questions about the server in one transaction\r\n";

impl Session {
    /// Judges a request inside a transaction on the feed.
    pub(super) fn request_in_multi(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        let listens = !matches!(command.concern, Concern::None | Concern::Digest);
        if (listens || !may_ride(command, args)) && self.with_feed(|feed| feed.elements.is_full()) == Some(true) {
            return self.poison_feed(TOO_MUCH);
        }
        match Family::of(command.name.as_bytes()) {
            // Redis has no room for its confirmation there.
            Some(Family {
                verb: Verb::Subscribe,
                kind: Kind::Shard,
            })
            | None => {}
            Some(family) => return self.family_in_multi(family, command, args, frame),
        }
        if let Some(outcome) = self.tracking_in_multi(command, args, frame) {
            return outcome;
        }
        if let Some((instead, ear)) = self.own_inside(command, args, frame) {
            let outcome = self.ask_and_answer(command, args, &instead, Some(ear));
            if &*command.name == "hello" && matches!(outcome, Outcome::Done) {
                self.will(|feed| feed.elements.last(), Change::Greets);
            }
            return outcome;
        }
        if command.class == Class::EveryNode {
            if let Some(line) = line_for_all(command, args) {
                return self.poison_feed(&line);
            }
            let reply = self.tells_after_exec(self.state().login.clone(), command, args, frame);
            return self.ask_and_answer(command, args, frame, Some(Ear::Tells(reply)));
        }
        if may_ride(command, args) && self.worker.place(command, args) == Place::Shard(ShardIndex(0)) {
            return self.end_in_multi(command, args, frame);
        }
        let mut line = Vec::new();
        match command.class {
            _ if command.flags.has(Flags::NO_MULTI) => {
                line.extend_from_slice(b"-ERR Command not allowed inside a transaction\r\n");
            }
            Class::Refused => refusal::not_passed_on(command, &mut line),
            _ => refusal::not_yet(command, &mut line),
        }
        self.poison_feed(&line)
    }

    /// An EXEC that changes the feed, or what the client is, goes alone.
    fn end_in_multi(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        let changes = |feed: &mut Feed| (feed.elements.act() || feed.line.will_change()) && !feed.line.stale;
        let acts = &*command.name == "exec" && self.with_feed(changes) == Some(true);
        if acts && self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        let outcome = self.ask_plain(command, args, frame);
        if acts && self.state().window.unanswered() > 0 {
            self.state().awaits = Awaits::Own;
        }
        outcome
    }

    /// Has Redis refuse a request of the transaction; the client sees this line.
    pub(super) fn poison_feed(self: &Rc<Self>, line: &[u8]) -> Outcome {
        let mut poison = Vec::new();
        put_request(&mut poison, &POISON);
        self.ask(Asked::Poison(line.into()), &poison)
    }

    fn will(&self, place: impl FnOnce(&mut Feed) -> Option<u32>, change: Change) {
        self.with_feed(|feed| {
            if let Some(place) = place(feed) {
                feed.line.will(place, change);
            }
        });
    }

    fn family_in_multi(self: &Rc<Self>, family: Family, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        let mut names: Vec<Name> = args.iter().skip(1).map(Into::into).collect();
        let mut all = Vec::new();
        if names.is_empty() {
            // By their names, so that it is known how many confirmations come.
            names = self
                .with_feed(|feed| feed.line.names_then(family.kind))
                .unwrap_or_default();
            put_family(family, &names.iter().map(|name| &**name).collect::<Vec<_>>(), &mut all);
            if names.is_empty() {
                names.push(Name::default());
            }
        }
        let frame = if all.is_empty() { frame } else { &all };
        if family.verb == Verb::Subscribe {
            let asked = || names.iter().map(|name| &**name);
            if self.with_feed(|feed| feed.line.subscriptions.ask(asked()).is_ok()) != Some(true) {
                return self.poison_feed(TOO_MANY_NAMES);
            }
        }
        let frames = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let outcome = self.ask_and_answer(command, args, frame, None);
        let plain = !self.state().login.resp3 || self.with_feed(|feed| feed.line.will_greet()) == Some(true);
        self.with_feed(|feed| feed.elements.confirms(frames, plain));
        self.will(|feed| feed.elements.last(), Change::Names(family, names.into()));
        outcome
    }

    /// What changes or asks about tracking.
    fn tracking_in_multi(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        let word = match &*command.name {
            "client|tracking" => Word::tracking(args),
            "client|caching" => Ok(Word::caching(args).unwrap_or(Word::Asks)),
            "client|trackinginfo" | "client|getredir" => Ok(Word::Asks),
            _ => return None,
        };
        if self.state().window.unanswered() > 0 {
            return Some(Outcome::Park(Park::Drain));
        }
        let word = match word {
            Ok(word) if self.with_feed(|feed| feed.line.tracking.has_room(&word)) == Some(false) => {
                return Some(self.poison_feed(Unfit::TooMany.line()));
            }
            Ok(word) => word,
            // It is said when EXEC comes to it.
            Err(_) => {
                let (instead, ear) = self.own_inside(command, args, frame)?;
                return Some(self.ask_and_answer(command, args, &instead, Some(ear)));
            }
        };
        let nobody = || {
            let mut ping = Vec::new();
            put_own(&mut ping, &[b"PING"]);
            self.ask_and_answer(command, args, &ping, Some(Ear::Says(NO_CLIENT.into())))
        };
        Some(self.redirecting(&word, args, frame, nobody, |frame| {
            let own = match word {
                Word::Asks => self.redirect_reply().map(Ear::Redirect),
                Word::On(_) | Word::Off(_) | Word::Caching(_) => None,
            };
            let outcome = self.ask_and_answer(command, args, frame, own);
            self.will(|feed| feed.elements.last(), Change::Tracks(word.clone()));
            outcome
        }))
    }

    /// Whether the session's feed is inside a transaction.
    pub(super) fn feed_is_in_multi(&self) -> bool {
        self.with_feed(|feed| feed.line.multi) == Some(true)
    }

    /// EXEC with a wrong number of arguments ends the transaction.
    pub(super) fn discard_feed(self: &Rc<Self>, line: &'static [u8]) -> Outcome {
        let mut discard = Vec::new();
        put_request(&mut discard, &[b"DISCARD"]);
        let outcome = self.ask(Asked::Discard(line), &discard);
        self.with_feed(|feed| {
            feed.elements = Elements::default();
            feed.line.end_transaction();
        });
        outcome
    }
}
