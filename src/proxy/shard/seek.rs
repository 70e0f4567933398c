//! Looking for the master that topology names, and what is done when it is found or in doubt.

use std::rc::Rc;
use std::time::Duration;

use tracing::{info, warn};

use super::moving::Ahead;
use super::witness::Witness;
use super::{Mastership, Reign, Shard, Ticket};
use crate::clock;
use crate::proxy::backend::{Greeting, Target, confirm, greet};
use crate::proxy::worker::Worker;
use crate::topology::{Epoch, RunId};

const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LAST: Duration = Duration::from_millis(50);

impl Shard {
    /// Somebody could not reach the master, or was refused as by a replica.
    pub fn suspect(self: &Rc<Self>, worker: &Rc<Worker>) {
        if let Some(target) = self.serving() {
            self.lost(worker, &target);
        }
    }

    /// The master may be gone: it has to be greeted again before it gets more. One that is about to be another is not
    /// looked for: what comes next is told by topology.
    pub(super) fn lost(self: &Rc<Self>, worker: &Rc<Worker>, target: &Rc<Target>) {
        let next = match &*self.mastership.borrow() {
            Mastership::Serving(serving) if serving == target => Mastership::Sought(target.clone()),
            Mastership::Leaving(leaving) if leaving == target => Mastership::Nobody,
            Mastership::Nobody | Mastership::Sought(_) | Mastership::Serving(_) | Mastership::Leaving(_) => return,
        };
        self.toll_begins();
        self.set(next);
        self.start_seeking(worker);
    }

    /// The connection that proves the epoch has ended (rule A15): nothing more is sent to a server that may be fenced. While
    /// a switchover is under way nothing that matters was, so that lanes may stay if it is taken back.
    pub(super) fn witness_lost(self: &Rc<Self>, worker: &Rc<Worker>, target: &Rc<Target>, why: &str) {
        info!(shard = %self.id, master = %target.addr, epoch = %target.epoch, "the witness is lost: {why}");
        if self.serving().is_some_and(|serving| serving == *target) {
            self.depose(target);
        } else if target.acks > 0 {
            self.depose_lanes(target);
        }
        let is_own = |witness: &mut Witness| witness.acknowledges() && *witness.target == **target;
        self.witness.borrow_mut().take_if(is_own);
        if target.acks > 0 {
            self.nobody_acknowledges();
        }
        self.lost(worker, target);
    }

    /// Another master is published while this one seemed to serve: if it is fenced, it is heard out.
    pub(super) fn depose_fenced(&self) {
        let fenced = self.witness.borrow().as_ref().is_some_and(Witness::has_ended);
        if let Some(target) = self.answering().filter(|_| fenced) {
            self.depose(&target);
        }
    }

    /// The proxy hears of masters again, or would not hear of the next one: then the one that it knows may be deposed. It gets
    /// nothing more, and what it has not answered yet is not heard.
    pub fn hear(self: &Rc<Self>, worker: &Rc<Worker>, hears: bool) {
        if self.deaf.replace(!hears) != hears {
            return;
        }
        if hears {
            info!(shard = %self.id, "ZooKeeper or enough agents are heard again");
            self.news.notify_one();
            return;
        }
        warn!(
            shard = %self.id,
            "neither ZooKeeper nor enough agents are heard: commands are held (stale_reads = \"refuse\")"
        );
        let target = self.answering();
        self.abandon_lanes(None);
        self.abandon_readers();
        if let Some(target) = target {
            self.lost(worker, &target);
        }
    }

    /// Whether the proxy would not hear of another master.
    pub fn is_deaf(&self) -> bool {
        self.deaf.get()
    }

    pub(super) fn start_seeking(self: &Rc<Self>, worker: &Rc<Worker>) {
        if !self.seeking.replace(true) {
            let (shard, worker) = (self.clone(), worker.clone());
            tokio::task::spawn_local(async move { shard.seek(&worker).await });
        }
    }

