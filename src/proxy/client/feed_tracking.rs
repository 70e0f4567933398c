//! Requests about tracking (rules B6, B7): a client that caches what it reads owns a connection to Redis, a feed, from ON
//! to OFF, because Redis tells of a key only the connection that read it, and only the server that the key was read from.
//!
//! Refuses: several shards, because a feed is at the first. In RESP2 Redis tracks, too, and says nothing of it.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::feed::{Feed, Link};
use super::feedline::Asked;
use super::listener::{Ear, Listener};
use super::session::{Park, Session, State};
use super::tracking::{INVALIDATE_ALL, Unfit, Word};
use crate::command::{Command, Lookup, refusal};
use crate::proxy::backend::with_words;
use crate::resp::Args;

pub(super) const NO_CLIENT: &[u8] = b"-ERR The client ID you want redirect to does not exist\r\n";
const NOT_TRACKING: &[u8] =
    b"-ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled\r\n";

impl Session {
    /// Judges a request about tracking of a session without a feed; `None`: it is about something else, or asks what is
    /// answered here.
    pub(super) fn tracking_request(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        match &*command.name {
            "client|caching" => Some(self.refuse(|out| out.extend_from_slice(NOT_TRACKING))),
            "client|tracking" => Some(match Word::tracking(args) {
                Err(unfit) => self.refuse_tracking(unfit),
                Ok(Word::On(_)) if !self.may_track() => self.refuse(|out| refusal::not_yet(command, out)),
                Ok(word @ Word::On(_)) => self.redirecting(
                    &word,
                    args,
                    frame,
                    || self.nobody(),
                    |frame| {
                        self.begin_feed()
                            .unwrap_or_else(|| self.ask_tracking(word.clone(), frame))
                    },
                ),
                Ok(Word::Off(_) | Word::Caching(_) | Word::Asks) => {
                    self.refuse(|out| out.extend_from_slice(b"+OK\r\n"))
                }
            }),
            _ => None,
        }
    }

    /// The same for one that has a feed.
    pub(super) fn tracking_with_feed(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        let word = match &*command.name {
            "client|tracking" => Word::tracking(args),
            // Redis looks at its argument only while it tracks.
            "client|caching" => Ok(Word::caching(args).unwrap_or(Word::Asks)),
            "client|trackinginfo" | "client|getredir" => Ok(Word::Asks),
            _ => return None,
        };
        Some(match word {
            Err(unfit) => self.refuse_tracking(unfit),
            Ok(Word::On(_)) if !self.may_track() => self.refuse(|out| refusal::not_yet(command, out)),
            // So that what is asked for is known together with what there is.
            Ok(Word::On(_) | Word::Off(_)) if self.state().window.unanswered() > 0 => Outcome::Park(Park::Drain),
            Ok(word) => self.redirecting(
                &word,
                args,
                frame,
                || self.nobody(),
                |frame| self.ask_tracking(word.clone(), frame),
            ),
        })
    }

    fn nobody(self: &Rc<Self>) -> Outcome {
        self.refuse(|out| out.extend_from_slice(NO_CLIENT))
    }

    /// Goes on with the request as Redis is to get it, in which another client has the id that Redis knows it by.
    pub(super) fn redirecting(
        self: &Rc<Self>,
        word: &Word,
        args: &Args,
        frame: &[u8],
        nobody: impl FnOnce() -> Outcome,
        go_on: impl FnOnce(&[u8]) -> Outcome,
    ) -> Outcome {
        let Some(to) = word.redirect() else { return go_on(frame) };
        let id = match self.redirected_to(to) {
            Ok(id) => id,
            Err(outcome) => return outcome,
        };
        let at = args.iter().position(|option| option.eq_ignore_ascii_case(b"redirect"));
        let (Some(id), Some(at)) = (id, at) else {
            self.uses_redirection();
            return nobody();
        };
        let outcome = go_on(&with_words(args, &[(at + 1, id.as_bytes())]));
        if let Outcome::Done = outcome {
            self.uses_redirection();
        }
        outcome
    }

    /// Tells the client to forget what it has in its cache, if the connection that told it of changes is gone: before
    /// anything that another server says.
    pub(super) fn tell_of_lost_tracking(self: &Rc<Self>) {
        let mut state = self.state();
        let State { feed, window, out, .. } = &mut *state;
        if feed.as_mut().is_some_and(|feed| feed.line.tracking.take_owed()) {
            window.push(INVALIDATE_ALL, out);
            self.settle(&mut state, &self.worker.clone());
        }
    }

    /// A request was answered that did not go to Redis, unless it did: to Redis' mind CLIENT CACHING, if it came before, was
    /// said of that one.
    pub(super) fn spend_caching(&self, args: &Args) {
        if self.with_feed(|feed| feed.line.tracking.has_spoken() && !feed.line.multi) != Some(true) {
            return;
        }
        if let Lookup::Known(command) = self.worker.commands().lookup(args)
            && command.name.starts_with("client|")
        {
            return;
        }
        self.with_feed(|feed| {
            if let Link::Up(tap) = &feed.link {
                feed.line.ask_nothing(Asked::Idle, |bytes| tap.send(bytes));
            }
        });
    }

    fn may_track(&self) -> bool {
        self.worker.shard_count() == 1
    }

    fn ask_tracking(self: &Rc<Self>, word: Word, frame: &[u8]) -> Outcome {
        if self.with_feed(|feed: &mut Feed| feed.line.tracking.has_room(&word)) == Some(false) {
            return self.refuse_tracking(Unfit::TooMany);
        }
        let listener = match word {
            Word::Asks => self.redirect_reply().map(|reply| Listener::One(Ear::Redirect(reply))),
            Word::On(_) | Word::Off(_) | Word::Caching(_) => None,
        };
        self.worker.footprint().clear();
        self.ask_and_listen(Asked::Tracking(word, frame.to_vec()), frame, listener)
    }

    fn refuse_tracking(self: &Rc<Self>, unfit: Unfit) -> Outcome {
        self.refuse(|out| out.extend_from_slice(unfit.line()))
    }
}
