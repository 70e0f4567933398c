//! What a request means for its session: which run it joins, or what it has to wait for first.
//!
//! Consecutive requests for one lane are cut as one run: their bytes are copied once, they cost one ledger entry.

use std::rc::Rc;

use super::close::CloseReason;
use super::run::{Ride, Run};
use super::session::{IN_FLIGHT_MAX, Park, Session, Tail};
use super::stream::{Begun, COLLECTED_BYTES_MAX};
use super::wait::Awaits;
use crate::command::{Class, Command, Concern, Lookup, Table, refusal};
use crate::resp::{Args, ProtocolError, RequestLimits, RequestScanner, Scan, Span, put_inline_as_request};
use crate::route::Place;

/// What became of one request.
pub(super) enum Outcome {
    /// It belongs to a run.
    Rides(Ride),
    /// It is answered or appended.
    Done,
    /// The session waits; the request stays where it is.
    Park(Park),
    /// The session ends once its replies are written.
    Close(CloseReason),
}

impl Session {
    /// Goes on with what was left waiting, if its time has come.
    pub(super) fn go_on(self: &Rc<Self>) {
        self.tend_feed();
        if !self.send_held() {
            return;
        }
        let tail = {
            let mut state = self.state();
            if state.park == Park::Verify || state.closing.is_some() {
                return;
            }
            state.park = Park::Open;
            self.give_back(&mut state);
            state.tail.take()
        };
        if let Some(tail) = tail {
            self.work_on(tail);
        }
    }

    /// Takes what was read from the client.
    pub(super) fn received(self: &Rc<Self>, bytes: &[u8]) {
        let tail = self.state().tail.take();
        if let Some(mut tail) = tail {
            tail.bytes.extend_from_slice(bytes);
            self.work_on(tail);
            return;
        }
        let (mut scanner, mut spans) = self.worker.scanner();
        let used = self.work(bytes, &mut scanner, &mut spans);
        if used < bytes.len() {
            let mut tail = Tail {
                bytes: Vec::new(),
                scanner: std::mem::take(&mut scanner),
                spans: Vec::new(),
            };
            if tail.scanner.is_inside() {
                tail.spans.extend_from_slice(&spans);
            }
            tail.bytes.extend_from_slice(&bytes[used..]);
            self.state().tail = Some(Box::new(tail));
        }
        self.worker.put_scanner(spans);
    }

    fn work_on(self: &Rc<Self>, mut tail: Box<Tail>) {
        let Tail { bytes, scanner, spans } = &mut *tail;
        let used = self.work(bytes, scanner, spans);
        if used < bytes.len() {
            bytes.drain(..used);
            self.state().tail = Some(tail);
        }
    }

    /// Works through whole requests; returns how many bytes are done with.
    fn work(self: &Rc<Self>, bytes: &[u8], scanner: &mut RequestScanner, spans: &mut Vec<Span>) -> usize {
        let streamed = self.stream(bytes);
        let bytes = &bytes[streamed..];
        streamed + self.work_on_requests(bytes, scanner, spans)
    }

    fn work_on_requests(self: &Rc<Self>, bytes: &[u8], scanner: &mut RequestScanner, spans: &mut Vec<Span>) -> usize {
        if !self.check_pinned() {
            return 0;
        }
        let limits = RequestLimits {
            authenticated: self.state().authenticated,
            ..self.worker.request_limits()
        };
        let (mut run, mut at) = (Run::default(), 0);
        loop {
            if !self.may_work() {
                break;
            }
            let scan = match scanner.scan(&bytes[at..], spans, &limits) {
                Ok(scan) => scan,
                Err(error) => {
                    if !self.append(&bytes[run.start..at], &run) {
                        return self.stop(run.start, at, scanner);
                    }
                    if self.drains() {
                        return self.stop(at, at, scanner);
                    }
                    self.protocol_error(error);
                    return bytes.len();
                }
            };
            let mut len = match scan {
                Scan::Incomplete(need) if need > COLLECTED_BYTES_MAX => {
                    if !self.append(&bytes[run.start..at], &run) {
                        return self.stop(run.start, at, scanner);
                    }
                    match self.begin_stream(&bytes[at..], need, scanner, spans) {
                        Begun::Streams => {
                            *scanner = RequestScanner::default();
                            return bytes.len();
                        }
                        Begun::Park(park) => {
                            self.state().park = park;
                            return self.stop(at, at, scanner);
                        }
                        Begun::Collect => return at,
                    }
                }
                Scan::Incomplete(_) => break,
                Scan::Frame(len) | Scan::Nothing(len) | Scan::Inline(len) => len,
            };
            let outcome = match scan {
                Scan::Frame(_) => {
                    let args = Args::new(&bytes[at..at + len], spans);
                    match self.judge(&args, run.count) {
                        Outcome::Rides(ride) if run.takes(&ride) => {
                            self.join(&args, &ride, &mut run);
                            at += len;
                            continue;
                        }
                        // What follows must not overtake the run before it.
                        _ if !self.append(&bytes[run.start..at], &run) => return self.stop(run.start, at, scanner),
                        Outcome::Rides(ride) => {
                            run = Run::begin(at);
                            self.join(&args, &ride, &mut run);
                            at += len;
                            continue;
                        }
                        Outcome::Done => match self.block(&args, &bytes[at..]) {
                            Some(block) => {
                                len = block.bytes;
                                self.append_block(&bytes[at..at + len], &block)
                            }
                            None => self.special(&args, &bytes[at..at + len]),
                        },
                        other => other,
                    }
                }
                _ if !self.append(&bytes[run.start..at], &run) => return self.stop(run.start, at, scanner),
                Scan::Inline(_) => self.inline(&bytes[at..at + len]),
                _ => Outcome::Done,
            };
            match outcome {
                Outcome::Park(park) => {
                    self.state().park = park;
                    if park == Park::Pause {
                        self.wait_for_pause();
                    }
                    *scanner = RequestScanner::default();
                    return at;
                }
                Outcome::Close(_) if self.drains() => return self.stop(at, at, scanner),
                Outcome::Close(reason) => {
                    self.close(reason);
                    return bytes.len();
                }
                Outcome::Done | Outcome::Rides(_) => {
                    at += len;
                    run = Run::begin(at);
                }
            }
        }
        if !self.append(&bytes[run.start..at], &run) {
            return self.stop(run.start, at, scanner);
        }
        at
    }

