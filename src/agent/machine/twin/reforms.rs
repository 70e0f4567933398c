//! Runs of the twin world in which the operator wants other members or another W.

use std::time::Duration;

use super::runs::{LIMIT, founded, heals, id};
use super::{Fault, World};
use crate::agent::machine::timings::Timings;
use crate::topology::codec::{Ending, Kind, ShardConfig, WhenShort};
use crate::topology::{Epoch, NodeId};

fn wanting(members: &[&str], w: u32) -> ShardConfig {
    ShardConfig {
        ack_replicas: w,
        members: members.iter().map(|name| id(name)).collect(),
        changed_by: "an operator".to_owned(),
        ..ShardConfig::default()
    }
}

fn lax(members: &[&str], w: u32) -> ShardConfig {
    ShardConfig {
        when_short: WhenShort::Shrink,
        shrink_after_ms: 300,
        ..wanting(members, w)
    }
}

/// A world that is as it is wanted, with writers.
fn begun(seed: u64, wanted: ShardConfig) -> World {
    let mut world = World::wanting(seed.wrapping_mul(0x9e37_79b9) | 1, wanted, Timings::default());
    assert!(
        world.run(LIMIT, World::whole),
        "seed {seed}: never founded\n{}",
        world.story()
    );
    world.run(Duration::from_millis(200), |_| false);
    world
}

/// The members but for one replica; `a` may be any of them.
fn without_a_replica(world: &World) -> ShardConfig {
    let master = world.master().unwrap();
    let mut wanted = world.wanted.clone();
    let gone = wanted.members.iter().find(|id| **id != master).unwrap().clone();
    wanted.members.remove(&gone);
    wanted
}

/// The same number of members, of which one replica is another node.
fn with_another_replica(world: &World) -> ShardConfig {
    let mut wanted = without_a_replica(world);
    let other = world
        .redis
        .keys()
        .find(|id| !world.wanted.members.contains(*id))
        .unwrap()
        .clone();
    wanted.members.insert(other);
    wanted
}

/// What is wanted first, and then.
type Change = (ShardConfig, fn(&World) -> ShardConfig);

/// Every change from what is wanted first.
fn changes() -> Vec<(&'static str, Change)> {
    let raised = |world: &World| ShardConfig {
        ack_replicas: world.wanted.ack_replicas + 1,
        ..world.wanted.clone()
    };
    let lowered = |world: &World| ShardConfig {
        ack_replicas: world.wanted.ack_replicas - 1,
        ..world.wanted.clone()
    };
    let all = |world: &World| ShardConfig {
        members: world.redis.keys().cloned().collect(),
        ..world.wanted.clone()
    };
    let three = ["a", "b", "c"];
    vec![
        ("remove, W=1", (wanting(&three, 1), without_a_replica)),
        ("remove, W=0", (wanting(&three, 0), without_a_replica)),
        ("replace, W=1", (wanting(&["a", "b"], 1), with_another_replica)),
        ("add, W=1", (wanting(&["a", "b"], 1), all)),
        ("raise 0 to 1", (wanting(&three, 0), raised)),
        ("raise 1 to 2", (wanting(&three, 1), raised)),
        ("lower 1 to 0", (wanting(&three, 1), lowered)),
        ("lower 2 to 1", (wanting(&three, 2), lowered)),
    ]
}

/// One of each kind: a seat less, another seat, W raised, W lowered.
fn kinds() -> Vec<(&'static str, Change)> {
    let kinds = ["remove, W=1", "replace, W=1", "raise 0 to 1", "lower 2 to 1"];
    changes().into_iter().filter(|(what, _)| kinds.contains(what)).collect()
}

#[test]
fn every_change_that_is_wanted_comes_about_and_loses_nothing() {
    for (what, (first, then)) in changes() {
        for seed in 1..6 {
            let mut world = begun(2000 + seed, first.clone());
            let (master, epoch) = (world.master(), world.epoch());
            let next = then(&world);
            world.want(next);
            heals(&mut world, &format!("{what}, seed {seed}"));
            assert_eq!(world.master(), master, "{what}: the master stays\n{}", world.story());
            let needed = u64::from(!what.starts_with("add"));
            assert_eq!(world.epoch(), Epoch(epoch.0 + needed), "{what}\n{}", world.story());
            let told = |world: &World| {
                let last = world.records.last().unwrap();
                last.kind == Kind::Members && last.result == Ending::Done
            };
            assert!(world.run(LIMIT, told), "{what}\n{}", world.story());
            // What was changed holds: the next failover counts by it.
            world.fail(Fault::KillRedis(master.clone().unwrap()));
            let by_failover = |world: &World| world.master().is_some_and(|now| Some(now) != master);
            assert!(world.run(LIMIT, by_failover), "{what}\n{}", world.story());
        }
    }
}

