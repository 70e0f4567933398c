//! What is lost one way only.

use std::time::Duration;

use super::{FAILOVER, Scene};
use crate::cluster::{PROXIES, Shape};
use crate::workload::Promise;

/// Cuts something while clients run, and looks how it goes after it is healed.
#[track_caller]
fn cut(way: impl FnOnce(&Scene, &'static str)) {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    way(&scene, master);
    std::thread::sleep(Duration::from_secs(5));
    eprintln!("{master} -> {:?} {}", scene.cluster.master(), scene.cluster.epoch());
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    scene.end(Promise::Async);
}

#[test]
fn a_master_that_its_replicas_do_not_hear() {
    cut(|scene, master| {
        scene
            .cluster
            .network()
            .cut_one_way(&[master], &scene.cluster.replicas())
    });
}

#[test]
fn a_master_that_does_not_hear_its_replicas() {
    cut(|scene, master| {
        scene
            .cluster
            .network()
            .cut_one_way(&scene.cluster.replicas(), &[master])
    });
}

#[test]
fn a_master_that_nobody_hears() {
    cut(|scene, master| {
        let others = scene.cluster.network().names();
        scene.cluster.network().cut_one_way(&[master], &others);
    });
}

#[test]
fn a_proxy_that_does_not_hear_the_master() {
    cut(|scene, master| scene.cluster.network().cut_one_way(&[master], &[PROXIES[0]]));
}

#[test]
fn a_proxy_that_the_master_does_not_hear() {
    cut(|scene, master| scene.cluster.network().cut_one_way(&[PROXIES[0]], &[master]));
}

#[test]
fn a_master_whose_packets_are_lost_now_and_then() {
    cut(|scene, master| {
        let others = scene.cluster.network().names();
        scene.cluster.network().lose_some(&[master], &others);
    });
}
