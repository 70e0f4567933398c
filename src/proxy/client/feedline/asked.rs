//! A request on a connection that speaks without being asked: what answers it, and what it is to the next connection.

use std::collections::VecDeque;

use crate::proxy::backend::{Role, doubt_line, put_request};
use crate::proxy::client::subscriptions::{Family, Kind, Name, Verb, put_family};
use crate::proxy::client::tracking::Word;
use crate::proxy::client::window::RunId;
use crate::route::{Fate, Line, refusal};

/// Redis refuses it for its arity and remembers that inside MULTI, so that EXEC runs nothing.
pub(in crate::proxy::client) const POISON: [&[u8]; 1] = [b"SUBSCRIBE"];

/// One request in flight.
#[derive(Debug)]
pub(in crate::proxy::client) enum Asked {
    /// Each name has a confirmation.
    Names(Family, VecDeque<Name>),
    /// An unsubscribe without names: as many confirmations as there are subscriptions, at least one.
    All(Kind),
    /// `+OK`, and from then on a line for each command of anybody.
    Monitor,
    /// One reply, passed on.
    Plain(Plain),
    /// One reply to these bytes, passed on; `+OK` to what changes tracking changes it.
    Tracking(Word, Vec<u8>),
    /// One reply that must be no error; the client sees these bytes in its place, and the protocol changes.
    Hello { greeting: Vec<u8>, resp3: bool },
    /// One reply that must be an error; the client sees this line in its place.
    Poison(Box<[u8]>),
    /// One reply; the client sees this line in its place. It was asked for EXEC, but is DISCARD.
    Discard(&'static [u8]),
    /// Ours: so many replies, not shown, to these bytes, which bring the connection to where a transaction was.
    Queue(usize, Vec<u8>),
    /// Ours: one reply that must be no error, not shown.
    Silent,
    /// Ours: one reply of whatever kind, not shown. It stands for a request of the client that did not go to Redis.
    Idle,
    /// Ours: subscribes to what the client believes it is subscribed to; not shown.
    Again(Kind, u32),
    /// Ours: the same for MONITOR.
    MonitorAgain,
    /// Ours: the same for one request about tracking.
    TrackAgain,
    /// Ours: one reply of whatever kind, not shown, that says that everything before it was heard.
    Marker,
}

impl Asked {
    /// Whether only a master takes it, or all of what it belongs to.
    pub(in crate::proxy::client) fn may_write(&self) -> bool {
        matches!(self, Self::Plain(plain) if plain.is_write) || matches!(self, Self::Queue(..))
    }

    /// Whether what CLIENT CACHING said before is said of this: of the next request that is none about the client, or of
    /// the next transaction.
    pub(super) fn consumes_caching(&self) -> bool {
        match self {
            Self::Plain(plain) => !plain.queued,
            Self::Names(..)
            | Self::All(_)
            | Self::Monitor
            | Self::Hello { .. }
            | Self::Discard(_)
            | Self::Silent
            | Self::Idle => true,
            Self::Tracking(..)
            | Self::Poison(_)
            | Self::Queue(..)
            | Self::Again(..)
            | Self::MonitorAgain
            | Self::TrackAgain
            | Self::Marker => false,
        }
    }

    /// Whether its reply may show data: that to a write, or to what `shows` says it of.
    pub(super) fn shows_data(&self, shows: impl Fn(&[u8]) -> bool) -> bool {
        matches!(self, Self::Plain(plain) if !plain.queued && (plain.is_write || shows(&plain.bytes)))
    }

    /// What its client is told in place of a reply that is acknowledged by too few replicas: nothing else where that shows
    /// neither a change nor data.
    pub(super) fn doubtful(&self, reply: &[u8], counts: (u32, u32)) -> Option<Vec<u8>> {
        let Self::Plain(plain) = self else { return None };
        let stands_around = matches!(plain.role, Role::Multi | Role::Discard | Role::Watch);
        let changed_nothing = plain.again && reply.starts_with(b"-");
        (!plain.queued && !stands_around && !changed_nothing).then(|| doubt_line(plain.is_write, counts).into_bytes())
    }

    /// Whether it may change data when it arrives.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Plain(plain) if plain.is_write && !plain.queued)
    }
}

/// A command like any other.
#[derive(Debug)]
pub(in crate::proxy::client) struct Plain {
    /// Kept for another connection; empty if it is too large for that.
    pub bytes: Vec<u8>,
    pub is_write: bool,
    /// Whether Redis' refusals prove that it was not executed (rule A4).
    pub again: bool,
    /// When it was asked, for one that blocks.
    pub since_ms: Option<u64>,
    /// What it is to a transaction.
    pub role: Role,
    /// It is MULTI, or was asked behind one: nothing happens before EXEC.
    pub queued: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub asked: Asked,
    /// The client's place for it; ours have none.
    pub run: Option<RunId>,
    /// How many bytes were sent on the connection with it.
    pub end: u64,
    pub bytes: usize,
}

impl Plain {
    /// Whether a reply proves that it was not executed.
    pub(super) fn is_refused(&self, reply: &[u8]) -> bool {
        let line = match self.role {
            Role::Exec => refusal::of_exec(reply, None),
            Role::Plain | Role::Block | Role::Multi | Role::Discard | Role::Watch | Role::Forgotten => {
                refusal::of_command(reply)
            }
        };
        self.again && line == Line::Refusal
    }
}

impl Entry {
    /// Whether it was sent, and ends a transaction: nobody knows what became of that.
    pub(super) fn ends_transaction(&self, written: u64) -> bool {
        let ends = match &self.asked {
            Asked::Plain(plain) => matches!(plain.role, Role::Exec | Role::Discard),
            Asked::Names(..)
            | Asked::All(_)
            | Asked::Monitor
            | Asked::Hello { .. }
            | Asked::Poison(_)
            | Asked::Discard(_)
            | Asked::Queue(..)
            | Asked::Silent
            | Asked::Idle
            | Asked::Tracking(..)
            | Asked::Again(..)
            | Asked::MonitorAgain
            | Asked::TrackAgain
            | Asked::Marker => false,
        };
        ends && self.end <= written
    }

    pub(super) fn fate(&self, written: u64) -> Fate {
        match (self.end <= written, self.asked.writes()) {
            (false, _) => Fate::Unsent,
            (true, false) => Fate::SentRead,
            (true, true) => Fate::SentWrite,
        }
    }

    /// Whether it can be sent again: it was not too large to be kept.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(&self.asked, Asked::Plain(plain) if plain.bytes.is_empty())
    }

    /// Appends the request as it is to be sent again: without the names that were confirmed.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match &self.asked {
            Asked::Names(family, names) => {
                put_family(*family, &names.iter().map(|name| &**name).collect::<Vec<_>>(), out);
            }
            Asked::All(kind) => {
                let verb = Verb::Unsubscribe;
                put_family(Family { verb, kind: *kind }, &[], out);
            }
            Asked::Monitor => put_request(out, &[b"MONITOR"]),
            Asked::Plain(plain) => out.extend_from_slice(&plain.bytes),
            Asked::Poison(_) => put_request(out, &POISON),
            Asked::Discard(_) => put_request(out, &[b"DISCARD"]),
            Asked::Queue(_, bytes) | Asked::Tracking(_, bytes) => out.extend_from_slice(bytes),
            // None of these waits for another connection.
            Asked::Hello { .. }
            | Asked::Silent
            | Asked::Idle
            | Asked::Again(..)
            | Asked::MonitorAgain
            | Asked::TrackAgain
            | Asked::Marker => {}
        }
    }
}
