//! Clients of both proxies that note what they asked and were told, and what follows from all their notes together.
//!
//! Keys live for a while only (a generation), so that each one's history stays short enough to be searched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pointsman::clock;

use crate::cluster::{Cluster, Door, PROXIES};
use crate::elements::{self, Addition, Fate, Look};
use crate::linear::{self, Action, Operation};
use crate::support::Dice;
use crate::support::{Client, Value, encode, holds_within};

/// How long a key is used.
const GENERATION: Duration = Duration::from_secs(3);
/// Keys of a generation that are set and read, and that are counted up.
const REGISTERS: u64 = 3;
const COUNTERS: u64 = 2;
/// Clients of each proxy of each kind.
const SETTERS: u32 = 3;
const ADDERS: u32 = 2;
/// Additions that are sent before the first is answered, unless said otherwise.
pub const PIPELINE: u64 = 4;
/// Leaves the processors to those who are tested.
const PACE: Duration = Duration::from_millis(8);
/// Longer than a proxy holds a command and waits for acknowledgements: a silence of this length is a broken promise.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What is promised, besides what always holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing acknowledged is lost, and each key is linearizable.
    Kept,
    /// A failover may have lost what was acknowledged last.
    Async,
}

/// What one client was told.
#[derive(Default)]
pub struct Notes {
    operations: Vec<(String, Operation)>,
    additions: BTreeMap<String, BTreeMap<u64, Addition>>,
    looks: BTreeMap<String, Vec<Look>>,
    /// How it went.
    pub told: Told,
}

/// How it went for clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Answers that are none of the following.
    pub good: u64,
    /// `INDOUBT`.
    pub in_doubt: u64,
    /// `MASTERDOWN`.
    pub not_done: u64,
    /// Connections that ended, or could not be had.
    pub closed: u64,
    /// The longest time without a good answer, in milliseconds, of the client for whom it was longest.
    pub gap_ms: u64,
}

impl AddAssign for Told {
    fn add_assign(&mut self, other: Self) {
        self.good += other.good;
        self.in_doubt += other.in_doubt;
        self.not_done += other.not_done;
        self.closed += other.closed;
        self.gap_ms = self.gap_ms.max(other.gap_ms);
    }
}

impl Display for Told {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            good,
            in_doubt,
            not_done,
            closed,
            gap_ms,
        } = self;
        write!(
            out,
            "{good} answers, {in_doubt} in doubt, {not_done} not done, {closed} connections ended, longest gap {gap_ms} ms"
        )
    }
}

/// Running clients.
pub struct Workload {
    stop: Arc<AtomicBool>,
    start: Instant,
    /// Good answers so far, by proxy.
    good: [Arc<AtomicU64>; 2],
    clients: Vec<(usize, JoinHandle<Notes>)>,
}

impl Workload {
    /// Starts clients at both proxies, which draw what they ask from `seed`.
    ///
    /// `pipeline` additions are sent before the first is answered. Where reads go to replicas, what one proxy promises is not promised across proxies: then each has its own keys.
    pub fn start(cluster: &Cluster, seed: u64, pipeline: u64) -> Self {
        let mut workload = Self {
            stop: Arc::default(),
            start: clock::now(),
            good: Default::default(),
            clients: Vec::new(),
        };
        let mut name = 0;
        for (proxy, host) in PROXIES.iter().enumerate() {
            for number in 0..SETTERS + ADDERS {
                name += 1;
                let mut asker = Asker {
                    door: cluster.door(host),
                    client: None,
                    name,
                    realm: if cluster.reads_at_the_master() { "" } else { host },
                    dice: Dice(seed ^ (u64::from(name) << 32)),
                    start: workload.start,
                    good: workload.good[proxy].clone(),
                    last_good: workload.start,
                    next: 0,
                    pipeline,
                    notes: Notes::default(),
                };
                let stop = workload.stop.clone();
                let thread = thread::spawn(move || {
                    while !stop.load(Ordering::Acquire) {
                        if number < SETTERS {
                            asker.set_or_read()
                        } else {
                            asker.add_or_look()
                        }
                        thread::sleep(PACE);
                    }
                    asker.notes
                });
                workload.clients.push((proxy, thread));
            }
        }
        workload
    }

