//! A proxy cut off.

use std::thread;
use std::time::Duration;

use super::{FAILOVER, REFUSAL, SMALL, SOON, Scene, waited};
use crate::cluster::PROXIES;

#[test]
fn a_proxy_without_zookeeper_serves_on_and_follows_a_failover() {
    let Some(mut scene) = Scene::start(SMALL) else { return };
    scene.cluster.network().cut(&[PROXIES[0]], scene.cluster.ensemble());
    scene.goes_on(&[0, 1], Duration::from_secs(4));
    let master = scene.cluster.master().unwrap();
    scene.cluster.kill_server(master);
    scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}

#[test]
fn a_proxy_without_the_master_says_so_and_others_serve_on() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    scene.cluster.network().cut(&[PROXIES[0]], &[reign.0]);
    thread::sleep(REFUSAL);
    scene.get_on(&[1], SOON);
    scene.heals_for_the_first_proxy(reign);
}

#[test]
fn a_proxy_without_anybody_says_so_and_others_serve_on() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    scene.cluster.network().isolate(&[PROXIES[0]], &[]);
    thread::sleep(REFUSAL);
    scene.get_on(&[1], SOON);
    scene.heals_for_the_first_proxy(reign);
}
