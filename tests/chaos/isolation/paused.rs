//! A host that stands still and goes on, as a virtual machine does that is paused or moved.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{FAILOVER, Scene};
use crate::cluster::Shape;
use crate::workload::Promise;

fn signal(scene: &mut Scene, node: &str, signal: Signal) {
    scene.cluster.signal_server(node, signal);
    scene.cluster.signal_agent(node, signal);
}

#[test]
fn a_master_that_is_paused_and_resumed_is_replaced_and_comes_back_as_a_replica() {
    let Some(mut scene) = Scene::start(Shape::default()) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    signal(&mut scene, master, Signal::SIGSTOP);
    let next = scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    signal(&mut scene, master, Signal::SIGCONT);
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!(scene.cluster.master(), Some(next));
    scene.end(Promise::Async);
}

#[test]
fn a_master_that_is_paused_for_a_moment_stays_master() {
    let Some(mut scene) = Scene::start(Shape::default()) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master(), scene.cluster.epoch());
    signal(&mut scene, master.unwrap(), Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(400));
    signal(&mut scene, master.unwrap(), Signal::SIGCONT);
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (master, epoch));
    scene.end(Promise::Kept);
}
