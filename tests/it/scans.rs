//! SCAN, HSCAN, SSCAN and ZSCAN while the master is another one in the middle (rule A12): elements may come twice, and
//! none is missing.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{Circuit, Client, Pair, Value, encode, eventually};

const SOON: Duration = Duration::from_secs(20);
const KEYS: usize = 20_000;
/// Cursors below are the server's own.
const TAGGED: u64 = 1 << 36;

/// Sends all of these at once and reads their replies.
fn pipeline(client: &mut Client, commands: &[Vec<String>]) -> Vec<Value> {
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bytes: Vec<u8> = commands.iter().flat_map(|command| encode(command)).collect();
            std::io::Write::write_all(&mut writer, &bytes).unwrap();
        });
        commands.iter().map(|_| client.read_reply()).collect()
    })
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn fill(client: &mut Client) {
    let commands: Vec<_> = (0..KEYS).map(|n| words(&format!("SET key:{n} {n}"))).collect();
    assert!(pipeline(client, &commands).iter().all(|reply| *reply == Value::ok()));
}

/// Cursor and elements of a reply.
#[track_caller]
fn page(reply: &Value) -> (u64, Vec<String>) {
    let Value::Array(parts) = reply else {
        panic!("no page: {reply:?}")
    };
    let [cursor, Value::Array(elements)] = parts.as_slice() else {
        panic!("no page: {reply:?}")
    };
    let cursor: u64 = cursor.text().parse().unwrap();
    assert!(cursor < 1 << 53);
    (cursor, elements.iter().map(Value::text).collect())
}

/// One scan by a client of a whole key space or key.
struct Scan {
    before: Vec<String>,
    after: Vec<String>,
    cursor: u64,
    pages: usize,
    seen: HashSet<String>,
}

impl Scan {
    fn of(before: &str, after: &str) -> Self {
        Self {
            before: words(before),
            after: words(after),
            cursor: 0,
            pages: 0,
            seen: HashSet::new(),
        }
    }

    fn request(&self) -> Vec<String> {
        [&self.before[..], &[self.cursor.to_string()], &self.after[..]].concat()
    }

    /// Takes a page; `false` at the end.
    #[track_caller]
    fn take(&mut self, reply: &Value) -> bool {
        let (cursor, elements) = page(reply);
        assert!(cursor == 0 || cursor >= TAGGED, "{cursor}");
        self.seen.extend(elements);
        self.pages += 1;
        self.cursor = cursor;
        cursor != 0
    }

    #[track_caller]
    fn step(&mut self, client: &mut Client) -> bool {
        let reply = client.command(&self.request());
        self.take(&reply)
    }

    #[track_caller]
    fn steps(&mut self, client: &mut Client, count: usize) {
        for _ in 0..count {
            assert!(self.step(client), "the scan ends too early");
        }
    }

    #[track_caller]
    fn finish(&mut self, client: &mut Client) {
        while self.step(client) {}
    }

    #[track_caller]
    fn has_all(&self, prefix: &str) {
        let missing = (0..KEYS)
            .filter(|n| !self.seen.contains(&format!("{prefix}{n}")))
            .count();
        assert_eq!(missing, 0, "of {KEYS} after {} pages", self.pages);
    }
}

/// Keys, and a hash, a set and a sorted set of as many members.
fn fill_all(client: &mut Client) {
    fill(client);
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(500) {
        let members = |line: &str, each: &dyn Fn(usize) -> String| {
            let all: Vec<String> = chunk.iter().map(|n| each(*n)).collect();
            words(&format!("{line} {}", all.join(" ")))
        };
        let commands = [
            members("HSET h", &|n| format!("f{n} {n}")),
            members("SADD s", &|n| format!("m{n}")),
            members("ZADD z", &|n| format!("{n} m{n}")),
        ];
        assert!(
            pipeline(client, &commands)
                .iter()
                .all(|reply| matches!(reply, Value::Int(_)))
        );
    }
}

