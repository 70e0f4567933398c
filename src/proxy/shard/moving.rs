//! A planned change of master, as one worker goes through it (rule R8).
//!
//! ```text
//! switching --> writes wait --all answered--> DRAINED          published --> confirm --> lanes opened ahead take over
//!          '--> connect to the next master, lanes for the logins in use -------^
//! ```
//! Owns: whether writes are in flight, and what is made ready ahead. Invariants: from the moment on that this worker says
//! it is drained, nothing that may change something goes to the old master until the move is taken back; what was opened
//! ahead gets its first command only once its server has proven the epoch, on a connection opened before it.

use std::collections::HashMap;
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tracing::{debug, info};

use super::{Mastership, Shard};
use crate::proxy::backend::{Lane, Login, Target, connect_mute};
use crate::proxy::handover::What;
use crate::proxy::worker::Worker;
use crate::topology::{self, Master, Switch};

/// Lanes that are opened ahead.
const AHEAD_MAX: usize = 16;

/// A move that topology says is under way.
pub(super) struct Move {
    switch: Switch,
    from: Rc<Target>,
    /// This worker has said that it is drained.
    told: bool,
    preparing: Option<AbortHandle>,
}

impl Drop for Move {
    fn drop(&mut self) {
        if let Some(preparing) = &self.preparing {
            preparing.abort();
        }
    }
}

/// What is ready for the next master.
pub(super) struct Ahead {
    /// Who it will be.
    pub target: Rc<Target>,
    /// A connection on which nothing was said yet. As long as it lives, whoever listens there is the same process.
    pub stream: Option<TcpStream>,
    lanes: HashMap<Login, Rc<Lane>>,
}

impl Ahead {
    /// A lane of it has ended.
    pub fn forget(&mut self, lane: &Rc<Lane>) {
        self.lanes.retain(|_, known| !Rc::ptr_eq(known, lane));
    }

    /// Its lanes, to be used.
    pub fn into_lanes(mut self) -> HashMap<Login, Rc<Lane>> {
        std::mem::take(&mut self.lanes)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for lane in self.lanes.values() {
            lane.release();
        }
    }
}

impl Shard {
    /// Whether the master is about to be another, so that what may change something has to wait.
    #[inline]
    pub fn is_leaving(&self) -> bool {
        matches!(&*self.mastership.borrow(), Mastership::Leaving(_))
    }

    /// Topology says that the master, `named`, is being moved.
    pub(super) fn leave(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        named: Target,
        switch: &Switch,
        offered: &topology::Shard,
    ) {
        let is_known = |known: &Move| known.switch == *switch && *known.from == named;
        if self.moving.borrow().as_ref().is_some_and(is_known) {
            return;
        }
        self.stay();
        self.toll_begins();
        info!(shard = %self.id, from = %named.node, to = %switch.to, epoch = %switch.epoch, "the master moves; writes are held");
        let from = self.hold_writes(worker, named, offered);
        self.moving.replace(Some(Move {
            switch: switch.clone(),
            from: from.clone(),
            told: false,
            preparing: self.go_ahead(worker, switch, offered),
        }));
        self.drains.set(true);
        self.drained_some(worker);
    }

    fn hold_writes(self: &Rc<Self>, worker: &Rc<Worker>, named: Target, offered: &topology::Shard) -> Rc<Target> {
        let (known, answers) = match &*self.mastership.borrow() {
            Mastership::Serving(target) | Mastership::Leaving(target) => (Some(target.clone()), true),
            Mastership::Sought(target) => (Some(target.clone()), false),
            Mastership::Nobody => (None, false),
        };
        if let Some(known) = known.filter(|known| **known == named) {
            if answers {
                self.set(Mastership::Leaving(known.clone()));
            }
            return known;
        }
        self.follow_readers(worker, offered, &named);
        self.abandon_lanes(Some(&named));
        let named = Rc::new(named);
        self.set(Mastership::Sought(named.clone()));
        self.news.notify_one();
        self.start_seeking(worker);
        named
    }