    fn join(&self, args: &Args, ride: &Ride, run: &mut Run) {
        run.shard = ride.shard;
        self.note(args, ride, run);
        run.add(ride);
    }

    /// The run at `start` has to wait; scanning begins there again.
    fn stop(&self, start: usize, at: usize, scanner: &mut RequestScanner) -> usize {
        debug_assert!(start <= at);
        *scanner = RequestScanner::default();
        start
    }

    /// Whether a request may join the run of `count` before it; `Done` stands for "see [`Session::special`]".
    fn judge(self: &Rc<Self>, args: &Args, count: u32) -> Outcome {
        let mut state = self.state();
        if !state.mute_before(count) || state.awaits != Awaits::Nothing {
            return Outcome::Park(Park::Drain);
        }
        if state.window.unanswered() + count >= IN_FLIGHT_MAX {
            return Outcome::Park(Park::Full);
        }
        let Lookup::Known(command) = self.worker.commands().lookup(args) else {
            return Outcome::Done;
        };
        self.asks(command.id);
        if command.arity_ok(args.len())
            && let Some(park) = self.paused(command, args, &state)
        {
            return Outcome::Park(park);
        }
        if !state.transaction.concerns_all()
            && state.feed.is_none()
            && state.authenticated
            && command.rides_lane(args)
            && command.arity_ok(args.len())
            && is_for_one_shard(command)
            && let Place::Shard(shard) = self.worker.place(command, args)
        {
            let mut ride = Ride {
                shard,
                command: command.id,
                is_write: command.is_write(),
                is_masters: command.is_masters(),
                alone: false,
                is_script: command.is_script(),
            };
            if command.concern != Concern::None {
                self.concerns(command.concern, args, &mut ride);
            }
            return Outcome::Rides(ride);
        }
        Outcome::Done
    }

    /// Requests that need more than a place on a lane.
    fn special(self: &Rc<Self>, args: &Args, frame: &[u8]) -> Outcome {
        let outcome = self.act_on(args, frame);
        if let Outcome::Done = outcome {
            self.spend_caching(args);
        }
        outcome
    }

