//! What is in flight on a lane: when it may be forgotten, and how it becomes a wreck.

use std::rc::Rc;

use super::lane::{IDLE_CAPACITY_MAX, LaneEnd, State, UNANSWERED_BYTES_MAX};
use super::wreck::Wreck;
use crate::command::Table;
use crate::proxy::client::Session;

impl State {
    /// Makes a wreck of everything unanswered, but for a reply of which a part is shown already. An error: nothing more
    /// is to be waited for.
    pub(super) fn condemn(&mut self, private: bool, commands: &Table) -> Result<(), LaneEnd> {
        if self.wreck.is_none() {
            let kept_back = self.ledger.next_mut().is_none_or(|entry| entry.keeps_back());
            if self.scanner.is_inside() && !kept_back {
                return Ok(());
            }
            let begun = [std::mem::take(&mut self.queued), std::mem::take(&mut self.peeked)].concat();
            let mut wreck = self.take_wreck(private, commands);
            wreck.log(&begun);
            self.wreck = Some(Box::new(wreck));
            self.stuck_on = None;
        }
        match &self.wreck {
            Some(wreck) if wreck.awaits_replies() => Ok(()),
            Some(_) | None => Err(LaneEnd::Deposed),
        }
    }

    /// Everything unanswered, behind what is a wreck already.
    pub(super) fn take_wreck(&mut self, private: bool, commands: &Table) -> Wreck {
        let mut wreck = match self.wreck.take() {
            Some(wreck) => *wreck,
            None => Wreck::new(private, self.held.is_some(), self.front_since_ms),
        };
        let head = if self.streaming { self.out.len() } else { self.head };
        let written = self.written.saturating_sub(head);
        if let Some(held) = &mut self.held {
            held.clear();
            for entry in self.ledger.iter() {
                entry.held.iter().for_each(|_| entry.session.is_held(false));
            }
        }
        wreck.cut(self.ledger.take(), &self.out[head..], written, commands);
        if let Some(traits) = self.streamed.take() {
            wreck.begins_with_streamed(traits);
        }
        self.out = Vec::new();
        (self.head, self.written) = (0, 0);
        // What these writes changed stays fenced for a while: they may still be executed.
        if let (Some(held), Some(fences)) = (&mut self.held, self.fences.take()) {
            held.lose(fences);
        }
        wreck
    }

    /// Sessions that have a part of a reply whose rest is not theirs yet.
    pub(super) fn cut_off(&mut self) -> Vec<Rc<Session>> {
        let inside = self.scanner.is_inside();
        let cut = self.ledger.iter().filter(|entry| entry.cut);
        let mut sessions: Vec<Rc<Session>> = cut.map(|entry| entry.session.clone()).collect();
        if let Some(next) = self
            .ledger
            .next_mut()
            .filter(|next| inside && !next.keeps_back() && next.held.is_empty())
        {
            sessions.push(next.session.clone());
        }
        sessions
    }

    /// Something of the next entry was answered.
    #[inline]
    pub(super) fn answered_some(&mut self) {
        self.pop_released();
        if self.ledger.advance() {
            self.next_entry();
        }
    }

    /// Another entry is answered next.
    pub(super) fn next_entry(&mut self) {
        self.stepped = (0, 0);
        self.streamed = None;
    }

    /// Gives back what is answered, and tells who waits for room.
    pub(super) fn trim(&mut self) {
        if self.head == self.out.len() {
            self.out.clear();
            self.out.shrink_to(IDLE_CAPACITY_MAX);
            (self.head, self.written) = (0, 0);
        } else if self.head > IDLE_CAPACITY_MAX {
            self.out.drain(..self.head);
            self.written -= self.head;
            self.head = 0;
        }
        if !self.waiting.is_empty() && self.out.len() - self.head < UNANSWERED_BYTES_MAX / 2 {
            for session in self.waiting.drain(..) {
                session.wake();
            }
        }
    }
}
