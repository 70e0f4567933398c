//! Runs in which the executor of a switchover goes away while the master that it moves lives on.

use std::time::Duration;

use super::runs::{LIMIT, founded, heals, master_and_other};
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
            heals(&mut world, &what);
            assert!(
                world.run(LIMIT, |world| world.wish.is_none()),
                "{what}: the request stays\n{}",
                world.story()
            );
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
            heals(&mut world, &what);
            assert!(
                world.run(LIMIT, |world| world.wish.is_none()),
                "{what}: the request stays\n{}",
                world.story()
            );
        }
        println!("not begun, taken back, done: {endings:?}");
        assert!(endings.iter().all(|count| *count > 0), "{endings:?}");
    }
}
