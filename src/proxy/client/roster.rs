//! CLIENT LIST, INFO, KILL and UNBLOCK: our own clients, of all workers, in Redis' words. Redis' connections are none of theirs.

use std::net::SocketAddr;
use std::rc::Rc;

use super::close::CloseReason;
use super::dispatch::Outcome;
use super::feed::Link;
use super::local::put_bulk;
use super::portrait::Portrait;
use super::selection::Selection;
use super::session::{Park, Session};
use crate::command::{Command, refusal};
use crate::proxy::backend::{Login, Target, ask, ask_for, connect_control, connect_to, put_request};
use crate::proxy::roll::{Question, Told};
use crate::proxy::worker::Worker;
use crate::resp::{Args, parse_i64, put_i64};
use crate::topology::{Addr, ShardIndex};
use tokio::net::TcpStream;

/// Bytes of a server's CLIENT LIST that are read at most: some 50,000 connections.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;

impl Session {
    pub(super) fn client_info(self: &Rc<Self>, frame: &[u8]) -> Outcome {
        let line = self.portrait(frame.len()).line();
        self.say_text(&[&line[..], b"\n"].concat())
    }

    pub(super) fn client_list(self: &Rc<Self>, args: &Args, frame: &[u8]) -> Outcome {
        let of = match Selection::listed(args) {
            Ok(of) => of,
            Err(line) => return self.refuse(|out| out.extend_from_slice(&line)),
        };
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        // By the time the workers answer, this request is forgotten: its own line is made now.
        let own = self.portrait(frame.len());
        let own = of.means(&own).then(|| own.line());
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let mut text = Vec::new();
            for (id, line) in session.worker.roll().list(&of).await {
                let own = own.as_ref().filter(|_| id == session.id);
                text.extend_from_slice(own.unwrap_or(&line));
                text.push(b'\n');
            }
            session.say_text(&text);
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    pub(super) fn client_kill(self: &Rc<Self>, command: &Command, args: &Args) -> Outcome {
        if args.len() == 2 {
            return self.refuse(|out| refusal::wrong_arity(command, out));
        }
        let mut of = match Selection::killed(args, self.id) {
            Ok(of) => of,
            Err(line) => return self.refuse(|out| out.extend_from_slice(&line)),
        };
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        // Who kills itself is told so first.
        let own = of.means(&self.portrait(0));
        of.spare(self.id);
        let old_form = args.len() == 3;
        let session = self.clone();
        tokio::task::spawn_local(async move {
            if let Some(user) = of.user()
                && session.is_no_user(user).await
            {
                session.refuse(|out| refusal::no_such_user(user, out));
                return session.resume();
            }
            let killed = session.worker.roll().kill(&of).await + u64::from(own);
            session.refuse(|out| match (old_form, killed) {
                (true, 0) => out.extend_from_slice(b"-ERR No such client\r\n"),
                (true, _) => out.extend_from_slice(b"+OK\r\n"),
                (false, _) => {
                    out.push(b':');
                    put_i64(out, i64::try_from(killed).unwrap_or(i64::MAX));
                    out.extend_from_slice(b"\r\n");
                }
            });
            if own {
                session.close(CloseReason::Killed);
            }
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    /// Whether there is no such user: of the proxy's own, or else the master says so. One that does not say counts as one
    /// that has.
    async fn is_no_user(&self, user: &[u8]) -> bool {
        if let Some(users) = self.worker.users() {
            return !users.has(user);
        }
        let Some(master) = self.worker.shard(ShardIndex(0)).serving() else {
            return false;
        };
        let mut request = Vec::new();
        put_request(&mut request, &[b"ACL", b"GETUSER", user]);
        let asking = async {
            let mut stream = connect_to(&master, &Login::default(), self.worker.connect_timeout()).await?;
            ask(&mut stream, &request, 1, &master.addr).await
        };
        let asked = tokio::time::timeout(self.worker.connect_timeout(), asking).await;
        matches!(asked, Ok(Ok(reply)) if matches!(&reply[..], b"*-1\r\n" | b"$-1\r\n"))
    }

    /// Goes on after what it waited for aside.
    pub(super) fn resume(&self) {
        self.state().park = Park::Open;
        self.wake();
    }

    /// Text for people: verbatim where the protocol has that.
    fn say_text(self: &Rc<Self>, text: &[u8]) -> Outcome {
        let resp3 = self.state().login.resp3;
        self.refuse(|out| {
            if resp3 {
                out.push(b'=');
                put_i64(out, i64::try_from(text.len() + 4).unwrap_or(i64::MAX));
                out.extend_from_slice(b"\r\ntxt:");
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            } else {
                put_bulk(out, text);
            }
        })
    }
}

impl Session {
    pub(super) fn client_unblock(self: &Rc<Self>, command: &Command, args: &Args) -> Outcome {
        let told = match args.get(3).map(<[u8]>::to_ascii_lowercase).as_deref() {
            None | Some(b"timeout") => Told::Timeout,
            Some(b"error") => Told::Error,
            Some(_) => {
                return self.refuse(|out| {
                    out.extend_from_slice(b"-ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR\r\n");
                });
            }
        };
        if args.len() > 4 {
            return self.refuse(|out| refusal::wrong_arity(command, out));
        }
        let Some(id) = args.get(2).and_then(parse_i64) else {
            return self.refuse(|out| out.extend_from_slice(b"-ERR value is not an integer or out of range\r\n"));
        };
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let unblocked = match u64::try_from(id) {
                Ok(id) => session.worker.roll().unblock(id, told).await,
                Err(_) => false,
            };
            session.refuse(|out| out.extend_from_slice(if unblocked { b":1\r\n" } else { b":0\r\n" }));
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    /// The server at which it may block, and our end of that connection.
    fn blocks_at(&self) -> Option<(Rc<Target>, SocketAddr)> {
        let mut state = self.state();
        if state.window.unanswered() == 0 {
            return None;
        }
        if let Some(feed) = &state.feed {
            let Link::Up(tap) = &feed.link else { return None };
            return tap.local_addr().map(|local| (tap.target.clone(), local));
        }
        let pinned = state.pinned.as_mut()?;
        // It must not be another session's by the time it is unblocked.
        pinned.clean = false;
        pinned
            .lane
            .local_addr()
            .map(|local| (pinned.lane.target.clone(), local))
    }

    /// Lets this client go if it blocks at the master, which knows it by our end of the connection only.
    async fn unblock(&self, told: Told) -> bool {
        let Some((target, local)) = self.blocks_at() else {
            return false;
        };
        let asking = async {
            let addr = &target.addr;
            let mut stream = connect_control(&target, self.worker.connect_timeout()).await.ok()?;
            let id = id_at_redis(&mut stream, addr, &local.to_string()).await?;
            let mut request = Vec::new();
            let word: &[u8] = match told {
                Told::Timeout => b"TIMEOUT",
                Told::Error => b"ERROR",
            };
            put_request(&mut request, &[b"CLIENT", b"UNBLOCK", id.as_bytes(), word]);
            let reply = ask(&mut stream, &request, 1, addr).await.ok()?;
            Some(reply == b":1\r\n")
        };
        let asked = tokio::time::timeout(self.worker.connect_timeout(), asking).await;
        matches!(asked, Ok(Some(true)))
    }
}

/// By which id Redis knows the connection that comes from `local`. All connections are listed, because servers before
/// 8.0 cannot be asked for one by its address.
pub(super) async fn id_at_redis(stream: &mut TcpStream, addr: &Addr, local: &str) -> Option<String> {
    let mut request = Vec::new();
    put_request(&mut request, &[b"CLIENT", b"LIST"]);
    let list = ask_for(stream, &request, 1, addr, LIST_BYTES_MAX).await.ok()?;
    let list = String::from_utf8_lossy(&list);
    let wanted = format!("addr={local}");
    let line = list.lines().find(|line| line.split(' ').any(|field| field == wanted))?;
    line.strip_prefix("id=")?.split(' ').next().map(str::to_owned)
}

/// Answers what another session, of this worker or of another, asks about this worker's clients. That it has ended
/// meanwhile is no concern.
pub fn answer(worker: &Worker, question: Question) {
    let meant = |of: &Selection| -> Vec<(Rc<Session>, Portrait)> {
        let clients = worker.clients();
        let described = clients.into_iter().map(|client| {
            let portrait = client.portrait(0);
            (client, portrait)
        });
        described.filter(|(_, portrait)| of.means(portrait)).collect()
    };
    match question {
        Question::List { of, answer } => {
            let lines = meant(&of)
                .iter()
                .map(|(client, portrait)| (client.id, portrait.line()))
                .collect();
            answer.send(lines).unwrap_or_default();
        }
        Question::Unblock { id, told, answer } => {
            let clients = worker.clients();
            match clients.into_iter().find(|client| client.id == id) {
                None => answer.send(false).unwrap_or_default(),
                Some(client) => {
                    tokio::task::spawn_local(async move {
                        answer.send(client.unblock(told).await).unwrap_or_default();
                    });
                }
            }
        }
        Question::Place { id, answer } => {
            let clients = worker.clients();
            let client = clients.into_iter().find(|client| client.id == id);
            answer.send(client.map(|client| client.place())).unwrap_or_default();
        }
        Question::Kill { of, answer } => {
            let meant = meant(&of);
            for (client, _) in &meant {
                client.close(CloseReason::Killed);
            }
            answer.send(meant.len() as u64).unwrap_or_default();
        }
    }
}
