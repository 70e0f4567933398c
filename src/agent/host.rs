//! The agent's event loop: the machine in the middle, I/O around it.
//!
//! ```text
//!  probes, links, store events --Input--> [ select -> machine.handle -> actions ] --> actor, links, store, log
//!  peer port --Inbound------------------>
//! ```
//!
//! Owns: [`run`] and the tasks it starts. Refuses: decisions, and ZooKeeper itself: the store is two bounded
//! channels. Invariant: only this loop touches the machine, and never awaits between an input and its actions.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::act::Actor;
use super::beat::Beat;
use super::errands::{Deputed, act, deputise, look_at_master, look_at_own};
use super::guard::guard;
use super::machine::action::{Action, Input, Job, Level, Registered, Reply, Suspicion, Ticket, Written};
use super::machine::detector::Seen;
use super::machine::facts::{Facts, Role};
use super::machine::obedience::Ask;
use super::machine::outcome::Outcome;
use super::machine::state::{MasterOf, State, Versioned};
use super::machine::timings::Timings;
use super::machine::{Identity, Machine};
use super::memory::{EpochFile, StreamsFile};
use super::mesh::Mesh;
use super::probe::Probe;
use super::redis::Login;
pub use super::seam::{Claim, Reports};
use crate::clock;
use crate::peer::{self, Attach, Bulletin, Inbound, Kind, Request};
use crate::topology::codec::{ShardConfig, SwitchRequest};
use crate::topology::{Addr, Epoch, NodeId, RunId, ShardId};

/// Inputs that wait for the machine.
const INPUTS_MAX: usize = 256;
/// Jobs that wait for the actor; a newer one ends the older, so this is slack only.
const JOBS_MAX: usize = 8;

/// What an agent needs to know to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its node.
    pub node: NodeId,
    /// Its shard.
    pub shard: ShardId,
    /// Where its Redis listens.
    pub redis: Addr,
    /// How to log in there.
    pub login: Login,
    /// The cluster's secret.
    pub secret: Arc<[u8]>,
    /// The configured members of the shard; empty if they are whoever registers.
    pub members: BTreeSet<NodeId>,
    /// W, for a shard that is yet to be founded.
    pub ack_replicas: u32,
    /// As `replica-priority`: of equals the lowest is promoted, 0 never is.
    pub priority: u32,
    /// Where the highest epoch obeyed is kept.
    pub data_dir: PathBuf,
    /// Waiting times.
    pub timings: Timings,
}

/// What the store tells the agent.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// Connected, and this is the state read after a `sync`; also the answer to [`StoreRequest::Read`].
    Synced(Option<Versioned>),
    /// Away. `Synced` follows when it is back.
    Lost,
    /// A state, by watch.
    State(Versioned),
    /// Who is registered: node, its Redis, its agent's peer port.
    Nodes(Vec<(NodeId, Addr, Addr)>),
    /// All evidence.
    Suspects(Vec<Suspicion>),
    /// What somebody wants done to the master, if anything.
    Wish(Option<SwitchRequest>),
    /// What the operator wants of the shard.
    Wanted(ShardConfig),
    /// The proxies that tell of drains.
    Proxies(BTreeSet<String>),
    /// The outcome of the last [`StoreRequest::Write`].
    Written(Written),
}

/// What the agent wants of the store.
#[derive(Clone, Debug)]
pub enum StoreRequest {
    /// Compare-and-set of the state; `None`: create.
    Write(Option<i32>, State),
    /// `sync`, then read the state.
    Read,
    /// Put up or take back our evidence.
    Suspect(Option<Suspicion>),
    /// A state to tell on to proxies at once.
    Relay(Versioned),
    /// Where those who hear are to move, to tell proxies at once.
    Attach(Attach),
    /// A history record; the request that it ends is deleted afterwards.
    Record(Outcome),
    /// How many bytes of the stream our Redis had and the master of this epoch did not.
    Lost(Epoch, u64),
    /// What our Redis is by now.
    Describe(Described),
}

/// What is published of our Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The life of the process.
    pub run_id: RunId,
    /// What it says it is.
    pub role: Role,
    /// The replication id of its data.
    pub replid: String,
}

