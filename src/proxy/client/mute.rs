//! CLIENT REPLY: whether the client hears the replies to what it asks.
//!
//! Every change waits until nothing is in flight, so that what arrives belongs to one side of it. What Redis says
//! to subscribers, confirmations included, are messages and no replies: they are heard in any case.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::listener::hear;
use super::session::{Park, Session, State};
use super::wait::Awaits;
use super::window::RunId;
use crate::resp::Args;

/// Which replies a client does not hear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mute {
    /// It hears all of them.
    #[default]
    No,
    /// None until CLIENT REPLY ON.
    Off,
    /// Not that to its next request; that request makes it `Skipping`.
    SkipsNext,
    /// Not that to the request in flight; its reply makes it `No`.
    Skipping,
}

impl Session {
    pub(super) fn client_reply(self: &Rc<Self>, args: &Args) -> Outcome {
        let word = args.get(2).unwrap_or_default().to_ascii_lowercase();
        let after = match word.as_slice() {
            b"on" => Mute::No,
            b"off" => Mute::Off,
            b"skip" if self.state().mute == Mute::Off => Mute::Off,
            b"skip" => Mute::SkipsNext,
            _ => return self.refuse(|out| out.extend_from_slice(b"-ERR syntax error\r\n")),
        };
        let mut state = self.state();
        if state.window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        state.mute = after;
        drop(state);
        if after == Mute::No {
            return self.refuse(|out| out.extend_from_slice(b"+OK\r\n"));
        }
        Outcome::Done
    }
}

impl State {
    /// A request is about to be looked at, behind `count` others that are not in flight yet. `false`: it must wait
    /// for the reply to the one that is skipped.
    #[inline]
    pub(super) fn mute_before(&mut self, count: u32) -> bool {
        match self.mute {
            Mute::No | Mute::Off => true,
            Mute::SkipsNext => {
                self.mute = Mute::Skipping;
                true
            }
            // Nothing in flight: it is the skipped one itself, which had to wait for its lane.
            Mute::Skipping => count == 0 && self.window.unanswered() == 0,
        }
    }

    /// Reply bytes for a run; what is now at the head of the window goes out, if the client is to hear it.
    pub(super) fn fill(&mut self, run: RunId, bytes: &[u8], replies: u32) {
        if self.awaits != Awaits::Nothing
            && self.window.holds(run)
            && let Some(database) = self.awaits.hear(bytes)
        {
            self.login.database = database;
        }
        let changed = hear(&mut self.listeners, run, bytes, replies);
        let bytes = changed.as_deref().unwrap_or(bytes);
        let heard = self.out.len();
        self.window.fill(run, bytes, replies, &mut self.out);
        self.muffle(heard);
    }

    /// A reply of our own.
    pub(super) fn local(&mut self, reply: &[u8]) {
        if self.mute == Mute::No {
            self.window.local(reply, &mut self.out);
        }
        self.muffle(self.out.len());
    }

    /// A reply of a feed.
    pub(super) fn feed_reply(&mut self, run: RunId, bytes: &[u8]) {
        let changed = hear(&mut self.listeners, run, bytes, 1);
        let bytes = changed.as_deref().unwrap_or(bytes);
        let heard = self.mute == Mute::No || is_message(bytes);
        self.window.fill(run, if heard { bytes } else { b"" }, 1, &mut self.out);
        self.muffle(self.out.len());
    }

    /// A part of the reply to a request of a feed.
    pub(super) fn feed_part(&mut self, run: RunId, bytes: &[u8]) {
        let changed = hear(&mut self.listeners, run, bytes, 0);
        let bytes = changed.as_deref().unwrap_or(bytes);
        let heard = self.mute == Mute::No;
        self.window.fill(run, if heard { bytes } else { b"" }, 0, &mut self.out);
    }

    #[inline]
    fn muffle(&mut self, heard: usize) {
        if self.mute != Mute::No {
            self.out.truncate(heard);
            if self.mute == Mute::Skipping && self.window.unanswered() == 0 {
                self.mute = Mute::No;
            }
        }
    }
}

/// Whether Redis gives it to subscribers as a message: a push, or in RESP2 the confirmation of a subscription.
fn is_message(bytes: &[u8]) -> bool {
    let words: [&[u8]; 6] = [
        b"$9\r\nsubscribe\r\n",
        b"$10\r\npsubscribe\r\n",
        b"$10\r\nssubscribe\r\n",
        b"$11\r\nunsubscribe\r\n",
        b"$12\r\npunsubscribe\r\n",
        b"$12\r\nsunsubscribe\r\n",
    ];
    bytes.starts_with(b">")
        || bytes
            .strip_prefix(b"*3\r\n")
            .is_some_and(|rest| words.iter().any(|word| rest.starts_with(word)))
}
