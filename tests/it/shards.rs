//! Several shards behind one address: requests are split by shard and their replies joined.

use crate::support::{Client, Dice, Pointsman, Redis, START_DEADLINE, Value, encode, eventually, free_port};

/// A proxy before three masters that have a third of the slots each.
struct Thirds {
    dir: tempfile::TempDir,
    masters: Vec<Redis>,
    proxy: Pointsman,
    listen: String,
}

impl Thirds {
    fn start() -> Self {
        let masters: Vec<Redis> = (0..3).map(|_| Redis::start(&[])).collect();
        let dir = tempfile::tempdir().unwrap();
        let slots = ["0-5460", "5461-10922", "10923-16383"];
        let shard = |(number, (master, slots)): (usize, (&Redis, &str))| {
            format!(
                "[[topology.shards]]\nid = 's{}'\nslots = ['{slots}']\nnodes = ['{}']\n",
                number + 1,
                master.addr()
            )
        };
        let text: String = masters.iter().zip(slots).enumerate().map(shard).collect();
        let topology = dir.path().join("topology.toml");
        std::fs::write(&topology, text).unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let config = dir.path().join("proxy.toml");
        std::fs::write(&config, "[proxy]\nhold_max_ms = 700\n").unwrap();
        let [topology, config] = [&topology, &config].map(|path| path.to_str().unwrap());
        let words = ["proxy", "--listen", &listen, "--topology", topology, "--config", config];
        let mut proxy = Pointsman::start(&words);
        for shard in ["s1", "s2", "s3"] {
            let shard = format!("shard={shard}");
            proxy.wait_for_line(START_DEADLINE, |line| {
                line.contains("the master serves") && line.contains(&shard)
            });
        }
        Self {
            dir,
            masters,
            proxy,
            listen,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }
}

/// Keys of the first, the second and the third shard (CLUSTER KEYSLOT hello = 866, z = 8157, a = 15495).
const FIRST: &str = "hello";
const SECOND: &str = "z";
const THIRD: &str = "a";

#[test]
fn random_streams_get_the_replies_of_a_single_server() {
    let thirds = Thirds::start();
    let single = Redis::start(&[]);
    let mut dice = Dice(7);
    for stream in 0..60 {
        let mut requests = vec![encode(&["FLUSHALL"])];
        for number in 0..dice.between(5, 60) {
            let mut keys = |least| -> Vec<String> {
                let count = dice.between(least, 9);
                (0..count).map(|_| format!("k{}", dice.roll(25))).collect()
            };
            let mut words: Vec<String> = match number % 9 {
                0 | 1 => {
                    let pairs = keys(1).into_iter().enumerate();
                    let pairs = pairs.flat_map(|(at, key)| [key, format!("v{number}.{at}")]);
                    ["MSET".to_owned()].into_iter().chain(pairs).collect()
                }
                2 | 3 => ["MGET".to_owned()].into_iter().chain(keys(1)).collect(),
                4 => ["DEL".to_owned()].into_iter().chain(keys(1)).collect(),
                5 => ["EXISTS".to_owned()].into_iter().chain(keys(1)).collect(),
                6 => ["TOUCH".to_owned()].into_iter().chain(keys(1)).collect(),
                7 => ["GET".to_owned()]
                    .into_iter()
                    .chain(keys(1).into_iter().take(1))
                    .collect(),
                _ => vec!["DBSIZE".to_owned()],
            };
            if dice.roll(12) == 0 {
                // A request that is wrong, or names nothing.
                words.truncate(2);
            }
            if dice.roll(10) == 0 {
                words = vec!["PING".to_owned(), format!("p{number}")];
            }
            requests.push(encode(&words));
        }
        let bytes = requests.concat();
        let answers = |mut client: Client| -> Vec<Value> {
            client.send(&bytes);
            requests.iter().map(|_| client.read_reply()).collect()
        };
        let (expected, got) = (answers(single.client()), answers(thirds.client()));
        for (at, request) in requests.iter().enumerate() {
            let request = String::from_utf8_lossy(request).replace("\r\n", " ");
            assert_eq!(got[at], expected[at], "stream {stream}, request {at}: {request}");
        }
    }
    let log = thirds.proxy.log();
    assert!(!log.contains("ERROR"), "{log}");
    drop(thirds.dir);
}

#[test]
fn a_hundred_thousand_keys_are_set_got_and_deleted_at_once() {
    let thirds = Thirds::start();
    let mut client = thirds.client();
    let keys: Vec<String> = (0..100_000).map(|number| format!("key:{number}")).collect();
    let ask = |client: &mut Client, name: &str, words: &[&str]| client.command(&[&[name], words].concat());
    let all: Vec<&str> = keys.iter().map(String::as_str).collect();
    let pairs: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), key.as_str()]).collect();
    assert_eq!(ask(&mut client, "MSET", &pairs), Value::ok());
    let sizes: Vec<Value> = thirds
        .masters
        .iter()
        .map(|master| master.command(&["DBSIZE"]))
        .collect();
    assert!(
        sizes.iter().all(|size| matches!(size, Value::Int(30_000..))),
        "{sizes:?}"
    );
    let Value::Array(values) = ask(&mut client, "MGET", &all) else {
        panic!("no array")
    };
    assert!(values.iter().zip(&keys).all(|(value, key)| value.text() == *key));
    assert_eq!(values.len(), keys.len());
    let Value::Array(mut found) = client.command(&["KEYS", "*"]) else {
        panic!("no array")
    };
    found.sort_by_key(Value::text);
    let mut sorted = keys.clone();
    sorted.sort();
    assert!(found.iter().map(Value::text).eq(sorted));
    assert_eq!(ask(&mut client, "UNLINK", &all), Value::Int(100_000));
    assert_eq!(client.command(&["DBSIZE"]), Value::Int(0));
}

