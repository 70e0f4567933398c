//! Parts cut off from each other in every way, and what clients see. The table of docs/isolation.md has a row for each
//! test.

mod agents;
mod ensemble;
mod master;
mod oneway;
mod paused;
mod proxies;
mod unheard;

use std::time::Duration;

use pointsman::clock;

use crate::cluster::{Cluster, Shape};
use crate::workload::{self, Findings, Promise, Told, Workload};

/// How soon clients get on where nothing is wrong for them, on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// How soon they do after a failover whose cause takes a second or two to be believed.
const FAILOVER: Duration = Duration::from_secs(15);

/// How long a proxy lets a client wait for a master, and for an answer of one that is silent, and some more.
const REFUSAL: Duration = Duration::from_secs(13);

/// One server of ZooKeeper; a replica acknowledges what is written.
const SMALL: Shape = Shape {
    zookeepers: 1,
    w: 1,
    reads: "master",
    session_ms: 2000,
};
/// Three of them.
const ENSEMBLE: Shape = Shape { zookeepers: 3, ..SMALL };

/// A cluster under load.
struct Scene {
    cluster: Cluster,
    workload: Workload,
}

impl Scene {
    /// Starts both. `None` where there can be no hosts.
    #[track_caller]
    fn start(shape: Shape) -> Option<Self> {
        let cluster = Cluster::start(shape)?;
        let workload = Workload::start(&cluster, 1, workload::PIPELINE);
        let scene = Self { cluster, workload };
        scene.get_on(&[0, 1], SOON);
        Some(scene)
    }

    /// Waits until the clients of these proxies get on.
    #[track_caller]
    fn get_on(&self, proxies: &[usize], deadline: Duration) {
        let done = self.workload.gets_on(proxies, deadline);
        assert!(done, "clients of {proxies:?} do not get on within {deadline:?}");
    }

    /// Waits for so long, while the clients of these proxies get on all the time.
    #[track_caller]
    fn goes_on(&self, proxies: &[usize], length: Duration) {
        let end = clock::now() + length;
        while clock::now() < end {
            self.get_on(proxies, SOON);
        }
    }

    /// Who is master, and in which epoch.
    #[track_caller]
    fn reign(&self) -> (&'static str, u64) {
        (self.cluster.master().unwrap(), self.cluster.epoch())
    }

    /// Heals the network in which the first proxy was cut off: its clients had been refused, the others noticed nothing, and
    /// `reign` stood all the time.
    #[track_caller]
    fn heals_for_the_first_proxy(self, reign: (&str, u64)) {
        assert_eq!(self.reign(), reign);
        self.cluster.network().heal();
        self.get_on(&[0, 1], FAILOVER);
        let [cut, other] = self.end().told;
        refused(cut);
        undisturbed(other);
    }

    /// Puts everything in order, waits until it is, and checks what the clients were told.
    #[track_caller]
    fn end(mut self) -> Findings {
        self.cluster.revive();
        self.cluster.recovers();
        self.get_on(&[0, 1], FAILOVER);
        let findings = self.workload.end(&self.cluster);
        let [one, other] = findings.told;
        eprintln!("p1: {one}\np2: {other}\nlost of acknowledged: {:?}", findings.lost());
        let promise = if self.cluster.w() > 0 {
            Promise::Kept
        } else {
            Promise::Async
        };
        let wrong = findings.wrong(promise);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        self.cluster.assert_sound();
        findings
    }
}

/// Nothing happened to clients.
#[track_caller]
fn undisturbed(told: Told) {
    assert_eq!((told.in_doubt, told.not_done, told.closed), (0, 0, 0), "{told}");
    assert!(told.gap_ms < millis(SOON), "{told}");
}

/// Clients waited, and may have been told of writes that nobody can know about.
#[track_caller]
fn waited(told: Told, longest: Duration) {
    assert_eq!((told.not_done, told.closed), (0, 0), "{told}");
    assert!(told.gap_ms < millis(longest), "{told}");
}

/// Clients were refused, but kept their connections and had an answer in time.
#[track_caller]
fn refused(told: Told) {
    assert!(told.not_done > 0 && told.closed == 0, "{told}");
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap()
}
