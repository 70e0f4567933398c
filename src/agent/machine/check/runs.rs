//! What is explored, and what must be found.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::Lie;
use super::model::{Check, LIVE, shard};
use super::schedule::Begin;
use super::world::Budget;
use crate::clock;

const NOTHING: Budget = Budget {
    writes: 1,
    kills: 0,
    starts: 0,
    agent_kills: 0,
    hangs: 0,
    losses: 0,
    passes: 0,
    wishes: 0,
    wants: 0,
};

/// What a search came to.
struct Found {
    states: usize,
    depth: usize,
    began: Instant,
    /// The steps to what broke, with what the agents said.
    broken: Option<String>,
}

fn search(check: Check, states_max: usize) -> Found {
    let began = clock::now();
    let checker = check
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(states_max)
        .spawn_bfs()
        .join();
    let paths = checker.discoveries().into_iter();
    let shortest = paths.min_by_key(|(_, path)| path.clone().into_actions().len());
    let broken = shortest.map(|(name, path)| {
        let steps = path.into_vec();
        let begins = steps.first().and_then(|(world, _)| world.store.clone());
        let mut story = format!("{name} is broken, from {begins:?}, by");
        for (world, step) in steps {
            for sentence in &world.said {
                story.push_str(&format!("\n      {sentence}"));
            }
            match step {
                Some(step) => story.push_str(&format!("\n  {step:?}")),
                None => {
                    story.push_str(&format!("\n{world:#?}"));
                    if name == LIVE
                        && let Err(end) = checker.model().outcome(&world)
                    {
                        let way = end.said.join("\n      ");
                        story.push_str(&format!("\nand, fairly, by\n      {way}\nto {end:#?}"));
                    }
                }
            }
        }
        story
    });
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        began,
        broken,
    }
}

fn holds(what: &str, check: Check, states_max: usize) {
    let found = search(check, states_max);
    if let Some(story) = found.broken {
        panic!("{what}: {story}");
    }
    println!(
        "{what}: holds, {} states, {} steps deep, {:.1?}",
        found.states,
        found.depth,
        clock::now() - found.began
    );
}

fn breaks(what: &str, check: Check, states_max: usize) {
    let found = search(check, states_max);
    println!("{what}: {} states, {:.1?}", found.states, clock::now() - found.began);
    println!("{}", found.broken.as_deref().unwrap_or("holds"));
    assert!(
        found.broken.is_some(),
        "{what}: nothing is found in {} states",
        found.states
    );
}

const KILL: Budget = Budget { kills: 1, ..NOTHING };
const MOVE: Budget = Budget { wishes: 1, ..NOTHING };
/// The master is suspected falsely, and then the executor is stopped.
const FALSELY: Budget = Budget { passes: 2, ..NOTHING };
/// An agent dies, and another one is stopped until it holds the executor to be gone.
const ABANDONED: Budget = Budget {
    agent_kills: 1,
    passes: 1,
    ..NOTHING
};

/// An executor is stopped for long.
const ONE_STOP: Budget = Budget { passes: 1, ..NOTHING };

/// States that are looked at in the suite, which runs unoptimised.
const FEW: usize = 15_000;

/// Each stage of a change of the shard, from members and W to others. The newcomer looks around, too.
fn changes(lie: Lie, epochs: u64, (members, w): (&str, u32), (to, to_w): (&str, u32), budget: Budget) -> Check {
    Check {
        wanted: shard(members, w),
        change: shard(to, to_w),
        begin: Begin::Changing,
        lookers: if members == "ab" { &[0, 2] } else { &[0] },
        ..Check::new(w, lie, epochs, budget)
    }
}

/// Each stage of what follows a switchover whose executor died while its Redis lives.
fn abandoned(lie: Lie, w: u32) -> Check {
    Check {
        begin: Begin::Abandoned,
        lookers: &[1],
        victims: &[0],
        sleepers: &[1],
        strict: true,
        ..Check::new(w, lie, 4, ONE_STOP)
    }
}

#[test]
fn elections_lose_nothing() {
    let check = Check::new(1, Lie::None, 2, KILL);
    holds("a kill", Check { liveness: 256, ..check }, FEW);
}

#[test]
fn switchovers_lose_nothing() {
    let check = Check::new(1, Lie::None, 2, MOVE);
    holds("a switchover", Check { liveness: 256, ..check }, FEW);
}

#[test]
fn changes_lose_nothing() {
    for (what, from, to) in CHANGES {
        let check = changes(Lie::None, 2, from, to, NOTHING);
        holds(what, Check { liveness: 16, ..check }, FEW / 3);
    }
}