/// Scans half of everything, lets the master become another, and scans on.
fn all_is_seen(mut pair: Pair, become_another: impl FnOnce(&mut Pair)) {
    let mut client = pair.client();
    fill_all(&mut client);
    let mut scans = [
        (Scan::of("SCAN", "COUNT 100"), "key:"),
        (Scan::of("HSCAN h", "COUNT 100"), "f"),
        (Scan::of("SSCAN s", "COUNT 100"), "m"),
        (Scan::of("ZSCAN z", "COUNT 100"), "m"),
        (Scan::of("SCAN", "MATCH key:* COUNT 100 TYPE string"), "key:"),
    ];
    for (scan, _) in &mut scans {
        scan.steps(&mut client, 80);
    }
    become_another(&mut pair);
    for (scan, prefix) in &mut scans {
        scan.finish(&mut client);
        scan.has_all(prefix);
    }
}

#[test]
fn every_element_is_seen_although_the_master_moves_in_the_middle() {
    all_is_seen(Pair::start(), |pair| pair.move_to_b());
}

#[test]
fn every_element_is_seen_although_the_master_is_killed_in_the_middle() {
    all_is_seen(Pair::start(), Pair::fail_over_to_b);
}

#[test]
fn scans_in_flight_when_their_master_is_lost_begin_anew() {
    let mut pair = Pair::start();
    let mut client = pair.client();
    fill(&mut client);
    let mut scans: Vec<Scan> = (0..20).map(|_| Scan::of("SCAN", "COUNT 200")).collect();
    for round in 0.. {
        let open: Vec<usize> = (0..scans.len())
            .filter(|n| scans[*n].pages == 0 || scans[*n].cursor != 0)
            .collect();
        if open.is_empty() {
            break;
        }
        let asked: Vec<Vec<u8>> = open.iter().map(|n| encode(&scans[*n].request())).collect();
        if round == 50 {
            pair.settle();
            pair.a.stop();
            client.send(&asked.concat());
            pair.a.kill9();
            pair.b.command(&["REPLICAOF", "NO", "ONE"]);
        } else {
            client.send(&asked.concat());
        }
        for n in open {
            let reply = client.read_reply();
            scans[n].take(&reply);
        }
    }
    for scan in &scans {
        scan.has_all("key:");
    }
}

#[test]
fn a_scan_goes_on_after_its_connection_alone_was_lost() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    fill(&mut client);
    let mut scan = Scan::of("SCAN", "COUNT 100");
    for _ in 0..5 {
        scan.steps(&mut client, 30);
        assert!(matches!(
            circuit
                .redis
                .command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
            Value::Int(_)
        ));
    }
    scan.finish(&mut client);
    scan.has_all("key:");
    assert!(scan.pages < KEYS / 100 * 2, "it began anew: {} pages", scan.pages);
}

#[test]
fn clients_proxies_users_databases_and_protocols_may_share_a_cursor() {
    let pair = Pair::start();
    let mut client = pair.client();
    fill(&mut client);
    let rights = ["ACL", "SETUSER", "alice", "on", ">pw", "~*", "+scan", "+select"];
    assert_eq!(client.command(&rights), Value::ok());
    let (_other, listen) = pair.another_proxy();
    let mut clients: Vec<Client> = vec![
        pair.client(),
        pair.client(),
        Client::connect(listen.as_str()),
        pair.client(),
    ];
    assert!(matches!(clients[1].command(&["HELLO", "3"]), Value::Map(_)));
    assert_eq!(clients[3].command(&["AUTH", "alice", "pw"]), Value::ok());
    let mut scan = Scan::of("SCAN", "COUNT 100");
    let mut turn = 0;
    while scan.step(&mut clients[turn % 4]) {
        turn += 1;
    }
    scan.has_all("key:");
    assert!(scan.pages < KEYS / 100 * 2, "it began anew: {} pages", scan.pages);
    // Each database has its own keys.
    for client in &mut clients {
        assert_eq!(client.command(&["SELECT", "3"]), Value::ok());
        assert_eq!(page(&client.command(&["SCAN", "0"])), (0, Vec::new()));
    }
    assert_eq!(clients[0].command(&["SET", "three", "3"]), Value::ok());
    assert_eq!(page(&clients[3].command(&["SCAN", "0"])), (0, vec!["three".to_owned()]));
}

