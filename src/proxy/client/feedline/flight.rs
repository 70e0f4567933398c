//! The requests that were sent and are not answered, in their order, and what is asked of all of them so often that it
//! must not be searched for: a client may have thousands in flight.

use std::collections::VecDeque;

use super::asked::{Asked, Entry};

/// See the file's note.
#[derive(Debug, Default)]
pub(super) struct Flight {
    entries: VecDeque<Entry>,
    /// How many of them bring the connection to where the session is, may change something, and block.
    ours: usize,
    writes: usize,
    blocks: usize,
}

impl Flight {
    pub(super) fn of(entries: VecDeque<Entry>) -> Self {
        let mut flight = Self::default();
        entries.into_iter().for_each(|entry| flight.push(entry));
        flight
    }

    /// All of them, which are in flight no more.
    pub(super) fn take(&mut self) -> VecDeque<Entry> {
        std::mem::take(self).entries
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.ours += usize::from(entry.asked.is_ours());
        self.writes += usize::from(entry.asked.writes());
        self.blocks += usize::from(entry.asked.blocks());
        self.entries.push_back(entry);
    }

    /// The newest one has been sent with this many bytes.
    pub(super) fn ends_at(&mut self, end: u64) {
        if let Some(newest) = self.entries.back_mut() {
            newest.end = end;
        }
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.ours -= usize::from(entry.asked.is_ours());
        self.writes -= usize::from(entry.asked.writes());
        self.blocks -= usize::from(entry.asked.blocks());
        Some(entry)
    }

    /// The oldest one. What it is must not change, only how much of it is done.
    pub(super) fn front_mut(&mut self) -> Option<&mut Entry> {
        self.entries.front_mut()
    }

    pub(super) fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether some bring the connection to where the session is.
    pub(super) fn has_ours(&self) -> bool {
        self.ours > 0
    }

    /// Whether some block.
    pub(super) fn blocks(&self) -> bool {
        self.blocks > 0
    }

    /// Whether something may change. What stands behind a request that blocks has not begun.
    pub(super) fn writes(&self) -> bool {
        if self.writes == 0 || self.blocks == 0 {
            return self.writes > 0;
        }
        let mut begun = self.entries.iter().take_while(|entry| !entry.asked.blocks());
        begun.any(|entry| entry.asked.writes())
    }
}

impl Asked {
    fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::Again(..) | Self::MonitorAgain | Self::TrackAgain | Self::Silent | Self::Idle
        )
    }

    fn blocks(&self) -> bool {
        matches!(self, Self::Plain(plain) if plain.since_ms.is_some())
    }
}
