//! The support code itself: servers start, answer, freeze and end as asked.

use std::time::Duration;

use crate::support::{Redis, Value, ZooKeeper, eventually};

#[test]
fn a_redis_answers_and_comes_back_as_another_life() {
    let mut redis = Redis::start(&[]);
    let mut client = redis.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));
    redis.kill9();
    eventually(Duration::from_secs(5), || client.try_command(&["PING"]).is_err());
    redis.restart();
    assert_eq!(redis.command(&["GET", "k"]), Value::Null);
}

#[test]
fn a_frozen_redis_answers_later() {
    let redis = Redis::start(&[]);
    let mut client = redis.client();
    redis.stop();
    client.set_read_timeout(Duration::from_millis(50));
    assert!(client.try_command(&["PING"]).is_err());
    redis.cont();
    client.set_read_timeout(Duration::from_secs(5));
    assert_eq!(client.read_reply(), Value::Simple("PONG".into()));
}

#[test]
fn a_zookeeper_serves_and_comes_back() {
    let mut zookeeper = ZooKeeper::start();
    zookeeper.restart();
    assert!(zookeeper.pid() > 0);
}
