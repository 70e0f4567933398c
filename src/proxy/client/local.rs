//! Requests about the client's own connection, answered here in Redis' words.

use std::rc::Rc;

use super::close::CloseReason;
use super::dispatch::Outcome;
use super::mute::Mute;
use super::session::{Park, Session};
use super::transaction::Transaction;
use crate::command::{Command, refusal};
use crate::proxy::backend::{Credential, Login, put_request};
use crate::resp::{Args, parse_i64, put_i64};

const SYNTAX: &[u8] = b"-ERR syntax error\r\n";
const WRONG_PASSWORD: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";

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
            "client|id" => self.refuse(|out| put_integer(out, self.id)),
            "client|getname" => self.get_name(),
            "client|setname" => self.set_name(args.get(2).unwrap_or_default()),
            "client|setinfo" => self.set_info(args),
            "client|no-evict" => self.no_evict(args),
            "client|info" => self.client_info(frame),
            "client|list" => self.client_list(args, frame),
            "client|kill" => self.client_kill(command, args),
            "client|reply" => self.client_reply(args),
            "client|no-touch" => self.no_touch(args),
            "client|getredir" => self.say(b":-1\r\n"),
            "client|trackinginfo" => self.tracking_info(),
            "readonly" => self.reads_anywhere(true),
            "readwrite" => self.reads_anywhere(false),
            "client|pause" => self.client_pause(args),
            "client|unpause" => self.client_unpause(),
            "client|unblock" => self.client_unblock(command, args),
            "acl|whoami" => self.who_am_i(),
            _ => self.refuse(|out| refusal::not_yet(command, out)),
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

    fn get_name(self: &Rc<Self>) -> Outcome {
        let (name, resp3) = {
            let state = self.state();
            let name = state.about.as_ref().map(|about| about.name.clone());
            (name, state.login.resp3)
        };
        self.refuse(|out| match name {
            Some(name) if !name.is_empty() => put_bulk(out, &name),
            Some(_) | None if resp3 => out.extend_from_slice(b"_\r\n"),
            Some(_) | None => out.extend_from_slice(b"$-1\r\n"),
        })
    }

    fn set_name(self: &Rc<Self>, name: &[u8]) -> Outcome {
        if !name.iter().all(|byte| matches!(byte, b'!'..=b'~')) {
            return self.say(b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n");
        }
        self.state().about().name = name.into();
        self.ok()
    }

    fn set_info(self: &Rc<Self>, args: &Args) -> Outcome {
        let (attribute, value) = (args.get(2).unwrap_or_default(), args.get(3).unwrap_or_default());
        let attribute = attribute.to_ascii_lowercase();
        let shown = match attribute.as_slice() {
            b"lib-name" => "lib-name",
            b"lib-ver" => "lib-ver",
            _ => {
                return self.refuse(|out| {
                    out.extend_from_slice(b"-ERR Unrecognized option '");
                    out.extend_from_slice(args.get(2).unwrap_or_default());
                    out.extend_from_slice(b"'\r\n");
                });
            }
        };
        if !value.iter().all(|byte| matches!(byte, b'!'..=b'~')) {
            let line = format!("-ERR {shown} cannot contain spaces, newlines or special characters.\r\n");
            return self.say(line.as_bytes());
        }
        let mut state = self.state();
        let about = state.about();
        if shown == "lib-name" {
            about.library = value.into();
        } else {
            about.library_version = value.into();
        }
        drop(state);
        self.ok()
    }

    fn no_evict(self: &Rc<Self>, args: &Args) -> Outcome {
        match args.get(2).and_then(on_or_off) {
            Some(on) => {
                self.state().about().no_evict = on;
                self.ok()
            }
            None => self.say(SYNTAX),
        }
    }

    /// A lane's login: what this session reads leaves no trace in the servers' idea of what is used.
    fn no_touch(self: &Rc<Self>, args: &Args) -> Outcome {
        if !self.worker.redis_is_at_least(7, 2) {
            return self.refuse(|out| refusal::unknown_subcommand(args, out));
        }
        match args.get(2).and_then(on_or_off) {
            Some(on) => {
                self.state().login.no_touch = on;
                self.ok()
            }
            None => self.say(SYNTAX),
        }
    }

    /// Nobody tracks.
    fn tracking_info(self: &Rc<Self>) -> Outcome {
        let (map, set) = if self.state().login.resp3 {
            ("%3", "~1")
        } else {
            ("*6", "*1")
        };
        let reply =
            format!("{map}\r\n$5\r\nflags\r\n{set}\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n");
        self.say(reply.as_bytes())
    }

    /// Whether replicas may answer this session's reads.
    fn reads_anywhere(self: &Rc<Self>, anywhere: bool) -> Outcome {
        self.state().masters_only = !anywhere;
        self.ok()
    }

    fn who_am_i(self: &Rc<Self>) -> Outcome {
        let user = self.state().user().to_vec();
        self.refuse(|out| put_bulk(out, &user))
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
        let mut version = None;
        if let Some(text) = args.get(1) {
            version = match text {
                b"2" => Some(false),
                b"3" => Some(true),
                _ if parse_i64(text).is_none() => {
                    return self.say(b"-ERR Protocol version is not an integer or out of range\r\n");
                }
                _ => return self.say(b"-NOPROTO unsupported protocol version\r\n"),
            };
        }
        let (mut at, mut auth, mut name) = (2, None, None);
        while let Some(option) = args.get(at) {
            match (
                option.to_ascii_uppercase().as_slice(),
                args.get(at + 1),
                args.get(at + 2),
            ) {
                (b"AUTH", Some(user), Some(password)) => {
                    auth = Some((user, password));
                    at += 3;
                }
                (b"SETNAME", Some(given), _) => {
                    name = Some(given);
                    at += 2;
                }
                _ => {
                    return self.refuse(|out| {
                        out.extend_from_slice(b"-ERR Syntax error in HELLO option '");
                        out.extend(
                            option
                                .iter()
                                .map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }),
                        );
                        out.extend_from_slice(b"'\r\n");
                    });
                }
            }
        }
        if name.is_some_and(|name| !name.iter().all(|byte| matches!(byte, b'!'..=b'~'))) {
            return self.say(b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n");
        }
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        match auth {
            Some((user, password)) => {
                let name = name.map(Into::into);
                self.verify(user, password, &[b"AUTH", user, password], Some(Hello { resp3: version, name }))
            }
            None if !self.state().authenticated => self.say(
                b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n",
            ),
            None => {
                self.greet(&Hello { resp3: version, name: name.map(Into::into) });
                Outcome::Done
            }
        }
    }

    fn greet(self: &Rc<Self>, hello: &Hello) {
        let resp3 = {
            let mut state = self.state();
            state.login.resp3 = hello.resp3.unwrap_or(state.login.resp3);
            if let Some(name) = &hello.name {
                state.about().name.clone_from(name);
            }
            state.login.resp3
        };
        self.greet_with(|out| {
            out.extend_from_slice(if resp3 { b"%7\r\n" } else { b"*14\r\n" });
            for (key, value) in [
                (&b"server"[..], &b"redis"[..]),
                (b"version", self.worker.redis_version().as_bytes()),
            ] {
                put_bulk(out, key);
                put_bulk(out, value);
            }
            put_bulk(out, b"proto");
            put_integer(out, if resp3 { 3 } else { 2 });
            put_bulk(out, b"id");
            put_integer(out, self.id);
            for (key, value) in [(&b"mode"[..], &b"standalone"[..]), (b"role", b"master")] {
                put_bulk(out, key);
                put_bulk(out, value);
            }
            put_bulk(out, b"modules");
            out.extend_from_slice(b"*0\r\n");
        });
    }

    /// Verifies a password of a user of the proxy's own; `None`: clients log in to the servers.
    fn verify_guest(self: &Rc<Self>, user: &[u8], password: &[u8], hello: Option<&Hello>) -> Option<Outcome> {
        if !self.worker.users()?.verify(user, password) {
            return Some(self.say(WRONG_PASSWORD));
        }
        {
            let mut state = self.state();
            state.login.credential = self.worker.guests_credential();
            state.about().guest = user.into();
            state.authenticated = true;
        }
        match hello {
            Some(hello) => self.greet(hello),
            None => {
                self.ok();
            }
        }
        Some(Outcome::Done)
    }

    /// Has a password verified by the master on a connection of its own (rule A16): a name alone proves nothing. It is
    /// asked as the client asked, because to a password without a name Redis says something else.
    fn verify(self: &Rc<Self>, user: &[u8], password: &[u8], asked: &[&[u8]], hello: Option<Hello>) -> Outcome {
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

    fn verified(self: &Rc<Self>, credential: Rc<Credential>, hello: Option<Hello>, verdict: Result<(), String>) {
        match (verdict, hello) {
            (Err(line), _) => {
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

/// What an argument of ON or OFF says.
fn on_or_off(word: &[u8]) -> Option<bool> {
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
struct Hello {
    resp3: Option<bool>,
    name: Option<Box<[u8]>>,
}

pub(super) fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    put_i64(out, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn put_integer(out: &mut Vec<u8>, value: u64) {
    out.push(b':');
    put_i64(out, i64::try_from(value).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
}
