//! What clients feel when a master is lost: `cargo bench --bench failover`.
//!
//! A whole `pointsman up` with two replicas, a client that writes and one that reads, about a thousand times a second
//! each. Again and again the master's redis-server gets a kill -9, and the node is brought back with `up-node`. Refuses
//! figures above the targets, any error but INDOUBT, any closed connection, any wrong read and any acknowledged write that
//! is missing afterwards. Options, after `--`:
//!
//! - `--kills N`: so many; 20 without it;
//! - `--heap-mb N`: the master has that much memory when it is killed, all of which the kernel has to free first;
//! - `--freeze`: the master and its agent are stopped (SIGSTOP) instead, as a host that says nothing any more; they go on
//!   when clients are served again. The targets are then the suspicion time and what they are else.
//! - `--acks 0`: replicas acknowledge nothing. Then writes may be missing, and are reported; a reader that is told of
//!   nothing is told the truth.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on fails")]

mod cluster;
mod load;
#[allow(clippy::duplicate_mod, reason = "the tests' support code serves here, too")]
#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::clock;

use cluster::{bring_back, has_steady_key, master, missing};
use load::{Answer, Load, Told};
use support::{Up, Value};

const KILLS: usize = 20;
/// The targets for a process that dies: median and 95 %.
const DEATH_MS_MAX: (f64, f64) = (40.0, 120.0);
/// Those for a host that falls silent, which is first suspected for a second.
const SILENCE_MS_MAX: (f64, f64) = (1150.0, 1150.0);
const RECOVERY_DEADLINE: Duration = Duration::from_secs(60);
const END_DEADLINE: Duration = Duration::from_secs(30);
/// What the reader reads; written before each kill.
const STEADY_KEY: &str = "steady";

/// What one kill did.
struct Round {
    killed: String,
    writer_ms: f64,
    reader_ms: f64,
    /// The longest waits before the kill: what the machine itself adds.
    calm_ms: (f64, f64),
    errors: BTreeMap<String, usize>,
    closed: usize,
    wrong: Vec<String>,
    acknowledged: usize,
    lost: usize,
}

/// What is done, and how often.
#[derive(Clone, Copy)]
struct Plan {
    kills: usize,
    heap_mb: usize,
    freezes: bool,
    acks: bool,
}

fn main() -> ExitCode {
    let plan = match Plan::from_args(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(reason) => {
            eprintln!("failover: {reason}");
            return ExitCode::from(2);
        }
    };
    let acks = if plan.acks { "1" } else { "0" };
    let mut up = Up::start(&["--replicas", "2", "--ack-replicas", acks]);
    set_steady_key(&up);
    let (writer, reader) = (Load::writer(&up.listen), Load::reader(&up.listen));
    println!(
        "{:>4}  {:<8} {:>9} {:>9} {:>15}  errors",
        "kill", "node", "writer ms", "reader ms", "calm before ms"
    );
    let rounds: Result<Vec<Round>, String> = (1..=plan.kills)
        .map(|number| round(number, &up, plan, &writer, &reader))
        .collect();
    let rounds = match rounds {
        Ok(rounds) => rounds,
        Err(reason) => {
            println!("{reason}\n{:#}\n{}", up.status(), up.up.log());
            keep_logs(up.dir());
            return ExitCode::FAILURE;
        }
    };
    drop((writer, reader));
    up.up.term();
    assert_eq!(up.up.exit_code(END_DEADLINE), Some(0), "{}", up.up.log());
    verdict(&rounds, plan)
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut plan = Self {
            kills: KILLS,
            heap_mb: 0,
            freezes: false,
            acks: true,
        };
        while let Some(arg) = args.next() {
            let mut number = || {
                let number = args.next().and_then(|text| text.parse::<usize>().ok());
                number.ok_or(format!("{arg} wants a number"))
            };
            match arg.as_str() {
                "--kills" => plan.kills = number()?,
                "--heap-mb" => plan.heap_mb = number()?,
                "--acks" => plan.acks = number()? > 0,
                "--freeze" => plan.freezes = true,
                // Cargo's own word.
                "--bench" => {}
                other => {
                    return Err(format!(
                        "{other} is not known; see the head of benches/failover/main.rs"
                    ));
                }
            }
        }
        match plan.kills {
            0 => Err("--kills wants a number above 0".to_owned()),
            _ => Ok(plan),
        }
    }

    fn targets_ms(self) -> (f64, f64) {
        if self.freezes { SILENCE_MS_MAX } else { DEATH_MS_MAX }
    }
}

/// Copies what `up` logged to where it outlives this bench.
fn keep_logs(dir: &Path) {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("failover");
    let copied = Command::new("cp").arg("-rT").arg(dir).arg(&kept).status();
    if copied.is_ok_and(|status| status.success()) {
        println!("its folder is kept in {}", kept.display());
    }
}

fn set_steady_key(up: &Up) {
    assert_eq!(up.client().command(&["SET", STEADY_KEY, "v"]), Value::ok());
}

