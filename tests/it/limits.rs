//! The limits of design §12 at the limit and one past it, through the proxy, and what many clients cost.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pointsman::clock;
use pointsman::resp::{ARGUMENTS_MAX, ARGUMENTS_MAX_LATER, BULK_BYTES_MAX, INLINE_BYTES_MAX};

use crate::support::{Circuit, Client, Value, eventually};

const LIMIT: Duration = Duration::from_secs(60);
/// Commands that a session may have in flight before it is not read from.
const IN_FLIGHT_MAX: usize = 4096;

impl Circuit {
    /// A figure of the proxy's `/proc/PID/status`, in KiB.
    pub fn memory_kib(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap()
    }

    /// What the proxy says first to `bytes`, which must be what Redis says.
    #[track_caller]
    fn first_reply(&self, bytes: &[u8]) -> Value {
        let (mut ours, mut theirs) = (self.client(), self.redis.client());
        ours.send(bytes);
        theirs.send(bytes);
        let reply = ours.read_reply();
        assert_eq!(reply, theirs.read_reply());
        reply
    }

    /// The proxy refuses `bytes` with these words and closes.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], words: &str) {
        let mut client = self.client();
        client.send(bytes);
        assert_eq!(client.read_reply(), Value::Error(words.to_owned()));
        assert!(client.is_closed());
    }

    /// The proxy waits for the rest of `bytes`, and serves others meanwhile.
    #[track_caller]
    fn waits_after(&self, bytes: &[u8]) {
        let mut client = self.client();
        client.send(bytes);
        assert_eq!(self.client().command(&["PING"]), self.redis.command(&["PING"]));
        client.set_read_timeout(Duration::from_millis(200));
        let silence = client.try_read_reply().map_err(|error| error.kind());
        assert_eq!(silence, Err(std::io::ErrorKind::WouldBlock));
    }
}

#[test]
fn an_inline_request_may_have_64_kib_and_not_a_byte_more() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let line = format!("ECHO {}", "x".repeat(INLINE_BYTES_MAX - "ECHO ".len()));
    client.send(line.as_bytes());
    client.send(b"\r\n");
    assert_eq!(client.read_reply(), Value::bulk(&line["ECHO ".len()..]));
    let too_long = format!("{line}x");
    let refusal = circuit.first_reply(too_long.as_bytes());
    circuit.refuses(too_long.as_bytes(), "ERR Protocol error: too big inline request");
    assert!(refusal.is_error("ERR Protocol error: too big inline request"));
}

#[test]
fn header_lines_that_do_not_end_get_the_words_of_redis() {
    let circuit = Circuit::start(&[]);
    let digits = "1".repeat(INLINE_BYTES_MAX);
    for (line, words) in [
        (format!("*{digits}"), "ERR Protocol error: too big mbulk count string"),
        (
            format!("*1\r\n${digits}"),
            "ERR Protocol error: too big bulk count string",
        ),
    ] {
        assert!(circuit.first_reply(line.as_bytes()).is_error(words));
        circuit.refuses(line.as_bytes(), words);
    }
}

#[test]
fn a_request_may_have_as_many_arguments_as_redis_takes_and_not_one_more() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    // More than servers before 7.0 take.
    let keys = usize::try_from(ARGUMENTS_MAX).unwrap();
    let mut request = format!("*{}\r\n$6\r\nEXISTS\r\n", keys + 1).into_bytes();
    request.extend_from_slice(&b"$1\r\nk\r\n".repeat(keys));
    client.send(&request);
    assert_eq!(client.read_reply(), Value::Int(i64::try_from(keys).unwrap()));
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    circuit.waits_after(format!("*{ARGUMENTS_MAX_LATER}\r\n").as_bytes());
    let header = format!("*{}\r\n", ARGUMENTS_MAX_LATER + 1);
    circuit.refuses(header.as_bytes(), "ERR Protocol error: invalid multibulk length");
}

#[test]
fn an_argument_may_have_512_mb_and_not_a_byte_more() {
    let circuit = Circuit::start(&[]);
    let header = |bytes: u64| format!("*2\r\n$4\r\nECHO\r\n${bytes}\r\n").into_bytes();
    circuit.waits_after(&header(BULK_BYTES_MAX));
    let refusal = circuit.first_reply(&header(BULK_BYTES_MAX + 1));
    assert!(refusal.is_error("ERR Protocol error: invalid bulk length"));
    circuit.refuses(&header(BULK_BYTES_MAX + 1), "ERR Protocol error: invalid bulk length");
}

#[test]
fn strangers_may_send_ten_arguments_of_16_kib_and_no_more() {
    let circuit = Circuit::start(&["--requirepass", "secret"]);
    circuit.waits_after(b"*10\r\n");
    circuit.waits_after(b"*2\r\n$4\r\nAUTH\r\n$16384\r\n");
    for (bytes, words) in [
        (&b"*11\r\n"[..], "ERR Protocol error: unauthenticated multibulk length"),
        (
            b"*2\r\n$4\r\nAUTH\r\n$16385\r\n",
            "ERR Protocol error: unauthenticated bulk length",
        ),
    ] {
        assert!(circuit.first_reply(bytes).is_error(words));
        circuit.refuses(bytes, words);
    }
}

#[test]
fn one_command_more_than_may_be_in_flight_waits_and_is_answered() {
    let circuit = Circuit::start(&[]);
    for count in [
        IN_FLIGHT_MAX - 1,
        IN_FLIGHT_MAX,
        IN_FLIGHT_MAX + 1,
        3 * IN_FLIGHT_MAX + 1,
    ] {
        let mut client = circuit.client();
        circuit.redis.stop();
        let pipeline: Vec<u8> = (0..count)
            .flat_map(|number| format!("*2\r\n$4\r\nECHO\r\n$5\r\n{number:05}\r\n").into_bytes())
            .collect();
        client.send(&pipeline);
        circuit.redis.cont();
        for number in 0..count {
            assert_eq!(client.read_reply(), Value::bulk(&format!("{number:05}")), "of {count}");
        }
    }
}

