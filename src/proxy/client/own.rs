//! Requests about the client itself: who it is, what it is called, whom it hears, who else is there. Answered here, in
//! Redis' words, at once or when EXEC comes to them.
//!
//! ```text
//! MULTI; CLIENT ID; EXEC --> redis: MULTI; PING; EXEC --*1 +PONG--> OwnReply --act--> *1 :7 --> client
//! ```
//! Redis queues a PING in place of what it must not do itself, so that it still says whether all of it runs. AUTH, HELLO
//! and SELECT it does itself, and what it says of them is noted. Invariant: nothing happens before EXEC, and nothing at
//! all if that does not run.

use std::rc::Rc;

use super::close::CloseReason;
use super::dispatch::Outcome;
use super::feed_request::put_unsubscribed;
use super::listener::{Act, Acts, Ear, answer};
use super::local::{
    Hello, WRONG_PASSWORD, database, on_or_off, put_bulk, put_greeting, put_integer, put_text, put_tracking_info,
};
use super::mute::Mute;
use super::pausing::PauseOrder;
use super::roster::Aside;
use super::session::{Park, Session, State};
use super::subscriptions::Family;
use super::tracking::Word;
use super::window::RunId;
use crate::clock;
use crate::command::{Class, Command, Lookup, refusal};
use crate::proxy::backend::{Credential, put_own};
use crate::resp::{Args, parse_i64};

/// Bytes of a reply of Redis' that are read: that to HELLO names the modules.
const REPLY_BYTES_MAX: usize = 64 * 1024;
const SYNTAX: &[u8] = b"-ERR syntax error\r\n";
const NOT_TRACKING: &[u8] =
    b"-ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled\r\n";
const NO_NUMBER: &[u8] = b"-ERR value is not an integer or out of range\r\n";

/// What a request about the client itself comes to.
#[derive(Debug)]
pub(super) enum Said {
    /// The reply is put.
    All,
    /// Others have to be asked for it.
    Asks(Aside),
    /// The same as `All`, for what is no reply: it is heard in any case.
    Tells,
    /// The same as `All`; from now on the client does not hear these replies.
    Mutes(Mute),
}

/// The circumstances of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'r> {
    /// Its length in bytes.
    pub bytes: usize,
    /// In a transaction: of how many.
    pub inside: Option<u32>,
    /// What Redis said of it, if it was asked.
    pub reply: &'r [u8],
}

/// The reply to what stands for a request about the client in a transaction.
#[derive(Debug)]
pub(super) struct OwnReply {
    request: Box<[u8]>,
    bytes: Vec<u8>,
}

impl OwnReply {
    pub(super) fn new(request: &[u8]) -> Self {
        Self {
            request: request.into(),
            bytes: Vec::new(),
        }
    }

    /// Takes bytes of the reply, and acts once it `ends`.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        ends: bool,
        inside: Option<u32>,
        acts: &mut dyn Acts,
        out: &mut Vec<u8>,
    ) -> Act {
        let room = REPLY_BYTES_MAX.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if !ends {
            return Act::Done;
        }
        acts.act(&self.request, &std::mem::take(&mut self.bytes), inside, out)
    }
}

/// A session of which a reply is being taken.
pub(super) struct Myself<'s> {
    pub session: &'s Rc<Session>,
    pub state: &'s mut State,
    /// The place that the reply fills.
    pub run: RunId,
}

impl Acts for Myself<'_> {
    fn mute(&self) -> Mute {
        self.state.mute
    }

    fn act(&mut self, request: &[u8], reply: &[u8], inside: Option<u32>, out: &mut Vec<u8>) -> Act {
        let mut spans = Vec::new();
        let args = Args::read(request, &mut spans);
        let known = args.and_then(|args| match self.session.worker.commands().lookup(&args) {
            Lookup::Known(command) => Some((command, args)),
            Lookup::Unknown | Lookup::UnknownSubcommand(_) => None,
        });
        let refused = matches!(reply.first(), Some(b'-' | b'!'));
        let Some((command, args)) = known.filter(|(command, args)| {
            if refused && &*command.name == "hello" {
                self.session.refused_hello(self.state, args);
            }
            !refused
        }) else {
            out.extend_from_slice(reply);
            return Act::Done;
        };
        let around = Around {
            bytes: request.len(),
            inside,
            reply,
        };
        match self.session.say_own(self.state, command, &args, around, out) {
            Said::All => Act::Done,
            Said::Tells => Act::Tells,
            Said::Mutes(mute) => Act::Mutes(mute),
            Said::Asks(aside) => {
                let (session, run) = (self.session.clone(), self.run);
                tokio::task::spawn_local(async move {
                    let (said, ends) = session.ask_aside(aside).await;
                    session.answered(run, &said, ends);
                });
                Act::Asks
            }
        }
    }
}

