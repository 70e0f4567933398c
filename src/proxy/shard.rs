//! One worker's view of one shard: who takes its commands, the lanes that lead there, and who waits while nobody does.
//!
//! ```text
//!            topology names a master        it answers and is one
//!  Nobody -------------------------> Sought ----------------------> Serving
//!     ^                                ^                               |
//!     +--- election, switchover -------+---------- lane lost ----------+
//! ```
//! Owns: holding and re-pointing. Invariants: commands go only to a master that was greeted in its epoch; a lane
//! belongs to one target for life, so that nothing appended for one master ever reaches another; whoever waits is
//! woken when there is a master, or told after `hold_max_ms` that there is none.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::backend::{ConnectError, Lane, LaneEnd, Login, Pace, Purpose, Tap, Target, greet};
use super::client::{CloseReason, Session};
use super::shared::ReplicaFacts;
use super::spares::Spares;
use super::worker::Worker;
use crate::clock;
use crate::route::{Ask, Choice, FenceLog, ShardFences, Standing, Stickiness, choose};
use crate::topology::{self, Phase, RunId, ShardId};

/// How long a lane that was refused something is listened to.
const LAST_REPLIES: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LAST: Duration = Duration::from_millis(50);
/// Lanes at once that have stalled and were replaced; past that a stalled one keeps its newcomers.
const STALLED_MAX: usize = 4;

/// Numbers the times between two losses of a master. What was written in one is perhaps unknown to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reign(pub u32);

/// Who takes the shard's commands.
enum Mastership {
    /// Nobody: topology knows no master, or is about to name another.
    Nobody,
    /// The one that topology names, once it answers.
    Sought(Rc<Target>),
    /// The one that topology names, and it answers.
    Serving(Rc<Target>),
}

/// A replica that reads may go to.
struct Reader {
    target: Rc<Target>,
    facts: Arc<ReplicaFacts>,
    lanes: HashMap<Login, Rc<Lane>>,
}

/// One shard, as one worker sees it.
pub struct Shard {
    /// Its name.
    pub id: ShardId,
    mastership: RefCell<Mastership>,
    reign: Cell<Reign>,
    /// Which life the reign is of, where the server told.
    life: RefCell<Option<String>>,
    /// Which life serves, or served last, where that is known.
    run_id: RefCell<Option<RunId>>,
    /// How many shards of all workers have no master that serves.
    unserved: Arc<AtomicUsize>,
    /// Whether [`Shard::seek`] is running.
    seeking: Cell<bool>,
    /// Topology removed it: nothing waits for it any more.
    removed: Cell<bool>,
    news: Notify,
    /// The shared lanes that take newcomers.
    lanes: RefCell<HashMap<Login, Rc<Lane>>>,
    /// The replicas that may be read from, as of the last epoch that served.
    readers: RefCell<Vec<Reader>>,
    fences: Arc<ShardFences>,
    spares: Spares,
    /// Every lane that has not ended, private ones too, by number.
    open: RefCell<HashMap<u32, Rc<Lane>>>,
    /// Connections of subscribers to the master.
    taps: RefCell<Vec<Weak<Tap>>>,
    holding: RefCell<Vec<Rc<Session>>>,
}

impl Shard {
    /// A shard of which nothing is known but its name and fences.
    pub fn new(id: ShardId, fences: Arc<ShardFences>, unserved: Arc<AtomicUsize>) -> Rc<Self> {
        unserved.fetch_add(1, Ordering::Relaxed);
        Rc::new(Self {
            id,
            mastership: RefCell::new(Mastership::Nobody),
            reign: Cell::default(),
            life: RefCell::default(),
            run_id: RefCell::default(),
            unserved,
            seeking: Cell::new(false),
            removed: Cell::new(false),
            news: Notify::new(),
            lanes: RefCell::default(),
            readers: RefCell::default(),
            fences,
            spares: Spares::default(),
            open: RefCell::default(),
            taps: RefCell::default(),
            holding: RefCell::default(),
        })
    }

