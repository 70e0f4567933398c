//! The in-flight ledger of one backend connection: whose replies come next, and whose bytes they answer.
//!
//! Invariant: entries stand in the order their bytes were appended, which is the order Redis answers in.

use std::collections::VecDeque;

use crate::proxy::client::RunId;

/// Consecutive commands of one run.
#[derive(Debug)]
pub struct Entry<S> {
    /// Who is to be answered.
    pub session: S,
    /// Where in its window.
    pub run: RunId,
    /// Commands in the entry.
    pub count: u32,
    /// How many of them are answered.
    pub answered: u32,
    /// Length of all of them in bytes.
    pub bytes: usize,
    /// They are a transaction from MULTI to EXEC, answered together: what comes before EXEC's reply is kept back.
    pub block: bool,
}

/// What was appended to a connection and is not answered.
#[derive(Debug)]
pub struct Ledger<S> {
    entries: VecDeque<Entry<S>>,
}

impl<S> Default for Ledger<S> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
        }
    }
}

impl<S> Ledger<S> {
    /// Whether nothing is unanswered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many commands are unanswered.
    pub fn unanswered(&self) -> u64 {
        let left = |entry: &Entry<S>| u64::from(entry.count - entry.answered);
        self.entries.iter().map(left).sum()
    }

    /// The entry that is answered next.
    pub fn front_mut(&mut self) -> Option<&mut Entry<S>> {
        self.entries.front_mut()
    }

    /// Adds commands; they join the last entry if `same` says that its session is theirs and the run is, too.
    pub fn push(&mut self, session: S, run: RunId, count: u32, bytes: usize, same: impl Fn(&S, &S) -> bool) {
        if let Some(last) = self.entries.back_mut()
            && last.run == run
            && !last.block
            && same(&last.session, &session)
        {
            last.count += count;
            last.bytes += bytes;
            return;
        }
        self.entries.push_back(Entry {
            session,
            run,
            count,
            answered: 0,
            bytes,
            block: false,
        });
    }

    /// Adds a transaction of `count` commands, MULTI and EXEC included; it joins nothing and nothing joins it.
    pub fn push_block(&mut self, session: S, run: RunId, count: u32, bytes: usize) {
        self.entries.push_back(Entry {
            session,
            run,
            count,
            answered: 0,
            bytes,
            block: true,
        });
    }

    /// Drops the first entry once all of it is answered; returns its length in bytes.
    pub fn pop_answered(&mut self) -> Option<usize> {
        let front = self.entries.front()?;
        if front.answered < front.count {
            return None;
        }
        self.entries.pop_front().map(|entry| entry.bytes)
    }

    /// Hands over everything that is unanswered, in order.
    pub fn take(&mut self) -> VecDeque<Entry<S>> {
        std::mem::take(&mut self.entries)
    }
}
