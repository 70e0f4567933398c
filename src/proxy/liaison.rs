//! The proxy's line to the agents (rules C8, R8): one peer connection to each, from the control thread.
//!
//! ```text
//! agent --State--> relays --> source --> snapshot        workers <--Order-- Attach <-- agent
//! agent <--DRAINED, ATTACHED, REPORT-- one task each <-- Tally <-- workers
//! ```
//! Owns: who is connected to, what is told to whom. Refuses: judging what agents tell; the source knows which state is
//! news, the workers what an attachment means. Invariants: every queue is bounded, and what is told too late to matter is
//! not told; an agent that is away costs a connection attempt now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::handover::{Desk, Order, Tally, Told, What};
use crate::clock;
use crate::peer::{Attach, Client, Kind, News, PeerError, Relayed, Request};
use crate::topology::{Addr, NodeId, Phase, ShardId, Snapshot};

const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_millis(1000);
/// How long an agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// What is told later than this after it was true helps nobody: executors wait a fraction of it.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// What waits to be told to one agent.
const UNTOLD_MAX: usize = 32;
/// News that the control thread has not looked at.
const HEARD_MAX: usize = 64;
/// States on their way to the source.
pub const RELAYS_MAX: usize = 64;

/// What to say who it is.
#[derive(Clone, Debug)]
pub struct Me {
    /// The proxy's name.
    pub id: String,
    /// What agents have to know, too.
    pub secret: Arc<[u8]>,
}

/// Keeps the line to the agents of the newest snapshot until `stop`. States that they tell go to `relays`.
pub async fn keep(
    me: Me,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut desk: Desk,
    relays: mpsc::Sender<Relayed>,
    stop: CancellationToken,
) {
    let (tell, mut heard) = mpsc::channel(HEARD_MAX);
    let mut liaison = Liaison {
        me,
        tell,
        agents: HashMap::new(),
        tally: Tally::new(desk.orders.len()),
        attached: HashMap::new(),
        snapshot: snapshots.borrow_and_update().clone(),
    };
    liaison.follow();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = snapshots.changed() => liaison.see(&mut snapshots),
            Some(told) = desk.told.recv() => {
                // Workers may have seen a newer one, which names the executor that has to be told.
                liaison.see(&mut snapshots);
                liaison.pass_on(told);
            }
            Some(news) = heard.recv() => match news {
                // The source looks at all of them, and soon: it waits for nothing else meanwhile.
                News::State(relayed) => drop(relays.send(relayed).await),
                News::Attach(attach) => liaison.attach(attach, &desk.orders).await,
            },
        }
    }
}

/// An agent: whose, and where.
type Key = (ShardId, NodeId, Addr);

struct Liaison {
    me: Me,
    tell: mpsc::Sender<News>,
    agents: HashMap<Key, Agent>,
    tally: Tally,
    /// The last order to each shard's listeners: agents repeat the last thing they said to whoever connects.
    attached: HashMap<ShardId, Attach>,
    snapshot: Arc<Snapshot>,
}

