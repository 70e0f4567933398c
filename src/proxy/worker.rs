//! A worker: one thread that owns its clients and its lanes. Nothing of it is shared; no lock, no channel and no
//! allocation per command on its path.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::backend::{ConnectError, Greeting, Pass, Target, ask, connect_control};
use super::census::Census;
use super::client::{CloseReason, Session, answer, attach};
use super::guests::Lodge;
use super::handover::{Order, Teller, What};
use super::pause::Pause;
use super::roll::{Question, Roll};
use super::scripts::{Scripts, Shelf};
use super::settings::Settings;
use super::shard::Shard;
use super::shared::Replicas;
use super::view::View;
use super::vocabulary::Vocabulary;
use crate::clock;
use crate::command::{Command, KeyPositions, Table};
use crate::resp::{ARGUMENTS_MAX, ARGUMENTS_MAX_LATER, Args, RequestLimits, RequestScanner, Span};
use crate::route::{Fences, Footprint, Place, ReadPolicy, Split, place, split};
use crate::topology::{Epoch, RunId, ShardId, ShardIndex, Snapshot};
use tokio::sync::mpsc;

/// Bytes read at once; one buffer for all of a worker's sockets.
const SCRATCH_BYTES: usize = 64 * 1024;
/// A client that keeps a lane from reading has to take [`SLOW_READER_BYTES_MIN`] in each of these.
const SLOW_READER: Duration = Duration::from_secs(1);
const SLOW_READER_BYTES_MIN: u64 = 1024 * 1024;
/// A lane whose head is unanswered for longer than one or two of these is stalled.
const STALLED: Duration = Duration::from_millis(50);
const IDLE_TICKS_PER_S: u32 = 2;
const IDLE_TICK: Duration = Duration::from_millis(1000 / IDLE_TICKS_PER_S as u64);
/// A lane that nobody used for 10 s is closed.
const IDLE_TICKS_MAX: u32 = 10 * IDLE_TICKS_PER_S;
/// Until a master that could not be asked is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Databases of a server that does not say how many it has.
const DATABASES: u32 = 16;

/// One worker's state.
pub struct Worker {
    settings: Arc<Settings>,
    started: Instant,
    /// Replicas that must acknowledge what its clients write, at least.
    ack_replicas: u32,
    commands: Cell<&'static Table>,
    vocabulary: Vocabulary,
    snapshot: RefCell<Arc<Snapshot>>,
    /// In the order of the snapshot's; a nameless one, which only holds, until there is a snapshot.
    shards: RefCell<Vec<Rc<Shard>>>,
    auth_required: Cell<bool>,
    lodge: Lodge,
    databases: Cell<u32>,
    /// Arguments that the servers take in one request.
    arguments_max: Cell<i64>,
    redis_version: RefCell<String>,
    lane_number: Cell<u32>,
    /// Whether [`Worker::watch_lanes`] is running.
    watching: Cell<bool>,
    /// Looks after which an unused lane is closed.
    idle_ticks_max: Cell<u32>,
    dirty: RefCell<Vec<Rc<Session>>>,
    scratch: RefCell<Box<[u8]>>,
    spans: RefCell<Vec<Span>>,
    keys: RefCell<KeyPositions>,
    footprint: RefCell<Footprint>,
    replicas: Arc<Replicas>,
    /// How many shards of all workers have no master that serves.
    unserved: Arc<AtomicUsize>,
    /// How many clients of all workers monitor.
    monitors: Arc<AtomicUsize>,
    /// The clients, in the order in which they came.
    clients: RefCell<BTreeMap<u64, Weak<Session>>>,
    roll: Roll,
    pause: Arc<Pause>,
    census: Arc<Census>,
    scripts: Arc<Scripts>,
    shelf: RefCell<Shelf>,
    teller: Teller,
    /// The time at the last look at idle lanes.
    about_now_ms: Cell<u64>,
}

/// Counts one client that monitors, for as long as it lives.
pub struct Monitoring(Arc<AtomicUsize>);

