//! Values that check themselves, in files and in flags alike.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::topology::Addr;
use crate::topology::codec::{NameError, check_name};

/// Why a text names no ZooKeeper servers.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' names no ZooKeeper servers: write HOST:PORT[,HOST:PORT...][/PATH]")]
pub struct EnsembleError(String);

/// The name of a node, shard, zone or cluster: fit for a znode, a file and a log line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text).map(|()| Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The servers of a ZooKeeper ensemble, as its clients write them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Ensemble(String);

impl Ensemble {
    /// The connect string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Ensemble {
    type Err = EnsembleError;

    fn from_str(text: &str) -> Result<Self, EnsembleError> {
        let (servers, path) = match text.find('/') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let path_fits = path.is_empty() || (path.len() > 1 && !path.ends_with('/') && Path::new(path).is_absolute());
        let servers_fit = servers.split(',').all(|server| server.parse::<Addr>().is_ok());
        match path_fits && servers_fit {
            true => Ok(Self(text.to_owned())),
            false => Err(EnsembleError(text.to_owned())),
        }
    }
}

impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Ensemble {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A number from `LOW` to `HIGH`, for `deserialize_with`.
pub(super) fn within<'de, const LOW: u64, const HIGH: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<u64, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let fits = u64::try_from(number).ok().filter(|fit| (LOW..=HIGH).contains(fit));
    fits.ok_or_else(|| serde::de::Error::custom(format!("{number} is not within {LOW} to {HIGH}")))
}

/// The same for a key that has no fixed default.
pub(super) fn maybe_within<'de, const LOW: u64, const HIGH: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    within::<LOW, HIGH, D>(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ensemble_is_a_list_of_servers() {
        for text in ["a:1", "a:1,[::1]:2", "a:1,b:2/chroot"] {
            assert!(text.parse::<Ensemble>().is_ok(), "{text}");
        }
        for text in ["", "a", "a:1,", "a:1/", "/x", "a:1;b:2"] {
            assert!(text.parse::<Ensemble>().is_err(), "{text}");
        }
    }
}