/// Members and W.
type Seats = (&'static str, u32);

/// What is called how, from what, to what.
const CHANGES: [(&str, Seats, Seats); 5] = [
    ("a member removed", ("abc", 1), ("ac", 1)),
    ("a member added", ("ab", 1), ("abc", 1)),
    ("W raised", ("abc", 0), ("abc", 1)),
    ("W lowered", ("abc", 1), ("abc", 0)),
    ("a member replaced", ("ab", 1), ("ac", 1)),
];

#[test]
fn living_masters_without_agents_lose_nothing() {
    for w in [0, 1] {
        let check = Check {
            liveness: 256,
            ..abandoned(Lie::None, w)
        };
        holds(&format!("a living master without an agent, W={w}"), check, FEW / 2);
    }
}

#[test]
fn a_missing_wait_is_found() {
    breaks("no WAIT", Check::new(1, Lie::NoWait, 2, KILL), 10 * FEW);
}

#[test]
fn a_missing_fence_is_found() {
    breaks("no fence", Check::new(1, Lie::FenceNotDone, 2, MOVE), 10 * FEW);
}

#[test]
fn a_renewal_that_was_none_is_found() {
    let check = changes(Lie::RenewNotDone, 2, ("abc", 1), ("ac", 1), ONE_STOP);
    breaks("no renewal", check, 10 * FEW);
}

#[test]
fn a_plain_removal_is_found() {
    let budget = Budget { wants: 1, ..FALSELY };
    let check = changes(Lie::PlainChange, 2, ("abc", 1), ("ac", 1), budget);
    let check = Check {
        begin: Begin::Founded,
        lookers: &[],
        sleepers: &[2],
        ..check
    };
    breaks("no epoch of its own", check, 10 * FEW);
}

#[test]
fn a_deputy_that_parked_nobody_is_found() {
    let check = Check {
        lookers: &[],
        budget: NOTHING,
        ..abandoned(Lie::DeputyNotDone, 0)
    };
    breaks("no park by the deputy", check, 20 * FEW);
}

#[test]
#[ignore = "some minutes in release: make model"]
fn a_missing_park_is_found() {
    let mut check = Check::new(1, Lie::ParkNotDone, 2, FALSELY);
    (check.lookers, check.sleepers) = (&[1], &[0, 1]);
    breaks("no park", check, 5_000_000);
}

/// States that are looked at in the long runs: some 7 kB each.
const MANY: usize = 600_000;

/// Part of the long run.
fn wide(what: &str, epochs: u64, budget: Budget, lookers: &'static [usize]) {
    let check = Check {
        lookers,
        sleepers: lookers,
        liveness: 64,
        ..Check::new(1, Lie::None, epochs, budget)
    };
    holds(what, check, 2 * MANY);
}

#[test]
#[ignore = "some minutes in release: make model"]
fn wider_elections_hold() {
    wide("a kill, one executor", 2, KILL, &[0]);
    wide("a kill, two executors", 3, KILL, &[0, 1]);
    let lost = Budget { losses: 1, ..KILL };
    wide("a kill, a lost answer", 2, lost, &[0]);
}

#[test]
#[ignore = "some minutes in release: make model"]
fn wider_switchovers_hold() {
    wide("a switchover", 2, MOVE, &[0]);
    let deadly = Budget { agent_kills: 1, ..MOVE };
    wide("a switchover, its executor dies", 3, deadly, &[0, 1]);
    let killed = Check {
        begin: Begin::Moving,
        liveness: 64,
        ..Check::new(1, Lie::None, 3, KILL)
    };
    holds("each stage of a switchover, a kill", killed, MANY / 4);
}

#[test]
#[ignore = "some minutes in release: make model"]
fn false_suspicions_hold() {
    wide("false suspicion", 3, FALSELY, &[0, 1]);
}

#[test]
#[ignore = "some minutes in release: make model"]
fn wider_changes_hold() {
    for (what, from, to) in CHANGES {
        let check = |epochs, budget| Check {
            liveness: 64,
            ..changes(Lie::None, epochs, from, to, budget)
        };
        holds(what, check(3, NOTHING), MANY / 4);
        holds(&format!("{what}, a kill"), check(3, KILL), MANY / 4);
        let deserted = Check {
            lookers: &[0, 1],
            sleepers: &[1],
            ..check(3, ABANDONED)
        };
        holds(&format!("{what}, its executor dies"), deserted, MANY / 4);
    }
}

#[test]
#[ignore = "some minutes in release: make model"]
fn living_masters_without_agents_lose_nothing_within_wider_bounds() {
    for w in [0, 1] {
        let check = Check {
            liveness: 64,
            ..abandoned(Lie::None, w)
        };
        holds(&format!("a living master without an agent, W={w}"), check, MANY / 2);
    }
}