impl Session {
    /// Answers a request about the client itself that is made outside transactions.
    pub(super) fn own_request(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        let asks_others = matches!(&*command.name, "client|list" | "client|kill" | "client|unblock");
        if asks_others && self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        let around = Around {
            bytes: frame.len(),
            inside: None,
            reply: b"",
        };
        let mut out = Vec::new();
        let said = self.say_own(&mut self.state(), command, args, around, &mut out);
        let Said::Asks(aside) = said else {
            return self.refuse(|reply| reply.append(&mut out));
        };
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let (said, ends) = session.ask_aside(aside).await;
            session.refuse(|out| out.extend_from_slice(&said));
            if ends {
                session.close(CloseReason::Killed);
            }
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    /// What Redis is to get in place of a request about the client itself inside a transaction, and who listens to what it
    /// says; `None`: it is about something else.
    pub(super) fn own_inside(&self, command: &Command, args: &Args, frame: &[u8]) -> Option<(Vec<u8>, Ear)> {
        let is_own = match (command.class, &*command.name) {
            // What needs a connection that speaks unasked.
            (_, "subscribe" | "psubscribe") => false,
            (_, "client|tracking") => !matches!(Word::tracking(args), Ok(Word::On(_))),
            (Class::Session, _) | (_, "client|caching") => true,
            (Class::Blocking, "wait" | "waitaof") => true,
            (Class::Subscribe, name) => Family::of(name.as_bytes()).is_some() || name == "monitor",
            _ => false,
        };
        if !is_own {
            return None;
        }
        let mut ping = Vec::new();
        put_own(&mut ping, &[b"PING"]);
        let is_guest = self.worker.lodge().users().is_some();
        match &*command.name {
            // Where the proxy has users of its own the servers never hear of theirs; a HELLO would have to be taken apart.
            "hello" if is_guest && Hello::read(args).is_ok_and(|hello| hello.auth.is_some()) => {
                let mut line = Vec::new();
                refusal::not_yet(command, &mut line);
                Some((ping, Ear::Says(line.into())))
            }
            "auth" if is_guest => Some((ping, Ear::Own(OwnReply::new(frame)))),
            "auth" | "hello" | "select" => Some((frame.to_vec(), Ear::Own(OwnReply::new(frame)))),
            _ => Some((ping, Ear::Own(OwnReply::new(frame)))),
        }
    }

    /// Does what a request about the client itself asks for, as far as it can be done at once, and puts the reply.
    pub(super) fn say_own(
        &self,
        state: &mut State,
        command: &Command,
        args: &Args,
        around: Around,
        out: &mut Vec<u8>,
    ) -> Said {
        let argument = args.get(2).unwrap_or_default();
        match &*command.name {
            "client|id" => put_integer(out, self.id),
            "client|getname" => put_name(state, out),
            "client|setname" => set_name(state, argument, out),
            "client|setinfo" => set_info(state, args, out),
            "client|no-evict" => match on_or_off(argument) {
                Some(on) => {
                    state.about().no_evict = on;
                    put_ok(out);
                }
                None => out.extend_from_slice(SYNTAX),
            },
            // A lane's login: what this session reads leaves no trace in the servers' idea of what is used.
            "client|no-touch" => match on_or_off(argument) {
                Some(on) => {
                    state.login.no_touch = on;
                    put_ok(out);
                }
                None => out.extend_from_slice(SYNTAX),
            },
            "client|info" => {
                let line = self.portrait_of(state, around.bytes, around.inside).line();
                put_text(state.login.resp3, &[&line[..], b"\n"].concat(), out);
            }
            "client|list" => return self.lists(state, args, around, out),
            "client|kill" => return self.kills(state, command, args, out),
            "client|unblock" => return unblocks(command, args, out),
            "client|reply" => return replies(argument, out),
            "client|getredir" => out.extend_from_slice(b":-1\r\n"),
            "client|trackinginfo" => put_tracking_info(state.login.resp3, out),
            "client|caching" => out.extend_from_slice(NOT_TRACKING),
            // ON needs a connection of its own.
            "client|tracking" => match Word::tracking(args) {
                Ok(_) => put_ok(out),
                Err(unfit) => out.extend_from_slice(unfit.line()),
            },
            "client|pause" => {
                out.extend_from_slice(PauseOrder::pause(args).carry_out(self.worker.pause(), clock::monotonic_ms()))
            }
            "client|unpause" => {
                out.extend_from_slice(PauseOrder::Unpause.carry_out(self.worker.pause(), clock::monotonic_ms()));
            }
            // Whether replicas may answer this session's reads.
            "readonly" | "readwrite" => {
                state.masters_only = &*command.name == "readwrite";
                put_ok(out);
            }
            "acl|whoami" => put_bulk(out, state.user()),
            "wait" => put_waited(args, b":0\r\n", out),
            "waitaof" => put_waited(args, b"*2\r\n:0\r\n:0\r\n", out),
            "monitor" => out.extend_from_slice(b"-ERR MONITOR isn't allowed for DENY BLOCKING client\r\n"),
            "ssubscribe" => out.extend_from_slice(b"-ERR SSUBSCRIBE isn't allowed for a DENY BLOCKING client\r\n"),
            "unsubscribe" | "punsubscribe" | "sunsubscribe" => {
                if let Some(family) = Family::of(command.name.as_bytes()) {
                    put_unsubscribed(family, args, state.login.resp3, out);
                }
                return Said::Tells;
            }
            "select" => {
                state.selected(database(args, self.worker.databases()));
                out.extend_from_slice(around.reply);
            }
            "auth" if self.worker.lodge().users().is_some() => {
                let given = credential(args, 1);
                let known = given.filter(|given| self.admits(state, &given.user, &given.password));
                out.extend_from_slice(known.map_or(WRONG_PASSWORD, |_| b"+OK\r\n"));
            }
            "auth" => {
                state.is_now(credential(args, 1));
                out.extend_from_slice(around.reply);
            }
            "hello" => self.said_hello(state, args, around.reply, out),
            _ => refusal::not_yet(command, out),
        }
        Said::All
    }

    fn said_hello(&self, state: &mut State, args: &Args, reply: &[u8], out: &mut Vec<u8>) {
        let hello = Hello::read(args).unwrap_or_default();
        let resp3 = reply.starts_with(b"%");
        state.login.resp3 = resp3;
        if let Some(pinned) = &mut state.pinned {
            pinned.login.resp3 = resp3;
        }
        if let Some(name) = hello.name {
            state.about().name = name.into();
        }
        if let Some((user, password)) = hello.auth {
            state.is_now(Some(credential_of(user, password)));
        }
        put_greeting(self, resp3, out);
    }

    /// Servers before 7.2 give a client the name that a HELLO names it by even if they refuse that.
    pub(super) fn refused_hello(&self, state: &mut State, args: &Args) {
        if self.worker.redis_is_at_least(7, 2) {
            return;
        }
        let given = match Hello::read(args) {
            Ok(hello) => hello.name,
            Err(refused) => refused.name,
        };
        if let Some(name) = given {
            state.about().name = name.into();
        }
    }

    /// Whether the servers are too old to know a request about clients.
    pub(super) fn is_unknown(&self, command: &Command) -> bool {
        let young = matches!(&*command.name, "client|setinfo" | "client|no-touch");
        young && !self.worker.redis_is_at_least(7, 2)
    }

    /// Others have answered what an element of the reply to an EXEC waited for.
    fn answered(self: &Rc<Self>, run: RunId, said: &[u8], ends: bool) {
        let worker = self.worker.clone();
        let mut state = self.state();
        let mut listeners = state.listeners.take();
        let mut myself = Myself {
            session: self,
            state: &mut state,
            run,
        };
        let heard = answer(&mut listeners, run, said, ends, &mut myself);
        state.listeners = listeners;
        if let Some(heard) = heard {
            state.fill_heard(run, heard);
        }
        self.settle(&mut state, &worker);
        drop(state);
        if ends {
            self.close(CloseReason::Killed);
        }
        self.wake();
        worker.flush_dirty();
    }
}

impl State {
    /// The session's own connection has another database.
    fn selected(&mut self, database: Option<u32>) {
        let Some(database) = database else { return };
        self.login.database = database;
        if let Some(pinned) = &mut self.pinned {
            pinned.login.database = database;
        }
    }

