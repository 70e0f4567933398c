//! CLIENT LIST, INFO, KILL and UNBLOCK: our own clients, of all workers, in Redis' words. Redis' connections are none of theirs.

use std::net::SocketAddr;
use std::rc::Rc;

use super::close::CloseReason;
use super::feed::Link;
use super::local::{put_integer, put_text};
use super::own::{Around, Said};
use super::portrait::Portrait;
use super::selection::Selection;
use super::session::{Park, Session, State};
use crate::command::{Command, refusal};
use crate::proxy::backend::{Login, Target, ask, ask_for, connect_control, connect_to, put_request};
use crate::proxy::roll::{Question, Told};
use crate::proxy::worker::Worker;
use crate::resp::{Args, parse_i64};
use crate::topology::{Addr, ShardIndex};
use tokio::net::TcpStream;

/// Bytes of a server's CLIENT LIST that are read at most: some 50,000 connections.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What others are asked about clients.
#[derive(Debug)]
pub(super) enum Aside {
    /// To describe them. Who asks describes itself, if it is meant.
    List {
        of: Selection,
        own: Option<Vec<u8>>,
        resp3: bool,
    },
    /// To end them, which in the old form says something else. Whether who asks is one of them.
    Kill { of: Selection, own: bool, old_form: bool },
    /// To let one go that blocks.
    Unblock { id: i64, told: Told },
}

impl Aside {
    /// Whom a CLIENT UNBLOCK means; an error is the line to say.
    pub(super) fn unblock(command: &Command, args: &Args) -> Result<Self, Vec<u8>> {
        let told = match args.get(3).map(<[u8]>::to_ascii_lowercase).as_deref() {
            None | Some(b"timeout") => Told::Timeout,
            Some(b"error") => Told::Error,
            Some(_) => return Err(b"-ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR\r\n".to_vec()),
        };
        if args.len() > 4 {
            let mut line = Vec::new();
            refusal::wrong_arity(command, &mut line);
            return Err(line);
        }
        match args.get(2).and_then(parse_i64) {
            Some(id) => Ok(Self::Unblock { id, told }),
            None => Err(b"-ERR value is not an integer or out of range\r\n".to_vec()),
        }
    }
}

impl Session {
    /// Whom a CLIENT LIST lists.
    pub(super) fn lists(&self, state: &State, args: &Args, around: Around, out: &mut Vec<u8>) -> Said {
        match Selection::listed(args) {
            Ok(of) => {
                // By the time the workers answer, this request is forgotten: its own line is made now.
                let own = self.portrait_of(state, around.bytes, around.inside);
                let own = of.means(&own).then(|| own.line());
                Said::Asks(Aside::List {
                    of,
                    own,
                    resp3: state.login.resp3,
                })
            }
            Err(line) => {
                out.extend_from_slice(&line);
                Said::All
            }
        }
    }

    /// Whom a CLIENT KILL ends.
    pub(super) fn kills(&self, state: &State, command: &Command, args: &Args, out: &mut Vec<u8>) -> Said {
        if args.len() == 2 {
            refusal::wrong_arity(command, out);
            return Said::All;
        }
        match Selection::killed(args, self.id) {
            Ok(mut of) => {
                // Who kills itself is told so first.
                let own = of.means(&self.portrait_of(state, 0, None));
                of.spare(self.id);
                Said::Asks(Aside::Kill {
                    of,
                    own,
                    old_form: args.len() == 3,
                })
            }
            Err(line) => {
                out.extend_from_slice(&line);
                Said::All
            }
        }
    }

    /// Asks others, and says what the client is to be told, and whether that is the last it hears.
    pub(super) async fn ask_aside(&self, aside: Aside) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        match aside {
            Aside::List { of, own, resp3 } => {
                let mut text = Vec::new();
                for (id, line) in self.worker.roll().list(&of).await {
                    let own = own.as_ref().filter(|_| id == self.id);
                    text.extend_from_slice(own.unwrap_or(&line));
                    text.push(b'\n');
                }
                put_text(resp3, &text, &mut out);
            }
            Aside::Kill { of, own, old_form } => {
                if let Some(user) = of.user()
                    && self.is_no_user(user).await
                {
                    refusal::no_such_user(user, &mut out);
                    return (out, false);
                }
                let killed = self.worker.roll().kill(&of).await + u64::from(own);
                match (old_form, killed) {
                    (true, 0) => out.extend_from_slice(b"-ERR No such client\r\n"),
                    (true, _) => out.extend_from_slice(b"+OK\r\n"),
                    (false, _) => put_integer(&mut out, killed),
                }
                return (out, own);
            }
            Aside::Unblock { id, told } => {
                let unblocked = match u64::try_from(id) {
                    Ok(id) => self.worker.roll().unblock(id, told).await,
                    Err(_) => false,
                };
                put_integer(&mut out, u64::from(unblocked));
            }
        }
        (out, false)
    }

    /// Whether there is no such user: of the proxy's own, or else the master says so. One that does not say counts as one
    /// that has.
    async fn is_no_user(&self, user: &[u8]) -> bool {
        if let Some(users) = self.worker.lodge().users() {
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
