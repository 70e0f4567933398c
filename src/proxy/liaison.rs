//! The proxy's line to the agents (rules C8, R8): one peer connection to each, from the control thread.
//!
//! ```text
//! agent --State--> relays --> source --> snapshot        workers <--Order-- Attach <-- agent
//! agent <--DRAINED, ATTACHED, REPORT-- one task each <-- Tally <-- workers
//! agent --Word, when asked--> Hearing <-- ZooKeeper           Hearing --Order::Hear--> workers
//! ```
//! Owns: who is connected to, what is told to whom. Refuses: judging what agents tell; the source knows which state is
//! news, the workers what an attachment means. Invariants: every queue is bounded, and what is told too late to matter is
//! not told; an agent that is away costs a connection attempt now and then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::handover::{Desk, Order, Tally, Told, What};
use super::hearing::Hearing;
use super::source::Earshot;
use crate::clock;
use crate::peer::{Attach, Client, Kind, News, PeerError, Relayed, Request, Word};
use crate::topology::{Addr, NodeId, Phase, ShardId, Snapshot};

const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_millis(1000);
/// How long an agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// What is told later than this after it was true helps nobody: executors wait a fraction of it.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// What waits to be told to one agent.
const UNTOLD_MAX: usize = 32;
/// How long before nobody may be believed in workers are told: they have to hear of it, too.
const HEAR_MARGIN: Duration = Duration::from_millis(50);
/// News that the control thread has not looked at.
const HEARD_MAX: usize = 64;
/// States on their way to the source.
pub const RELAYS_MAX: usize = 64;

/// What to say who it is.
#[derive(Clone, Debug)]
pub struct Me {
    /// The proxy's name.
    pub id: String,
    /// What agents have to know, too; without it they are not talked to.
    pub secret: Option<Arc<[u8]>>,
    /// Whether commands wait while nobody is heard, and for which shards.
    pub heed: Heed,
    /// How long nobody may have been heard.
    pub suspicion: Duration,
}

/// Which shards' commands wait while nobody is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heed {
    /// None.
    Nothing,
    /// Those where replicas acknowledge nothing; what they acknowledge is proven.
    Unproven,
    /// All.
    All,
}

/// Keeps the line to the agents of the newest snapshot until `stop`. States that they tell go to `relays`.
pub async fn keep(
    me: Me,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut desk: Desk,
    relays: mpsc::Sender<Relayed>,
    mut ear: Earshot,
    stop: CancellationToken,
) {
    let (tell, mut heard) = mpsc::channel(HEARD_MAX);
    let mut liaison = Liaison {
        me,
        tell,
        agents: HashMap::new(),
        tally: Tally::new(desk.orders.len()),
        attached: HashMap::new(),
        hearings: HashMap::new(),
        deaf: HashSet::new(),
        snapshot: snapshots.borrow_and_update().clone(),
    };
    liaison.follow();
    loop {
        let next = liaison.judge(&ear, &desk.orders).await;
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = snapshots.changed() => liaison.see(&mut snapshots),
            Some(told) = desk.told.recv() => {
                // Workers may have seen a newer one, which names the executor that has to be told.
                liaison.see(&mut snapshots);
                liaison.pass_on(told);
            }
            Some(said) = heard.recv() => match said {
                // The source looks at all of them, and soon: it waits for nothing else meanwhile.
                Said::News(News::State(relayed)) => drop(relays.send(relayed).await),
                Said::News(News::Attach(attach)) => liaison.attach(attach, &desk.orders).await,
                Said::Word(shard, node, asked_at, word) => liaison.note(&shard, &node, asked_at, word),
            },
            Ok(()) = ear.heard.changed() => {}
            () = sleep_until(next.into()) => {}
        }
    }
}

/// An agent: whose, and where.
type Key = (ShardId, NodeId, Addr);

struct Liaison {
    me: Me,
    tell: mpsc::Sender<Said>,
    agents: HashMap<Key, Agent>,
    tally: Tally,
    /// The last order to each shard's listeners: agents repeat the last thing they said to whoever connects.
    attached: HashMap<ShardId, Attach>,
    /// What is said of each shard's master.
    hearings: HashMap<ShardId, Hearing>,
    /// The shards whose workers were told to wait.
    deaf: HashSet<ShardId>,
    snapshot: Arc<Snapshot>,
}

