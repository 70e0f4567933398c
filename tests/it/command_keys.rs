//! The command table against a real redis-server: key positions agree with `COMMAND GETKEYS`, refusals with its errors.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pointsman::command::{Flags, KeyPositions, Lookup, Row, RowSpec, Table, refusal};
use pointsman::resp::{Args, Span};
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::{BytesFrame, Resp2Frame};

/// Invocations that are tried for each command.
const TRIES: usize = 60;
/// Fixed, so that a failure is seen again.
const SEED: u64 = 20_261_124;

type Words = Vec<Vec<u8>>;

#[test]
fn keys_are_where_the_server_finds_them() {
    let mut server = Server::start();
    let mut dice = Dice(SEED);
    let (mut commands, mut compared) = (0, 0);
    for mut row in rows().into_iter().filter(|row| !row.keys.is_empty()) {
        // The table is the loosest of several versions; this server refuses what its own number of arguments forbids.
        let Some(arity) = server.arity(&row.name) else { continue };
        row.arity = arity;
        commands += 1;
        for _ in 0..TRIES {
            let request = invocation(&row, &mut dice);
            let shown = shown(&request);
            let theirs = server.keys(&request);
            let ours = our_keys(&request);
            let Some(theirs) = theirs else { continue };
            // A number of keys that is none comes as an error from us, as an empty list from here.
            assert_eq!(sorted(ours.unwrap_or_default()), sorted(theirs), "seed {SEED}: {shown}");
            compared += 1;
        }
    }
    assert!(commands > 150, "the server knows {commands} commands with keys");
    assert!(
        compared > commands * TRIES / 2,
        "only {compared} invocations were legal"
    );
}

#[test]
fn refusals_are_in_the_servers_own_words() {
    let mut server = Server::start();
    let long = "x".repeat(300);
    let half = "y".repeat(100);
    let mut requests: Vec<Words> = vec![
        words(&["nosuch"]),
        words(&["NoSuch", "a", "b"]),
        words(&["nosuch", &long, "b"]),
        words(&["nosuch", &half, &half, "c"]),
        words(&["nosuch", &"z".repeat(127), "b"]),
        words(&["nosuch", &"z".repeat(125), "b", "c"]),
        words(&["nosuch", &"z".repeat(128), "b"]),
        words(&[&long, "a"]),
        words(&["no\r\nsuch", "a\nb"]),
        words(&["no\0such", "a\0b", "c"]),
        words(&["nosuch", "", ""]),
        words(&["", "a"]),
        words(&["config|get", "a"]),
        words(&["get"]),
        words(&["GET", "a", "b"]),
        words(&["config"]),
        words(&["CONFIG", "GET"]),
        words(&["Config", "nosuch", "a"]),
        words(&["object", &long]),
        words(&["xgroup", "a\r\nb\0c"]),
        words(&["memory", ""]),
    ];
    let mut dice = Dice(SEED);
    for _ in 0..200 {
        let count = 1 + dice.roll(6);
        requests.push((0..count).map(|_| dice.bytes(90)).collect());
    }
    for request in requests {
        let ours = our_refusal(&request).unwrap_or_else(|| panic!("{} is a command", shown(&request)));
        let theirs = server.line(&request);
        assert_eq!(shown(&[ours]), shown(&[theirs]), "seed {SEED}: {}", shown(&request));
    }
}

#[test]
fn a_servers_own_list_adds_nothing_and_changes_no_class() {
    let mut server = Server::start();
    let reply = server.ask(&words(&["COMMAND"]));
    let builtin = Table::builtin();
    let merged = builtin.merged_with(&reply).unwrap();
    for (before, after) in builtin.iter().zip(merged.iter()) {
        assert_eq!(
            (before.class, before.lane, before.is_write()),
            (after.class, after.lane, after.is_write()),
            "{after}"
        );
        assert_eq!(before.arity, after.arity, "{after}");
    }
    let added: Vec<_> = merged
        .iter()
        .skip(builtin.iter().len())
        .filter(|command| !command.flags.has(Flags::MODULE))
        .map(|command| &*command.name)
        .collect();
    assert_eq!(added, Vec::<&str>::new());
}

