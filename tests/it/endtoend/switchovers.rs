//! Masters that move on purpose under clients that put up with nothing.

use std::time::Duration;

use crate::support::{Account, Client, Redis, Slow, Up, Value, Witness, ZooKeeper};

/// Clients of every kind, on all proxies in turn.
pub fn witnesses(listens: &[String], of_each: usize) -> Vec<Witness> {
    let mut all = Vec::new();
    for index in 0..of_each {
        let (near, far) = (&listens[index % listens.len()], &listens[(index + 1) % listens.len()]);
        let name = |kind: &str| format!("{kind}:{index}");
        all.push(Witness::writer(near, &name("list")));
        all.push(Witness::reader(far, "steady", "here"));
        all.push(Witness::transactor(near, &name("tx")));
        all.push(Witness::scripter(
            far,
            &name("script"),
            "return redis.call('incr', KEYS[1])",
        ));
        all.push(Witness::popper(near, &name("queue")));
        all.push(Witness::feeder(far, &name("queue")));
        all.push(Witness::subscriber(near, &name("channel")));
        all.push(Witness::publisher(far, &name("channel")));
    }
    all
}

/// Asserts that nobody has anything to complain of.
#[track_caller]
pub fn content(witnesses: &[Witness]) {
    let faults: Vec<String> = witnesses
        .iter()
        .flat_map(|witness| {
            let Account { faults, .. } = witness.take();
            faults.into_iter().map(|fault| format!("{}: {fault}", witness.name))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn clients_that_put_up_with_nothing_are_content_with_redis_itself_and_notice_its_faults() {
    let redis = Redis::start(&[]);
    assert_eq!(redis.command(&["SET", "steady", "here"]), Value::ok());
    let witnesses = witnesses(&[redis.addr()], 1);
    for witness in &witnesses {
        witness.goes_on(20);
    }
    content(&witnesses);
    assert_eq!(redis.command(&["DEL", "list:0"]), Value::Int(1));
    let writer = witnesses.iter().find(|witness| witness.name == "writer").unwrap();
    let mut noticed = false;
    crate::support::eventually(super::SOON, || {
        noticed |= !writer.take().faults.is_empty();
        noticed
    });
}

#[test]
fn switchovers_under_clients_of_every_kind_on_two_proxies_are_not_noticed() {
    let up = Up::start(&["--replicas", "2", "--proxies", "2"]);
    up.all_count("s1");
    assert_eq!(up.client().command(&["SET", "steady", "here"]), Value::ok());
    let witnesses = witnesses(&up.listens(), 2);
    for witness in &witnesses {
        witness.goes_on(20);
    }
    let mut master = up.master("s1");
    for _ in 0..4 {
        let output = up.operate("switchover", &["s1"]);
        assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
        let next = up.master("s1");
        assert_ne!(next, master);
        master = next;
        for witness in &witnesses {
            witness.goes_on(20);
        }
        content(&witnesses);
        up.all_count("s1");
    }
    drop(witnesses);
    let records = up.history("switchover");
    assert_eq!(records.len(), 4);
    for record in &records {
        assert_eq!((&record["result"], &record["lost_bytes"]), (&"done".into(), &0.into()));
        assert_eq!(
            (&record["indoubt"], &record["failed"]),
            (&0.into(), &0.into()),
            "{record}"
        );
    }
    // Each list holds its numbers once, in order, on the last master.
    let mut redis = Client::connect(up.redis(&master).as_str());
    for key in ["list:0", "list:1"] {
        let Value::Array(items) = redis.command(&["LRANGE", key, "0", "-1"]) else {
            panic!("no list");
        };
        let numbers: Vec<usize> = items.iter().map(|item| item.text().parse().unwrap()).collect();
        assert!(numbers.into_iter().eq(1..=items.len()), "{key}");
    }
    up.assert_calm(&[]);
}

#[test]
fn a_slow_zookeeper_makes_a_switchover_slow_and_nothing_else() {
    let zookeeper = ZooKeeper::start();
    let wire = Slow::start(&zookeeper.connect(), Duration::from_millis(30));
    let up = Up::start(&["--replicas", "1", "--proxies", "2", "--zookeeper", &wire.addr()]);
    up.all_count("s1");
    assert_eq!(up.client().command(&["SET", "steady", "here"]), Value::ok());
    let witnesses = witnesses(&up.listens(), 1);
    for _ in 0..2 {
        for witness in &witnesses {
            witness.goes_on(20);
        }
        let master = up.master("s1");
        let output = up.operate("switchover", &["s1"]);
        assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
        assert_ne!(up.master("s1"), master);
        for witness in &witnesses {
            witness.goes_on(20);
        }
        content(&witnesses);
        up.all_count("s1");
    }
    drop(witnesses);
    up.assert_calm(&[]);
}
