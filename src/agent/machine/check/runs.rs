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

#[test]
fn probe_all() {
    let max: usize = std::env::var("STATES")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(60_000);
    let which = std::env::var("WHICH").unwrap_or_default();
    let kill = Budget { kills: 1, ..NOTHING };
    let cases = [
        ("kill", Check::new(1, Lie::None, 2, kill)),
        (
            "kill e3 loss",
            Check::new(1, Lie::None, 3, Budget { losses: 1, ..kill }),
        ),
        (
            "hang",
            Check::new(
                1,
                Lie::None,
                2,
                Budget {
                    hangs: 1,
                    passes: 1,
                    ..NOTHING
                },
            ),
        ),
        ("pass", Check::new(1, Lie::None, 2, Budget { passes: 1, ..NOTHING })),
        ("switch", Check::new(1, Lie::None, 2, Budget { wishes: 1, ..NOTHING })),
        (
            "agent kill",
            Check::new(1, Lie::None, 3, Budget { agent_kills: 1, ..kill }),
        ),
        (
            "lie park",
            Check::new(1, Lie::ParkNotDone, 2, Budget { passes: 1, ..NOTHING }),
        ),
        (
            "lie fence",
            Check::new(1, Lie::FenceNotDone, 2, Budget { wishes: 1, ..NOTHING }),
        ),
        (
            "lie nowait",
            Check::new(1, Lie::NoWait, 2, Budget { passes: 1, ..NOTHING }),
        ),
        (
            "lie oldlife",
            Check::new(1, Lie::OldLife, 2, Budget { starts: 1, ..kill }),
        ),
        (
            "lie forgotten",
            Check::new(
                1,
                Lie::Forgotten,
                2,
                Budget {
                    agent_kills: 1,
                    passes: 1,
                    ..NOTHING
                },
            ),
        ),
    ];
    for (what, mut check) in cases {
        if !what.contains(&which) {
            continue;
        }
        check.liveness = 16;
        let found = search(check, max);
        println!(
            "{what}: {} states, depth {} {:.1?} {}",
            found.states,
            found.depth,
            clock::now() - found.began,
            found.broken.unwrap_or("holds".into())
        );
    }
}