/// A request for a command that is mostly legal as far as its keys go.
fn invocation(row: &Row, dice: &mut Dice) -> Words {
    let mut request: Words = row.name.split('|').map(|part| part.as_bytes().to_vec()).collect();
    match row.name.as_str() {
        "xread" | "xreadgroup" => streams(&row.name, &mut request, dice),
        "sort" | "sort_ro" => sort(&row.name, &mut request, dice),
        "migrate" => migrate(&mut request, dice),
        _ => by_specs(row, &mut request, dice),
    }
    request
}

fn by_specs(row: &Row, request: &mut Words, dice: &mut Dice) {
    let least = row.arity.unsigned_abs() as usize;
    let more = if row.arity < 0 { dice.roll(7) } else { 0 };
    while request.len() < least + more {
        request.push(format!("w{}", request.len()).into());
    }
    let mut destination = dice.roll(2) == 0;
    for spec in &row.keys {
        match spec {
            RowSpec {
                index: Some(index),
                keynum: Some([number, first, _]),
                ..
            } => {
                let (at, first) = ((index + number) as usize, (index + first) as usize);
                let room = request.len().saturating_sub(first);
                request[at] = dice.count(room);
            }
            RowSpec {
                keyword: Some((word, from)),
                ..
            } if std::mem::take(&mut destination) => {
                let room = request.len().saturating_sub(*from as usize);
                let word = if dice.roll(2) == 0 {
                    word.to_lowercase()
                } else {
                    word.clone()
                };
                if room > 1 {
                    let at = *from as usize + dice.roll(room - 1);
                    request[at] = word.into();
                }
            }
            _ => {}
        }
    }
}

fn streams(name: &str, request: &mut Words, dice: &mut Dice) {
    if name == "xreadgroup" {
        request.extend(words(&["GROUP", "g", "c"]));
    }
    for option in [["COUNT", "5"], ["block", "7"]] {
        if dice.roll(2) == 0 {
            request.extend(words(&option));
        }
    }
    request.push(b"Streams".to_vec());
    let count = 1 + dice.roll(4);
    request.extend((0..2 * count).map(|number| format!("s{number}").into_bytes()));
}

fn sort(name: &str, request: &mut Words, dice: &mut Dice) {
    request.push(b"list".to_vec());
    for _ in 0..dice.roll(4) {
        let options = [
            &["BY", "store"][..],
            &["get", "limit"],
            &["LIMIT", "0", "1"],
            &["ALPHA"],
            &["DESC"],
        ];
        request.extend(words(options[dice.roll(options.len())]));
    }
    if name == "sort" && dice.roll(2) == 0 {
        request.extend(words(&["store", "destination"]));
    }
}

fn migrate(request: &mut Words, dice: &mut Dice) {
    let several = dice.roll(2) == 0;
    request.extend(words(&["host", "6379", if several { "" } else { "key" }, "0", "5"]));
    request.extend(words(&["COPY", "REPLACE"][..dice.roll(3)]));
    if several {
        request.extend(words(&["KEYS", "a", "b", "c"][..2 + dice.roll(3)]));
    }
}

fn our_keys(request: &Words) -> Option<Words> {
    with_args(request, |args| {
        let table = Table::builtin();
        let Lookup::Known(command) = table.lookup(args) else {
            panic!("{} is unknown", shown(request))
        };
        let mut found = KeyPositions::new();
        command.keys(args, &mut found).ok()?;
        Some(found.keys().map(|at| request[at].clone()).collect())
    })
}

/// Servers before 7.0 name the destination last.
fn sorted(mut keys: Words) -> Words {
    keys.sort();
    keys
}

fn our_refusal(request: &Words) -> Option<Vec<u8>> {
    with_args(request, |args| {
        let mut out = Vec::new();
        match Table::builtin().lookup(args) {
            Lookup::Known(command) if command.arity_ok(args.len()) => return None,
            Lookup::Known(command) => refusal::wrong_arity(command, &mut out),
            Lookup::UnknownSubcommand(_) => refusal::unknown_subcommand(args, &mut out),
            Lookup::Unknown => refusal::unknown_command(args, &mut out),
        }
        Some(out)
    })
}

