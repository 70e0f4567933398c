//! Requests whose keys are on several shards: one part for each, one reply from all.
//!
//! ```text
//! request --route::split--> parts --> a lane of each shard --replies--> window (route::Join) --> one reply
//! ```
//! Invariant: nothing is sent before every part has a lane with room; what has to wait for one shard waits as a whole.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::run::{Ride, Run};
use super::session::{Park, Session};
use crate::command::{Class, Command, refusal};
use crate::proxy::backend::Lane;
use crate::proxy::shard::Shard;
use crate::resp::Args;
use crate::route::{Footprint, Join, Part, Split, everywhere};
use crate::topology::ShardIndex;

impl Session {
    /// Sends a list of keys in parts. One that no server takes goes to the first shard, for its words.
    pub(super) fn split(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        if let Some(split) = self.worker.split(command, args) {
            return self.send_parts(command, split);
        }
        let mut run = Run::begin(0);
        let ride = ride(command, ShardIndex(0));
        self.note(args, &ride, &mut run);
        run.add(&ride);
        match self.append(frame, &run) {
            true => Outcome::Done,
            false => Outcome::Park(self.state().park),
        }
    }

    /// Sends a request to every shard's master.
    pub(super) fn everywhere(self: &Rc<Self>, command: &Command, frame: &[u8]) -> Outcome {
        match everywhere(self.worker.shard_count(), command, frame) {
            Some(split) => self.send_parts(command, split),
            None => self.refuse(|out| refusal::not_yet(command, out)),
        }
    }

    fn send_parts(self: &Rc<Self>, command: &Command, mut split: Split) -> Outcome {
        let mut state = self.state();
        if state.pinned.is_some() {
            if state.window.unanswered() > 0 {
                return Outcome::Park(Park::Drain);
            }
            self.give_back(&mut state);
        }
        let mut ready: Vec<(Rc<Lane>, Run)> = Vec::with_capacity(split.parts.len());
        for part in &split.parts {
            let run = self.run_of(command, part);
            let Some(lane) = self.lane_for(&mut state, &run) else {
                return Outcome::Park(state.park);
            };
            if !lane.has_room() {
                lane.wait_for_room(self);
                return Outcome::Park(Park::Lane);
            }
            ready.push((lane, run));
        }
        let numbers = ready.iter().zip(&split.parts);
        let numbers: Vec<(u32, u32)> = numbers.map(|((lane, _), part)| (lane.number, part.replies)).collect();
        let lot = getrandom::u64().unwrap_or_default();
        let join = Join::new(&mut split, lot, |part| self.worker.shard(part.shard).id.clone());
        let places = state.window.reserve_joint(&numbers, join);
        let mut spans = Vec::new();
        for (((lane, run), part), place) in ready.iter().zip(&split.parts).zip(places) {
            let mut footprint = Footprint::default();
            if run.changes
                && let Some(args) = Args::read(&part.request, &mut spans)
            {
                self.mark(command, &args, 0, &mut footprint);
                state.wrote(&lane.shard);
            }
            lane.append(self, place, part.replies, &part.request, &footprint, run.cover());
            if run.changes {
                lane.writes();
            }
        }
        self.worker.watch_lanes();
        Outcome::Done
    }

    /// A part as a run: where it goes, and what a replica must have for it.
    fn run_of(&self, command: &Command, part: &Part) -> Run {
        let mut run = Run::begin(0);
        let ride = ride(command, part.shard);
        run.shard = part.shard;
        let mut spans = Vec::new();
        if !ride.is_write
            && let Some(args) = Args::read(&part.request, &mut spans)
        {
            self.note(&args, &ride, &mut run);
        }
        run.add(&ride);
        run
    }

    /// Whether a part of it belongs to this shard.
    pub(super) fn has_part_on(&self, command: &Command, args: &Args, shard: &Rc<Shard>) -> bool {
        if command.class == Class::Everywhere {
            return true;
        }
        let is_its = |part: &Part| Rc::ptr_eq(&self.worker.shard(part.shard), shard);
        let is_there = |split: Split| split.parts.iter().any(is_its);
        self.worker.split(command, args).is_some_and(is_there)
    }
}

fn ride(command: &Command, shard: ShardIndex) -> Ride {
    Ride {
        shard,
        command: command.id,
        is_write: command.is_write(),
        is_masters: command.is_masters() || command.class == Class::Everywhere,
        alone: false,
        is_script: false,
    }
}
