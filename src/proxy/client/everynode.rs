//! Commands that Redis does not replicate (rule A16): each node is told, and the master's reply is the reply.
//!
//! ```text
//! session --drain--> task --> master --ok--> all other nodes at once --> session goes on
//! ```
//! Fresh connections, with the session's own login, so that each node judges for itself whether the client may. The
//! master comes first: what it refuses is told to nobody else. A node that fails is logged and not waited for any
//! longer; agents bring it up to date when it joins again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tracing::warn;

use super::dispatch::Outcome;
use super::session::{Park, Session};
use crate::clock;
use crate::command::Command;
use crate::peer;
use crate::proxy::backend::{ConnectError, Login, Target, ask, connect_to};
use crate::proxy::scripts::Origin;
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
        if &*command.name == "config|set"
            && let Some(setting) = ours(args)
        {
            return self.refuse(|out| {
                out.extend_from_slice(b"-NOPERM pointsman does not pass on CONFIG SET of '");
                out.extend_from_slice(setting.as_bytes());
                out.extend_from_slice(b"': topology is its own\r\n");
            });
        }
        // Our users and the node's role are the agents': they must not outlive their epoch in a file.
        let persists = matches!(&*command.name, "acl|save" | "config|rewrite");
        let concerns_ours = matches!(&*command.name, "acl|setuser" | "acl|deluser") && args.iter().skip(2).any(is_ours);
        if persists || concerns_ours {
            return self.not_passed_on(command);
        }
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        if let Some(park) = self.hold_without_master() {
            return Outcome::Park(park);
        }
        let (session, name, request) = (self.clone(), command.name.clone(), frame.to_vec());
        let body: Option<Arc<[u8]>> = args.get(2).filter(|_| &*name == "script|load").map(Into::into);
        tokio::task::spawn_local(async move {
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
                (_, Some(body)) if reply.starts_with(b"$") => scripts.learn(&body, Origin::Loaded),
                _ => {}
            }
            session.refuse(|out| out.extend_from_slice(&reply));
            session.state().park = Park::Open;
            session.wake();
        });
        self.state().park = Park::Verify;
        Outcome::Done
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
    let telling = others.iter().map(|node| async move {
        if let Err(failure) = tell_one(node, login, request, connect_limit, ANSWER_LIMIT).await {
            // The arguments may be passwords: the name has to do.
            warn!(node = %node.addr, command = name, "a node was not told what the master was: {}", failure.text());
        }
    });
    join_all(telling).await;
    Told::Reply(reply)
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

/// The first setting of a CONFIG SET that clients may not change.
fn ours(args: &Args) -> Option<&'static str> {
    let is_named = |setting: &&str| {
        args.iter()
            .skip(2)
            .step_by(2)
            .any(|name| name.eq_ignore_ascii_case(setting.as_bytes()))
    };
    OURS.iter().find(|setting| is_named(setting)).copied()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::proxy::backend::put_request;
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
            ours(&Args::new(&frame, &spans))
        };
        assert_eq!(with(&[b"CONFIG", b"SET", b"save", b"port"]), None);
        assert_eq!(
            with(&[b"CONFIG", b"SET", b"save", b"", b"RePlicaOf", b"no one"]),
            Some("replicaof")
        );
    }
}
