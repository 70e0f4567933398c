//! A run: consecutive requests of one read pass that go to one shard. Copied once, one ledger entry.

use crate::topology::ShardIndex;

/// What a request that may share a connection brings with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ride {
    /// Where its keys are.
    pub shard: ShardIndex,
    /// Whether it may change something.
    pub is_write: bool,
}

/// Requests that were looked at and not appended yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    /// Where their bytes begin.
    pub start: usize,
    /// How many there are.
    pub count: u32,
    /// Where they go.
    pub shard: ShardIndex,
    /// Whether one of them may change something.
    pub writes: bool,
}

impl Run {
    /// No request yet; the next one begins at `start`.
    pub(super) fn begin(start: usize) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    /// One request, which begins at `start`.
    pub(super) fn of(start: usize, ride: &Ride) -> Self {
        Self {
            start,
            count: 1,
            shard: ride.shard,
            writes: ride.is_write,
        }
    }

    /// Whether the request may join.
    pub(super) fn takes(&self, ride: &Ride) -> bool {
        self.count == 0 || self.shard == ride.shard
    }

    /// The request joins.
    pub(super) fn add(&mut self, ride: &Ride) {
        self.count += 1;
        self.shard = ride.shard;
        self.writes |= ride.is_write;
    }
}
