//! A session and its lanes: which connection takes a run, what waits when there is none, what is sent again.
//!
//! Invariant (rule A8): a session has one current lane per shard; it changes to another only with nothing in flight.

use std::rc::Rc;

use super::block::Block;
use super::cursor::begun_anew;
use super::dispatch::Outcome;
use super::exec_reply::Elements;
use super::feedline::POISON;
use super::held_count::HeldCount;
use super::listener::{Ear, Listener, reserve_for};
use super::run::Run;
use super::session::{Held, Park, Pinned, Session, State};
use super::transaction::Transaction;
use crate::clock;
use crate::command::{Class, Command, Flags, Lookup, Table};
use crate::proxy::backend::{Cover, Lane, Login, put_request};
use crate::proxy::shard::Shard;
use crate::resp::{Args, RequestScanner, Scan, put_inline_as_request};
use crate::route::{Ask, Footprint, Place, ReadPolicy};
use crate::topology::ShardIndex;

const NO_MASTER: &[u8] = b"-MASTERDOWN no master for the shard: not executed\r\n";
const NOT_HEARD: &[u8] =
    b"-MASTERDOWN neither ZooKeeper nor enough agents are heard, so that there may be another master: not \
    executed; see to this proxy's network, or set stale_reads = \"allow\"\r\n";

/// Why what waited for a shard is not executed.
fn no_master(shard: &Shard) -> &'static [u8] {
    if shard.is_deaf() { NOT_HEARD } else { NO_MASTER }
}

impl State {
    /// How many of the requests that wait at the front for `shard` its toll has not counted yet.
    fn counts(&mut self, shard: &Shard, requests: u32) -> u32 {
        let place = self.window.next();
        self.counted.more(shard.change_number(), place, requests)
    }
}

impl Session {
    /// Appends a run to the session's lane. `false`: it is parked, nothing is appended.
    pub(super) fn append(self: &Rc<Self>, bytes: &[u8], run: &Run) -> bool {
        if run.count == 0 {
            return true;
        }
        let appended = self.append_run(bytes, run);
        if run.writes {
            self.worker.footprint().clear();
        }
        appended
    }

    fn append_run(self: &Rc<Self>, bytes: &[u8], run: &Run) -> bool {
        let mut state = self.state();
        let Some(lane) = self.lane_for(&mut state, run) else {
            return false;
        };
        if !lane.has_room() {
            state.park = Park::Lane;
            lane.wait_for_room(self);
            return false;
        }
        if run.alone {
            self.append_alone(&mut state, &lane, run, bytes);
            return true;
        }
        let id = state.window.reserve(lane.number, run.count);
        if run.writes {
            state.wrote(&lane.shard);
        }
        lane.append(self, id, run.count, bytes, &self.worker.footprint(), run.cover());
        if run.changes && !state.blocks_on(&lane) {
            lane.writes();
        }
        self.worker.watch_lanes();
        true
    }

    /// The lane that takes a run; without one the session parks for the right thing.
    pub(super) fn lane_for(self: &Rc<Self>, state: &mut State, run: &Run) -> Option<Rc<Lane>> {
        let shard = self.worker.shard(run.shard);
        if let Some(pinned) = &state.pinned {
            if pinned.serves(&shard, state) {
                let lane = pinned.lane.clone();
                match pinned.keeps_waiting(&shard, state, run.changes) {
                    None => return Some(lane),
                    Some(Park::Hold) => self.hold_run(state, &shard, run),
                    Some(park) => state.park = park,
                }
                return None;
            }
            if state.window.unanswered() > 0 {
                state.park = Park::Drain;
                return None;
            }
            self.give_back(state);
        }
        let busy = state.window.unanswered() > 0;
        let current = state.seat(&shard).lane.clone();
        let reader = match &current {
            // Behind its own commands at the master a run of reads stays there (rule A8).
            Some(current) if busy && !current.is_reader() => None,
            Some(_) | None => self.reader_for(state, &shard, run),
        };
        let master_lane = || {
            let stays_on = current.as_ref().filter(|_| busy);
            shard.lane_for(&self.worker, &state.login, run.changes, run.scripts, stays_on)
        };
        let Some(wanted) = reader.or_else(master_lane) else {
            self.hold_run(state, &shard, run);
            return None;
        };
        if busy && current.is_some_and(|current| !Rc::ptr_eq(&current, &wanted)) {
            state.park = Park::Drain;
            return None;
        }
        state.seat(&shard).lane = Some(wanted.clone());
        Some(wanted)
    }

