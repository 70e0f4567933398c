//! Asking one agent how its node is.

use std::time::Duration;

use serde::Serialize;

use crate::agent::machine::detector::{Health, Status};
use crate::agent::machine::facts::{self, Facts};
use crate::peer::{Client, Kind, PeerError, Request};
use crate::topology::{Addr, NodeId};

/// How long an agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// What an operator's command is called on a peer connection.
const ID: &str = "operator";

/// What a node does for its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It is the published master and takes writes.
    Master,
    /// It follows one.
    Replica,
    /// Neither.
    None,
}

/// How it does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A master that serves.
    Serving,
    /// A replica whose link is up.
    Linked,
    /// A replica that is catching up or waits for its link.
    Syncing,
    /// It follows nobody and feeds nobody.
    Parked,
    /// It does not answer.
    Down,
}

/// Asks the agent at `addr` for its status.
pub async fn ask(addr: &Addr, secret: &[u8]) -> Result<Status, PeerError> {
    let mut client = Client::connect(addr, Kind::Proxy, ID, secret).await?;
    let json = client.ask(&Request::State, ANSWER_LIMIT).await?;
    serde_json::from_slice(&json).map_err(|error| PeerError::Lost(format!("its status cannot be read: {error}")))
}

/// Role and state of the node whose agent said `status`, in a shard whose serving master is `master`.
pub fn standing(status: &Status, master: Option<&NodeId>) -> (Role, State) {
    let Some(facts) = reading(status) else {
        return (Role::None, State::Down);
    };
    match facts.role {
        facts::Role::Master if master == Some(&status.node) => (Role::Master, State::Serving),
        // Promoted, but not published (yet): nobody sends it anything.
        facts::Role::Master => (Role::None, State::Parked),
        facts::Role::Replica if facts.parked() => (Role::None, State::Parked),
        facts::Role::Replica if facts.link_up && !facts.syncing => (Role::Replica, State::Linked),
        facts::Role::Replica => (Role::Replica, State::Syncing),
    }
}

/// What the node's Redis last said, if it still answers.
pub fn reading(status: &Status) -> Option<&Facts> {
    match status.health {
        Health::Alive => status.facts.as_ref(),
        Health::Unknown | Health::Hung | Health::Dead => None,
    }
}
