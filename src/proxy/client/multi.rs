//! Requests from WATCH and MULTI to EXEC: as one block on a lane, on the session's own connection, or answered here.
//!
//! Which of these is decided by [`whole_block`] and [`Transaction`]; this acts on it.

use std::rc::Rc;

use super::block::{Block, whole_block};
use super::dispatch::Outcome;
use super::listener::Ear;
use super::local::database;
use super::mute::Mute;
use super::own::OwnReply;
use super::queue::Queue;
use super::session::{Park, Session};
use super::tracking;
use super::transaction::{Reaction, Told, Transaction, Word};
use super::wait::Awaits;
use crate::command::{Class, Command, Flags, Table, refusal};
use crate::resp::Args;
use crate::route::Place;
use crate::topology::ShardIndex;

const EXEC_ARITY: &[u8] =
    b"-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n";

impl Session {
    /// The transaction that begins with this request, if it may ride a lane as a whole.
    pub(super) fn block(&self, args: &Args, bytes: &[u8]) -> Option<Block> {
        if args.len() != 1 || !args.name().eq_ignore_ascii_case(b"multi") {
            return None;
        }
        let state = self.state();
        if !state.authenticated
            || state.feed.is_some()
            || state.transaction != Transaction::None
            || state.mute == Mute::Skipping
        {
            return None;
        }
        drop(state);
        let mut footprint = self.worker.footprint();
        footprint.clear();
        let mut shard = None;
        let mut block = whole_block(bytes, self.worker.commands(), |command, args, place| {
            self.mark(command, args, place, &mut footprint);
            // What is listened to is found in EXEC's reply on a connection of the session's own only.
            let writes = self.may_change(command, args, &self.state()) != Some(false);
            if self.is_paused(writes) || self.would_listen(command, args) {
                return false;
            }
            match self.worker.place(command, args) {
                Place::Shard(index) => *shard.get_or_insert(index) == index,
                Place::Several | Place::CrossSlot => false,
            }
        });
        match &mut block {
            Some(block) => {
                block.shard = shard.unwrap_or_default();
                footprint.belongs_to(block.count - 1);
            }
            None => footprint.clear(),
        }
        block
    }

    /// A request that belongs to a transaction, or is made inside one. `None`: it has nothing to do with that.
    pub(super) fn transaction(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        let (now, resp3) = {
            let state = self.state();
            (state.transaction, state.login.resp3)
        };
        if command.class != Class::Transaction && !now.concerns_all() {
            return None;
        }
        if command.class == Class::Transaction && self.worker.shard_count() > 1 {
            // Which shard it belongs to is known only once it names a key.
            return Some(self.refuse(|out| refusal::not_yet(command, out)));
        }
        if now == Transaction::Watching && command.class == Class::Session {
            return self.while_watching(command, args, frame);
        }
        // Redis runs these at once, also inside MULTI.
        if matches!(&*command.name, "reset" | "quit") {
            return None;
        }
        let (reaction, after) = now.on(Word::named(&command.name));
        match reaction {
            Reaction::Outside => None,
            Reaction::Say(told) => {
                self.state().stand(after);
                Some(self.refuse(|out| out.extend_from_slice(told.line(resp3))))
            }
            Reaction::Forward if now == Transaction::Queueing && command.class_for(args) == Class::EveryNode => {
                if let Some(refused) = self.refused_for_all(command, args) {
                    self.abort_transaction();
                    return Some(refused);
                }
                Some(self.pin_and_append(ShardIndex(0), command, args, frame))
            }
            Reaction::Forward if command.class == Class::Transaction || may_be_pinned(command, args) => {
                let acts = &*command.name == "exec" && self.acts_in_exec();
                if acts && self.state().window.unanswered() > 0 {
                    return Some(Outcome::Park(Park::Drain));
                }
                let outcome = self.pin_and_append(ShardIndex(0), command, args, frame);
                if let Outcome::Done = outcome {
                    let mut state = self.state();
                    state.stand(after);
                    if after == Transaction::Queueing && now != after {
                        state.queue = Some(Queue::begin(frame, now == Transaction::Watching));
                    }
                    if acts {
                        state.awaits = Awaits::Own;
                    }
                }
                Some(outcome)
            }
            Reaction::Forward if now == Transaction::Queueing && needs_feed(command, args) => Some(
                self.begin_feed()
                    .unwrap_or_else(|| self.request_in_multi(command, args, frame)),
            ),
            Reaction::Forward
                if now == Transaction::Queueing
                    && let Some((instead, ear)) = self.own_inside(command, args, frame) =>
            {
                Some(self.pin_and_listen(ShardIndex(0), command, args, &instead, Some(ear)))
            }
            Reaction::Forward if now == Transaction::Watching => None,
            // As Redis queues it, so that it is EXEC that fails.
            Reaction::Forward if command.class == Class::Refused && !command.flags.has(Flags::NO_MULTI) => {
                self.give_up_pinned(now.refused());
                Some(self.refuse(|out| out.extend_from_slice(Told::Queued.line(resp3))))
            }
            Reaction::Forward => {
                self.abort_transaction();
                Some(if command.flags.has(Flags::NO_MULTI) {
                    self.refuse(|out| out.extend_from_slice(b"-ERR Command not allowed inside a transaction\r\n"))
                } else {
                    self.refuse(|out| refusal::not_yet(command, out))
                })
            }
        }
    }

    /// Whether EXEC does something to the client itself: it is sent when nothing else is in flight, and nothing is asked
    /// before it is answered.
    fn acts_in_exec(&self) -> bool {
        self.state().queued().is_some_and(|queued| queued.elements.act())
    }

