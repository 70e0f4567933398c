//! Replies that are looked at, or changed, on their way to the window: those of scans, of scripts not seen before, and
//! what tells of pointsman itself.
//!
//! ```text
//! lane --fill(run, bytes)--> Listener --> window --> client
//! ```
//! A listener has a run of one command to itself, so that all bytes of the run are that command's reply. Pure but for
//! what an [`Ear`] tells of a script, or to other nodes. Invariant: nothing is collected but the head of a reply, up to a scan's cursor, and
//! what a [`Redaction`] takes, which has a bound.

use std::collections::VecDeque;

use super::cursor::CursorReply;
use super::everynode::EveryNodeReply;
use super::pausing::PauseReply;
use super::redaction::Redaction;
use super::redirection::RedirectReply;
use super::window::{RunId as WindowRun, Window};
use crate::proxy::scripts::ScriptReply;
use crate::resp::{Heed, ReplyScanner, Stop};
use crate::topology::RunId;

/// The longest head of an array that is waited for.
const HEAD_BYTES_MAX: usize = 32;
/// Commands of one transaction whose replies are listened to.
const EARS_MAX: usize = 1024;

/// What is listened to in one reply.
#[derive(Debug)]
pub(super) enum Ear {
    /// The cursor.
    Cursor(CursorReply),
    /// Whether the script ran.
    Script(ScriptReply),
    /// Nothing: this is said in its place.
    Says(Box<[u8]>),
    /// An id of Redis' that is another client's.
    Redirect(RedirectReply),
    /// Nothing: the client pauses others, or ends that.
    Pauses(PauseReply),
    /// Whether every other node is to be told.
    Tells(EveryNodeReply),
    /// What is pointsman's own, to be left out.
    Redacts(Redaction),
}

/// What is listened to in the reply to one request.
#[derive(Debug)]
pub(super) enum Listener {
    /// A reply.
    One(Ear),
    /// Some elements of EXEC's.
    Exec(ExecReply),
}

/// All who listen to something that is in flight; `None` nearly always.
pub(super) type Listeners = Option<Box<VecDeque<Waiting>>>;

/// A listener and what it waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    run: WindowRun,
    lane: u32,
    listener: Listener,
}

/// A place in the window for one reply of lane number `lane`, which `listener` hears first.
pub(super) fn reserve_for(
    window: &mut Window,
    listeners: &mut Listeners,
    lane: u32,
    listener: Option<Listener>,
) -> WindowRun {
    let Some(listener) = listener else {
        return window.reserve(lane, 1);
    };
    let run = window.reserve_alone(lane);
    listeners
        .get_or_insert_default()
        .push_back(Waiting { run, lane, listener });
    run
}

/// Gives bytes of a reply to who listens to that run; what the client is to see of them, if somebody does.
#[inline]
pub(super) fn hear(listeners: &mut Listeners, run: WindowRun, bytes: &[u8], replies: u32) -> Option<Vec<u8>> {
    let all = listeners.as_mut()?;
    let at = all.iter().position(|waiting| waiting.run == run)?;
    let mut seen = Vec::new();
    all[at].listener.take(bytes, &mut seen);
    if replies > 0 {
        all.remove(at);
        if all.is_empty() {
            *listeners = None;
        }
    }
    Some(seen)
}

/// A run, or all of a lane, is sent again to a server in this life. Says whether it is a scan that must begin anew.
pub(super) fn move_to(listeners: &mut Listeners, which: Which, life: Option<&RunId>) -> bool {
    let mut anew = false;
    for waiting in listeners.iter_mut().flat_map(|all| all.iter_mut()) {
        let meant = match which {
            Which::Run(run) => waiting.run == run,
            Which::Lane(lane) => waiting.lane == lane,
        };
        anew |= meant && waiting.listener.moves_to(life);
    }
    anew
}

/// What is sent again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    Run(WindowRun),
    Lane(u32),
}

