//! What a request means for its session: which run it joins, or what it has to wait for first.
//!
//! Consecutive requests for one lane are cut as one run: their bytes are copied once, they cost one ledger entry.

use std::rc::Rc;

use super::close::CloseReason;
use super::session::{Held, IN_FLIGHT_MAX, Park, Pinned, Session, State, Tail};
use super::stream::COLLECTED_BYTES_MAX;
use super::window::RunId;
use crate::command::{Class, Command, Lookup, refusal};
use crate::proxy::backend::{Lane, Wreck};
use crate::resp::{Args, ProtocolError, RequestLimits, RequestScanner, Scan, Span, put_inline_as_request};
use crate::route::{Answer, Fate, plan};

/// What became of one request.
pub(super) enum Outcome {
    /// It belongs to the current run.
    Rides,
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
        let limits = RequestLimits {
            authenticated: self.state().authenticated,
            ..self.worker.request_limits()
        };
        let (mut start, mut at, mut count) = (0, 0, 0);
        loop {
            if !self.may_work() {
                break;
            }
            let scan = match scanner.scan(&bytes[at..], spans, &limits) {
                Ok(scan) => scan,
                Err(error) => {
                    if !self.append(&bytes[start..at], count) {
                        return self.stop(start, at, scanner);
                    }
                    if self.drains() {
                        return self.stop(at, at, scanner);
                    }
                    self.protocol_error(error);
                    return bytes.len();
                }
            };
            let len = match scan {
                Scan::Incomplete(need) if need > COLLECTED_BYTES_MAX => {
                    if count > 0 && !self.append(&bytes[start..at], count) {
                        return self.stop(start, at, scanner);
                    }
                    match self.begin_stream(&bytes[at..], scanner, spans) {
                        Outcome::Done => {
                            *scanner = RequestScanner::default();
                            return bytes.len();
                        }
                        Outcome::Park(park) => {
                            self.state().park = park;
                            return self.stop(at, at, scanner);
                        }
                        Outcome::Rides | Outcome::Close(_) => return at,
                    }
                }
                Scan::Incomplete(_) => break,
                Scan::Frame(len) | Scan::Nothing(len) | Scan::Inline(len) => len,
            };
            let outcome = match scan {
                Scan::Frame(_) => {
                    let args = Args::new(&bytes[at..at + len], spans);
                    match self.judge(&args, count) {
                        Outcome::Rides => {
                            count += 1;
                            at += len;
                            continue;
                        }
                        // What follows must not overtake the run before it.
                        _ if count > 0 && !self.append(&bytes[start..at], count) => {
                            return self.stop(start, at, scanner);
                        }
                        Outcome::Done => self.special(&args, &bytes[at..at + len]),
                        other => other,
                    }
                }
                _ if count > 0 && !self.append(&bytes[start..at], count) => return self.stop(start, at, scanner),
                Scan::Inline(_) => self.inline(&bytes[at..at + len]),
                _ => Outcome::Done,
            };
            count = 0;
            match outcome {
                Outcome::Park(park) => {
                    self.state().park = park;
                    *scanner = RequestScanner::default();
                    return at;
                }
                Outcome::Close(_) if self.drains() => return self.stop(at, at, scanner),
                Outcome::Close(reason) => {
                    self.close(reason);
                    return bytes.len();
                }
                Outcome::Done | Outcome::Rides => {
                    at += len;
                    start = at;
                }
            }
        }
        if count > 0 && !self.append(&bytes[start..at], count) {
            return self.stop(start, at, scanner);
        }
        at
    }

    /// The run at `start` has to wait; scanning begins there again.
    fn stop(&self, start: usize, at: usize, scanner: &mut RequestScanner) -> usize {
        debug_assert!(start <= at);
        *scanner = RequestScanner::default();
        start
    }

    /// Whether a request may join the run of `count` before it; `Done` stands for "see [`Session::special`]".
    fn judge(&self, args: &Args, count: u32) -> Outcome {
        let state = self.state();
        if state.window.unanswered() + count >= IN_FLIGHT_MAX {
            return Outcome::Park(Park::Full);
        }
        let Lookup::Known(command) = self.worker.commands().lookup(args) else {
            return Outcome::Done;
        };
        let pinned_transaction = state.pinned.as_ref().is_some_and(|pinned| pinned.multi || pinned.watch);
        if !pinned_transaction
            && state.feed.is_none()
            && state.authenticated
            && command.rides_lane(args)
            && command.arity_ok(args.len())
            && is_for_one_shard(command)
        {
            return Outcome::Rides;
        }
        Outcome::Done
    }

    /// Requests that need more than a place on a lane.
    fn special(self: &Rc<Self>, args: &Args, frame: &[u8]) -> Outcome {
        let table = self.worker.commands().clone();
        let command = match table.lookup(args) {
            Lookup::Known(command) => command,
            Lookup::UnknownSubcommand(_) => return self.refuse(|out| refusal::unknown_subcommand(args, out)),
            Lookup::Unknown if refusal::is_cross_protocol(args.name()) => {
                return Outcome::Close(CloseReason::CrossProtocol);
            }
            Lookup::Unknown => return self.refuse(|out| refusal::unknown_command(args, out)),
        };
        if !command.arity_ok(args.len()) {
            return self.refuse(|out| refusal::wrong_arity(command, out));
        }
        if !self.state().authenticated && !matches!(&*command.name, "auth" | "hello" | "quit" | "reset") {
            return self.refuse(|out| out.extend_from_slice(b"-NOAUTH Authentication required.\r\n"));
        }
        if let Some(outcome) = self.pinned_request(command, args, frame) {
            return outcome;
        }
        if let Some(outcome) = self.feed_request(command, args, frame) {
            return outcome;
        }
        match command.class_for(args) {
            Class::Session => self.local(command, args),
            Class::Transaction => self.transaction(command, frame),
            Class::Blocking if !matches!(&*command.name, "wait" | "waitaof") => self.pin_and_append(frame),
            Class::EveryNode => self.every_node(command, args, frame),
            Class::Node | Class::Everywhere => self.pin_and_append(frame),
            Class::Refused => self.refuse(|out| {
                out.extend_from_slice(b"-NOPERM pointsman does not pass on '");
                out.extend_from_slice(command.name.as_bytes());
                out.extend_from_slice(b"'\r\n");
            }),
            Class::Read | Class::Write | Class::ManyKey | Class::Blocking | Class::Subscribe => {
                self.refuse(|out| refusal::not_yet(command, out))
            }
        }
    }

    /// A transaction on a pinned connection: the connection takes everything that may stand in one.
    fn pinned_request(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Option<Outcome> {
        let (multi, _) = {
            let state = self.state();
            let pinned = state.pinned.as_ref().filter(|pinned| pinned.multi || pinned.watch)?;
            (pinned.multi, pinned.watch)
        };
        let rides = command.lane || command.rides_lane(args) || command.class == Class::Transaction;
        let rides = rides || (command.class == Class::Blocking && !matches!(&*command.name, "wait" | "waitaof"));
        if !rides && multi {
            // The transaction must not go on without this command.
            self.refuse(|out| refusal::not_yet(command, out));
            return Some(Outcome::Close(CloseReason::TransactionLost));
        }
        if !rides {
            return None;
        }
        if command.class == Class::Transaction {
            return Some(self.transaction(command, frame));
        }
        Some(self.pin_and_append(frame))
    }

    fn transaction(self: &Rc<Self>, command: &Command, frame: &[u8]) -> Outcome {
        let pinned = self.state().pinned.is_some();
        match &*command.name {
            "exec" if !pinned => return self.refuse(|out| out.extend_from_slice(b"-ERR EXEC without MULTI\r\n")),
            "discard" if !pinned => return self.refuse(|out| out.extend_from_slice(b"-ERR DISCARD without MULTI\r\n")),
            "unwatch" if !pinned => return self.refuse(|out| out.extend_from_slice(b"+OK\r\n")),
            _ => {}
        }
        let outcome = self.pin_and_append(frame);
        if let (Outcome::Done, Some(pinned)) = (&outcome, &mut self.state().pinned) {
            match &*command.name {
                "multi" => pinned.multi = true,
                "watch" => pinned.watch = true,
                "unwatch" if !pinned.multi => pinned.watch = false,
                // Without MULTI both are errors that change nothing.
                "exec" | "discard" if pinned.multi => (pinned.multi, pinned.watch) = (false, false),
                _ => {}
            }
        }
        outcome
    }

    /// Appends one request to the session's own connection, which it gets once nothing is in flight elsewhere.
    fn pin_and_append(self: &Rc<Self>, frame: &[u8]) -> Outcome {
        let mut state = self.state();
        if state.pinned.is_none() {
            if state.window.unanswered() > 0 {
                return Outcome::Park(Park::Drain);
            }
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
            return Outcome::Done;
        };
        let run = state.window.reserve(lane.number, 1);
        lane.append(self, run, 1, frame);
        Outcome::Done
    }

    /// Appends a run to the session's lane. `false`: it is parked, nothing is appended.
    fn append(self: &Rc<Self>, bytes: &[u8], count: u32) -> bool {
        if count == 0 {
            return true;
        }
        let mut state = self.state();
        let Some(lane) = self.lane_for(&mut state) else {
            return false;
        };
        if !lane.has_room() {
            state.park = Park::Lane;
            lane.wait_for_room(self);
            return false;
        }
        let run = state.window.reserve(lane.number, count);
        lane.append(self, run, count, bytes);
        true
    }

    /// The lane that takes the session's commands now; without one it parks for the right thing.
    fn lane_for(self: &Rc<Self>, state: &mut State) -> Option<Rc<Lane>> {
        if let Some(pinned) = &state.pinned {
            return Some(pinned.lane.clone());
        }
        let wanted = self.worker.lane(&state.login);
        let Some(wanted) = wanted else {
            state.park = Park::Hold;
            state.held_since_ms = crate::clock::monotonic_ms();
            self.worker.hold(self.clone());
            return None;
        };
        if let Some(current) = &state.lane
            && !Rc::ptr_eq(current, &wanted)
            && state.window.unanswered() > 0
        {
            state.park = Park::Drain;
            return None;
        }
        state.lane = Some(wanted.clone());
        Some(wanted)
    }

    pub(super) fn hold(self: &Rc<Self>) -> Park {
        self.state().held_since_ms = crate::clock::monotonic_ms();
        self.worker.hold(self.clone());
        Park::Hold
    }

    /// Gives the session's own connection back once nothing needs it.
    fn give_back(&self, state: &mut State) {
        let idle = state.window.unanswered() == 0;
        if state
            .pinned
            .as_ref()
            .is_some_and(|pinned| idle && !pinned.multi && !pinned.watch)
            && let Some(pinned) = state.pinned.take()
        {
            pinned.lane.release();
        }
    }

    /// Sends again what a lost lane left, before anything newer. `false`: it has to wait longer.
    fn send_held(self: &Rc<Self>) -> bool {
        let mut state = self.state();
        if state.held.is_empty() {
            return true;
        }
        let Some(lane) = self.worker.lane(&state.login) else {
            state.park = Park::Hold;
            self.worker.hold(self.clone());
            return false;
        };
        for Held { run, count, bytes } in state.held.drain(..) {
            lane.append(self, run, count, &bytes);
        }
        state.lane = Some(lane);
        true
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
            Outcome::Rides if self.append(&request, 1) => Outcome::Done,
            Outcome::Rides => Outcome::Park(self.state().park),
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
        let State { out, window, .. } = &mut *state;
        window.local(&reply, out);
        Outcome::Done
    }

    /// Applies the in-flight rules to what this session had on a lane that is gone.
    pub fn lane_lost(self: &Rc<Self>, lane: &Rc<Lane>, lost: Vec<Lost>) {
        let mut answers = plan(&lost.iter().map(|lost| lost.fate).collect::<Vec<_>>()).answers;
        let pinned = self.state().pinned.take_if(|pinned| Rc::ptr_eq(&pinned.lane, lane));
        if let Some(streaming) = &mut self.state().streaming {
            streaming.lane = None;
        }
        if pinned.is_some() {
            // A pinned connection's requests mean something only on a connection prepared as that one was.
            answers.resize(lost.len(), Answer::MasterDown);
        }
        let worker = self.worker.clone();
        let mut lost = lost.into_iter();
        for (answer, lost) in answers.into_iter().zip(&mut lost) {
            self.fill(lost.run, answer.line(), 1, &worker);
        }
        {
            let mut state = self.state();
            state.held.extend(lost.map(|lost| Held {
                run: lost.run,
                count: 1,
                bytes: lost.bytes,
            }));
            state.held_since_ms = crate::clock::monotonic_ms();
            state.lane = None;
        }
        if pinned.is_some_and(|pinned| pinned.multi || pinned.watch) {
            self.close(CloseReason::TransactionLost);
        }
        self.wake();
    }

    /// Tells what waited longer than it may that there is no master; none of it was sent.
    pub fn expire_hold(self: &Rc<Self>, before_ms: u64) -> bool {
        if self.state().park != Park::Hold || self.state().held_since_ms > before_ms {
            return false;
        }
        let line = b"-MASTERDOWN no master for the shard: not executed\r\n";
        let worker = self.worker.clone();
        let held = std::mem::take(&mut self.state().held);
        for held in held {
            for _ in 0..held.count {
                self.fill(held.run, line, 1, &worker);
            }
        }
        let tail = self.state().tail.take();
        if let Some(mut tail) = tail {
            let used = self.refuse_all(&tail.bytes, line);
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

    fn refuse_all(self: &Rc<Self>, bytes: &[u8], line: &[u8]) -> usize {
        let (mut scanner, mut spans, mut at) = (RequestScanner::default(), Vec::new(), 0);
        loop {
            match scanner.scan(&bytes[at..], &mut spans, &self.worker.request_limits()) {
                Ok(Scan::Frame(len) | Scan::Inline(len)) => {
                    self.refuse(|out| out.extend_from_slice(line));
                    at += len;
                }
                Ok(Scan::Nothing(len)) => at += len,
                Ok(Scan::Incomplete(_)) | Err(_) => return at,
            }
        }
    }
}

/// One unanswered command of a lost lane.
pub struct Lost {
    run: RunId,
    fate: Fate,
    bytes: Vec<u8>,
}

/// Cuts what a lost lane left into commands, session by session in the order they first appear.
pub fn sort_out(wreck: Wreck, is_write: impl Fn(&Args) -> bool) -> Vec<(Rc<Session>, Vec<Lost>)> {
    let (mut scanner, mut spans, mut at) = (RequestScanner::default(), Vec::new(), 0);
    let mut found: Vec<(Rc<Session>, Vec<Lost>)> = Vec::new();
    for entry in wreck.entries {
        let place = match found
            .iter()
            .position(|(session, _)| Rc::ptr_eq(session, &entry.session))
        {
            Some(place) => place,
            None => {
                found.push((entry.session.clone(), Vec::new()));
                found.len() - 1
            }
        };
        for number in 0..entry.count {
            let scan = scanner.scan(
                wreck.bytes.get(at..).unwrap_or_default(),
                &mut spans,
                &RequestLimits::default(),
            );
            let Ok(Scan::Frame(len)) = scan else {
                // A streamed request: its bytes are gone, and so is the knowledge of how many were written.
                scanner = RequestScanner::default();
                found[place].1.push(Lost {
                    run: entry.run,
                    fate: Fate::SentWrite,
                    bytes: Vec::new(),
                });
                continue;
            };
            let bytes = &wreck.bytes[at..at + len];
            at += len;
            if number < entry.answered {
                continue;
            }
            let fate = match (at <= wreck.written, is_write(&Args::new(bytes, &spans))) {
                (false, _) => Fate::Unsent,
                (true, false) => Fate::SentRead,
                (true, true) => Fate::SentWrite,
            };
            found[place].1.push(Lost {
                run: entry.run,
                fate,
                bytes: bytes.to_vec(),
            });
        }
    }
    found
}

/// Whether a single shard's master can answer it alone; with one shard that is all of them.
fn is_for_one_shard(command: &Command) -> bool {
    !matches!(
        command.class,
        Class::Refused | Class::Session | Class::Transaction | Class::Subscribe | Class::EveryNode
    )
}
