//! Nodes that come back with equal, divergent, older or no data, that are new, or that are gone for good.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::clients::{Appender, reader};
use super::{DROPPED, NO_MASTER, SOON, kill_master, next_master};
use crate::support::{Client, Pointsman, Redis, Up, Value, eventually, free_port};

/// Keys that are there before anything happens.
const KEYS: i64 = 100;

fn fill(client: &mut Client, prefix: &str) {
    for number in 0..KEYS {
        assert_eq!(client.command(&["SET", &format!("{prefix}{number}"), "v"]), Value::ok());
    }
}

/// Waits until these nodes hold so many keys.
#[track_caller]
fn hold(up: &Up, nodes: &[&str], keys: i64) {
    for node in nodes {
        let mut redis = Client::connect(up.redis(node).as_str());
        eventually(SOON, || redis.command(&["DBSIZE"]) == Value::Int(keys));
    }
}

/// A number in a node's INFO.
#[track_caller]
fn number(up: &Up, node: &str, field: &str) -> u64 {
    let info = Client::connect(up.redis(node).as_str()).command(&["INFO"]).text();
    let found = info
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    found.unwrap().trim().parse().unwrap()
}

/// Ends a node's Redis in good order and starts it again after `between`.
#[track_caller]
fn restart_redis(up: &Up, node: &str, between: impl FnOnce()) {
    // Redis does not end while it writes its first append-only file after a synchronisation.
    eventually(SOON, || {
        let pid = up.node(node)["redis"]["pid"].as_i64();
        if let Some(pid) = pid {
            let _gone = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGTERM);
        }
        pid.is_none()
    });
    between();
    up_node(up, node);
}

/// A shard of three that hold the same keys, and who wrote them.
#[track_caller]
fn filled(ack_replicas: &str) -> (Up, Client) {
    let up = Up::start(&["--replicas", "2", "--ack-replicas", ack_replicas]);
    up.all_count("s1");
    let mut client = up.client();
    fill(&mut client, "k");
    hold(&up, &["s1-a", "s1-b", "s1-c"], KEYS);
    (up, client)
}

#[track_caller]
fn up_node(up: &Up, node: &str) {
    let started = up.operate("up-node", &[node]);
    assert_eq!((started.code, started.stderr.as_str()), (Some(0), ""));
}

#[test]
fn an_old_master_with_equal_data_follows_without_a_full_synchronisation() {
    let (up, mut client) = filled("1");
    let old = up.master("s1");
    let fulls = |node: &str| number(&up, node, "sync_full");
    let before: u64 = ["s1-a", "s1-b", "s1-c"].into_iter().map(fulls).sum();
    up.signal(&old, "redis", Signal::SIGSTOP);
    let next = next_master(&up, "s1", &old);
    fill(&mut client, "l");
    up.signal(&old, "redis", Signal::SIGCONT);
    up.all_count("s1");
    hold(&up, &["s1-a", "s1-b", "s1-c"], 2 * KEYS);
    let after: u64 = ["s1-a", "s1-b", "s1-c"].into_iter().map(fulls).sum();
    assert_eq!(
        (fulls(&next), after),
        (0, before),
        "neither of the others needed a full one"
    );
    assert_eq!(number(&up, &next, "sync_partial_ok"), 2);
    // Now it is known that nothing was lost.
    eventually(SOON, || up.history("failover")[0]["lost_bytes"] == 0);
    assert_eq!(up.master("s1"), next);
    up.assert_calm(&[NO_MASTER]);
}

#[test]
fn an_old_master_that_went_its_own_way_drops_what_nobody_else_has_and_the_history_says_how_much() {
    let up = Up::start(&["--replicas", "2"]);
    up.all_count("s1");
    let mut client = up.client();
    fill(&mut client, "k");
    let nodes = ["s1-a", "s1-b", "s1-c"];
    hold(&up, &nodes, KEYS);
    let old = up.master("s1");
    let replicas: Vec<&str> = nodes.into_iter().filter(|node| *node != old).collect();
    // A client that goes around the proxy, at a master that nobody follows any more.
    let mut direct = Client::connect(up.redis(&old).as_str());
    for node in &replicas {
        up.signal(node, "redis", Signal::SIGSTOP);
    }
    assert_eq!(direct.command(&["CLIENT", "KILL", "TYPE", "replica"]), Value::Int(2));
    let written: u64 = (0..10)
        .map(|number| {
            assert_eq!(direct.command(&["SET", &format!("stray{number}"), "v"]), Value::ok());
            "*3\r\n$3\r\nSET\r\n$6\r\nstray0\r\n$1\r\nv\r\n".len() as u64
        })
        .sum();
    up.signal(&old, "redis", Signal::SIGSTOP);
    for node in &replicas {
        up.signal(node, "redis", Signal::SIGCONT);
    }
    next_master(&up, "s1", &old);
    fill(&mut client, "l");
    up.signal(&old, "redis", Signal::SIGCONT);
    up.all_count("s1");
    hold(&up, &nodes, 2 * KEYS);
    for node in nodes {
        let mut redis = Client::connect(up.redis(node).as_str());
        assert_eq!(redis.command(&["EXISTS", "stray0", "stray9"]), Value::Int(0));
    }
    let lost = || up.history("failover")[0]["lost_bytes"].as_u64();
    eventually(SOON, || lost().is_some_and(|lost| lost >= written));
    let table = up.operate("history", &[]).stdout;
    assert!(table.contains(&format!("{} B", lost().unwrap())), "{table}");
    up.assert_calm(&[NO_MASTER, DROPPED]);
}

