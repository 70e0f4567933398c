//! Members and W that change under clients.

use nix::sys::signal::Signal;

use super::clients::{Appender, reader};
use super::switchovers::{content, witnesses};
use super::{NO_MASTER, SOON};
use crate::support::{Client, Up, Value, eventually};

/// What an executor says of a proxy that takes longer than `drain_max_ms`, as on a machine with too much to do.
const LATE: &str = "not waiting any longer for ";

/// The replicas of the shard.
pub fn replicas(up: &Up) -> Vec<String> {
    let master = up.master("s1");
    let shard = up.shard("s1");
    let nodes = shard["nodes"].as_array().unwrap().iter();
    let names = nodes.map(|node| node["id"].as_str().unwrap().to_owned());
    names.filter(|name| *name != master).collect()
}

/// One of them.
fn replica(up: &Up) -> String {
    replicas(up).swap_remove(0)
}

/// Runs `pointsman members s1` and returns what it printed.
#[track_caller]
pub fn members(up: &Up, args: &[&str]) -> String {
    let output = up.operate("members", &[&["s1"], args].concat());
    assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
    output.stdout
}

#[test]
fn members_come_and_go_under_clients_of_every_kind_and_nobody_notices() {
    let up = Up::start(&["--replicas", "2", "--proxies", "2", "--ack-replicas", "0"]);
    up.all_count("s1");
    assert_eq!(up.client().command(&["SET", "steady", "here"]), Value::ok());
    let witnesses = witnesses(&up.listens(), 1);
    for witness in &witnesses {
        witness.goes_on(20);
    }
    let gone = replica(&up);
    let epoch = up.shard("s1")["epoch"].as_u64().unwrap();
    let told = members(&up, &["--remove", &gone]);
    assert!(
        told.contains(&format!(", in epoch {}\n", epoch + 1)) && !told.contains(&gone),
        "{told}"
    );
    for witness in &witnesses {
        witness.goes_on(20);
    }
    content(&witnesses);
    // It is told as what it is, and follows nobody.
    let shown = || {
        let shard = up.shard("s1");
        let node = shard["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["id"] == gone.as_str())
            .cloned();
        node.is_some_and(|node| node["member"] == false && node["state"] == "parked")
    };
    eventually(SOON, shown);
    assert!(up.operate("status", &[]).stdout.contains("is no member"));

    let told = members(&up, &["--add", &gone]);
    assert!(
        told.contains(&gone) && told.contains(&format!("in epoch {}\n", epoch + 1)),
        "growth needs none: {told}"
    );
    up.all_count("s1");
    for witness in &witnesses {
        witness.goes_on(20);
    }
    content(&witnesses);

    // The master goes: another one is first.
    let master = up.master("s1");
    let told = members(&up, &["--remove", &master]);
    assert!(!told.contains(&master), "{told}");
    assert_ne!(up.master("s1"), master);
    let told = members(&up, &["--add", &master]);
    assert!(told.contains(&master), "{told}");
    up.all_count("s1");
    for witness in &witnesses {
        witness.goes_on(20);
    }
    content(&witnesses);
    drop(witnesses);

    let records = up.history("members");
    let why: Vec<&str> = records.iter().map(|record| record["why"].as_str().unwrap()).collect();
    assert_eq!(records.len(), 4, "{why:?}");
    assert!(why[0].starts_with("members ") && why[0].contains(" -> "), "{why:?}");
    assert!(why[1].contains(&format!("{gone} joins")), "{why:?}");
    assert!(records[0]["asked_by"].as_str().unwrap().contains('@'), "{records:#?}");
    for record in &records {
        assert!(record["indoubt"].is_null() || record["indoubt"] == 0, "{record:#}");
        assert!(record["failed"].is_null() || record["failed"] == 0, "{record:#}");
    }
    up.assert_calm(&[]);
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let up = Up::start(&["--replicas", "1", "--ack-replicas", "0"]);
    up.all_count("s1");
    let refused = |command: &str, args: &[&str], why: &str| {
        let output = up.operate(command, args);
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (Some(1), ""),
            "{}",
            output.stderr
        );
        assert!(output.stderr.contains(why), "{}", output.stderr);
    };
    refused(
        "members",
        &["s1", "--add", "s1-x"],
        "s1-x is not registered: start its agent first",
    );
    refused("members", &["s1", "--remove", "s1-x"], "s1-x is no member");
    refused(
        "members",
        &["s1", "--ack-replicas", "2"],
        "2 replicas cannot acknowledge where there are 1",
    );
    refused("members", &["s2", "--ack-replicas", "0"], "there is no shard s2");
    refused("failover", &["s1", "--accept-loss"], "use 'pointsman switchover'");
    let usage = up.operate("failover", &["s1"]);
    assert_eq!(usage.code, Some(2), "{}", usage.stderr);
    assert!(usage.stderr.contains("--accept-loss"), "{}", usage.stderr);
    up.assert_calm(&[]);
}

