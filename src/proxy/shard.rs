//! One worker's view of one shard: who takes its commands, the lanes that lead there, and who waits while nobody does.
//!
//! ```text
//!            topology names a master        it answers and is one             a switchover begins
//!  Nobody -------------------------> Sought ----------------------> Serving ----------------------> Leaving
//!     ^                                ^                             |   ^                          |  |
//!     +--- election -------------------+--------- lane lost ---------+   +------ taken back --------+  |
//!     ^                                ^------------ the next master is published ---------------------+
//!     +---------------------------------------------- fenced, lost -----------------------------------+
//! ```
//! Owns: holding and re-pointing. Invariants: commands go only to a master that was greeted in its epoch; a lane
//! belongs to one target for life, so that nothing appended for one master ever reaches another; whoever waits is
//! woken when there is a master, or told after `hold_max_ms` that there is none.
//!
//! `seek` looks for the master, `moving` is what a switchover adds, `lanes` what becomes of connections, `witness` the one
//! that proves the epoch and, in `rounds`, acknowledges writes, `acks` who waits for that, `electorate` whose
//! word counts, `toll` what a change cost.

mod acks;
mod electorate;
mod lanes;
mod members;
mod moving;
mod rounds;
mod script_lanes;
mod seek;
mod toll;
mod witness;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info};

use super::backend::{Lane, Login, Pace, Purpose, Tap, Target};
use super::client::Session;
use super::shared::ReplicaFacts;
use super::spares::Spares;
use super::worker::Worker;
use acks::{Doubtful, Holder};
use electorate::Electorate;
use moving::{Ahead, Move};
use script_lanes::ScriptLanes;
use toll::Toll;
use witness::Witness;

pub use rounds::Ticket;

use crate::route::{Ask, Choice, ShardFences, Standing, Stickiness, choose};
use crate::topology::{self, Epoch, Phase, RunId, ShardId};

/// How long a lane is listened to that gets no more commands.
const LAST_REPLIES: Duration = Duration::from_secs(1);
/// How long a replica is left alone that a lane could not be opened to.
const REST_MS: u64 = 20;
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
    /// The same, but it is about to be another: what may change something waits.
    Leaving(Rc<Target>),
}

