//! Replies that are looked at, or changed, on their way to the window: those of scans, of scripts not seen before, and
//! what tells of pointsman itself.
//!
//! ```text
//! lane --fill(run, bytes)--> Listener --> window --> client
//!                               |  ^
//!                               v  '--- Acts: what a request about the client itself does and says
//! ```
//! A listener has a run of one command to itself, so that all bytes of the run are that command's reply. Pure but for
//! what an [`Ear`] tells of a script, or to other nodes. Invariant: nothing is collected but the head of a reply, up to a scan's cursor,
//! what a [`Redaction`] takes and what Redis says in place of a reply of ours, which have a bound, and what follows an
//! element of EXEC's reply that others have to be asked for.

use std::collections::VecDeque;

use super::cursor::CursorReply;
use super::everynode::EveryNodeReply;
use super::exec_reply::ExecReply;
use super::mute::Mute;
use super::own::OwnReply;
use super::redaction::Redaction;
use super::redirection::RedirectReply;
use super::window::{RunId as WindowRun, Window};
use crate::proxy::scripts::ScriptReply;
use crate::topology::RunId;

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
    /// Whether Redis took it: then what is asked about the client itself is done, and answered here.
    Own(OwnReply),
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
    Exec(Box<ExecReply>),
}

/// All who listen to something that is in flight; `None` nearly always.
pub(super) type Listeners = Option<Box<VecDeque<Waiting>>>;

/// A listener and what it waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    run: WindowRun,
    lane: u32,
    listener: Listener,
    /// Replies that came whole and are not told so yet.
    owed: u32,
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
    listeners.get_or_insert_default().push_back(Waiting {
        run,
        lane,
        listener,
        owed: 0,
    });
    run
}

/// Does what requests about the client itself ask for, in their turn.
pub(super) trait Acts {
    /// Which replies the client does not hear now.
    fn mute(&self) -> Mute;
    /// Redis said `reply` to what stands for a request about the client, as one of `inside` in a transaction: puts what the
    /// client is to see.
    fn act(&mut self, request: &[u8], reply: &[u8], inside: Option<u32>, out: &mut Vec<u8>) -> Act;
}

/// What became of a request about the client itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// It is done and answered.
    Done,
    /// The same, and the client hears it in any case: it is no reply.
    Tells,
    /// Others are asked; the answer comes by [`answer`].
    Asks,
    /// Which replies the client does not hear from now on.
    Mutes(Mute),
}

/// What a client is to see of bytes that were listened to.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub bytes: Vec<u8>,
    /// How many replies they end: none as long as one of them waits for an answer.
    pub replies: u32,
    /// Muting was looked after.
    pub muted: bool,
    /// What the client hears from now on, if that changes.
    pub mute: Option<Mute>,
}

/// Gives bytes of a reply to who listens to that run; what the client is to see of them, if somebody does.
pub(super) fn hear(
    listeners: &mut Listeners,
    run: WindowRun,
    bytes: &[u8],
    replies: u32,
    acts: &mut dyn Acts,
) -> Option<Heard> {
    let waiting = waiting(listeners, run)?;
    let mut seen = Vec::new();
    waiting.listener.take(bytes, replies > 0, acts, &mut seen);
    waiting.owed += replies;
    Some(heard(listeners, run, seen))
}

/// The answer came that an element of the reply to EXEC waited for, which fills `run`. `ends`: the client is to see nothing
/// after it.
pub(super) fn answer(
    listeners: &mut Listeners,
    run: WindowRun,
    said: &[u8],
    ends: bool,
    acts: &mut dyn Acts,
) -> Option<Heard> {
    let waiting = waiting(listeners, run)?;
    let Listener::Exec(reply) = &mut waiting.listener else {
        return None;
    };
    let mut seen = Vec::new();
    reply.go_on(said, ends, acts, &mut seen);
    Some(heard(listeners, run, seen))
}

fn waiting(listeners: &mut Listeners, run: WindowRun) -> Option<&mut Waiting> {
    listeners.as_mut()?.iter_mut().find(|waiting| waiting.run == run)
}

/// What `run` comes to with these bytes; who listened to it is gone once it is whole.
fn heard(listeners: &mut Listeners, run: WindowRun, bytes: Vec<u8>) -> Heard {
    let mut heard = Heard {
        bytes,
        ..Heard::default()
    };
    let Some(all) = listeners else { return heard };
    let Some(at) = all.iter().position(|waiting| waiting.run == run) else {
        return heard;
    };
    let whole = match &mut all[at].listener {
        Listener::One(_) => true,
        Listener::Exec(reply) => {
            heard.muted = true;
            let goes_on = !reply.waits();
            heard.mute = reply.mutes().filter(|_| goes_on && all[at].owed > 0);
            goes_on
        }
    };
    if whole && all[at].owed > 0 {
        heard.replies = all[at].owed;
        all.remove(at);
        if all.is_empty() {
            *listeners = None;
        }
    }
    heard
}

/// Bytes of replies that wait for an answer.
pub(super) fn kept_bytes(listeners: &Listeners) -> usize {
    let kept = |waiting: &Waiting| match &waiting.listener {
        Listener::Exec(reply) => reply.kept_bytes(),
        Listener::One(_) => 0,
    };
    listeners.iter().flat_map(|all| all.iter()).map(kept).sum()
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
    /// Takes bytes of the reply, whose last ones they are if it `ends`, and gives what the client is to see of them.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        ends: bool,
        inside: Option<u32>,
        acts: &mut dyn Acts,
        out: &mut Vec<u8>,
    ) -> Act {
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
            Self::Own(reply) => return reply.take(bytes, ends, inside, acts, out),
            Self::Says(line) => out.append(&mut std::mem::take(line).into_vec()),
            Self::Redacts(redaction) => redaction.take(bytes, out),
        }
        Act::Done
    }

    /// The request is sent again, to a server in this life. Says whether it is a scan that must begin anew there.
    pub(super) fn moves_to(&mut self, life: Option<&RunId>) -> bool {
        match self {
            Self::Cursor(reply) => reply.moves_to(life),
            Self::Script(reply) => {
                reply.comes_from(life);
                false
            }
            Self::Tells(_) | Self::Redirect(_) | Self::Own(_) | Self::Says(_) => false,
            Self::Redacts(redaction) => {
                redaction.begins_anew();
                false
            }
        }
    }
}

impl Listener {
    /// Takes bytes of the reply and gives what the client is to see of them.
    fn take(&mut self, bytes: &[u8], ends: bool, acts: &mut dyn Acts, out: &mut Vec<u8>) {
        match self {
            Self::One(ear) => {
                ear.take(bytes, ends, None, acts, out);
            }
            Self::Exec(reply) => reply.take(bytes, acts, out),
        }
    }

    /// The request is sent again, to a server in this life. Says whether it is a scan that must begin anew there.
    fn moves_to(&mut self, life: Option<&RunId>) -> bool {
        match self {
            Self::One(ear) => ear.moves_to(life),
            // What was queued is kept so that its scans begin anew.
            Self::Exec(reply) => {
                reply.moves_to(life);
                false
            }
        }
    }
}
