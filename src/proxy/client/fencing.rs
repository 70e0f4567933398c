//! What a request changes and what a read needs, in the words of `route::fences` (rules A9 and A10).
//!
//! Owns: turning a command and its arguments into marks. Refuses: deciding where a read goes. Invariant: every write
//! marks something before its bytes are appended.

use std::rc::Rc;

use super::run::{Ride, Run};
use super::session::{Held, Session};
use crate::command::{Command, FenceScope, Flags, Lookup};
use crate::proxy::shard::Shard;
use crate::resp::{Args, RequestScanner, Scan};
use crate::route::{Footprint, Need};

impl Session {
    /// Takes note of a request that is about to join `run`.
    #[inline]
    pub(super) fn note(&self, args: &Args, ride: &Ride, run: &mut Run) {
        if !self.worker.splits_reads() {
            return;
        }
        let Some(command) = self.worker.commands().get(ride.command) else {
            return;
        };
        if ride.is_write {
            self.mark(command, args, run.count, &mut self.worker.footprint());
        } else if !run.writes {
            run.need = run.need.and(self.need_of(command, args, &self.worker.shard(run.shard)));
        }
    }

    /// Marks what a request changes that stands at `place` of its run; a read changes nothing.
    pub(super) fn mark(&self, command: &Command, args: &Args, place: u32, footprint: &mut Footprint) {
        if !command.is_write() || !self.worker.splits_reads() {
            return;
        }
        let fences = self.worker.fences();
        if command.fences_all {
            footprint.writes_every_key(place);
            return;
        }
        if let Some(key) = command.sole_key().and_then(|at| args.get(at as usize)) {
            footprint.writes_key(fences, place, key);
            return;
        }
        let mut keys = self.worker.keys();
        if command.keys(args, &mut keys).is_err() || !keys.is_complete() {
            footprint.writes_every_key(place);
            return;
        }
        let mut nameless = true;
        for key in keys.keys().filter_map(|at| args.get(at)) {
            footprint.writes_key(fences, place, key);
            nameless = false;
        }
        if nameless {
            footprint.writes_nameless(place);
        }
    }

    /// Marks what a request, or a block of them, changes that is sent again.
    pub(super) fn mark_held(&self, held: &Held, footprint: &mut Footprint) {
        let (mut scanner, mut spans, mut at) = (RequestScanner::default(), Vec::new(), 0);
        for place in 0..held.count {
            let rest = held.bytes.get(at..).unwrap_or_default();
            let Ok(Scan::Frame(len)) = scanner.scan(rest, &mut spans, &self.worker.request_limits()) else {
                return;
            };
            let args = Args::new(rest, &spans);
            if let Lookup::Known(command) = self.worker.commands().lookup(&args) {
                self.mark(command, &args, place, footprint);
                // What it executes was marked when it was queued, on a connection that is gone.
                if held.private && &*command.name == "exec" && self.worker.splits_reads() {
                    footprint.writes_every_key(place);
                }
            }
            at += len;
        }
        if held.block {
            footprint.belongs_to(held.count.saturating_sub(1));
        }
    }

    /// Whether replies to these requests may show what the master has and too few replicas acknowledged (rule A7): that
    /// is fenced as long as it is not. Without fences it may be anything.
    pub fn shows_unacknowledged(&self, requests: &[u8], shard: &Rc<Shard>) -> bool {
        let fenced = self.worker.splits_reads();
        if fenced && !shard.fences().need_of_any().is_master() {
            return false;
        }
        let (mut spans, mut at) = (Vec::new(), 0);
        loop {
            let rest = requests.get(at..).unwrap_or_default();
            let mut scanner = RequestScanner::default();
            let Ok(Scan::Frame(len)) = scanner.scan(rest, &mut spans, &self.worker.request_limits()) else {
                return at == 0 || at < requests.len();
            };
            let args = Args::new(&rest[..len], &spans);
            at += len;
            let Lookup::Known(command) = self.worker.commands().lookup(&args) else {
                return true;
            };
            let shows = command.is_write() || command.flags.has(Flags::READONLY);
            if shows && (!fenced || self.need_of(command, &args, shard).is_master()) {
                return true;
            }
        }
    }

    fn need_of(&self, command: &Command, args: &Args, shard: &Shard) -> Need {
        let fences = self.worker.fences();
        if command.fence_scope(args) == FenceScope::Shard {
            return shard.fences().need_of_any();
        }
        let keyed = shard.fences().need_of_keyed();
        if let Some(key) = command.sole_key().and_then(|at| args.get(at as usize)) {
            return keyed.and(fences.need_of(key));
        }
        let mut keys = self.worker.keys();
        if command.keys(args, &mut keys).is_err() {
            return Need::MASTER;
        }
        let needs = keys.keys().filter_map(|at| args.get(at)).map(|key| fences.need_of(key));
        needs.fold(keyed, Need::and)
    }
}