impl Drop for Monitoring {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// A worker that knows no shard yet; call it on the thread that keeps it. At least `ack_replicas` replicas acknowledge
    /// what its clients write.
    pub fn new(
        settings: Arc<Settings>,
        ack_replicas: u32,
        replicas: Arc<Replicas>,
        teller: Teller,
        view: &View,
    ) -> Rc<Self> {
        let (unserved, monitors) = (view.unserved.clone(), view.monitors.clone());
        let nameless = ShardId::from("");
        let nobody = Shard::new(nameless.clone(), replicas.fences().shard(&nameless), unserved.clone());
        let lodge = Lodge::of(settings.guests.clone());
        Rc::new(Self {
            settings,
            started: clock::now(),
            ack_replicas,
            commands: Cell::new(Table::builtin()),
            vocabulary: view.vocabulary.clone(),
            snapshot: RefCell::new(Arc::new(Snapshot::empty())),
            shards: RefCell::new(vec![nobody]),
            auth_required: Cell::new(false),
            lodge,
            databases: Cell::new(DATABASES),
            arguments_max: Cell::new(ARGUMENTS_MAX_LATER),
            redis_version: RefCell::new("7.0.0".to_owned()),
            lane_number: Cell::new(0),
            watching: Cell::new(false),
            idle_ticks_max: Cell::new(IDLE_TICKS_MAX),
            dirty: RefCell::default(),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            spans: RefCell::default(),
            keys: RefCell::default(),
            footprint: RefCell::default(),
            replicas,
            unserved,
            monitors,
            clients: RefCell::default(),
            roll: view.roll.clone(),
            pause: view.pause.clone(),
            census: view.census.clone(),
            scripts: view.scripts.clone(),
            shelf: RefCell::default(),
            teller,
            about_now_ms: Cell::new(clock::monotonic_ms()),
        })
    }

    /// Follows a new snapshot. Shards keep their lanes as long as their master is the same.
    pub fn follow(self: &Rc<Self>, snapshot: Arc<Snapshot>) {
        if snapshot.shards.is_empty() {
            return;
        }
        let before = self.shards.take();
        let known = |id: &ShardId| before.iter().find(|shard| shard.id == *id).cloned();
        let shards: Vec<Rc<Shard>> = snapshot
            .shards
            .iter()
            .map(|offered| known(&offered.id).unwrap_or_else(|| self.new_shard(&offered.id)))
            .collect();
        self.shards.replace(shards.clone());
        self.snapshot.replace(snapshot.clone());
        for (shard, offered) in shards.iter().zip(&snapshot.shards) {
            shard.follow(self, offered);
        }
        for gone in before
            .iter()
            .filter(|shard| !shards.iter().any(|kept| Rc::ptr_eq(kept, shard)))
        {
            gone.remove();
        }
    }

    fn new_shard(&self, id: &ShardId) -> Rc<Shard> {
        Shard::new(id.clone(), self.fences().shard(id), self.unserved.clone())
    }

    /// What the proxy was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The topology that it follows.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// How many shards there are, at least 1.
    pub fn shard_count(&self) -> usize {
        self.shards.borrow().len()
    }

    /// A shard by its place in the snapshot.
    pub fn shard(&self, index: ShardIndex) -> Rc<Shard> {
        let shards = self.shards.borrow();
        shards.get(usize::from(index.0)).unwrap_or(&shards[0]).clone()
    }

    /// Which shard a request belongs to.
    pub fn place(&self, command: &Command, args: &Args) -> Place {
        let shards = self.shard_count();
        place(
            &self.snapshot.borrow().slots,
            shards,
            command,
            args,
            &mut self.keys.borrow_mut(),
        )
    }

    /// A request in parts, one for each shard among its keys; see [`split`].
    pub fn split(&self, command: &Command, args: &Args) -> Option<Split> {
        split(&self.snapshot.borrow().slots, command, args)
    }

    /// Whether reads may go to replicas, so that writes have to raise fences.
    #[inline]
    pub fn splits_reads(&self) -> bool {
        self.settings.reads == ReadPolicy::Causal
    }