#[test]
fn whoever_crashes_at_any_step_of_a_change_it_comes_about_in_the_end() {
    for (what, (first, then)) in kinds() {
        for step in 0..30 {
            let mut world = begun(2100 + u64::from(step), first.clone());
            let next = then(&world);
            world.crash_after = Some(step);
            world.want(next);
            world.run(Duration::from_secs(1), |world| world.crashed.is_some());
            world.run(Duration::from_millis(400), |_| false);
            world.crash_after = None;
            let what = format!("{what}, crash at action {step}");
            if let Some(crashed) = world.crashed.clone() {
                world.fail(Fault::StartAgent(crashed));
            }
            heals(&mut world, &what);
        }
    }
}

#[test]
fn whatever_dies_at_any_moment_of_a_change_nothing_acknowledged_is_lost() {
    for (what, (first, then)) in kinds() {
        for kind in 0..4 {
            for moment in 0..4 {
                let mut world = begun(2200 + moment * 4 + kind, first.clone());
                let master = world.master().unwrap();
                let next = then(&world);
                let staying = next.members.iter().find(|id| **id != master).unwrap().clone();
                let (fault, cure) = match kind {
                    0 => (
                        Fault::KillRedis(master.clone()),
                        Fault::StartRedis(master.clone(), true),
                    ),
                    1 => (Fault::Freeze(staying.clone()), Fault::Thaw(staying)),
                    2 => (Fault::Isolate(master.clone()), Fault::Heal(master.clone())),
                    _ => (Fault::StoreAway, Fault::StoreBack),
                };
                world.want(next);
                let at = world.draw(260);
                world.run(Duration::from_millis(at), |_| false);
                let what = format!("{what}, fault {kind} at {at} ms");
                // Once published the master may be lost only after enough others are valid again (R2).
                if world.epoch() > Epoch(1) && matches!(kind, 0 | 2) {
                    heals(&mut world, &what);
                }
                world.fail(fault);
                world.fault_at(2500, cure);
                world.run(Duration::from_secs(3), |_| false);
                heals(&mut world, &what);
            }
        }
    }
}

#[test]
fn delayed_duplicates_of_every_question_do_not_disturb_a_change() {
    for (what, (first, then)) in changes() {
        for seed in 1..4 {
            let mut world = begun(2300 + seed, first.clone());
            world.duplicates = true;
            let before = world.wanted.clone();
            let next = then(&world);
            world.want(next);
            world.run(Duration::from_millis(700), |_| false);
            world.want(before);
            world.run(Duration::from_secs(4), |_| false);
            heals(&mut world, &format!("{what}, there and back, seed {seed}"));
        }
    }
}

#[test]
fn a_removed_node_is_parked_and_can_be_added_again() {
    let mut world = begun(2400, wanting(&["a", "b", "c"], 1));
    let before = world.wanted.clone();
    let next = without_a_replica(&world);
    let gone = before.members.difference(&next.members).next().unwrap().clone();
    world.want(next);
    heals(&mut world, "removed");
    assert!(world.redis[&gone].up().unwrap().facts().parked(), "{}", world.story());
    // What it does then is nobody's business.
    world.fail(Fault::KillRedis(gone.clone()));
    world.fail(Fault::StartRedis(gone.clone(), true));
    world.run(Duration::from_secs(2), |_| false);
    assert_eq!(world.epoch(), Epoch(2), "{}", world.story());
    world.want(before);
    heals(&mut world, "added again");
    assert_eq!(world.epoch(), Epoch(2), "growth needs no epoch\n{}", world.story());
}

/// Found by `check`: such a seat, which is not valid, could be one too many for the election after the master's death.
#[test]
fn a_removed_node_that_hears_of_its_removal_before_its_reason_does_not_take_the_seat_again() {
    for seed in 0..20 {
        let mut world = begun(4700 + seed, wanting(&["a", "b", "c"], 1));
        let wanted = without_a_replica(&world);
        let gone = world.wanted.members.difference(&wanted.members).next().unwrap().clone();
        world.fail(Fault::Isolate(gone.clone()));
        world.want(wanted.clone());
        let removed = world.run(LIMIT, |world| agreed(world).0 == 2);
        assert!(removed, "seed {seed}: it stays\n{}", world.story());
        world.fail(Fault::Heal(gone.clone()));
        let mut rejoined = false;
        world.run(Duration::from_secs(1), |world| {
            rejoined |= agreed(world).0 != 2;
            false
        });
        assert!(
            !rejoined && world.whole(),
            "seed {seed}: {gone} came back\n{}",
            world.story()
        );
    }
}