/// The store's end of an agent.
#[derive(Debug)]
pub struct StoreSeam {
    /// From the store.
    pub events: mpsc::Receiver<StoreEvent>,
    /// To the store.
    pub requests: mpsc::Sender<StoreRequest>,
    /// What proxies went through because of a change of master, for its history record.
    pub reports: Reports,
    /// Which life of our Redis this agent may work on.
    pub claim: Claim,
}

/// Runs the agent until `stop`, and then until what it executes has come to an end, which may take for ever: whoever calls
/// gives up, by dropping this. `listener` is its peer port, `news` what is told to all who are connected there.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    news: watch::Receiver<Bulletin>,
    mut store: StoreSeam,
    stop: CancellationToken,
) -> io::Result<()> {
    let end = CancellationToken::new();
    let _ends_with_us = end.clone().drop_guard();
    let (inputs, mut incoming) = mpsc::channel(INPUTS_MAX);
    let (asked, mut requests) = mpsc::channel(INPUTS_MAX);
    tokio::spawn(peer::serve(
        listener,
        Arc::clone(&settings.secret),
        asked,
        news,
        end.clone(),
    ));
    let mut host = Host::start(&settings, inputs, &store, &end)?;
    let mut leaving = false;
    loop {
        if leaving && host.machine.at_rest(clock::now()) {
            return Ok(());
        }
        let patience = host.machine.patience(clock::now());
        let input = tokio::select! {
            () = stop.cancelled(), if !leaving => {
                leaving = true;
                Some(Input::Leave)
            }
            Some(event) = store.events.recv() => host.store_said(event),
            () = store.claim.granted() => host.take_up(),
            Some(input) = incoming.recv() => host.seen(input),
            Some(inbound) = requests.recv() => host.peer_asked(inbound),
            () = tokio::time::sleep(patience) => Some(Input::Tick),
        };
        if let Some(input) = input {
            host.apply(input);
        }
    }
}

struct Host {
    shard: ShardId,
    machine: Machine,
    epochs: EpochFile,
    streams: StreamsFile,
    mesh: Mesh,
    inputs: mpsc::Sender<Input>,
    store: mpsc::Sender<StoreRequest>,
    reports: Reports,
    jobs: mpsc::Sender<(Job, Ask)>,
    deputed: mpsc::Sender<Deputed>,
    watched: watch::Sender<Option<MasterOf>>,
    /// The epoch in which our Redis is the master and its replicas acknowledge.
    reign: watch::Sender<Option<Epoch>>,
    /// What was last published of our Redis.
    described: Option<Described>,
    claim: Claim,
    /// The last reading of a life that is not granted yet.
    held_back: Option<Seen>,
    /// Whom we owe an answer.
    tickets: BTreeMap<Ticket, oneshot::Sender<Bytes>>,
    ticket: u64,
}

impl Host {
    fn start(
        settings: &Settings,
        inputs: mpsc::Sender<Input>,
        store: &StoreSeam,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let epochs = EpochFile::in_dir(&settings.data_dir)?;
        let streams = StreamsFile::in_dir(&settings.data_dir);
        let me = Identity {
            node: settings.node.clone(),
            addr: settings.redis.clone(),
            priority: settings.priority,
            members: settings.members.clone(),
            ack_replicas: settings.ack_replicas,
        };
        let seed = draw()?;
        let password = format!("{:016x}{:016x}", draw()?, draw()?);
        let timings = settings.timings;
        let beat = Beat::new(timings.probe);
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        let (watched, watching) = watch::channel(None);
        let (shard, secret) = (settings.shard.clone(), settings.secret.to_vec());
        let login = settings.login.clone();
        let actor_at = move |addr| Actor::new(addr, shard.clone(), login.clone(), secret.clone(), password.clone());
        let actor = actor_at(settings.redis.clone()).with_claim(store.claim.clone());
        let (deputed, deputy_waits) = mpsc::channel(JOBS_MAX);
        let deputising = deputise(actor_at, deputy_waits, inputs.clone());
        let own = Probe::new(settings.redis.clone(), settings.login.clone(), beat, true);
        let acting = act(actor, waiting, inputs.clone());
        let looking = look_at_own(own, inputs.clone());
        let watching = look_at_master(settings.login.clone(), beat, watching, inputs.clone());
        let (reign, guarded) = watch::channel(None);
        let guarding = guard(settings.redis.clone(), settings.login.clone(), beat, guarded);
        tokio::spawn(stop.clone().run_until_cancelled_owned(guarding));
        tokio::spawn(stop.clone().run_until_cancelled_owned(acting));
        tokio::spawn(stop.clone().run_until_cancelled_owned(deputising));
        tokio::spawn(stop.clone().run_until_cancelled_owned(looking));
        tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
        let secret = Arc::clone(&settings.secret);
        Ok(Self {
            shard: settings.shard.clone(),
            machine: Machine::new(clock::now(), me, timings, epochs.read()?, seed).having_held(streams.read()?),
            epochs,
            streams,
            mesh: Mesh::new(settings.node.clone(), secret, beat, timings.ask, inputs.clone()),
            inputs,
            store: store.requests.clone(),
            reports: store.reports.clone(),
            jobs,
            deputed,
            watched,
            reign,
            described: None,
            claim: store.claim.clone(),
            held_back: None,
            tickets: BTreeMap::new(),
            ticket: 0,
        })
    }

