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
    /// It holds data of another origin and is left alone until an operator empties it.
    Foreign,
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
    if status.foreign {
        return (Role::None, State::Foreign);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Epoch, RunId};

    fn status(change: impl FnOnce(&mut Status, &mut Facts)) -> Status {
        let mut facts = Facts {
            run_id: RunId::from("a1"),
            role: facts::Role::Replica,
            replid: "r1".to_owned(),
            replid2: "0".repeat(40),
            second_offset: -1,
            offset: 7,
            follows: "127.0.0.1:7001".parse().ok(),
            link_up: true,
            syncing: false,
            loading: false,
            keys: 0,
            epoch: Epoch(1),
            dirty: false,
            priority: 100,
            replicas: 0,
        };
        let mut status = Status {
            node: NodeId::from("a"),
            health: Health::Alive,
            facts: None,
            epoch: Epoch(1),
            electing: None,
            seen: None,
            delay: None,
            foreign: false,
            word: None,
        };
        change(&mut status, &mut facts);
        status.facts = Some(facts);
        status
    }

    #[test]
    fn a_node_is_told_as_what_it_does_now() {
        let (own, other) = (NodeId::from("a"), NodeId::from("b"));
        let told = |status: Status, master: &NodeId| standing(&status, Some(master));
        assert_eq!(told(status(|_, _| {}), &other), (Role::Replica, State::Linked));
        let syncing = status(|_, facts| facts.link_up = false);
        assert_eq!(told(syncing, &other), (Role::Replica, State::Syncing));
        let parked = status(|_, facts| facts.follows = facts::PARKED_AT.parse().ok());
        assert_eq!(told(parked, &other), (Role::None, State::Parked));
        let master = || status(|_, facts| facts.role = facts::Role::Master);
        assert_eq!(told(master(), &own), (Role::Master, State::Serving));
        assert_eq!(
            told(master(), &other),
            (Role::None, State::Parked),
            "not the published one"
        );
        assert_eq!(standing(&master(), None), (Role::None, State::Parked));
        for health in [Health::Unknown, Health::Hung, Health::Dead] {
            let silent = status(|status, facts| {
                (status.health, facts.role) = (health, facts::Role::Master);
            });
            assert_eq!(told(silent, &own), (Role::None, State::Down), "not what it last was");
        }
    }
}