/// All keys that a scan gives from this cursor on, and where it stops after so many steps.
fn scanned(client: &mut Client, from: &str, steps: usize) -> (String, Vec<String>) {
    let (mut cursor, mut keys) = (from.to_owned(), Vec::new());
    for _ in 0..steps {
        let Value::Array(parts) = client.command(&["SCAN", &cursor, "COUNT", "50"]) else {
            panic!("no scan")
        };
        let [next, Value::Array(found)] = &parts[..] else {
            panic!("{parts:?}")
        };
        keys.extend(found.iter().map(Value::text));
        cursor = next.text();
        assert!(cursor.parse::<u64>().unwrap() < 1 << 53);
        if cursor == "0" {
            break;
        }
    }
    (cursor, keys)
}

#[test]
fn a_scan_goes_through_all_shards_and_begins_one_anew_whose_server_is_another() {
    let mut thirds = Thirds::start();
    let mut client = thirds.client();
    let keys: Vec<String> = (0..2000).map(|number| format!("key:{number}")).collect();
    let pairs: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), "v"]).collect();
    assert_eq!(client.command(&[&["MSET"], &pairs[..]].concat()), Value::ok());
    let all: std::collections::BTreeSet<String> = keys.into_iter().collect();
    let (end, found) = scanned(&mut client, "0", 1000);
    assert_eq!((end.as_str(), found.len()), ("0", 2000));
    assert_eq!(found.into_iter().collect::<std::collections::BTreeSet<_>>(), all);
    // In the middle of the second shard, which then is another server with the same keys.
    let (middle, mut seen) = scanned(&mut client, "0", 20);
    assert_ne!(middle, "0");
    let dump: Vec<String> = seen.clone();
    assert!(dump.len() > 700 && dump.len() < 1300, "{}", dump.len());
    let second: Vec<String> = match thirds.masters[1].command(&["KEYS", "*"]) {
        Value::Array(keys) => keys.iter().map(Value::text).collect(),
        other => panic!("{other:?}"),
    };
    thirds.masters[1].kill9();
    thirds.masters[1].restart();
    let set = |client: &mut Client| {
        second
            .iter()
            .all(|key| client.command(&["SET", key, "v"]) == Value::ok())
    };
    eventually(START_DEADLINE, || set(&mut client));
    let (end, rest) = scanned(&mut client, &middle, 1000);
    assert_eq!(end, "0");
    seen.extend(rest);
    assert_eq!(seen.into_iter().collect::<std::collections::BTreeSet<_>>(), all);
}