    /// A client begins to monitor.
    pub fn monitoring(&self) -> Monitoring {
        self.monitors.fetch_add(1, Ordering::Relaxed);
        Monitoring(self.monitors.clone())
    }

    /// Whether a client of this proxy monitors.
    #[inline]
    pub fn is_monitored(&self) -> bool {
        self.monitors.load(Ordering::Relaxed) > 0
    }

    /// A client comes.
    pub fn enter(&self, session: &Rc<Session>) {
        self.clients.borrow_mut().insert(session.id, Rc::downgrade(session));
    }

    /// A client has left.
    pub fn leave(&self, id: u64) {
        self.clients.borrow_mut().remove(&id);
    }

    /// This worker's clients, in the order in which they came.
    pub fn clients(&self) -> Vec<Rc<Session>> {
        let clients = self.clients.borrow();
        let here = clients.values().filter_map(Weak::upgrade);
        here.filter(|client| !client.is_closed()).collect()
    }

    /// How many clients this proxy has.
    pub fn census(&self) -> &Arc<Census> {
        &self.census
    }

    /// The pause that a client of this proxy asked for.
    #[inline]
    pub fn pause(&self) -> &Pause {
        &self.pause
    }

    /// The scripts that are known.
    pub fn scripts(&self) -> &Arc<Scripts> {
        &self.scripts
    }