    /// Connects to who will be master, so that it costs nothing to go there.
    fn go_ahead(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        switch: &Switch,
        offered: &topology::Shard,
    ) -> Option<AbortHandle> {
        let node = offered.nodes.iter().find(|node| node.id == switch.to)?;
        let master = Master {
            node: node.id.clone(),
            addr: node.addr.clone(),
            run_id: Some(node.run_id.clone()?),
        };
        let pass = worker.pass(&self.id, switch.epoch, master.run_id.as_ref());
        let acks = worker.acks(offered.ack_replicas);
        let target = Rc::new(Target::master(&master, switch.epoch, acks, pass));
        let (shard, worker) = (self.clone(), worker.clone());
        let preparing = tokio::task::spawn_local(async move {
            match connect_mute(&target.addr, worker.connect_timeout()).await {
                Ok(stream) => shard.open_ahead(&worker, target, stream),
                Err(error) => debug!(shard = %shard.id, "nothing is made ready ahead: {error}"),
            }
        });
        Some(preparing.abort_handle())
    }

    fn open_ahead(self: &Rc<Self>, worker: &Rc<Worker>, target: Rc<Target>, stream: TcpStream) {
        let logins: Vec<Login> = self.lanes.borrow().keys().take(AHEAD_MAX).cloned().collect();
        let open = |login: Login| {
            let lane = self.open_to_master(worker, &login, target.clone());
            lane.go_ahead();
            (login, lane)
        };
        let lanes = logins.into_iter().map(open).collect();
        let stream = Some(stream);
        self.ahead.replace(Some(Ahead { target, stream, lanes }));
    }

    /// Topology names the master that is known already: a move is taken back, if there was one.
    pub(super) fn take_back(&self, target: Rc<Target>) {
        // What was made ready for this very master stays until it is greeted.
        if self.moving.borrow().is_none() {
            return;
        }
        let was_leaving = self.is_leaving();
        self.stay();
        if was_leaving {
            info!(shard = %self.id, master = %target.addr, "the master stays after all");
            self.set(Mastership::Serving(target));
            self.toll_is_void();
            self.news.notify_one();
        }
    }

    /// No move is under way any more, and what was made ready for it is given up.
    pub(super) fn stay(&self) {
        self.drains.set(false);
        self.moving.take();
        self.ahead.take();
    }

    /// Whether the published master is what the move was for: then its predecessor's last replies are heard, and what
    /// was made ready stays.
    pub(super) fn arrive(&self, named: &Target) -> bool {
        self.drains.set(false);
        let moved = self.moving.take();
        let is_meant = |moved: &Move| moved.switch.epoch == named.epoch && moved.switch.to == named.node;
        let Some(moved) = moved.filter(is_meant) else {
            self.ahead.take();
            return false;
        };
        self.ahead.borrow_mut().take_if(|ahead| *ahead.target != *named);
        self.reign_on(&moved.from, named);
        if moved.from.acks > 0 {
            // What it still answers, nobody acknowledges.
            self.depose_lanes(&moved.from);
        }
        self.retire_lanes(named);
        true
    }

    /// Something was answered: while a move is under way, the last write may have been.
    #[inline]
    pub fn drained_some(&self, worker: &Worker) {
        if self.drains.get() {
            self.look_whether_drained(worker);
        }
    }

    fn look_whether_drained(&self, worker: &Worker) {
        let (epoch, course) = {
            let mut moving = self.moving.borrow_mut();
            let Some(moving) = moving.as_mut().filter(|moving| !moving.told) else {
                return;
            };
            let of_old = |lane: &&Rc<Lane>| !lane.is_reader() && lane.target.epoch <= moving.from.epoch;
            if self
                .open
                .borrow()
                .values()
                .filter(of_old)
                .any(|lane| lane.has_write_in_flight())
            {
                return;
            }
            if self.living_taps().iter().any(|tap| tap.is_writing()) {
                return;
            }
            moving.told = true;
            (moving.switch.epoch, moving.switch.course.clone())
        };
        self.drains.set(false);
        debug!(shard = %self.id, %epoch, "no write is in flight");
        worker.tell(&self.id, epoch, What::Drained(course));
    }
}
