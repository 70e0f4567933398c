//! Agents that die and come back.

use nix::sys::signal::Signal;

use super::clients::{Appender, reader};
use super::{DROPPED, NO_MASTER, SOON, next_master};
use crate::support::{Up, Value, eventually};

#[test]
fn a_killed_agent_is_no_reason_for_a_failover_and_with_its_redis_it_is() {
    let up = Up::start(&["--replicas", "2", "--session-timeout-ms", "2000"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (Appender::start(&up.listen, "one"), reader(&up.listen, "fixed", "here"));
    let (master, epoch) = (up.master("s1"), up.shard("s1")["epoch"].clone());
    let agent = up.node(&master)["agent"].clone();
    up.signal(&master, "agent", Signal::SIGKILL);
    eventually(SOON, || up.node(&master)["agent"]["pid"].is_null());
    // Longer than its session, than any suspicion, and than others take to give it up.
    let goal = pointsman::clock::now() + std::time::Duration::from_secs(3);
    while pointsman::clock::now() < goal {
        appender.runner.advance();
        reads.advance();
    }
    let shard = up.shard("s1");
    assert_eq!(
        (&shard["master"], &shard["epoch"]),
        (&master.as_str().into(), &epoch),
        "{shard:#}"
    );
    let started = up.operate("up-node", &[&master]);
    assert_eq!((started.code, started.stderr.as_str()), (Some(0), ""));
    assert_ne!(up.node(&master)["agent"]["pid"], agent["pid"]);
    up.all_count("s1");
    let shard = up.shard("s1");
    assert_eq!(
        (&shard["master"], &shard["epoch"]),
        (&master.as_str().into(), &epoch),
        "{shard:#}"
    );

    // As if its machine had died.
    up.signal(&master, "agent", Signal::SIGKILL);
    up.signal(&master, "redis", Signal::SIGKILL);
    next_master(&up, "s1", &master);
    appender.runner.advance();
    reads.advance();
    assert_eq!(up.operate("up-node", &[&master]).code, Some(0));
    up.all_count("s1");
    assert_eq!(reads.end().refused, 0);
    appender.runner.end().check(&mut client, &[]);
    assert_eq!(up.history("failover").len(), 1);
    up.assert_calm(&[NO_MASTER, DROPPED]);
}
