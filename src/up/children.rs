//! The processes that run, and the one thread that may start them.
//!
//! Invariant: children are spawned on the runtime's own thread, which is the process' main thread, so the parent-death
//! signal means the death of `up` itself; a pid is signalled only while its process is not yet reaped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::child::die_with_parent;
use super::plan::Part;
use crate::clock;

/// Between two looks whether those that were asked to end have.
const POLL: Duration = Duration::from_millis(5);

/// How long the kernel may take to end those that were killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// A child is gone.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Which one.
    pub part: Part,
    /// Its pid, which names the life that ended.
    pub pid: i32,
    /// How.
    pub status: ExitStatus,
}

#[derive(Debug)]
struct Child {
    pid: i32,
    alive: Arc<AtomicBool>,
}

/// See the module's note.
#[derive(Debug)]
pub struct Children {
    running: BTreeMap<Part, Child>,
    ended: mpsc::Sender<Ended>,
}

impl Children {
    /// None yet. Their ends are told to `ended`.
    pub fn new(ended: mpsc::Sender<Ended>) -> Self {
        Self {
            running: BTreeMap::new(),
            ended,
        }
    }

    /// Starts `part`, its output appended to `log`.
    pub fn start(&mut self, part: Part, mut command: Command, log: &Path) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_parent(&mut command);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| io::Error::other("it has no pid"))?;
        let alive = Arc::new(AtomicBool::new(true));
        self.running.insert(
            part,
            Child {
                pid,
                alive: alive.clone(),
            },
        );
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            alive.store(false, Ordering::Release);
            if let Ok(status) = status {
                // Nobody listens any more when `up` itself is ending.
                let _ = ended.send(Ended { part, pid, status }).await;
            }
        });
        Ok(())
    }

    /// The pid of `part`, if it runs.
    pub fn pid(&self, part: Part) -> Option<i32> {
        let child = self.running.get(&part)?;
        child.alive.load(Ordering::Acquire).then_some(child.pid)
    }

    /// Asks all that `which` names to end, waits at most `patience` for it, and kills the rest.
    pub async fn end(&self, which: impl Fn(Part) -> bool, patience: Duration) {
        let parts: Vec<Part> = self.running.keys().copied().filter(|part| which(*part)).collect();
        for part in &parts {
            self.signal(*part, Signal::SIGTERM);
            // One that was stopped cannot end before it goes on.
            self.signal(*part, Signal::SIGCONT);
        }
        self.wait(&parts, patience).await;
        parts.iter().for_each(|part| self.signal(*part, Signal::SIGKILL));
        self.wait(&parts, KILL_PATIENCE).await;
    }

    /// Waits until none of `parts` runs, at most for `patience`.
    async fn wait(&self, parts: &[Part], patience: Duration) {
        let deadline = clock::now() + patience;
        while clock::now() < deadline && parts.iter().any(|part| self.pid(*part).is_some()) {
            sleep(POLL).await;
        }
    }

    /// Signals a child and what it forked: it is the leader of a process group of its own.
    fn signal(&self, part: Part, signal: Signal) {
        if let Some(pid) = self.pid(part) {
            // It may have ended since; its own end is told elsewhere.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

/// How a process ended, for people.
pub fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {}", signal.as_str()),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}