/// What one agent says.
enum Said {
    News(News),
    /// How long the shard's master may be believed in, asked for at that moment.
    Word(ShardId, NodeId, Instant, Option<Word>),
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
        self.hear_of(&snapshot);
        let Some(secret) = self.me.secret.clone() else { return };
        for key in named {
            let (me, tell, secret) = (self.me.clone(), self.tell.clone(), secret.clone());
            self.agents.entry(key).or_insert_with_key(|key| {
                let (untold, asked) = mpsc::channel(UNTOLD_MAX);
                let task = tokio::spawn(hold_the_line(me, secret, key.clone(), asked, tell));
                Agent {
                    untold,
                    task: task.abort_handle(),
                }
            });
        }
    }

    /// What was said of another epoch is forgotten: that there is a new one has just been heard.
    fn hear_of(&mut self, snapshot: &Snapshot) {
        let now = clock::now();
        self.hearings
            .retain(|id, _| snapshot.shards.iter().any(|shard| shard.id == *id));
        for shard in &snapshot.shards {
            let known = self.hearings.get(&shard.id);
            if known.is_none_or(|known| known.epoch() != shard.epoch) {
                self.hearings.insert(shard.id.clone(), Hearing::new(shard.epoch, now));
            }
        }
    }

    fn note(&mut self, shard: &ShardId, node: &NodeId, asked_at: Instant, word: Option<Word>) {
        if let Some(hearing) = self.hearings.get_mut(shard) {
            hearing.note(node, asked_at, word, self.me.suspicion);
        }
    }

    /// Tells workers which shards' masters may be believed in. Returns when that may be another answer.
    async fn judge(&mut self, ear: &Earshot, workers: &[mpsc::Sender<Order>]) -> Instant {
        let (now, suspicion) = (clock::now(), self.me.suspicion);
        let mut next = now + suspicion;
        let read_at = *ear.heard.borrow();
        let (mut asks, mut changed) = (false, Vec::new());
        for shard in &self.snapshot.shards {
            let heeded = match self.me.heed {
                Heed::Nothing => false,
                Heed::Unproven => shard.ack_replicas == 0,
                Heed::All => true,
            };
            let Some(hearing) = self.hearings.get(&shard.id) else {
                continue;
            };
            // ZooKeeper is asked before it is too late.
            let asks_at = hearing.said_until().and_then(|until| until.checked_sub(suspicion / 2));
            let said = asks_at.is_some_and(|at| at > now);
            asks |= heeded && !said;
            let until = hearing
                .until(read_at, suspicion)
                .checked_sub(HEAR_MARGIN)
                .unwrap_or(now);
            let hears = !heeded || until > now;
            if heeded {
                let look = asks_at.filter(|_| said).unwrap_or(now + suspicion / 4);
                next = next.min(look).min(if hears { until } else { look });
            }
            let known = !self.deaf.contains(&shard.id);
            if hears != known {
                changed.push((shard.id.clone(), hears));
            }
        }
        ear.wants
            .send_if_modified(|wants| std::mem::replace(wants, asks) != asks);
        for (shard, hears) in changed {
            if hears {
                self.deaf.remove(&shard);
            } else {
                self.deaf.insert(shard.clone());
            }
            for worker in workers {
                let shard = shard.clone();
                // A worker that has ended has no clients.
                let _ = worker.send(Order::Hear { shard, hears }).await;
            }
        }
        next
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
    secret: Arc<[u8]>,
    (shard, node, addr): Key,
    mut untold: mpsc::Receiver<(Instant, Request)>,
    heard: mpsc::Sender<Said>,
) {
    let (mut wait, mut warned) = (RETRY_FIRST, false);
    let mut unfinished = None;
    loop {
        match Client::connect(&addr, Kind::Proxy, &me.id, &secret).await {
            Ok(mut client) => {
                debug!(%node, %addr, "connected to the agent");
                wait = RETRY_FIRST;
                let about = (&shard, &node, me.suspicion);
                let end = converse(&mut client, about, &mut untold, &mut unfinished, &heard).await;
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
    (shard, node, suspicion): (&ShardId, &NodeId, Duration),
    untold: &mut mpsc::Receiver<(Instant, Request)>,
    unfinished: &mut Option<(Instant, Request)>,
    heard: &mpsc::Sender<Said>,
) -> PeerError {
    let gone = || PeerError::Lost("pointsman ends".to_owned());
    let mut words = interval(suspicion / 4);
    words.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if unfinished.is_none() {
            tokio::select! {
                next = untold.recv() => match next {
                    Some(next) => *unfinished = Some(next),
                    None => return gone(),
                },
                news = client.hear() => match news {
                    Ok(news) => {
                        if heard.send(Said::News(news)).await.is_err() {
                            return gone();
                        }
                    }
                    Err(error) => return error,
                },
                _ = words.tick() => {
                    let asked_at = clock::now();
                    let word = match client.ask(&Request::Word(shard.clone()), ANSWER_LIMIT).await {
                        Ok(json) => serde_json::from_slice(&json).unwrap_or_default(),
                        // It is older than the request.
                        Err(PeerError::Says(_)) => None,
                        Err(error) => return error,
                    };
                    let said = Said::Word(shard.clone(), node.clone(), asked_at, word);
                    if heard.send(said).await.is_err() {
                        return gone();
                    }
                }
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