#[test]
fn a_node_that_comes_back_with_its_files_gets_what_it_missed_and_counts_again() {
    let up = Up::start(&[
        "--replicas",
        "1",
        "--redis",
        "appendonly=yes",
        "--redis",
        "appendfsync=always",
    ]);
    up.all_count("s1");
    let mut client = up.client();
    fill(&mut client, "k");
    hold(&up, &["s1-a", "s1-b"], KEYS);
    let replica = if up.master("s1") == "s1-a" { "s1-b" } else { "s1-a" };
    // With all there is.
    restart_redis(&up, replica, || {});
    up.all_count("s1");
    hold(&up, &[replica], KEYS);
    // With older data.
    restart_redis(&up, replica, || fill(&mut client, "l"));
    up.all_count("s1");
    hold(&up, &[replica], 2 * KEYS);
    // As the old master, with less than the new one.
    let old = kill_master(&up, "s1");
    assert_eq!(next_master(&up, "s1", &old), replica);
    fill(&mut client, "m");
    up_node(&up, &old);
    up.all_count("s1");
    hold(&up, &["s1-a", "s1-b"], 3 * KEYS);
    assert_eq!(up.master("s1"), replica);
    up.assert_calm(&[NO_MASTER]);
}

#[test]
fn a_node_that_comes_back_with_its_snapshot_needs_only_what_it_missed() {
    let up = Up::start(&["--replicas", "2", "--redis", "save=3600 1"]);
    up.all_count("s1");
    let mut client = up.client();
    fill(&mut client, "k");
    hold(&up, &["s1-a", "s1-b", "s1-c"], KEYS);
    let master = up.master("s1");
    let replica = if master == "s1-a" { "s1-b" } else { "s1-a" };
    let before = number(&up, &master, "sync_full");
    restart_redis(&up, replica, || fill(&mut client, "l"));
    up.all_count("s1");
    hold(&up, &[replica], 2 * KEYS);
    assert_eq!(number(&up, &master, "sync_full"), before);
    up.assert_calm(&[NO_MASTER]);
}

#[test]
fn a_shard_that_is_restarted_whole_with_its_files_has_its_data() {
    // With acknowledgements nobody counts who was started anew: they would have to be told by hand that no disk lies.
    let up = Up::start(&[
        "--replicas",
        "2",
        "--ack-replicas",
        "0",
        "--redis",
        "appendonly=yes",
        "--redis",
        "appendfsync=always",
    ]);
    up.all_count("s1");
    let mut client = up.client();
    fill(&mut client, "k");
    let nodes = ["s1-a", "s1-b", "s1-c"];
    hold(&up, &nodes, KEYS);
    // A former master, the first by name, is away when the last writes come, and is back with the others.
    let stale = kill_master(&up, "s1");
    let stale = stale.as_str();
    next_master(&up, "s1", stale);
    up_node(&up, stale);
    up.all_count("s1");
    up.signal(stale, "redis", Signal::SIGKILL);
    eventually(SOON, || up.node(stale)["redis"]["pid"].is_null());
    fill(&mut client, "l");
    let others: Vec<&str> = nodes.into_iter().filter(|node| *node != stale).collect();
    hold(&up, &others, 2 * KEYS);
    // All at once, so that nobody is elected between.
    for node in &others {
        up.signal(node, "redis", Signal::SIGSTOP);
    }
    for node in &others {
        up.signal(node, "redis", Signal::SIGKILL);
    }
    eventually(SOON, || {
        nodes.into_iter().all(|node| up.node(node)["redis"]["pid"].is_null())
    });
    std::thread::scope(|scope| {
        for node in nodes {
            let up = &up;
            scope.spawn(move || up_node(up, node));
        }
    });
    up.all_count("s1");
    hold(&up, &nodes, 2 * KEYS);
    let mut client = up.client();
    assert_eq!(client.command(&["GET", "l0"]), Value::bulk("v"));
    up.assert_calm(&[
        NO_MASTER,
        "no valid member is left",
        "is the master of epoch",
        "no master for epoch",
    ]);
}

#[test]
fn a_master_that_is_back_empty_at_once_wipes_nobody() {
    let (up, mut client) = filled("1");
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "k0", "v"));
    appender.runner.advance();
    reads.advance();
    let killed = kill_master(&up, "s1");
    eventually(SOON, || up.node(&killed)["redis"]["pid"].is_null());
    up_node(&up, &killed);
    let next = up.master("s1");
    assert_ne!(next, killed);
    up.all_count("s1");
    appender.runner.advance();
    reads.advance();
    assert_eq!(reads.end().refused, 0);
    appender.runner.end().check(&mut client, &[]);
    hold(&up, &["s1-a", "s1-b", "s1-c"], KEYS + 1);
    up.assert_calm(&[NO_MASTER, DROPPED]);
}

