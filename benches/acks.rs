//! What acknowledgement by a replica costs: `cargo bench --bench acks`, `-- --rounds N` for more.
//!
//! One master with one replica, one proxy that asks for no acknowledgement and one that asks for one; redis-benchmark's
//! SET through each in turn. Prints the medians, and fails where throughput in pipelines of 16 is below the target.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on fails")]

#[allow(clippy::duplicate_mod, reason = "the tests' support code serves here, too")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::process::{Command, ExitCode};

use support::{Client, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port};

/// Throughput with an acknowledgement, to that without, in pipelines of 16 at least.
const TARGET: f64 = 0.6;
/// Commands of one measurement, for each command in a pipeline.
const COMMANDS: [(u32, u32); 2] = [(1, 60_000), (16, 400_000)];

fn main() -> ExitCode {
    let rounds = rounds();
    let master = Redis::start(&["--repl-diskless-sync-delay", "0"]);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let proxies = [0, 1].map(|w| proxy(&master, &replica, w));
    let mut kept = true;
    for (pipeline, commands) in COMMANDS {
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for ((_, port), rates) in proxies.iter().zip(&mut rates) {
                rates.push(measure(*port, pipeline, commands));
            }
        }
        let [without, with] = rates.map(median);
        let ratio = with.0 / without.0;
        println!(
            "SET c=50 P={pipeline}: W=0 {:.0}/s (p50 {:.2} ms), W=1 {:.0}/s (p50 {:.2} ms): {ratio:.2}",
            without.0, without.1, with.0, with.1
        );
        kept &= pipeline == 1 || ratio >= TARGET;
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn rounds() -> usize {
    let mut args = std::env::args().skip_while(|arg| arg != "--rounds");
    args.nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

fn proxy(master: &Redis, replica: &Redis, w: u32) -> (Pointsman, u16) {
    let port = free_port();
    let mut proxy = Pointsman::start(&[
        "proxy",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--master",
        &master.addr(),
        "--replica",
        &replica.addr(),
        "--workers",
        "1",
        "--ack-replicas",
        &w.to_string(),
    ]);
    proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
    let mut client = Client::connect(("127.0.0.1", port));
    eventually(START_DEADLINE, || {
        client.command(&["SET", "ready", "yes"]) == Value::ok()
    });
    (proxy, port)
}

/// Commands per second, and the median latency in milliseconds.
fn measure(port: u16, pipeline: u32, commands: u32) -> (f64, f64) {
    let output = Command::new("redis-benchmark")
        .args([
            "-p",
            &port.to_string(),
            "-t",
            "set",
            "-c",
            "50",
            "-d",
            "64",
            "-r",
            "100000",
            "--csv",
        ])
        .args(["-P", &pipeline.to_string(), "-n", &commands.to_string()])
        .output()
        .expect("redis-benchmark is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("\"SET\"")).expect("a result");
    let fields: Vec<f64> = line
        .split(',')
        .filter_map(|field| field.trim_matches('"').parse().ok())
        .collect();
    (fields[0], fields[3])
}

fn median(mut rates: Vec<(f64, f64)>) -> (f64, f64) {
    rates.sort_by(|one, other| one.0.total_cmp(&other.0));
    rates[rates.len() / 2]
}
