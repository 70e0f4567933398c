//! Runs of the twin world: a master without acknowledgements that is cut off (rule C7).

use std::time::Duration;

use super::runs::{LIMIT, founded, heals, id};
use super::{Fault, World};
use crate::agent::machine::facts::Role;
use crate::topology::{Epoch, NodeId};

const SEEDS: u64 = 40;

fn reigns(world: &World, node: &NodeId) -> bool {
    world.redis[node]
        .life
        .as_ref()
        .is_some_and(|life| life.role == Role::Master)
}

/// Runs until somebody else is published; at no moment from then on does the old master reign.
fn replaced(world: &mut World, old: &NodeId, within: Duration) {
    let replaced = world.run(within, |world| world.master().is_some_and(|now| now != *old));
    assert!(replaced, "nobody else\n{}", world.story());
    assert!(!reigns(world, old), "two masters\n{}", world.story());
    let again = world.run(Duration::from_secs(2), |world| reigns(world, old));
    assert!(!again, "two masters\n{}", world.story());
}

#[test]
fn a_master_that_hears_nobody_stands_down_before_another_is_elected() {
    for seed in 0..SEEDS {
        let mut world = founded(seed, 0);
        let old = world.master().unwrap();
        world.fail(Fault::Isolate(old.clone()));
        replaced(&mut world, &old, Duration::from_secs(3));
        world.fail(Fault::Heal(old));
        heals(&mut world, "healed");
    }
}

#[test]
fn a_master_whose_replicas_hear_nothing_goes_on_while_the_store_and_proxies_hear_it() {
    for seed in 0..SEEDS {
        let mut world = founded(seed, 0);
        let master = world.master().unwrap();
        world.fail(Fault::Part(master.clone()));
        let lost = world.run(Duration::from_secs(10), |world| {
            world.epoch() != Epoch(1) || !reigns(world, &master)
        });
        assert!(!lost, "seed {seed}\n{}", world.story());
        world.fail(Fault::Heal(master));
        heals(&mut world, "healed");
        assert_eq!(world.epoch(), Epoch(1), "{}", world.story());
    }
}

#[test]
fn once_the_store_is_lost_too_it_stands_down_before_another_is_elected() {
    for seed in 0..SEEDS {
        let mut world = founded(seed, 0);
        let old = world.master().unwrap();
        world.fail(Fault::Part(old.clone()));
        world.run(Duration::from_secs(3), |_| false);
        world.fail(Fault::Isolate(old.clone()));
        replaced(&mut world, &old, Duration::from_secs(4));
        world.fail(Fault::Heal(old));
        heals(&mut world, "healed");
    }
}

#[test]
fn a_master_that_no_proxy_reaches_does_not_keep_others_from_being_elected() {
    for seed in 0..SEEDS {
        let mut world = founded(seed, 0);
        let old = world.master().unwrap();
        world.fail(Fault::Part(old.clone()));
        world.fail(Fault::Unreach(old.clone()));
        replaced(&mut world, &old, Duration::from_secs(6));
        world.fail(Fault::Heal(old));
        heals(&mut world, "healed");
    }
}

#[test]
fn neither_the_store_nor_the_others_alone_are_needed() {
    for (store, other) in [(true, false), (false, true)] {
        let mut world = founded(7, 0);
        let master = world.master().unwrap();
        if store {
            world.fail(Fault::StoreAway);
        }
        if other {
            for id in ["a", "b", "c"].map(id).into_iter().filter(|id| *id != master) {
                world.fail(Fault::KillAgent(id));
            }
        }
        let stopped = world.run(Duration::from_secs(10), |world| !reigns(world, &master));
        assert!(!stopped, "{}", world.story());
        assert_eq!(world.epoch(), Epoch(1), "{}", world.story());
    }
}

#[test]
fn one_of_two_others_is_enough_while_the_store_is_away() {
    let mut world = founded(8, 0);
    let master = world.master().unwrap();
    let other = ["a", "b", "c"].map(id).into_iter().find(|id| *id != master).unwrap();
    world.fail(Fault::StoreAway);
    world.fail(Fault::Isolate(other));
    let stopped = world.run(Duration::from_secs(10), |world| !reigns(world, &master));
    assert!(!stopped, "{}", world.story());
}

#[test]
fn a_master_that_stood_down_although_nobody_was_elected_reigns_again_and_has_everything() {
    for seed in 0..SEEDS {
        let mut world = founded(seed, 0);
        let master = world.master().unwrap();
        for id in ["a", "b", "c"].map(id) {
            world.fail(Fault::Isolate(id));
        }
        let stopped = world.run(Duration::from_secs(3), |world| !reigns(world, &master));
        assert!(stopped, "{}", world.story());
        let held = world.redis[&master].life.as_ref().unwrap().log.len();
        for id in ["a", "b", "c"].map(id) {
            world.fail(Fault::Heal(id));
        }
        heals(&mut world, "healed");
        assert_eq!(world.master(), Some(master.clone()), "{}", world.story());
        let log = world.redis[&master].life.as_ref().unwrap().log.len();
        assert!(log >= held, "{}", world.story());
    }
}

#[test]
fn with_acknowledgements_and_between_two_there_is_no_lease() {
    let mut world = founded(9, 1);
    let master = world.master().unwrap();
    for id in ["a", "b", "c"].map(id) {
        world.fail(Fault::Isolate(id));
    }
    let stopped = world.run(LIMIT, |world| !reigns(world, &master));
    assert!(!stopped, "{}", world.story());
}
