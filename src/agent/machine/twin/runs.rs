//! Runs of the twin world: named situations, a crash at every step, and faults by seed.

use std::time::Duration;

use super::{Fault, World};
use crate::agent::machine::timings::Timings;
use crate::topology::{Epoch, NodeId};

const LIMIT: Duration = Duration::from_secs(40);

fn id(name: &str) -> NodeId {
    NodeId::from(name)
}

fn founded(seed: u64, w: u32) -> World {
    let mut world = World::new(seed.wrapping_mul(0x9e37_79b9) | 1, w, Timings::default());
    assert!(
        world.run(LIMIT, World::whole),
        "seed {seed}: never founded\n{}",
        world.story()
    );
    world.run(Duration::from_millis(200), |_| false);
    world
}

fn heals(world: &mut World, what: &str) {
    let healed = world.run(LIMIT, World::whole);
    assert!(healed, "{what}: did not heal\n{}", world.story());
}

#[test]
fn a_fresh_shard_gets_its_first_master_at_epoch_1() {
    let world = founded(1, 0);
    assert_eq!(world.epoch(), Epoch(1));
}

#[test]
fn a_killed_master_is_replaced_within_100_ms_and_comes_back_as_a_replica() {
    for w in [0, 1] {
        let mut world = founded(2, w);
        let old = world.master().unwrap();
        world.fail(Fault::KillRedis(old.clone()));
        let replaced = world.run(Duration::from_millis(100), |world| {
            world.master().is_some_and(|now| now != old)
        });
        assert!(replaced, "{}", world.story());
        assert_eq!(world.epoch(), Epoch(2), "{}", world.story());
        world.fail(Fault::StartRedis(old, true));
        heals(&mut world, "empty restart");
        assert!(
            world.redis.values().all(|redis| redis.up().unwrap().facts().keys > 0),
            "{}",
            world.story()
        );
    }
}

#[test]
fn two_kills_in_a_row_are_survived_without_acknowledgements() {
    let mut world = founded(3, 0);
    for _ in 0..2 {
        let old = world.master().unwrap();
        world.fail(Fault::KillRedis(old.clone()));
        let replaced = world.run(Duration::from_secs(2), |world| {
            world.master().is_some_and(|now| now != old)
        });
        assert!(replaced, "{}", world.story());
        world.run(Duration::from_millis(50), |_| false);
    }
}

#[test]
fn a_hung_master_is_replaced_and_follows_when_it_thaws() {
    let mut world = founded(4, 1);
    let old = world.master().unwrap();
    world.fail(Fault::Freeze(old.clone()));
    let early = world.run(Duration::from_millis(900), |world| {
        world.master().as_ref() != Some(&old)
    });
    assert!(!early, "{}", world.story());
    let replaced = world.run(Duration::from_millis(600), |world| {
        world.master().is_some_and(|now| now != old)
    });
    assert!(replaced, "{}", world.story());
    world.fail(Fault::Thaw(old));
    heals(&mut world, "thaw");
}

#[test]
fn a_dead_agent_beside_a_living_master_changes_nothing() {
    let mut world = founded(5, 1);
    let master = world.master().unwrap();
    world.fail(Fault::KillAgent(master.clone()));
    world.run(Duration::from_secs(5), |_| false);
    assert_eq!(
        (world.master(), world.epoch()),
        (Some(master.clone()), Epoch(1)),
        "{}",
        world.story()
    );
    world.fail(Fault::StartAgent(master));
    heals(&mut world, "agent back");
    assert_eq!(world.epoch(), Epoch(1), "{}", world.story());
}

#[test]
fn a_lost_host_is_replaced_when_the_others_agree() {
    for w in [0, 1] {
        let mut world = founded(6, w);
        let old = world.master().unwrap();
        world.fail(Fault::Isolate(old.clone()));
        let replaced = world.run(Duration::from_secs(3), |world| {
            world.master().is_some_and(|now| now != old)
        });
        assert!(replaced, "{}", world.story());
        world.fail(Fault::Heal(old));
        heals(&mut world, "heal");
    }
}

#[test]
fn an_isolated_replica_brings_nobody_down() {
    let mut world = founded(7, 1);
    let replica = world
        .redis
        .keys()
        .find(|id| Some(*id) != world.master().as_ref())
        .unwrap()
        .clone();
    world.fail(Fault::Isolate(replica.clone()));
    world.run(Duration::from_secs(5), |_| false);
    world.fail(Fault::Heal(replica));
    heals(&mut world, "heal");
    assert_eq!(world.epoch(), Epoch(1), "{}", world.story());
}

