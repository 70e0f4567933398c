//! Clients that never stop and put up with nothing: any error, gap, duplicate or lost connection is a fault.
//!
//! Each is one connection in a thread of its own, and notes how long it had to wait at most. What they do is
//! numbered, so that a loss or a repetition shows in the very next answer.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pointsman::clock;

use super::{Client, Value, holds_within};

/// How long a client waits from an answer to its next request.
const PACE: Duration = Duration::from_millis(2);
/// Faults that one client writes down.
const FAULTS_MAX: usize = 20;
const GOES_ON_DEADLINE: Duration = Duration::from_secs(30);

/// What a client went through since it was last asked.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Requests or messages that were as they should be.
    pub served: u64,
    /// The longest time that one of them took from the request to its answer.
    pub longest: Duration,
    /// Everything else.
    pub faults: Vec<String>,
}

/// A client in a thread of its own.
pub struct Witness {
    pub name: String,
    account: Arc<Mutex<Account>>,
    served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    socket: TcpStream,
    thread: Option<JoinHandle<()>>,
}

/// What the answer to request `number` should have been, if it was not.
type Fault = Option<String>;

impl Witness {
    fn start(
        name: &str,
        listen: &str,
        pace: Duration,
        mut step: impl FnMut(&mut Client, u64) -> std::io::Result<Fault> + Send + 'static,
    ) -> Self {
        let mut client = Client::connect(listen);
        let socket = client.stream().try_clone().expect("a second handle");
        let account = Arc::<Mutex<Account>>::default();
        let (served, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (told, count, stopped) = (account.clone(), served.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for number in 1.. {
                let asked = clock::now();
                let outcome = step(&mut client, number);
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let took = clock::now() - asked;
                let mut account = told.lock().unwrap();
                let lost = outcome.is_err();
                match outcome {
                    Ok(None) => {
                        account.served += 1;
                        count.fetch_add(1, Ordering::Release);
                        account.longest = account.longest.max(took);
                    }
                    Ok(Some(fault)) => account.note(number, fault),
                    Err(error) => account.note(number, format!("connection lost: {error}")),
                }
                drop(account);
                if lost {
                    return;
                }
                if !pace.is_zero() {
                    thread::sleep(pace);
                }
            }
        });
        Self {
            name: name.to_owned(),
            account,
            served,
            stop,
            socket,
            thread: Some(thread),
        }
    }

    /// Appends its numbers to a list, which is to be as long as the number each time: one more or less is a write that
    /// was repeated or lost.
    pub fn writer(listen: &str, key: &str) -> Self {
        let key = key.to_owned();
        Self::start("writer", listen, PACE, move |client, number| {
            let reply = client.try_command(&["RPUSH", &key, &number.to_string()])?;
            Ok(expect(&reply, &Value::Int(i64::try_from(number).unwrap())))
        })
    }

    /// Reads one key that nobody changes.
    pub fn reader(listen: &str, key: &str, value: &str) -> Self {
        let (key, value) = (key.to_owned(), Value::bulk(value));
        Self::start("reader", listen, PACE, move |client, _| {
            Ok(expect(&client.try_command(&["GET", &key])?, &value))
        })
    }

    /// Counts two keys up in transactions that come in pieces.
    pub fn transactor(listen: &str, tag: &str) -> Self {
        let (a, b) = (format!("{{{tag}}}:a"), format!("{{{tag}}}:b"));
        Self::start("transactor", listen, PACE, move |client, number| {
            let mut faults = [
                (["MULTI"].as_slice(), "OK"),
                (&["INCR", &a], "QUEUED"),
                (&["INCR", &b], "QUEUED"),
            ]
            .into_iter()
            .map(|(request, told)| Ok(expect(&client.try_command(request)?, &Value::Simple(told.to_owned()))))
            .collect::<std::io::Result<Vec<Fault>>>()?;
            let count = Value::Int(i64::try_from(number).unwrap());
            let counts = Value::Array(vec![count.clone(), count]);
            faults.push(expect(&client.try_command(&["EXEC"])?, &counts));
            Ok(faults.into_iter().flatten().next())
        })
    }

    /// Runs a script by its digest, which some other connection made known once.
    pub fn scripter(listen: &str, key: &str, body: &str) -> Self {
        let mut teacher = Client::connect(listen);
        let digest = teacher.command(&["SCRIPT", "LOAD", body]).text();
        let key = key.to_owned();
        Self::start("scripter", listen, PACE, move |client, number| {
            let reply = client.try_command(&["EVALSHA", &digest, "1", &key])?;
            Ok(expect(&reply, &Value::Int(i64::try_from(number).unwrap())))
        })
    }

    /// Appends to a list that a [`Witness::popper`] empties.
    pub fn feeder(listen: &str, queue: &str) -> Self {
        let queue = queue.to_owned();
        Self::start("feeder", listen, PACE, move |client, number| {
            Ok(match client.try_command(&["RPUSH", &queue, &number.to_string()])? {
                Value::Int(length) if length >= 1 => None,
                reply => Some(format!("{reply:?}")),
            })
        })
    }

    /// Blocks on a list for its numbers, in order.
    pub fn popper(listen: &str, queue: &str) -> Self {
        let queue = queue.to_owned();
        Self::start("popper", listen, Duration::ZERO, move |client, number| {
            let reply = client.try_command(&["BLPOP", &queue, "0"])?;
            let wanted = Value::Array(vec![Value::bulk(&queue), Value::bulk(&number.to_string())]);
            Ok(expect(&reply, &wanted))
        })
    }

    /// Publishes its numbers; one subscriber hears each.
    pub fn publisher(listen: &str, channel: &str) -> Self {
        let channel = channel.to_owned();
        Self::start("publisher", listen, PACE, move |client, number| {
            let reply = client.try_command(&["PUBLISH", &channel, &number.to_string()])?;
            Ok(expect(&reply, &Value::Int(1)))
        })
    }

    /// Subscribes, and hears the numbers in order.
    pub fn subscriber(listen: &str, channel: &str) -> Self {
        let channel = channel.to_owned();
        let (confirmed, told) = std::sync::mpsc::sync_channel(1);
        let mut subscribed = false;
        let witness = Self::start("subscriber", listen, Duration::ZERO, move |client, number| {
            if !subscribed {
                client.try_command(&["SUBSCRIBE", &channel])?;
                subscribed = true;
                // Who waits for it has seen enough if it is gone.
                let _ = confirmed.send(());
            }
            let wanted = ["message", &channel, &number.to_string()].map(Value::bulk).to_vec();
            Ok(expect(&client.try_read_reply()?, &Value::Array(wanted)))
        });
        told.recv_timeout(GOES_ON_DEADLINE).expect("a confirmation");
        witness
    }

    /// What it went through since this was last asked.
    pub fn take(&self) -> Account {
        std::mem::take(&mut *self.account.lock().unwrap())
    }

    /// Waits until it was served `times` times more.
    #[track_caller]
    pub fn goes_on(&self, times: u64) {
        let goal = self.served.load(Ordering::Acquire) + times;
        let served = || self.served.load(Ordering::Acquire) >= goal || self.is_done();
        let done = holds_within(GOES_ON_DEADLINE, served) && !self.is_done();
        assert!(done, "a {} does not get on: {:?}", self.name, self.take());
    }

    fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Account {
    fn note(&mut self, number: u64, fault: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(format!("request {number}: {fault}"));
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _closed = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn expect(reply: &Value, wanted: &Value) -> Fault {
    (reply != wanted).then(|| format!("{reply:?}, not {wanted:?}"))
}