impl Ear {
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Cursor(reply) => reply.take(bytes, out),
            Self::Script(reply) => {
                reply.hear(bytes);
                out.extend_from_slice(bytes);
            }
            Self::Tells(reply) => {
                reply.hear(bytes);
                out.extend_from_slice(bytes);
            }
            Self::Redirect(reply) => reply.take(bytes, out),
            Self::Pauses(reply) => reply.take(out),
            Self::Says(line) => out.append(&mut std::mem::take(line).into_vec()),
            Self::Redacts(redaction) => redaction.take(bytes, out),
        }
    }

    fn moves_to(&mut self, life: Option<&RunId>) -> bool {
        match self {
            Self::Cursor(reply) => reply.moves_to(life),
            Self::Script(reply) => {
                reply.comes_from(life);
                false
            }
            Self::Tells(_) | Self::Redirect(_) | Self::Pauses(_) | Self::Says(_) => false,
            Self::Redacts(redaction) => {
                redaction.begins_anew();
                false
            }
        }
    }
}

impl Listener {
    /// Takes bytes of the reply and gives what the client is to see of them.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::One(ear) => ear.take(bytes, out),
            Self::Exec(reply) => reply.take(bytes, out),
        }
    }

    /// The request is sent again, to a server in this life. Says whether it is a scan that must begin anew there.
    fn moves_to(&mut self, life: Option<&RunId>) -> bool {
        match self {
            Self::One(ear) => ear.moves_to(life),
            // What was queued is kept so that its scans begin anew.
            Self::Exec(reply) => {
                for (_, ear) in &mut reply.ears {
                    ear.moves_to(life);
                }
                false
            }
        }
    }
}

/// What a transaction on the session's own connection has queued, as the elements of the reply to its EXEC.
#[derive(Debug, Default)]
pub(super) struct Elements {
    count: u32,
    ears: Vec<(u32, Ear)>,
}

impl Elements {
    /// Whether nothing more can be listened to.
    pub(super) fn is_full(&self) -> bool {
        self.ears.len() >= EARS_MAX
    }

    /// Redis queues a command, of whose reply this is listened to.
    pub(super) fn queue(&mut self, name: &str, ear: Option<Ear>) {
        // It answers these at once.
        if matches!(name, "multi" | "watch") {
            return;
        }
        if let Some(ear) = ear.filter(|_| !self.is_full()) {
            self.ears.push((self.count, ear));
        }
        self.count += 1;
    }

    /// What is queued goes to a server in this life.
    pub(super) fn moves_to(&mut self, life: Option<&RunId>) {
        for (_, ear) in &mut self.ears {
            ear.moves_to(life);
        }
    }

    /// Who listens to the reply to EXEC.
    pub(super) fn listener(self) -> Option<Listener> {
        (!self.ears.is_empty()).then(|| Listener::Exec(ExecReply::new(self.ears)))
    }
}

/// The reply to an EXEC: of some of its elements the replies are listened to.
#[derive(Debug)]
pub(super) struct ExecReply {
    /// By their place among the elements, the next one last.
    ears: Vec<(u32, Ear)>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// How many elements there are is not known yet; the bytes that have come.
    Head(Vec<u8>),
    /// Within element number `at`.
    Element { at: u32, scanner: ReplyScanner },
    /// Nothing more is listened to.
    Passes,
}

impl ExecReply {
    /// `ears` in the order of their places.
    fn new(mut ears: Vec<(u32, Ear)>) -> Self {
        ears.reverse();
        Self {
            ears,
            state: State::Head(Vec::new()),
        }
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match &mut self.state {
            State::Passes => out.extend_from_slice(bytes),
            State::Element { .. } => self.take_elements(bytes, out),
            State::Head(head) => {
                head.extend_from_slice(bytes);
                let end = head.windows(2).position(|pair| pair == b"\r\n");
                let begins = head.is_empty() || head.starts_with(b"*");
                if end.is_none() && begins && head.len() < HEAD_BYTES_MAX {
                    return;
                }
                let head = std::mem::take(head);
                let is_array = head.starts_with(b"*") && !head.starts_with(b"*-");
                let Some(end) = end.filter(|_| is_array) else {
                    self.state = State::Passes;
                    out.extend_from_slice(&head);
                    return;
                };
                out.extend_from_slice(&head[..end + 2]);
                self.state = State::Element {
                    at: 0,
                    scanner: ReplyScanner::default(),
                };
                self.take_elements(&head[end + 2..], out);
            }
        }
    }