    /// The replica lane that may take a run of reads, if there is one.
    fn reader_for(self: &Rc<Self>, state: &mut State, shard: &Rc<Shard>, run: &Run) -> Option<Rc<Lane>> {
        if run.writes
            || !self.worker.splits_reads()
            || state.masters_only
            || self.worker.is_monitored()
            || state.login.is_named_user()
        {
            return None;
        }
        let ask = Ask {
            policy: ReadPolicy::Causal,
            need: run.need,
            requested: self.worker.fences().requested(),
            now_ms: clock::monotonic_ms(),
            max_lag_ms: self.worker.max_lag_ms(),
            session: self.id,
        };
        let login = state.login.clone();
        shard.reader(&self.worker, &login, &ask, &mut state.seat(shard).sticky)
    }

    /// Appends one request to the session's own connection to a shard, which it gets once nothing is in flight
    /// elsewhere.
    pub(super) fn pin_and_append(
        self: &Rc<Self>,
        shard: ShardIndex,
        command: &Command,
        args: &Args,
        frame: &[u8],
    ) -> Outcome {
        self.pin_and_listen(shard, command, args, frame, None)
    }

    /// The same for a request whose reply says what it does to the client itself.
    pub(super) fn pin_and_listen(
        self: &Rc<Self>,
        shard: ShardIndex,
        command: &Command,
        args: &Args,
        frame: &[u8],
        own: Option<Ear>,
    ) -> Outcome {
        if let Some(outcome) = self.listens_to_too_much(command, args) {
            return outcome;
        }
        let mut state = self.state();
        let mut login = state.login.clone();
        if command.class == Class::Node && command.flags.has(Flags::ALLOW_BUSY) {
            // A server that runs a script takes this, but no SELECT before it (rule B1).
            (login.database, login.no_touch) = (0, false);
        }
        let queues = state.transaction == Transaction::Queueing && &*command.name != "exec";
        let changes = !queues && (command.is_write() || command.class != Class::Read);
        if let Some(park) = self.pin_as(&mut state, shard, login, changes) {
            return Outcome::Park(park);
        }
        let may_change = self.may_change(command, args, &state) != Some(false);
        let state = &mut *state;
        let Some(pinned) = &mut state.pinned else {
            return Outcome::Done;
        };
        if !pinned.lane.has_room() {
            pinned.lane.wait_for_room(self);
            return Outcome::Park(Park::Lane);
        }
        // In place of what is done here Redis gets a PING.
        let is_ping = own.is_some() && !matches!(&*command.name, "auth" | "hello" | "select");
        pinned.clean &= Table::knows(command)
            && (is_ping
                || command.class == Class::Blocking
                || command.rides_lane(args)
                || (command.class == Class::Node && &*command.name != "debug"));
        let blocks = command.class_for(args) == Class::Blocking && state.transaction != Transaction::Queueing;
        let (mut ear, instead) = self.listen(command, args, pinned.lane.life());
        if command.class_for(args) == Class::EveryNode {
            let reply = self.tells_after_exec(state.login.clone(), command, args, frame);
            ear = Some(Ear::Tells(reply));
        }
        if own.is_some() {
            ear = own;
        }
        let mut listener = None;
        let mut footprint = Footprint::default();
        match (state.transaction, &*command.name) {
            (Transaction::Queueing, "exec") => {
                listener = std::mem::take(&mut pinned.elements).listener();
                footprint = std::mem::take(&mut pinned.queued);
                pinned.closing = state.queue.take();
                if let Some(queue) = &mut pinned.closing {
                    queue.add(frame);
                }
                pinned.queued_count = 0;
                pinned.queued_writes = false;
            }
            (Transaction::Queueing, "discard") => {
                pinned.elements = Elements::default();
                pinned.queued.clear();
                pinned.queued_count = 0;
                pinned.queued_writes = false;
            }
            // It is executed by EXEC, if at all.
            (Transaction::Queueing, _) => {
                self.mark(command, args, 0, &mut pinned.queued);
                pinned.queued.bound();
                pinned.elements.queue(&command.name, ear.take());
                pinned.queued_count += 1;
                pinned.queued_writes |= may_change;
                if let Some(queue) = &mut state.queue {
                    queue.add(begun_anew(frame, self.worker.commands()).as_deref().unwrap_or(frame));
                }
            }
            (_, _) => {
                listener = ear.map(Listener::One);
                self.mark(command, args, 0, &mut footprint);
            }
        }
        let lane = pinned.lane.clone();
        let run = reserve_for(&mut state.window, &mut state.listeners, lane.number, listener);
        if command.is_write() || matches!(command.class, Class::Blocking | Class::Transaction) {
            state.wrote(&lane.shard);
        }
        let cover = match (state.transaction, command.class) {
            (Transaction::Queueing, _) if &*command.name != "exec" => Cover::Needless,
            (_, Class::Transaction) if &*command.name != "exec" => Cover::Needless,
            (_, Class::Transaction) => Cover::Needed,
            (_, _) if command.is_write() => Cover::Needed,
            (_, _) => Cover::Looked,
        };
        lane.append(self, run, 1, instead.as_deref().unwrap_or(frame), &footprint, cover);
        if let Some(pinned) = state.pinned.as_mut().filter(|_| blocks) {
            pinned.blocked_by = lane.appended();
        }
        if changes && !state.blocks_on(&lane) && (command.is_write() || &*command.name == "exec") {
            lane.writes();
        }
        self.worker.watch_lanes();
        Outcome::Done
    }

