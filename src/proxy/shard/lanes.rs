//! What becomes of a shard's connections: opened, retired with their master, lost, refused.

use std::rc::{Rc, Weak};

use tracing::{debug, info, warn};

use super::{LAST_REPLIES, REST_MS, Shard};
use crate::clock;
use crate::proxy::backend::{ConnectError, Lane, LaneEnd, Login, Purpose, Tap, Target};
use crate::proxy::client::CloseReason;
use crate::proxy::worker::Worker;
use crate::route::FenceLog;

impl Shard {
    pub(super) fn open_to_master(self: &Rc<Self>, worker: &Rc<Worker>, login: &Login, target: Rc<Target>) -> Rc<Lane> {
        let log = || FenceLog::new(worker.fences().clone(), self.fences.clone());
        self.open(worker, login, target, Purpose::Master(worker.splits_reads().then(log)))
    }

    pub(super) fn open(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        login: &Login,
        target: Rc<Target>,
        purpose: Purpose,
    ) -> Rc<Lane> {
        let lane = Lane::new(worker.next_lane_number(), login.clone(), self.clone(), target, purpose);
        if !lane.is_reader() {
            lane.leads_to(self.life_of(&lane.target), self.is_watched(&lane.target));
        }
        self.open.borrow_mut().insert(lane.number, lane.clone());
        let (worker, running, shard) = (worker.clone(), lane.clone(), self.clone());
        tokio::task::spawn_local(async move {
            let end = running.run(&worker).await;
            shard.lane_ended(&worker, &running, &end);
        });
        lane
    }

    /// Whether a connection would tell at once if the master were started anew, or every connection proves the epoch.
    fn is_watched(&self, target: &Target) -> bool {
        let open = self.open.borrow();
        let mut others = open
            .values()
            .filter(|lane| !lane.is_reader() && *lane.target == *target);
        target.pass.is_some() || others.any(|lane| lane.local_addr().is_some())
    }

    /// Ends all lanes to masters but those to `still`: they lead to a server that is master no more. One that proved it
    /// itself is heard out.
    pub(super) fn abandon_lanes(&self, still: Option<&Target>) {
        let astray = |target: &Target| still.is_none_or(|still| *target != *still);
        for lane in self.take_lanes(astray).iter().filter(|lane| !lane.is_condemned()) {
            lane.abandon();
        }
        self.lose_taps(astray);
    }

    /// Ends all lanes to replicas: reads that are unanswered are asked again.
    pub(super) fn abandon_readers(&self) {
        for reader in self.readers.borrow_mut().iter_mut() {
            for (_, lane) in reader.lanes.drain() {
                lane.abandon();
            }
        }
    }

    /// The same, for a master that was moved on purpose: what it still has to answer is heard, for a while. It is
    /// fenced, so it says nothing that the next master does not know.
    pub(super) fn retire_lanes(&self, still: &Target) {
        let lanes = self.take_lanes(|target| *target != *still);
        for lane in &lanes {
            lane.release();
        }
        abandon_later(lanes);
        self.lose_taps(|target| *target != *still);
    }

    /// Sends nothing more to `target`, which may be fenced. What it still answers is heard: a fence turns it into a replica
    /// in the same moment, so that it executes nothing after it.
    pub(super) fn depose(&self, target: &Target) {
        self.depose_lanes(target);
        self.lose_taps(|there| *there == *target);
    }

    /// The same for lanes only.
    pub(super) fn depose_lanes(&self, target: &Target) {
        let lanes = self.take_lanes(|there| *there == *target);
        for lane in &lanes {
            lane.depose();
        }
        abandon_later(lanes);
    }

    /// The lanes to masters that are meant; none of them takes newcomers any more.
    fn take_lanes(&self, meant: impl Fn(&Target) -> bool) -> Vec<Rc<Lane>> {
        let meant = |lane: &Lane| !lane.is_reader() && meant(&lane.target);
        self.lanes.borrow_mut().retain(|_, lane| !meant(lane));
        self.script_lanes.retain(|lane| !meant(lane));
        self.spares.retain(|lane| !meant(lane));
        let open = self.open.borrow();
        open.values().filter(|lane| meant(lane)).cloned().collect()
    }