    fn store_said(&mut self, event: StoreEvent) -> Option<Input> {
        Some(match event {
            StoreEvent::Synced(state) => Input::Synced(state),
            StoreEvent::Lost => Input::StoreLost,
            StoreEvent::State(state) => Input::State(state),
            StoreEvent::Suspects(suspects) => Input::Suspects(suspects),
            StoreEvent::Wish(request) => Input::Wish(request),
            StoreEvent::Wanted(wanted) => Input::Wanted(wanted),
            StoreEvent::Proxies(proxies) => Input::Proxies(proxies),
            StoreEvent::Written(written) => Input::Written(written),
            StoreEvent::Nodes(nodes) => {
                for (node, _, peer) in &nodes {
                    self.mesh.know(node, peer);
                }
                let registered = |(node, addr, _)| Registered { node, addr };
                Input::Nodes(nodes.into_iter().map(registered).collect())
            }
        })
    }

    /// What a life says that is not granted yet is published, and kept from the machine: to that nobody has answered.
    fn seen(&mut self, input: Input) -> Option<Input> {
        let Input::Own(seen) = input else { return Some(input) };
        self.held_back = None;
        if let Seen::Up { facts, .. } = &seen {
            self.claim.see(&facts.run_id);
            if !self.claim.holds(&facts.run_id) {
                self.describe(&facts.clone());
                self.held_back = Some(seen);
                return None;
            }
        }
        Some(Input::Own(seen))
    }

    /// A life was granted.
    fn take_up(&mut self) -> Option<Input> {
        let seen = self.held_back.take()?;
        self.seen(Input::Own(seen))
    }

    fn peer_asked(&mut self, inbound: Inbound) -> Option<Input> {
        match inbound.request {
            Request::State => {
                send(inbound.reply, &self.machine.status());
                None
            }
            Request::Ask(json) => match serde_json::from_slice(&json) {
                Ok(ask) => {
                    self.ticket += 1;
                    let ticket = Ticket(self.ticket);
                    self.tickets.insert(ticket, inbound.reply);
                    Some(Input::Asked(ticket, ask))
                }
                Err(error) => {
                    send(inbound.reply, &Reply::Failed(format!("not understood: {error}")));
                    None
                }
            },
            Request::Drained(shard, epoch, course) => {
                send(inbound.reply, &"noted");
                let ours = inbound.kind == Kind::Proxy && shard == self.shard;
                ours.then_some(Input::Drained(inbound.id, epoch, course))
            }
            Request::Attached(shard, epoch, course) => {
                send(inbound.reply, &"noted");
                let ours = inbound.kind == Kind::Proxy && shard == self.shard;
                ours.then_some(Input::Attached(inbound.id, epoch, course))
            }
            Request::Report(shard, epoch, report) => {
                send(inbound.reply, &"noted");
                if inbound.kind == Kind::Proxy && shard == self.shard {
                    self.reports.note(inbound.id, epoch, report);
                }
                None
            }
            // Our own watch brings what others relay.
            Request::Relay(_) => {
                send(inbound.reply, &"noted");
                None
            }
        }
    }

