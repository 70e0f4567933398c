//! Clients that go on and on, one thread each, and judge every reply they get.
//!
//! None of them reconnects: a connection that is lost fails the test. Whoever sees an error that the design does not
//! allow for its kind of command panics, which its owner notices at the next [`Runner::advance`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pointsman::clock;

use super::SOON;
use crate::support::{Client, Value, encode, holds_within};

/// Commands that a client sends before it reads a reply.
const PIPELINE: u64 = 40;
/// Rounds that show that a client gets on.
const ROUNDS: u64 = 20;
/// Leaves the processors to those who are tested.
const PACE: Duration = Duration::from_millis(2);

/// A client that repeats one round until it is told to end, and then gives what it found.
pub struct Runner<T> {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Runner<T> {
    fn start(addr: &str, mut found: T, mut round: impl FnMut(&mut Client, &mut T) + Send + 'static) -> Self {
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (rounds.clone(), stop.clone());
        let mut client = Client::connect(addr);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                round(&mut client, &mut found);
                counted.fetch_add(1, Ordering::Release);
                thread::sleep(PACE);
            }
            found
        });
        Self { rounds, stop, thread }
    }

    /// Rounds that are over.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    /// Waits until it has got on by some rounds from now.
    #[track_caller]
    pub fn advance(&self) {
        let goal = self.rounds() + ROUNDS;
        let done = holds_within(SOON, || self.rounds() >= goal || self.thread.is_finished());
        assert!(!self.thread.is_finished(), "a client failed");
        assert!(done, "a client does not get on");
    }

    /// Ends it and returns what it found.
    #[track_caller]
    pub fn end(self) -> T {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("a client failed")
    }
}

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Done; the list was this long then.
    Done(i64),
    /// `INDOUBT`.
    InDoubt,
    /// `MASTERDOWN`: not executed.
    NotDone,
}

/// What a client that appends 1, 2, 3.. to a list was told.
pub struct Appended {
    key: String,
    /// Of the number that is the index and one.
    fates: Vec<Fate>,
    acknowledged: Arc<AtomicU64>,
}

/// Appends numbers to a list, in pipelines.
pub struct Appender {
    pub runner: Runner<Appended>,
    acknowledged: Arc<AtomicU64>,
    key: String,
}

impl Appender {
    /// Begins to append to `key`.
    pub fn start(addr: &str, key: &str) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let found = Appended {
            key: key.to_owned(),
            fates: Vec::new(),
            acknowledged: acknowledged.clone(),
        };
        Self {
            runner: Runner::start(addr, found, append),
            acknowledged,
            key: key.to_owned(),
        }
    }

    /// Waits until each of the Redis at `replicas` has all that was acknowledged by now, and returns how many
    /// that are.
    #[track_caller]
    pub fn settle(&self, replicas: &[String]) -> u64 {
        let acknowledged = self.acknowledged.load(Ordering::Acquire);
        for replica in replicas {
            let mut replica = Client::connect(replica.as_str());
            let done = holds_within(
                SOON,
                || matches!(replica.command(&["LLEN", &self.key]), Value::Int(length) if length.unsigned_abs() >= acknowledged),
            );
            assert!(done, "a replica does not get the writes");
        }
        acknowledged
    }
}

fn append(client: &mut Client, found: &mut Appended) {
    let first = found.fates.len() as u64 + 1;
    let requests: Vec<u8> = (first..first + PIPELINE)
        .flat_map(|number| encode(&["RPUSH", &found.key, &number.to_string()]))
        .collect();
    client.send(&requests);
    for _ in 0..PIPELINE {
        let fate = match client.read_reply() {
            Value::Int(length) => Fate::Done(length),
            reply if reply.is_error("INDOUBT ") => Fate::InDoubt,
            reply if reply.is_error("MASTERDOWN ") => Fate::NotDone,
            reply => panic!("an append was answered {reply:?}"),
        };
        if let Fate::Done(_) = fate {
            found.acknowledged.fetch_add(1, Ordering::Release);
        }
        found.fates.push(fate);
    }
}

