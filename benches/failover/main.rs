//! What clients feel when a master is killed: `cargo bench --bench failover`, `-- --kills 5` for fewer kills.
//!
//! A whole `pointsman up` with two replicas, a client that writes and one that reads, about a thousand times a second
//! each. Again and again the master's redis-server gets a kill -9, and the node is brought back with `up-node`. Refuses
//! medians above the targets, any error but INDOUBT, any closed connection and any wrong read. Acknowledged writes that
//! are missing afterwards are reported: without acknowledgements by replicas (W = 0) some may be; a reader that is then
//! told of nothing is told the truth.

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
/// The targets of the medians.
const WRITER_OUTAGE_MS_MAX: f64 = 150.0;
const READER_GAP_MS_MAX: f64 = 100.0;
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

fn main() -> ExitCode {
    let Some(kills) = kills() else {
        eprintln!("failover: --kills wants a number above 0");
        return ExitCode::from(2);
    };
    let mut up = Up::start(&["--replicas", "2"]);
    set_steady_key(&up);
    let (writer, reader) = (Load::writer(&up.listen), Load::reader(&up.listen));
    println!(
        "{:>4}  {:<8} {:>9} {:>9} {:>15}  errors",
        "kill", "node", "writer ms", "reader ms", "calm before ms"
    );
    let rounds: Result<Vec<Round>, String> = (1..=kills).map(|number| round(number, &up, &writer, &reader)).collect();
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
    verdict(&rounds)
}

fn kills() -> Option<usize> {
    let mut args = std::env::args().skip_while(|arg| arg != "--kills");
    match args.next() {
        None => Some(KILLS),
        Some(_) => args.next()?.parse().ok().filter(|kills| *kills > 0),
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

fn round(number: usize, up: &Up, writer: &Load, reader: &Load) -> Result<Round, String> {
    set_steady_key(up);
    writer.take();
    reader.take();
    let calm = clock::now();
    writer.goes_on(calm)?;
    reader.goes_on(calm)?;
    let (written, read) = (writer.take(), reader.take());
    let master = master(up);
    let start = clock::now();
    kill(Pid::from_raw(master.pid), Signal::SIGKILL).expect("the master's pid in up.json is alive");
    writer.goes_on(start)?;
    reader.goes_on(start)?;
    let (writes, reads) = (writer.take(), reader.take());
    bring_back(up, &master)?;
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
    Ok(round)
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

fn verdict(rounds: &[Round]) -> ExitCode {
    let writer = spread(
        "writer's outage",
        rounds.iter().map(|round| round.writer_ms),
        WRITER_OUTAGE_MS_MAX,
    );
    let reader = spread(
        "reader's longest gap",
        rounds.iter().map(|round| round.reader_ms),
        READER_GAP_MS_MAX,
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
    if writer && reader && errors + closed + wrong.len() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a figure's median and range; says whether the median is within its target.
fn spread(name: &str, figures: impl Iterator<Item = f64>, target_ms: f64) -> bool {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    let holds = median <= target_ms;
    let verdict = if holds { "within" } else { "ABOVE" };
    println!(
        "{name}: median {median:.1} ms [{low:.1}..{high:.1}] over {} kills, {verdict} the target of {target_ms} ms",
        sorted.len()
    );
    holds
}
