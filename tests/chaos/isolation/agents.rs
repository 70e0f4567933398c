//! Agents dead while their Redis serve.

use std::time::Duration;

use super::Scene;
use crate::cluster::{NODES, Shape};
use crate::workload::Promise;

#[test]
fn while_all_agents_are_dead_everything_serves_on() {
    let Some(mut scene) = Scene::start(Shape::default()) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master(), scene.cluster.epoch());
    for node in NODES {
        scene.cluster.kill_agent(node);
    }
    // Longer than their sessions live.
    scene.goes_on(&[0, 1], Duration::from_secs(4));
    for node in NODES {
        scene.cluster.start_agent(node);
    }
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (master, epoch));
    let findings = scene.end(Promise::Kept);
    for told in findings.told {
        assert_eq!((told.in_doubt, told.not_done, told.closed), (0, 0, 0), "{told}");
    }
}
