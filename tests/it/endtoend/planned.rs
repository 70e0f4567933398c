//! Masters that are moved on purpose: by command, and by agents that stop.

use nix::sys::signal::Signal;

use super::clients::{Appender, reader};
use super::{NO_MASTER, SOON};
use crate::support::{Client, Up, Value};

/// What an executor says of a proxy that takes longer than `drain_max_ms`, as on a machine with too much to do.
const LATE: &str = "not waiting any longer for ";

#[test]
fn a_master_is_moved_by_command_and_the_history_tells() {
    let up = Up::start(&["--replicas", "2", "--proxies", "2"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "fixed", "here"));
    let (first, epoch) = (up.master("s1"), up.shard("s1")["epoch"].as_u64().unwrap());
    appender.runner.advance();

    let moved = up.operate("switchover", &["s1"]);
    assert_eq!((moved.code, moved.stderr.as_str()), (Some(0), ""));
    let second = up.master("s1");
    assert_ne!(second, first);
    let began = format!("s1: {first} -> {second} in epoch {}, ", epoch + 1);
    assert!(moved.stdout.starts_with(&began), "{}", moved.stdout);
    assert_eq!(moved.stdout.lines().count(), 1, "{}", moved.stdout);
    appender.runner.advance();

    up.all_count("s1");
    let moved = up.operate("switchover", &["s1", "--to", &first, "--json"]);
    assert_eq!((moved.code, moved.stderr.as_str()), (Some(0), ""));
    let record: serde_json::Value = serde_json::from_str(&moved.stdout).unwrap();
    assert_eq!([&record["from"], &record["to"]], [second.as_str(), first.as_str()]);
    assert_eq!(up.master("s1"), first);
    appender.runner.advance();
    reads.advance();

    let refused = up.operate("switchover", &["s1", "--to", &first]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    let wanted = format!("pointsman: the master of s1 was not moved: {first} is the master already\n");
    assert_eq!(refused.stderr, wanted);
    let records = up.history("switchover");
    let results: Vec<_> = records.iter().map(|record| record["result"].clone()).collect();
    assert_eq!(results, ["done", "done", "refused"]);
    assert!(
        records
            .iter()
            .all(|record| record["asked_by"].as_str().unwrap().contains('@'))
    );
    // Proxies that know the cluster's secret say what it was to their clients.
    let tell = up.znode("/proxies/proxy-1")["drains"] == true;
    for record in records.iter().filter(|record| record["result"] == "done") {
        let told = record["held"].is_u64() && !record["phases_ms"]["repoint"].is_null();
        assert_eq!(told, tell, "{record:#}");
    }
    assert!(up.history("failover").is_empty());
    let table = up.operate("history", &["--phases"]).stdout;
    assert!(
        table.contains("switchover  done") && table.contains("fence "),
        "{table}"
    );
    assert_eq!(reads.end().refused, 0);
    appender.runner.end().check(&mut client, &[]);
    up.assert_calm(&[NO_MASTER, LATE, "is the master already"]);
}

#[test]
fn an_agent_that_stops_hands_its_master_over_first() {
    let up = Up::start(&["--replicas", "2"]);
    up.all_count("s1");
    let (master, epoch) = (up.master("s1"), up.shard("s1")["epoch"].as_u64().unwrap());
    let mut client = up.client();
    let appender = Appender::start(&up.listen, "one");
    let mut agent = up.handing_over(&master);
    up.all_count("s1");
    appender.runner.advance();
    assert_eq!(
        up.shard("s1")["epoch"].as_u64(),
        Some(epoch),
        "a new agent moves nothing"
    );

    agent.term();
    assert_eq!(agent.exit_code(SOON), Some(0));
    let next = up.master("s1");
    assert!(next != master && !next.is_empty());
    assert!(
        agent.log().contains(&format!("{next} is the master of s1 now")),
        "{}",
        agent.log()
    );
    let records = up.history("switchover");
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["asked_by"], format!("node {master} stops").as_str());
    // What is ended now is no master.
    up.signal(&master, "redis", Signal::SIGKILL);
    appender.runner.advance();
    assert_eq!(up.master("s1"), next);
    assert!(up.history("failover").is_empty());

    // A replica has nothing to hand over.
    let replica = ["s1-a", "s1-b", "s1-c"]
        .into_iter()
        .find(|node| *node != master && *node != next);
    let mut agent = up.handing_over(replica.unwrap());
    agent.term();
    assert_eq!(agent.exit_code(SOON), Some(0));
    assert_eq!(up.history("switchover").len(), 1);
    let appended = appender.runner.end();
    assert_eq!(appended.errors(), (0, 0));
    appended.check(&mut client, &[]);
    agent.assert_no_undeclared_warnings(&[LATE]);
    up.assert_calm(&[NO_MASTER]);
}

#[test]
fn an_agent_whose_handover_is_refused_says_so_and_leaves() {
    let up = Up::start(&["--replicas", "0"]);
    let mut agent = up.handing_over("s1-a");
    agent.term();
    assert_eq!(agent.exit_code(SOON), Some(0));
    assert!(
        agent.log().contains("s1-a stays the master of s1, this agent stops: "),
        "{}",
        agent.log()
    );
    assert_eq!(up.history("switchover")[0]["result"], "refused");
    let mut client = Client::connect(up.listen.as_str());
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
}