    /// The shared lane of a login to the master, opened if need be; `None` while there is no master.
    pub fn lane(self: &Rc<Self>, worker: &Rc<Worker>, login: &Login) -> Option<Rc<Lane>> {
        let target = self.serving()?;
        if let Some(lane) = self.lanes.borrow().get(login) {
            return Some(lane.clone());
        }
        let lane = self.open_to_master(worker, login, target);
        self.lanes.borrow_mut().insert(login.clone(), lane.clone());
        Some(lane)
    }

    /// A connection to the master for one session alone; `None` while there is no master.
    pub fn open_private(self: &Rc<Self>, worker: &Rc<Worker>, login: &Login) -> Option<Rc<Lane>> {
        let target = self.serving()?;
        if let Some(spare) = self.spares.take(login, &target) {
            return Some(spare);
        }
        let lane = self.open_to_master(worker, login, target);
        lane.make_private();
        Some(lane)
    }

    /// Takes a connection back on which nothing was left.
    pub fn put_spare(&self, lane: Rc<Lane>) {
        self.spares.put(lane);
    }

    /// The lane to the replica that a run of reads goes to; `None`: to the master. Lanes are opened as they are asked
    /// for, and count once they have proven whom they lead to.
    pub fn reader(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        login: &Login,
        ask: &Ask,
        sticky: &mut Stickiness,
    ) -> Option<Rc<Lane>> {
        let mut readers = self.readers.borrow_mut();
        for reader in readers.iter_mut().filter(|reader| reader.facts.is_in_service()) {
            if !reader.lanes.contains_key(login) {
                let purpose = Purpose::Replica(reader.facts.clone());
                let lane = self.open(worker, login, reader.target.clone(), purpose);
                reader.lanes.insert(login.clone(), lane);
            }
        }
        let standing = |at: usize| {
            readers[at]
                .lanes
                .get(login)
                .map_or(Standing::NONE, |lane| lane.standing())
        };
        match choose(ask, sticky, readers.len(), standing) {
            Choice::Master => None,
            Choice::Replica(at) => readers[at].lanes.get(login).cloned(),
        }
    }

    /// The fences of the whole shard.
    pub fn fences(&self) -> &Arc<ShardFences> {
        &self.fences
    }

    /// The master, if it takes commands.
    pub fn serving(&self) -> Option<Rc<Target>> {
        match &*self.mastership.borrow() {
            Mastership::Serving(target) => Some(target.clone()),
            Mastership::Nobody | Mastership::Sought(_) => None,
        }
    }

    /// The reign of the master that serves, or served last.
    pub fn reign(&self) -> Reign {
        self.reign.get()
    }

    /// Which life serves, or served last, where that is known.
    pub fn life(&self) -> Option<RunId> {
        self.run_id.borrow().clone()
    }

    /// Wakes `session` when there is a master again, or its time is up.
    pub fn hold(self: &Rc<Self>, worker: &Rc<Worker>, session: Rc<Session>) {
        if self.removed.get() {
            // Its requests go elsewhere now.
            session.wake();
            return;
        }
        self.holding.borrow_mut().push(session);
        self.start_seeking(worker);
    }

    /// Follows what topology says of the shard.
    pub fn follow(self: &Rc<Self>, worker: &Rc<Worker>, offered: &topology::Shard) {
        let named = match (&offered.phase, &offered.master) {
            (Phase::Serving, Some(master)) => Some(Target::master(master, offered.epoch)),
            (Phase::Serving | Phase::Electing | Phase::Switching, _) => None,
        };
        let Some(named) = named else {
            // What is in flight may still be answered; nothing new is sent.
            if !matches!(self.set(Mastership::Nobody), Mastership::Nobody) {
                info!(shard = %self.id, epoch = %offered.epoch, "the shard has no master now; commands are held");
            }
            return;
        };
        self.follow_readers(worker, offered, &named);
        let known = match &*self.mastership.borrow() {
            Mastership::Nobody => false,
            Mastership::Sought(target) | Mastership::Serving(target) => **target == named,
        };
        if !known {
            self.abandon_lanes(Some(&named));
            self.set(Mastership::Sought(Rc::new(named)));
            self.news.notify_one();
            self.start_seeking(worker);
        }
    }

