//! Clients that cache what they read: they hear of changes as from Redis itself, and at a change of master they are told
//! to forget everything, once, before anything else.

use std::time::Duration;

use ::pointsman::clock;

use crate::support::{Circuit, Client, Pair, Redis, Stage, Value, eventually, field};

const SOON: Duration = Duration::from_secs(20);

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn greeted(mut client: Client) -> Client {
    assert!(matches!(client.command(&["HELLO", "3"]), Value::Map(_)));
    client
}

/// A client that tracks with these options.
fn tracking(client: Client, options: &str) -> Client {
    let mut client = greeted(client);
    let line = format!("CLIENT TRACKING ON{options}");
    assert_eq!(client.command(&words(&line)), Value::ok());
    client
}

fn invalidated(key: &str) -> Value {
    let keys = Value::Array(vec![Value::bulk(key)]);
    Value::Push(vec![Value::bulk("invalidate"), keys])
}

fn forget_all() -> Value {
    Value::Push(vec![Value::bulk("invalidate"), Value::Null])
}

fn queued() -> Value {
    Value::Simple("QUEUED".into())
}

fn replies(client: &mut Client, count: usize) -> Vec<Value> {
    (0..count).map(|_| client.read_reply()).collect()
}

/// Nothing was said before the reply to PING.
#[track_caller]
fn is_silent(client: &mut Client) {
    assert_eq!(client.command(&["PING"]).text(), "PONG");
}

/// Waits until `master` tells somebody of keys, and whoever it is for has said what it brings along.
#[track_caller]
fn is_told_again(client: &mut Client, other: &mut Client, key: &str) {
    client.command(&["GET", key]);
    let length = other.command(&["APPEND", key, "x"]);
    assert!(matches!(length, Value::Int(_)), "{length:?}");
    assert_eq!(client.read_reply(), invalidated(key));
}

/// What is said to a line: all up to the reply to a request behind it that changes nothing, not even what CLIENT CACHING
/// said. Inside MULTI there is none such.
fn said_to(client: &mut Client, line: &str, inside: bool) -> Vec<Value> {
    let mut awaited = usize::from(!line.is_empty() && !line.contains("SUBSCRIBE"));
    client.send(format!("{line}\r\n").as_bytes());
    if !inside {
        client.send(b"CLIENT GETREDIR\r\n");
        awaited += 1;
    }
    let mut all = Vec::new();
    while awaited > 0 {
        let said = client.read_reply();
        awaited -= usize::from(!matches!(said, Value::Push(_)));
        all.push(said);
    }
    all
}

/// Says the same to the proxy and to Redis itself, a line at a time; `@` marks what another client says meanwhile.
#[track_caller]
fn compare(circuit: &Circuit, script: &[&str]) {
    let mut seen = Vec::new();
    for (mut client, mut other) in [
        (circuit.client(), circuit.client()),
        (circuit.redis.client(), circuit.redis.client()),
    ] {
        circuit.redis.command(&["FLUSHALL"]);
        let (mut all, mut inside) = (Vec::new(), false);
        for line in script {
            inside = *line == "MULTI" || inside && *line != "EXEC";
            let said = match line.strip_prefix('@') {
                Some(line) => {
                    other.command(&words(line));
                    said_to(&mut client, "", inside)
                }
                None if line.starts_with("HELLO") => said_to(&mut client, line, inside).split_off(1),
                None => said_to(&mut client, line, inside),
            };
            all.push((*line, said));
        }
        seen.push(all);
    }
    for (own, direct) in seen[0].iter().zip(&seen[1]) {
        assert_eq!(own, direct, "{script:?}");
    }
}