/// The task that keeps one connection; it ends with this.
struct Agent {
    untold: mpsc::Sender<(Instant, Request)>,
    task: AbortHandle,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Liaison {
    /// Follows the newest snapshot, if it has not done so already.
    fn see(&mut self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) {
        let newest = snapshots.borrow_and_update().clone();
        if !Arc::ptr_eq(&newest, &self.snapshot) {
            self.snapshot = newest;
            self.follow();
        }
    }

    /// Connects to whom the snapshot names, and to nobody else.
    fn follow(&mut self) {
        let snapshot = self.snapshot.clone();
        let mut named: Vec<Key> = Vec::new();
        for shard in &snapshot.shards {
            if shard.phase != Phase::Switching {
                self.tally.forget_move(&shard.id);
            }
            let peers = shard.nodes.iter().filter_map(|node| {
                let peer = node.peer.clone()?;
                Some((shard.id.clone(), node.id.clone(), peer))
            });
            named.extend(peers);
        }
        self.agents.retain(|key, _| named.contains(key));
        self.attached
            .retain(|id, _| snapshot.shards.iter().any(|shard| shard.id == *id));
        for key in named {
            let (me, tell) = (self.me.clone(), self.tell.clone());
            self.agents.entry(key).or_insert_with_key(|(_, node, addr)| {
                let (untold, asked) = mpsc::channel(UNTOLD_MAX);
                let task = tokio::spawn(hold_the_line(me, node.clone(), addr.clone(), asked, tell));
                Agent {
                    untold,
                    task: task.abort_handle(),
                }
            });
        }
    }

    /// Tells the executor's agent what is true of all workers.
    fn pass_on(&mut self, told: Told) {
        let Some((id, epoch, what)) = self.tally.take(told) else {
            return;
        };
        let Some(shard) = self.snapshot.shards.iter().find(|shard| shard.id == id) else {
            return;
        };
        let agent = self
            .agents
            .iter()
            .find(|((of, node, _), _)| *of == id && Some(node) == shard.executor.as_ref());
        let Some((_, agent)) = agent else {
            debug!(shard = %id, %epoch, ?what, "the executor's agent is unknown: it is not told");
            return;
        };
        let request = match what {
            What::Drained(course) => Request::Drained(id, epoch, course),
            What::Attached(course) => Request::Attached(id, epoch, course),
            What::Repointed(report) => Request::Report(id, epoch, report),
        };
        debug!(?request, "an agent is told");
        if agent.untold.try_send((clock::now(), request)).is_err() {
            debug!("the executor's agent takes no more");
        }
    }

    /// Tells the workers that what hears is to move, once.
    async fn attach(&mut self, attach: Attach, workers: &[mpsc::Sender<Order>]) {
        let shard = self.snapshot.shards.iter().find(|shard| shard.id == attach.shard);
        let ahead = shard.is_some_and(|shard| shard.epoch < attach.epoch);
        if !ahead || self.attached.get(&attach.shard) == Some(&attach) {
            return;
        }
        info!(shard = %attach.shard, epoch = %attach.epoch, to = %attach.addr, "what hears goes ahead");
        self.attached.insert(attach.shard.clone(), attach.clone());
        let attach = Arc::new(attach);
        for worker in workers {
            // A worker that has ended has no clients.
            let _ = worker.send(Order::Attach(attach.clone())).await;
        }
    }
}

/// Connects again and again, and carries what is said both ways.
async fn hold_the_line(
    me: Me,
    node: NodeId,
    addr: Addr,
    mut untold: mpsc::Receiver<(Instant, Request)>,
    heard: mpsc::Sender<News>,
) {
    let (mut wait, mut warned) = (RETRY_FIRST, false);
    let mut unfinished = None;
    loop {
        match Client::connect(&addr, Kind::Proxy, &me.id, &me.secret).await {
            Ok(mut client) => {
                debug!(%node, %addr, "connected to the agent");
                wait = RETRY_FIRST;
                let end = converse(&mut client, &mut untold, &mut unfinished, &heard).await;
                debug!(%node, %addr, "the agent's line is lost: {end}");
            }
            Err(error @ (PeerError::Stranger(_) | PeerError::Says(_))) => {
                if !std::mem::replace(&mut warned, true) {
                    warn!(%node, %addr, "the agent is not heard: {error}; is the secret the same?");
                }
                wait = RETRY_LAST;
            }
            Err(error) => debug!(%node, %addr, "the agent is not reached: {error}"),
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_LAST);
    }
}

async fn converse(
    client: &mut Client,
    untold: &mut mpsc::Receiver<(Instant, Request)>,
    unfinished: &mut Option<(Instant, Request)>,
    heard: &mpsc::Sender<News>,
) -> PeerError {
    let gone = || PeerError::Lost("pointsman ends".to_owned());
    loop {
        if unfinished.is_none() {
            tokio::select! {
                next = untold.recv() => match next {
                    Some(next) => *unfinished = Some(next),
                    None => return gone(),
                },
                news = client.hear() => match news {
                    Ok(news) => {
                        if heard.send(news).await.is_err() {
                            return gone();
                        }
                    }
                    Err(error) => return error,
                },
            }
        }
        let Some((since, request)) = unfinished.take() else {
            continue;
        };
        if clock::now() - since > TELL_LIMIT {
            debug!(?request, "too late to be told");
            continue;
        }
        match client.ask(&request, ANSWER_LIMIT).await {
            Ok(_) => {}
            // It heard, and does not want it.
            Err(PeerError::Says(line)) => debug!(?request, "the agent says: {line}"),
            Err(error) => {
                *unfinished = Some((since, request));
                return error;
            }
        }
    }
}
