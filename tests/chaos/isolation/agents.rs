//! Agents dead while their Redis serve.

use std::time::Duration;

use super::{FAILOVER, SMALL, Scene, undisturbed, waited};
use crate::cluster::Shape;

/// All agents die; nobody notices. Then they are back.
#[track_caller]
pub(super) fn everything_serves_on_without(shape: Shape) {
    let Some(mut scene) = Scene::start(shape) else { return };
    let reign = scene.reign();
    scene.cluster.kill_agents();
    // Longer than their sessions live.
    scene.goes_on(&[0, 1], Duration::from_secs(4));
    scene.cluster.start_agents();
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(undisturbed);
}

#[test]
fn while_all_agents_are_dead_everything_serves_on() {
    everything_serves_on_without(SMALL);
}

#[test]
fn a_master_without_an_agent_that_dies_is_replaced() {
    let Some(mut scene) = Scene::start(SMALL) else { return };
    let (master, _) = scene.reign();
    scene.cluster.kill_agent(master);
    scene.goes_on(&[0, 1], Duration::from_secs(4));
    assert_eq!(scene.cluster.master(), Some(master));
    scene.cluster.kill_server(master);
    scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}
