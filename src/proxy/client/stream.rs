//! Requests too large to be collected (rule A13): passed on in parts, on a connection of the session's own, so that
//! a client that stalls in the middle of one stalls nobody else, and half a gigabyte costs a few megabytes.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::session::{Park, Pinned, Session, Streaming};
use crate::command::{Class, Lookup};
use crate::resp::{Args, RequestScanner, Span};

/// Requests longer than this are streamed, in bytes.
pub(super) const COLLECTED_BYTES_MAX: usize = 256 * 1024;

impl Session {
    /// Begins to stream the request of which `bytes` are there. `Rides`: it has to be collected after all, because it
    /// is no plain command, or its name is not there yet.
    pub(super) fn begin_stream(self: &Rc<Self>, bytes: &[u8], scanner: &RequestScanner, spans: &[Span]) -> Outcome {
        let Some(frame) = scanner.stream(bytes.len()) else {
            return Outcome::Rides;
        };
        let args = Args::new(bytes, spans);
        let Lookup::Known(command) = self.worker.commands().lookup(&args) else {
            return Outcome::Rides;
        };
        let mut state = self.state();
        let private = command.lane && command.class != Class::EveryNode && state.feed.is_none();
        if !private || !state.authenticated {
            return Outcome::Rides;
        }
        if state.window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        if state.pinned.is_none() {
            let Some(lane) = self.worker.open_private(&state.login) else {
                drop(state);
                return Outcome::Park(self.hold());
            };
            state.pinned = Some(Box::new(Pinned {
                lane,
                multi: false,
                watch: false,
            }));
        }
        let Some(lane) = state.pinned.as_ref().map(|pinned| pinned.lane.clone()) else {
            return Outcome::Rides;
        };
        let run = state.window.reserve(lane.number, 1);
        lane.append_part(Some((self, run)), bytes);
        state.streaming = Some(Box::new(Streaming {
            frame,
            lane: Some(lane),
        }));
        Outcome::Done
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
