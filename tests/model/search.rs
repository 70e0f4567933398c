//! Running the checker, and telling what it found.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use super::protocol::Protocol;
use super::rules::{Bounds, Rules};

/// What a search came to.
#[derive(Debug)]
pub struct Found {
    /// Distinct states.
    pub states: usize,
    pub depth: usize,
    pub took: Duration,
    /// The invariant that broke, and a shortest way to that.
    pub broken: Option<(&'static str, Vec<String>)>,
}

/// Searches breadth first until something breaks or everything within the bounds was seen.
pub fn search(rules: Rules, bounds: Bounds, liveness: bool, threads: usize) -> Found {
    let mut found = search_to(rules, bounds, liveness, threads, usize::MAX);
    // The checker ends with a batch, so a shorter way may have been found and forgotten.
    while let Some((_, steps)) = &found.broken {
        let shorter = search_to(rules, bounds, liveness, threads, steps.len() + 1);
        if shorter.broken.is_none() {
            break;
        }
        found = shorter;
    }
    found
}

fn search_to(rules: Rules, bounds: Bounds, liveness: bool, threads: usize, depth_max: usize) -> Found {
    #[expect(clippy::disallowed_methods, reason = "only to tell how long a search takes")]
    let began = Instant::now();
    let checker = Protocol::new(rules, bounds, liveness)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_max_depth(depth_max)
        .spawn_bfs()
        .join();
    let paths = checker.discoveries().into_iter();
    let broken = paths.map(|(name, path)| (name, path.into_actions()));
    let broken = broken.min_by_key(|(_, steps)| steps.len());
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: began.elapsed(),
        broken: broken.map(|(name, steps)| (name, steps.iter().map(|step| format!("{step:?}")).collect())),
    }
}

/// Asserts that everything within the bounds was seen and nothing broke.
pub fn assert_holds(what: &str, rules: Rules, bounds: Bounds, liveness: bool, threads: usize) {
    let found = search(rules, bounds, liveness, threads);
    if let Some((name, steps)) = &found.broken {
        panic!("{what}: {name} is broken by\n  {}", steps.join("\n  "));
    }
    println!(
        "{what}: holds, {} states, {} steps deep, {:.1?}",
        found.states, found.depth, found.took
    );
}