    /// Good answers so far at a proxy.
    pub fn good(&self, proxy: usize) -> u64 {
        self.good[proxy].load(Ordering::Acquire)
    }

    /// Waits until clients of these proxies get on; says whether they do before the deadline is over.
    pub fn gets_on(&self, proxies: &[usize], deadline: Duration) -> bool {
        const SOME: u64 = 60;
        let goals: Vec<u64> = proxies.iter().map(|proxy| self.good(*proxy) + SOME).collect();
        holds_within(deadline, || {
            proxies
                .iter()
                .zip(&goals)
                .all(|(proxy, goal)| self.good(*proxy) >= *goal)
        })
    }

    /// Ends the clients, and reads all that they wrote, through each proxy.
    #[track_caller]
    pub fn end(self, cluster: &Cluster) -> Findings {
        self.stop.store(true, Ordering::Release);
        let mut findings = Findings::default();
        for (proxy, client) in self.clients {
            let notes = client.join().expect("a client failed");
            findings.told[proxy] += notes.told;
            for (key, operation) in notes.operations {
                findings.operations.entry(key).or_default().push(operation);
            }
            for (key, additions) in notes.additions {
                findings.collections.entry(key).or_default().additions.extend(additions);
            }
            for (key, looks) in notes.looks {
                findings.collections.entry(key).or_default().looks.extend(looks);
            }
        }
        // What others wrote may be a little old at a replica.
        cluster.settles();
        for host in PROXIES {
            findings.read_all(&cluster.door(host), self.start);
        }
        findings
    }
}

/// One client.
struct Asker {
    door: Door,
    client: Option<Client>,
    name: u32,
    /// Whose keys it uses with others: everybody's or those of its proxy.
    realm: &'static str,
    dice: Dice,
    start: Instant,
    good: Arc<AtomicU64>,
    last_good: Instant,
    /// The next element.
    next: u64,
    pipeline: u64,
    notes: Notes,
}

/// What one command was answered.
enum Answer {
    Good(Value),
    NotDone,
    /// In doubt, or never answered.
    Unknown,
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap()
}

impl Asker {
    fn set_or_read(&mut self) {
        let generation = self.start.elapsed().as_millis() / GENERATION.as_millis();
        let number = self.dice.roll(REGISTERS + COUNTERS);
        let counts = number >= REGISTERS;
        let kind = if counts { "counter" } else { "register" };
        let key = format!("{kind}:{generation}:{number}{}", self.realm);
        let reads = self.dice.roll(2) == 0;
        // Nobody else ever writes it.
        let value = (i64::from(self.name) << 32) + i64::try_from(self.next).unwrap();
        let text = value.to_string();
        let (request, action) = match (reads, counts) {
            (true, _) => (vec!["GET", &key], Action::Read(None)),
            (false, true) => (vec!["INCR", &key], Action::Add(None)),
            (false, false) => (vec!["SET", &key, &text], Action::Write(value)),
        };
        self.next += 1;
        let begun = micros(self.start);
        let answer = self.ask(&[request]).pop().unwrap();
        let ended = micros(self.start);
        let (ended, action) = match (answer, action) {
            (Answer::NotDone, _) | (Answer::Unknown, Action::Read(_)) => return,
            (Answer::Unknown, action) => (None, action),
            (Answer::Good(reply), Action::Read(_)) => (Some(ended), Action::Read(number_of(&reply))),
            (Answer::Good(Value::Int(sum)), Action::Add(_)) => (Some(ended), Action::Add(Some(sum))),
            (Answer::Good(reply), Action::Write(_)) if reply == Value::ok() => (Some(ended), action),
            (Answer::Good(reply), action) => panic!("{action:?} of {key} was answered {reply:?}"),
        };
        let operation = Operation {
            client: self.name,
            begun,
            ended,
            action,
        };
        self.notes.operations.push((key, operation));
    }