#[test]
fn transactions_and_pipelines_pass_cursors_like_any_request() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    fill_all(&mut client);
    for resp3 in [false, true] {
        if resp3 {
            client.command(&["HELLO", "3"]);
        }
        for piecewise in [false, true] {
            let mut scans = [
                (Scan::of("SCAN", "COUNT 500"), "key:"),
                (Scan::of("HSCAN h", "COUNT 500"), "f"),
                (Scan::of("ZSCAN z", "COUNT 500"), "m"),
            ];
            let mut open = true;
            while open {
                let mut commands = vec![words("MULTI"), words("SET other 1")];
                for (scan, _) in &scans {
                    commands.push(scan.request());
                    commands.push(words("PING"));
                }
                commands.push(words("EXEC"));
                let replies = if piecewise {
                    commands.iter().map(|command| client.command(command)).collect()
                } else {
                    pipeline(&mut client, &commands)
                };
                let Some(Value::Array(elements)) = replies.last() else {
                    panic!("{replies:?}")
                };
                open = false;
                for (at, (scan, _)) in scans.iter_mut().enumerate() {
                    // One that has ended begins again while others go on.
                    open |= scan.take(&elements[1 + 2 * at]);
                    assert_eq!(elements[2 + 2 * at], Value::Simple("PONG".into()));
                }
                open &= scans.iter().any(|(scan, _)| scan.pages < 60);
            }
            for (scan, prefix) in &scans {
                assert!(scan.pages > 35, "{} pages", scan.pages);
                scan.has_all(prefix);
            }
        }
    }
    assert_eq!(client.command(&["GET", "other"]), Value::bulk("1"));
}

#[test]
fn a_subscriber_scans_too_and_inside_multi() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    fill(&mut client);
    let mut subscriber = circuit.client();
    subscriber.command(&["HELLO", "3"]);
    assert!(matches!(subscriber.command(&["SUBSCRIBE", "c"]), Value::Push(_)));
    let mut scan = Scan::of("SCAN", "COUNT 100");
    scan.steps(&mut subscriber, 50);
    // Somebody else's connection goes on where the feed was.
    scan.steps(&mut client, 50);
    scan.finish(&mut subscriber);
    scan.has_all("key:");
    let mut scan = Scan::of("SCAN", "COUNT 100");
    scan.steps(&mut client, 50);
    let cursor = scan.cursor.to_string();
    assert_eq!(subscriber.command(&["MULTI"]), Value::ok());
    for request in [
        &["SET", "x", "1"][..],
        &["SCAN", &cursor, "COUNT", "1"],
        &["SCAN", "0", "COUNT", "1"],
    ] {
        assert_eq!(subscriber.command(request).text(), "QUEUED");
    }
    let Value::Array(elements) = subscriber.command(&["EXEC"]) else {
        panic!("no array")
    };
    for element in &elements[1..] {
        let Value::Array(scanned) = element else {
            panic!("{element:?}")
        };
        let cursor: u64 = scanned[0].text().parse().unwrap();
        assert!(cursor >> 40 > 0, "{cursor} tells whose it is");
    }
}

#[test]
fn a_scan_in_a_transaction_and_a_subscribers_go_on_at_the_next_master() {
    let pair = Pair::start();
    let (mut client, mut subscriber) = (pair.client(), pair.client());
    fill(&mut client);
    let (mut queued, mut heard) = (Scan::of("SCAN", "COUNT 100"), Scan::of("SCAN", "COUNT 100"));
    queued.steps(&mut client, 100);
    subscriber.command(&["HELLO", "3"]);
    assert!(matches!(subscriber.command(&["SUBSCRIBE", "c"]), Value::Push(_)));
    heard.steps(&mut subscriber, 100);
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&queued.request()), Value::Simple("QUEUED".into()));
    pair.move_to_b();
    let Value::Array(elements) = client.command(&["EXEC"]) else {
        panic!("the transaction did not go on")
    };
    assert!(queued.take(&elements[0]));
    queued.finish(&mut client);
    queued.has_all("key:");
    heard.finish(&mut subscriber);
    heard.has_all("key:");
}

