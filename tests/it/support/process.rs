//! One child process: its log, its signals, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use std::{io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{START_DEADLINE, holds_within};

/// A child process; killed when dropped, also while it is stopped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    #[track_caller]
    pub fn spawn(command: Command, log: &Path) -> Self {
        Self::spawn_by(lasting(), command, log)
    }

    /// The same in the network namespace of `spawner`, and with its end.
    #[track_caller]
    pub fn spawn_by(spawner: &Spawner, mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let program = command.get_program().to_owned();
        let child = spawner
            .spawn(command)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends a signal; ignored when the process is gone.
    pub fn signal(&self, signal: Signal) {
        let _gone = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Asks it to end (SIGTERM).
    pub fn term(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills it (SIGKILL) and reaps it.
    pub fn kill9(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }

    /// Freezes it (SIGSTOP).
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets a frozen one go on (SIGCONT).
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Whether it still runs (a zombie does not).
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its exit status, if it ends within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        holds_within(deadline, || !self.is_running());
        self.child.try_wait().unwrap()
    }

    /// What it has written so far to stdout and stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), tail(&self.log()));
        }
    }
}

fn tail(log: &str) -> &str {
    const SHOWN: usize = 8_000;
    let start = (log.len().saturating_sub(SHOWN)..=log.len()).find(|at| log.is_char_boundary(*at));
    &log[start.unwrap_or(0)..]
}

/// What a command that ran to its end left behind.
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: Command) -> Output {
    run_by(lasting(), command)
}

/// The same in the network namespace of `spawner`.
#[track_caller]
pub fn run_by(spawner: &Spawner, command: Command) -> Output {
    run_for(START_DEADLINE * 2, spawner, command)
}

/// As [`run`], for what may take as long as `limit`.
#[track_caller]
pub fn run_within(limit: Duration, command: Command) -> Output {
    run_for(limit, lasting(), command)
}

#[track_caller]
fn run_for(limit: Duration, spawner: &Spawner, mut command: Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = spawner.spawn(command).unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let waiter = thread::spawn(move || child.wait_with_output());
    if !holds_within(limit, || waiter.is_finished()) {
        let _gone = kill(pid, Signal::SIGKILL);
        panic!("a command that should end by itself did not");
    }
    let output = waiter.join().unwrap().unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

type Job = (Command, SyncSender<io::Result<Child>>);

/// A thread that starts processes, which the kernel kills when it ends: it sends the parent-death signal when the
/// spawning *thread* ends. They are in the network namespace that this thread is in.
pub struct Spawner {
    jobs: SyncSender<Job>,
}

impl Spawner {
    /// Starts the thread, which first prepares itself. It ends when this is dropped.
    pub fn start(prepare: impl FnOnce() + Send + 'static) -> Self {
        let (jobs, queue) = sync_channel::<Job>(16);
        thread::spawn(move || {
            prepare();
            for (mut command, reply) in queue {
                let _caller_gone = reply.send(command.spawn());
            }
        });
        Self { jobs }
    }

    fn spawn(&self, mut command: Command) -> io::Result<Child> {
        pointsman::up::die_with_parent(&mut command);
        let (reply, answer) = sync_channel(1);
        self.jobs.send((command, reply)).unwrap();
        answer.recv().unwrap()
    }
}

/// The one that lives as long as this process: a test's thread ends before servers shared between tests should.
fn lasting() -> &'static Spawner {
    static SPAWNER: LazyLock<Spawner> = LazyLock::new(|| Spawner::start(|| ()));
    &SPAWNER
}