    /// A request about the session itself, made between WATCH and MULTI.
    fn while_watching(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        match &*command.name {
            "select" => {
                // Redis remembers in which database a key is watched, so that connection goes along (rule B9).
                let database = database(args, self.worker.databases())?;
                let outcome = self.pin_and_append(ShardIndex(0), command, args, frame);
                if let Outcome::Done = outcome {
                    let mut state = self.state();
                    state.login.database = database;
                    if let Some(pinned) = &mut state.pinned {
                        pinned.login.database = database;
                    }
                }
                Some(outcome)
            }
            "hello" if !changes_login(args, self.state().login.resp3) => None,
            // That connection goes along, too: it keeps what it watches.
            "auth" | "hello" => {
                if self.state().window.unanswered() > 0 {
                    return Some(Outcome::Park(Park::Drain));
                }
                let ear = Ear::Own(OwnReply::new(frame));
                let outcome = self.pin_and_listen(ShardIndex(0), command, args, frame, Some(ear));
                if let Outcome::Done = outcome {
                    self.state().awaits = Awaits::Own;
                }
                Some(outcome)
            }
            _ => None,
        }
    }

    pub(super) fn wrong_arity(self: &Rc<Self>, command: &Command) -> Outcome {
        if &*command.name == "exec" && self.feed_is_in_multi() {
            return self.feed_is_busy().unwrap_or_else(|| self.discard_feed(EXEC_ARITY));
        }
        if &*command.name == "exec" {
            // Redis discards the transaction at once.
            if self.state().transaction == Transaction::Queueing {
                self.give_up_pinned(Transaction::None);
            }
            self.state().stand(Transaction::None);
            return self.refuse(|out| out.extend_from_slice(EXEC_ARITY));
        }
        self.refuse_inside(|out| refusal::wrong_arity(command, out))
    }

    /// Refuses a request that Redis would refuse, too. Inside MULTI Redis gets another one that it refuses in its place, so
    /// that it discards the transaction itself, in sight of those who monitor.
    pub(super) fn refuse_inside(self: &Rc<Self>, put: impl FnOnce(&mut Vec<u8>)) -> Outcome {
        let mut line = Vec::new();
        put(&mut line);
        if self.feed_is_in_multi() {
            return self.feed_is_busy().unwrap_or_else(|| self.poison_feed(&line));
        }
        let queues = self.state().transaction == Transaction::Queueing;
        let poisoned = if queues { self.poison(&line) } else { None };
        match poisoned {
            Some(outcome) => outcome,
            None => {
                self.abort_transaction();
                self.refuse(|out| out.extend_from_slice(&line))
            }
        }
    }

    /// Gives up the session's own connection inside MULTI, because Redis will not see a request of that.
    pub(super) fn abort_transaction(&self) {
        let now = self.state().transaction;
        if now.aborted() != now {
            self.give_up_pinned(now.aborted());
        }
    }

    /// What is said to a request that waited too long for a master: `line`, except inside a transaction, which must
    /// not be cut in two by the end of the wait.
    pub(super) fn refused_line(&self, args: &Args, line: &'static [u8]) -> &'static [u8] {
        let word = Word::named(&String::from_utf8_lossy(args.name()).to_ascii_lowercase());
        let mut state = self.state();
        let (reaction, after) = state.transaction.on(word);
        let told = match reaction {
            Reaction::Say(told) => {
                state.stand(after);
                told
            }
            Reaction::Forward if word == Word::Multi => {
                state.stand(after.lost());
                Told::Ok
            }
            Reaction::Forward | Reaction::Outside => return line,
        };
        told.line(state.login.resp3)
    }

    /// Goes on without the session's own connection; what is in flight on it, nothing or the inside of a MULTI, is
    /// still answered, and first.
    pub(super) fn give_up_pinned(&self, after: Transaction) {
        let mut state = self.state();
        state.stand(after);
        if let Some(pinned) = state.pinned.take() {
            pinned.lane.release();
            let shard = pinned.lane.shard.clone();
            state.seat(&shard).lane = Some(pinned.lane);
        }
    }
}

/// Whether a HELLO asks for another protocol than the session speaks, or for another user.
fn changes_login(args: &Args, resp3: bool) -> bool {
    let same_protocol = args
        .get(1)
        .is_none_or(|version| version == if resp3 { b"3" } else { b"2" });
    !same_protocol || (2..args.len()).any(|at| args.get(at).is_some_and(|word| word.eq_ignore_ascii_case(b"auth")))
}

/// Whether it asks Redis to speak unasked.
fn needs_feed(command: &Command, args: &Args) -> bool {
    match &*command.name {
        "subscribe" | "psubscribe" => true,
        "client|tracking" => matches!(tracking::Word::tracking(args), Ok(tracking::Word::On(_))),
        _ => false,
    }
}

/// Whether a connection of the session's own takes it, also inside MULTI: one reply, nothing left behind that others would
/// find there. What was learnt from a server is taken for that as well: a module's command replies once.
fn may_be_pinned(command: &Command, args: &Args) -> bool {
    match command.class_for(args) {
        Class::Node | Class::Everywhere => true,
        Class::Blocking => !matches!(&*command.name, "wait" | "waitaof"),
        Class::Read | Class::Write | Class::ManyKey => command.rides_lane(args) || !Table::knows(command),
        Class::Transaction | Class::Subscribe | Class::Session | Class::EveryNode | Class::Refused => false,
    }
}
