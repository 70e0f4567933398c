//! What clients ask about themselves and about each other: the proxy's own clients, whichever worker has them.

use std::time::Duration;

use crate::support::{Client, Pair, Pointsman, Redis, START_DEADLINE, Value, encode, eventually, field, free_port};

const SOON: Duration = Duration::from_secs(20);

/// A Redis and a proxy of two workers before it.
struct Circuit {
    redis: Redis,
    proxy: Pointsman,
    listen: String,
}

impl Circuit {
    fn start() -> Self {
        Self::before(Redis::start(&[]))
    }

    fn before(redis: Redis) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut proxy = Pointsman::start(&[
            "proxy",
            "--listen",
            &listen,
            "--master",
            &redis.addr(),
            "--workers",
            "2",
        ]);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        let circuit = Self { redis, proxy, listen };
        // Each worker greets the master for itself.
        let mut both = [circuit.client(), circuit.client()];
        both.iter_mut()
            .for_each(|client| assert!(client.command(&["PING"]).text() == "PONG"));
        circuit
    }

    fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }
}

fn id(client: &mut Client) -> String {
    match client.command(&["CLIENT", "ID"]) {
        Value::Int(id) => id.to_string(),
        other => panic!("no id: {other:?}"),
    }
}

fn addr(client: &Client) -> String {
    client.stream().local_addr().unwrap().to_string()
}

