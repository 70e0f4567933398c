//! Connections to the other agents of the shard.
//!
//! Owns: [`Mesh`], one link per agent: it asks for the status each interval and carries an election's questions, parks over a
//! connection of their own.
//! Refuses: judging answers. Invariants: every question gets exactly one answer, at the latest when its
//! time is up; a refused connection is reported at once, silence is left to the machine's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock;
use crate::peer::{Client, Kind, PeerError, Request};
use crate::topology::{Addr, NodeId};

use super::beat::Beat;
use super::machine::action::{AskId, Input, Reply};
use super::machine::detector::PeerSeen;
use super::machine::obedience::Ask;

/// Questions that wait for one link.
const WAITING_MAX: usize = 8;
/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(50);

/// Links to the other agents.
#[derive(Debug)]
pub struct Mesh {
    me: NodeId,
    secret: Arc<[u8]>,
    beat: Beat,
    limit: Duration,
    inputs: mpsc::Sender<Input>,
    links: BTreeMap<NodeId, Link>,
}

#[derive(Debug)]
struct Link {
    addr: Addr,
    asks: mpsc::Sender<(AskId, Ask)>,
    /// Over a connection of its own: a park waits for no answer to anything else.
    parks: mpsc::Sender<(AskId, Ask)>,
    _stop: DropGuard,
}

impl Mesh {
    /// Links of the agent of `me`; what they learn goes to `inputs`. A status is asked for at each `beat`; a
    /// question is given up after `limit`.
    pub fn new(me: NodeId, secret: Arc<[u8]>, beat: Beat, limit: Duration, inputs: mpsc::Sender<Input>) -> Self {
        Self {
            me,
            secret,
            beat,
            limit,
            inputs,
            links: BTreeMap::new(),
        }
    }

    /// Where an agent listens. An address that changed replaces the link.
    pub fn know(&mut self, node: &NodeId, addr: &Addr) {
        if *node == self.me || self.links.get(node).is_some_and(|link| link.addr == *addr) {
            return;
        }
        let (asks, waiting) = mpsc::channel(WAITING_MAX);
        let (parks, parks_wait) = mpsc::channel(WAITING_MAX);
        let stop = CancellationToken::new();
        for (waiting, probes) in [(waiting, true), (parks_wait, false)] {
            let worker = Worker {
                me: self.me.clone(),
                node: node.clone(),
                addr: addr.clone(),
                secret: Arc::clone(&self.secret),
                beat: self.beat,
                limit: self.limit,
                probes,
                inputs: self.inputs.clone(),
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(worker.run(waiting)));
        }
        let link = Link {
            addr: addr.clone(),
            asks,
            parks,
            _stop: stop.drop_guard(),
        };
        self.links.insert(node.clone(), link);
    }

    /// Sends a question; the reason comes back if it cannot even be queued.
    pub fn ask(&self, node: &NodeId, id: AskId, ask: Ask) -> Result<(), &'static str> {
        let link = self.links.get(node).ok_or("nobody knows where its agent listens")?;
        let queue = match ask {
            Ask::Park { .. } => &link.parks,
            Ask::Fence { .. } | Ask::Reach { .. } | Ask::Promote { .. } | Ask::Renew { .. } | Ask::Follow { .. } => {
                &link.asks
            }
        };
        queue
            .try_send((id, ask))
            .map_err(|_| "too many questions wait for its agent")
    }
}

struct Worker {
    me: NodeId,
    node: NodeId,
    addr: Addr,
    secret: Arc<[u8]>,
    beat: Beat,
    limit: Duration,
    /// Whether it also asks for the status.
    probes: bool,
    inputs: mpsc::Sender<Input>,
}

impl Worker {
    async fn run(self, mut asks: mpsc::Receiver<(AskId, Ask)>) {
        loop {
            match Client::connect(&self.addr, Kind::Agent, self.me.as_str(), &self.secret).await {
                Ok(client) => self.talk(client, &mut asks).await,
                Err(PeerError::Refused) if self.probes => {
                    self.tell(Input::Peer(self.node.clone(), PeerSeen::Unreachable)).await
                }
                Err(error @ PeerError::Stranger(_)) => tracing::warn!(%error, "a peer is not one of us"),
                Err(PeerError::Refused | PeerError::Timeout | PeerError::Lost(_) | PeerError::Says(_)) => {}
            }
            while let Ok((id, _)) = asks.try_recv() {
                let reply = Reply::Failed("its agent is not connected".to_owned());
                self.tell(Input::Answered(id, reply)).await;
            }
            if asks.is_closed() {
                return;
            }
            sleep(RECONNECT).await;
        }
    }

