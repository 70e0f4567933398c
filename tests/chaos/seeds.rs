//! Runs with faults drawn from a seed. Variables that begin with `CHAOS_` choose those of `make chaos`.

use std::env;
use std::fmt::{self, Display, Formatter};
use std::ops::AddAssign;
use std::time::Duration;

use pointsman::clock;

use crate::cluster::{Cluster, Shape};
use crate::nemesis;
use crate::plan::{Deed, Step, Tally, plan};
use crate::workload::{self, Promise, Told, Workload};

/// How long faults go on in a run.
const SHORT: Duration = Duration::from_secs(25);
const LONG: Duration = Duration::from_secs(60);

/// How a run is to be.
#[derive(Clone, Copy)]
struct Run {
    seed: u64,
    w: u32,
    reads: &'static str,
    length: Duration,
    pipeline: u64,
}

impl Run {
    /// A short run.
    fn short(seed: u64, w: u32, reads: &'static str) -> Self {
        Self {
            seed,
            w,
            reads,
            length: SHORT,
            pipeline: workload::PIPELINE,
        }
    }
}

/// What one run or several came to.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    faults: Tally,
    failovers: usize,
    moves: usize,
    acknowledged: usize,
    lost: usize,
    told: Told,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.faults += other.faults;
        self.failovers += other.failovers;
        self.moves += other.moves;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.told += other.told;
    }
}

impl Display for Outcome {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            faults,
            failovers,
            moves,
            acknowledged,
            lost,
            told,
        } = self;
        write!(
            out,
            "{faults}; {failovers} failovers, {moves} moves; {lost} of {acknowledged} acknowledged additions lost; {told}"
        )
    }
}

/// Shows on failure what happened, and how to see it again.
struct Story {
    run: Run,
    plan: Vec<Step>,
    done: Vec<Deed>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Run {
            seed,
            w,
            reads,
            pipeline,
            ..
        } = self.run;
        eprintln!("--- seed {seed} with W = {w} and reads = {reads} ---");
        match self.done.is_empty() {
            true => self.plan.iter().for_each(|step| eprintln!("{step}")),
            false => self.done.iter().for_each(|deed| eprintln!("{deed}")),
        }
        eprintln!(
            "again: make chaos ARGS='CHAOS_SEED={seed} CHAOS_W={w} CHAOS_READS={reads} CHAOS_PIPELINE={pipeline}'"
        );
    }
}

/// One run; `None` where there can be no hosts.
#[track_caller]
fn go(run: Run) -> Option<Outcome> {
    let shape = Shape {
        zookeepers: 3,
        w: run.w,
        reads: run.reads,
        session_ms: 2000,
    };
    let length_ms = u64::try_from(run.length.as_millis()).unwrap();
    let mut story = Story {
        run,
        plan: plan(run.seed, length_ms, shape.zookeepers),
        done: Vec::new(),
    };
    let mut cluster = Cluster::start(shape)?;
    let workload = Workload::start(&cluster, run.seed, run.pipeline);
    story.done = nemesis::run(&mut cluster, &story.plan, run.length);
    cluster.revive();
    cluster.recovers();
    assert!(
        workload.gets_on(&[0, 1], Duration::from_secs(20)),
        "clients do not get on"
    );
    let findings = workload.end(&cluster);
    let (failovers, moves) = (cluster.history("failover").len(), cluster.history("switchover").len());
    // Without acknowledgements only a failover loses anything.
    let promise = if run.w > 0 || failovers == 0 {
        Promise::Kept
    } else {
        Promise::Async
    };
    let wrong = findings.wrong(promise);
    assert!(wrong.is_empty(), "with {failovers} failovers:\n{}", wrong.join("\n"));
    cluster.assert_sound();
    let (acknowledged, lost) = findings.lost();
    let mut told = findings.told[0];
    told += findings.told[1];
    Some(Outcome {
        faults: Tally::of(&story.done),
        failovers,
        moves,
        acknowledged,
        lost,
        told,
    })
}

#[test]
fn a_first_seed_breaks_no_promise() {
    go(Run::short(1, 1, "master"));
}

#[test]
fn a_second_seed_breaks_no_promise_of_causal_reads() {
    go(Run::short(2, 1, "causal"));
}

#[test]
fn a_third_seed_breaks_no_promise_without_acknowledgements() {
    go(Run::short(3, 0, "master"));
}

/// Seeds from `CHAOS_SEED` (1) on, for `CHAOS_MINUTES`; one run if no minutes are given. `CHAOS_W` replicas (1)
/// acknowledge, reads follow `CHAOS_READS` (master, causal), `CHAOS_PIPELINE` additions are sent at once.
#[test]
#[ignore = "long: make chaos"]
fn many_seeds_break_no_promise() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let end = number("CHAOS_MINUTES").map(|minutes| clock::now() + Duration::from_secs(minutes * 60));
    let w = u32::try_from(number("CHAOS_W").unwrap_or(1)).unwrap();
    let causal = env::var("CHAOS_READS").is_ok_and(|policy| policy == "causal");
    let reads = if causal { "causal" } else { "master" };
    let mut all = Outcome::default();
    for seed in number("CHAOS_SEED").unwrap_or(1).. {
        let run = Run {
            seed,
            w,
            reads,
            length: LONG,
            pipeline: number("CHAOS_PIPELINE").unwrap_or(workload::PIPELINE),
        };
        let Some(outcome) = go(run) else { return };
        all += outcome;
        eprintln!("seed {seed}, W = {w}, reads = {reads}: {outcome}\n  so far: {all}");
        if end.is_none_or(|end| clock::now() >= end) {
            return;
        }
    }
}
