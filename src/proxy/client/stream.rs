//! Requests too large to be collected (rule A13): passed on in parts, on a connection of the session's own, so that
//! a client that stalls in the middle of one stalls nobody else, and half a gigabyte costs a few megabytes.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::listener::{Listener, reserve_for};
use super::session::{Park, Session, Streaming, Way};
use super::transaction::Transaction;
use super::wait::Awaits;
use crate::command::{Class, Command, Concern, Lookup};
use crate::proxy::backend::{Lane, Traits};
use crate::resp::{Args, FrameStream, RequestScanner, Span};
use crate::route::{Footprint, Place};
use crate::topology::ShardIndex;

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
        if self.state().feed.is_some() {
            return self.begin_stream_on_feed(command, &args, bytes, frame);
        }
        let mut state = self.state();
        let private = command.lane && command.class != Class::EveryNode;
        if !private || !state.authenticated || state.transaction.is_ghost() {
            return Begun::Collect;
        }
        if self.is_paused(command.is_write()) {
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
        let (mut ear, _) = self.listen(command, &args, lane.life());
        if state.transaction == Transaction::Queueing {
            pinned.elements.queue(&command.name, ear.take());
            pinned.queued_count += 1;
            pinned.queued_writes |= command.is_write();
        }
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
            way: Way::Lane(lane),
        }));
        Begun::Streams
    }

    /// The same for a session that has a feed: all it asks goes there.
    fn begin_stream_on_feed(
        self: &Rc<Self>,
        command: &Command,
        args: &Args,
        bytes: &[u8],
        frame: FrameStream,
    ) -> Begun {
        let private = command.lane && command.class != Class::EveryNode && self.state().login.resp3;
        if !private || self.worker.place(command, args) != Place::Shard(ShardIndex(0)) {
            return Begun::Collect;
        }
        if self.is_paused(command.is_write()) {
            self.wait_for_pause();
            return Begun::Park(Park::Pause);
        }
        {
            let mut state = self.state();
            if !state.mute_before(0) || state.awaits != Awaits::Nothing {
                return Begun::Park(Park::Drain);
            }
        }
        match self.feed_is_busy() {
            Some(Outcome::Park(park)) => Begun::Park(park),
            Some(_) => Begun::Collect,
            None => match self.ask_in_parts(command, args, bytes) {
                Some(tap) => {
                    let way = Way::Feed(tap);
                    self.state().streaming = Some(Box::new(Streaming { frame, way }));
                    Begun::Streams
                }
                None => Begun::Collect,
            },
        }
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
                match &streaming.way {
                    Way::Lane(lane) => lane.abandon(),
                    Way::Feed(tap) => tap.close(),
                    Way::Lost => {}
                }
                state.streaming = None;
                drop(state);
                self.protocol_error(error);
                return bytes.len();
            }
        };
        match &streaming.way {
            Way::Lane(lane) => {
                let lane = lane.clone();
                lane.append_part(None, &bytes[..used]);
                if !lane.has_room() {
                    state.park = Park::Lane;
                    lane.wait_for_room(self);
                }
            }
            Way::Feed(tap) => {
                tap.send(&bytes[..used]);
                if !tap.has_room() {
                    state.park = Park::Lane;
                }
            }
            Way::Lost => {}
        }
        if done {
            let way = state.streaming.take().map(|streaming| streaming.way);
            if let (Some(Way::Feed(tap)), Some(feed)) = (way, &mut state.feed) {
                feed.streamed(&tap);
            }
        }
        used
    }
}

impl Streaming {
    /// Drops the rest if the lane that it goes to is such a one.
    pub(super) fn lose_if(&mut self, is_lost: impl FnOnce(&Rc<Lane>) -> bool) {
        if let Way::Lane(lane) = &self.way
            && is_lost(lane)
        {
            self.way = Way::Lost;
        }
    }
}