    /// Talks until the connection breaks.
    async fn talk(&self, mut client: Client, asks: &mut mpsc::Receiver<(AskId, Ask)>) {
        let mut due = clock::now();
        loop {
            let done = tokio::select! {
                biased;
                ask = asks.recv() => match ask {
                    Some((id, ask)) => self.carry(&mut client, id, &ask).await,
                    None => return,
                },
                () = sleep_until(due.into()), if self.probes => {
                    due = self.beat.after(clock::now());
                    self.check(&mut client).await
                }
                // What it relays comes to us by our own watch as well.
                heard = client.hear() => heard.map(|_| ()),
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn carry(&self, client: &mut Client, id: AskId, ask: &Ask) -> Result<(), PeerError> {
        let answer = match serde_json::to_vec(ask) {
            Ok(json) => client.ask(&Request::Ask(json.into()), self.limit).await,
            Err(error) => Err(PeerError::Says(error.to_string())),
        };
        let (reply, done) = match answer {
            Ok(json) => (serde_json::from_slice(&json).map_err(|error| error.to_string()), Ok(())),
            Err(error) => (Err(error.to_string()), Err(error)),
        };
        self.tell(Input::Answered(id, reply.unwrap_or_else(Reply::Failed)))
            .await;
        done
    }

    async fn check(&self, client: &mut Client) -> Result<(), PeerError> {
        let json = client.ask(&Request::State, self.limit).await?;
        match serde_json::from_slice(&json) {
            Ok(status) => {
                self.tell(Input::Peer(self.node.clone(), PeerSeen::Up(Box::new(status))))
                    .await
            }
            Err(error) => tracing::warn!(node = %self.node, %error, "an agent's status cannot be read"),
        }
        Ok(())
    }

    async fn tell(&self, input: Input) {
        // The agent has ended if nobody listens: so does this link, with its owner.
        let _ = self.inputs.send(input).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;
    use crate::agent::machine::obedience::Mark;
    use crate::peer;
    use crate::topology::Epoch;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_park_does_not_wait_for_the_answer_to_anything_else() {
        let secret: Arc<[u8]> = Arc::from(b"a secret of the cluster".as_slice());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
        let (asked, mut inbound) = mpsc::channel(8);
        let (_news, heard) = watch::channel(peer::Bulletin::default());
        let stop = CancellationToken::new();
        let _ends = stop.clone().drop_guard();
        tokio::spawn(peer::serve(listener, Arc::clone(&secret), asked, heard, stop));
        let (inputs, _incoming) = mpsc::channel(64);
        let mut mesh = Mesh::new(NodeId::from("a"), secret, Beat::new(LIMIT), LIMIT, inputs);
        let target = NodeId::from("b");
        mesh.know(&target, &addr);
        let reach = Ask::Reach {
            epoch: Epoch(2),
            mark: Some(Mark {
                replid: "r1".to_owned(),
                offset: 9,
            }),
        };
        let park = Ask::Park { epoch: Epoch(3) };
        mesh.ask(&target, AskId(1), reach.clone()).unwrap();
        let mut unanswered = Vec::new();
        for (id, wanted) in [(1, &reach), (2, &park)] {
            if id == 2 {
                mesh.ask(&target, AskId(2), park.clone()).unwrap();
            }
            let arrives = async {
                loop {
                    let inbound: peer::Inbound = inbound.recv().await.unwrap();
                    match &inbound.request {
                        Request::Ask(json) => {
                            let ask: Ask = serde_json::from_slice(json).unwrap();
                            unanswered.push(inbound);
                            return ask;
                        }
                        _ => drop(inbound.reply.send("{}".into())),
                    }
                }
            };
            assert_eq!(
                timeout(Duration::from_secs(1), arrives).await.ok().as_ref(),
                Some(wanted)
            );
        }
    }
}
