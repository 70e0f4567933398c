//! Runs in which the executor of a switchover goes away while the master that it moves lives on.

use std::time::Duration;

use super::runs::{founded, heals_and_answers, master_and_other};
use super::{Fault, World};
use crate::topology::Epoch;

#[test]
fn a_living_master_whose_agent_died_while_moving_it_loses_nothing() {
    for w in [0, 1] {
        for seed in 0..60 {
            let mut world = founded(1800 + seed, w);
            world.strict = true;
            let (old, other) = master_and_other(&world, seed as usize % 2);
            world.ask_for((seed % 3 != 0).then_some(other));
            let begun = world.run(Duration::from_secs(2), World::switching);
            assert!(begun, "{}", world.story());
            let at = world.draw(220);
            world.run(Duration::from_millis(at), |_| false);
            world.fail(Fault::KillAgent(old.clone()));
            let what = format!("its agent died at {at} ms, seed {seed}, W={w}");
            let serves = world.run(Duration::from_secs(2), |world| world.master().is_some());
            assert!(serves, "{what}: nobody serves\n{}", world.story());
            world.run(Duration::from_secs(1), |_| false);
            world.fail(Fault::StartAgent(old));
            heals_and_answers(&mut world, &what);
        }
    }
}

#[test]
fn an_agent_that_is_asked_to_end_ends_its_switchover_first() {
    for w in [0, 1] {
        let mut endings = [0; 3];
        for seed in 0..40 {
            let mut world = founded(1900 + seed, w);
            world.strict = true;
            let (old, other) = master_and_other(&world, seed as usize % 2);
            world.ask_for(Some(other));
            let at = world.draw(260);
            world.run(Duration::from_millis(at), |_| false);
            world.fail(Fault::StopAgent(old.clone()));
            let what = format!("asked to end at {at} ms, seed {seed}, W={w}");
            let gone = world.run(Duration::from_secs(1), |world| world.ended(&old));
            assert!(gone, "{what}: it does not end\n{}", world.story());
            assert!(
                world.master().is_some(),
                "{what}: it left a shard unsettled\n{}",
                world.story()
            );
            assert!(
                world.epoch() <= Epoch(2),
                "{what}: an election followed\n{}",
                world.story()
            );
            endings[world.records.iter().filter(|record| record.request.is_some()).count()
                + usize::from(world.epoch() == Epoch(2))] += 1;
            world.run(Duration::from_secs(1), |_| false);
            world.fail(Fault::StartAgent(old));
            heals_and_answers(&mut world, &what);
        }
        println!("not begun, taken back, done: {endings:?}");
        assert!(endings.iter().all(|count| *count > 0), "{endings:?}");
    }
}

#[test]
fn a_master_that_never_saw_the_move_to_it_does_not_move_on() {
    for seed in 0..12 {
        let mut world = founded(2100 + seed, 0);
        let (old, _) = master_and_other(&world, 0);
        let others: Vec<_> = world.redis.keys().filter(|id| **id != old).cloned().collect();
        // The record that answers the request is on its way for as long as the executor pleases.
        world.keeps_requests = true;
        world.ask_for(None);
        assert!(world.run(Duration::from_secs(2), |world| world.epoch() == Epoch(2)));
        let new = world.master().unwrap();
        // An agent that starts now reads only the outcome.
        world.fail(Fault::KillAgent(new.clone()));
        world.fail(Fault::StartAgent(new.clone()));
        world.run(Duration::from_secs(3), |_| false);
        assert!(others.contains(&new));
        assert_eq!(
            (world.master(), world.epoch()),
            (Some(new), Epoch(2)),
            "{}",
            world.story()
        );
    }
}

#[test]
fn a_request_that_is_withdrawn_before_anything_was_written_is_not_met() {
    for seed in 0..12 {
        let mut world = founded(2200 + seed, 0);
        let (old, other) = master_and_other(&world, 0);
        // It does not keep up, so the sounding lasts.
        world.fail(Fault::Freeze(other.clone()));
        world.ask_for(Some(other.clone()));
        world.run(Duration::from_millis(40 + seed), |_| false);
        world.withdraw();
        world.run(Duration::from_millis(20), |_| false);
        world.fail(Fault::Thaw(other));
        world.run(Duration::from_secs(3), |_| false);
        assert_eq!(
            (world.master(), world.epoch()),
            (Some(old), Epoch(1)),
            "{}",
            world.story()
        );
        assert!(
            world.records.iter().all(|record| record.request.is_none()),
            "{}",
            world.story()
        );
    }
}