impl Appended {
    /// Compares what was told with what the list holds in the end: in order, each number once, nothing that was said
    /// not to be executed, and all that was acknowledged up to number `settled`. What was lost is the end of what one
    /// master executed: a replica has the beginning of its stream.
    #[track_caller]
    pub fn check(&self, client: &mut Client, settled: &[u64]) {
        let Value::Array(list) = client.command(&["LRANGE", &self.key, "0", "-1"]) else {
            panic!("no list");
        };
        let list: Vec<u64> = list.iter().map(|item| item.text().parse().unwrap()).collect();
        assert!(list.is_sorted_by(|a, b| a < b), "out of order, or twice");
        let mut held = vec![false; self.fates.len()];
        for number in &list {
            held[usize::try_from(*number).unwrap() - 1] = true;
        }
        let mut lost_before = false;
        let mut last = None;
        for (index, (fate, held)) in self.fates.iter().zip(&held).enumerate() {
            let number = index as u64 + 1;
            let goes_on = match (last, *fate) {
                (_, Fate::NotDone) => {
                    assert!(!held, "{number} was said not to be executed, and was");
                    false
                }
                (Some(Fate::Done(before)), Fate::Done(now)) => now == before + 1,
                (Some(Fate::Done(_) | Fate::InDoubt), Fate::InDoubt) => true,
                (_, Fate::Done(_) | Fate::InDoubt) => false,
            };
            if !goes_on {
                lost_before = false;
            }
            if *held {
                assert!(!lost_before, "{number} survived what came before it");
            }
            lost_before |= !held;
            last = Some(*fate);
        }
        let mut acknowledged = 0;
        let settled = settled.iter().max().copied().unwrap_or_default();
        for (index, fate) in self.fates.iter().enumerate() {
            if let Fate::Done(_) = fate {
                acknowledged += 1;
                assert!(
                    acknowledged > settled || held[index],
                    "{} was acknowledged, was on the replicas, and is gone",
                    index + 1
                );
            }
        }
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// How many writes were left in doubt, and how many were said not to be executed.
    pub fn errors(&self) -> (usize, usize) {
        let count = |wanted| self.fates.iter().filter(|fate| **fate == wanted).count();
        (count(Fate::InDoubt), count(Fate::NotDone))
    }
}

/// What a client that only reads saw.
pub struct ReadBack {
    last: std::time::Instant,
    /// The longest time from one round's end to the next one's.
    pub longest_gap: Duration,
    /// How many reads were refused for want of a master.
    pub refused: usize,
}

/// Reads one key that nobody writes, in pipelines, and gets it every time or is told that there is no master.
pub fn reader(addr: &str, key: &str, value: &str) -> Runner<ReadBack> {
    let (request, value) = (encode(&["GET", key]).repeat(10), Value::bulk(value));
    let found = ReadBack {
        last: clock::now(),
        longest_gap: Duration::ZERO,
        refused: 0,
    };
    Runner::start(addr, found, move |client, found| {
        client.send(&request);
        for _ in 0..10 {
            let reply = client.read_reply();
            found.refused += usize::from(reply.is_error("MASTERDOWN "));
            assert!(reply == value || reply.is_error("MASTERDOWN "), "a read: {reply:?}");
        }
        let now = clock::now();
        found.longest_gap = found.longest_gap.max(now - found.last);
        found.last = now;
    })
}

/// Writes and reads one key in turn, in pipelines: whoever was told `OK` reads what was written.
pub fn mixer(addr: &str, key: &str) -> Runner<u64> {
    let key = key.to_owned();
    Runner::start(addr, 0, move |client, last| {
        let numbers: Vec<String> = (1..=PIPELINE / 2).map(|ahead| (*last + ahead).to_string()).collect();
        let pair = |number: &String| [encode(&["SET", &key, number]), encode(&["GET", &key])].concat();
        client.send(&numbers.iter().flat_map(pair).collect::<Vec<u8>>());
        for number in &numbers {
            let (written, read) = (client.read_reply(), client.read_reply());
            assert!(
                written == Value::ok() || written.is_error("INDOUBT ") || written.is_error("MASTERDOWN "),
                "{written:?}"
            );
            // What was not acknowledged by the replicas may be gone again, so it may be older; never newer.
            let known =
                matches!(&read, Value::Bulk(_)) && read.text().parse::<u64>().unwrap() <= number.parse().unwrap();
            assert!(
                known || read == Value::Null || read.is_error("MASTERDOWN "),
                "{number}: {read:?}"
            );
        }
        *last += PIPELINE / 2;
    })
}

/// What a client that runs transactions was told.
#[derive(Default)]
pub struct Transacted {
    done: i64,
    in_doubt: i64,
}

/// Counts two keys up together: in transactions that come whole, and in ones that watch a key first.
pub fn transactor(addr: &str, tag: &str) -> Runner<Transacted> {
    let (a, b) = (format!("{{{tag}}}:a"), format!("{{{tag}}}:b"));
    let block: Vec<Vec<u8>> = vec![
        encode(&["MULTI"]),
        encode(&["INCR", &a]),
        encode(&["INCR", &b]),
        encode(&["EXEC"]),
    ];
    let block = block.concat();
    let watch = encode(&["WATCH", &a]);
    Runner::start(addr, Transacted::default(), move |client, found| {
        client.send(&block.repeat(5));
        for _ in 0..5 {
            read_block(client, found);
        }
        client.send(&[&watch[..], &block].concat());
        let watched = client.read_reply();
        assert!(watched == Value::ok() || watched.is_error("MASTERDOWN "), "{watched:?}");
        read_block(client, found);
    })
}

fn read_block(client: &mut Client, found: &mut Transacted) {
    for queued in ["OK", "QUEUED", "QUEUED"] {
        let reply = client.read_reply();
        let told = reply == Value::Simple(queued.into()) || reply.is_error("MASTERDOWN ");
        assert!(told, "{queued}: {reply:?}");
    }
    match client.read_reply() {
        Value::Array(counts) => {
            let [Value::Int(a), Value::Int(b)] = counts[..] else {
                panic!("EXEC: {counts:?}");
            };
            assert_eq!(a, b, "half a transaction");
            found.done += 1;
        }
        // A watched key that may have changed with the master.
        Value::Null => {}
        reply if reply.is_error("INDOUBT ") => found.in_doubt += 1,
        reply => assert!(
            reply.is_error("MASTERDOWN ") || reply.is_error("EXECABORT "),
            "EXEC: {reply:?}"
        ),
    }
}

impl Transacted {
    /// Both keys were always counted together, and never more often than told.
    #[track_caller]
    pub fn check(&self, client: &mut Client, tag: &str) {
        let count = |client: &mut Client, key: &str| -> i64 {
            client
                .command(&["GET", &format!("{{{tag}}}:{key}")])
                .text()
                .parse()
                .unwrap()
        };
        let (a, b) = (count(client, "a"), count(client, "b"));
        assert_eq!(a, b, "half a transaction");
        assert!(a <= self.done + self.in_doubt, "a transaction was executed twice");
    }
}

/// Receives what others send: items of a list it blocks on, or messages of a channel.
pub struct Receiver {
    received: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// The number that ends a receiver.
const END: u64 = u64::MAX;

impl Receiver {
    /// Blocks on a list, again and again.
    pub fn blocked(addr: &str, key: &str) -> Self {
        let key = key.to_owned();
        Self::start(addr, move |client| {
            loop {
                let Value::Array(popped) = client.command(&["BLPOP", &key, "0"]) else {
                    continue;
                };
                return popped[1].text().parse().unwrap();
            }
        })
    }