    /// Topology has no such shard any more.
    pub fn remove(&self) {
        self.set(Mastership::Nobody);
        self.removed.set(true);
        self.unserved.fetch_sub(1, Ordering::Relaxed);
        self.abandon_lanes(None);
        for lane in self.readers.take().iter().flat_map(|gone| gone.lanes.values()) {
            lane.abandon();
        }
        self.news.notify_one();
        self.wake_all();
    }

    /// Looks at the lanes that take newcomers: one that does not get on makes room for a new one (rule B1), and a
    /// replica that says nothing loses its reads to the master. Says whether something is in flight.
    pub fn watch_lanes(&self) -> bool {
        let mut busy = false;
        let lingering = self.open.borrow().values().filter(|lane| lane.is_released()).count();
        let mut room = STALLED_MAX.saturating_sub(lingering);
        self.retain_lanes(|lane| {
            let pace = lane.pace();
            busy |= pace != Pace::Idle;
            match pace {
                Pace::Silent if lane.is_reader() => {
                    info!(lane = lane.number, replica = %lane.target.addr, "the replica is silent; its reads go elsewhere");
                    lane.abandon();
                    false
                }
                Pace::Silent | Pace::Stalled if room > 0 => {
                    room -= 1;
                    debug!(lane = lane.number, "lane stalled; newcomers get another");
                    false
                }
                Pace::Idle | Pace::Walking | Pace::Stalled | Pace::Silent => true,
            }
        });
        busy
    }

    /// Closes lanes that nobody used for `ticks_max` calls of this.
    pub fn close_idle_lanes(&self, ticks_max: u32) {
        self.retain_lanes(|lane| lane.idle_ticks() < ticks_max);
    }

    /// Takes no newcomers any more on the lanes that do not stay: they end once nothing is in flight on them.
    fn retain_lanes(&self, mut stays: impl FnMut(&Lane) -> bool) {
        let mut keep = |lane: &Rc<Lane>| {
            let stays = stays(lane);
            if !stays {
                lane.release();
            }
            stays
        };
        self.lanes.borrow_mut().retain(|_, lane| keep(lane));
        self.spares.retain(&mut keep);
        for reader in self.readers.borrow_mut().iter_mut() {
            reader.lanes.retain(|_, lane| keep(lane));
        }
    }

    /// The replicas of an epoch; those of the last one are read from until there is another master.
    fn follow_readers(&self, worker: &Worker, offered: &topology::Shard, master: &Target) {
        if !worker.splits_reads() {
            return;
        }
        let mut before = self.readers.take();
        let replicas = offered.nodes.iter().filter(|node| node.id != master.node);
        let readers = replicas.map(|node| {
            let target = Target::replica(node, offered.epoch);
            let known = before.iter().position(|reader| *reader.target == target);
            known.map(|at| before.swap_remove(at)).unwrap_or_else(|| Reader {
                facts: worker.replicas().facts(&self.id, &node.id, &node.addr, offered.epoch),
                target: Rc::new(target),
                lanes: HashMap::new(),
            })
        });
        let readers: Vec<Reader> = readers.collect();
        self.readers.replace(readers);
        for lane in before.iter().flat_map(|gone| gone.lanes.values()) {
            lane.abandon();
        }
    }

    /// Every change of who takes commands; returns what was before.
    fn set(&self, next: Mastership) -> Mastership {
        let serves = matches!(next, Mastership::Serving(_));
        let before = self.mastership.replace(next);
        match (matches!(before, Mastership::Serving(_)), serves) {
            (false, true) => drop(self.unserved.fetch_sub(1, Ordering::Relaxed)),
            (true, false) => drop(self.unserved.fetch_add(1, Ordering::Relaxed)),
            (false, false) | (true, true) => {}
        }
        before
    }

    fn open_to_master(self: &Rc<Self>, worker: &Rc<Worker>, login: &Login, target: Rc<Target>) -> Rc<Lane> {
        let log = || FenceLog::new(worker.fences().clone(), self.fences.clone());
        self.open(worker, login, target, Purpose::Master(worker.splits_reads().then(log)))
    }

