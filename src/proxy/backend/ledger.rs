//! The in-flight ledger of one backend connection: whose replies come next, and whose bytes they answer.
//!
//! Invariant: entries stand in the order their bytes were appended, which is the order Redis answers in. Those before
//! `next` are answered; they stay while replies of theirs, or of one before them, wait for an acknowledgement.

use std::collections::VecDeque;

use super::held::Chunk;
use crate::proxy::client::RunId;

/// Whether replies have to wait until replicas have what they show, at a master whose writes are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cover {
    /// They show no data: those to MULTI, and to what is queued behind it.
    Needless,
    /// If they show what is not acknowledged yet.
    Looked,
    /// In any case: the commands may have changed something.
    Needed,
}

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
    /// How many replies the session has.
    pub released: u32,
    /// How many of those the fences know of.
    pub settled: u32,
    /// Length of all of them in bytes.
    pub bytes: usize,
    /// They are a transaction from MULTI to EXEC, answered together: what comes before EXEC's reply is kept back.
    pub block: bool,
    /// EXEC's reply has come, so that nothing is kept back any more.
    pub opened: bool,
    /// The session has a part of the next reply.
    pub cut: bool,
    /// What their replies wait for.
    pub cover: Cover,
    /// Reply bytes that the session does not have yet.
    pub held: Vec<Chunk>,
}

impl<S> Entry<S> {
    fn new(session: S, run: RunId, count: u32, bytes: usize, cover: Cover) -> Self {
        Self {
            session,
            run,
            count,
            answered: 0,
            released: 0,
            settled: 0,
            bytes,
            block: false,
            opened: false,
            cut: false,
            cover,
            held: Vec::new(),
        }
    }

    /// Whether replies before that to EXEC are kept back.
    pub fn keeps_back(&self) -> bool {
        self.block && !self.opened
    }
}

/// What was appended to a connection and is not answered.
#[derive(Debug)]
pub struct Ledger<S> {
    entries: VecDeque<Entry<S>>,
    /// The first entry that is not answered, and the bytes of those before it.
    next: usize,
    before_next: usize,
}

impl<S> Default for Ledger<S> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            next: 0,
            before_next: 0,
        }
    }
}

impl<S> Ledger<S> {
    /// Whether nothing is unanswered, and nobody waits for a reply.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether something is unanswered.
    pub fn awaits(&self) -> bool {
        self.next < self.entries.len()
    }

    /// How many commands are unanswered.
    pub fn unanswered(&self) -> u64 {
        let left = |entry: &Entry<S>| u64::from(entry.count - entry.answered);
        self.entries.iter().skip(self.next).map(left).sum()
    }

    /// The entry that is answered next.
    #[inline]
    pub fn next_mut(&mut self) -> Option<&mut Entry<S>> {
        self.entries.get_mut(self.next)
    }

    /// Length in bytes of all entries before the one that is answered next.
    pub fn before_next(&self) -> usize {
        self.before_next
    }

    /// The first entry: the one whose replies are given out next of all that are held.
    pub fn first_mut(&mut self) -> Option<&mut Entry<S>> {
        self.entries.front_mut()
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<S>> {
        self.entries.iter()
    }

    /// Adds commands; they join the last entry if that is unanswered, and `same` says that its session is theirs and the
    /// run is, too.
    pub fn push(
        &mut self,
        session: S,
        run: RunId,
        count: u32,
        bytes: usize,
        cover: Cover,
        same: impl Fn(&S, &S) -> bool,
    ) {
        let awaits = self.awaits();
        if let Some(last) = self.entries.back_mut()
            && last.run == run
            && awaits
            && !last.block
            && same(&last.session, &session)
        {
            last.count += count;
            last.bytes += bytes;
            last.cover = last.cover.max(cover);
            return;
        }
        self.entries.push_back(Entry::new(session, run, count, bytes, cover));
    }

    /// Adds a transaction of `count` commands, MULTI and EXEC included; it joins nothing and nothing joins it.
    pub fn push_block(&mut self, session: S, run: RunId, count: u32, bytes: usize) {
        let mut entry = Entry::new(session, run, count, bytes, Cover::Needed);
        entry.block = true;
        self.entries.push_back(entry);
    }

    /// Goes on to the next entry once all of the present one is answered; says whether that was so.
    pub fn advance(&mut self) -> bool {
        let done = self
            .entries
            .get(self.next)
            .is_some_and(|entry| entry.answered >= entry.count);
        if done {
            self.before_next += self.entries[self.next].bytes;
            self.next += 1;
        }
        done
    }

    /// Drops the first entry once its session has all of its replies; returns its length in bytes, and whether it was the
    /// one that is answered next.
    pub fn pop_released(&mut self) -> Option<(usize, bool)> {
        let front = self.entries.front()?;
        if front.released < front.count {
            return None;
        }
        let bytes = front.bytes;
        self.entries.pop_front();
        let was_next = self.next == 0;
        if !was_next {
            self.next -= 1;
            self.before_next -= bytes;
        }
        Some((bytes, was_next))
    }

    /// Hands over everything that somebody waits for, in order.
    pub fn take(&mut self) -> VecDeque<Entry<S>> {
        (self.next, self.before_next) = (0, 0);
        std::mem::take(&mut self.entries)
    }
}