fn rows() -> Vec<Row> {
    serde_json::from_str(include_str!("../../src/command/commands.json")).unwrap()
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn shown(request: &[Vec<u8>]) -> String {
    let words: Vec<_> = request.iter().map(|word| word.escape_ascii().to_string()).collect();
    words.join(" ")
}

fn with_args<T>(request: &Words, test: impl FnOnce(&Args) -> T) -> T {
    let mut start = 0;
    let spans: Vec<Span> = request
        .iter()
        .map(|word| {
            let span = Span {
                start,
                len: word.len() as u32,
            };
            start += span.len;
            span
        })
        .collect();
    test(&Args::new(&request.concat(), &spans))
}

/// Repeatable random numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn roll(&mut self, sides: usize) -> usize {
        (self.next() % sides as u64) as usize
    }

    /// A number of keys, now and then one that is none.
    fn count(&mut self, room: usize) -> Vec<u8> {
        // Not "01" and numbers past 2^31: COMMAND GETKEYS takes them for others, the commands themselves refuse them.
        let odd = ["0", "-1", "99", "x", ""];
        match self.roll(6) {
            0 => odd[self.roll(odd.len())].into(),
            _ => (1 + self.roll(room.max(1))).to_string().into(),
        }
    }

    fn bytes(&mut self, length_max: usize) -> Vec<u8> {
        let length = self.roll(length_max + 1);
        (0..length).map(|_| b"\0\r\nab'\"\\|\xff Z"[self.roll(12)]).collect()
    }
}

/// A redis-server on a free loopback port and one connection to it. It dies with this test's thread, or when dropped.
struct Server {
    process: Child,
    connection: BufReader<TcpStream>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Program::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "redis-server",
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .args(["--port", &port.to_string(), "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let connection = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "redis-server does not answer: {error}"),
            }
            std::thread::yield_now();
        };
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self {
            process,
            connection: BufReader::new(connection),
            _dir: dir,
        }
    }

    fn send(&mut self, request: &Words) {
        let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
        for word in request {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(word.iter().chain(b"\r\n"));
        }
        self.connection.get_mut().write_all(&bytes).unwrap();
    }

    /// The reply as it is on the wire, for one-line replies.
    fn line(&mut self, request: &Words) -> Vec<u8> {
        self.send(request);
        let mut line = Vec::new();
        self.connection.read_until(b'\n', &mut line).unwrap();
        line
    }

    fn ask(&mut self, request: &Words) -> BytesFrame {
        self.send(request);
        let mut bytes = Vec::new();
        loop {
            if let Some((frame, _)) = decode_bytes(&Bytes::copy_from_slice(&bytes)).unwrap() {
                return frame;
            }
            let more = self.connection.fill_buf().unwrap().len();
            assert!(more > 0, "the server has closed the connection");
            let end = bytes.len();
            bytes.resize(end + more, 0);
            self.connection.read_exact(&mut bytes[end..]).unwrap();
        }
    }

    /// The number of arguments a command takes here; `None` if it is unknown.
    fn arity(&mut self, name: &str) -> Option<i32> {
        let BytesFrame::Array(found) = self.ask(&words(&["COMMAND", "INFO", name])) else {
            return None;
        };
        let Some(BytesFrame::Array(fields)) = found.into_iter().next() else {
            return None;
        };
        match fields.get(1) {
            Some(BytesFrame::Integer(arity)) => i32::try_from(*arity).ok(),
            _ => None,
        }
    }

    /// What `COMMAND GETKEYS` says; `None` if it finds the request wrong, as the command itself would, save that PFMERGE
    /// of nothing is right.
    fn keys(&mut self, request: &Words) -> Option<Words> {
        let asked: Words = words(&["COMMAND", "GETKEYS"])
            .into_iter()
            .chain(request.iter().cloned())
            .collect();
        match self.ask(&asked) {
            BytesFrame::Array(keys) => Some(keys.iter().map(|key| key.as_bytes().unwrap().to_vec()).collect()),
            BytesFrame::Error(error) if error.contains("has no key arguments") => Some(Words::new()),
            _ => None,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