    fn lose_taps(&self, meant: impl Fn(&Target) -> bool) {
        for tap in self.living_taps().iter().filter(|tap| meant(&tap.target)) {
            tap.lose();
        }
    }

    /// The connections of subscribers that have not ended.
    pub(super) fn living_taps(&self) -> Vec<Rc<Tap>> {
        self.taps.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    fn lane_ended(self: &Rc<Self>, worker: &Rc<Worker>, lane: &Rc<Lane>, end: &LaneEnd) {
        self.lanes.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, lane));
        self.script_lanes.retain(|known| !Rc::ptr_eq(known, lane));
        self.spares.retain(|known| !Rc::ptr_eq(known, lane));
        for reader in self.readers.borrow_mut().iter_mut() {
            let before = reader.lanes.len();
            reader.lanes.retain(|_, known| !Rc::ptr_eq(known, lane));
            if reader.lanes.len() < before && matches!(end, LaneEnd::Connect(_)) {
                reader.rests_until_ms = clock::monotonic_ms() + REST_MS;
            }
        }
        if let Some(ahead) = &mut *self.ahead.borrow_mut() {
            ahead.forget(lane);
        }
        self.open.borrow_mut().remove(&lane.number);
        let wreck = lane.salvage(worker.commands());
        match end {
            LaneEnd::Released => debug!(lane = lane.number, "lane closed"),
            LaneEnd::Deposed => info!(lane = lane.number, "lane closed: {end}"),
            LaneEnd::Refused => info!(lane = lane.number, refused = wreck.refused(), "lane closed: {end}"),
            LaneEnd::Poisoned => warn!(lane = lane.number, "lane closed: {end}"),
            // It is there, and the master; whoever asked is told what it said (rule B1).
            LaneEnd::Connect(ConnectError::Refused(_, line)) if is_no_loss(line) => {
                debug!(lane = lane.number, "lane not opened: {end}");
                worker.lodge().login_refused(&lane.target, line);
            }
            LaneEnd::Connect(_) | LaneEnd::Eof | LaneEnd::Network(_) => {
                info!(lane = lane.number, "lane lost: {end}");
                self.lost(worker, &lane.target);
            }
        }
        for session in wreck.interrupted() {
            session.close(CloseReason::ReplyCutOff);
        }
        for (session, lost) in wreck.by_session() {
            match end {
                LaneEnd::Connect(ConnectError::Refused(_, line)) if is_no_loss(line) => {
                    session.login_refused(&lost, line)
                }
                _ => session.lane_lost(lane, lost, end.silent_ms(worker.connect_timeout())),
            }
        }
        worker.flush_dirty();
        self.drained_some(worker);
    }

    /// Takes a lane out of service that Redis refuses commands on; what it still answers is waited for, not long.
    pub fn lane_refused(self: &Rc<Self>, worker: &Rc<Worker>, lane: &Rc<Lane>) {
        info!(
            lane = lane.number,
            "redis refuses commands: looking for the master again"
        );
        self.lanes.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, lane));
        self.script_lanes.retain(|known| !Rc::ptr_eq(known, lane));
        self.lost(worker, &lane.target);
        abandon_later(vec![lane.clone()]);
    }

    /// Ends `tap` when there is another master than the server that it leads to.
    pub fn watch_tap(&self, tap: &Rc<Tap>) {
        let mut taps = self.taps.borrow_mut();
        taps.retain(|tap| tap.strong_count() > 0);
        taps.push(Rc::downgrade(tap));
    }
}

/// Listens to lanes for a while yet.
fn abandon_later(lanes: Vec<Rc<Lane>>) {
    if lanes.is_empty() {
        return;
    }
    tokio::task::spawn_local(async move {
        tokio::time::sleep(LAST_REPLIES).await;
        for lane in lanes {
            lane.abandon();
        }
    });
}

/// Whether a server refuses a login for reasons that say nothing against it: it runs a script that takes long, or the
/// user may not.
fn is_no_loss(line: &str) -> bool {
    ["-BUSY ", "-NOPERM ", "-NOAUTH ", "-WRONGPASS "]
        .iter()
        .any(|word| line.starts_with(word))
}