    fn open(self: &Rc<Self>, worker: &Rc<Worker>, login: &Login, target: Rc<Target>, purpose: Purpose) -> Rc<Lane> {
        let lane = Lane::new(worker.next_lane_number(), login.clone(), self.clone(), target, purpose);
        if !lane.is_reader() {
            lane.leads_to(self.life(), self.is_watched(&lane.target));
        }
        self.open.borrow_mut().insert(lane.number, lane.clone());
        let (worker, running, shard) = (worker.clone(), lane.clone(), self.clone());
        tokio::task::spawn_local(async move {
            let end = running.run(&worker).await;
            shard.lane_ended(&worker, &running, &end);
        });
        lane
    }

    /// Whether a connection would tell at once if the master were started anew.
    fn is_watched(&self, target: &Target) -> bool {
        let open = self.open.borrow();
        open.values()
            .any(|lane| !lane.is_reader() && *lane.target == *target && lane.local_addr().is_some())
    }

    /// Ends all lanes to masters but those to `still`: they lead to a server that is master no more.
    fn abandon_lanes(&self, still: Option<&Target>) {
        let leads_astray = |lane: &Lane| !lane.is_reader() && still.is_none_or(|still| *lane.target != *still);
        self.lanes.borrow_mut().retain(|_, lane| !leads_astray(lane));
        self.spares.retain(|lane| !leads_astray(lane));
        for lane in self.open.borrow().values().filter(|lane| leads_astray(lane)) {
            lane.abandon();
        }
        for tap in self.taps.take().iter().filter_map(Weak::upgrade) {
            tap.lose();
        }
    }

