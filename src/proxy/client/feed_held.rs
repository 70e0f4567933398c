//! What a feed hears while it waits for replies that replicas have to acknowledge (rule A7).
//!
//! Held as it came, messages and all, because their order is Redis'; so everything about it counts as unanswered, also
//! when the connection is lost. What is not acknowledged in time costs the connection: writes are in doubt, the rest is
//! asked again, and messages that were held are missed as with any lost feed.

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
            match self.take_from_feed(&tap, &heard.bytes) {
                Ok(()) => {}
                Err(LaneEnd::Released) => tap.close(),
                Err(_) => tap.lose(),
            }
        }
        self.with_feed(|feed| !feed.held.is_empty()) == Some(true)
    }

    /// Gives the connection up, if something that it said has been held since before `until_ms`. Says whether it has not.
    pub fn feed_not_acknowledged(self: &Rc<Self>, until_ms: u64) -> bool {
        self.with_feed(|feed| {
            let late = feed.held.front().is_some_and(|heard| heard.since_ms < until_ms);
            if late {
                feed.held.clear();
                if let Link::Up(tap) = &feed.link {
                    tap.lose();
                }
            }
            !feed.held.is_empty()
        }) == Some(true)
    }
}
