//! What a transaction changes of what Redis tells its client: noted when it is queued, done as EXEC's reply says so. Pure.
//!
//! ```text
//! MULTI; SUBSCRIBE a b; EXEC --will--> changes --*1 >3 subscribe a 1 >3 subscribe b 2--> subscriptions
//! ```

use std::collections::VecDeque;

use super::asked::Asked;
use super::{FeedLine, Flow};
use crate::proxy::backend::Role;
use crate::proxy::client::exec_frames::{ExecFrames, Piece};
use crate::proxy::client::queue::Queue;
use crate::proxy::client::subscriptions::{Family, Kind, Name, Verb};
use crate::proxy::client::tracking::Word;
use crate::proxy::client::transaction::Transaction;

/// The longest reply that says what became of a change.
const REPLY_BYTES_MAX: usize = 32;

/// What one request of a transaction will change.
#[derive(Debug)]
pub(in crate::proxy::client) enum Change {
    /// Each name is confirmed.
    Names(Family, VecDeque<Name>),
    /// `+OK` does it.
    Tracks(Word),
    /// The kind of the reply says which protocol it is in.
    Greets,
}

/// The reply to an EXEC that changes something, on its way.
#[derive(Debug, Default)]
pub(super) struct Exec {
    frames: ExecFrames,
    /// The beginning of the element whose turn it is.
    element: Vec<u8>,
}

impl FeedLine {
    /// The connection was the session's own before, and stands here between WATCH and EXEC.
    pub(in crate::proxy::client) fn adopt(&mut self, transaction: Transaction, queue: Option<Box<Queue>>) {
        self.multi = transaction == Transaction::Queueing;
        self.watch = transaction == Transaction::Watching || queue.as_ref().is_some_and(|queue| queue.is_watched());
        self.queue = queue;
    }

    /// Element number `place` of the reply to the EXEC that comes will change this.
    pub(in crate::proxy::client) fn will(&mut self, place: u32, change: Change) {
        self.changes.push_back((place, change));
    }

    /// Whether the transaction will change something.
    pub(in crate::proxy::client) fn will_change(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Whether it may change the protocol.
    pub(in crate::proxy::client) fn will_greet(&self) -> bool {
        self.changes.iter().any(|(_, change)| matches!(change, Change::Greets))
    }

    /// The transaction is about to be run; its reply has these frames.
    pub(in crate::proxy::client) fn expect(&mut self, frames: ExecFrames) {
        self.frames = frames;
    }

    /// What the client will be subscribed to once the transaction has run.
    pub(in crate::proxy::client) fn names_then(&self, kind: Kind) -> Vec<Name> {
        let mut names: Vec<Name> = self.subscriptions.names(kind).cloned().collect();
        for (_, change) in &self.changes {
            let Change::Names(family, changed) = change else {
                continue;
            };
            if family.kind != kind {
                continue;
            }
            match family.verb {
                Verb::Unsubscribe => names.retain(|name| !changed.contains(name)),
                Verb::Subscribe => {
                    for name in changed {
                        if !names.contains(name) {
                            names.push(name.clone());
                        }
                    }
                }
            }
        }
        names
    }

    /// Nothing of it happened, or no more of it will.
    pub(super) fn forget_changes(&mut self) {
        for (_, change) in std::mem::take(&mut self.changes) {
            if let Change::Names(family, names) = change
                && family.verb == Verb::Subscribe
            {
                names.iter().for_each(|name| self.subscriptions.forget(name));
            }
        }
    }

    /// Whether the reply begins to an EXEC that changes something.
    pub(super) fn begins_exec(&mut self, bytes: &[u8]) -> bool {
        let begins = self.partial.is_empty() && self.flow == Flow::None && bytes.first() == Some(&b'*');
        let is_exec = matches!(self.asked.front().map(|entry| &entry.asked), Some(Asked::Plain(plain)) if plain.role == Role::Exec);
        if !begins || !is_exec || self.changes.is_empty() {
            return false;
        }
        self.exec = Some(Exec {
            frames: std::mem::take(&mut self.frames),
            element: Vec::new(),
        });
        true
    }

    /// How many of the bytes belong to that reply, and whether they end it; `None`: they are no RESP.
    pub(super) fn scan_exec(&mut self, bytes: &[u8]) -> Option<(usize, bool)> {
        let mut exec = self.exec.take()?;
        let Exec { frames, element } = &mut exec;
        let taken = frames.take(bytes, &mut |piece, part, ends| self.changed(piece, part, ends, element));
        self.exec = Some(exec);
        taken
    }

    fn changed(&mut self, piece: Piece, part: &[u8], ends: bool, element: &mut Vec<u8>) {
        let (Piece::Element(at) | Piece::Confirmation(at)) = piece else {
            return;
        };
        let Some((_, change)) = self.changes.front_mut().filter(|(place, _)| *place == at) else {
            return;
        };
        let room = REPLY_BYTES_MAX.saturating_sub(element.len());
        element.extend_from_slice(&part[..part.len().min(room)]);
        if !ends {
            return;
        }
        let reply = std::mem::take(element);
        let done = match change {
            Change::Names(family, names) if matches!(piece, Piece::Confirmation(_)) => {
                let name = names.pop_front().unwrap_or_default();
                match family.verb {
                    Verb::Subscribe => self.subscriptions.add(family.kind, name),
                    Verb::Unsubscribe => self.subscriptions.remove(family.kind, &name),
                }
                names.is_empty()
            }
            Change::Names(family, names) => {
                if family.verb == Verb::Subscribe {
                    names.iter().for_each(|name| self.subscriptions.forget(name));
                }
                true
            }
            Change::Tracks(word) => {
                if reply == b"+OK\r\n" {
                    self.tracking.confirmed(std::mem::replace(word, Word::Asks));
                }
                true
            }
            Change::Greets => {
                if let Some(kind @ (b'%' | b'*')) = reply.first() {
                    self.resp3 = *kind == b'%';
                }
                true
            }
        };
        if done {
            self.changes.pop_front();
        }
    }
}
