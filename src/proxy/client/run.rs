//! A run: consecutive requests of one read pass that go to one shard. Copied once, one ledger entry.

use crate::command::CommandId;
use crate::proxy::backend::Cover;
use crate::route::Need;
use crate::topology::ShardIndex;

/// What a request that may share a connection brings with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ride {
    /// Where its keys are.
    pub shard: ShardIndex,
    /// What it is.
    pub command: CommandId,
    /// Whether it may change something.
    pub is_write: bool,
    /// Whether only the master can answer it.
    pub is_masters: bool,
    /// Whether it must be a run of its own, because its reply is listened to.
    pub alone: bool,
    /// Whether it runs a script.
    pub is_script: bool,
}

/// Requests that were looked at and not appended yet. What they write is in the worker's footprint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    /// Where their bytes begin.
    pub start: usize,
    /// How many there are.
    pub count: u32,
    /// Where they go.
    pub shard: ShardIndex,
    /// Whether one of them may change something, or is the master's own to answer.
    pub writes: bool,
    /// Whether one of them may change something.
    pub changes: bool,
    /// What a replica must have passed to answer them, as long as they are reads only.
    pub need: Need,
    /// Whether nothing may join.
    pub alone: bool,
    /// Whether one of them runs a script, so that it must not stand before what other sessions ask.
    pub scripts: bool,
}

impl Run {
    /// No request yet; the next one begins at `start`.
    pub(super) fn begin(start: usize) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    /// Whether the request may join.
    pub(super) fn takes(&self, ride: &Ride) -> bool {
        self.count == 0 || (self.shard == ride.shard && !self.alone && !ride.alone)
    }

    /// What its replies wait for where writes are acknowledged.
    pub(super) fn cover(&self) -> Cover {
        if self.changes { Cover::Needed } else { Cover::Looked }
    }

    /// The request joins, after it was noted.
    pub(super) fn add(&mut self, ride: &Ride) {
        self.count += 1;
        self.shard = ride.shard;
        self.alone |= ride.alone;
        self.writes |= ride.is_write || ride.is_masters;
        self.changes |= ride.is_write;
        self.scripts |= ride.is_script;
    }
}
