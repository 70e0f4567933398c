//! User-space instructions of the whole proxy per command: `cargo bench --bench instructions`, `-- --record` to
//! rewrite the recorded figures.
//!
//! A redis-server, the proxy of this build under callgrind, and a client that does the same each time. Each cell runs
//! twice with different numbers of commands, so that start and end cancel out in the difference. Unlike times,
//! instructions are nearly the same on a busy machine. Refuses a cell that is too far above its recorded figure.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on fails")]

#[allow(clippy::duplicate_mod, reason = "the tests' support code serves here, too")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use support::{Client, Process, Redis, Value, free_port, holds_within};

/// The recorded figures, by cell.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// How far above its record a cell may be, in percent.
const TOLERANCE_PERCENT: u64 = 10;
/// Commands of the two runs of a cell.
const COMMANDS_FEW: u32 = 2_000;
const COMMANDS_MANY: u32 = 10_000;
/// Callgrind is slow, the machine may be busy.
const START_DEADLINE: Duration = Duration::from_secs(120);
const END_DEADLINE: Duration = Duration::from_secs(60);

/// What a cell's clients send.
#[derive(Clone, Copy)]
enum Kind {
    Get,
    Set,
}

/// One figure: what is sent, by how many connections, how many commands of each in flight.
#[derive(Clone, Copy)]
struct Cell {
    kind: Kind,
    connections: u32,
    in_flight: u32,
}

impl Cell {
    fn all() -> impl Iterator<Item = Self> {
        let shapes = [(1, 1), (1, 16), (1, 64), (50, 1)];
        [Kind::Get, Kind::Set].into_iter().flat_map(move |kind| {
            shapes.map(|(connections, in_flight)| Self {
                kind,
                connections,
                in_flight,
            })
        })
    }

    fn name(self) -> String {
        let kind = match self.kind {
            Kind::Get => "GET",
            Kind::Set => "SET 64 B",
        };
        format!("{kind}, {} x {} in flight", self.connections, self.in_flight)
    }

    fn request(self) -> Vec<u8> {
        match self.kind {
            Kind::Get => b"*2\r\n$3\r\nGET\r\n$14\r\nuser:1000:name\r\n".to_vec(),
            Kind::Set => [
                &b"*3\r\n$3\r\nSET\r\n$14\r\nuser:1000:name\r\n$64\r\n"[..],
                &[b'x'; 64],
                b"\r\n",
            ]
            .concat(),
        }
    }

    /// The commands that `wanted` becomes in whole rounds, in which every connection sends what it has in flight.
    fn rounds(self, wanted: u32) -> u32 {
        wanted.div_ceil(self.connections * self.in_flight)
    }
}

fn main() -> ExitCode {
    let record = std::env::args().any(|arg| arg == "--record");
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions: valgrind is not installed, so nothing is counted (Debian: apt-get install valgrind)");
        return ExitCode::SUCCESS;
    }
    let recorded = read_record();
    let mut measured = BTreeMap::new();
    println!(
        "{:<28} {:>10} {:>10} {:>8}",
        "instructions per command", "now", "recorded", ""
    );
    for cell in Cell::all() {
        let now = measure(cell);
        print_row(&cell.name(), now, recorded.get(&cell.name()).copied());
        measured.insert(cell.name(), now);
    }
    if record {
        let text = serde_json::to_string_pretty(&measured).unwrap();
        fs::write(RECORD, text + "\n").unwrap();
        println!("recorded in benches/instructions.json");
        return ExitCode::SUCCESS;
    }
    judge(&measured, &recorded)
}

fn read_record() -> BTreeMap<String, u64> {
    match fs::read_to_string(RECORD) {
        Ok(text) => serde_json::from_str(&text).expect("benches/instructions.json maps cells to numbers"),
        Err(_) => BTreeMap::new(),
    }
}

fn print_row(name: &str, now: u64, recorded: Option<u64>) {
    match recorded {
        Some(before) => {
            let change = (now as f64 / before as f64 - 1.0) * 100.0;
            println!("{name:<28} {now:>10} {before:>10} {change:>+7.1}%");
        }
        None => println!("{name:<28} {now:>10} {:>10}", "-"),
    }
}

fn judge(measured: &BTreeMap<String, u64>, recorded: &BTreeMap<String, u64>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, now) in measured {
        match recorded.get(name) {
            None => println!("{name}: not recorded yet; `cargo bench --bench instructions -- --record` does"),
            Some(before) if now * 100 > before * (100 + TOLERANCE_PERCENT) => {
                println!("{name}: {now} instructions are more than {TOLERANCE_PERCENT} % above the recorded {before}");
                code = ExitCode::FAILURE;
            }
            Some(_) => {}
        }
    }
    code
}

/// Instructions per command: the difference of two runs.
fn measure(cell: Cell) -> u64 {
    let (few, many) = (cell.rounds(COMMANDS_FEW), cell.rounds(COMMANDS_MANY));
    let spent = run(cell, many).saturating_sub(run(cell, few));
    spent / u64::from((many - few) * cell.connections * cell.in_flight)
}

/// Instructions of a proxy's whole life in which the cell's clients do `rounds`.
fn run(cell: Cell, rounds: u32) -> u64 {
    let redis = Redis::start(&[]);
    assert_eq!(redis.command(&["SET", "user:1000:name", &"x".repeat(64)]), Value::ok());
    let dir = tempfile::tempdir().unwrap();
    let (listen, counts) = (format!("127.0.0.1:{}", free_port()), dir.path().join("counts"));
    let mut proxy = Process::spawn(
        under_callgrind(&counts, &listen, &redis.addr()),
        &dir.path().join("log"),
    );
    let served = holds_within(START_DEADLINE, || {
        !proxy.is_running() || proxy.log().contains("the master serves")
    });
    assert!(
        served && proxy.is_running(),
        "the proxy did not come up:\n{}",
        proxy.log()
    );
    drive(cell, rounds, &listen);
    proxy.term();
    let status = proxy.wait(END_DEADLINE);
    assert!(status.is_some_and(|status| status.success()), "{}", proxy.log());
    total(&counts)
}

fn under_callgrind(counts: &Path, listen: &str, master: &str) -> Command {
    let mut command = Command::new("valgrind");
    command
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(env!("CARGO_BIN_EXE_pointsman"))
        .args(["proxy", "--workers", "1", "--listen", listen, "--master", master])
        .env_remove("POINTSMAN_LOG");
    command
}

/// Every connection writes what it has in flight with one call; then all replies are read; and again.
fn drive(cell: Cell, rounds: u32, listen: &str) {
    let mut clients: Vec<Client> = (0..cell.connections).map(|_| Client::connect(listen)).collect();
    for client in &mut clients {
        client.set_read_timeout(END_DEADLINE);
    }
    let burst = cell.request().repeat(cell.in_flight as usize);
    for _ in 0..rounds {
        for client in &mut clients {
            client.send(&burst);
        }
        for client in &mut clients {
            for _ in 0..cell.in_flight {
                let reply = client.read_reply();
                assert!(!matches!(reply, Value::Error(_)), "{reply:?}");
            }
        }
    }
}

/// The sum in a callgrind file; with several parts or threads there are several lines.
fn total(counts: &PathBuf) -> u64 {
    let text = fs::read_to_string(counts).expect("callgrind wrote its counts");
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
    totals.map(|total| total.trim().parse::<u64>().unwrap()).sum()
}
