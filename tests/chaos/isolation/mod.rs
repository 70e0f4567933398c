//! Parts cut off from each other in every way, and what clients see. The table of docs/isolation.md has a row for each
//! test.

mod agents;
mod ensemble;
mod master;
mod oneway;
mod paused;
mod proxies;

use std::time::Duration;

use crate::cluster::{Cluster, Shape};
use crate::workload::{Findings, Promise, Workload};

/// How soon clients get on where nothing is wrong for them, on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// How soon they do after a failover whose cause takes a second or two to be believed.
const FAILOVER: Duration = Duration::from_secs(15);

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
        let workload = Workload::start(&cluster, 1);
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
        let end = pointsman::clock::now() + length;
        while pointsman::clock::now() < end {
            self.get_on(proxies, SOON);
        }
    }

    /// Puts everything in order, waits until it is, and checks what the clients were told.
    #[track_caller]
    fn end(mut self, promise: Promise) -> Findings {
        self.cluster.revive();
        self.cluster.recovers();
        self.get_on(&[0, 1], FAILOVER);
        let findings = self.workload.end(&self.cluster);
        let [one, other] = findings.told;
        eprintln!("p1: {one}\np2: {other}\nlost of acknowledged: {:?}", findings.lost());
        let wrong = findings.wrong(promise);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        self.cluster.assert_sound();
        findings
    }
}