    fn add_or_look(&mut self) {
        let to_list = self.dice.roll(2) == 0;
        let key = format!("{}:{}", if to_list { "list" } else { "set" }, self.name);
        let known = self.notes.additions.entry(key.clone()).or_default();
        if !to_list && !known.is_empty() && self.dice.roll(3) == 0 {
            self.look(key);
            return;
        }
        let elements: Vec<u64> = (self.next..self.next + self.pipeline).collect();
        self.next += self.pipeline;
        let texts: Vec<String> = elements.iter().map(u64::to_string).collect();
        let name = if to_list { "RPUSH" } else { "SADD" };
        let requests: Vec<Vec<&str>> = texts.iter().map(|text| vec![name, &key, text]).collect();
        let begun = micros(self.start);
        let answers = self.ask(&requests);
        let ended = micros(self.start);
        let known = self.notes.additions.entry(key).or_default();
        for (element, answer) in elements.into_iter().zip(answers) {
            let fate = match answer {
                Answer::Good(Value::Int(_)) => Fate::Done(ended),
                Answer::Good(reply) => panic!("an addition was answered {reply:?}"),
                Answer::NotDone => Fate::NotDone,
                Answer::Unknown => Fate::InDoubt,
            };
            known.insert(element, Addition { begun, fate });
        }
    }

    /// Looks for an element of its own.
    fn look(&mut self, key: String) {
        let known: Vec<u64> = self.notes.additions[&key].keys().rev().take(50).copied().collect();
        let element = known[usize::try_from(self.dice.roll(known.len() as u64)).unwrap()];
        let begun = micros(self.start);
        let answer = self
            .ask(&[vec!["SISMEMBER", &key, &element.to_string()]])
            .pop()
            .unwrap();
        let ended = micros(self.start);
        let there = match answer {
            Answer::Good(Value::Int(there)) => there == 1,
            Answer::Good(reply) => panic!("a look was answered {reply:?}"),
            Answer::NotDone | Answer::Unknown => return,
        };
        let look = Look {
            element,
            begun,
            ended,
            there,
        };
        self.notes.looks.entry(key).or_default().push(look);
    }

