//! CLIENT REPLY: whether the client hears the replies to what it asks.
//!
//! Every change waits until nothing is in flight, so that what arrives belongs to one side of it. What Redis says
//! to subscribers, confirmations included, are messages and no replies: they are heard in any case.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::listener::{Heard, hear, kept_bytes};
use super::own::Myself;
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
    pub(super) fn fill(&mut self, session: &Rc<Session>, run: RunId, bytes: &[u8], replies: u32) {
        match self.listened(session, run, bytes, replies) {
            Some(heard) => self.fill_heard(run, heard),
            None => self.fill_plain(run, bytes, replies),
        }
    }

    /// The same for what was listened to.
    pub(super) fn fill_heard(&mut self, run: RunId, heard: Heard) {
        if heard.muted {
            self.settle_awaited(run, heard.replies);
            self.window.fill(run, &heard.bytes, heard.replies, &mut self.out);
            self.muffle(self.out.len());
        } else {
            self.fill_plain(run, &heard.bytes, heard.replies);
        }
        if let Some(mute) = heard.mute {
            self.mute = mute;
        }
    }

    fn fill_plain(&mut self, run: RunId, bytes: &[u8], replies: u32) {
        self.settle_awaited(run, replies);
        let heard = self.out.len();
        self.window.fill(run, bytes, replies, &mut self.out);
        self.muffle(heard);
    }

    /// What everything else waited for is all that is in flight.
    #[inline]
    fn settle_awaited(&mut self, run: RunId, replies: u32) {
        if self.awaits == Awaits::Own && replies > 0 && self.window.holds(run) {
            self.awaits = Awaits::Nothing;
        }
    }

    /// What the client is to see of reply bytes, if somebody listens to them.
    #[inline]
    fn listened(&mut self, session: &Rc<Session>, run: RunId, bytes: &[u8], replies: u32) -> Option<Heard> {
        self.listeners.as_ref()?;
        let mut listeners = self.listeners.take();
        let mut myself = Myself {
            session,
            state: self,
            run,
        };
        let heard = hear(&mut listeners, run, bytes, replies, &mut myself);
        self.listeners = listeners;
        heard
    }

    /// Reply bytes that the client does not have.
    pub(super) fn unwritten(&self) -> usize {
        self.out.len() - self.sent + kept_bytes(&self.listeners)
    }

    /// Something of our own that is no reply.
    pub(super) fn tell(&mut self, message: &[u8]) {
        self.window.local(message, &mut self.out);
        self.muffle(self.out.len());
    }

    /// A reply of our own.
    pub(super) fn local(&mut self, reply: &[u8]) {
        if self.mute == Mute::No {
            self.window.local(reply, &mut self.out);
        }
        self.muffle(self.out.len());
    }

    /// A reply of a feed.
    pub(super) fn feed_reply(&mut self, session: &Rc<Session>, run: RunId, bytes: &[u8]) {
        self.feed_fill(session, run, bytes, 1);
    }

    /// A part of the reply to a request of a feed.
    pub(super) fn feed_part(&mut self, session: &Rc<Session>, run: RunId, bytes: &[u8]) {
        self.feed_fill(session, run, bytes, 0);
    }

    fn feed_fill(&mut self, session: &Rc<Session>, run: RunId, bytes: &[u8], replies: u32) {
        let listened = self.listened(session, run, bytes, replies);
        let plain = || Heard {
            bytes: bytes.to_vec(),
            replies,
            ..Heard::default()
        };
        let heard = listened.unwrap_or_else(plain);
        let hears = heard.muted || self.mute == Mute::No || (replies > 0 && is_message(&heard.bytes));
        self.settle_awaited(run, heard.replies);
        let bytes = if hears { &heard.bytes[..] } else { b"" };
        self.window.fill(run, bytes, heard.replies, &mut self.out);
        if heard.replies > 0 {
            self.muffle(self.out.len());
        }
        if let Some(mute) = heard.mute {
            self.mute = mute;
        }
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