#[test]
fn a_client_that_tracks_sees_what_redis_says() {
    let circuit = Circuit::start(&[]);
    for script in [
        &[
            "CLIENT CACHING YES",
            "CLIENT CACHING MAYBE",
            "CLIENT TRACKING OFF",
            "CLIENT TRACKING OFF BCAST",
            "CLIENT TRACKING MAYBE",
            "CLIENT TRACKING ON FOO",
            "CLIENT TRACKING ON PREFIX",
            "CLIENT TRACKING ON REDIRECT",
        ][..],
        // RESP2 has no words for it, but may become RESP3.
        &[
            "CLIENT TRACKING ON NOLOOP",
            "CLIENT TRACKINGINFO",
            "GET k",
            "@SET k 1",
            "MULTI",
            "GET k",
            "EXEC",
            "HELLO 3",
            "@SET k 2",
            "GET k",
            "@SET k 3",
        ],
        &[
            "HELLO 3",
            "CLIENT TRACKING ON PREFIX a",
            "CLIENT TRACKING ON BCAST OPTIN",
            "CLIENT TRACKING ON OPTIN OPTOUT",
            "CLIENT TRACKING ON BCAST PREFIX a PREFIX ab",
            "CLIENT TRACKINGINFO",
            "CLIENT TRACKING ON BCAST PREFIX a",
            "CLIENT TRACKING ON BCAST PREFIX ab",
            "CLIENT TRACKING ON BCAST PREFIX a",
            "CLIENT TRACKING ON BCAST",
            "CLIENT TRACKING ON BCAST NOLOOP PREFIX c",
            "CLIENT TRACKING ON",
            "CLIENT TRACKINGINFO",
            "CLIENT CACHING YES",
            "CLIENT CACHING NO",
            "CLIENT GETREDIR",
            "CLIENT TRACKING OFF x",
            "CLIENT TRACKING OFF",
            "CLIENT TRACKINGINFO",
            "CLIENT GETREDIR",
            "CLIENT CACHING YES",
            "GET k",
        ],
        &[
            "HELLO 3",
            "CLIENT TRACKING ON OPTIN",
            "CLIENT CACHING NO",
            "CLIENT CACHING YES",
            "CLIENT TRACKINGINFO",
            "CLIENT TRACKING ON OPTIN NOLOOP",
            "CLIENT TRACKINGINFO",
            "GET k",
            "CLIENT TRACKINGINFO",
            "GET l",
            "@SET l 1",
            "@SET k 1",
            "CLIENT TRACKING ON OPTOUT",
            "CLIENT TRACKING ON",
            "CLIENT TRACKING ON OPTOUT",
            "CLIENT CACHING YES",
            "CLIENT CACHING no",
            "CLIENT CACHING x",
            "CLIENT TRACKINGINFO",
            "GET k",
            "GET l",
            "@SET k 2",
            "@SET l 2",
        ],
        &[
            "HELLO 3",
            "CLIENT TRACKING ON",
            "GET k",
            "SET k 4",
            "GET k",
            "@FLUSHALL",
            "MULTI",
            "SET k 5",
            "GET k",
            "EXEC",
            "WATCH k",
            "SET k 6",
            "MULTI",
            "GET k",
            "EXEC",
            "SELECT 1",
            "GET k",
            "@SET k 7",
            "RPUSH q a b",
            "BLPOP q 0",
            "SUBSCRIBE c",
            "GET k",
            "@PUBLISH c x",
            "@SET k 8",
            "UNSUBSCRIBE c",
            "GET k",
        ],
        &[
            "HELLO 3",
            "CLIENT TRACKING ON BCAST NOLOOP PREFIX a PREFIX b",
            "SET a1 1",
            "@SET a2 1",
            "@SET c 1",
            "@SET b 1",
            "SET c 1",
            "CLIENT TRACKING OFF",
            "@SET a2 2",
            "GET a2",
        ],
        &[
            "HELLO 3",
            "CLIENT TRACKING ON",
            "GET k",
            "HELLO 2",
            "@SET k 2",
            "CLIENT TRACKINGINFO",
            "HELLO 3",
            "GET k",
            "@SET k 3",
            "RESET",
            "CLIENT TRACKINGINFO",
            "GET k",
            "@SET k 4",
        ],
        &[
            "HELLO 3",
            "CLIENT TRACKING ON OPTIN",
            "CLIENT CACHING YES",
            "MULTI",
            "GET k",
            "EXEC",
            "@SET k 7",
            "CLIENT CACHING YES",
            "CLIENT TRACKINGINFO",
            "GET k",
            "@SET k 8",
            "CLIENT CACHING YES",
            "ACL WHOAMI",
            "CLIENT TRACKINGINFO",
            "GET k",
            "@SET k 8",
            "CLIENT CACHING YES",
            "SELECT 0",
            "GET k",
            "@SET k 9",
        ],
    ] {
        compare(&circuit, script);
    }
    circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn what_cannot_be_told_is_refused() {
    let circuit = Circuit::start(&[]);
    let mut client = greeted(circuit.client());
    let mut many = words("CLIENT TRACKING ON BCAST");
    let prefixes: Vec<String> = (0..1001).map(|number| format!("{number:04}")).collect();
    many.extend(prefixes.iter().flat_map(|prefix| ["PREFIX", prefix]));
    assert!(client.command(&many).is_error("OOM pointsman keeps at most"));
    assert_eq!(client.command(&many[..many.len() - 2]), Value::ok());
    let one_more = words("CLIENT TRACKING ON BCAST PREFIX more");
    assert!(client.command(&one_more).is_error("OOM pointsman keeps at most"));
    assert_eq!(client.command(&["SET", "0999x", "v"]), Value::ok());
    assert_eq!(client.read_reply(), invalidated("0999x"));
    // Inside MULTI, too.
    client.send(b"MULTI\r\nCLIENT TRACKING ON BCAST PREFIX more\r\nEXEC\r\n");
    assert_eq!(client.read_reply(), Value::ok());
    assert!(client.read_reply().is_error("OOM pointsman keeps at most"));
    assert!(client.read_reply().is_error("EXECABORT"));
}

#[test]
fn the_list_of_clients_tells_who_tracks() {
    let circuit = Circuit::start(&[]);
    let mut client = tracking(circuit.client(), "");
    let info = |client: &mut Client| client.command(&["CLIENT", "INFO"]).text();
    let seen = info(&mut client);
    assert!(seen.contains(" flags=t ") && seen.contains(" redir=0 "), "{seen}");
    assert_eq!(client.command(&["MULTI"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), queued());
    let list = circuit.client().command(&["CLIENT", "LIST"]).text();
    assert!(list.contains(" flags=xt ") && list.contains(" multi=1 "), "{list}");
    client.command(&["EXEC"]);
    client.command(&["CLIENT", "TRACKING", "OFF"]);
    client.command(&["CLIENT", "TRACKING", "ON", "BCAST"]);
    let seen = info(&mut client);
    assert!(seen.contains(" flags=tB ") && seen.contains(" redir=0 "), "{seen}");
    client.command(&["CLIENT", "TRACKING", "OFF"]);
    let seen = info(&mut client);
    assert!(seen.contains(" flags=N ") && seen.contains(" redir=-1 "), "{seen}");
    // And has no connection of its own any more.
    eventually(SOON, || {
        !circuit.redis.command(&["CLIENT", "LIST"]).text().contains(" redir=0 ")
    });
}

#[test]
fn tracking_moves_along_when_the_master_is_moved_on_purpose() {
    let mut stage = Stage::start();
    let mut other = stage.client();
    let mut clients = ["", " OPTIN", " OPTOUT NOLOOP", " BCAST PREFIX k", " BCAST PREFIX z"]
        .map(|options| tracking(stage.client(), options));
    assert_eq!(clients[4].command(&words("CLIENT TRACKING ON BCAST")), Value::ok());
    assert_eq!(other.command(&["SET", "k", "v"]), Value::ok());
    for client in &mut clients[3..] {
        assert_eq!(client.read_reply(), invalidated("k"));
    }
    for round in 0..3 {
        for client in &mut clients {
            assert_eq!(client.command(&["GET", "k"]).text(), "v");
        }
        clients[1].send(b"CLIENT CACHING YES\r\n");
        assert_eq!(clients[1].read_reply(), Value::ok());
        stage.switch_over();
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.read_reply(), forget_all(), "{number} in round {round}");
        }
        // Said before the move of what comes after it.
        for client in &mut clients {
            assert_eq!(client.command(&["GET", "k"]).text(), "v");
        }
        assert_eq!(other.command(&["SET", "k", "v"]), Value::ok());
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.read_reply(), invalidated("k"), "{number} in round {round}");
            is_silent(client);
        }
    }
    let info = clients[4].command(&words("CLIENT TRACKINGINFO"));
    let Value::Map(info) = info else {
        panic!("no map: {info:?}")
    };
    assert_eq!(info[5], Value::Array(vec![Value::bulk(""), Value::bulk("z")]));
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn all_that_a_tracking_client_does_goes_on_at_the_next_master() {
    let mut stage = Stage::start();
    let mut other = stage.client();
    let [mut whole, mut pieces, mut watching, mut blocking, mut subscribed] =
        [(); 5].map(|()| tracking(stage.client(), ""));
    assert_eq!(pieces.command(&["SELECT", "3"]), Value::ok());
    assert_eq!(pieces.command(&["MULTI"]), Value::ok());
    assert_eq!(pieces.command(&["INCR", "a"]), queued());
    assert_eq!(watching.command(&["WATCH", "a"]), Value::ok());
    assert_eq!(watching.command(&["MULTI"]), Value::ok());
    assert_eq!(watching.command(&["INCR", "a"]), queued());
    blocking.send(b"BLPOP q 0\r\nGET k\r\n");
    subscribed.command(&["SUBSCRIBE", "c"]);
    let digest = other
        .command(&["SCRIPT", "LOAD", "return redis.call('incr', KEYS[1])"])
        .text();
    eventually(SOON, || {
        let clients = stage.redis[stage.master].command(&["INFO", "clients"]).text();
        field(&clients, "blocked_clients") == "1"
    });
    stage.begin();
    stage.drained();
    whole.send(b"MULTI\r\nINCR b\r\nGET b\r\nEXEC\r\nGET b\r\n");
    stage.fence();
    stage.attach();
    stage.attached();
    stage.promote();
    stage.publish();
    // It changes nothing, so it was not held.
    assert_eq!(whole.read_reply(), Value::ok());
    for client in [&mut whole, &mut pieces, &mut watching, &mut blocking, &mut subscribed] {
        assert_eq!(client.read_reply(), forget_all());
    }
    let done = Value::Array(vec![Value::Int(1), Value::bulk("1")]);
    assert_eq!(replies(&mut whole, 4), [queued(), queued(), done, Value::bulk("1")]);
    assert_eq!(pieces.command(&["EXEC"]), Value::Array(vec![Value::Int(1)]));
    assert_eq!(watching.command(&["EXEC"]), Value::Null);
    assert_eq!(other.command(&["RPUSH", "q", "x"]), Value::Int(1));
    assert_eq!(
        blocking.read_reply(),
        Value::Array(vec![Value::bulk("q"), Value::bulk("x")])
    );
    assert_eq!(blocking.read_reply(), Value::Null);
    assert_eq!(other.command(&["PUBLISH", "c", "m"]), Value::Int(1));
    let message = ["message", "c", "m"].map(Value::bulk);
    assert_eq!(subscribed.read_reply(), Value::Push(message.to_vec()));
    assert_eq!(whole.command(&["EVALSHA", &digest, "1", "n"]), Value::Int(1));
    for client in [&mut whole, &mut watching, &mut blocking, &mut subscribed] {
        is_told_again(client, &mut other, "b");
    }
    stage.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_killed_master_makes_the_client_forget_everything_once() {
    let mut circuit = Circuit::start(&[]);
    let mut client = tracking(circuit.client(), "");
    let mut plain = greeted(circuit.client());
    for _ in 0..2 {
        client.command(&["GET", "k"]);
        circuit.redis.kill9();
        assert_eq!(client.read_reply(), forget_all());
        client.send(b"GET k\r\nCLIENT GETREDIR\r\n");
        circuit.redis.restart();
        assert_eq!(replies(&mut client, 2), [Value::Null, Value::Int(0)]);
        let mut other = circuit.client();
        assert_eq!(other.command(&["SET", "k", "v"]), Value::ok());
        assert_eq!(client.read_reply(), invalidated("k"));
        is_silent(&mut client);
    }
    assert_eq!(client.command(&words("CLIENT TRACKING OFF")), Value::ok());
    circuit.redis.kill9();
    circuit.redis.restart();
    eventually(SOON, || plain.command(&["SET", "k", "w"]) == Value::ok());
    is_silent(&mut client);
    is_silent(&mut plain);
}

#[test]
fn a_pipeline_through_a_killed_master_is_told_apart_and_goes_on() {
    let mut pair = Pair::start();
    let mut client = tracking(pair.client(), "");
    const COUNT: usize = 2000;
    client.command(&["GET", "k"]);
    pair.a.stop();
    let pipeline = "GET n\r\nINCR n\r\n".repeat(COUNT);
    client.send(pipeline.as_bytes());
    let mut other = pair.client();
    eventually(SOON, || {
        let list = other.command(&["CLIENT", "LIST"]).text();
        list.lines()
            .any(|line| line.contains(" flags=t ") && line.contains(" cmd=incr "))
    });
    pair.kill_a();
    let (mut forgotten, mut doubtful, mut done, mut seen) = (0, 0, 0, 0);
    while seen < 2 * COUNT {
        match client.read_reply() {
            push if push == forget_all() => {
                assert_eq!(seen, 0, "before anything else");
                forgotten += 1;
            }
            Value::Push(_) => {}
            error @ Value::Error(_) => {
                let fair = error.is_error("INDOUBT") || error.is_error("MASTERDOWN");
                assert!(fair && done == 0, "{error:?} after {done}");
                doubtful += 1;
                seen += 1;
            }
            _ => {
                done += 1;
                seen += 1;
            }
        }
    }
    assert_eq!(forgotten, 1, "{doubtful} {done}");
    is_told_again(&mut client, &mut other, "k");
}

#[test]
fn what_was_watched_before_a_loss_counts_as_changed_for_who_tracks_from_then_on() {
    let mut circuit = Circuit::start(&[]);
    let mut client = greeted(circuit.client());
    assert_eq!(client.command(&["WATCH", "k"]), Value::ok());
    circuit.redis.kill9();
    eventually(SOON, || circuit.proxy.log().contains("no master:"));
    circuit.redis.restart();
    assert_eq!(client.command(&words("CLIENT TRACKING ON")), Value::ok());
    client.send(b"MULTI\r\nSET k 1\r\nEXEC\r\nGET k\r\n");
    assert_eq!(
        replies(&mut client, 4),
        [Value::ok(), queued(), Value::Null, Value::Null]
    );
}

#[test]
fn many_requests_at_once_cost_no_search() {
    let circuit = Circuit::start(&[]);
    let mut client = tracking(circuit.client(), "");
    let mut plain = greeted(circuit.client());
    const COUNT: usize = 10_000;
    let mut times = Vec::new();
    for client in [&mut plain, &mut client] {
        let mut pipeline = Vec::new();
        for number in 0..COUNT {
            pipeline.extend_from_slice(format!("SET k{number} {number}\r\nGET k{number}\r\n").as_bytes());
        }
        let begun = clock::now();
        let mut writer = client.stream().try_clone().unwrap();
        let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &pipeline));
        let mut answered = 0;
        for number in 0..COUNT {
            let mut next = || loop {
                match client.read_reply() {
                    Value::Push(_) => {}
                    reply => return reply,
                }
            };
            assert_eq!(next(), Value::ok());
            assert_eq!(next(), Value::bulk(&number.to_string()));
            answered += 1;
        }
        writing.join().unwrap().unwrap();
        assert_eq!(answered, COUNT);
        times.push(clock::now() - begun);
    }
    println!("plain {:?}, tracking {:?}", times[0], times[1]);
    assert!(times[1] < times[0] * 5 + Duration::from_secs(1), "{times:?}");
}

