//! Requests about the client's own connection, answered here in Redis' words.

use std::rc::Rc;

use super::close::CloseReason;
use super::dispatch::Outcome;
use super::mute::Mute;
use super::session::{Park, Session, State};
use super::transaction::Transaction;
use crate::command::Command;
use crate::proxy::backend::{Credential, Login, put_request};
use crate::resp::{Args, parse_i64, put_i64};

const SYNTAX: &[u8] = b"-ERR syntax error\r\n";
pub(super) const WRONG_PASSWORD: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";

impl Session {
    /// Answers a request of class session, or says that it cannot.
    pub(super) fn local(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        match &*command.name {
            "quit" => {
                if self.state().window.unanswered() == 0 {
                    self.ok();
                }
                Outcome::Close(CloseReason::Quit)
            }
            "select" => self.select(args),
            "auth" => self.auth(args),
            "hello" => self.hello(args),
            "reset" => self.reset(),
            "client|reply" => self.client_reply(args),
            _ => self.own_request(command, args, frame),
        }
    }

    fn ok(self: &Rc<Self>) -> Outcome {
        self.refuse(|out| out.extend_from_slice(b"+OK\r\n"))
    }

    fn say(self: &Rc<Self>, reply: &[u8]) -> Outcome {
        self.refuse(|out| out.extend_from_slice(reply))
    }

    fn select(self: &Rc<Self>, args: &Args) -> Outcome {
        match args.get(1).and_then(parse_i64) {
            None => self.say(b"-ERR value is not an integer or out of range\r\n"),
            Some(index) if i32::try_from(index).is_err() => {
                self.say(b"-ERR value is out of range, value must between -2147483648 and 2147483647\r\n")
            }
            Some(index) if !(0..i64::from(self.worker.databases())).contains(&index) => {
                self.say(b"-ERR DB index is out of range\r\n")
            }
            Some(index) => {
                self.state().login.database = u32::try_from(index).unwrap_or(0);
                self.feed_follows();
                self.ok()
            }
        }
    }

    fn reset(self: &Rc<Self>) -> Outcome {
        {
            let mut state = self.state();
            if state.window.unanswered() > 0 {
                return Outcome::Park(Park::Drain);
            }
            if let Some(pinned) = state.pinned.take() {
                pinned.lane.abandon();
            }
            state.stand(Transaction::None);
            if let Some(feed) = state.feed.take() {
                feed.close();
            }
            state.login = Login::default();
            state.authenticated = !self.worker.auth_required();
            state.about = None;
            // The reply to RESET itself may be the one that is skipped.
            if state.mute != Mute::Skipping {
                state.mute = Mute::No;
            }
            state.masters_only = false;
        }
        self.say(b"+RESET\r\n")
    }

    fn auth(self: &Rc<Self>, args: &Args) -> Outcome {
        match (args.get(1), args.get(2), args.len()) {
            (Some(password), None, 2) => self.verify(b"default", password, &[b"AUTH", password], None),
            (Some(user), Some(password), 3) => self.verify(user, password, &[b"AUTH", user, password], None),
            _ => self.say(SYNTAX),
        }
    }

    fn hello(self: &Rc<Self>, args: &Args) -> Outcome {
        let Hello { resp3, auth, name } = match Hello::read(args) {
            Ok(hello) => hello,
            Err(refused) => {
                self.refused_hello(&mut self.state(), args);
                return self.say(&refused.line);
            }
        };
        let name: Option<Box<[u8]>> = name.map(Into::into);
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        match auth {
            Some((user, password)) => {
                self.verify(user, password, &[b"AUTH", user, password], Some(Greeted { resp3, name }))
            }
            None if !self.state().authenticated => self.say(
                b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n",
            ),
            None => {
                self.greet(&Greeted { resp3, name });
                Outcome::Done
            }
        }
    }

    fn greet(self: &Rc<Self>, hello: &Greeted) {
        let resp3 = {
            let mut state = self.state();
            state.login.resp3 = hello.resp3.unwrap_or(state.login.resp3);
            if let Some(name) = &hello.name {
                state.about().name.clone_from(name);
            }
            state.login.resp3
        };
        self.greet_with(|out| put_greeting(self, resp3, out));
    }

    /// Verifies a password of a user of the proxy's own; `None`: clients log in to the servers.
    fn verify_guest(self: &Rc<Self>, user: &[u8], password: &[u8], hello: Option<&Greeted>) -> Option<Outcome> {
        self.worker.lodge().users()?;
        let admitted = self.admits(&mut self.state(), user, password);
        if !admitted {
            return Some(self.say(WRONG_PASSWORD));
        }
        match hello {
            Some(hello) => self.greet(hello),
            None => {
                self.ok();
            }
        }
        Some(Outcome::Done)
    }

    /// Lets the client be a user of the proxy's own, if that is the password.
    pub(super) fn admits(&self, state: &mut State, user: &[u8], password: &[u8]) -> bool {
        let known = self
            .worker
            .lodge()
            .users()
            .is_some_and(|users| users.verify(user, password));
        if known {
            state.login.credential = self.worker.lodge().credential();
            state.about().guest = user.into();
            state.authenticated = true;
        }
        known
    }

