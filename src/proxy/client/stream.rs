//! Requests too large to be collected (rule A13): passed on in parts, on a connection of the session's own, so that
//! a client that stalls in the middle of one stalls nobody else, and half a gigabyte costs a few megabytes.

use std::rc::Rc;

use super::listener::{Listener, reserve_for};
use super::session::{Park, Session, Streaming};
use super::wait::Awaits;
use crate::command::{Class, Concern, Lookup};
use crate::proxy::backend::Traits;
use crate::resp::{Args, RequestScanner, Span};
use crate::route::{Footprint, Place};

/// Requests longer than this are streamed, in bytes.
pub(super) const COLLECTED_BYTES_MAX: usize = 256 * 1024;

/// What became of the beginning of a large request.
pub(super) enum Begun {
    /// It is on its way.
    Streams,
    /// It has to be collected after all: it is no plain command, or what it names is not there yet.
    Collect,
    /// The session waits first.
    Park(Park),
}

impl Session {
    /// Begins to stream the request of which `bytes` are there; it has at least `need`.
    pub(super) fn begin_stream(
        self: &Rc<Self>,
        bytes: &[u8],
        need: usize,
        scanner: &RequestScanner,
        spans: &[Span],
    ) -> Begun {
        let Some(frame) = scanner.stream(bytes.len()) else {
            return Begun::Collect;
        };
        let args = Args::new(bytes, spans);
        let Lookup::Known(command) = self.worker.commands().lookup(&args) else {
            return Begun::Collect;
        };
        self.asks(command.id);
        let script = command.concern == Concern::Body;
        if matches!(command.concern, Concern::Cursor(_)) || (script && self.waits_for_body(&args, need)) {
            return Begun::Collect;
        }
        // Of several shards only a first key says which one; it is there, or comes soon.
        let keyed = command.sole_key().is_some_and(|at| args.get(at as usize).is_some());
        if self.worker.shard_count() > 1 && !keyed {
            return Begun::Collect;
        }
        let Place::Shard(shard) = self.worker.place(command, &args) else {
            return Begun::Collect;
        };
        let mut state = self.state();
        let private = command.lane && command.class != Class::EveryNode && state.feed.is_none();
        if !private || !state.authenticated || state.transaction.is_ghost() {
            return Begun::Collect;
        }
        if self.is_paused(command, false) {
            self.wait_for_pause();
            return Begun::Park(Park::Pause);
        }
        if state.window.unanswered() > 0 {
            return Begun::Park(Park::Drain);
        }
        if !state.mute_before(0) || state.awaits != Awaits::Nothing {
            return Begun::Park(Park::Drain);
        }
        if let Some(park) = self.pin(&mut state, shard) {
            return Begun::Park(park);
        }
        let state = &mut *state;
        let Some(pinned) = &mut state.pinned else {
            return Begun::Collect;
        };
        pinned.clean = false;
        let lane = pinned.lane.clone();
        if let Some(queue) = &mut state.queue {
            queue.forget();
        }
        let (ear, _) = self.listen(command, &args, lane.life());
        let listener = ear.map(Listener::One);
        let run = reserve_for(&mut state.window, &mut state.listeners, lane.number, listener);
        let mut footprint = Footprint::default();
        // Its keys may not all be there yet.
        if command.is_write() {
            footprint.writes_every_key(0);
        }
        let traits = Traits::of(&args, self.worker.commands());
        lane.append_part(Some((self, run, traits, &footprint)), bytes);
        state.streaming = Some(Box::new(Streaming {
            frame,
            lane: Some(lane),
        }));
        Begun::Streams
    }

    /// Passes on what belongs to the request that is being streamed; returns how many bytes that was.
    pub(super) fn stream(self: &Rc<Self>, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let Some(streaming) = &mut state.streaming else {
            return 0;
        };
        let limits = self.worker.request_limits();
        let (used, done) = match streaming.frame.feed(bytes, &limits) {
            Ok(fed) => fed,
            Err(error) => {
                // Redis got half of a request and must not see the rest of anything.
                if let Some(lane) = &streaming.lane {
                    lane.abandon();
                }
                state.streaming = None;
                drop(state);
                self.protocol_error(error);
                return bytes.len();
            }
        };
        if let Some(lane) = streaming.lane.clone() {
            lane.append_part(None, &bytes[..used]);
            if !lane.has_room() {
                state.park = Park::Lane;
                lane.wait_for_room(self);
            }
        }
        if done {
            state.streaming = None;
        }
        used
    }
}
