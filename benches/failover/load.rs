//! A client in a thread of its own that does the same thing again and again and writes down what it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pointsman::clock;

use super::support::{Client, Value, holds_within};
use super::{RECOVERY_DEADLINE, STEADY_KEY};

/// How long a client waits from a reply to its next command.
const PACE: Duration = Duration::from_millis(1);
/// Good answers that show that a client is served.
const GOOD_ANSWERS: usize = 300;

/// What a client was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// What it had to be.
    Fine,
    /// An error, by its first word.
    Error(String),
    /// That nothing was written where something was.
    Nothing,
    /// Something else than what was written.
    Wrong(String),
    /// The connection was closed.
    Closed,
}

/// One command of a client.
#[derive(Clone, Debug)]
pub struct Answer {
    pub number: u64,
    pub at: Instant,
    pub told: Told,
}

/// A client in a thread of its own, and what it was told since it was last asked.
pub struct Load {
    name: &'static str,
    tape: Arc<Mutex<Vec<Answer>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Calls `step` with a client and increasing numbers until dropped; a closed connection is replaced.
    fn start(
        name: &'static str,
        listen: &str,
        step: impl Fn(&mut Client, u64) -> std::io::Result<Told> + Send + 'static,
    ) -> Self {
        let (tape, stop) = (Arc::<Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let (listen, told, stopped) = (listen.to_owned(), tape.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut client = Client::connect(listen.as_str());
            for number in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let outcome = step(&mut client, number).unwrap_or(Told::Closed);
                let closed = outcome == Told::Closed;
                told.lock().unwrap().push(Answer {
                    number,
                    at: clock::now(),
                    told: outcome,
                });
                if closed {
                    client = Client::connect(listen.as_str());
                }
                thread::sleep(PACE);
            }
        });
        Self {
            name,
            tape,
            stop,
            thread: Some(thread),
        }
    }

    pub fn writer(listen: &str) -> Self {
        Self::start("writer", listen, |client, number| {
            let reply = client.try_command(&["SET", &key(number), &number.to_string()])?;
            Ok(judge(reply, &Value::ok()))
        })
    }

    pub fn reader(listen: &str) -> Self {
        Self::start("reader", listen, |client, _| {
            let reply = client.try_command(&["GET", STEADY_KEY])?;
            Ok(judge(reply, &Value::bulk("v")))
        })
    }

    /// Forgets what was told so far.
    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.tape.lock().unwrap())
    }

    /// Waits until the client has been served often enough since `since`; else says what it was told.
    pub fn goes_on(&self, since: Instant) -> Result<(), String> {
        let served = || {
            let tape = self.tape.lock().unwrap();
            let first = tape.partition_point(|answer| answer.at <= since);
            served_count(&tape[first..])
        };
        if holds_within(RECOVERY_DEADLINE, || served() >= GOOD_ANSWERS) {
            return Ok(());
        }
        let tape = self.tape.lock().unwrap();
        let (count, last) = (served_count(&tape), tape.last());
        let name = self.name;
        Err(format!(
            "the {name} has {count} answers after {RECOVERY_DEADLINE:?}; its last: {last:?}"
        ))
    }
}

fn served_count(tape: &[Answer]) -> usize {
    tape.iter().filter(|answer| answer.told.is_served()).count()
}

impl Told {
    /// Whether the client was served; with a lost write it is served, too.
    pub fn is_served(&self) -> bool {
        matches!(self, Self::Fine | Self::Nothing)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// The key of a write.
pub fn key(number: u64) -> String {
    format!("write:{number}")
}

fn judge(reply: Value, wanted: &Value) -> Told {
    match reply {
        reply if reply == *wanted => Told::Fine,
        Value::Error(line) => Told::Error(line.split(' ').next().unwrap_or_default().to_owned()),
        Value::Null => Told::Nothing,
        other => Told::Wrong(format!("{other:?}")),
    }
}