/// A node that `up` knows nothing of: a Redis and its agent, started by hand.
struct Newcomer {
    redis: Redis,
    agent: Pointsman,
}

impl Newcomer {
    #[track_caller]
    fn start(up: &Up, node: &str) -> Self {
        let redis = Redis::start(&["--replicaof", "127.0.0.1", "1", "--repl-diskless-sync-delay", "0"]);
        let config = up.dir().join("s1-a").join("agent.toml");
        let port = || format!("127.0.0.1:{}", free_port());
        let (addr, listen, admin) = (redis.addr(), port(), port());
        let own = [
            "agent",
            "--config",
            config.to_str().unwrap(),
            "--node",
            node,
            "--member",
            node,
        ];
        let places = ["--redis", &addr, "--listen", &listen, "--admin", &admin];
        let agent = Pointsman::start(&[&own[..], &places].concat());
        Self { redis, agent }
    }
}

#[test]
fn a_new_node_counts_once_it_has_caught_up_and_can_take_over() {
    let up = Up::start(&["--replicas", "1"]);
    up.all_count("s1");
    let mut client = up.client();
    fill(&mut client, "k");
    // Slow to begin, so that there is a while in which it has a seat and no data.
    let master = up.master("s1");
    let mut slow = Client::connect(up.redis(&master).as_str());
    for (key, value) in [("repl-diskless-sync", "yes"), ("repl-diskless-sync-delay", "1")] {
        assert_eq!(slow.command(&["CONFIG", "SET", key, value]), Value::ok());
    }
    let newcomer = Newcomer::start(&up, "s1-c");
    let mut bare = false;
    std::thread::scope(|scope| {
        // Refused until its agent has registered it; then it ends when the node counts.
        let add = || up.operate("members", &["s1", "--add", "s1-c"]).code == Some(0);
        scope.spawn(move || eventually(SOON, add));
        eventually(SOON, || {
            let state = up.state("s1");
            let member = state["members"].as_array().unwrap().contains(&"s1-c".into());
            if state["valid"]["s1-c"].is_null() {
                bare |= member;
                return false;
            }
            assert!(member);
            assert_eq!(
                newcomer.redis.command(&["DBSIZE"]),
                Value::Int(KEYS),
                "it has all when it counts"
            );
            true
        });
    });
    assert!(bare, "it had a seat first");
    let status = up.shard("s1");
    let nodes = status["nodes"].as_array().unwrap();
    let new = nodes.iter().find(|node| node["id"] == "s1-c").unwrap();
    assert_eq!([&new["state"], &new["addr"]], ["linked", &newcomer.redis.addr()]);

    for node in ["s1-a", "s1-b"] {
        up.signal(node, "redis", Signal::SIGKILL);
    }
    eventually(SOON, || up.master("s1") == "s1-c");
    eventually(SOON, || client.command(&["SET", "after", "1"]) == Value::ok());
    assert_eq!(client.command(&["GET", "k0"]), Value::bulk("v"));
    for node in ["s1-a", "s1-b"] {
        up_node(&up, node);
    }
    hold(&up, &["s1-a", "s1-b"], KEYS + 1);
    newcomer
        .agent
        .assert_no_undeclared_warnings(&["no valid member is left", "no master for epoch", "neither"]);
    up.assert_calm(&[NO_MASTER, "no valid member is left", "no master for epoch", "neither"]);
}

#[test]
fn a_node_that_is_gone_for_good_is_down_and_elections_go_on_without_it() {
    // With acknowledgements one of three is no quorum.
    let (up, mut client) = filled("0");
    let master = up.master("s1");
    let removed = if master == "s1-c" { "s1-b" } else { "s1-c" };
    up.signal(removed, "agent", Signal::SIGTERM);
    up.signal(removed, "redis", Signal::SIGTERM);
    let mut down = BTreeSet::from([removed.to_owned()]);
    let are_down = |down: &BTreeSet<String>| {
        let shard = up.shard("s1");
        let nodes = shard["nodes"].as_array().unwrap();
        let away = nodes
            .iter()
            .filter(|node| node["state"] == "down" && node["role"] == "none");
        away.map(|node| node["id"].as_str().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
            == *down
    };
    eventually(SOON, || are_down(&down));
    assert_eq!(up.master("s1"), master, "no reason for a failover");
    kill_master(&up, "s1");
    let next = next_master(&up, "s1", &master);
    eventually(SOON, || client.command(&["SET", "after", "1"]) == Value::ok());
    assert_eq!(client.command(&["GET", "k0"]), Value::bulk("v"));
    down.insert(master.clone());
    eventually(SOON, || are_down(&down));
    up_node(&up, &master);
    down.remove(&master);
    eventually(SOON, || are_down(&down));
    hold(&up, &[&master, &next], KEYS + 1);
    up.assert_calm(&[NO_MASTER]);
}
