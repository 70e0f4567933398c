//! Runs in which a node brings the data of another cluster.

use std::time::Duration;

use super::runs::{founded, heals, id, master_and_other};
use super::{Fault, World};
use crate::topology::NodeId;

const LONG: Duration = Duration::from_secs(3);

fn untouched(world: &World, node: &NodeId, what: &str) {
    let life = world.redis[node].up().unwrap();
    assert_eq!(life.log, [u64::MAX; 3], "{what}: its data is gone\n{}", world.story());
    assert!(
        world.master().is_some_and(|master| master != *node),
        "{what}\n{}",
        world.story()
    );
}

#[test]
fn a_node_with_another_clusters_data_is_left_alone_whatever_happens_beside_it() {
    for w in [0, 1] {
        for seed in 0..8 {
            let mut world = founded(2000 + seed, w);
            let (master, other) = master_and_other(&world, seed as usize % 2);
            let stranger = if seed % 4 < 2 { other.clone() } else { master.clone() };
            let what = format!("{stranger} came with it, seed {seed}, W={w}");
            world.fail(Fault::KillRedis(stranger.clone()));
            world.fail(Fault::KillAgent(stranger.clone()));
            world.fail(Fault::StartForeign(stranger.clone()));
            world.fail(Fault::StartAgent(stranger.clone()));
            world.run(LONG, |_| false);
            untouched(&world, &stranger, &what);
            // An election and a switchover beside it.
            let now = world.master().unwrap();
            if w == 0 {
                world.fail(Fault::KillRedis(now.clone()));
                world.run(LONG, |_| false);
                untouched(&world, &stranger, &what);
                world.fail(Fault::StartRedis(now, true));
                world.run(LONG, |_| false);
            }
            world.ask_for(None);
            world.run(LONG, |_| false);
            untouched(&world, &stranger, &what);
            let said = world.log.iter().any(|line| line.contains("of another origin"));
            assert!(said, "{what}\n{}", world.story());
            // Emptied, it joins.
            world.fail(Fault::KillRedis(stranger.clone()));
            world.fail(Fault::StartRedis(stranger, true));
            heals(&mut world, &what);
        }
    }
}

#[test]
fn a_newcomer_with_data_that_was_late_for_the_first_election_is_left_alone() {
    let mut world = World::new(77, 0, Default::default());
    let late = id("c");
    world.fail(Fault::KillAgent(late.clone()));
    world.fail(Fault::KillRedis(late.clone()));
    world.fail(Fault::StartForeign(late.clone()));
    assert!(world.run(Duration::from_secs(20), |world| world.master().is_some()));
    world.run(LONG, |_| false);
    world.fail(Fault::StartAgent(late.clone()));
    world.run(LONG, |_| false);
    untouched(&world, &late, "late");
    let master = world.master().unwrap();
    world.fail(Fault::KillRedis(master.clone()));
    world.run(LONG, |_| false);
    untouched(&world, &late, "late");
    world.fail(Fault::StartRedis(master, true));
    world.run(LONG, |_| false);
    untouched(&world, &late, "late");
}