fn round(number: usize, up: &Up, plan: Plan, writer: &Load, reader: &Load) -> Result<Round, String> {
    set_steady_key(up);
    let master = master(up);
    master.swell(plan.heap_mb);
    writer.take();
    reader.take();
    let calm = clock::now();
    writer.goes_on(calm)?;
    reader.goes_on(calm)?;
    let (written, read) = (writer.take(), reader.take());
    let start = clock::now();
    match plan.freezes {
        true => signal(&master.host(), Signal::SIGSTOP),
        false => signal(&[master.pid], Signal::SIGKILL),
    }
    writer.goes_on(start)?;
    reader.goes_on(start)?;
    let (writes, reads) = (writer.take(), reader.take());
    if plan.freezes {
        signal(&master.host(), Signal::SIGCONT);
        up.all_count("s1");
    } else {
        bring_back(up, &master)?;
    }
    let acknowledged: Vec<u64> = written
        .iter()
        .chain(&writes)
        .filter(|write| write.told == Told::Fine)
        .map(|write| write.number)
        .collect();
    let next = cluster::master(up);
    let steady_lost = !has_steady_key(&next);
    let mut round = Round {
        killed: master.id,
        writer_ms: longest_wait_ms(written.last(), &writes),
        reader_ms: longest_wait_ms(read.last(), &reads),
        calm_ms: (longest_wait_ms(None, &written), longest_wait_ms(None, &read)),
        errors: BTreeMap::new(),
        closed: 0,
        wrong: Vec::new(),
        acknowledged: acknowledged.len(),
        lost: missing(&next, &acknowledged) + usize::from(steady_lost),
    };
    for answer in [written, writes, read, reads].into_iter().flatten() {
        match answer.told {
            Told::Fine => {}
            // The key was lost with its master: the reader is told the truth.
            Told::Nothing if steady_lost => {}
            Told::Nothing => round.wrong.push("nothing, though the master has it".to_owned()),
            Told::Error(word) => *round.errors.entry(word).or_default() += 1,
            Told::Wrong(reply) => round.wrong.push(reply),
            Told::Closed => round.closed += 1,
        }
    }
    round.print(number);
    if round.writer_ms > plan.targets_ms().0 {
        // Where the time went, and everybody's last words.
        let record = up.history("failover").pop().unwrap_or_default();
        println!("      {}", record["phases_ms"]);
    }
    Ok(round)
}

/// To processes that `up.json` says run.
fn signal(pids: &[i32], signal: Signal) {
    for pid in pids {
        kill(Pid::from_raw(*pid), signal).expect("what runs by up.json is alive");
    }
}

impl Round {
    fn print(&self, number: usize) {
        let calm = format!("{:.1} / {:.1}", self.calm_ms.0, self.calm_ms.1);
        let (writer, reader) = (self.writer_ms, self.reader_ms);
        print!(
            "{number:>4}  {:<8} {writer:>9.1} {reader:>9.1} {calm:>15}  ",
            self.killed
        );
        for (word, count) in &self.errors {
            print!("{count} {word}, ");
        }
        let (closed, wrong) = (self.closed, self.wrong.len());
        println!(
            "{closed} closed, {wrong} wrong, {} of {} writes lost",
            self.lost, self.acknowledged
        );
    }
}

/// The longest time without being served.
fn longest_wait_ms(before: Option<&Answer>, answers: &[Answer]) -> f64 {
    let fine: Vec<Instant> = before
        .into_iter()
        .chain(answers)
        .filter(|answer| answer.told.is_served())
        .map(|answer| answer.at)
        .collect();
    let waits = fine.windows(2).map(|pair| pair[1] - pair[0]);
    waits.max().unwrap_or_default().as_secs_f64() * 1000.0
}

fn verdict(rounds: &[Round], plan: Plan) -> ExitCode {
    let targets = plan.targets_ms();
    let writer = spread("writer's outage", rounds.iter().map(|round| round.writer_ms), targets);
    let reader = spread(
        "reader's longest gap",
        rounds.iter().map(|round| round.reader_ms),
        targets,
    );
    let errors: usize = rounds
        .iter()
        .flat_map(|round| round.errors.iter())
        .filter(|(word, _)| *word != "INDOUBT")
        .map(|(_, count)| count)
        .sum();
    let in_doubt: usize = rounds.iter().filter_map(|round| round.errors.get("INDOUBT")).sum();
    let closed: usize = rounds.iter().map(|round| round.closed).sum();
    let wrong: Vec<&String> = rounds.iter().flat_map(|round| &round.wrong).collect();
    let lost: usize = rounds.iter().map(|round| round.lost).sum();
    let acknowledged: usize = rounds.iter().map(|round| round.acknowledged).sum();
    println!(
        "{in_doubt} INDOUBT, {errors} other errors, {closed} connections closed, {} wrong replies",
        wrong.len()
    );
    println!("{lost} of {acknowledged} acknowledged writes lost");
    for reply in wrong.iter().take(10) {
        println!("wrong reply: {reply}");
    }
    let kept = lost == 0 || !plan.acks;
    if writer && reader && kept && errors + closed + wrong.len() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a figure's median, 95 % and range; says whether they are within their targets.
fn spread(name: &str, figures: impl Iterator<Item = f64>, targets_ms: (f64, f64)) -> bool {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    let (low, high) = (sorted[0], sorted[last]);
    let median = (sorted[last / 2] + sorted[sorted.len() / 2]) / 2.0;
    let most = sorted[(sorted.len() * 95).div_ceil(100) - 1];
    let holds = median <= targets_ms.0 && most <= targets_ms.1;
    let verdict = if holds { "within" } else { "ABOVE" };
    println!(
        "{name}: median {median:.1} ms, 95 % {most:.1} ms [{low:.1}..{high:.1}] over {} kills, {verdict} the targets of {} and {} ms",
        sorted.len(),
        targets_ms.0,
        targets_ms.1
    );
    holds
}