#[test]
fn what_a_client_has_in_flight_is_bounded_while_redis_answers_nothing() {
    const COMMANDS: usize = 100_000;
    const VALUE_BYTES: usize = 1024;
    const STILL: Duration = Duration::from_millis(700);
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    let before_kib = circuit.memory_kib("VmRSS");
    let request = format!(
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${VALUE_BYTES}\r\n{}\r\n",
        "x".repeat(VALUE_BYTES)
    );
    circuit.redis.stop();
    let (mut writer, sent) = (client.stream().try_clone().unwrap(), Arc::new(AtomicUsize::new(0)));
    writer.set_write_timeout(Some(LIMIT)).unwrap();
    let counter = sent.clone();
    let sender = thread::spawn(move || {
        for _ in 0..COMMANDS {
            writer.write_all(request.as_bytes()).unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut last = (0, clock::now());
    eventually(LIMIT, || {
        let now = sent.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, clock::now());
        }
        now > 0 && clock::now() - last.1 >= STILL
    });
    let (taken, grown_kib) = (last.0 * VALUE_BYTES / 1024, circuit.memory_kib("VmHWM") - before_kib);
    circuit.redis.cont();
    assert!(last.0 < COMMANDS, "everything was taken");
    // Most of what is taken lies in the kernel's buffers.
    assert!(grown_kib < 24 * 1024, "{grown_kib} KiB grown, {taken} KiB taken");
    for number in 0..COMMANDS {
        assert_eq!(client.read_reply(), Value::ok(), "command {number}");
    }
    sender.join().unwrap();
}

#[test]
fn five_thousand_idle_connections_are_served_and_cost_two_kib_each() {
    const CONNECTIONS: usize = 5_000;
    /// Enough to have everything allocated once that does not depend on their number.
    const FIRST: usize = 100;
    const KIB_MAX: f64 = 2.0;
    if !raise_descriptors(CONNECTIONS + 500) {
        println!(
            "skipped: the hard limit of file descriptors is below {}",
            CONNECTIONS + 500
        );
        return;
    }
    let circuit = Circuit::start(&[]);
    let serve = |client: &mut Client| assert_eq!(client.command(&["GET", "none"]), Value::Null);
    let connect = |_| {
        let mut client = circuit.client();
        serve(&mut client);
        client
    };
    let mut clients: Vec<Client> = (0..FIRST).map(connect).collect();
    let before = circuit.memory_kib("VmRSS");
    clients.extend((FIRST..CONNECTIONS).map(connect));
    let grown = circuit.memory_kib("VmRSS") - before;
    clients.iter_mut().for_each(serve);
    let each = grown as f64 / (CONNECTIONS - FIRST) as f64;
    println!("{each:.2} KiB for each idle connection");
    assert!(each <= KIB_MAX, "{each:.2} KiB for each idle connection");
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_thousand_subscribers_cost_eight_kib_each() {
    const SUBSCRIBERS: usize = 1_000;
    const FIRST: usize = 100;
    const KIB_MAX: f64 = 8.0;
    if !raise_descriptors(3 * SUBSCRIBERS + 500) {
        println!("skipped: the hard limit of file descriptors is too low");
        return;
    }
    let circuit = Circuit::start(&[]);
    // Each with a channel and a connection of its own; every other one speaks RESP3.
    let subscribe = |number: usize| {
        let (mut client, channel) = (circuit.client(), format!("channel-{number}"));
        let confirmation = vec![Value::bulk("subscribe"), Value::bulk(&channel), Value::Int(1)];
        let expected = if number.is_multiple_of(2) {
            Value::Array(confirmation)
        } else {
            client.command(&["HELLO", "3"]);
            Value::Push(confirmation)
        };
        assert_eq!(client.command(&["SUBSCRIBE", &channel]), expected);
        client
    };
    let heard = |client: &mut Client, number: usize, text: &str| {
        let message = ["message", &format!("channel-{number}"), text]
            .map(Value::bulk)
            .to_vec();
        assert!(matches!(client.read_reply(), Value::Array(heard) | Value::Push(heard) if heard == message));
    };
    let mut clients: Vec<Client> = (0..FIRST).map(subscribe).collect();
    let before = circuit.memory_kib("VmRSS");
    clients.extend((FIRST..SUBSCRIBERS).map(subscribe));
    let grown = circuit.memory_kib("VmRSS") - before;
    let mut publisher = circuit.client();
    // A second round, so that what a message leaves behind counts as well.
    for text in ["one", "two"] {
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(
                publisher.command(&["PUBLISH", &format!("channel-{number}"), text]),
                Value::Int(1)
            );
            heard(client, number, text);
        }
    }
    let after = circuit.memory_kib("VmRSS") - before;
    let each = |kib: usize| kib as f64 / (SUBSCRIBERS - FIRST) as f64;
    println!(
        "{:.2} KiB for each subscriber, {:.2} KiB once it has heard messages",
        each(grown),
        each(after)
    );
    assert!(
        each(after.max(grown)) <= KIB_MAX,
        "{:.2} KiB for each subscriber",
        each(after.max(grown))
    );
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

/// Raises the limit of open files, which the proxy inherits, to at least `wanted`.
fn raise_descriptors(wanted: usize) -> bool {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = u64::try_from(wanted).unwrap();
    if soft < wanted && hard >= wanted {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    hard >= wanted
}
