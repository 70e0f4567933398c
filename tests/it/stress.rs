//! Random clients before a master that is parked, killed and started again, and a replica that freezes: whatever
//! happens, each command has one reply, of its own kind, to its own client, in order.
//!
//! `POINTSMAN_SEED` repeats a run's choices (not its timing), `POINTSMAN_STRESS_S` makes it longer.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pointsman::clock;

use crate::support::{Client, Dice, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port};

const CLIENTS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(15);

/// What a reply must be, unless it is an error that a failing master explains.
#[derive(Clone, Debug)]
enum Expected {
    Ok,
    Queued,
    Exactly(String),
    /// A value of this client's, or none.
    OwnValue,
    Number,
    /// EXEC's array of so many, or nil.
    Executed(usize),
    Popped,
}

/// One client's next pipeline and what must come of it.
struct Pipeline {
    bytes: Vec<u8>,
    expected: Vec<Expected>,
}

impl Pipeline {
    fn push(&mut self, words: &[&str], expected: Expected) {
        self.bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.bytes
                .extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        self.expected.push(expected);
    }

    fn random(dice: &mut Dice, client: u64, round: u64) -> Self {
        let mut pipeline = Self {
            bytes: Vec::new(),
            expected: Vec::new(),
        };
        for number in 0..=dice.roll(20) {
            let key = format!("c{client}:{}", dice.roll(4));
            let value = format!("c{client}-{round}-{number}");
            match dice.roll(16) {
                0..=3 => pipeline.push(&["SET", &key, &value], Expected::Ok),
                4..=7 => pipeline.push(&["GET", &key], Expected::OwnValue),
                8 => pipeline.push(&["ECHO", &value], Expected::Exactly(value.clone())),
                9 => pipeline.push(&["INCR", &format!("n{client}")], Expected::Number),
                10 => {
                    pipeline.push(&["MULTI"], Expected::Ok);
                    pipeline.push(&["SET", &key, &value], Expected::Queued);
                    pipeline.push(&["GET", &key], Expected::Queued);
                    pipeline.push(&["EXEC"], Expected::Executed(2));
                }
                11 => {
                    pipeline.push(&["WATCH", &key], Expected::Ok);
                    pipeline.push(&["MULTI"], Expected::Ok);
                    pipeline.push(&["SET", &key, &value], Expected::Queued);
                    pipeline.push(&["EXEC"], Expected::Executed(1));
                }
                12 => pipeline.push(&["BLPOP", &format!("q{client}"), "0.02"], Expected::Popped),
                13 => {
                    pipeline.push(&["RPUSH", &format!("q{client}"), &value], Expected::Number);
                }
                14 => pipeline.push(&["SELECT", &dice.roll(2).to_string()], Expected::Ok),
                _ => {
                    let large = format!("c{client}-{}", "x".repeat(200_000 + dice.roll(120_000) as usize));
                    pipeline.push(&["SET", &key, &large], Expected::Ok);
                }
            }
        }
        pipeline
    }
}

/// Whether `reply` is what Redis would say, or what we say of a lost or absent master.
fn is_right(reply: &Value, expected: &Expected, client: u64) -> bool {
    if let Value::Error(line) = reply {
        // A refusal is shown where a later command of the same client was executed: the master came back (rule A3).
        return [
            "INDOUBT",
            "MASTERDOWN",
            "EXECABORT",
            "READONLY",
            "UNBLOCKED force unblock",
        ]
        .iter()
        .any(|word| line.starts_with(word));
    }
    let own = |bytes: &[u8]| bytes.starts_with(format!("c{client}-").as_bytes());
    match (expected, reply) {
        (Expected::Ok, Value::Simple(text)) => text == "OK",
        (Expected::Queued, Value::Simple(text)) => text == "QUEUED",
        (Expected::Exactly(text), Value::Bulk(bytes)) => bytes == text.as_bytes(),
        (Expected::OwnValue, Value::Bulk(bytes)) => own(bytes),
        (Expected::Executed(count), Value::Array(items)) => items.len() == *count,
        (Expected::Popped, Value::Array(items)) => items.len() == 2,
        (Expected::Number, Value::Int(_))
        | (Expected::OwnValue | Expected::Executed(_) | Expected::Popped, Value::Null) => true,
        _ => false,
    }
}

fn live(client: u64, seed: u64, listen: &str, stop: &AtomicBool) -> u64 {
    let mut dice = Dice(seed ^ (client << 32));
    let (mut round, mut closed) = (0, 0);
    let connect = || {
        let connection = Client::connect(listen);
        connection.set_read_timeout(PATIENCE);
        connection
    };
    let mut connection = connect();
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let pipeline = Pipeline::random(&mut dice, client, round);
        let mut writer = connection.stream().try_clone().unwrap();
        let bytes = pipeline.bytes.clone();
        let sending = thread::spawn(move || {
            let _closed_meanwhile = std::io::Write::write_all(&mut writer, &bytes);
        });
        for (at, expected) in pipeline.expected.iter().enumerate() {
            match connection.try_read_reply() {
                Ok(reply) => assert!(
                    is_right(&reply, expected, client),
                    "seed {seed}, client {client}, round {round}, command {at}: {reply:.200?} is not {expected:?}"
                ),
                Err(error) => {
                    let hangs = matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    );
                    assert!(
                        !hangs,
                        "seed {seed}, client {client}, round {round}, command {at}: no reply"
                    );
                    closed += 1;
                    connection = connect();
                    break;
                }
            }
        }
        sending.join().unwrap();
    }
    closed
}

#[test]
fn random_clients_get_their_own_replies_whatever_happens_to_redis() {
    let seed = env::var("POINTSMAN_SEED").map_or_else(|_| clock::unix_ms(), |seed| seed.parse().unwrap());
    let length = env::var("POINTSMAN_STRESS_S").map_or(6, |seconds| seconds.parse().unwrap());
    println!("POINTSMAN_SEED={seed}");
    let mut master = Redis::start(&["--repl-diskless-sync", "no"]);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let listen = format!("127.0.0.1:{}", free_port());
    let mut proxy = Pointsman::start(&[
        "proxy",
        "--listen",
        &listen,
        "--master",
        &master.addr(),
        "--replica",
        &replica.addr(),
        "--workers",
        "2",
    ]);
    proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
    let stop = AtomicBool::new(false);
    let closed: u64 = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (listen, stop) = (&listen, &stop);
                scope.spawn(move || live(client, seed, listen, stop))
            })
            .collect();
        let mut dice = Dice(seed);
        let end = clock::now() + Duration::from_secs(length);
        while clock::now() < end && !clients.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(100 + dice.roll(300)));
            match dice.roll(4) {
                0 => {
                    master.kill9();
                    master.restart();
                }
                1 => {
                    master.command(&["REPLICAOF", "127.0.0.1", "1"]);
                    thread::sleep(Duration::from_millis(dice.roll(100)));
                    master.command(&["REPLICAOF", "NO", "ONE"]);
                }
                2 => {
                    replica.stop();
                    thread::sleep(Duration::from_millis(50 + dice.roll(200)));
                    replica.cont();
                }
                _ => {
                    master.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let log = proxy.log();
    assert!(!log.contains("panicked"), "seed {seed}: {log}");
    assert!(proxy.is_running(), "seed {seed}: {log}");
    println!("{closed} connections were closed in the middle of a reply or a large request");
    // All is well again, for new clients and for old lanes.
    eventually(PATIENCE, || {
        Client::connect(&*listen).command(&["SET", "end", "1"]) == Value::ok()
    });
}