    /// The session's own connection acts for somebody else.
    fn is_now(&mut self, credential: Option<Rc<Credential>>) {
        self.authenticated = true;
        if let Some(pinned) = &mut self.pinned {
            pinned.login.credential.clone_from(&credential);
        }
        self.login.credential = credential;
    }
}

/// Who an AUTH names, from the argument `at` on.
fn credential(args: &Args, at: usize) -> Option<Rc<Credential>> {
    match (args.get(at), args.get(at + 1)) {
        (Some(password), None) => Some(credential_of(b"default", password)),
        (Some(user), Some(password)) => Some(credential_of(user, password)),
        (None, _) => None,
    }
}

fn credential_of(user: &[u8], password: &[u8]) -> Rc<Credential> {
    Rc::new(Credential {
        user: user.into(),
        password: password.into(),
    })
}

fn put_ok(out: &mut Vec<u8>) {
    out.extend_from_slice(b"+OK\r\n");
}

fn put_name(state: &State, out: &mut Vec<u8>) {
    match state.about.as_ref().map(|about| &about.name) {
        Some(name) if !name.is_empty() => put_bulk(out, name),
        Some(_) | None if state.login.resp3 => out.extend_from_slice(b"_\r\n"),
        Some(_) | None => out.extend_from_slice(b"$-1\r\n"),
    }
}

fn is_printable(word: &[u8]) -> bool {
    word.iter().all(|byte| matches!(byte, b'!'..=b'~'))
}

fn set_name(state: &mut State, name: &[u8], out: &mut Vec<u8>) {
    if !is_printable(name) {
        out.extend_from_slice(b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n");
        return;
    }
    state.about().name = name.into();
    put_ok(out);
}

fn set_info(state: &mut State, args: &Args, out: &mut Vec<u8>) {
    let (attribute, value) = (args.get(2).unwrap_or_default(), args.get(3).unwrap_or_default());
    let shown = match attribute.to_ascii_lowercase().as_slice() {
        b"lib-name" => "lib-name",
        b"lib-ver" => "lib-ver",
        _ => {
            out.extend_from_slice(b"-ERR Unrecognized option '");
            out.extend_from_slice(attribute);
            out.extend_from_slice(b"'\r\n");
            return;
        }
    };
    if !is_printable(value) {
        let line = format!("-ERR {shown} cannot contain spaces, newlines or special characters.\r\n");
        out.extend_from_slice(line.as_bytes());
        return;
    }
    let about = state.about();
    if shown == "lib-name" {
        about.library = value.into();
    } else {
        about.library_version = value.into();
    }
    put_ok(out);
}

fn replies(word: &[u8], out: &mut Vec<u8>) -> Said {
    match word.to_ascii_lowercase().as_slice() {
        b"on" => {
            put_ok(out);
            Said::Mutes(Mute::No)
        }
        b"off" => Said::Mutes(Mute::Off),
        b"skip" => Said::Mutes(Mute::SkipsNext),
        _ => {
            out.extend_from_slice(SYNTAX);
            Said::All
        }
    }
}

fn unblocks(command: &Command, args: &Args, out: &mut Vec<u8>) -> Said {
    match Aside::unblock(command, args) {
        Ok(aside) => Said::Asks(aside),
        Err(line) => {
            out.extend_from_slice(&line);
            Said::All
        }
    }
}

/// A transaction waits for nothing, and how many replicas have what was written before it is not known here: `none`.
fn put_waited(args: &Args, none: &[u8], out: &mut Vec<u8>) {
    let timeout = args.get(args.len() - 1).and_then(parse_i64);
    let counts = args.iter().skip(1).take(args.len() - 2);
    let line: &[u8] = if counts.map(parse_i64).any(|count| count.is_none()) {
        NO_NUMBER
    } else {
        match timeout {
            None => b"-ERR timeout is not an integer or out of range\r\n",
            Some(..0) => b"-ERR timeout is negative\r\n",
            Some(_) => none,
        }
    };
    out.extend_from_slice(line);
}