    /// Sends these at once and reads what they are answered.
    fn ask(&mut self, requests: &[Vec<&str>]) -> Vec<Answer> {
        let mut answers = Vec::new();
        let Some(client) = self.connected() else {
            answers.resize_with(requests.len(), || Answer::NotDone);
            return answers;
        };
        let bytes: Vec<u8> = requests.iter().flat_map(|request| encode(request)).collect();
        let mut failed = client.try_send(&bytes).err();
        while failed.is_none() && answers.len() < requests.len() {
            match self.client.as_mut().unwrap().try_read_reply() {
                Ok(reply) => {
                    let answer = self.judge(reply);
                    answers.push(answer);
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            let silent = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            assert!(
                !silent,
                "client {} has no answer for {SILENCE_MAX:?}: {requests:?}",
                self.name
            );
            self.notes.told.closed += 1;
            self.client = None;
            answers.resize_with(requests.len(), || Answer::Unknown);
        }
        answers
    }

    fn judge(&mut self, reply: Value) -> Answer {
        match reply {
            Value::Error(line) if line.starts_with("INDOUBT ") => {
                self.notes.told.in_doubt += 1;
                Answer::Unknown
            }
            Value::Error(line) if line.starts_with("MASTERDOWN ") => {
                self.notes.told.not_done += 1;
                Answer::NotDone
            }
            Value::Error(line) => panic!("client {} was told: {line}", self.name),
            reply => {
                self.notes.told.good += 1;
                self.good.fetch_add(1, Ordering::Release);
                let gap = u64::try_from(self.last_good.elapsed().as_millis()).unwrap();
                self.notes.told.gap_ms = self.notes.told.gap_ms.max(gap);
                self.last_good = clock::now();
                Answer::Good(reply)
            }
        }
    }

    fn connected(&mut self) -> Option<&mut Client> {
        if self.client.is_none() {
            match self.door.open() {
                Ok(client) => {
                    client.set_read_timeout(SILENCE_MAX);
                    self.client = Some(client);
                }
                Err(_) => {
                    self.notes.told.closed += 1;
                    thread::sleep(PACE * 5);
                }
            }
        }
        self.client.as_mut()
    }
}

/// What a GET of a number was answered.
#[track_caller]
fn number_of(reply: &Value) -> Option<i64> {
    match reply {
        Value::Null => None,
        Value::Bulk(_) => Some(reply.text().parse().unwrap()),
        reply => panic!("a read was answered {reply:?}"),
    }
}

#[derive(Default)]
struct Collection {
    additions: BTreeMap<u64, Addition>,
    looks: Vec<Look>,
    last: Vec<u64>,
}

/// What all clients were told, and what there is in the end.
#[derive(Default)]
pub struct Findings {
    operations: BTreeMap<String, Vec<Operation>>,
    collections: BTreeMap<String, Collection>,
    /// How it went at each proxy.
    pub told: [Told; 2],
}

impl Findings {
    /// Reads everything once more.
    #[track_caller]
    fn read_all(&mut self, door: &Door, start: Instant) {
        let mut client = door.open().unwrap();
        for (key, history) in &mut self.operations {
            let begun = micros(start);
            let seen = number_of(&client.command(&["GET", key]));
            history.push(Operation {
                client: 0,
                begun,
                ended: Some(micros(start)),
                action: Action::Read(seen),
            });
        }
        for (key, collection) in &mut self.collections {
            let read = if key.starts_with("list") {
                vec!["LRANGE", key, "0", "-1"]
            } else {
                vec!["SMEMBERS", key]
            };
            let (Value::Array(held) | Value::Set(held)) = client.command(&read) else {
                panic!("{key} cannot be read");
            };
            collection.last = held.iter().map(|element| element.text().parse().unwrap()).collect();
        }
    }

    /// What is wrong with it, a sentence each.
    pub fn wrong(&self, promise: Promise) -> Vec<String> {
        let mut wrong = Vec::new();
        for (key, history) in &self.operations {
            match promise {
                Promise::Kept => {
                    if let Err(why) = linear::check(history) {
                        wrong.push(format!("{key}: {why}"));
                    }
                }
                Promise::Async => {
                    let early = history.iter().filter(|operation| !imaginable(operation, history));
                    wrong.extend(early.map(|operation| format!("{key}: nothing explains {operation}")));
                }
            }
        }
        for (key, collection) in &self.collections {
            // Whose connection was lost may have been overtaken by itself.
            let closed = self.told.iter().any(|told| told.closed > 0);
            if key.starts_with("list") && !closed && !collection.last.is_sorted() {
                wrong.push(format!("{key}: its client added in another order"));
            }
            let faults = elements::faults(&collection.additions, &collection.looks, &collection.last);
            let faults = faults
                .into_iter()
                .filter(|fault| promise == Promise::Kept || !fault.is_loss());
            wrong.extend(faults.map(|fault| format!("{key}: {fault}")));
        }
        wrong
    }

    /// How many elements were acknowledged, and how many of those are not there.
    pub fn lost(&self) -> (usize, usize) {
        let (mut acknowledged, mut lost) = (0, 0);
        for collection in self.collections.values() {
            let held: BTreeSet<u64> = collection.last.iter().copied().collect();
            for (element, addition) in &collection.additions {
                if matches!(addition.fate, Fate::Done(_)) {
                    acknowledged += 1;
                    lost += usize::from(!held.contains(element));
                }
            }
        }
        (acknowledged, lost)
    }
}

/// Whether what was seen was asked for before it was seen; that it is the newest is not asked.
fn imaginable(operation: &Operation, history: &[Operation]) -> bool {
    let Some(ended) = operation.ended else { return true };
    let before = |other: &&Operation| other.begun <= ended;
    let counted = || {
        history
            .iter()
            .filter(before)
            .filter(|other| matches!(other.action, Action::Add(_)))
            .count()
    };
    let within = |sum: i64| usize::try_from(sum).is_ok_and(|sum| sum <= counted());
    match operation.action {
        Action::Write(_) | Action::Read(None) | Action::Add(None) => true,
        Action::Add(Some(sum)) => within(sum),
        Action::Read(Some(seen)) => {
            history
                .iter()
                .filter(before)
                .any(|other| other.action == Action::Write(seen))
                || within(seen)
        }
    }
}
