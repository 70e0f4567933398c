//! Commands that Redis does not replicate (rule A16): each node is told, and the master's reply is the reply.
//!
//! ```text
//! session --drain--> task --> master --ok--> all other nodes at once --> session goes on
//! ```
//! Fresh connections, with the session's own login, so that each node judges for itself whether the client may. The
//! master comes first: what it refuses is told to nobody else. A node that fails is logged and not waited for any
//! longer; agents bring it up to date when it joins again.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tracing::warn;

use super::dispatch::Outcome;
use super::redaction::{is_credential, texts};
use super::session::{Park, Session};
use crate::clock;
use crate::command::{Command, refusal};
use crate::peer;
use crate::proxy::backend::{ConnectError, Login, Target, ask, connect_to, exchange, put_own, put_request};
use crate::proxy::scripts::Origin;
use crate::proxy::worker::Worker;
use crate::resp::Args;
use crate::route::Verdict;
use crate::topology::ShardIndex;

/// How long a node may take to answer: CONFIG REWRITE and ACL LOAD go to its disk.
const ANSWER_LIMIT: Duration = Duration::from_millis(2000);
/// How long a node may take to say whether it killed a script: it hears nothing before its `busy-reply-threshold`, 5 s.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long the others may take once the master has said that it runs none.
const KILL_LIMIT_OTHERS: Duration = Duration::from_millis(500);
/// How long until a master that cannot be reached is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(50);
pub(super) const NO_MASTER: &[u8] = b"-MASTERDOWN no master for the shard: not executed\r\n";

/// Settings that say who follows whom, where a node is found, or whose data it has. They are the agents'.
const OURS: [&str; 15] = [
    "bind",
    "bind-source-addr",
    "dir",
    "masterauth",
    "masteruser",
    "port",
    "replica-announce-ip",
    "replica-announce-port",
    "replica-announced",
    "replicaof",
    "slave-announce-ip",
    "slave-announce-port",
    "slaveof",
    "tls-port",
    "unixsocket",
];

/// What became of a command at the master.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// It said this, byte for byte.
    Reply(Vec<u8>),
    /// It was not reached: nothing was sent.
    Unreachable,
    /// It was sent and not answered.
    InDoubt,
}