    fn act_on(self: &Rc<Self>, args: &Args, frame: &[u8]) -> Outcome {
        let table = self.worker.commands();
        let command = match table.lookup(args) {
            Lookup::Known(command) if self.is_unknown(command) => {
                return self.refuse_inside(|out| refusal::unknown_subcommand(args, out));
            }
            Lookup::Known(command) => command,
            Lookup::UnknownSubcommand(_) => {
                return self.refuse_inside(|out| refusal::unknown_subcommand(args, out));
            }
            Lookup::Unknown if refusal::is_cross_protocol(args.name()) => {
                return Outcome::Close(CloseReason::CrossProtocol);
            }
            Lookup::Unknown if self.asks_about(args.name()) => return Outcome::Park(Park::Verify),
            Lookup::Unknown => {
                return self.refuse_inside(|out| refusal::unknown_command(args, out));
            }
        };
        if !command.arity_ok(args.len()) {
            return self.wrong_arity(command);
        }
        if !self.state().authenticated && !matches!(&*command.name, "auth" | "hello" | "quit" | "reset") {
            return self.refuse(|out| out.extend_from_slice(b"-NOAUTH Authentication required.\r\n"));
        }
        // On a feed even transactions are the feed's; without one SUBSCRIBE may stand inside a transaction.
        let on_feed = self.state().feed.is_some();
        if on_feed && let Some(outcome) = self.feed_request(command, args, frame) {
            return outcome;
        }
        if let Some(outcome) = self.transaction(command, args, frame) {
            return outcome;
        }
        if let Some(outcome) = self.feed_request(command, args, frame) {
            return outcome;
        }
        let shard = match self.worker.place(command, args) {
            Place::Shard(shard) => shard,
            Place::CrossSlot => return self.refuse(refusal::cross_slot),
            Place::Several if command.class == Class::ManyKey => return self.split(command, args, frame),
            Place::Several => return self.everywhere(command, frame),
        };
        if command.name.starts_with("slowlog|") || &*command.name == "debug" {
            // It is the master's: who looks at it wants to find there what it asks from now on (rule B6).
            self.state().masters_only = true;
        }
        match command.class_for(args) {
            Class::Session => self.local(command, args, frame),
            Class::Blocking if !matches!(&*command.name, "wait" | "waitaof") => {
                self.pin_and_append(shard, command, args, frame)
            }
            Class::Node | Class::Everywhere => self.pin_and_append(shard, command, args, frame),
            // Learnt from a server: what it does to a connection is not known, so that it gets one of its own (rule A1).
            Class::Read | Class::Write if !Table::knows(command) => self.pin_and_append(shard, command, args, frame),
            Class::Blocking if self.worker.shard_count() == 1 => self.wait(command, frame),
            Class::EveryNode => self.every_node(command, args, frame),
            Class::Refused => self.copying(command, args, frame),
            Class::Read | Class::Write | Class::ManyKey | Class::Blocking | Class::Subscribe | Class::Transaction => {
                self.refuse(|out| refusal::not_yet(command, out))
            }
        }
    }

    /// Whether the master is being asked for a command that no table has: the request waits for what it says.
    fn asks_about(self: &Rc<Self>, name: &[u8]) -> bool {
        if !self.state().authenticated {
            return false;
        }
        let Some(answer) = self.worker.ask_about(name) else {
            return false;
        };
        let session = self.clone();
        tokio::task::spawn_local(async move {
            answer.await;
            session.state().park = Park::Open;
            session.wake();
        });
        true
    }

    pub(super) fn not_passed_on(self: &Rc<Self>, command: &Command) -> Outcome {
        self.refuse(|out| refusal::not_passed_on(command, out))
    }

    fn inline(self: &Rc<Self>, line: &[u8]) -> Outcome {
        let mut request = Vec::new();
        if let Err(error) = put_inline_as_request(line, &mut request) {
            if self.drains() {
                return Outcome::Park(Park::Drain);
            }
            self.protocol_error(error);
            return Outcome::Done;
        }
        let (mut scanner, mut spans) = (RequestScanner::default(), Vec::new());
        let Ok(Scan::Frame(_)) = scanner.scan(&request, &mut spans, &self.worker.request_limits()) else {
            return Outcome::Done;
        };
        let args = Args::new(&request, &spans);
        match self.judge(&args, 0) {
            Outcome::Rides(ride) => {
                let mut run = Run::begin(0);
                self.join(&args, &ride, &mut run);
                if self.append(&request, &run) {
                    Outcome::Done
                } else {
                    Outcome::Park(self.state().park)
                }
            }
            Outcome::Done => self.special(&args, &request),
            other => other,
        }
    }

    pub(super) fn protocol_error(self: &Rc<Self>, error: ProtocolError) {
        self.refuse(|out| error.put_reply(out));
        self.close(CloseReason::Protocol);
    }

    /// Whether the next request may be looked at.
    fn may_work(&self) -> bool {
        let state = self.state();
        state.closing.is_none() && state.park != Park::Verify
    }

    /// Parks the session until everything in flight is answered; `false` if nothing is.
    fn drains(&self) -> bool {
        let mut state = self.state();
        let busy = state.window.unanswered() > 0;
        if busy {
            state.park = Park::Drain;
        }
        busy
    }

    /// Answers with a reply of our own.
    pub(super) fn refuse(self: &Rc<Self>, put: impl FnOnce(&mut Vec<u8>)) -> Outcome {
        let mut reply = Vec::new();
        put(&mut reply);
        let mut state = self.state();
        state.local(&reply);
        Outcome::Done
    }
}

/// Whether a single shard's master can answer it alone; with one shard that is all of them.
pub(super) fn is_for_one_shard(command: &Command) -> bool {
    !matches!(
        command.class,
        Class::Refused | Class::Session | Class::Transaction | Class::Subscribe | Class::EveryNode
    )
}