#[test]
fn a_master_is_succeeded_before_it_is_removed_and_strict_shards_are_not_shrunk() {
    let mut world = begun(2500, wanting(&["a", "b", "c"], 1));
    let master = world.master().unwrap();
    let mut wanted = world.wanted.clone();
    wanted.members.remove(&master);
    world.want(wanted);
    heals(&mut world, "removed");
    assert_ne!(world.master(), Some(master), "{}", world.story());
    assert_eq!(world.epoch(), Epoch(3), "{}", world.story());
    let kinds: Vec<_> = world.records.iter().map(|record| &record.kind).collect();
    assert_eq!(kinds[1..], [&Kind::Switchover, &Kind::Members], "{}", world.story());

    let mut world = begun(2501, wanting(&["a", "b"], 1));
    let other = with_other(&world);
    world.fail(Fault::KillRedis(other));
    world.run(Duration::from_secs(30), |_| false);
    assert_eq!(world.epoch(), Epoch(1), "{}", world.story());
}

/// A member that is not the master.
fn with_other(world: &World) -> NodeId {
    let master = world.master().unwrap();
    world.wanted.members.iter().find(|id| **id != master).unwrap().clone()
}

fn agreed(world: &World) -> (usize, u32, u32) {
    let state = &world.store.as_ref().unwrap().state;
    (state.members.len(), state.ack_replicas, state.shrunk_from)
}

#[test]
fn a_shard_that_is_not_strict_shrinks_to_its_master_and_heals() {
    for seed in 1..12 {
        let mut world = begun(2600 + seed, lax(&["a", "b"], 1));
        let other = with_other(&world);
        let fault = if seed % 2 == 0 {
            Fault::KillRedis(other.clone())
        } else {
            Fault::Isolate(other.clone())
        };
        world.fail(fault);
        let shrunk = world.run(Duration::from_secs(2), |world| agreed(world) == (1, 0, 1));
        assert!(shrunk, "seed {seed}\n{}", world.story());
        assert_eq!(world.epoch(), Epoch(1), "it needs no epoch\n{}", world.story());
        world.run(Duration::from_secs(1), |_| false);
        world.fail(Fault::StartRedis(other.clone(), true));
        world.fail(Fault::Heal(other));
        heals(&mut world, &format!("shrunk, seed {seed}"));
        assert_eq!(
            (agreed(&world), world.epoch()),
            ((2, 1, 0), Epoch(2)),
            "seed {seed}\n{}",
            world.story()
        );
    }
}

#[test]
fn two_acknowledgements_become_one_while_one_replica_is_away() {
    let mut world = begun(2700, lax(&["a", "b", "c"], 2));
    let other = with_other(&world);
    world.fail(Fault::KillRedis(other.clone()));
    let shrunk = world.run(Duration::from_secs(3), |world| {
        world.master().is_some() && agreed(world) == (3, 1, 2)
    });
    assert!(shrunk, "{}", world.story());
    world.fail(Fault::StartRedis(other, true));
    heals(&mut world, "back");
    assert_eq!(agreed(&world), (3, 2, 0), "{}", world.story());
}

#[test]
fn a_master_that_was_left_alone_is_succeeded_by_nobody_until_a_loss_is_accepted() {
    let mut world = begun(2800, lax(&["a", "b"], 1));
    let (master, other) = (world.master().unwrap(), with_other(&world));
    world.fail(Fault::KillRedis(other.clone()));
    assert!(
        world.run(Duration::from_secs(2), |world| agreed(world) == (1, 0, 1)),
        "{}",
        world.story()
    );
    world.run(Duration::from_secs(1), |_| false);
    // Back without its memory, it would be a master that has nothing.
    world.fail(Fault::KillRedis(master.clone()));
    world.run(Duration::from_secs(1), |_| false);
    world.fail(Fault::StartRedis(master.clone(), true));
    world.run(Duration::from_secs(20), |_| false);
    assert_eq!(world.master(), None, "{}", world.story());
    world.lossy = true;
    world.accept_loss();
    assert!(world.run(LIMIT, |world| world.master().is_some()), "{}", world.story());
    let told = |world: &World| world.records.last().unwrap().kind == Kind::Failover;
    assert!(world.run(LIMIT, told), "{}", world.story());
    let record = world.records.last().unwrap();
    assert!(record.why.contains("an operator accepted the loss"), "{record:?}");
    assert_eq!(record.asked_by.as_deref(), Some("an operator"));
    world.lossy = false;
    world.fail(Fault::StartRedis(other, true));
    heals(&mut world, "healed");
}

