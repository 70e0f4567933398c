//! One config file: its text, its kind, and the line where something stands.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::agent::AgentFile;
use super::error::{ConfigError, Problem};
use super::proxy::ProxyFile;
use crate::topology::codec::TopologyFile;

/// The longest config file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a config file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It holds `[proxy]`.
    Proxy,
    /// It holds `[agent]`.
    Agent,
    /// It holds `[topology]`.
    Topology,
}

impl Kind {
    /// The kind in a sentence.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Proxy => "a proxy's config",
            Self::Agent => "an agent's config",
            Self::Topology => "a topology",
        }
    }

    /// The table a file of this kind holds.
    pub fn table(self) -> &'static str {
        match self {
            Self::Proxy => "[proxy]",
            Self::Agent => "[agent]",
            Self::Topology => "[topology]",
        }
    }
}

/// What a file says, unchecked.
#[derive(Clone, Debug, PartialEq)]
pub enum File {
    /// For a proxy.
    Proxy(ProxyFile),
    /// For an agent.
    Agent(AgentFile),
    /// The shards, for a proxy without ZooKeeper.
    Topology(TopologyFile),
}

/// A file that was read: what it says and where.
#[derive(Clone, Debug)]
pub struct Document {
    path: PathBuf,
    text: String,
    /// What it says.
    pub file: File,
}

/// The tables of all kinds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<ProxyFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<AgentFile>,
    /// Read by its own reader, which the proxy uses as well.
    #[serde(skip_serializing)]
    topology: Option<IgnoredAny>,
}

impl File {
    /// What the file is for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Proxy(_) => Kind::Proxy,
            Self::Agent(_) => Kind::Agent,
            Self::Topology(_) => Kind::Topology,
        }
    }

    /// Checks it as if it stood alone, without flags.
    fn check(&self) -> Result<(), Problem> {
        match self {
            Self::Proxy(file) => file.check().map(drop),
            Self::Agent(file) => file.check().map(drop),
            // What was read was checked.
            Self::Topology(_) => Ok(()),
        }
    }
}

/// The text of an agent's config, every key written out.
pub fn agent_toml(file: &AgentFile) -> Result<String, toml::ser::Error> {
    toml::to_string(&Tables {
        agent: Some(file.clone()),
        ..Tables::default()
    })
}

/// The text of a proxy's config, every key written out.
pub fn proxy_toml(file: &ProxyFile) -> Result<String, toml::ser::Error> {
    toml::to_string(&Tables {
        proxy: Some(file.clone()),
        ..Tables::default()
    })
}

impl Document {
    /// Reads a file of any kind. What it leaves to flags may be missing.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Unreadable {
            path: path.to_owned(),
            error,
        };
        let length = fs::metadata(path).map_err(unreadable)?.len();
        if length > FILE_BYTES_MAX {
            return Err(ConfigError::Kind {
                path: path.to_owned(),
                what: format!("no config has {length} bytes; at most {FILE_BYTES_MAX} are read"),
            });
        }
        Self::parse(path, fs::read_to_string(path).map_err(unreadable)?)
    }

    /// The same from a text that was read already.
    pub fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        let tables: Tables = toml::from_str(&text).map_err(|error| refusal(path, &text, &error))?;
        let path = path.to_owned();
        let file = match (tables.proxy, tables.agent, tables.topology) {
            (Some(file), None, None) => File::Proxy(file),
            (None, Some(file), None) => File::Agent(file),
            (None, None, Some(_)) => File::Topology(read_topology(&path, &text)?),
            (None, None, None) => {
                let what = "it holds no [proxy], [agent] or [topology] table: begin with one of them".to_owned();
                return Err(ConfigError::Kind { path, what });
            }
            _ => {
                let what = "it holds several of [proxy], [agent] and [topology]: make a file of each".to_owned();
                return Err(ConfigError::Kind { path, what });
            }
        };
        Ok(Self { path, text, file })
    }

    /// Checks it as if it stood alone, without flags.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.file.check().map_err(|problem| self.locate(problem))
    }

    /// A problem with what this file says (or does not say), with its line.
    pub fn locate(&self, problem: Problem) -> ConfigError {
        let last = problem.key.rsplit('.').next().unwrap_or_default();
        let stands = |line: &str| key_of(line) == Some(last);
        let line = self.text.lines().position(stands);
        let table = self
            .text
            .lines()
            .position(|line| line.trim() == self.file.kind().table());
        ConfigError::Wrong {
            path: self.path.clone(),
            line: line.or(table).unwrap_or(0) + 1,
            problem,
        }
    }

    /// The refusal of a file of another kind than `wanted`.
    pub fn not_a(&self, wanted: Kind) -> ConfigError {
        let is = self.file.kind().phrase();
        ConfigError::Kind {
            path: self.path.clone(),
            what: format!("this is {is}; name one that holds {}", wanted.table()),
        }
    }
}

fn read_topology(path: &Path, text: &str) -> Result<TopologyFile, ConfigError> {
    let shown = path.display().to_string();
    TopologyFile::parse(text, &shown).map_err(|error| wrong(path, text, error.line, &error.what))
}

/// What toml says of the text, with the line and the key where it says so.
fn refusal(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..start).unwrap_or_default();
    wrong(path, text, before.matches('\n').count() + 1, error.message())
}

/// The refusal of `line`, from 1, with the key it sets.
fn wrong(path: &Path, text: &str, line: usize, message: &str) -> ConfigError {
    let own = text.lines().nth(line - 1).unwrap_or_default();
    // A value may begin lines below its key, in a list.
    let above = text.lines().take(line).filter_map(key_of).last();
    let key = match (key_of(own), above) {
        (Some(key), _) => key,
        (None, Some(key)) if !own.trim_start().starts_with('[') => key,
        (None, _) => own.trim(),
    };
    ConfigError::Wrong {
        path: path.to_owned(),
        line,
        problem: Problem::new(key, remedy(message)),
    }
}

fn remedy(message: &str) -> String {
    // toml's messages may span lines.
    let message = message.lines().collect::<Vec<_>>().join(" ");
    match message.strip_prefix("unknown field ") {
        Some(rest) => {
            let known = rest.split_once(", ").map_or("none at all", |(_, known)| known);
            format!("no such key; {}", known.replace('`', ""))
        }
        None => message.replace('`', ""),
    }
}

/// The key that a line sets.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    let bare = |letter: char| letter.is_ascii_alphanumeric() || "-_.\"".contains(letter);
    (!key.is_empty() && key.chars().all(bare)).then_some(key)
}
