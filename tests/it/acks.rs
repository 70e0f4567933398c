//! Acknowledgement by replicas: no reply shows what too few replicas have.
//!
//! Each test runs against `redis-server`, and against every server that `POINTSMAN_SERVERS` names, a list of paths with
//! ':' between them:
//!
//! ```text
//! POINTSMAN_SERVERS=DIR/redis-server-6.2:DIR/redis-server-8.0:DIR/valkey-server-8.1 cargo nextest run --test it -E 'test(acks)'
//! ```

use std::env;
use std::time::{Duration, Instant};

use crate::support::{Client, Pointsman, Redis, START_DEADLINE, Value, encode, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);
/// Longer than the proxies of these tests wait for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(10);
const NOBODY: &str = "INDOUBT written on the master, acknowledged by 0 of 1 replicas";

/// A master, its replicas, and a proxy that asks for `w` acknowledgements.
struct Shard {
    master: Redis,
    replicas: Vec<Redis>,
    _proxy: Pointsman,
    listen: String,
}

impl Shard {
    fn start(binary: &str, replicas: usize, w: usize, settings: &str) -> Self {
        let master = Redis::start_binary(binary, &["--repl-diskless-sync-delay", "0"]);
        let port = master.port().to_string();
        let follow = |_| Redis::start_binary(binary, &["--replicaof", "127.0.0.1", &port]);
        let replicas: Vec<Redis> = (0..replicas).map(follow).collect();
        eventually(SOON, || replicas.iter().all(is_linked));
        let listen = format!("127.0.0.1:{}", free_port());
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("proxy.toml");
        let named: Vec<String> = replicas.iter().map(|replica| format!("'{}'", replica.addr())).collect();
        let text = format!(
            "[proxy]\nlisten = ['{listen}']\nmaster = '{}'\nreplicas = [{}]\nack_replicas = {w}\n{settings}",
            master.addr(),
            named.join(", ")
        );
        std::fs::write(&config, text).unwrap();
        let mut proxy = Pointsman::start(&["proxy", "--workers", "2", "--config", config.to_str().unwrap()]);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        Self {
            master,
            replicas,
            _proxy: proxy,
            listen,
        }
    }

    fn client(&self) -> Client {
        let client = Client::connect(self.listen.as_str());
        client.set_read_timeout(PATIENCE);
        client
    }
}

fn is_linked(replica: &Redis) -> bool {
    replica
        .command(&["INFO", "replication"])
        .text()
        .contains("master_link_status:up")
}

/// Runs a test against all servers there are.
fn on_every_server(test: impl Fn(&str)) {
    let named = env::var("POINTSMAN_SERVERS").unwrap_or_default();
    let named = named.split(':').filter(|path| !path.is_empty());
    for binary in std::iter::once("redis-server").chain(named) {
        println!("{binary}");
        test(binary);
    }
}

/// The time that `act` takes.
fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let done = act();
    (done, begin.elapsed())
}

#[test]
fn nothing_is_acknowledged_while_the_replica_is_frozen() {
    on_every_server(|binary| {
        let shard = Shard::start(binary, 1, 1, "ack_timeout_ms = 400\n");
        let mut client = shard.client();
        for round in 0..100 {
            assert_eq!(client.command(&["SET", "before", &round.to_string()]), Value::ok());
        }
        shard.replicas[0].stop();
        for write in [
            &["SET", "k", "1"][..],
            &["EVAL", "return redis.call('incr', KEYS[1])", "1", "n"],
        ] {
            let (reply, took) = timed(|| client.command(write));
            assert_eq!(reply, Value::Error(NOBODY.to_owned()), "{write:?}");
            assert!(
                took >= Duration::from_millis(400) && took < Duration::from_secs(3),
                "{took:?}"
            );
        }
        assert_eq!(shard.master.command(&["GET", "k"]), Value::bulk("1"), "it is written");
        let (pong, took) = timed(|| client.command(&["PING"]));
        assert_eq!(
            (pong, took < Duration::from_millis(300)),
            (Value::Simple("PONG".into()), true)
        );
        shard.replicas[0].cont();
        // It takes the first round after it is back.
        eventually(SOON, || client.command(&["SET", "k", "2"]) == Value::ok());
        assert_eq!(client.command(&["SET", "k", "3"]), Value::ok());
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("3"));
        shard.replicas[0].stop();
        let (late, shown) = (shard.client(), shard.client());
        let mut late = late;
        late.send(&encode(&["SET", "late", "1"]));
        eventually(SOON, || shard.master.command(&["GET", "late"]) == Value::bulk("1"));
        drop(shown);
        shard.replicas[0].cont();
        assert_eq!(late.read_reply(), Value::ok(), "the replica went on in time");
    });
}