    fn apply(&mut self, input: Input) {
        let looked = matches!(input, Input::Own(_) | Input::Acted(..));
        self.machine.handle(clock::now(), input);
        let actions: Vec<Action> = self.machine.poll_actions().collect();
        for action in actions {
            self.perform(action);
        }
        let watch = self.machine.master_to_watch().cloned();
        self.watched.send_if_modified(|watched| {
            let changed = *watched != watch;
            *watched = watch;
            changed
        });
        let reign = self.machine.reign();
        self.reign
            .send_if_modified(|known| std::mem::replace(known, reign) != reign);
        if looked && let Some(facts) = self.machine.own_facts().cloned() {
            self.describe(&facts);
        }
    }

    /// Publishes what our Redis is, if that changed.
    fn describe(&mut self, facts: &Facts) {
        let same = self
            .described
            .as_ref()
            .is_some_and(|last| last.run_id == facts.run_id && last.role == facts.role && last.replid == facts.replid);
        if same {
            return;
        }
        let described = Described {
            run_id: facts.run_id.clone(),
            role: facts.role,
            replid: facts.replid.clone(),
        };
        self.described = Some(described.clone());
        self.tell_store(StoreRequest::Describe(described));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Write { expect, state } => self.tell_store(StoreRequest::Write(expect, state)),
            Action::ReadState => self.tell_store(StoreRequest::Read),
            Action::Suspect(suspicion) => self.tell_store(StoreRequest::Suspect(suspicion)),
            Action::Relay(state) => self.tell_store(StoreRequest::Relay(state)),
            Action::Attach(epoch, course, target) => self.tell_store(StoreRequest::Attach(Attach {
                shard: self.shard.clone(),
                epoch,
                node: target.node,
                addr: target.addr,
                run_id: target.run_id,
                course: Some(course),
            })),
            Action::Record(outcome) => self.tell_store(StoreRequest::Record(*outcome)),
            Action::Lost { epoch, bytes } => self.tell_store(StoreRequest::Lost(epoch, bytes)),
            Action::Ask { id, node, ask } => {
                if let Err(why) = self.mesh.ask(&node, id, ask) {
                    self.come_back(Input::Answered(id, Reply::Failed(why.to_owned())));
                }
            }
            Action::Deputise { id, addr, ask } => {
                if self.deputed.try_send(Deputed { id, addr, ask }).is_err() {
                    self.come_back(Input::Answered(id, Reply::Failed("too many jobs wait".to_owned())));
                }
            }
            Action::Answer { ticket, reply } => {
                if let Some(owed) = self.tickets.remove(&ticket) {
                    send(owed, &reply);
                }
            }
            Action::Act { job, ask } => {
                if self.jobs.try_send((job, ask)).is_err() {
                    self.come_back(Input::Acted(job, Err("too many jobs wait for redis".to_owned())));
                }
            }
            Action::Remember(epoch) => {
                if let Err(error) = self.epochs.write(epoch) {
                    tracing::error!(%error, %epoch, "the highest epoch obeyed could not be kept on disk");
                }
            }
            Action::Keep(streams) => {
                if let Err(error) = self.streams.write(&streams) {
                    tracing::error!(%error, "what the data is called could not be kept on disk");
                }
            }
            Action::Say(Level::Info, sentence) => tracing::info!("{sentence}"),
            Action::Say(Level::Warn, sentence) => tracing::warn!("{sentence}"),
            Action::Say(Level::Error, sentence) => tracing::error!("{sentence}"),
        }
    }

    fn tell_store(&self, request: StoreRequest) {
        let lost_write = matches!(request, StoreRequest::Write(..));
        if self.store.try_send(request).is_err() {
            tracing::warn!("the store takes no more requests");
            if lost_write {
                self.come_back(Input::Written(Written::Unknown));
            }
        }
    }

    /// Gives the machine an input after the present one. If its queue is full, its own time limits decide.
    fn come_back(&self, input: Input) {
        if self.inputs.try_send(input).is_err() {
            tracing::warn!("the agent is behind with its inputs");
        }
    }
}

fn draw() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}

fn send(to: oneshot::Sender<Bytes>, answer: &impl serde::Serialize) {
    // Whoever asked may have left, which is its own affair.
    if let Ok(json) = serde_json::to_vec(answer) {
        let _ = to.send(json.into());
    }
}