    /// Has Redis refuse a request of the transaction on the session's own connection; the client sees `line`. `None`: that
    /// connection takes nothing more.
    pub(super) fn poison(self: &Rc<Self>, line: &[u8]) -> Option<Outcome> {
        let mut state = self.state();
        let State {
            pinned,
            queue,
            window,
            listeners,
            ..
        } = &mut *state;
        let lane = pinned.as_ref().map(|pinned| pinned.lane.clone())?;
        if lane.is_released() || lane.has_ended() {
            return None;
        }
        if !lane.has_room() {
            lane.wait_for_room(self);
            return Some(Outcome::Park(Park::Lane));
        }
        let mut poison = Vec::new();
        put_request(&mut poison, &POISON);
        if let Some(queue) = queue {
            queue.add(&poison);
        }
        let listener = Listener::One(Ear::Says(line.into()));
        let run = reserve_for(window, listeners, lane.number, Some(listener));
        lane.append(self, run, 1, &poison, &Footprint::default(), Cover::Needless);
        self.worker.watch_lanes();
        Some(Outcome::Done)
    }

    /// Appends a whole transaction to the session's lane. What it writes is in the worker's footprint.
    pub(super) fn append_block(self: &Rc<Self>, bytes: &[u8], block: &Block) -> Outcome {
        let run = Run {
            shard: block.shard,
            count: block.count,
            writes: true,
            changes: true,
            scripts: block.scripts,
            ..Run::default()
        };
        let outcome = self.append_whole(bytes, &run);
        self.worker.footprint().clear();
        outcome
    }

    fn append_whole(self: &Rc<Self>, bytes: &[u8], run: &Run) -> Outcome {
        let mut state = self.state();
        let Some(lane) = self.lane_for(&mut state, run) else {
            return Outcome::Park(state.park);
        };
        if !lane.has_room() {
            lane.wait_for_room(self);
            return Outcome::Park(Park::Lane);
        }
        let id = state.window.reserve(lane.number, run.count);
        state.wrote(&lane.shard);
        lane.append_block(self, id, run.count, bytes, &self.worker.footprint());
        self.worker.watch_lanes();
        Outcome::Done
    }

    /// Sees to it that the session owns a connection to a shard; what it has to wait for if it cannot yet.
    pub(super) fn pin(self: &Rc<Self>, state: &mut State, shard: ShardIndex) -> Option<Park> {
        let login = state.login.clone();
        self.pin_as(state, shard, login, true)
    }

    /// The same, for a connection of another login than the session's, and for what changes nothing.
    fn pin_as(self: &Rc<Self>, state: &mut State, shard: ShardIndex, login: Login, changes: bool) -> Option<Park> {
        let shard = self.worker.shard(shard);
        if let Some(pinned) = &state.pinned {
            if pinned.serves(&shard, state) {
                let waits = pinned.keeps_waiting(&shard, state, changes);
                if waits == Some(Park::Hold) {
                    self.hold_in(state, &shard);
                }
                return waits;
            }
            if state.window.unanswered() > 0 {
                return Some(Park::Drain);
            }
            self.give_back(state);
        }
        if state.window.unanswered() > 0 {
            return Some(Park::Drain);
        }
        let Some(lane) = shard.open_private(&self.worker, &login) else {
            self.hold_in(state, &shard);
            return Some(Park::Hold);
        };
        state.pinned = Some(Box::new(Pinned::of(lane)));
        None
    }