impl Session {
    /// Has a command executed by every node.
    pub(super) fn every_node(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        let own = ours(command, args);
        if own.is_none()
            && let Some(refused) = self.refused_for_all(command, args)
        {
            return refused;
        }
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        if let Some(park) = self.hold_without_master() {
            return Outcome::Park(park);
        }
        let (session, name, mut request) = (self.clone(), command.name.clone(), frame.to_vec());
        let settings = own.map(|own| (own, Settings::of(args)));
        let body: Option<Arc<[u8]>> = args.get(2).filter(|_| &*name == "script|load").map(Into::into);
        tokio::task::spawn_local(async move {
            if let Some((own, settings)) = settings {
                match session.without_own(&settings).await {
                    Some(rest) if rest.is_empty() => {
                        session.refuse(|out| out.extend_from_slice(b"+OK\r\n"));
                        return session.resume();
                    }
                    Some(rest) => request = rest,
                    None => {
                        session.refuse(|out| put_unsettable(own, out));
                        return session.resume();
                    }
                }
            }
            let scripts = session.worker.scripts().clone();
            let flush = match &*name {
                "script|flush" => Some(scripts.flush().await),
                _ => None,
            };
            let reply = if is_kill(&name) {
                session.kill_script(&request).await
            } else {
                session.tell_nodes(&name, &request).await
            };
            match (flush, body) {
                (Some(flush), _) if reply.starts_with(b"+") => flush.done(),
                (_, Some(body)) if reply.starts_with(b"$") => {
                    scripts.learn_loaded(&body, texts(&reply).first().copied().unwrap_or_default());
                }
                _ => {}
            }
            session.refuse(|out| out.extend_from_slice(&reply));
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    /// The refusal of a command that no node is told, whoever asks.
    pub(super) fn refused_for_all(self: &Rc<Self>, command: &Command, args: &Args) -> Option<Outcome> {
        let line = line_for_all(command, args)?;
        Some(self.refuse(|out| out.extend_from_slice(&line)))
    }

    /// A CONFIG SET without those settings of our own that it leaves as they are; empty if that is all of it, nothing if
    /// it would change one. Who reads all settings and writes them back changes none.
    async fn without_own(&self, settings: &Settings) -> Option<Vec<u8>> {
        let master = self.worker.shard(ShardIndex(0)).serving()?;
        let mut request = Vec::new();
        for (name, _) in &settings.own {
            put_own(&mut request, &[b"CONFIG", b"GET", name]);
        }
        let login = self.state().login.clone();
        let limit = self.worker.connect_timeout();
        let mut stream = connect_to(&master, &login, limit).await.ok()?;
        let asking = exchange(&mut stream, &request, settings.own.len(), &master.addr);
        let replies = tokio::time::timeout(limit, asking).await.ok()?.ok()?;
        let stays =
            |((_, value), reply): (&(Vec<u8>, Vec<u8>), &Vec<u8>)| shown_value(reply).is_some_and(|now| now == *value);
        settings
            .own
            .iter()
            .zip(&replies)
            .all(stays)
            .then(|| settings.rest.clone())
    }

    /// What happens once EXEC has run a command for every node at the master: the others are told.
    pub(super) fn tells_after_exec(
        &self,
        login: Login,
        command: &Command,
        args: &Args,
        frame: &[u8],
    ) -> EveryNodeReply {
        EveryNodeReply {
            telling: (!is_kill(&command.name)).then(|| Telling {
                worker: self.worker.clone(),
                login,
                name: command.name.clone(),
                body: args.get(2).filter(|_| &*command.name == "script|load").map(Into::into),
                request: frame.to_vec(),
            }),
        }
    }

    /// Tries until there is a master to tell, or the time of a held command is up.
    async fn tell_nodes(&self, name: &str, request: &[u8]) -> Vec<u8> {
        let since_ms = clock::monotonic_ms();
        let login = self.state().login.clone();
        loop {
            let nodes = self.worker.nodes();
            match tell(&nodes, &login, name, request, self.worker.connect_timeout()).await {
                Told::Reply(reply) => return reply,
                Told::InDoubt => return Verdict::InDoubt.line().unwrap_or_default().to_vec(),
                Told::Unreachable => {}
            }
            if !nodes.is_empty() {
                self.worker.shard(ShardIndex(0)).suspect(&self.worker);
            }
            if self.is_closed() || clock::monotonic_ms() > since_ms + self.worker.hold_max_ms() {
                return NO_MASTER.to_vec();
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Session {
    /// Asks all nodes at once to kill the script that they run: one that does so is enough, else the master's reply counts.
    async fn kill_script(&self, request: &[u8]) -> Vec<u8> {
        // A server that runs a script takes no SELECT.
        let login = Login {
            database: 0,
            no_touch: false,
            ..self.state().login.clone()
        };
        let nodes = self.worker.nodes();
        let asking = nodes.iter().enumerate().map(|(place, node)| {
            let asked = tell_one(node, &login, request, KILL_LIMIT, KILL_LIMIT);
            async move { (place, asked.await) }
        });
        let mut asking: FuturesUnordered<_> = asking.collect();
        let (mut best, mut limit) = ((0, NO_MASTER.to_vec()), KILL_LIMIT);
        while let Ok(Some((place, told))) = tokio::time::timeout(limit, asking.next()).await {
            let reply = match told {
                Ok(reply) => reply,
                Err(Failure::Refused(line)) => [line.as_bytes(), b"\r\n"].concat(),
                Err(Failure::Unreachable(_) | Failure::Silent(_)) => continue,
            };
            let weight = match place {
                _ if reply.starts_with(b"+") => 3,
                _ if reply.starts_with(b"-UNKILLABLE") => 2,
                0 => 1,
                _ => continue,
            };
            best = best.max((weight, reply));
            limit = KILL_LIMIT_OTHERS;
        }
        best.1
    }
}

/// What is said to a command that no node is told; `None`: all of them are.
pub(super) fn line_for_all(command: &Command, args: &Args) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    if let Some(setting) = ours(command, args) {
        put_unsettable(setting, &mut line);
        return Some(line);
    }
    // Our users and the node's role are the agents': they must not outlive their epoch in a file.
    let persists = matches!(&*command.name, "acl|save" | "config|rewrite");
    let concerns_ours = matches!(&*command.name, "acl|setuser" | "acl|deluser") && args.iter().skip(2).any(is_ours);
    (persists || concerns_ours).then(|| {
        refusal::not_passed_on(command, &mut line);
        line
    })
}

/// Whether a command kills a script.
fn is_kill(name: &str) -> bool {
    matches!(name, "script|kill" | "function|kill")
}

/// Tells the first of `nodes`, the master, and then all others; the master's reply counts.
async fn tell(nodes: &[Rc<Target>], login: &Login, name: &str, request: &[u8], connect_limit: Duration) -> Told {
    let Some((master, others)) = nodes.split_first() else {
        return Told::Unreachable;
    };
    let reply = match tell_one(master, login, request, connect_limit, ANSWER_LIMIT).await {
        Ok(reply) => reply,
        Err(Failure::Unreachable(_)) => return Told::Unreachable,
        Err(Failure::Silent(_)) => return Told::InDoubt,
        Err(Failure::Refused(line)) => return Told::Reply([line.as_bytes(), b"\r\n"].concat()),
    };
    tell_others(others, login, name, request, connect_limit).await;
    Told::Reply(reply)
}

/// Tells nodes what the master did. Nobody waits for it to succeed.
async fn tell_others(others: &[Rc<Target>], login: &Login, name: &str, request: &[u8], connect_limit: Duration) {
    let telling = others.iter().map(|node| async move {
        if let Err(failure) = tell_one(node, login, request, connect_limit, ANSWER_LIMIT).await {
            // The arguments may be passwords: the name has to do.
            warn!(node = %node.addr, command = name, "a node was not told what the master was: {}", failure.text());
        }
    });
    join_all(telling).await;
}

/// The reply to a command for every node within that to EXEC.
pub(super) struct EveryNodeReply {
    /// Until its first byte came.
    telling: Option<Telling>,
}

struct Telling {
    worker: Rc<Worker>,
    login: Login,
    name: Box<str>,
    /// Of a SCRIPT LOAD.
    body: Option<Arc<[u8]>>,
    request: Vec<u8>,
}

impl fmt::Debug for EveryNodeReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EveryNodeReply").finish_non_exhaustive()
    }
}

impl EveryNodeReply {
    /// Takes bytes of the reply. What the master refused is told to nobody.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        let Some(first) = bytes.first() else { return };
        let Some(telling) = self.telling.take().filter(|_| !matches!(first, b'-' | b'!')) else {
            return;
        };
        tokio::task::spawn_local(telling.tell());
    }
}

impl Telling {
    async fn tell(self) {
        let scripts = self.worker.scripts().clone();
        let flush = match &*self.name {
            "script|flush" => Some(scripts.flush().await),
            _ => None,
        };
        let nodes = self.worker.nodes();
        let others = nodes.get(1..).unwrap_or_default();
        tell_others(
            others,
            &self.login,
            &self.name,
            &self.request,
            self.worker.connect_timeout(),
        )
        .await;
        if let Some(flush) = flush {
            flush.done();
        }
        if let Some(body) = &self.body {
            scripts.learn(body, Origin::Loaded);
        }
    }
}

/// A CONFIG SET in two parts.
struct Settings {
    /// Names and values of our own settings.
    own: Vec<(Vec<u8>, Vec<u8>)>,
    /// The request for all others; empty if there are none.
    rest: Vec<u8>,
}

impl Settings {
    fn of(args: &Args) -> Self {
        let (mut own, mut rest, mut at) = (Vec::new(), Vec::new(), 2);
        while let Some(name) = args.get(at) {
            match args.get(at + 1) {
                Some(value) if is_own_setting(name).is_some() => own.push((name.to_vec(), value.to_vec())),
                value => rest.extend([Some(name), value].into_iter().flatten()),
            }
            at += 2;
        }
        let mut request = Vec::new();
        if !rest.is_empty() {
            rest.splice(0..0, args.iter().take(2));
            put_request(&mut request, &rest);
        }
        Self { own, rest: request }
    }
}

/// The value that a client is shown in the reply to a CONFIG GET of one setting.
fn shown_value(reply: &[u8]) -> Option<Vec<u8>> {
    let texts = texts(reply);
    let [name, value] = texts.as_slice() else { return None };
    Some(if is_credential(name) {
        Vec::new()
    } else {
        value.to_vec()
    })
}

fn put_unsettable(setting: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"-NOPERM pointsman does not pass on CONFIG SET of '");
    out.extend_from_slice(setting.as_bytes());
    out.extend_from_slice(b"': topology is its own\r\n");
}

enum Failure {
    Unreachable(String),
    Silent(String),
    Refused(String),
}

impl Failure {
    fn text(&self) -> &str {
        match self {
            Self::Unreachable(text) | Self::Silent(text) | Self::Refused(text) => text,
        }
    }
}

async fn tell_one(
    node: &Target,
    login: &Login,
    request: &[u8],
    connect_limit: Duration,
    answer_limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let mut stream = match connect_to(node, login, connect_limit).await {
        Ok(stream) => stream,
        Err(ConnectError::Refused(_, line)) => return Err(Failure::Refused(line)),
        Err(
            error @ (ConnectError::Network(..)
            | ConnectError::Silent(..)
            | ConnectError::NotOfEpoch(..)
            | ConnectError::Unfit(..)),
        ) => {
            return Err(Failure::Unreachable(error.to_string()));
        }
    };
    match tokio::time::timeout(answer_limit, ask(&mut stream, request, 1, &node.addr)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(ConnectError::Refused(_, line))) => Err(Failure::Refused(line)),
        Ok(Err(error)) => Err(Failure::Silent(error.to_string())),
        Err(_) => Err(Failure::Silent(format!(
            "{} does not answer within {answer_limit:?}",
            node.addr
        ))),
    }
}

/// Whether a user's name is one of those that agents make.
pub(super) fn is_ours(name: &[u8]) -> bool {
    let of_an_epoch = |name| peer::role_of(name).is_some();
    name == b"pm-agent" || std::str::from_utf8(name).is_ok_and(of_an_epoch)
}

/// The first setting that clients may not change, of a CONFIG SET.
fn ours(command: &Command, args: &Args) -> Option<&'static str> {
    let is_set = &*command.name == "config|set";
    args.iter()
        .skip(2)
        .step_by(2)
        .filter(|_| is_set)
        .find_map(is_own_setting)
}

