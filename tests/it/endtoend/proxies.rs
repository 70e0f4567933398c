//! Proxies that die and come back, and shards that do not hurt each other.

use nix::sys::signal::Signal;

use super::clients::{Appender, reader};
use super::{DROPPED, NO_MASTER, SOON, kill_master, next_master};
use crate::support::{Client, Up, Value, eventually};

#[test]
fn a_proxy_that_comes_back_knows_the_epoch_of_now_and_its_neighbour_served_meanwhile() {
    let up = Up::start(&["--replicas", "1", "--proxies", "2", "--restart"]);
    up.all_count("s1");
    let json = up.json();
    let listens = [0, 1].map(|index: usize| json["proxies"][index]["listen"].as_str().unwrap().to_owned());
    let mut client = Client::connect(listens[1].as_str());
    assert_eq!(client.command(&["SET", "fixed", "here"]), Value::ok());
    let (appender, reads) = (
        Appender::start(&listens[1], "one"),
        reader(&listens[1], "fixed", "here"),
    );
    appender.runner.advance();
    up.signal_proxy(0, Signal::SIGKILL);
    let killed = kill_master(&up, "s1");
    next_master(&up, "s1", &killed);
    eventually(SOON, || {
        let new = up.json()["proxies"][0]["pid"].clone();
        !new.is_null() && new != json["proxies"][0]["pid"]
    });
    eventually(SOON, || Client::try_connect(listens[0].as_str()).is_ok());
    let mut back = Client::connect(listens[0].as_str());
    assert_eq!(back.command(&["SET", "k", "v"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    appender.runner.advance();
    reads.advance();
    let status = up.status();
    for proxy in status["proxies"].as_array().unwrap() {
        assert_eq!(proxy["epochs"]["s1"], status["shards"][0]["epoch"], "{status:#}");
    }
    assert_eq!(status["proxies"].as_array().unwrap().len(), 2, "{status:#}");
    reads.end();
    appender.runner.end().check(&mut client, &[]);
    up.assert_calm(&[NO_MASTER, DROPPED]);
}

#[test]
fn a_kill_in_one_shard_is_not_felt_in_the_other() {
    let up = Up::start(&["--shards", "2", "--replicas", "1"]);
    up.all_count("s1");
    up.all_count("s2");
    let mut client = up.client();
    // Slots 12182 and 4813 are those of `foo` and `y`... found out by asking who holds the key.
    let key_of = |shard: &str| {
        let master = up.redis(&up.master(shard));
        let mut redis = Client::connect(master.as_str());
        let keys = (0..100).map(|number| format!("k{number}"));
        let mut keys = keys.filter(|key| redis.command(&["EXISTS", key]) == Value::Int(1));
        keys.next().unwrap()
    };
    for number in 0..20 {
        assert_eq!(client.command(&["SET", &format!("k{number}"), "here"]), Value::ok());
    }
    let (one, other) = (key_of("s1"), key_of("s2"));
    let appenders = [&one, &other].map(|key| Appender::start(&up.listen, &format!("{{{key}}}")));
    let reads = [&one, &other].map(|key| reader(&up.listen, key, "here"));
    for runner in appenders.iter().map(|appender| &appender.runner) {
        runner.advance();
    }
    let epoch = up.shard("s2")["epoch"].clone();
    let killed = kill_master(&up, "s1");
    next_master(&up, "s1", &killed);
    for (appender, reads) in appenders.iter().zip(&reads) {
        appender.runner.advance();
        reads.advance();
    }
    assert_eq!(up.shard("s2")["epoch"], epoch);
    assert_eq!(up.history("failover").len(), 1);
    let [one, other] = appenders.map(|appender| appender.runner.end());
    one.check(&mut client, &[]);
    other.check(&mut client, &[]);
    assert_eq!(other.errors(), (0, 0), "the other shard's clients saw no error");
    for reads in reads {
        assert_eq!(reads.end().refused, 0);
    }
    up.assert_calm(&[NO_MASTER, DROPPED]);
}