    /// The session's own connection to a shard, for what was in flight on a former one.
    fn private_lane(&self, state: &mut State, shard: &Rc<Shard>) -> Option<Rc<Lane>> {
        if state.pinned.is_none() {
            let lane = shard.open_private(&self.worker, &state.login)?;
            let before = state.queue.as_mut().and_then(|queue| queue.before.take());
            let mut pinned = match before {
                Some(before) => before.moved_to(lane),
                None => Box::new(Pinned::of(lane)),
            };
            pinned.clean = false;
            state.pinned = Some(pinned);
        }
        state.pinned.as_ref().map(|pinned| pinned.lane.clone())
    }

    /// What a request has to wait for that needs the first shard's master, if that does not serve.
    pub(super) fn hold_without_master(self: &Rc<Self>) -> Option<Park> {
        let shard = self.worker.shard(ShardIndex(0));
        if shard.serving().is_some() {
            return None;
        }
        self.hold_in(&mut self.state(), &shard);
        Some(Park::Hold)
    }

    fn hold_run(self: &Rc<Self>, state: &mut State, shard: &Rc<Shard>, run: &Run) {
        self.hold_some(state, shard, run.count);
    }

    fn hold_in(self: &Rc<Self>, state: &mut State, shard: &Rc<Shard>) {
        self.hold_some(state, shard, 1);
    }

    fn hold_some(self: &Rc<Self>, state: &mut State, shard: &Rc<Shard>, requests: u32) {
        shard.count_held(state.counts(shard, requests));
        state.park = Park::Hold;
        state.held_since_ms = clock::monotonic_ms();
        shard.hold(&self.worker, self.clone());
    }

    /// Gives the session's own connection back once nothing needs it.
    pub(super) fn give_back(&self, state: &mut State) {
        let idle = state.window.unanswered() == 0 && !state.transaction.needs_connection();
        let Some(pinned) = state.pinned.take_if(|_| idle) else {
            return;
        };
        if pinned.clean && state.streaming.is_none() {
            pinned.lane.shard.put_spare(pinned.lane.clone());
        } else {
            pinned.lane.release();
        }
    }

