//! What a feed hears while it waits for replies that replicas have to acknowledge (rule A7).
//!
//! Held as it came, messages and all, because their order is Redis'; so everything about it counts as unanswered, also
//! when the connection is lost: then messages that were held are missed as with any lost feed. What is not acknowledged in
//! time is shown, but for replies: those are in doubt.

use std::rc::Rc;

use super::close::CloseReason;
use super::feed::Link;
use super::session::Session;
use crate::clock;
use crate::proxy::backend::{LaneEnd, Tap};
use crate::proxy::shard::Ticket;
use crate::topology::ShardIndex;

/// Held bytes above which the client is closed, as one that does not read.
const HELD_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes that came in one go.
#[derive(Debug)]
pub(super) struct Heard {
    ticket: Ticket,
    since_ms: u64,
    bytes: Vec<u8>,
}

impl Session {
    /// Holds what a feed heard, if it may show what is not acknowledged, or stands behind such. `false`: it may be taken
    /// in.
    pub(super) fn hold_feed(self: &Rc<Self>, tap: &Rc<Tap>, bytes: &[u8]) -> Result<bool, LaneEnd> {
        if tap.target.acks == 0 {
            return Ok(false);
        }
        let shard = self.worker.shard(ShardIndex(0));
        let shows = |request: &[u8]| self.shows_unacknowledged(request, &shard);
        let needs = self.with_feed(|feed| !feed.held.is_empty() || feed.line.awaits_data(shows));
        if needs != Some(true) {
            return Ok(false);
        }
        // Without a connection that was open before this came, nothing can vouch for it (rule R11).
        let ticket = shard.ticket(&tap.target).ok_or(LaneEnd::Eof)?;
        let heard = Heard {
            ticket,
            since_ms: clock::monotonic_ms(),
            bytes: bytes.to_vec(),
        };
        let (first, total) = self
            .with_feed(|feed| {
                let first = feed.held.is_empty();
                feed.held.push_back(heard);
                (first, feed.held.iter().map(|heard| heard.bytes.len()).sum::<usize>())
            })
            .unwrap_or_default();
        if first {
            shard.feed_holds(self);
        }
        if total > HELD_BYTES_MAX {
            self.close(CloseReason::SlowReader);
        }
        Ok(true)
    }

    /// Takes in what is acknowledged with `upto`. Says whether something is still held.
    pub fn feed_acknowledged(self: &Rc<Self>, upto: Ticket) -> bool {
        loop {
            let next = self.with_feed(|feed| {
                let Link::Up(tap) = &feed.link else { return None };
                feed.held.front().filter(|heard| heard.ticket <= upto)?;
                let heard = feed.held.pop_front()?;
                Some((tap.clone(), heard))
            });
            let Some((tap, heard)) = next.flatten() else { break };
            self.take_held(&tap, &heard.bytes, None);
        }
        self.with_feed(|feed| !feed.held.is_empty()) == Some(true)
    }

    /// Takes in what has been held since before `until_ms`, although only `counts.0` of `counts.1` replicas have it, as far
    /// as is known. Says whether something is still held.
    pub fn feed_not_acknowledged(self: &Rc<Self>, until_ms: u64, counts: (u32, u32)) -> bool {
        loop {
            let next = self.with_feed(|feed| {
                let Link::Up(tap) = &feed.link else { return None };
                feed.held.front().filter(|heard| heard.since_ms < until_ms)?;
                let heard = feed.held.pop_front()?;
                Some((tap.clone(), heard, feed.line.is_inside_reply()))
            });
            let Some((tap, heard, cut)) = next.flatten() else { break };
            if cut {
                // What was shown of a reply cannot be taken back.
                self.close(CloseReason::ReplyCutOff);
                return false;
            }
            self.take_held(&tap, &heard.bytes, Some(counts));
        }
        self.with_feed(|feed| !feed.held.is_empty()) == Some(true)
    }

    fn take_held(self: &Rc<Self>, tap: &Rc<Tap>, bytes: &[u8], doubt: Option<(u32, u32)>) {
        match self.take_from_feed(tap, bytes, doubt) {
            Ok(()) => {}
            Err(LaneEnd::Released) => tap.close(),
            Err(_) => tap.lose(),
        }
    }

    /// The connection is gone that would have vouched for what is held: gives its own up, as if nothing had come.
    pub fn feed_has_no_witness(&self) {
        self.with_feed(|feed| {
            if let (false, Link::Up(tap)) = (feed.held.is_empty(), &feed.link) {
                tap.lose();
            }
            feed.held.clear();
        });
    }
}
