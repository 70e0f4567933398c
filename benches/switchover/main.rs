//! What clients feel when a master is moved on purpose: `cargo bench --bench switchover`, `-- --moves 5` for fewer,
//! `-- --acks 0` without acknowledgements by replicas.
//!
//! A whole `pointsman up` with two replicas and two proxies; 8 clients that write, 8 that read, 4 that block and 4 that
//! are subscribed, with those who feed them, all at once. Again and again the master is moved with `pointsman
//! switchover`. Refuses any error, loss, repetition and closed connection, and a stall above the targets. A stall is the
//! longest time that a client, which asks every 2 ms, waited for an answer while the master moved.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on fails")]

#[allow(clippy::duplicate_mod, reason = "the tests' support code serves here, too")]
#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use support::{Up, Value, Witness};

const MOVES: usize = 50;
/// The targets.
const MEDIAN_MS_MAX: f64 = 15.0;
const P95_MS_MAX: f64 = 60.0;
const END_DEADLINE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let (Some(moves), Some(acks)) = (number("--moves", MOVES), number("--acks", 1)) else {
        eprintln!("switchover: --moves and --acks want a number");
        return ExitCode::from(2);
    };
    let mut up = Up::start(&["--replicas", "2", "--proxies", "2", "--ack-replicas", &acks.to_string()]);
    up.all_count("s1");
    assert_eq!(up.client().command(&["SET", "steady", "here"]), Value::ok());
    let witnesses = witnesses(&up.listens());
    let (mut stalls, mut calm, mut faults, mut served) = (Vec::new(), Vec::new(), 0, 0);
    for number in 1..=moves {
        calm.extend(pass(&witnesses, &mut faults, &mut served));
        let output = up.operate("switchover", &["s1", "--json"]);
        if output.code != Some(0) {
            println!("{number}: {}{}", output.stdout, output.stderr);
            faults += 1;
        }
        let stalled = pass(&witnesses, &mut faults, &mut served);
        println!(
            "{number:>3}  stalls of writers {:>5.1} ms [..{:.1}]  {}",
            quantile(&stalled, 0.5),
            quantile(&stalled, 1.0),
            phases(&output.stdout)
        );
        stalls.extend(stalled);
        up.all_count("s1");
    }
    drop(witnesses);
    up.up.term();
    assert_eq!(up.up.exit_code(END_DEADLINE), Some(0), "{}", up.up.log());
    let (median, p95) = (quantile(&stalls, 0.5), quantile(&stalls, 0.95));
    println!(
        "a writer's stall over {moves} switchovers, W = {acks}: median {median:.1} ms, 95 % {p95:.1} ms, worst {:.1} ms \
         (targets {MEDIAN_MS_MAX} and {P95_MS_MAX}); without one: median {:.1} ms, 95 % {:.1} ms",
        quantile(&stalls, 1.0),
        quantile(&calm, 0.5),
        quantile(&calm, 0.95),
    );
    println!("{served} requests and messages were as they should be, {faults} were not or did not come");
    match faults == 0 && median <= MEDIAN_MS_MAX && p95 <= P95_MS_MAX {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The number that follows `option`, if it is given.
fn number(option: &str, default: usize) -> Option<usize> {
    let mut args = std::env::args().skip_while(|arg| arg != option);
    match args.next() {
        None => Some(default),
        Some(_) => args.next()?.parse().ok(),
    }
}

fn witnesses(listens: &[String]) -> Vec<Witness> {
    let mut all = Vec::new();
    for index in 0..8 {
        let listen = &listens[index % listens.len()];
        all.push(Witness::writer(listen, &format!("list:{index}")));
        all.push(Witness::reader(listen, "steady", "here"));
    }
    for index in 0..4 {
        let (near, far) = (&listens[index % listens.len()], &listens[(index + 1) % listens.len()]);
        all.push(Witness::popper(near, &format!("queue:{index}")));
        all.push(Witness::feeder(far, &format!("queue:{index}")));
        all.push(Witness::subscriber(near, &format!("channel:{index}")));
        all.push(Witness::publisher(far, &format!("channel:{index}")));
    }
    all
}

/// Lets everybody be served some more; gives the writers' longest waits in milliseconds.
fn pass(witnesses: &[Witness], faults: &mut usize, served: &mut u64) -> Vec<f64> {
    for witness in witnesses {
        witness.goes_on(30);
    }
    let mut waits = Vec::new();
    for witness in witnesses {
        let account = witness.take();
        *faults += account.faults.len();
        *served += account.served;
        for fault in &account.faults {
            println!("{}: {fault}", witness.name);
        }
        if witness.name == "writer" {
            waits.push(account.longest.as_secs_f64() * 1000.0);
        }
    }
    waits
}

fn quantile(figures: &[f64], at: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index among some hundred"
    )]
    let index = ((sorted.len() - 1) as f64 * at).round() as usize;
    sorted[index]
}

/// The phases of a record, for people.
fn phases(record: &str) -> String {
    let record: serde_json::Value = serde_json::from_str(record).unwrap_or_default();
    let phases: BTreeMap<String, f64> = serde_json::from_value(record["phases_ms"].clone()).unwrap_or_default();
    let phases: Vec<String> = phases.iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
    phases.join(" ")
}