    /// Has a password verified by the master on a connection of its own (rule A16): a name alone proves nothing. It is
    /// asked as the client asked, because to a password without a name Redis says something else.
    fn verify(self: &Rc<Self>, user: &[u8], password: &[u8], asked: &[&[u8]], hello: Option<Greeted>) -> Outcome {
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        if let Some(outcome) = self.verify_guest(user, password, hello.as_ref()) {
            return outcome;
        }
        let credential = Rc::new(Credential {
            user: user.into(),
            password: password.into(),
        });
        let mut request = Vec::new();
        put_request(&mut request, asked);
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let verdict = session.worker.clone().ask_master(&request).await;
            session.verified(credential, hello, verdict);
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    fn verified(self: &Rc<Self>, credential: Rc<Credential>, hello: Option<Greeted>, verdict: Result<(), String>) {
        match (verdict, hello) {
            (Err(line), hello) => {
                if let Some(name) = hello.and_then(|hello| hello.name)
                    && !self.worker.redis_is_at_least(7, 2)
                {
                    // Those give it its name before they look at the password.
                    self.state().about().name = name;
                }
                self.refuse(|out| {
                    out.extend_from_slice(line.as_bytes());
                    out.extend_from_slice(b"\r\n");
                });
            }
            (Ok(()), hello) => {
                {
                    let mut state = self.state();
                    state.login.credential = Some(credential);
                    state.authenticated = true;
                }
                self.feed_follows();
                match hello {
                    Some(hello) => self.greet(&hello),
                    None => {
                        self.ok();
                    }
                }
            }
        }
        self.state().park = Park::Open;
        self.wake();
    }
}

/// The greeting, as the answer to HELLO.
pub(super) fn put_greeting(session: &Session, resp3: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if resp3 { b"%7\r\n" } else { b"*14\r\n" });
    for (key, value) in [
        (&b"server"[..], &b"redis"[..]),
        (b"version", session.worker.redis_version().as_bytes()),
    ] {
        put_bulk(out, key);
        put_bulk(out, value);
    }
    put_bulk(out, b"proto");
    put_integer(out, if resp3 { 3 } else { 2 });
    put_bulk(out, b"id");
    put_integer(out, session.id);
    for (key, value) in [(&b"mode"[..], &b"standalone"[..]), (b"role", b"master")] {
        put_bulk(out, key);
        put_bulk(out, value);
    }
    put_bulk(out, b"modules");
    out.extend_from_slice(b"*0\r\n");
}

/// What CLIENT TRACKINGINFO says to who does not track.
pub(super) fn put_tracking_info(resp3: bool, out: &mut Vec<u8>) {
    let (map, set) = if resp3 { ("%3", "~1") } else { ("*6", "*1") };
    let reply =
        format!("{map}\r\n$5\r\nflags\r\n{set}\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n");
    out.extend_from_slice(reply.as_bytes());
}

/// Text for people: verbatim where the protocol has that.
pub(super) fn put_text(resp3: bool, text: &[u8], out: &mut Vec<u8>) {
    if !resp3 {
        return put_bulk(out, text);
    }
    out.push(b'=');
    put_i64(out, i64::try_from(text.len() + 4).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\ntxt:");
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// What an argument of ON or OFF says.
pub(super) fn on_or_off(word: &[u8]) -> Option<bool> {
    match word.to_ascii_lowercase().as_slice() {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

/// The database that a SELECT asks for, if there is one of that number.
pub(super) fn database(args: &Args, databases: u32) -> Option<u32> {
    let index = args.get(1).and_then(parse_i64)?;
    u32::try_from(index).ok().filter(|index| *index < databases)
}

/// What a HELLO asks for beside a login.
struct Greeted {
    resp3: Option<bool>,
    name: Option<Box<[u8]>>,
}

/// What a HELLO asks for.
#[derive(Debug, Default)]
pub(super) struct Hello<'r> {
    pub resp3: Option<bool>,
    /// User and password.
    pub auth: Option<(&'r [u8], &'r [u8])>,
    pub name: Option<&'r [u8]>,
}

impl<'r> Hello<'r> {
    /// Reads one.
    pub(super) fn read(args: &Args<'r>) -> Result<Self, RefusedHello<'r>> {
        let mut hello = Self::default();
        if let Some(text) = args.get(1) {
            hello.resp3 = match text {
                b"2" => Some(false),
                b"3" => Some(true),
                _ if parse_i64(text).is_none() => {
                    return Err(hello.refused(b"-ERR Protocol version is not an integer or out of range\r\n"));
                }
                _ => return Err(hello.refused(b"-NOPROTO unsupported protocol version\r\n")),
            };
        }
        let mut at = 2;
        while let Some(option) = args.get(at) {
            match (
                option.to_ascii_uppercase().as_slice(),
                args.get(at + 1),
                args.get(at + 2),
            ) {
                (b"AUTH", Some(user), Some(password)) => {
                    hello.auth = Some((user, password));
                    at += 3;
                }
                (b"SETNAME", Some(given), _) => {
                    if !given.iter().all(|byte| matches!(byte, b'!'..=b'~')) {
                        let line = b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n";
                        return Err(hello.refused(line));
                    }
                    hello.name = Some(given);
                    at += 2;
                }
                _ => {
                    let shown = option
                        .iter()
                        .map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte });
                    let mut line = b"-ERR Syntax error in HELLO option '".to_vec();
                    line.extend(shown);
                    line.extend_from_slice(b"'\r\n");
                    return Err(hello.refused(&line));
                }
            }
        }
        Ok(hello)
    }

    fn refused(&self, line: &[u8]) -> RefusedHello<'r> {
        RefusedHello {
            line: line.to_vec(),
            name: self.name,
        }
    }
}

/// A HELLO that is refused.
#[derive(Debug)]
pub(super) struct RefusedHello<'r> {
    /// What is said to it.
    pub line: Vec<u8>,
    /// The name that it gave before that was known.
    pub name: Option<&'r [u8]>,
}

pub(super) fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    put_i64(out, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn put_integer(out: &mut Vec<u8>, value: u64) {
    out.push(b':');
    put_i64(out, i64::try_from(value).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
}