#[test]
fn without_the_store_nobody_is_demoted_and_a_death_waits_for_it() {
    let mut world = founded(8, 0);
    let master = world.master().unwrap();
    world.fail(Fault::StoreAway);
    world.run(Duration::from_secs(10), |_| false);
    world.fail(Fault::KillRedis(master.clone()));
    world.run(Duration::from_secs(2), |_| false);
    assert_eq!(world.master(), Some(master.clone()));
    world.fail(Fault::StoreBack);
    let replaced = world.run(Duration::from_secs(2), |world| {
        world.master().is_some_and(|now| now != master)
    });
    assert!(replaced, "{}", world.story());
}

#[test]
fn an_executor_that_crashes_at_any_step_is_succeeded() {
    for w in [0, 1] {
        for step in 0..30 {
            let mut world = founded(9 + u64::from(step), w);
            let old = world.master().unwrap();
            world.crash_after = Some(step);
            world.fail(Fault::KillRedis(old.clone()));
            world.run(Duration::from_secs(4), |world| world.crashed.is_some());
            let what = format!("crash at action {step}, W={w}");
            let change = |world: &World| world.master().is_some_and(|now| now != old);
            // With W = 1 the loss of a second member stops the shard until its agent is back.
            let early = world.run(Duration::from_secs(2), change);
            world.crash_after = None;
            if let Some(crashed) = world.crashed.clone() {
                assert!(
                    early || crashed != old,
                    "{what}: its agent is not needed\n{}",
                    world.story()
                );
                world.fail(Fault::StartAgent(crashed));
            }
            assert!(
                early || world.run(LIMIT, change),
                "{what}: not replaced\n{}",
                world.story()
            );
            world.fail(Fault::StartRedis(old, step % 2 == 0));
            heals(&mut world, &what);
        }
    }
}

#[test]
fn duelling_executors_agree_on_one_master() {
    let timings = Timings {
        stagger: Duration::ZERO,
        ..Timings::default()
    };
    for seed in 1..30 {
        let mut world = World::new(seed * 7919, 1, timings);
        assert!(world.run(LIMIT, World::whole), "seed {seed}\n{}", world.story());
        let old = world.master().unwrap();
        world.fail(Fault::KillAgent(old.clone()));
        world.fail(Fault::KillRedis(old.clone()));
        let replaced = world.run(LIMIT, |world| world.master().is_some_and(|now| now != old));
        assert!(replaced, "seed {seed}\n{}", world.story());
        world.fail(Fault::StartRedis(old.clone(), true));
        world.fail(Fault::StartAgent(old));
        heals(&mut world, &format!("duel, seed {seed}"));
    }
}

/// Random faults, then peace: the invariants are asserted inside the world at each write.
fn storm(seed: u64, w: u32) {
    let mut world = founded(seed, w);
    let names = [id("a"), id("b"), id("c")];
    for round in 0..6 {
        let node = names[world.draw(3) as usize].clone();
        let until = 50 + world.draw(2500);
        let (fault, cure) = match world.draw(6) {
            0 => (Fault::KillRedis(node.clone()), Fault::StartRedis(node, round % 2 == 0)),
            1 => (Fault::Freeze(node.clone()), Fault::Thaw(node)),
            2 | 3 => (Fault::KillAgent(node.clone()), Fault::StartAgent(node)),
            4 => (Fault::StoreAway, Fault::StoreBack),
            _ => (Fault::Isolate(node.clone()), Fault::Heal(node)),
        };
        // With acknowledgements only W valid members may lose their memory before they are re-admitted:
        // past that the shard rightly stops.
        if matches!(fault, Fault::KillRedis(_)) && w > 0 {
            heals(&mut world, &format!("storm, seed {seed}"));
        }
        world.fail(fault);
        world.fault_at(until, cure);
        let pause = world.draw(until + 300);
        world.run(Duration::from_millis(pause), |_| false);
    }
    world.run(Duration::from_secs(3), |_| false);
    heals(&mut world, &format!("storm, seed {seed}, W={w}"));
}

#[test]
fn storms_leave_a_whole_shard_without_acknowledgements() {
    for seed in 100..160 {
        storm(seed, 0);
    }
}

#[test]
fn storms_lose_no_acknowledged_write() {
    for seed in 200..260 {
        storm(seed, 1);
    }
}