    /// What is known of them without asking others.
    pub fn shelf(&self) -> RefMut<'_, Shelf> {
        self.shelf.borrow_mut()
    }

    /// The way to ask all workers about their clients.
    pub fn roll(&self) -> &Roll {
        &self.roll
    }

    /// Answers what is asked about this worker's clients, for as long as the worker lives.
    pub async fn answer_questions(self: Rc<Self>, mut inbox: mpsc::Receiver<Question>) {
        while let Some(question) = inbox.recv().await {
            answer(&self, question);
        }
    }

    /// Does what the control thread says, for as long as the worker lives.
    pub async fn take_orders(self: Rc<Self>, mut inbox: mpsc::Receiver<Order>) {
        loop {
            match inbox.recv().await {
                Some(Order::Attach(order)) => {
                    let shards = self.shards.borrow().clone();
                    let Some(shard) = shards.into_iter().find(|shard| shard.id == order.shard) else {
                        continue;
                    };
                    let worker = self.clone();
                    tokio::task::spawn_local(async move {
                        attach(&worker, &shard, &order).await;
                        worker.tell(&shard.id, order.epoch, What::Attached(order.course.clone()));
                    });
                }
                Some(Order::Hear { shard, hears }) => {
                    let shards = self.shards.borrow().clone();
                    if let Some(shard) = shards.into_iter().find(|known| known.id == shard) {
                        shard.hear(&self, hears);
                    }
                }
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// What connections to the servers of an epoch say first, if the proxy knows the secret and the master's life.
    pub fn pass(&self, shard: &ShardId, epoch: Epoch, master: Option<&RunId>) -> Option<Rc<Pass>> {
        let (user, token) = self.settings.pass(shard, epoch, master)?;
        Some(Rc::new(Pass { user, token }))
    }

    /// Tells the control thread what this worker has done about the master of an epoch.
    pub fn tell(&self, shard: &ShardId, epoch: Epoch, what: What) {
        self.teller.tell(shard.clone(), epoch, what);
    }

    /// The time, up to half a second ago.
    #[inline]
    pub fn about_now_ms(&self) -> u64 {
        self.about_now_ms.get()
    }

    /// Whether the master's Redis is of this version or a later one.
    pub fn redis_is_at_least(&self, major: u32, minor: u32) -> bool {
        let version = self.redis_version.borrow();
        let mut parts = version.split('.').map_while(|part| part.parse().ok());
        (parts.next().unwrap_or(0u32), parts.next().unwrap_or(0u32)) >= (major, minor)
    }

    /// The fences of this proxy.
    pub fn fences(&self) -> &Arc<Fences> {
        self.replicas.fences()
    }

    /// What is known of replicas.
    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// How old the newest sample that a replica has passed may be, in milliseconds.
    pub fn max_lag_ms(&self) -> u64 {
        self.settings.max_lag_ms
    }

    /// What the run under way writes.
    pub fn footprint(&self) -> RefMut<'_, Footprint> {
        self.footprint.borrow_mut()
    }

    /// Room for the keys of a request.
    pub fn keys(&self) -> RefMut<'_, KeyPositions> {
        self.keys.borrow_mut()
    }

    /// Takes in what a master said of itself.
    pub fn learn(&self, greeting: &Greeting) {
        self.auth_required.set(greeting.auth_required);
        self.lodge.new_master();
        if let Some(version) = &greeting.version {
            version.clone_into(&mut self.redis_version.borrow_mut());
            let later = self.redis_is_at_least(7, 0);
            self.arguments_max
                .set(if later { ARGUMENTS_MAX_LATER } else { ARGUMENTS_MAX });
        }
        if let Some(databases) = greeting.databases {
            self.databases.set(databases);
        }
        // A lane that Redis would close soon is closed by us, with nothing in flight (rule A14).
        let ticks = greeting
            .timeout_s
            .map_or(IDLE_TICKS_MAX, |seconds| seconds / 2 * IDLE_TICKS_PER_S);
        self.idle_ticks_max.set(ticks.clamp(1, IDLE_TICKS_MAX));
    }

    /// Called with each append: lanes are watched while something is in flight on one of them.
    #[inline]
    pub fn watch_lanes(self: &Rc<Self>) {
        if self.watching.replace(true) {
            return;
        }
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(STALLED).await;
                let shards = worker.shards.borrow().clone();
                let busy = shards.iter().fold(false, |busy, shard| shard.watch_lanes() | busy);
                if !busy {
                    break;
                }
            }
            worker.watching.set(false);
        });
    }

    /// Closes unused lanes from time to time, for as long as the worker lives.
    pub async fn close_idle_lanes(self: Rc<Self>) {
        loop {
            tokio::time::sleep(IDLE_TICK).await;
            self.about_now_ms.set(clock::monotonic_ms());
            let shards = self.shards.borrow().clone();
            for shard in shards {
                shard.close_idle_lanes(self.idle_ticks_max.get());
            }
        }
    }

    /// A number that no lane of this worker has had lately.
    pub fn next_lane_number(&self) -> u32 {
        self.lane_number.set(self.lane_number.get().wrapping_add(1));
        self.lane_number.get()
    }

    /// How long a command waits for a master, in milliseconds.
    pub fn hold_max_ms(&self) -> u64 {
        self.settings.hold_max_ms
    }

    /// How many replicas must acknowledge a write at a shard that asks for `wanted` itself.
    pub fn acks(&self, wanted: u32) -> u32 {
        wanted.max(self.ack_replicas)
    }

    /// How long a reply waits for that, in milliseconds.
    pub fn ack_timeout_ms(&self) -> u64 {
        self.settings.ack_timeout_ms
    }

    /// Whether only replicas count that have it on disk.
    pub fn acks_on_disk(&self) -> bool {
        self.settings.acks_on_disk
    }

    /// How many databases the servers have.
    pub fn databases(&self) -> u32 {
        self.databases.get()
    }

    /// The command table. It may be another one at the next call: commands keep their ids in it.
    #[inline]
    pub fn commands(&self) -> &'static Table {
        self.commands.get()
    }

    /// Which commands there are, as masters say.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Has the master asked for a command that no table has; what ends once it has answered. `None`: it will not be asked.
    pub fn ask_about(self: &Rc<Self>, name: &[u8]) -> Option<impl Future<Output = ()> + use<>> {
        let (worker, answer) = (self.clone(), self.vocabulary.ask_about(name)?);
        Some(async move {
            answer.await;
            worker.commands.set(*worker.vocabulary.tables().borrow());
        })
    }

    /// Takes over each new table, for as long as the worker lives.
    pub async fn follow_vocabulary(self: Rc<Self>) {
        let mut tables = self.vocabulary.tables();
        loop {
            self.commands.set(*tables.borrow_and_update());
            if tables.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What a client may send.
    pub fn request_limits(&self) -> RequestLimits {
        RequestLimits {
            arguments_max: self.arguments_max.get(),
            ..RequestLimits::default()
        }
    }

    /// How long opening a backend connection may take.
    pub fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout
    }

    /// Whether every client has to log in: Redis wants a password from everyone, or the proxy does.
    pub fn auth_required(&self) -> bool {
        self.lodge.users().is_some() || self.auth_required.get()
    }

    /// What it knows of clients that log in to the proxy itself.
    pub fn lodge(&self) -> &Lodge {
        &self.lodge
    }

    /// The version of the master's Redis.
    pub fn redis_version(&self) -> String {
        self.redis_version.borrow().clone()
    }

    /// The read buffer.
    pub fn scratch(&self) -> RefMut<'_, [u8]> {
        RefMut::map(self.scratch.borrow_mut(), |scratch| &mut scratch[..])
    }

    /// A scanner for bytes that follow nothing unfinished.
    pub fn scanner(&self) -> (RequestScanner, Vec<Span>) {
        (RequestScanner::default(), std::mem::take(&mut self.spans.borrow_mut()))
    }

    /// Takes the spans back for the next one.
    pub fn put_scanner(&self, spans: Vec<Span>) {
        // A request of many arguments leaves a buffer that nobody should keep.
        if spans.capacity() <= 4096 {
            *self.spans.borrow_mut() = spans;
        }
    }

    /// Remembers a session whose replies are to be written after this read pass.
    pub fn add_dirty(&self, session: Rc<Session>) {
        self.dirty.borrow_mut().push(session);
    }

    /// Gives each session with new replies one write.
    pub fn flush_dirty(&self) {
        let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for session in dirty.drain(..) {
            session.flush();
        }
        *self.dirty.borrow_mut() = dirty;
    }

    /// Every node of every shard, the first shard's master first; none while that is not known to serve.
    pub fn nodes(&self) -> Vec<Rc<Target>> {
        let Some(master) = self.shard(ShardIndex(0)).serving() else {
            return Vec::new();
        };
        let snapshot = self.snapshot.borrow();
        let mut nodes = vec![master];
        for shard in &snapshot.shards {
            let life = shard.master.as_ref().and_then(|master| master.run_id.as_ref());
            let pass = self.pass(&shard.id, shard.epoch, life);
            let all = shard
                .nodes
                .iter()
                .map(|node| Target::replica(node, shard.epoch, pass.clone()));
            let others: Vec<_> = all.filter(|node| node.addr != nodes[0].addr).map(Rc::new).collect();
            nodes.extend(others);
        }
        nodes
    }

    /// Closes a client that reads too slowly while others wait behind its reply (rule B2).
    pub fn watch_slow_reader(&self, session: &Rc<Session>) {
        let session = session.clone();
        tokio::task::spawn_local(async move {
            while session.is_stalling() {
                let before = session.written();
                tokio::time::sleep(SLOW_READER).await;
                if session.is_stalling() && session.written() - before < SLOW_READER_BYTES_MIN {
                    session.close(CloseReason::SlowReader);
                    return;
                }
            }
        });
    }

    /// Asks the first shard's master one thing on a connection of its own, and waits for one as a command would; an error
    /// is the line to show.
    pub async fn ask_master(self: &Rc<Self>, request: &[u8]) -> Result<(), String> {
        let since_ms = clock::monotonic_ms();
        loop {
            let shard = self.shard(ShardIndex(0));
            if let Some(target) = shard.answering() {
                let asking = async {
                    let mut stream = connect_control(&target, self.connect_timeout()).await?;
                    ask(&mut stream, request, 1, &target.addr).await
                };
                match tokio::time::timeout(self.connect_timeout(), asking).await {
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(ConnectError::Refused(_, line))) => return Err(line),
                    Ok(Err(_)) | Err(_) => shard.suspect(self),
                }
            }
            if clock::monotonic_ms() > since_ms + self.hold_max_ms() {
                return Err("-MASTERDOWN the master cannot be asked: not authenticated".to_owned());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}