/// A replica that reads may go to.
struct Reader {
    target: Rc<Target>,
    facts: Arc<ReplicaFacts>,
    lanes: HashMap<Login, Rc<Lane>>,
    /// No lane is opened before.
    rests_until_ms: u64,
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
    /// The switchover that topology says is under way.
    moving: RefCell<Option<Move>>,
    /// Whether the lanes' progress matters to that.
    drains: Cell<bool>,
    /// What was made ready for the next master.
    ahead: RefCell<Option<Ahead>>,
    /// What proves that the master is still one.
    witness: RefCell<Option<Witness>>,
    /// W of the last epoch that was heard of.
    acks: Cell<u32>,
    /// Whose acknowledgements count.
    electorate: RefCell<Electorate>,
    /// Who holds replies that are not acknowledged.
    holders: RefCell<Vec<Holder>>,
    /// What may be lost yet although its client heard of it.
    doubtful: RefCell<Option<Doubtful>>,
    /// What the change under way costs.
    toll: RefCell<Toll>,
    /// How many shards of all workers have no master that serves.
    unserved: Arc<AtomicUsize>,
    /// Whether [`Shard::seek`] is running.
    seeking: Cell<bool>,
    /// Topology removed it: nothing waits for it any more.
    removed: Cell<bool>,
    /// Of another master the proxy would not hear: none is believed in (`stale_reads`).
    deaf: Cell<bool>,
    news: Notify,
    /// The shared lanes that take newcomers.
    lanes: RefCell<HashMap<Login, Rc<Lane>>>,
    /// Those for scripts.
    script_lanes: ScriptLanes,
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
            moving: RefCell::default(),
            drains: Cell::new(false),
            ahead: RefCell::default(),
            witness: RefCell::default(),
            acks: Cell::new(0),
            electorate: RefCell::default(),
            holders: RefCell::default(),
            doubtful: RefCell::default(),
            toll: RefCell::default(),
            unserved,
            seeking: Cell::new(false),
            removed: Cell::new(false),
            deaf: Cell::new(false),
            news: Notify::new(),
            lanes: RefCell::default(),
            script_lanes: ScriptLanes::default(),
            readers: RefCell::default(),
            fences,
            spares: Spares::default(),
            open: RefCell::default(),
            taps: RefCell::default(),
            holding: RefCell::default(),
        })
    }

    /// The shared lane of a login to the master, opened if need be; `None` while there is no master, or while the one
    /// there is must get nothing that may change something and this does (`changes`).
    pub fn lane(self: &Rc<Self>, worker: &Rc<Worker>, login: &Login, changes: bool) -> Option<Rc<Lane>> {
        let target = if changes { self.serving() } else { self.answering() }?;
        if let Some(lane) = self.lanes.borrow().get(login) {
            return Some(lane.clone());
        }
        let lane = self.open_to_master(worker, login, target);
        self.lanes.borrow_mut().insert(login.clone(), lane.clone());
        Some(lane)
    }

    /// The lane to the master that a run takes: one for scripts if it has some, and for a session that has something in
    /// flight on such a one already (`stays_on`) the same, so that it does not have to wait. `None` as in [`Shard::lane`].
    pub fn lane_for(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        login: &Login,
        changes: bool,
        scripts: bool,
        stays_on: Option<&Rc<Lane>>,
    ) -> Option<Rc<Lane>> {
        let target = if changes { self.serving() } else { self.answering() }?;
        if let Some(lane) = stays_on.filter(|lane| self.script_lanes.has(login, lane)) {
            return Some(lane.clone());
        }
        if scripts {
            let open = || self.open_to_master(worker, login, target);
            return Some(self.script_lanes.take(login, open));
        }
        self.lane(worker, login, changes)
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
        if self.deaf.get() {
            return None;
        }
        let mut readers = self.readers.borrow_mut();
        for reader in readers.iter_mut().filter(|reader| reader.facts.is_in_service()) {
            if !reader.lanes.contains_key(login) && reader.rests_until_ms <= ask.now_ms {
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

    /// The master, if it takes commands of all kinds.
    pub fn serving(&self) -> Option<Rc<Target>> {
        match &*self.mastership.borrow() {
            Mastership::Serving(target) => Some(target.clone()),
            Mastership::Nobody | Mastership::Sought(_) | Mastership::Leaving(_) => None,
        }
    }

    /// The master, if it answers what changes nothing.
    pub fn answering(&self) -> Option<Rc<Target>> {
        match &*self.mastership.borrow() {
            Mastership::Serving(target) | Mastership::Leaving(target) => Some(target.clone()),
            Mastership::Nobody | Mastership::Sought(_) => None,
        }
    }

    /// The reign of the master that serves, or served last.
    pub fn reign(&self) -> Reign {
        self.reign.get()
    }

    /// Which life is at a master's place, where that is known.
    pub fn life_of(&self, target: &Target) -> Option<RunId> {
        let greeted = || {
            let serves = self.answering().is_some_and(|serving| *serving == *target);
            self.run_id.borrow().clone().filter(|_| serves)
        };
        target.run_id.clone().or_else(greeted)
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
        self.acks.set(worker.acks(offered.ack_replicas));
        self.follow_members(offered);
        let named = offered.master.as_ref().map(|master| {
            let pass = worker.pass(&self.id, offered.epoch, master.run_id.as_ref());
            Target::master(master, offered.epoch, worker.acks(offered.ack_replicas), pass)
        });
        match (offered.phase, named, &offered.switch) {
            (Phase::Serving, Some(named), _) => self.go_to(worker, named, offered),
            (Phase::Switching, Some(named), Some(switch)) => self.leave(worker, named, switch, offered),
            (Phase::Serving | Phase::Electing | Phase::Switching, _, _) => self.be_without(offered.epoch),
        }
    }

    /// What is in flight may still be answered; nothing new is sent.
    fn be_without(&self, epoch: Epoch) {
        self.stay();
        if !matches!(self.set(Mastership::Nobody), Mastership::Nobody) {
            self.toll_begins();
            info!(shard = %self.id, %epoch, "the shard has no master now; commands are held");
        }
    }

    /// Follows to the master that is published.
    fn go_to(self: &Rc<Self>, worker: &Rc<Worker>, named: Target, offered: &topology::Shard) {
        self.follow_readers(worker, offered, &named);
        let known = match &*self.mastership.borrow() {
            Mastership::Nobody => None,
            Mastership::Sought(target) | Mastership::Serving(target) | Mastership::Leaving(target) => {
                Some(target.clone())
            }
        };
        if let Some(target) = known.filter(|target| **target == named) {
            self.take_back(target);
            return;
        }
        self.toll_begins();
        if !self.arrive(&named) {
            self.depose_fenced();
            self.abandon_lanes(Some(&named));
        }
        self.set(Mastership::Sought(Rc::new(named)));
        self.news.notify_one();
        self.start_seeking(worker);
    }

    /// Topology has no such shard any more.
    pub fn remove(&self) {
        self.stay();
        self.set(Mastership::Nobody);
        self.removed.set(true);
        self.unserved.fetch_sub(1, Ordering::Relaxed);
        self.abandon_lanes(None);
        self.witness.take();
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
        self.script_lanes.retain(|lane| {
            let stays = lane.idle_ticks() < ticks_max;
            if !stays {
                lane.release();
            }
            stays
        });
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
        let pass = worker.pass(&self.id, offered.epoch, master.run_id.as_ref());
        let readers = replicas.map(|node| {
            let target = Target::replica(node, offered.epoch, pass.clone());
            let known = before.iter().position(|reader| *reader.target == target);
            known.map(|at| before.swap_remove(at)).unwrap_or_else(|| Reader {
                facts: worker.replicas().facts(&self.id, &node.id, &node.addr, offered.epoch),
                target: Rc::new(target),
                lanes: HashMap::new(),
                rests_until_ms: 0,
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
        let serves = |who: &Mastership| matches!(who, Mastership::Serving(_) | Mastership::Leaving(_));
        let now = serves(&next);
        if !now {
            // One that acknowledges goes on for as long as its lanes may.
            self.witness.borrow_mut().take_if(|witness| !witness.acknowledges());
        }
        let before = self.mastership.replace(next);
        match (serves(&before), now) {
            (false, true) => drop(self.unserved.fetch_sub(1, Ordering::Relaxed)),
            (true, false) => drop(self.unserved.fetch_add(1, Ordering::Relaxed)),
            (false, false) | (true, true) => {}
        }
        before
    }
}