#[test]
fn bad_cursors_and_cursors_of_a_clients_own_are_the_servers_affair() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let mut direct = circuit.redis.client();
    assert_eq!(client.command(&["SADD", "s", "a"]), Value::Int(1));
    for line in [
        "SCAN x",
        "SCAN -1",
        "SCAN 1x",
        "SCAN 99999999999999999999999",
        "SCAN 18446744073709551615",
        "SCAN 0 COUNT 0",
        "SCAN",
        "HSCAN s 0",
        "HSCAN s x",
        "SSCAN s 7",
        "ZSCAN nosuch 5",
        "SCAN 7 MATCH s",
        "SCAN 007",
    ] {
        assert_eq!(client.command(&words(line)), direct.command(&words(line)), "{line}");
    }
    // One of another life begins anew.
    let foreign = (8191u64 << 36 | 5).to_string();
    let (cursor, keys) = page(&client.command(&["SCAN", &foreign]));
    assert_eq!((cursor, keys), (0, vec!["s".to_owned()]));
    assert_eq!(
        client.command(&["EVAL", "return redis.call('scan', 0)", "0"]),
        direct.command(&["SCAN", "0"])
    );
    assert_eq!(client.command(&["PING"]), Value::Simple("PONG".into()));
}

#[test]
fn a_page_of_any_size_streams_through_with_its_cursor() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let value = "v".repeat(100_000);
    for n in 0..200 {
        assert_eq!(client.command(&["HSET", "h", &format!("f{n}"), &value]), Value::Int(1));
    }
    let (mut cursor, mut seen, mut pages) = ("0".to_owned(), HashSet::new(), 0);
    loop {
        let reply = client.command(&["HSCAN", "h", &cursor, "COUNT", "60"]);
        let (next, elements) = page(&reply);
        seen.extend(elements.into_iter().step_by(2));
        pages += 1;
        if next == 0 {
            break;
        }
        assert!(next >= TAGGED);
        cursor = next.to_string();
    }
    assert!(seen.len() == 200 && pages > 1, "{} in {pages}", seen.len());
    // A pattern too long for a lane.
    let pattern = format!("{}*", "k".repeat(300_000));
    assert_eq!(
        page(&client.command(&["SCAN", "0", "MATCH", &pattern, "COUNT", "1000"])),
        (0, Vec::new())
    );
}

#[test]
fn a_server_started_anew_is_another_life_also_if_nobody_was_connected_meanwhile() {
    let mut circuit = Circuit::start(&["--timeout", "2"]);
    let mut client = circuit.client();
    fill(&mut client);
    for first in ["SCAN", "GET key:1"] {
        let mut scan = Scan::of("SCAN", "COUNT 100");
        scan.steps(&mut client, 100);
        // The lanes are closed, and nothing tells of the end.
        eventually(SOON, || {
            circuit.redis.command(&["CLIENT", "LIST"]).text().lines().count() == 1
        });
        circuit.redis.kill9();
        circuit.redis.restart();
        let mut direct = circuit.redis.client();
        fill(&mut direct);
        if first != "SCAN" {
            assert_eq!(client.command(&words(first)), Value::bulk("1"));
        }
        scan.finish(&mut client);
        scan.has_all("key:");
    }
}

#[test]
fn a_subscribers_page_that_is_passed_on_in_parts_has_its_cursor_too() {
    let circuit = Circuit::start(&[]);
    let mut client = circuit.client();
    let value = "v".repeat(100_000);
    for n in 0..200 {
        assert_eq!(client.command(&["HSET", "h", &format!("f{n}"), &value]), Value::Int(1));
    }
    let mut subscriber = circuit.client();
    subscriber.command(&["HELLO", "3"]);
    assert!(matches!(subscriber.command(&["SUBSCRIBE", "c"]), Value::Push(_)));
    let (next, elements) = page(&subscriber.command(&["HSCAN", "h", "0", "COUNT", "60"]));
    assert!(next >= TAGGED && elements.len() >= 2, "{next}");
    assert_eq!(subscriber.command(&["PING"]), Value::Simple("PONG".to_owned()));
    let (_, rest) = page(&client.command(&["HSCAN", "h", &next.to_string(), "COUNT", "200"]));
    let seen: HashSet<String> = elements.into_iter().chain(rest).step_by(2).collect();
    assert_eq!(seen.len(), 200);
}