/// The text of an element of an array.
fn element(reply: &Value, at: usize) -> String {
    match reply {
        Value::Array(elements) => elements[at].text(),
        other => panic!("no array: {other:?}"),
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// What a new client of an empty data set hears in answer to `talk`.
fn hear(mut client: Client, talk: &[u8]) -> Vec<Value> {
    assert_eq!(client.command(&["FLUSHALL"]), Value::ok());
    client.send(talk);
    client.send(b"ECHO end\r\n");
    std::iter::from_fn(|| Some(client.read_reply()).filter(|reply| *reply != Value::bulk("end"))).collect()
}

/// How many clients the proxy has, beside the one that asks.
fn client_count(listen: &str) -> usize {
    Client::connect(listen)
        .command(&["CLIENT", "LIST"])
        .text()
        .lines()
        .count()
        - 1
}

#[test]
fn clients_of_all_workers_are_listed_in_the_format_of_redis() {
    let circuit = Circuit::start();
    let (mut one, mut other) = (circuit.client(), circuit.client());
    one.command(&["CLIENT", "SETNAME", "first"]);
    other.command(&["SELECT", "5"]);
    other.command(&["SUBSCRIBE", "news"]);
    let list = one.command(&["CLIENT", "LIST"]).text();
    let of = |client: &Client| {
        let addr = format!(" addr={} ", addr(client));
        list.lines()
            .find(|line| line.contains(&addr))
            .unwrap_or_default()
            .to_owned()
    };
    let own = of(&one);
    for field in [
        " name=first ",
        " flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=26 ",
        " cmd=client|list user=default redir=-1 resp=2",
    ] {
        assert!(own.contains(field), "{field:?} is not in {own:?}");
    }
    assert!(
        of(&other).contains(" flags=P db=5 sub=1 psub=0 ssub=0 multi=-1 "),
        "{list}"
    );
    let names = |text: &str| -> Vec<String> {
        let line = text.lines().next().unwrap_or_default();
        line.split(' ')
            .filter_map(|field| field.split('=').next())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(names(&own), names(&circuit.redis.command(&["CLIENT", "LIST"]).text()));
    assert_eq!(
        one.command(&["CLIENT", "LIST", "TYPE", "pubsub"])
            .text()
            .lines()
            .count(),
        1
    );
    let two = [id(&mut one), "99999".to_owned()];
    let listed = one.command(&["CLIENT", "LIST", "ID", &two[0], &two[1]]).text();
    assert_eq!(listed.lines().count(), 1);
    assert!(
        one.command(&["CLIENT", "INFO"])
            .text()
            .starts_with(&format!("id={} addr={} ", two[0], addr(&one)))
    );
    one.command(&["MULTI"]);
    one.command(&["SET", "a", "1"]);
    let list = circuit.client().command(&["CLIENT", "LIST"]).text();
    assert!(list.contains(" flags=x db=0 sub=0 psub=0 ssub=0 multi=1 "), "{list}");
}

#[test]
fn clients_are_killed_by_address_and_id_on_whatever_worker() {
    let circuit = Circuit::start();
    let mut killer = circuit.client();
    let mut victims: Vec<Client> = (0..4).map(|_| circuit.client()).collect();
    victims.iter_mut().for_each(|client| drop(client.command(&["PING"])));
    let by_id = id(&mut victims[0]);
    assert_eq!(killer.command(&["CLIENT", "KILL", "ID", &by_id]), Value::Int(1));
    assert_eq!(killer.command(&["CLIENT", "KILL", "ID", &by_id]), Value::Int(0));
    assert_eq!(killer.command(&["CLIENT", "KILL", &addr(&victims[1])]), Value::ok());
    assert_eq!(
        killer.command(&["CLIENT", "KILL", "ADDR", &addr(&victims[2])]),
        Value::Int(1)
    );
    // One that is blocked at the master is let go there, too.
    victims[3].send(b"BLPOP q 0\r\n");
    let blocked = |count: &str| {
        circuit
            .redis
            .command(&["INFO", "clients"])
            .text()
            .contains(&format!("blocked_clients:{count}"))
    };
    eventually(SOON, || blocked("1"));
    assert_eq!(
        killer.command(&["CLIENT", "KILL", "ADDR", &addr(&victims[3])]),
        Value::Int(1)
    );
    eventually(SOON, || blocked("0"));
    for victim in &mut victims {
        assert!(victim.is_closed());
    }
    assert_eq!(killer.command(&["PING"]).text(), "PONG");
    // Who kills itself hears of it first.
    let own = addr(&killer);
    assert_eq!(killer.command(&["CLIENT", "KILL", &own]), Value::ok());
    assert!(killer.is_closed());
}

#[test]
fn refusals_about_clients_have_the_words_of_redis() {
    let circuit = Circuit::start();
    let mut client = circuit.client();
    let mut direct = circuit.redis.client();
    for line in [
        "CLIENT LIST TYPE",
        "CLIENT LIST TYPE what",
        "CLIENT LIST ID x",
        "CLIENT LIST nosuch",
        "CLIENT INFO x",
        "CLIENT KILL",
        "CLIENT KILL 1.2.3.4:5",
        "CLIENT KILL ID x",
        "CLIENT KILL ID 0",
        "CLIENT KILL ADDR 1.2.3.4:5 ID",
        "CLIENT KILL TYPE what",
        "CLIENT KILL SKIPME maybe",
        "CLIENT KILL USER nobody",
        "CLIENT KILL USER default ADDR 1.2.3.4:5",
        "CLIENT KILL ADDR 1.2.3.4:5 LADDR 1.2.3.4:5",
        "CLIENT NO-EVICT maybe",
        "CLIENT NO-TOUCH ON",
        "CLIENT PAUSE x",
        "CLIENT PAUSE -1",
        "CLIENT PAUSE 1 maybe",
        "CLIENT PAUSE",
        "CLIENT UNPAUSE x",
        "CLIENT PAUSE 1 WRITE",
        "CLIENT UNPAUSE",
        "CLIENT GETREDIR",
        "CLIENT TRACKINGINFO",
        "CLIENT REPLY maybe",
        "CLIENT UNBLOCK x",
        "CLIENT UNBLOCK 1 maybe",
        "AUTH x",
        "AUTH no one",
        "ACL WHOAMI",
        "HELLO 3 AUTH default x",
        "CLIENT TRACKINGINFO",
    ] {
        let (ours, theirs) = (client.command(&words(line)), direct.command(&words(line)));
        // A greeting has an id that is ours.
        let greeted = matches!((&ours, &theirs), (Value::Map(_), Value::Map(_))) && line.starts_with("HELLO");
        if !greeted {
            assert_eq!(ours, theirs, "{line}");
        }
    }
}

#[test]
fn a_client_hears_only_the_replies_it_wants_to_hear() {
    let circuit = Circuit::start();
    let talks: [&[u8]; 6] = [
        b"SET a 1\r\nCLIENT REPLY OFF\r\nSET a 2\r\nNOSUCH\r\nINCR a\r\nCLIENT ID\r\nCLIENT REPLY ON\r\nGET a\r\nPING\r\n",
        b"CLIENT REPLY SKIP\r\nSET a 1\r\nGET a\r\nCLIENT REPLY SKIP\r\nECHO x\r\nPING\r\n",
        b"CLIENT REPLY SKIP\r\nCLIENT REPLY SKIP\r\nGET a\r\nPING\r\n",
        b"CLIENT REPLY OFF\r\nCLIENT REPLY SKIP\r\nGET a\r\nGET a\r\nCLIENT REPLY ON\r\nPING\r\n",
        b"CLIENT REPLY SKIP\r\nMULTI\r\nSET a 5\r\nGET a\r\nEXEC\r\nPING\r\n",
        b"CLIENT REPLY SKIP\r\nBLPOP none 0.05\r\nCLIENT REPLY maybe\r\nRPUSH l a b\r\nLPOP l\r\nPING\r\n",
    ];
    for talk in talks {
        assert_eq!(
            hear(circuit.client(), talk),
            hear(circuit.redis.client(), talk),
            "{}",
            String::from_utf8_lossy(talk)
        );
    }
}

#[test]
fn a_select_inside_a_transaction_holds_from_exec_on_if_that_ran() {
    let circuit = Circuit::start();
    let talks: [&[u8]; 4] = [
        b"SET k zero\r\nMULTI\r\nSELECT 3\r\nSET k three\r\nEXEC\r\nGET k\r\nSELECT 0\r\nGET k\r\n",
        b"MULTI\r\nSELECT 4\r\nDISCARD\r\nSET k x\r\nSELECT 4\r\nGET k\r\n",
        b"MULTI\r\nSELECT 5\r\nNOSUCH\r\nEXEC\r\nSET k y\r\nSELECT 5\r\nGET k\r\n",
        b"MULTI\r\nSELECT 99\r\nSELECT x\r\nSELECT 6\r\nSET k six\r\nEXEC\r\nMULTI\r\nGET k\r\nEXEC\r\nGET k\r\n",
    ];
    for talk in talks {
        assert_eq!(
            hear(circuit.client(), talk),
            hear(circuit.redis.client(), talk),
            "{}",
            String::from_utf8_lossy(talk)
        );
    }
}

#[test]
fn a_blocked_client_is_unblocked_by_the_id_that_we_gave_it() {
    let circuit = Circuit::start();
    let (mut other, mut blocked) = (circuit.client(), circuit.client());
    let blocks = || {
        circuit
            .redis
            .command(&["INFO", "clients"])
            .text()
            .contains("blocked_clients:1")
    };
    let id = id(&mut blocked);
    assert_eq!(other.command(&["CLIENT", "UNBLOCK", &id]), Value::Int(0));
    blocked.send(b"BLPOP q 0\r\n");
    eventually(SOON, blocks);
    assert_eq!(other.command(&["CLIENT", "UNBLOCK", &id]), Value::Int(1));
    assert_eq!(blocked.read_reply(), Value::Null);
    blocked.send(b"BLPOP q 0\r\nPING\r\n");
    eventually(SOON, blocks);
    assert_eq!(other.command(&["CLIENT", "UNBLOCK", &id, "ERROR"]), Value::Int(1));
    assert!(
        blocked
            .read_reply()
            .is_error("UNBLOCKED client unblocked via CLIENT UNBLOCK")
    );
    assert_eq!(blocked.read_reply().text(), "PONG");
    assert_eq!(other.command(&["CLIENT", "UNBLOCK", "99999"]), Value::Int(0));
}

#[test]
fn a_wait_counts_replicas_that_have_what_its_client_wrote() {
    let mut master = Redis::start(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port().to_string();
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &port]);
    let linked = || {
        replica
            .command(&["INFO", "replication"])
            .text()
            .contains("master_link_status:up")
    };
    eventually(SOON, linked);
    let listen = format!("127.0.0.1:{}", free_port());
    let mut proxy = Pointsman::start(&[
        "proxy",
        "--listen",
        &listen,
        "--master",
        &master.addr(),
        "--workers",
        "1",
    ]);
    proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
    let mut client = Client::connect(listen.as_str());
    client.send(b"SET a 1\r\nWAIT 1 10000\r\nGET a\r\n");
    let replies: Vec<Value> = (0..3).map(|_| client.read_reply()).collect();
    assert_eq!(replies, [Value::ok(), Value::Int(1), Value::bulk("1")]);
    // A bare WAIT on another connection than the write's would say 1 at once.
    replica.stop();
    assert_eq!(client.command(&["SET", "a", "2"]), Value::ok());
    assert_eq!(client.command(&["WAIT", "1", "100"]), Value::Int(0));
    replica.cont();
    assert_eq!(client.command(&["WAIT", "1", "10000"]), Value::Int(1));
    for wrong in ["WAIT x 0", "WAIT 1 x", "WAIT 1 -1", "WAIT 1"] {
        assert_eq!(client.command(&words(wrong)), master.command(&words(wrong)), "{wrong}");
    }
    // Who leaves in the middle of one is not waited for.
    let seen = || client_count(&listen);
    let before = seen();
    let mut leaving = Client::connect(listen.as_str());
    leaving.send(b"SET a 2\r\nWAIT 9 0\r\n");
    assert_eq!(leaving.read_reply(), Value::ok());
    eventually(SOON, || seen() == before + 1);
    drop(leaving);
    eventually(SOON, || seen() == before);
    // What a master took with it into its grave, the replicas of its next life cannot vouch for (rule A6).
    replica.stop();
    assert_eq!(client.command(&["SET", "a", "3"]), Value::ok());
    master.restart();
    replica.cont();
    eventually(SOON, linked);
    eventually(SOON, || client.command(&["PING"]).text() == "PONG");
    assert_eq!(client.command(&["WAIT", "1", "1000"]), Value::Int(0));
    assert_eq!(client.command(&["SET", "a", "4"]), Value::ok());
    assert_eq!(client.command(&["WAIT", "1", "10000"]), Value::Int(1));
}

#[test]
fn a_script_that_never_ends_is_killed_from_any_database_and_nobody_loses_the_master() {
    let circuit = Circuit::start();
    let mut busy = circuit.client();
    let mut other = circuit.client();
    circuit.redis.command(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
    other.command(&["SELECT", "3"]);
    busy.send(b"EVAL \"while true do end\" 0\r\n");
    eventually(SOON, || circuit.redis.command(&["PING"]).is_error("BUSY"));
    // New connections are needed for all of these, and a server that runs a script takes no SELECT.
    assert!(other.command(&["SET", "a", "1"]).is_error("BUSY"));
    assert_eq!(other.command(&["MULTI"]), Value::ok());
    assert!(matches!(
        other.command(&["SET", "a", "1"]),
        Value::Error(_) | Value::Simple(_)
    ));
    assert!(other.command(&["EXEC"]).is_error("EXECABORT"));
    other.send(b"MULTI\r\nSET a 1\r\nEXEC\r\n");
    assert_eq!(other.read_reply(), Value::ok());
    assert!(other.read_reply().is_error("BUSY"));
    assert!(other.read_reply().is_error("EXECABORT"));
    assert_eq!(other.command(&["SCRIPT", "KILL"]), Value::ok());
    assert!(busy.read_reply().text().contains("Script killed by user"));
    assert_eq!(other.command(&["GET", "a"]), Value::Null);
    assert_eq!(other.command(&["SET", "a", "1"]), Value::ok());
    assert!(!circuit.proxy.log().contains("no master"), "{}", circuit.proxy.log());
}

#[test]
fn a_connection_of_its_own_follows_its_session_to_another_database() {
    let circuit = Circuit::start();
    for talk in [
        &b"SET k zero\r\nBLPOP none 0.05\r\nSELECT 4\r\nSET k four\r\nBLPOP none 0.05\r\nGET k\r\nSELECT 0\r\nGET k\r\n"[..],
        b"MULTI\r\nGET k\r\nDISCARD\r\nSET k x\r\nSELECT 4\r\nGET k\r\n",
        b"RPUSH l a\r\nBLPOP none 0.05\r\nSELECT 5\r\nBLPOP l 0.05\r\nSELECT 0\r\nBLPOP l 0.05\r\n",
        b"SELECT 2\r\nWATCH k\r\nSELECT 3\r\nSET k three\r\nMULTI\r\nGET k\r\nEXEC\r\nSELECT 2\r\nGET k\r\n",
    ] {
        assert_eq!(
            hear(circuit.client(), talk),
            hear(circuit.redis.client(), talk),
            "{}",
            String::from_utf8_lossy(talk)
        );
    }
}

#[test]
fn a_pause_keeps_clients_of_all_workers_waiting_and_is_unknown_to_redis() {
    let circuit = Circuit::start();
    let mut boss = circuit.client();
    let mut clients: Vec<Client> = (0..3).map(|_| circuit.client()).collect();
    assert_eq!(boss.command(&["CLIENT", "PAUSE", "60000", "WRITE"]), Value::ok());
    clients[0].send(b"GET a\r\nSET a 1\r\nGET a\r\n");
    clients[1].send(b"MULTI\r\nSET b 1\r\nEXEC\r\n");
    clients[2].send(b"PUBLISH c x\r\n");
    assert_eq!(clients[0].read_reply(), Value::Null);
    // Neither a read of others nor Redis itself waits.
    assert_eq!(boss.command(&["GET", "a"]), Value::Null);
    assert_eq!(circuit.redis.command(&["SET", "direct", "1"]), Value::ok());
    assert_eq!(
        boss.command(&["MGET", "a", "b"]),
        Value::Array(vec![Value::Null, Value::Null])
    );
    assert_eq!(boss.command(&["CLIENT", "UNPAUSE"]), Value::ok());
    assert_eq!(clients[0].read_reply(), Value::ok());
    assert_eq!(clients[0].read_reply(), Value::bulk("1"));
    assert_eq!(clients[1].read_reply(), Value::ok());
    assert_eq!(clients[1].read_reply().text(), "QUEUED");
    assert_eq!(clients[1].read_reply(), Value::Array(vec![Value::ok()]));
    assert_eq!(clients[2].read_reply(), Value::Int(0));
    // One that was queued before waits at EXEC; one for everything ends by itself.
    boss.command(&["MULTI"]);
    boss.command(&["SET", "a", "2"]);
    let begun = pointsman::clock::now();
    assert_eq!(clients[0].command(&["CLIENT", "PAUSE", "300"]), Value::ok());
    assert_eq!(clients[1].command(&["GET", "a"]), Value::bulk("1"));
    assert_eq!(boss.command(&["EXEC"]), Value::Array(vec![Value::ok()]));
    assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
}

#[test]
fn a_subscriber_that_hears_no_replies_hears_messages() {
    let circuit = Circuit::start();
    let talk = |addr: &str| {
        let mut client = Client::connect(addr);
        client.command(&["HELLO", "3"]);
        client.send(b"CLIENT REPLY OFF\r\nSUBSCRIBE c d\r\nPING\r\nCLIENT ID\r\nPUBLISH c x\r\nGET none\r\nCLIENT REPLY ON\r\nPING\r\n");
        (0..5).map(|_| client.read_reply()).collect::<Vec<_>>()
    };
    assert_eq!(talk(&circuit.listen), talk(&circuit.redis.addr()));
}

#[test]
fn info_has_a_section_about_the_proxy() {
    let circuit = Circuit::start();
    let mut client = circuit.client();
    for words in [
        &["INFO"][..],
        &["INFO", "proxy"],
        &["INFO", "server", "PROXY"],
        &["INFO", "everything"],
    ] {
        let said = client.command(words).text();
        let (before, section) = said.split_once("# Proxy\r\n").unwrap();
        assert_eq!(before.is_empty(), words.ends_with(&["proxy"]), "{said}");
        assert!(section.contains("proxy_connected_clients:1\r\n"), "{section}");
        assert!(section.contains(&format!("proxy_version:{}\r\n", env!("CARGO_PKG_VERSION"))));
        assert!(
            section.contains("\r\nproxy_shard0:id=s1,epoch=1,phase=serving,master=127.0.0.1:"),
            "{section}"
        );
    }
    assert!(!client.command(&["INFO", "server"]).text().contains("# Proxy"));
    client.command(&["HELLO", "3"]);
    assert!(
        client
            .command(&["INFO", "proxy"])
            .text()
            .contains("# Proxy\r\nproxy_version:")
    );
}

#[test]
fn a_client_that_blocks_again_and_again_needs_one_connection() {
    let circuit = Circuit::start();
    let mut client = circuit.client();
    let connections = || {
        let stats = circuit.redis.command(&["INFO", "stats"]).text();
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
    };
    client.command(&["BLPOP", "none", "0.01"]);
    let before = connections();
    for _ in 0..20 {
        client.command(&["SET", "a", "1"]);
        assert_eq!(client.command(&["BLPOP", "none", "0.01"]), Value::Null);
        client.command(&["CONFIG", "GET", "maxmemory"]);
    }
    // One of them is our own question.
    assert!(connections() - before <= 2, "{}", connections() - before);
    // What a transaction was on, the next session does not get.
    client.send(
        b"MULTI\r\nSELECT 7\r\nEXEC\r\nBLPOP none 0.01\r\nSET k seven\r\nSELECT 0\r\nBLPOP none 0.01\r\nGET k\r\n",
    );
    let replies: Vec<Value> = (0..8).map(|_| client.read_reply()).collect();
    assert_eq!(replies[7], Value::Null);
}

#[test]
fn a_user_who_may_not_select_uses_the_database_that_was_selected_before_its_login() {
    let circuit = Circuit::start();
    circuit
        .redis
        .command(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "+get", "+set"]);
    let mut client = circuit.client();
    client.command(&["HELLO", "3"]);
    client.command(&["SELECT", "5"]);
    assert_eq!(client.command(&["AUTH", "bob", "pw"]), Value::ok());
    assert_eq!(client.command(&["SET", "a", "five"]), Value::ok());
    assert_eq!(client.command(&["GET", "a"]), Value::bulk("five"));
    let mut direct = circuit.redis.client();
    assert_eq!(direct.command(&["GET", "a"]), Value::Null);
    // One whose login is refused hears why, and the master is nobody's loss.
    circuit.redis.command(&["ACL", "DELUSER", "bob"]);
    circuit.redis.command(&["CLIENT", "KILL", "USER", "bob"]);
    eventually(SOON, || client.command(&["GET", "a"]).is_error("WRONGPASS"));
    assert_eq!(circuit.client().command(&["SET", "b", "1"]), Value::ok());
    assert!(!circuit.proxy.log().contains("no master"), "{}", circuit.proxy.log());
}

#[test]
fn info_tells_of_clients_and_not_of_connections() {
    let circuit = Circuit::start();
    let mut clients: Vec<Client> = (0..5).map(|_| circuit.client()).collect();
    clients.iter_mut().for_each(|client| drop(client.command(&["PING"])));
    let [asks, paused, blocked, ..] = clients.as_mut_slice() else {
        unreachable!()
    };
    let told = |client: &mut Client, name: &str| field(&client.command(&["INFO", "clients"]).text(), name);
    eventually(SOON, || told(asks, "connected_clients") == "5");
    assert_eq!(asks.command(&["CLIENT", "PAUSE", "20000", "WRITE"]), Value::ok());
    paused.send(&encode(&["SET", "k", "v"]));
    blocked.send(&encode(&["XREAD", "BLOCK", "0", "STREAMS", "s", "$"]));
    eventually(SOON, || told(asks, "blocked_clients") == "2");
    // The same within a transaction.
    assert_eq!(asks.command(&["MULTI"]), Value::ok());
    assert_eq!(asks.command(&["INFO", "clients"]).text(), "QUEUED");
    let Value::Array(replies) = asks.command(&["EXEC"]) else {
        panic!("no array")
    };
    assert_eq!(field(&replies[0].text(), "blocked_clients"), "2");
    assert_eq!(asks.command(&["CLIENT", "UNPAUSE"]), Value::ok());
    assert_eq!(paused.read_reply(), Value::ok());
    eventually(SOON, || told(asks, "blocked_clients") == "1");
    drop(clients);
    eventually(SOON, || told(&mut circuit.client(), "connected_clients") == "1");
}

#[test]
fn what_pointsman_asks_for_itself_is_in_no_monitor_and_no_slow_log() {
    let pair = Pair::start();
    let (mut client, mut monitor, mut raw) = (pair.client(), pair.client(), pair.a.client());
    assert_eq!(
        client.command(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]),
        Value::ok()
    );
    assert_eq!(
        client.command(&["CONFIG", "SET", "slowlog-max-len", "100000"]),
        Value::ok()
    );
    assert_eq!(monitor.command(&["MONITOR"]), Value::ok());
    assert_eq!(raw.command(&["MONITOR"]), Value::ok());
    // As long as there is traffic, the proxy asks how far the servers are.
    let mut sent = 0;
    eventually(SOON, || {
        sent += 1;
        assert_eq!(client.command(&["SET", "k", &sent.to_string()]), Value::ok());
        raw.read_reply().text().contains("\"iNFO\"")
    });
    for number in 1..=sent {
        let line = monitor.read_reply().text();
        assert!(line.ends_with(&format!("\"SET\" \"k\" \"{number}\"")), "{line}");
    }
    // The names of the commands in the slow log.
    let log = |client: &mut Client, count: &str| -> Vec<String> {
        let Value::Array(entries) = client.command(&["SLOWLOG", "GET", count]) else {
            panic!("no log")
        };
        let command = |entry: &Value| match entry {
            Value::Array(fields) => element(&fields[3], 0),
            other => panic!("no entry: {other:?}"),
        };
        entries.iter().map(command).collect()
    };
    assert!(log(&mut pair.a.client(), "-1").contains(&"iNFO".to_owned()));
    let all = log(&mut client, "-1");
    assert!(
        all.len() > 3
            && all
                .iter()
                .all(|name| name.to_uppercase() == *name && name != "REPLCONF"),
        "{all:?}"
    );
    assert_eq!(log(&mut client, "3").len(), 3);
    // Who looks at it finds its own reads there.
    assert_eq!(client.command(&["GET", "k"]), Value::bulk(&sent.to_string()));
    assert_eq!(log(&mut client, "2")[0], "GET");
    assert!(client.command(&["SLOWLOG", "GET", "x"]).is_error("ERR"));
}

#[test]
fn settings_are_every_nodes_inside_a_transaction_too() {
    let pair = Pair::start();
    let mut client = pair.client();
    client.send(b"MULTI\r\nSET k v\r\nCONFIG SET maxmemory 104857600\r\nSCRIPT LOAD \"return 7\"\r\nCONFIG SET maxmemory bla\r\nEXEC\r\n");
    let replies: Vec<Value> = (0..6).map(|_| client.read_reply()).collect();
    let Value::Array(results) = &replies[5] else {
        panic!("{replies:?}")
    };
    assert_eq!(results[..2], [Value::ok(), Value::ok()]);
    assert!(results[3].is_error("ERR"), "{results:?}");
    let sha = results[2].text();
    let set = Value::Array(vec![Value::bulk("maxmemory"), Value::bulk("104857600")]);
    eventually(SOON, || pair.b.command(&["CONFIG", "GET", "maxmemory"]) == set);
    eventually(SOON, || {
        pair.b.command(&["SCRIPT", "EXISTS", &sha]) == Value::Array(vec![Value::Int(1)])
    });
    // What is not for clients ends it.
    client.send(b"MULTI\r\nCONFIG SET replicaof 'no one'\r\nEXEC\r\n");
    assert_eq!(client.read_reply(), Value::ok());
    assert!(client.read_reply().is_error("NOPERM"));
    assert!(client.read_reply().is_error("EXECABORT"));
}

#[test]
fn settings_that_stay_as_they_are_may_be_written_back() {
    let pair = Pair::start();
    pair.a
        .command(&["CONFIG", "SET", "masterauth", "secret", "masteruser", "somebody"]);
    let mut client = pair.client();
    let Value::Array(all) = client.command(&["CONFIG", "GET", "master*"]) else {
        panic!("no settings")
    };
    let texts: Vec<String> = all.iter().map(Value::text).collect();
    assert_eq!(texts.len(), 4);
    assert!(
        texts.contains(&"masterauth".to_owned())
            && !texts.contains(&"secret".to_owned())
            && !texts.contains(&"somebody".to_owned())
    );
    let port = pair.a.port().to_string();
    let same = [
        "CONFIG",
        "SET",
        "port",
        &port,
        "masterauth",
        "",
        "maxmemory",
        "104857600",
    ];
    assert_eq!(client.command(&same), Value::ok());
    assert_eq!(
        element(&client.command(&["CONFIG", "GET", "maxmemory"]), 1),
        "104857600"
    );
    assert_eq!(client.command(&["CONFIG", "SET", "port", &port]), Value::ok());
    assert!(
        client
            .command(&["CONFIG", "SET", "maxmemory", "0", "port", "1"])
            .is_error("NOPERM")
    );
    assert!(client.command(&["CONFIG", "SET", "masterauth", "x"]).is_error("NOPERM"));
    assert!(client.command(&["CONFIG", "SET", "port"]).is_error("ERR"));
    assert_eq!(element(&pair.a.command(&["CONFIG", "GET", "masterauth"]), 1), "secret");
}

#[test]
fn a_pause_of_writes_lets_scripts_pass_that_declare_to_write_nothing() {
    let circuit = Circuit::start();
    let (mut pauses, mut reads, mut writes) = (circuit.client(), circuit.client(), circuit.client());
    let library = "#!lua name=f1\nredis.register_function{function_name='f1', callback=function() return 'hello' end, \
                   flags={'no-writes'}}\nredis.register_function('f2', function() return 'bye' end)";
    assert_eq!(pauses.command(&["FUNCTION", "LOAD", library]).text(), "f1");
    let body = "#!lua flags=no-writes\nreturn 'unique'";
    // It begins when the transaction that it stands in ends.
    let begin = [
        "MULTI",
        "SET a 1",
        "CLIENT PAUSE 60000 WRITE",
        "CLIENT PAUSE x",
        "SET b 2",
        "EXEC",
    ];
    let replies: Vec<Value> = begin.iter().map(|line| pauses.command(&words(line))).collect();
    let Value::Array(results) = &replies[5] else {
        panic!("{replies:?}")
    };
    assert_eq!(results[..2], [Value::ok(), Value::ok()]);
    assert!(results[2].is_error("ERR timeout is not an integer"), "{results:?}");
    assert_eq!(
        reads.command(&["MGET", "a", "b"]),
        Value::Array(vec![Value::bulk("1"), Value::bulk("2")])
    );
    writes.send(&encode(&["FCALL", "f2", "0"]));
    assert_eq!(reads.command(&["EVAL", body, "0"]), Value::bulk("unique"));
    let sha = reads.command(&["SCRIPT", "LOAD", body]).text();
    assert_eq!(reads.command(&["EVALSHA", &sha, "0"]), Value::bulk("unique"));
    assert_eq!(reads.command(&["FCALL", "f1", "0"]), Value::bulk("hello"));
    assert!(reads.command(&["SET", "a"]).is_error("ERR wrong number of arguments"));
    for line in ["MULTI", "FCALL f1 0", "GET a"] {
        reads.command(&words(line));
    }
    let both = Value::Array(vec![Value::bulk("hello"), Value::bulk("1")]);
    assert_eq!(reads.command(&["EXEC"]), both);
    let waits = |client: &mut Client| field(&client.command(&["INFO", "clients"]).text(), "blocked_clients") == "1";
    eventually(SOON, || waits(&mut reads));
    let end = ["MULTI", "CLIENT UNPAUSE", "EXEC"];
    let replies: Vec<Value> = end.iter().map(|line| reads.command(&words(line))).collect();
    assert_eq!(replies[2], Value::Array(vec![Value::ok()]));
    assert_eq!(writes.read_reply(), Value::bulk("bye"));
}

#[test]
fn there_are_as_many_databases_as_the_server_has() {
    for (databases, there, not_there) in [("32", "31", "32"), ("4", "3", "4")] {
        let redis = Redis::start(&["--databases", databases]);
        let circuit = Circuit::before(redis);
        let mut client = circuit.client();
        assert_eq!(client.command(&["SELECT", there]), Value::ok());
        assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
        assert!(
            client
                .command(&["SELECT", not_there])
                .is_error("ERR DB index is out of range")
        );
        assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    }
}

#[test]
fn a_transaction_that_was_refused_is_seen_to_end_by_who_monitors() {
    let circuit = Circuit::start();
    let (mut client, mut monitor) = (circuit.client(), circuit.client());
    assert_eq!(monitor.command(&["MONITOR"]), Value::ok());
    for wrong in ["NOSUCH x", "GET", "CONFIG NOSUCH"] {
        let mut direct = circuit.redis.client();
        for line in ["MULTI", "SET k v", wrong, "SET k w", "EXEC"] {
            assert_eq!(
                client.command(&words(line)),
                direct.command(&words(line)),
                "{wrong}: {line}"
            );
        }
        // Of both.
        let seen: Vec<String> = (0..4).map(|_| monitor.read_reply().text()).collect();
        let times = |name: &str| {
            seen.iter()
                .filter(|line| line.ends_with(&format!("\"{name}\"")))
                .count()
        };
        assert_eq!((times("MULTI"), times("EXEC")), (2, 2), "{seen:?}");
    }
    assert_eq!(client.command(&["GET", "k"]), Value::Null);
}