#[test]
fn with_too_few_valid_members_a_loss_is_accepted_once() {
    let mut world = begun(2900, wanting(&["a", "b", "c"], 1));
    let (master, other) = (world.master().unwrap(), with_other(&world));
    world.fail(Fault::KillRedis(other.clone()));
    world.run(Duration::from_millis(50), |_| false);
    world.fail(Fault::KillRedis(master.clone()));
    world.run(Duration::from_secs(15), |_| false);
    assert_eq!(world.master(), None, "{}", world.story());
    world.accept_loss();
    world.lossy = true;
    assert!(world.run(LIMIT, |world| world.master().is_some()), "{}", world.story());
    assert_eq!(world.store.as_ref().unwrap().state.accept, None, "it is used up");
    world.lossy = false;
    for node in [master, other] {
        world.fail(Fault::StartRedis(node, true));
    }
    heals(&mut world, "healed");
}

#[test]
fn more_than_may_be_lost_without_acknowledgements_waits_for_the_operator() {
    for max in [None, Some(0), Some(1_000_000)] {
        let wanted = ShardConfig {
            max_loss_bytes: max,
            ..wanting(&["a", "b"], 0)
        };
        let mut world = begun(3000, wanted);
        let (master, other) = (world.master().unwrap(), with_other(&world));
        // It misses what the master takes from now on.
        world.fail(Fault::Freeze(other.clone()));
        world.run(Duration::from_millis(500), |_| false);
        world.fail(Fault::KillRedis(master.clone()));
        world.fail(Fault::Thaw(other.clone()));
        let replaced = |world: &World| world.master().is_some_and(|now| now != master);
        let early = world.run(Duration::from_secs(20), replaced);
        assert_eq!(early, max != Some(0), "{max:?}\n{}", world.story());
        if !early {
            assert!(world.story().contains("max_loss_bytes is 0"), "{}", world.story());
            world.accept_loss();
            assert!(world.run(LIMIT, replaced), "{}", world.story());
            let told = |world: &World| world.records.last().unwrap().kind == Kind::Failover;
            assert!(world.run(LIMIT, told), "{}", world.story());
            let record = world.records.last().unwrap();
            assert!(
                record.why.contains("accepted the loss: b lacks at least")
                    || record.why.contains("accepted the loss: a lacks at least"),
                "{record:?}"
            );
        }
        world.fail(Fault::StartRedis(master, true));
        heals(&mut world, "healed");
    }
}

#[test]
fn a_node_that_may_not_be_promoted_is_counted_only_behind_one_that_may() {
    for seed in 1..8 {
        let mut world = founded(3100 + seed, 1);
        let master = world.master().unwrap();
        let barred = world.redis.keys().find(|id| **id != master).unwrap().clone();
        world.redis.get_mut(&barred).unwrap().life.as_mut().unwrap().priority = 0;
        world.bar(&barred);
        world.run(Duration::from_millis(300), |_| false);
        world.fail(Fault::KillRedis(master.clone()));
        let replaced = world.run(Duration::from_secs(20), |world| {
            world.master().is_some_and(|now| now != master)
        });
        assert_ne!(world.master(), Some(barred), "seed {seed}\n{}", world.story());
        if !replaced {
            assert!(
                world.story().contains("may not be promoted (priority 0)"),
                "{}",
                world.story()
            );
        }
        world.fail(Fault::StartRedis(master, true));
        world.run(Duration::from_secs(2), |_| false);
    }
}

/// Random faults and wishes while the operator changes his mind, then peace.
fn storm(seed: u64, strict: bool) {
    let make = if strict { wanting } else { lax };
    let mut world = begun(seed, make(&["a", "b", "c"], 1));
    let names = ["a", "b", "c"];
    for _ in 0..6 {
        let node = id(names[world.draw(3) as usize]);
        let until = 50 + world.draw(2500);
        let mut members = vec!["a", "b", "c"];
        if world.draw(2) == 0 {
            members.remove(world.draw(3) as usize);
        }
        let w = u32::try_from(world.draw(members.len() as u64)).unwrap();
        let at = world.draw(300);
        world.fault_at(at, Fault::Want(Box::new(make(&members, w))));
        let (fault, cure) = match world.draw(6) {
            0 => (Fault::Wish(None), Fault::StoreBack),
            1 => (Fault::Freeze(node.clone()), Fault::Thaw(node)),
            2 | 3 => (Fault::KillAgent(node.clone()), Fault::StartAgent(node)),
            4 => (Fault::StoreAway, Fault::StoreBack),
            _ => (Fault::Isolate(node.clone()), Fault::Heal(node)),
        };
        world.fail(fault);
        world.fault_at(until, cure);
        let pause = world.draw(until + 300);
        world.run(Duration::from_millis(pause), |_| false);
    }
    world.run(Duration::from_secs(4), |_| false);
    // Whoever is the master has a seat, whatever is wanted.
    world.want(make(&["a", "b", "c"], 1));
    heals(&mut world, &format!("storm, seed {seed}, strict: {strict}"));
}

#[test]
fn storms_of_changes_lose_no_acknowledged_write() {
    for seed in 3200..3208 {
        storm(seed, true);
        storm(seed, false);
    }
}
