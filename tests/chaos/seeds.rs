//! Runs with faults drawn from a seed. Variables that begin with `CHAOS_` choose those of `make chaos`.

use std::env;
use std::time::Duration;

use pointsman::clock;

use crate::cluster::{Cluster, Shape};
use crate::nemesis;
use crate::plan::{Step, plan};
use crate::workload::{Promise, Workload};

/// How long faults go on in a run.
const SHORT: Duration = Duration::from_secs(25);
const LONG: Duration = Duration::from_secs(60);

/// Shows on failure what happened, and how to see it again.
struct Story {
    seed: u64,
    w: u32,
    reads: &'static str,
    plan: Vec<Step>,
    done: Vec<String>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Self { seed, w, reads, .. } = self;
        eprintln!("--- seed {seed} with W = {w} and reads = {reads} ---");
        match self.done.is_empty() {
            true => self.plan.iter().for_each(|step| eprintln!("{step}")),
            false => self.done.iter().for_each(|line| eprintln!("{line}")),
        }
        eprintln!("again: make chaos ARGS='CHAOS_SEED={seed} CHAOS_W={w} CHAOS_READS={reads}'");
    }
}

/// One run; `None` where there can be no hosts.
#[track_caller]
fn run(seed: u64, w: u32, reads: &'static str, length: Duration) -> Option<String> {
    let shape = Shape {
        zookeepers: 3,
        w,
        reads,
        session_ms: 2000,
    };
    let length_ms = u64::try_from(length.as_millis()).unwrap();
    let mut story = Story {
        seed,
        w,
        reads,
        plan: plan(seed, length_ms, shape.zookeepers),
        done: Vec::new(),
    };
    let mut cluster = Cluster::start(shape)?;
    let workload = Workload::start(&cluster, seed);
    story.done = nemesis::run(&mut cluster, &story.plan, length);
    cluster.revive();
    cluster.recovers();
    assert!(
        workload.gets_on(&[0, 1], Duration::from_secs(20)),
        "clients do not get on"
    );
    let findings = workload.end(&cluster);
    let (failovers, moves) = (cluster.history("failover").len(), cluster.history("switchover").len());
    // Without acknowledgements only a failover loses anything.
    let promise = if w > 0 || failovers == 0 {
        Promise::Kept
    } else {
        Promise::Async
    };
    let wrong = findings.wrong(promise);
    assert!(wrong.is_empty(), "with {failovers} failovers:\n{}", wrong.join("\n"));
    cluster.assert_sound();
    let (acknowledged, lost) = findings.lost();
    let [one, other] = findings.told;
    Some(format!(
        "seed {seed}, W = {w}, reads = {reads}: {failovers} failovers, {moves} moves, {lost} of {acknowledged} acknowledged additions lost\n  \
         p1: {one}\n  p2: {other}",
    ))
}

#[test]
fn a_first_seed_breaks_no_promise() {
    run(1, 1, "master", SHORT);
}

#[test]
fn a_second_seed_breaks_no_promise_of_causal_reads() {
    run(2, 1, "causal", SHORT);
}

#[test]
fn a_third_seed_breaks_no_promise_without_acknowledgements() {
    run(3, 0, "master", SHORT);
}

/// Seeds from `CHAOS_SEED` (1) on, for `CHAOS_MINUTES`; one run if no minutes are given. `CHAOS_W` replicas (1)
/// acknowledge, reads follow `CHAOS_READS` (master, causal).
#[test]
#[ignore = "long: make chaos"]
fn many_seeds_break_no_promise() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let end = number("CHAOS_MINUTES").map(|minutes| clock::now() + Duration::from_secs(minutes * 60));
    let w = u32::try_from(number("CHAOS_W").unwrap_or(1)).unwrap();
    let causal = env::var("CHAOS_READS").is_ok_and(|policy| policy == "causal");
    let reads = if causal { "causal" } else { "master" };
    for seed in number("CHAOS_SEED").unwrap_or(1).. {
        let Some(told) = run(seed, w, reads, LONG) else { return };
        eprintln!("{told}");
        if end.is_none_or(|end| clock::now() >= end) {
            return;
        }
    }
}
