//! What an `up` is started with.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::config::Ensemble;
use crate::topology::Addr;

/// Settings of one `up`, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// Where the first proxy listens.
    pub listen: Addr,
    /// How many shards.
    pub shards: usize,
    /// Replicas of each shard.
    pub replicas: usize,
    /// How many of them must acknowledge a write; at most as many as there are.
    pub ack_replicas: u32,
    /// How many proxies.
    pub proxies: usize,
    /// An ensemble that runs already; none: `up` starts one.
    pub zookeeper: Option<Ensemble>,
    /// How many servers an ensemble of our own has.
    pub zookeepers: usize,
    /// The timeout of everybody's ZooKeeper session.
    pub session_timeout: Duration,
    /// Options of every redis-server.
    pub redis: Vec<RedisOption>,
    /// Whether children that end are started again.
    pub restart: bool,
    /// What the children log: the word `--log` takes.
    pub log: String,
}

/// Options that `up` sets itself.
const OURS: [&str; 12] = [
    "bind",
    "cluster-enabled",
    "daemonize",
    "dir",
    "include",
    "logfile",
    "pidfile",
    "port",
    "replicaof",
    "slaveof",
    "supervised",
    "unixsocket",
];

/// One option of every redis-server, `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOption {
    /// The option's name.
    pub key: String,
    /// Its value; empty is the empty string.
    pub value: String,
}

/// Why a text is no option of Redis.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RedisOptionError {
    /// No `=`, or nothing before it.
    #[error("'{0}' is no option: write KEY=VALUE, for example maxmemory=100mb or save=")]
    Form(String),
    /// An option that would break the circuit.
    #[error("'{0}' is set by 'up' itself: leave it out")]
    Ours(String),
}

impl FromStr for RedisOption {
    type Err = RedisOptionError;

    fn from_str(text: &str) -> Result<Self, RedisOptionError> {
        let form = || RedisOptionError::Form(text.to_owned());
        let (key, value) = text.split_once('=').ok_or_else(form)?;
        let key = key.trim_start_matches("--").to_ascii_lowercase();
        let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        if key.is_empty() || !key.chars().all(word) {
            return Err(form());
        }
        if OURS.contains(&key.as_str()) {
            return Err(RedisOptionError::Ours(key));
        }
        Ok(Self {
            key,
            value: value.to_owned(),
        })
    }
}

impl Settings {
    /// The password of Redis' `default` user, if the options set one.
    pub fn password(&self) -> Option<&str> {
        let set = self.redis.iter().rev().find(|option| option.key == "requirepass");
        set.map(|option| option.value.as_str())
            .filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_ours_are_refused() {
        let option: RedisOption = "save=".parse().unwrap();
        assert_eq!((option.key.as_str(), option.value.as_str()), ("save", ""));
        assert_eq!("--Maxmemory=1mb".parse::<RedisOption>().unwrap().key, "maxmemory");
        for text in ["save", "=1", "a b=1"] {
            assert!(
                matches!(text.parse::<RedisOption>(), Err(RedisOptionError::Form(_))),
                "{text}"
            );
        }
        assert_eq!(
            "port=1".parse::<RedisOption>(),
            Err(RedisOptionError::Ours("port".to_owned()))
        );
    }
}