    fn lane_ended(self: &Rc<Self>, worker: &Rc<Worker>, lane: &Rc<Lane>, end: &LaneEnd) {
        self.lanes.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, lane));
        self.spares.retain(|known| !Rc::ptr_eq(known, lane));
        for reader in self.readers.borrow_mut().iter_mut() {
            reader.lanes.retain(|_, known| !Rc::ptr_eq(known, lane));
        }
        self.open.borrow_mut().remove(&lane.number);
        let wreck = lane.salvage(worker.commands());
        match end {
            LaneEnd::Released => debug!(lane = lane.number, "lane closed"),
            LaneEnd::Refused => info!(lane = lane.number, refused = wreck.refused(), "lane closed: {end}"),
            LaneEnd::Poisoned => warn!(lane = lane.number, "lane closed: {end}"),
            // It is there, and the master; whoever asked is told what it said (rule B1).
            LaneEnd::Connect(ConnectError::Refused(_, line)) if is_no_loss(line) => {
                debug!(lane = lane.number, "lane not opened: {end}");
            }
            LaneEnd::Connect(_) | LaneEnd::Eof | LaneEnd::Network(_) => {
                info!(lane = lane.number, "lane lost: {end}");
                self.lost(worker, &lane.target);
            }
        }
        if let Some(session) = wreck.interrupted() {
            session.close(CloseReason::ReplyCutOff);
        }
        for (session, lost) in wreck.by_session() {
            match end {
                LaneEnd::Connect(ConnectError::Refused(_, line)) if is_no_loss(line) => {
                    session.login_refused(&lost, line)
                }
                _ => session.lane_lost(lane, lost),
            }
        }
        worker.flush_dirty();
    }

    /// Takes a lane out of service that Redis refuses commands on; what it still answers is waited for, not long.
    pub fn lane_refused(self: &Rc<Self>, worker: &Rc<Worker>, lane: &Rc<Lane>) {
        info!(
            lane = lane.number,
            "redis refuses commands: looking for the master again"
        );
        self.lanes.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, lane));
        self.lost(worker, &lane.target);
        let lane = lane.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LAST_REPLIES).await;
            lane.abandon();
        });
    }

    /// Somebody could not reach the master, or was refused as by a replica.
    pub fn suspect(self: &Rc<Self>, worker: &Rc<Worker>) {
        if let Some(target) = self.serving() {
            self.lost(worker, &target);
        }
    }

    /// Ends `tap` when there is another master.
    pub fn watch_tap(&self, tap: &Rc<Tap>) {
        let mut taps = self.taps.borrow_mut();
        taps.retain(|tap| tap.strong_count() > 0);
        taps.push(Rc::downgrade(tap));
    }

    /// The master may be gone: it has to be greeted again before it gets more.
    fn lost(self: &Rc<Self>, worker: &Rc<Worker>, target: &Rc<Target>) {
        if self.serving().is_some_and(|serving| serving == *target) {
            self.set(Mastership::Sought(target.clone()));
            self.start_seeking(worker);
        }
    }

    fn start_seeking(self: &Rc<Self>, worker: &Rc<Worker>) {
        if !self.seeking.replace(true) {
            let (shard, worker) = (self.clone(), worker.clone());
            tokio::task::spawn_local(async move { shard.seek(&worker).await });
        }
    }

    /// Looks for the master until it serves, and tells those whose time is up.
    async fn seek(self: Rc<Self>, worker: &Rc<Worker>) {
        let (since_ms, mut wait, mut told) = (clock::monotonic_ms(), RETRY_FIRST, None);
        while !self.removed.get() && self.serving().is_none() {
            match self.greet(worker).await {
                Ok(()) => continue,
                Err(reason) if reason.is_some() && told != reason => {
                    warn!(shard = %self.id, "no master: {}; trying again until there is one", reason.as_deref().unwrap_or_default());
                    told = reason;
                }
                Err(_) => {}
            }
            self.expire_holds(worker);
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_LAST),
                () = self.news.notified() => wait = RETRY_FIRST,
            }
        }
        self.seeking.set(false);
        if let Some(master) = self.serving() {
            info!(shard = %self.id, master = %master.addr, epoch = %master.epoch, after_ms = clock::monotonic_ms() - since_ms, "the master serves");
        }
        self.wake_all();
    }

    /// Greets the master that topology names. An error without a reason: it names none, or another by now.
    async fn greet(&self, worker: &Worker) -> Result<(), Option<String>> {
        let target = match &*self.mastership.borrow() {
            Mastership::Sought(target) => target.clone(),
            Mastership::Nobody | Mastership::Serving(_) => return Err(None),
        };
        let greeting = greet(&target, worker.connect_timeout()).await.map_err(Some)?;
        let told = greeting.run_id.as_deref().map(RunId::from);
        let life = target.run_id.clone().or(told);
        worker.scripts().before_serving(&target.addr, life.as_ref()).await;
        let still = matches!(&*self.mastership.borrow(), Mastership::Sought(sought) if *sought == target);
        if !still {
            return Err(None);
        }
        worker.learn(&greeting);
        self.run_id.replace(life);
        // From here on it may acknowledge what replicas of older epochs never get.
        self.fences.enter(target.epoch);
        self.begin_reign(&target, greeting.run_id);
        self.set(Mastership::Serving(target));
        Ok(())
    }

    /// The same life in the same epoch reigns on: only connections were lost.
    fn begin_reign(&self, target: &Target, run_id: Option<String>) {
        let life = run_id.map(|run_id| format!("{} {run_id}", target.epoch));
        if life.is_none() || *self.life.borrow() != life {
            self.reign.set(Reign(self.reign.get().0.wrapping_add(1)));
        }
        self.life.replace(life);
    }

    fn expire_holds(self: &Rc<Self>, worker: &Worker) {
        let (now_ms, hold_max_ms) = (clock::monotonic_ms(), worker.hold_max_ms());
        let mut holding = std::mem::take(&mut *self.holding.borrow_mut());
        holding.retain(|session| !session.is_closed() && !session.expire_hold(self, now_ms, hold_max_ms));
        self.holding.borrow_mut().extend(holding);
        worker.flush_dirty();
    }

    fn wake_all(&self) {
        for session in std::mem::take(&mut *self.holding.borrow_mut()) {
            session.wake();
        }
    }
}

/// Whether a server refuses a login for reasons that say nothing against it: it runs a script that takes long, or the
/// user may not.
fn is_no_loss(line: &str) -> bool {
    ["-BUSY ", "-NOPERM ", "-NOAUTH ", "-WRONGPASS "]
        .iter()
        .any(|word| line.starts_with(word))
}
