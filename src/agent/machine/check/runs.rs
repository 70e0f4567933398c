//! What is explored, and what must be found.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::Lie;
use super::model::Check;
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
        let mut story = format!("{name} is broken by");
        for (world, step) in path.into_vec() {
            for sentence in &world.said {
                story.push_str(&format!("\n      {sentence}"));
            }
            match step {
                Some(step) => story.push_str(&format!("\n  {step:?}")),
                None => story.push_str(&format!("\n{world:#?}")),
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

/// States that are looked at in the suite, which runs unoptimised.
const FEW: usize = 15_000;

#[test]
fn elections_lose_nothing() {
    holds("a kill", Check::new(1, Lie::None, 2, KILL), FEW);
}

#[test]
fn switchovers_lose_nothing() {
    holds("a switchover", Check::new(1, Lie::None, 2, MOVE), FEW);
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
#[ignore = "some minutes in release: make model"]
fn a_missing_park_is_found() {
    let mut check = Check::new(1, Lie::ParkNotDone, 2, FALSELY);
    (check.lookers, check.victims) = (&[1], &[0, 1]);
    breaks("no park", check, 5_000_000);
}

/// The long run: `make model`.
#[test]
#[ignore = "some minutes in release: make model"]
fn wider_bounds_hold() {
    const MANY: usize = 1_000_000;
    let check = |epochs, budget, lookers| {
        let mut check = Check::new(1, Lie::None, epochs, budget);
        (check.lookers, check.liveness) = (lookers, 64);
        check
    };
    holds("a kill, one executor", check(2, KILL, &[0]), MANY);
    holds("a kill, two executors", check(3, KILL, &[0, 1]), MANY);
    let lost = Budget { losses: 1, ..KILL };
    holds("a kill, a lost answer", check(2, lost, &[0]), MANY);
    holds("a switchover", check(2, MOVE, &[0]), MANY);
    let deadly = Budget { agent_kills: 1, ..MOVE };
    holds("a switchover, its executor dies", check(3, deadly, &[0, 1]), MANY);
    holds("false suspicion", check(3, FALSELY, &[0, 1]), MANY);
}
