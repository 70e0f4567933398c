//! What a change of master held, counted once for each request.

use super::window::RunId;

/// What waits at the front may be parked more than once in one change of master, and is counted once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeldCount {
    /// In which change.
    change: u64,
    /// Behind how many runs; none once what waited was refused.
    place: Option<RunId>,
    requests: u32,
}

impl HeldCount {
    /// So many requests wait at `place`; how many of them are not counted yet.
    pub fn more(&mut self, change: u64, place: RunId, requests: u32) -> u32 {
        let known = (self.change, self.place) == (change, Some(place));
        let before = if known { self.requests } else { 0 };
        *self = Self {
            change,
            place: Some(place),
            requests: requests.max(before),
        };
        requests.saturating_sub(before)
    }
}