#[test]
fn an_executor_that_dies_while_members_change_leaves_a_shard_that_becomes_as_wanted() {
    let up = Up::start(&[
        "--replicas",
        "2",
        "--ack-replicas",
        "0",
        "--restart",
        "--session-timeout-ms",
        "2000",
    ]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "fixed", "here"));
    for delay_ms in [0, 3, 8] {
        let (gone, master) = (replica(&up), up.master("s1"));
        let changed = std::thread::scope(|scope| {
            let changing = scope.spawn(|| members(&up, &["--remove", &gone]));
            let wanted = || {
                let config = up.znode("/shards/s1/config");
                !config["members"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|name| name == gone.as_str())
            };
            eventually(SOON, wanted);
            std::thread::sleep(std::time::Duration::from_millis(delay_ms));
            up.signal(&master, "agent", Signal::SIGKILL);
            changing.join().unwrap()
        });
        assert!(!changed.contains(&gone), "{changed}");
        appender.runner.advance();
        reads.advance();
        eventually(SOON, || !up.node(&master)["agent"]["pid"].is_null());
        members(&up, &["--add", &gone]);
        up.all_count("s1");
        appender.runner.advance();
    }
    reads.end();
    appender.runner.end().check(&mut client, &[]);
    up.assert_calm(&[
        NO_MASTER,
        LATE,
        super::DROPPED,
        "giving up",
        "no master for epoch",
        "lives without its agent",
    ]);
}

#[test]
fn a_pair_that_is_not_strict_shrinks_and_heals_under_a_proxy() {
    let up = Up::start(&["--replicas", "1", "--ack-replicas", "1"]);
    up.all_count("s1");
    let (mut client, mut subscriber) = (up.client(), up.client());
    subscriber.command(&["HELLO", "3"]);
    subscriber.command(&["SUBSCRIBE", "news"]);
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    let epoch = up.state("s1")["epoch"].as_u64().unwrap();
    let other = replica(&up);
    let nobody = "INDOUBT written on the master, acknowledged by 0 of 1 replicas";

    // It is strict at first.
    up.signal(&other, "redis", Signal::SIGSTOP);
    assert!(client.command(&["SET", "k", "2"]).is_error(nobody));
    assert!(client.command(&["SET", "k", "3"]).is_error(nobody));
    up.signal(&other, "redis", Signal::SIGCONT);
    eventually(SOON, || client.command(&["SET", "k", "4"]) == Value::ok());

    members(&up, &["--when-short", "shrink", "--shrink-after-ms", "500"]);
    up.signal(&other, "redis", Signal::SIGSTOP);
    assert!(client.command(&["SET", "k", "5"]).is_error("INDOUBT "));
    eventually(SOON, || client.command(&["SET", "k", "6"]) == Value::ok());
    let alone = up.state("s1");
    assert_eq!((&alone["epoch"], &alone["w"]), (&epoch.into(), &0.into()), "{alone}");
    assert_eq!(subscriber.command(&["SET", "k", "7"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("7"));

    up.signal(&other, "redis", Signal::SIGCONT);
    eventually(SOON, || up.state("s1")["w"] == 1);
    up.all_count("s1");
    let mut redis = Client::connect(up.redis(&other).as_str());
    for round in 0..100 {
        let value = round.to_string();
        for client in [&mut client, &mut subscriber] {
            let mut reply = client.command(&["SET", "k", &value]);
            if round == 0 && reply.is_error("INDOUBT ") {
                // It was in flight as W was raised.
                reply = client.command(&["SET", "k", &value]);
            }
            assert_eq!(reply, Value::ok(), "{round}");
        }
        assert_eq!(redis.command(&["GET", "k"]), Value::bulk(&value), "one has it again");
    }
    // The proxy is as strict as the shard again, until that shrinks again.
    up.signal(&other, "redis", Signal::SIGSTOP);
    assert!(client.command(&["SET", "k", "8"]).is_error(nobody));
    up.signal(&other, "redis", Signal::SIGCONT);
    eventually(SOON, || client.command(&["SET", "k", "9"]) == Value::ok());
}
