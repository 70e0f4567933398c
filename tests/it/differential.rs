//! The same bytes to a redis-server and, through a proxy, to another: both answer byte for byte the same.
//!
//! The suite runs the first streams of one seed, so that it finds what was found before; `POINTSMAN_STRESS_S=60` looks for so
//! long with a seed of its own for what was not. `POINTSMAN_SEED` repeats a run, `POINTSMAN_SHOW_ALL` goes on after a difference.
//! What differs is made as short as it can be before it is shown. What the proxy says it does not support yet is no
//! difference; docs/compatibility.md lists that.

mod grammar;

use std::env;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use pointsman::clock;

use crate::support::{Client, Dice, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port, hear_until};
use grammar::Script;

/// The suite's seed, and how many of its streams are sent.
const SEED: u64 = 1;
const STREAMS: usize = 150;
/// How long an answer may be awaited.
const PATIENCE: Duration = Duration::from_secs(10);
/// The last words of each stream, answered whatever state the connection is in.
const LAST_WORDS: &[u8] = b"*1\r\n$5\r\nRESET\r\n*2\r\n$4\r\nPING\r\n$13\r\nthat was all.\r\n";
const LAST_ANSWER: &[u8] = b"+RESET\r\n$13\r\nthat was all.\r\n";

/// A redis-server as it is, and a proxy before a master and its replica.
struct Twins {
    direct: Redis,
    _master: Redis,
    _replica: Redis,
    proxy: Pointsman,
    listen: String,
}

impl Twins {
    fn start() -> Self {
        let direct = Redis::start(&[]);
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"]);
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
        let listen = format!("127.0.0.1:{}", free_port());
        let (master_addr, replica_addr) = (master.addr(), replica.addr());
        let words = [
            "proxy",
            "--listen",
            &listen,
            "--master",
            &master_addr,
            "--replica",
            &replica_addr,
        ];
        let mut proxy = Pointsman::start(&words);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        eventually(START_DEADLINE, || {
            replica
                .command(&["INFO", "replication"])
                .text()
                .contains("master_link_status:up")
        });
        Self {
            direct,
            _master: master,
            _replica: replica,
            proxy,
            listen,
        }
    }

    /// What each of them answers to the same bytes, from the same state.
    fn answers(&self, script: &Script, cuts: u64) -> (Vec<u8>, Vec<u8>) {
        let direct = self.direct.addr();
        let [one, other] = [&direct, &self.listen].map(|addr| {
            let mut client = Client::connect(addr.as_str());
            for words in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FUNCTION", "FLUSH"]] {
                assert_eq!(client.command(words), Value::ok());
            }
            exchange(addr, script, cuts)
        });
        (one, other)
    }

    fn differ(&self, script: &Script, cuts: u64) -> bool {
        let (one, other) = self.answers(script, cuts);
        one != other && !contains(&other, b"-ERR pointsman does not support ")
    }

    /// Leaves out what does not matter to the difference.
    fn shrink(&self, mut script: Script, cuts: u64) -> Script {
        let mut at = 0;
        while at < script.parts.len() {
            let mut shorter = script.clone();
            shorter.parts.remove(at);
            shorter.ends_in_nonsense &= at + 1 < script.parts.len();
            if !shorter.parts.is_empty() && self.differ(&shorter, cuts) {
                script = shorter;
            } else {
                at += 1;
            }
        }
        script
    }
}

/// Sends it in pieces, and reads all that comes.
fn exchange(addr: &str, script: &Script, cuts: u64) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = script.bytes();
    bytes.extend_from_slice(LAST_WORDS);
    let mut dice = Dice(cuts);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = match dice.roll(4) {
            0 => 1 + usize::try_from(dice.roll(20)).unwrap(),
            1 => 1 + usize::try_from(dice.roll(4000)).unwrap(),
            _ => rest.len(),
        };
        let (now, later) = rest.split_at(length.min(rest.len()));
        // After nonsense, and after QUIT, it may be closed already.
        if stream.write_all(now).is_err() {
            break;
        }
        rest = later;
    }
    let mut answer = Vec::new();
    hear_until(&mut stream, LAST_ANSWER, &mut answer);
    without_ids(answer)
}

/// HELLO tells the connection's id, which is nobody's business here.
fn without_ids(answer: Vec<u8>) -> Vec<u8> {
    const BEFORE: &[u8] = b"$2\r\nid\r\n:";
    let mut plain = Vec::with_capacity(answer.len());
    let mut rest = &answer[..];
    while let Some(at) = rest.windows(BEFORE.len()).position(|window| window == BEFORE) {
        let (head, tail) = rest.split_at(at + BEFORE.len());
        plain.extend_from_slice(head);
        let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
        rest = &tail[digits..];
    }
    plain.extend_from_slice(rest);
    plain
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[test]
fn a_proxy_answers_what_the_server_itself_would() {
    let length: Option<u64> = env::var("POINTSMAN_STRESS_S")
        .ok()
        .map(|seconds| seconds.parse().unwrap());
    let drawn = if length.is_some() { clock::unix_ms() } else { SEED };
    let seed = env::var("POINTSMAN_SEED").map_or(drawn, |seed| seed.parse().unwrap());
    let show_all = env::var_os("POINTSMAN_SHOW_ALL").is_some();
    println!("POINTSMAN_SEED={seed}");
    let twins = Twins::start();
    let mut dice = Dice(seed);
    let (mut streams, mut commands, mut differences) = (0, 0, 0);
    let end = length.map(|seconds| clock::now() + Duration::from_secs(seconds));
    while end.map_or(streams < STREAMS, |end| clock::now() < end) {
        let script = Script::draw(&mut dice);
        let cuts = dice.roll(u64::MAX);
        streams += 1;
        commands += script.parts.len();
        if !twins.differ(&script, cuts) {
            continue;
        }
        let short = twins.shrink(script, cuts);
        let (direct, proxied) = twins.answers(&short, cuts);
        differences += 1;
        println!("stream {streams}: {}", shown(&short.bytes()));
        println!("  redis:     {}", shown(&direct));
        println!("  pointsman: {}", shown(&proxied));
        if !show_all {
            break;
        }
    }
    println!("{commands} commands in {streams} streams");
    assert_eq!(differences, 0, "seed {seed}: {}", twins.proxy.log());
}