    /// Sends again what lost lanes left, before anything newer. `false`: it has to wait longer.
    pub(super) fn send_held(self: &Rc<Self>) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        let mut waits_for = None;
        let (mut kept, mut seats) = (Vec::new(), Vec::new());
        for mut held in std::mem::take(&mut state.held) {
            let lane = if held.private {
                self.private_lane(state, &held.shard)
            } else {
                held.shard.lane(&self.worker, &state.login, true)
            };
            let Some(lane) = lane else {
                waits_for.get_or_insert_with(|| held.shard.clone());
                kept.push(held);
                continue;
            };
            self.begin_anew(&mut state.listeners, &mut held, lane.life());
            let mut footprint = Footprint::default();
            self.mark_held(&held, &mut footprint);
            if held.block {
                lane.append_block(self, held.run, held.count, &held.bytes, &footprint);
            } else {
                lane.append(self, held.run, held.count, &held.bytes, &footprint, Cover::Needed);
            }
            match &mut state.pinned {
                Some(pinned) if held.private && self.blocks(&held.bytes) => pinned.blocked_by = lane.appended(),
                Some(_) | None => {}
            }
            if !state.blocks_on(&lane) {
                lane.writes();
            }
            if !held.private {
                seats.push((held.shard, lane));
            }
        }
        state.held = kept;
        for (shard, lane) in seats {
            state.seat(&shard).lane = Some(lane);
        }
        let Some(shard) = waits_for else { return true };
        let waiting = state.held.iter().map(|held| held.count).sum();
        shard.count_held(state.counts(&shard, waiting));
        state.park = Park::Hold;
        shard.hold(&self.worker, self.clone());
        false
    }

    /// Whether a request that is to be sent again blocks.
    fn blocks(&self, request: &[u8]) -> bool {
        let mut spans = Vec::new();
        let Some(args) = Args::read(request, &mut spans) else {
            return false;
        };
        match self.worker.commands().lookup(&args) {
            Lookup::Known(command) => command.class_for(&args) == Class::Blocking,
            Lookup::Unknown | Lookup::UnknownSubcommand(_) => false,
        }
    }

    /// Tells what waited longer than it may for `shard` that there is no master; none of it was sent. Says whether
    /// that was so.
    pub fn expire_hold(self: &Rc<Self>, shard: &Rc<Shard>, now_ms: u64, hold_max_ms: u64) -> bool {
        let waited_ms = now_ms.saturating_sub(self.state().held_since_ms);
        if self.state().park != Park::Hold || waited_ms < hold_max_ms {
            return false;
        }
        self.state().counted = HeldCount::default();
        let held = std::mem::take(&mut self.state().held);
        let (expired, kept): (Vec<Held>, Vec<Held>) = held.into_iter().partition(|held| Rc::ptr_eq(&held.shard, shard));
        self.state().held = kept;
        if expired.iter().any(|held| held.private) {
            let mut state = self.state();
            let after = state.transaction.lost();
            state.stand(after);
        }
        let worker = self.worker.clone();
        for held in expired {
            shard.count_failed(held.count);
            for _ in 0..held.count {
                self.fill(held.run, no_master(shard), 1, &worker);
            }
        }
        let tail = self.state().tail.take();
        if let Some(mut tail) = tail {
            let used = self.refuse_all(&tail.bytes, shard);
            tail.bytes.drain(..used);
            (tail.scanner, tail.spans) = Default::default();
            if !tail.bytes.is_empty() {
                self.state().tail = Some(tail);
            }
        }
        self.state().park = Park::Open;
        self.wake();
        !self.awaits_feed()
    }

    /// Refuses the requests at the front that would wait for `shard`; returns how many bytes they are.
    fn refuse_all(self: &Rc<Self>, bytes: &[u8], shard: &Rc<Shard>) -> usize {
        let (mut scanner, mut spans, mut at) = (RequestScanner::default(), Vec::new(), 0);
        loop {
            match scanner.scan(&bytes[at..], &mut spans, &self.worker.request_limits()) {
                Ok(Scan::Frame(len)) => {
                    let args = Args::new(&bytes[at..at + len], &spans);
                    if !self.waits_for(&args, shard) {
                        return at;
                    }
                    shard.count_failed(1);
                    let line = self.refused_line(&args, no_master(shard));
                    self.refuse(|out| out.extend_from_slice(line));
                    at += len;
                }
                Ok(Scan::Inline(len)) => {
                    let mut request = Vec::new();
                    let asked = put_inline_as_request(&bytes[at..at + len], &mut request);
                    if asked.is_err() || self.refuse_all(&request, shard) < request.len() {
                        return at;
                    }
                    at += len;
                }
                Ok(Scan::Nothing(len)) => at += len,
                Ok(Scan::Incomplete(_)) | Err(_) => return at,
            }
        }
    }

    fn waits_for(&self, args: &Args, shard: &Rc<Shard>) -> bool {
        let Lookup::Known(command) = self.worker.commands().lookup(args) else {
            return true;
        };
        match self.worker.place(command, args) {
            Place::Shard(index) => Rc::ptr_eq(&self.worker.shard(index), shard),
            Place::Several => self.has_part_on(command, args, shard),
            Place::CrossSlot => false,
        }
    }
}

impl Pinned {
    fn of(lane: Rc<Lane>) -> Self {
        Self {
            login: lane.login.clone(),
            lane,
            blocked_by: 0,
            queued: Footprint::default(),
            elements: Elements::default(),
            queued_count: 0,
            queued_writes: false,
            clean: true,
            closing: None,
        }
    }

    /// What is queued will be so on another connection, too.
    fn moved_to(mut self: Box<Self>, lane: Rc<Lane>) -> Box<Self> {
        self.login = lane.login.clone();
        self.elements.moves_to(lane.life());
        self.lane = lane;
        self.blocked_by = 0;
        self
    }

    /// Whether a command that blocks is unanswered on it.
    pub(super) fn blocks(&self) -> bool {
        !self.lane.has_answered(self.blocked_by)
    }

    /// What a request has to wait for before it may go there: nothing that changes something goes to a server that is
    /// not known to be the master now (rule R8), and nothing at all to one that is being left for another.
    fn keeps_waiting(&self, shard: &Shard, state: &State, changes: bool) -> Option<Park> {
        let busy = state.window.unanswered() > 0;
        let serving = if changes { shard.serving() } else { None };
        match serving {
            _ if busy && self.lane.is_released() => Some(Park::Drain),
            Some(master) if *master != *self.lane.target && busy => Some(Park::Drain),
            None if changes => Some(Park::Hold),
            Some(_) | None => None,
        }
    }

    /// Whether it takes what the session asks of `shard` now. One that a transaction needs does in any case.
    fn serves(&self, shard: &Rc<Shard>, state: &State) -> bool {
        let fits = self.login == state.login || state.transaction.needs_connection();
        Rc::ptr_eq(&self.lane.shard, shard) && fits
    }
}