fn is_own_setting(name: &[u8]) -> Option<&'static str> {
    let is_named = |setting: &&&str| name.eq_ignore_ascii_case(setting.as_bytes());
    OURS.iter().find(is_named).copied()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::command::{Lookup, Table};
    use crate::resp::{RequestLimits, RequestScanner};
    use crate::topology::{Addr, Epoch, NodeId};

    /// A node that answers its first request with `reply`, and then says what it was asked.
    async fn node(reply: &'static [u8]) -> (Addr, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string().parse().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            stream.read_buf(&mut asked).await.unwrap();
            stream.write_all(reply).await.unwrap();
            asked
        });
        (addr, serving)
    }

    async fn tell_all(nodes: &[Addr]) -> Told {
        let limit = Duration::from_secs(5);
        let target = |addr: &Addr| Target {
            node: NodeId::new(addr.to_string()),
            addr: addr.clone(),
            epoch: Epoch(1),
            run_id: None,
            acks: 0,
            pass: None,
        };
        let nodes: Vec<Rc<Target>> = nodes.iter().map(target).map(Rc::new).collect();
        tell(&nodes, &Login::default(), "script|load", b"request", limit).await
    }

    #[tokio::test]
    async fn every_node_is_told_and_the_masters_reply_counts() {
        let (master, at_master) = node(b"$3\r\nsha\r\n").await;
        let (broken, at_broken) = node(b"-OOM no\r\n").await;
        let (replica, at_replica) = node(b"+OK\r\n").await;
        let gone: Addr = "127.0.0.1:1".parse().unwrap();
        let told = tell_all(&[master, gone, broken, replica]).await;
        assert_eq!(told, Told::Reply(b"$3\r\nsha\r\n".to_vec()));
        for serving in [at_master, at_broken, at_replica] {
            assert_eq!(serving.await.unwrap(), b"request");
        }
    }

    #[tokio::test]
    async fn what_the_master_refuses_is_told_to_nobody_else() {
        let (master, _) = node(b"-ERR wrong\r\n").await;
        let (replica, at_replica) = node(b"+OK\r\n").await;
        let told = tell_all(&[master, replica]).await;
        assert_eq!(told, Told::Reply(b"-ERR wrong\r\n".to_vec()));
        assert!(!at_replica.is_finished());
        at_replica.abort();
        let gone: Addr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(tell_all(&[gone]).await, Told::Unreachable);
        let (mute, _) = node(b"").await;
        assert_eq!(tell_all(&[mute]).await, Told::InDoubt);
    }

    #[test]
    fn topology_is_not_set_by_clients() {
        let with = |words: &[&[u8]]| {
            let (mut frame, mut spans) = (Vec::new(), Vec::new());
            put_request(&mut frame, words);
            let scanned = RequestScanner::default().scan(&frame, &mut spans, &RequestLimits::default());
            assert!(scanned.is_ok());
            let args = Args::new(&frame, &spans);
            let Lookup::Known(command) = Table::builtin().lookup(&args) else {
                panic!("no command");
            };
            ours(command, &args)
        };
        assert_eq!(with(&[b"CONFIG", b"SET", b"save", b"port"]), None);
        assert_eq!(
            with(&[b"CONFIG", b"SET", b"save", b"", b"RePlicaOf", b"no one"]),
            Some("replicaof")
        );
    }
}