    fn take_elements(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let State::Element { at, scanner } = &mut self.state {
            if bytes.is_empty() {
                return;
            }
            let scanned = scanner.scan(bytes, 1, Heed::Nothing);
            let (element, rest) = bytes.split_at(scanned.used);
            match self.ears.last_mut() {
                Some((place, ear)) if place == at => ear.take(element, out),
                Some(_) | None => out.extend_from_slice(element),
            }
            bytes = rest;
            if scanned.replies == 1 {
                self.ears.pop_if(|(place, _)| place == at);
                *at += 1;
            }
            let lost = matches!(scanned.stop, Stop::Push | Stop::Malformed);
            if lost || self.ears.is_empty() {
                self.state = State::Passes;
            }
        }
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life() -> RunId {
        RunId::from("life")
    }

    fn cursor() -> Ear {
        Ear::Cursor(CursorReply::new(crate::route::cursor::Scope::ONE, Some(&life())))
    }

    /// The cursor that a client sees for 5.
    fn seen() -> String {
        let mut out = Vec::new();
        cursor().take(b"*2\r\n$1\r\n5\r\n*0\r\n", &mut out);
        let text = String::from_utf8(out).unwrap();
        text.lines().nth(2).unwrap().to_owned()
    }

    fn passed(places: &[u32], parts: &[&[u8]]) -> String {
        let ears = places.iter().map(|place| (*place, cursor())).collect();
        let (mut listener, mut out) = (Listener::Exec(ExecReply::new(ears)), Vec::new());
        parts.iter().for_each(|part| listener.take(part, &mut out));
        String::from_utf8(out).unwrap()
    }

    const EXEC: &str =
        "*5\r\n+OK\r\n*2\r\n$1\r\n5\r\n*1\r\n$3\r\n*2\r\r\n*2\r\n$1\r\n5\r\n*0\r\n-ERR no\r\n*2\r\n$1\r\n0\r\n*0\r\n";

    fn expected() -> String {
        let seen = seen();
        EXEC.replacen("$1\r\n5\r\n", &format!("${}\r\n{seen}\r\n", seen.len()), 1)
    }

    #[test]
    fn only_the_elements_that_are_scans_are_changed() {
        assert_eq!(passed(&[1, 3, 4], &[EXEC.as_bytes()]), expected());
        let all = EXEC.replace("$1\r\n5\r\n", &format!("${}\r\n{}\r\n", seen().len(), seen()));
        assert_eq!(passed(&[1, 2], &[EXEC.as_bytes()]), all);
    }

    #[test]
    fn places_count_what_redis_queues() {
        let mut elements = Elements::default();
        for (name, ear) in [
            ("set", None),
            ("multi", None),
            ("watch", None),
            ("scan", Some(cursor())),
            ("get", None),
            ("hscan", Some(cursor())),
        ] {
            elements.queue(name, ear);
        }
        let places: Vec<u32> = elements.ears.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [1, 3]);
        assert!(Elements::default().listener().is_none());
        (0..EARS_MAX).for_each(|_| elements.queue("scan", Some(cursor())));
        assert!(elements.is_full() && elements.ears.len() == EARS_MAX);
    }

    #[test]
    fn what_is_no_array_passes() {
        for whole in ["*-1\r\n", "_\r\n", "-EXECABORT Transaction discarded\r\n", "*0\r\n"] {
            assert_eq!(passed(&[0], &[whole.as_bytes()]), whole);
            let bytes: Vec<&[u8]> = whole.as_bytes().chunks(1).collect();
            assert_eq!(passed(&[0], &bytes), whole);
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_reply(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let whole = EXEC.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut parts, mut at) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([whole.len()]) {
                parts.push(&whole[at..cut]);
                at = cut;
            }
            prop_assert_eq!(passed(&[1, 4], &parts), expected());
        }
    }
}
