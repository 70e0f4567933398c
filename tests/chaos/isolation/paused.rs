//! A host that stands still and goes on, as a virtual machine does that is paused or moved.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{FAILOVER, SMALL, SOON, Scene, waited};

/// A pause that nobody takes for a death.
const SHORT: Duration = Duration::from_millis(400);

fn signal(scene: &mut Scene, node: &str, signal: Signal) {
    scene.cluster.signal_server(node, signal);
    scene.cluster.signal_agent(node, signal);
}

#[test]
fn a_master_that_is_paused_is_replaced_and_goes_on_as_a_replica() {
    let Some(mut scene) = Scene::start(SMALL) else { return };
    let master = scene.cluster.master().unwrap();
    signal(&mut scene, master, Signal::SIGSTOP);
    let next = scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    signal(&mut scene, master, Signal::SIGCONT);
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!(scene.cluster.master(), Some(next));
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}

#[test]
fn a_master_that_is_paused_for_a_moment_stays_master() {
    let Some(mut scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    signal(&mut scene, reign.0, Signal::SIGSTOP);
    thread::sleep(SHORT);
    signal(&mut scene, reign.0, Signal::SIGCONT);
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(|told| waited(told, SOON));
}
