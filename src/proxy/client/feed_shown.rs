//! What Redis says on a feed, on its way to the client.

use std::rc::Rc;

use super::close::CloseReason;
use super::feed::{FEED_LANE, Feed};
use super::feedline::{Shown, Trouble};
use super::session::{Session, State};
use super::window::RunId;
use crate::proxy::backend::{LaneEnd, Tap};
use crate::topology::ShardIndex;

/// Unwritten bytes above which a client with a feed is closed, as `client-output-buffer-limit pubsub` of Redis.
const UNREAD_BYTES_MAX: usize = 32 * 1024 * 1024;

impl Session {
    /// Takes what Redis sent on the feed, once it is acknowledged where that has to be.
    pub fn feed_received(self: &Rc<Self>, tap: &Rc<Tap>, bytes: &[u8]) -> Result<(), LaneEnd> {
        if self.hold_feed(tap, bytes)? {
            return Ok(());
        }
        self.take_from_feed(tap, bytes, None)
    }

    /// Takes it in. `doubt`: so many replicas have acknowledged what it shows, of so many, and nobody waits any longer.
    pub(super) fn take_from_feed(
        self: &Rc<Self>,
        tap: &Rc<Tap>,
        bytes: &[u8],
        doubt: Option<(u32, u32)>,
    ) -> Result<(), LaneEnd> {
        let mut state = self.state();
        if state.closing.is_some() || !state.feed.as_ref().is_some_and(|feed| feed.is_on(tap)) {
            return Err(LaneEnd::Released);
        }
        let Some(mut feed) = state.feed.take() else {
            return Ok(());
        };
        // Who listens may look at the feed, and be what changes it.
        let mut later = state.listeners.is_some().then(Vec::new);
        let mut show = |shown: Shown, flow: &mut Option<RunId>| match &mut later {
            Some(later) => later.push(Later::of(&shown)),
            None => state.feed_shows(self, shown, flow),
        };
        let taken = match doubt {
            Some(counts) => feed.take_in_doubt(bytes, counts, &mut show),
            None => feed.take(bytes, &mut show),
        };
        feed.heard = true;
        if taken.is_ok() && feed.line.is_caught_up() {
            feed.failures = 0;
        }
        feed.settle_down();
        let written = feed.count_writes();
        let (idle, drained) = (feed.line.is_idle(), feed.line.is_drained());
        let aside = feed.aside.take();
        state.feed = Some(feed);
        later
            .iter()
            .flatten()
            .for_each(|later| state.feed_shows_later(self, later));
        let unread = self.settle(&mut state, &self.worker.clone());
        drop(state);
        let shard = self.worker.shard(ShardIndex(0));
        shard.doubts(aside);
        if written {
            shard.drained_some(&self.worker);
        }
        if unread > UNREAD_BYTES_MAX {
            self.close(CloseReason::SlowReader);
        }
        if idle {
            self.wake();
        }
        taken.map_err(|trouble| self.feed_in_trouble(tap, trouble))?;
        if drained {
            // It has nothing more to say; what it was to be replaced by may have been lost meanwhile.
            return Err(if self.take_over() {
                LaneEnd::Released
            } else {
                LaneEnd::Eof
            });
        }
        Ok(())
    }
}

impl Feed {
    fn take(&mut self, bytes: &[u8], show: &mut impl FnMut(Shown, &mut Option<RunId>)) -> Result<(), Trouble> {
        let Self { line, flow, fences, .. } = self;
        line.take(bytes, &mut |shown| {
            if let (Shown::Reply(..), Some(log)) = (&shown, &mut *fences) {
                log.answered(1);
            }
            show(shown, flow);
        })
    }

    /// The same in doubt: what was changed stays fenced.
    fn take_in_doubt(
        &mut self,
        bytes: &[u8],
        counts: (u32, u32),
        show: &mut impl FnMut(Shown, &mut Option<RunId>),
    ) -> Result<(), Trouble> {
        let Self { line, flow, .. } = self;
        let mut replies = 0;
        let taken = line.take_in_doubt(bytes, counts, &mut |shown| {
            replies += u32::from(matches!(shown, Shown::Reply(..)));
            show(shown, flow);
        });
        self.aside = self.fences.as_mut().and_then(|fences| fences.set_aside(replies));
        taken
    }
}

/// What a feed shows once it is back in its place.
#[derive(Debug)]
enum Later {
    Reply(RunId, Vec<u8>),
    Part(RunId, Vec<u8>),
    Push(Vec<u8>),
    Begins,
    Ends,
}

impl Later {
    fn of(shown: &Shown) -> Self {
        match shown {
            Shown::Reply(run, bytes) => Self::Reply(*run, bytes.to_vec()),
            Shown::Part(run, bytes) => Self::Part(*run, bytes.to_vec()),
            Shown::Push(bytes) => Self::Push(bytes.to_vec()),
            Shown::Begins => Self::Begins,
            Shown::Ends => Self::Ends,
        }
    }

    fn shown(&self) -> Shown<'_> {
        match self {
            Self::Reply(run, bytes) => Shown::Reply(*run, bytes),
            Self::Part(run, bytes) => Shown::Part(*run, bytes),
            Self::Push(bytes) => Shown::Push(bytes),
            Self::Begins => Shown::Begins,
            Self::Ends => Shown::Ends,
        }
    }
}

impl State {
    fn feed_shows_later(&mut self, session: &Rc<Session>, later: &Later) {
        let before = self.login.clone();
        let mut flow = self.feed.as_mut().and_then(|feed| feed.flow.take());
        self.feed_shows(session, later.shown(), &mut flow);
        let changed = self.login != before;
        if let Some(feed) = &mut self.feed {
            feed.flow = flow;
            if changed {
                // EXEC did the same to the connection.
                feed.acts_for(&self.login);
            }
        }
    }

    /// Gives the client what its feed shows; `flow` is where a message that comes in parts stands in the window.
    fn feed_shows(&mut self, session: &Rc<Session>, shown: Shown, flow: &mut Option<RunId>) {
        match shown {
            Shown::Reply(run, bytes) => self.feed_reply(session, run, bytes),
            Shown::Part(run, bytes) => self.feed_part(session, run, bytes),
            Shown::Push(bytes) => self.window.push(bytes, &mut self.out),
            Shown::Begins => *flow = Some(self.window.reserve(FEED_LANE, 1)),
            Shown::Ends => {
                if let Some(run) = flow.take() {
                    self.window.fill(run, b"", 1, &mut self.out);
                }
            }
        }
    }
}
