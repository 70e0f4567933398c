//! The `pointsman` binary under test.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::holds_within;
use super::process::{Output, Process, run};

/// A running `pointsman`; killed when dropped.
pub struct Pointsman {
    process: Process,
    _dir: TempDir,
}

impl Pointsman {
    /// Starts `pointsman` with arguments and returns at once.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::spawn(command(args), &dir.path().join("log"));
        Self { process, _dir: dir }
    }

    /// Runs `pointsman` to its end: for commands that end by themselves.
    #[track_caller]
    pub fn run(args: &[&str]) -> Output {
        run(command(args))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Everything it wrote so far, stdout and stderr together.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until its output has a line that satisfies `wanted`, and returns that line.
    #[track_caller]
    pub fn wait_for_line(&mut self, deadline: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let mut found = None;
        holds_within(deadline, || {
            let running = self.process.is_running();
            found = self.log().lines().find(|line| wanted(line)).map(str::to_owned);
            found.is_some() || !running
        });
        found.unwrap_or_else(|| panic!("the awaited line did not come within {deadline:?}"))
    }

    /// Fails when it logged a WARN or ERROR that has none of the `declared` texts in it.
    #[track_caller]
    pub fn assert_no_undeclared_warnings(&self, declared: &[&str]) {
        let log = self.log();
        let undeclared: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
            .filter(|line| !declared.iter().any(|text| line.contains(text)))
            .collect();
        assert!(undeclared.is_empty(), "undeclared warnings: {undeclared:#?}");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Asks it to end (SIGTERM).
    pub fn term(&self) {
        self.process.term();
    }

    /// Kills it (SIGKILL).
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Its exit code, if it ends within `deadline`; `None` when it runs on or a signal ended it.
    pub fn exit_code(&mut self, deadline: Duration) -> Option<i32> {
        self.process.wait(deadline).and_then(|status| status.code())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(args).env_remove("POINTSMAN_LOG");
    command
}