    /// Subscribes to a channel.
    pub fn subscribed(addr: &str, channel: &str) -> Self {
        let channel = channel.to_owned();
        let mut subscribed = false;
        Self::start(addr, move |client| {
            if !subscribed {
                let reply = client.command(&["SUBSCRIBE", &channel]);
                assert!(matches!(reply, Value::Array(_)), "{reply:?}");
                subscribed = true;
            }
            match client.read_reply() {
                Value::Array(message) => message[2].text().parse().unwrap(),
                reply => panic!("a subscriber was sent {reply:?}"),
            }
        })
    }

    fn start(addr: &str, mut next: impl FnMut(&mut Client) -> u64 + Send + 'static) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let told = received.clone();
        let mut client = Client::connect(addr);
        client.set_read_timeout(SOON * 3);
        let thread = thread::spawn(move || {
            while told.load(Ordering::Acquire) != END {
                told.store(next(&mut client), Ordering::Release);
            }
        });
        Self { received, thread }
    }

    /// Has `send` send `number` until it arrives: what is sent while there is no master may be lost.
    #[track_caller]
    pub fn receives(&self, number: u64, mut send: impl FnMut(&str)) {
        let done = holds_within(SOON, || {
            send(&number.to_string());
            let arrived = || self.received.load(Ordering::Acquire) == number || self.thread.is_finished();
            holds_within(Duration::from_millis(200), arrived)
        });
        assert!(done, "{number} does not arrive");
        assert!(number == END || !self.thread.is_finished(), "a receiver failed");
    }

    /// Ends it.
    #[track_caller]
    pub fn end(self, send: impl FnMut(&str)) {
        self.receives(END, send);
        self.thread.join().expect("a receiver failed");
    }
}