#[test]
fn huge_values_pass_both_ways_with_little_memory() {
    let circuit = Circuit::start(&[]);
    let mut client = tracking(circuit.client(), "");
    let value = "v".repeat(100 * 1024 * 1024);
    assert_eq!(client.command(&["SET", "huge", &value]), Value::ok());
    // A client that is slow is waited for.
    client.send(b"GET huge\r\nGET k\r\n");
    let unwritten = || {
        let seen = circuit.redis.command(&["CLIENT", "LIST"]).text();
        seen.contains(" events=rw ")
            || seen
                .lines()
                .any(|line| line.contains(" omem=") && !line.contains(" omem=0 "))
    };
    eventually(SOON, unwritten);
    assert_eq!(client.read_reply(), Value::Bulk(value.into_bytes()));
    assert_eq!(client.read_reply(), Value::Null);
    let mut other = circuit.client();
    assert_eq!(other.command(&["SET", "huge", "small"]), Value::ok());
    assert_eq!(client.read_reply(), invalidated("huge"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", circuit.proxy.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 48 * 1024, "{kib} KiB");
}

#[test]
fn a_scan_with_a_huge_reply_goes_on_where_it_was() {
    let circuit = Circuit::start(&[]);
    let mut client = tracking(circuit.client(), "");
    let fill = "for i = 1, 40000 do redis.call('set', 'a-rather-long-key-' .. i, i) end";
    circuit.redis.command(&["EVAL", fill, "0"]);
    let (mut cursor, mut keys) = ("0".to_owned(), std::collections::HashSet::new());
    loop {
        let Value::Array(reply) = client.command(&["SCAN", &cursor, "COUNT", "15000"]) else {
            panic!("no array");
        };
        let Value::Array(page) = &reply[1] else {
            panic!("no page")
        };
        keys.extend(page.iter().map(Value::text));
        cursor = reply[0].text();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(keys.len(), 40_000);
}

#[test]
fn a_tracking_client_that_blocks_can_be_let_go() {
    let circuit = Circuit::start(&[]);
    let mut client = tracking(circuit.client(), "");
    let id = client.command(&["CLIENT", "ID"]);
    let Value::Int(id) = id else { panic!("no id") };
    client.send(b"BLPOP never 0\r\nGET k\r\n");
    let mut other = circuit.client();
    eventually(SOON, || {
        other.command(&["CLIENT", "UNBLOCK", &id.to_string(), "ERROR"]) == Value::Int(1)
    });
    assert!(client.read_reply().is_error("UNBLOCKED client unblocked"));
    assert_eq!(client.read_reply(), Value::Null);
}

#[test]
fn who_reads_from_a_replica_sees_what_a_tracking_client_wrote() {
    let pair = Pair::start();
    let mut writer = tracking(pair.client(), "");
    let mut reader = pair.client();
    for number in 0..300 {
        let text = number.to_string();
        match number % 3 {
            0 => assert_eq!(writer.command(&["SET", "k", &text]), Value::ok()),
            1 => {
                writer.send(format!("MULTI\r\nSET k {text}\r\nEXEC\r\n").as_bytes());
                replies(&mut writer, 3);
            }
            _ => {
                assert_eq!(writer.command(&["MULTI"]), Value::ok());
                assert_eq!(writer.command(&["SET", "k", &text]), queued());
                assert_eq!(writer.command(&["EXEC"]), Value::Array(vec![Value::ok()]));
            }
        }
        assert_eq!(reader.command(&["GET", "k"]), Value::bulk(&text));
    }
    // The keys that it did not write are still read from the replica, most of the time.
    let reads = |redis: &Redis| {
        let stats = redis.command(&["INFO", "commandstats"]).text();
        let get = field(&stats, "cmdstat_get");
        let calls = get.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
        calls.map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    eventually(SOON, || {
        let before = reads(&pair.b);
        for number in 0..100 {
            assert_eq!(writer.command(&["SET", "k", &number.to_string()]), Value::ok());
            reader.command(&["GET", "another"]);
        }
        reads(&pair.b) > before + 80
    });
}

fn id(client: &mut Client) -> String {
    match client.command(&["CLIENT", "ID"]) {
        Value::Int(id) => id.to_string(),
        other => panic!("no id: {other:?}"),
    }
}

#[test]
fn another_client_is_told_of_the_keys_that_one_reads() {
    let circuit = Circuit::start(&[]);
    let (mut reads, mut told, mut writes) = (circuit.client(), circuit.client(), circuit.client());
    let subscriber = id(&mut told);
    assert!(matches!(
        told.command(&["SUBSCRIBE", "__redis__:invalidate"]),
        Value::Array(_)
    ));
    let redirect = |to: &str| format!("CLIENT TRACKING ON REDIRECT {to}");
    assert_eq!(reads.command(&words(&redirect(&subscriber))), Value::ok());
    reads.command(&["GET", "k"]);
    writes.command(&["SET", "k", "1"]);
    let message = [
        Value::bulk("message"),
        Value::bulk("__redis__:invalidate"),
        Value::Array(vec![Value::bulk("k")]),
    ];
    assert_eq!(told.read_reply(), Value::Array(message.to_vec()));
    // Ids are the proxy's own, and those of Redis are not shown.
    assert_eq!(
        reads.command(&["CLIENT", "GETREDIR"]),
        Value::Int(subscriber.parse().unwrap())
    );
    let line = reads.command(&["CLIENT", "INFO"]).text();
    assert!(line.contains(&format!(" redir={subscriber} ")), "{line}");
    let off = format!("CLIENT TRACKING OFF REDIRECT {subscriber}");
    assert_eq!(reads.command(&words(&off)), Value::ok());
    // One that is not subscribed has no connection of its own yet.
    let mut pushed = greeted(circuit.client());
    let second = id(&mut pushed);
    assert_eq!(reads.command(&words(&redirect(&second))), Value::ok());
    let info = format!("{:?}", reads.command(&["CLIENT", "TRACKINGINFO"]));
    assert!(info.contains(&format!("Int({second})")), "{info}");
    reads.command(&["GET", "k"]);
    writes.command(&["SET", "k", "2"]);
    assert_eq!(pushed.read_reply(), invalidated("k"));
    is_silent(&mut pushed);
    for (wrong, said) in [
        (
            "CLIENT TRACKING ON REDIRECT 999999",
            "ERR The client ID you want redirect to does not exist",
        ),
        (
            "CLIENT TRACKING ON REDIRECT -1",
            "ERR The client ID you want redirect to does not exist",
        ),
        (
            "CLIENT TRACKING ON REDIRECT x",
            "ERR value is not an integer or out of range",
        ),
        (
            "CLIENT TRACKING ON REDIRECT 1 REDIRECT 1",
            "ERR A client can only redirect to a single other client",
        ),
    ] {
        assert!(writes.command(&words(wrong)).is_error(said), "{wrong}");
    }
    // Who reads hears that nobody is told any more.
    let mut reads = greeted(reads);
    drop(pushed);
    eventually(SOON, || {
        reads.command(&["GET", "k"]);
        writes.command(&["APPEND", "k", "x"]);
        let heard = reads.command(&["PING"]);
        let broken = matches!(&heard, Value::Push(words) if words[0].text() == "tracking-redir-broken");
        broken && reads.read_reply().text() == "PONG"
    });
}

#[test]
fn clients_that_redirect_are_closed_with_the_server_that_told_them() {
    let pair = Pair::start();
    let (mut reads, mut told, mut plain) = (pair.client(), pair.client(), pair.client());
    let subscriber = id(&mut told);
    told.command(&["SUBSCRIBE", "__redis__:invalidate"]);
    let redirect = format!("CLIENT TRACKING ON REDIRECT {subscriber}");
    assert_eq!(reads.command(&words(&redirect)), Value::ok());
    assert_eq!(plain.command(&["SET", "k", "v"]), Value::ok());
    pair.move_to_b();
    assert!(reads.is_closed() && told.is_closed());
    assert_eq!(plain.command(&["GET", "k"]), Value::bulk("v"));
}