    /// Looks for the master until it serves, and tells those whose time is up.
    async fn seek(self: Rc<Self>, worker: &Rc<Worker>) {
        let (since_ms, mut wait, mut told) = (clock::monotonic_ms(), RETRY_FIRST, None);
        while !self.removed.get() && self.serving().is_none() {
            let Some(greeted) = self.greet_in_time(worker).await else {
                wait = RETRY_FIRST;
                continue;
            };
            match greeted {
                Ok(()) => {
                    // Perhaps only for what changes nothing.
                    self.wake_all();
                    continue;
                }
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

    /// Greets the master, and meanwhile tells those whose time is up: a host that is away answers nothing. `None`: there is news.
    async fn greet_in_time(self: &Rc<Self>, worker: &Rc<Worker>) -> Option<Result<(), Option<String>>> {
        let mut greeting = std::pin::pin!(self.greet(worker));
        loop {
            tokio::select! {
                biased;
                () = self.news.notified() => return None,
                greeted = &mut greeting => return Some(greeted),
                () = tokio::time::sleep(RETRY_LAST) => self.expire_holds(worker),
            }
        }
    }

    /// Greets the master that topology names. An error without a reason: it names none, or another by now.
    async fn greet(self: &Rc<Self>, worker: &Rc<Worker>) -> Result<(), Option<String>> {
        let target = match &*self.mastership.borrow() {
            Mastership::Sought(_) if self.deaf.get() => return Err(None),
            Mastership::Sought(target) => target.clone(),
            Mastership::Nobody | Mastership::Serving(_) | Mastership::Leaving(_) => return Err(None),
        };
        let mut ahead = self.ahead.borrow_mut().take_if(|ahead| *ahead.target == *target);
        let (greeting, stream) = match self.confirm(worker, ahead.as_mut(), &target).await {
            Some(greeted) => greeted,
            None => {
                ahead = None;
                greet(&target, worker.connect_timeout()).await.map_err(Some)?
            }
        };
        let told = greeting.run_id.as_deref().map(RunId::from);
        let life = target.run_id.clone().or(told);
        worker.scripts().before_serving(&target.addr, life.as_ref()).await;
        let still = matches!(&*self.mastership.borrow(), Mastership::Sought(sought) if *sought == target);
        let still = still && !self.deaf.get();
        if !still {
            return Err(None);
        }
        worker.learn(&greeting);
        if let Some(life) = &greeting.run_id {
            worker.vocabulary().greeted(&target, life);
        }
        self.run_id.replace(life);
        // From here on it may acknowledge what replicas of older epochs never get.
        self.fences.enter(target.epoch);
        self.begin_reign(&target, greeting.run_id);
        if let Some(ahead) = ahead {
            // One may have ended while it was nowhere to be found.
            let alive = ahead.into_lanes().into_iter().filter(|(_, lane)| !lane.has_ended());
            self.lanes.borrow_mut().extend(alive);
        }
        self.witnessed(worker, &target, stream);
        self.serve(worker, target);
        Ok(())
    }

    /// Keeps the connection on which a master was greeted, unless there is one to the same already that acknowledges.
    fn witnessed(self: &Rc<Self>, worker: &Rc<Worker>, target: &Rc<Target>, stream: tokio::net::TcpStream) {
        if target.pass.is_none() && target.acks == 0 {
            return;
        }
        let before = self.witness.take();
        let lives = |witness: &Witness| witness.acknowledges() && *witness.target == **target && !witness.has_ended();
        if before.as_ref().is_some_and(lives) {
            self.witness.replace(before);
            return;
        }
        let last = before.as_ref().map_or_else(Ticket::default, Witness::last);
        drop(before);
        self.witness
            .replace(Some(Witness::keep(self, worker, target, stream, last)));
        self.doubts_anew();
    }

    /// Asks over the connection that was opened ahead; `None` if there is none that is of use.
    async fn confirm(
        &self,
        worker: &Worker,
        ahead: Option<&mut Ahead>,
        target: &Target,
    ) -> Option<(Greeting, tokio::net::TcpStream)> {
        let stream = ahead?.stream.take()?;
        match confirm(stream, target, worker.connect_timeout()).await {
            Ok(greeted) => Some(greeted),
            Err(reason) => {
                info!(shard = %self.id, "what was opened ahead is of no use: {reason}");
                None
            }
        }
    }

    fn serve(self: &Rc<Self>, worker: &Rc<Worker>, target: Rc<Target>) {
        let epoch = target.epoch;
        if self.moving.borrow().is_some() {
            self.set(Mastership::Leaving(target));
            return;
        }
        self.set(Mastership::Serving(target));
        self.toll_ends(worker, epoch);
    }

    /// The same life in the same epoch reigns on: only connections were lost.
    fn begin_reign(&self, target: &Target, run_id: Option<String>) {
        let life = run_id.map(|run_id| life(target.epoch, &run_id));
        if life.is_none() || *self.life.borrow() != life {
            self.reign.set(Reign(self.reign.get().0.wrapping_add(1)));
        }
        self.life.replace(life);
    }

    /// The data of `from` reign on at `to`: nothing was lost between them (rule A6).
    pub(super) fn reign_on(&self, from: &Target, to: &Target) {
        let (Some(old), Some(new)) = (&from.run_id, &to.run_id) else {
            return;
        };
        let mut reigning = self.life.borrow_mut();
        if reigning.as_deref() == Some(&life(from.epoch, old.as_str())) {
            *reigning = Some(life(to.epoch, new.as_str()));
        }
    }

    fn expire_holds(self: &Rc<Self>, worker: &Worker) {
        let (now_ms, hold_max_ms) = (clock::monotonic_ms(), worker.hold_max_ms());
        let mut holding = std::mem::take(&mut *self.holding.borrow_mut());
        holding.retain(|session| !session.is_closed() && !session.expire_hold(self, now_ms, hold_max_ms));
        self.holding.borrow_mut().extend(holding);
        worker.flush_dirty();
    }

    pub(super) fn wake_all(&self) {
        for session in std::mem::take(&mut *self.holding.borrow_mut()) {
            session.wake();
        }
    }
}

/// A master in its epoch, by one name.
fn life(epoch: Epoch, run_id: &str) -> String {
    format!("{epoch} {run_id}")
}