#[test]
fn a_random_key_is_one_of_any_shard() {
    let thirds = Thirds::start();
    let mut client = thirds.client();
    assert_eq!(client.command(&["RANDOMKEY"]), Value::Null);
    assert_eq!(client.command(&["MSET", FIRST, "1", THIRD, "1"]), Value::ok());
    for wanted in [FIRST, THIRD] {
        eventually(START_DEADLINE, || client.command(&["RANDOMKEY"]) == Value::bulk(wanted));
    }
}

#[test]
fn libraries_and_flushes_are_everybodys() {
    let thirds = Thirds::start();
    let mut client = thirds.client();
    let library = "#!lua name=l\nredis.register_function('f', function() return 1 end)";
    assert_eq!(client.command(&["FUNCTION", "LOAD", library]), Value::bulk("l"));
    assert!(
        client
            .command(&["FUNCTION", "LOAD", library])
            .is_error("ERR Library 'l' already exists")
    );
    for key in [FIRST, SECOND, THIRD] {
        assert_eq!(client.command(&["FCALL", "f", "1", key]), Value::Int(1));
    }
    assert_eq!(client.command(&["MSET", FIRST, "1", SECOND, "1"]), Value::ok());
    assert_eq!(client.command(&["SWAPDB", "0", "1"]), Value::ok());
    assert_eq!(client.command(&["DBSIZE"]), Value::Int(0));
    assert_eq!(client.command(&["SELECT", "1"]), Value::ok());
    assert_eq!(client.command(&["DBSIZE"]), Value::Int(2));
    assert_eq!(client.command(&["FLUSHALL", "ASYNC"]), Value::ok());
    assert_eq!(client.command(&["DBSIZE"]), Value::Int(0));
}

#[test]
fn what_one_shard_cannot_do_is_refused_as_a_whole_and_nothing_of_it_is_done() {
    let mut thirds = Thirds::start();
    let mut client = thirds.client();
    assert_eq!(
        client.command(&["MSET", FIRST, "1", SECOND, "1", THIRD, "1"]),
        Value::ok()
    );
    thirds.masters[1].kill9();
    let mut other = thirds.client();
    client.send(&encode(&["MSET", FIRST, "2", SECOND, "2"]));
    client.send(&encode(&["GET", FIRST]));
    // Whoever needs nothing of it does not wait for it.
    assert_eq!(other.command(&["MSET", FIRST, "3", THIRD, "3"]), Value::ok());
    assert_eq!(
        other.command(&["MGET", THIRD, FIRST]),
        Value::Array(vec![Value::bulk("3"), Value::bulk("3")])
    );
    let refused = client.read_reply();
    assert!(refused.is_error("MASTERDOWN"), "{refused:?}");
    assert_eq!(client.read_reply(), Value::bulk("3"));
    assert!(other.command(&["MGET", FIRST, SECOND]).is_error("MASTERDOWN"));
    assert!(other.command(&["DBSIZE"]).is_error("MASTERDOWN"));
    thirds.masters[1].restart();
    eventually(START_DEADLINE, || {
        other.command(&["MGET", FIRST, SECOND]) == Value::Array(vec![Value::bulk("3"), Value::Null])
    });
}

#[test]
fn an_error_of_one_shard_says_what_the_others_did() {
    let thirds = Thirds::start();
    let mut client = thirds.client();
    let refuses = ["CONFIG", "SET", "min-replicas-to-write", "1"];
    assert_eq!(thirds.masters[2].command(&refuses), Value::ok());
    let told = client.command(&["MSET", FIRST, "1", THIRD, "1"]);
    assert!(
        told.is_error("INDOUBT executed on s1 only; on s3: NOREPLICAS "),
        "{told:?}"
    );
    assert!(client.command(&["MSET", "a", "1", "{a}b", "1"]).is_error("NOREPLICAS "));
    assert_eq!(
        client.command(&["MGET", THIRD, FIRST]),
        Value::Array(vec![Value::Null, Value::bulk("1")])
    );
    assert!(client.command(&["RENAME", FIRST, THIRD]).is_error("CROSSSLOT "));
    assert!(
        client
            .command(&["MSETNX", FIRST, "1", THIRD, "1"])
            .is_error("CROSSSLOT ")
    );
}
