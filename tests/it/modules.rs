//! Commands of modules, which only servers can tell of (design §4): a small module, compiled here, with a command of each
//! kind; and names that no server knows.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pointsman::clock;
use tempfile::TempDir;

use crate::support::{Circuit, Client, Pair, Value, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The module of `support/module.c`, compiled.
struct Module {
    dir: TempDir,
}

impl Module {
    fn compile() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/module.c");
        let module = Self { dir };
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o", &module.path()])
            .arg(source)
            .status();
        assert!(
            status.unwrap().success(),
            "cc, which links this test, compiles a module"
        );
        module
    }

    fn path(&self) -> String {
        self.dir.path().join("probe.so").to_str().unwrap().to_owned()
    }
}

/// How often a server was asked about single commands.
fn questions(circuit: &Circuit) -> u64 {
    let stats = circuit.redis.command(&["INFO", "commandstats"]).text();
    let mut lines = stats.lines();
    let line = lines.find_map(|line| line.strip_prefix("cmdstat_command|info:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

fn number(reply: &Value) -> i64 {
    reply.text().parse().unwrap()
}

#[test]
fn a_modules_commands_go_where_they_belong_and_fences_hold() {
    const ROUNDS: i64 = 200;
    let module = Module::compile();
    let pair = Pair::with(&["--loadmodule", &module.path()]);
    let (mut writer, mut reader) = (pair.client(), pair.client());
    for round in 1..=ROUNDS {
        let value = round.to_string();
        // Read with a plain command, on another connection: that one may go to the replica.
        assert_eq!(writer.command(&["probe.set", "k", &value]), Value::ok());
        assert_eq!(reader.command(&["GET", "k"]), Value::bulk(&value));
        // Two keys that only the module can name, the second one read.
        assert_eq!(writer.command(&["PROBE.incr", "label", "a", "b"]), Value::Int(2));
        assert_eq!(number(&reader.command(&["GET", "b"])), round);
        // Written with a plain command, read with the module's.
        assert_eq!(writer.command(&["SET", "p", &value]), Value::ok());
        assert_eq!(reader.command(&["probe.get", "p"]), Value::bulk(&value));
    }
    pair.settle();
    assert_eq!(
        number(&pair.b.command(&["GET", "a"])),
        ROUNDS,
        "what a module writes is replicated"
    );
    assert_eq!(pair.b.command(&["GET", "label"]), Value::Null);
    pair.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_modules_command_that_blocks_keeps_nobody_else_waiting() {
    let module = Module::compile();
    let circuit = Circuit::start(&["--loadmodule", &module.path()]);
    let (mut one, mut other) = (circuit.client(), circuit.client());
    assert_eq!(one.command(&["probe.set", "k", "v"]), Value::ok());
    let since = clock::now();
    one.send(b"probe.wait k\r\nPING\r\n");
    eventually(SOON, || {
        circuit
            .redis
            .command(&["CLIENT", "LIST"])
            .text()
            .contains("cmd=probe.wait")
    });
    assert_eq!(other.command(&["probe.get", "k"]), Value::bulk("v"));
    assert!(
        since.elapsed() < Duration::from_millis(300),
        "it has waited {:?}",
        since.elapsed()
    );
    assert_eq!(one.read_reply(), Value::Int(7));
    assert_eq!(one.read_reply(), Value::Simple("PONG".to_owned()));
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_modules_commands_are_refused_and_queued_as_redis_does_it() {
    let module = Module::compile();
    let circuit = Circuit::start(&["--loadmodule", &module.path()]);
    for mut client in [circuit.client(), circuit.redis.client()] {
        let words = |client: &mut Client, line: &str| {
            client.send(format!("{line}\r\n").as_bytes());
            client.read_reply()
        };
        assert!(words(&mut client, "probe.set a").is_error("ERR wrong number of arguments for 'probe.set' command"));
        assert!(words(&mut client, "probe.nothing a").is_error("ERR unknown command 'probe.nothing', with args"));
        assert_eq!(words(&mut client, "MULTI"), Value::ok());
        for line in ["probe.set a 1", "probe.incr l a", "probe.get a"] {
            assert_eq!(words(&mut client, line), Value::Simple("QUEUED".to_owned()));
        }
        let done = vec![Value::ok(), Value::Int(1), Value::bulk("2")];
        assert_eq!(words(&mut client, "EXEC"), Value::Array(done));
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_client_that_tracks_keys_or_is_subscribed_asks_modules_on_its_own_connection() {
    let module = Module::compile();
    let circuit = Circuit::start(&["--loadmodule", &module.path()]);
    let (mut client, mut other) = (circuit.client(), circuit.client());
    assert!(matches!(client.command(&["HELLO", "3"]), Value::Map(_)));
    assert_eq!(client.command(&["CLIENT", "TRACKING", "ON"]), Value::ok());
    assert_eq!(client.command(&["probe.set", "k", "1"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("1"));
    assert_eq!(other.command(&["probe.incr", "l", "k"]), Value::Int(1));
    let changed = vec![Value::bulk("invalidate"), Value::Array(vec![Value::bulk("k")])];
    assert_eq!(client.read_reply(), Value::Push(changed));
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&["probe.get", "k"]), Value::Simple("QUEUED".to_owned()));
    assert_eq!(client.command(&["EXEC"]), Value::Array(vec![Value::bulk("2")]));
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_module_that_is_loaded_while_the_proxy_runs_is_found_by_the_first_who_asks() {
    let module = Module::compile();
    let circuit = Circuit::start(&["--enable-module-command", "yes"]);
    let mut client = circuit.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    assert!(
        client
            .command(&["probe.early"])
            .is_error("ERR unknown command 'probe.early'")
    );
    assert_eq!(circuit.redis.command(&["MODULE", "LOAD", &module.path()]), Value::ok());
    // In a pipeline, so that order is seen to be kept.
    client.send(b"SET k 1\r\nprobe.get k\r\nprobe.incr l k\r\nGET k\r\n");
    let replies: Vec<Value> = (0..4).map(|_| client.read_reply()).collect();
    assert_eq!(
        replies,
        [Value::ok(), Value::bulk("1"), Value::Int(1), Value::bulk("2")]
    );
    assert_eq!(
        questions(&circuit),
        2,
        "one for each name, and none for what was found with another"
    );
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn names_that_nobody_knows_are_asked_about_once_and_cost_nothing() {
    const NAMES: usize = 30_000;
    const KIB_MAX: usize = 1024;
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    for _ in 0..10 {
        for name in ["NoSuch", "nosuch"] {
            let ours = client.command(&[name, "a", "b c"]);
            assert_eq!(ours, circuit.redis.command(&[name, "a", "b c"]));
            assert!(ours.is_error("ERR unknown command"));
        }
    }
    assert_eq!(questions(&circuit), 1);
    let flood = |client: &mut Client, from: usize| {
        for number in (from..from + NAMES).step_by(100) {
            let names: String = (number..number + 100).map(|name| format!("nosuch{name}\r\n")).collect();
            client.send(names.as_bytes());
            for _ in 0..100 {
                assert!(client.read_reply().is_error("ERR unknown command 'nosuch"));
            }
        }
    };
    flood(&mut client, 0);
    let (before, since) = (circuit.memory_kib("VmRSS"), clock::now());
    flood(&mut client, NAMES);
    let grown = circuit.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown <= KIB_MAX, "{grown} KiB for {NAMES} names");
    // A handful each second.
    let most = 64 * (2 + since.elapsed().as_secs());
    assert!(questions(&circuit) < 64 + 2 * most, "{} questions", questions(&circuit));
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}
