//! What a shard is to consist of: changing what is wanted, and waiting until it is so.
//!
//! Owns: the compare-and-set of `/shards/<s>/config`, and what is refused before it. Refuses: carrying it out, which is the
//! master's agent's. Invariant: what is written can be carried out once every node named is there.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

use super::ask::ask;
use super::cluster::{Cluster, OperateError};
use crate::clock;
use crate::store::StoreError;
use crate::topology::codec::{NodeInfo, Place, ShardConfig, ShardState, WhenShort, decode, encode};
use crate::topology::{Epoch, NodeId, Phase, ShardId};

/// Between two looks at what has come of it.
const LOOK: Duration = Duration::from_millis(50);
/// How long what is wanted is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often somebody else's change at the same moment is met with another try.
const TRIES: usize = 8;

/// What an operator wants to be different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Nodes that are to have a seat.
    pub add: BTreeSet<NodeId>,
    /// Nodes that are to lose theirs.
    pub remove: BTreeSet<NodeId>,
    /// W.
    pub ack_replicas: Option<u32>,
    /// What happens while fewer than W replicas are there.
    pub when_short: Option<WhenShort>,
    /// How long they must be missing, in milliseconds.
    pub shrink_after_ms: Option<u64>,
    /// W = 0: what an election may lose, in bytes; `Some(None)`: whatever it is.
    pub max_loss_bytes: Option<Option<u64>>,
}

/// What a shard has agreed on after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Members {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub master: Option<NodeId>,
    pub members: BTreeSet<NodeId>,
    pub ack_replicas: u32,
    /// W that is wanted, while this one is lower because too few replicas are there.
    pub shrunk_from: u32,
}

impl Change {
    /// What is wanted with this changed. `state` is what the shard has agreed on, `registered` are the nodes with an agent.
    /// An error says what to do.
    pub fn over(
        &self,
        config: &ShardConfig,
        state: &ShardState,
        registered: &BTreeSet<NodeId>,
    ) -> Result<ShardConfig, String> {
        let mut members = if config.members.is_empty() {
            state.members.clone()
        } else {
            config.members.clone()
        };
        if let Some(both) = self.add.intersection(&self.remove).next() {
            return Err(format!("{both} is both to be added and to be removed"));
        }
        for node in &self.add {
            if !registered.contains(node) && !members.contains(node) {
                return Err(format!("{node} is not registered: start its agent first"));
            }
        }
        for node in &self.remove {
            if !members.remove(node) && !state.members.contains(node) {
                return Err(format!("{node} is no member; members are {}", list(&members)));
            }
        }
        members.extend(self.add.iter().cloned());
        if members.is_empty() {
            return Err("a shard needs a member".to_owned());
        }
        let wanted = ShardConfig {
            ack_replicas: self.ack_replicas.unwrap_or(config.ack_replicas),
            // Whoever registers takes part, as long as nobody says otherwise.
            members: if self.add.is_empty() && self.remove.is_empty() {
                config.members.clone()
            } else {
                members.clone()
            },
            when_short: self.when_short.unwrap_or(config.when_short),
            shrink_after_ms: self.shrink_after_ms.unwrap_or(config.shrink_after_ms),
            max_loss_bytes: self.max_loss_bytes.unwrap_or(config.max_loss_bytes),
            changed_by: config.changed_by.clone(),
        };
        let replicas = members.len() - 1;
        if usize::try_from(wanted.ack_replicas).map_or(true, |w| w > replicas) {
            return Err(format!(
                "{} replicas cannot acknowledge where there are {replicas} ({}): add nodes with --add, or lower \
                 --ack-replicas",
                wanted.ack_replicas,
                list(&members)
            ));
        }
        Ok(wanted)
    }
}

impl Members {
    fn of(shard: &ShardId, state: &ShardState) -> Self {
        Self {
            shard: shard.clone(),
            epoch: state.epoch,
            master: state.master.clone(),
            members: state.members.clone(),
            ack_replicas: state.w,
            shrunk_from: state.shrunk_from,
        }
    }

    /// One line for people.
    pub fn sentence(&self) -> String {
        let shrunk = match self.shrunk_from {
            0 => String::new(),
            from => format!(" ({from} are wanted, too few replicas are there)"),
        };
        format!(
            "{}: members {}, ack_replicas {}{shrunk}, in epoch {}",
            self.shard,
            list(&self.members),
            self.ack_replicas,
            self.epoch
        )
    }
}

/// Whether the shard has agreed on what is wanted, or on as much of it as a shard that is not strict may.
pub(super) fn agrees(state: &ShardState, wanted: &ShardConfig) -> bool {
    let seats = wanted.members.is_empty() || state.members == wanted.members;
    let exact = state.w == wanted.ack_replicas && state.shrunk_from == 0;
    let shrunk = wanted.when_short == WhenShort::Shrink && state.shrunk_from == wanted.ack_replicas && state.w > 0;
    state.phase == Phase::Serving && seats && (exact || shrunk)
}

impl Cluster {
    /// Changes what is wanted of `shard` and waits until it is so. `tell` hears what that waits for; `stop` ends the
    /// waiting, not the change.
    pub async fn change_members(
        &self,
        shard: &ShardId,
        change: &Change,
        asked_by: String,
        tell: impl Fn(&str),
        stop: impl Future<Output = ()>,
    ) -> Result<Members, OperateError> {
        let wanted = self.want(shard, change, asked_by).await?;
        tokio::select! {
            agreed = self.agreed(shard, &wanted, tell) => agreed,
            () = stop => Err(OperateError::Members(
                shard.clone(),
                "it stays wanted, and is not so yet; 'pointsman status' tells when it is".to_owned(),
            )),
        }
    }

    async fn want(&self, shard: &ShardId, change: &Change, asked_by: String) -> Result<ShardConfig, OperateError> {
        let refused = |why: String| OperateError::Members(shard.clone(), why);
        self.must_exist(shard).await?;
        let place = Place::ShardConfig(shard.clone()).to_string();
        let mut tries = 0;
        loop {
            let state: Option<ShardState> = self.read(&Place::State(shard.clone())).await?;
            let state =
                state.ok_or_else(|| refused("it has had no master yet: wait until it was founded".to_owned()))?;
            let registered = self.children(&Place::Nodes(shard.clone())).await?;
            let registered = registered.into_iter().map(NodeId::new).collect();
            let Some(found) = self.store().get(&place).await? else {
                return Err(refused(
                    "nothing says yet what is wanted of it: start an agent".to_owned(),
                ));
            };
            let config: ShardConfig = decode(&found.bytes, &place)?;
            let wanted = change.over(&config, &state, &registered).map_err(refused)?;
            if wanted == config {
                return Ok(config);
            }
            let wanted = ShardConfig {
                changed_by: asked_by.clone(),
                ..wanted
            };
            match self.store().set(&place, encode(&wanted), found.version).await {
                Ok(_) => return Ok(wanted),
                // Read again: it may have been written, and then nothing is left to be changed.
                Err(StoreError::Conflict(_) | StoreError::Unknown | StoreError::Away) if tries < TRIES => tries += 1,
                Err(error) => return Err(error.into()),
            }
            sleep(LOOK).await;
        }
    }

    async fn agreed(
        &self,
        shard: &ShardId,
        wanted: &ShardConfig,
        tell: impl Fn(&str),
    ) -> Result<Members, OperateError> {
        let end = clock::now() + PATIENCE;
        let mut told = String::new();
        loop {
            let read = self.read::<ShardState>(&Place::State(shard.clone())).await;
            let state = match read {
                Ok(state) => state,
                // What is wanted stands; ZooKeeper may be back.
                Err(OperateError::Store(StoreError::Away | StoreError::Unknown)) => None,
                Err(error) => return Err(error),
            };
            if let Some(state) = state.as_ref().filter(|state| agrees(state, wanted)) {
                return Ok(Members::of(shard, state));
            }
            let why = self.delay(shard, state.as_ref()).await;
            if let Some(why) = why.as_ref().filter(|why| **why != told) {
                tell(why);
                told.clone_from(why);
            }
            if clock::now() >= end {
                let seconds = PATIENCE.as_secs();
                let why = if told.is_empty() { "nobody says why" } else { &told };
                return Err(OperateError::Members(
                    shard.clone(),
                    format!("it stays wanted, but is not so after {seconds} s: {why}"),
                ));
            }
            sleep(LOOK).await;
        }
    }

    /// What keeps the shard from being as it is wanted, as far as its master's agent tells.
    pub(super) async fn delay(&self, shard: &ShardId, state: Option<&ShardState>) -> Option<String> {
        let state = state?;
        match state.phase {
            Phase::Serving => {}
            Phase::Electing => return Some("the shard has no master now".to_owned()),
            Phase::Switching => return None,
        }
        let (master, secret) = (state.master.as_ref()?, self.secret.as_ref()?);
        let place = Place::Node(shard.clone(), master.clone());
        let Ok(Some(info)) = self.read::<NodeInfo>(&place).await else {
            return Some(format!("the agent of {master}, the master, is down"));
        };
        match ask(&info.peer, secret).await {
            Ok(status) => status.delay,
            Err(error) => Some(format!("the agent of {master}, the master, does not answer: {error}")),
        }
    }
}

fn list(nodes: &BTreeSet<NodeId>) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::topology::{Addr, RunId};

    fn ids(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| NodeId::from(*name)).collect()
    }

    fn state(members: &[&str], w: u32) -> ShardState {
        ShardState {
            epoch: Epoch(3),
            phase: Phase::Serving,
            executor: NodeId::from("a"),
            nonce: "n".to_owned(),
            master: Some(NodeId::from("a")),
            addr: Some(Addr::new("127.0.0.1", 1)),
            run_id: Some(RunId::from("a1")),
            lineage: vec!["r".to_owned()],
            members: ids(members),
            valid: BTreeMap::new(),
            w,
            switch: None,
            moved: None,
            shrunk_from: 0,
            accept: None,
        }
    }

    fn change(add: &[&str], remove: &[&str], ack_replicas: Option<u32>) -> Change {
        Change {
            add: ids(add),
            remove: ids(remove),
            ack_replicas,
            ..Change::default()
        }
    }

    fn tried(change: &Change, config: &ShardConfig) -> Result<(BTreeSet<NodeId>, u32), String> {
        let there = ids(&["a", "b", "c", "d"]);
        let wanted = change.over(config, &state(&["a", "b", "c"], config.ack_replicas), &there)?;
        Ok((wanted.members, wanted.ack_replicas))
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        let config = ShardConfig {
            ack_replicas: 1,
            members: ids(&["a", "b", "c"]),
            ..ShardConfig::default()
        };
        let refusal = |change: &Change| tried(change, &config).unwrap_err();
        assert!(refusal(&change(&["x"], &[], None)).contains("x is not registered: start its agent"));
        assert!(refusal(&change(&[], &["x"], None)).contains("x is no member; members are a, b, c"));
        assert!(refusal(&change(&[], &[], Some(3))).contains("3 replicas cannot acknowledge where there are 2"));
        assert!(refusal(&change(&[], &["b", "c"], None)).contains("1 replicas cannot acknowledge where there are 0"));
        assert!(refusal(&change(&[], &["a", "b", "c"], Some(0))).contains("needs a member"));
        assert!(refusal(&change(&["d"], &["d"], None)).contains("both"));
        assert_eq!(
            tried(&change(&["d"], &["c"], None), &config),
            Ok((ids(&["a", "b", "d"]), 1))
        );
        assert_eq!(tried(&change(&[], &["b", "c"], Some(0)), &config), Ok((ids(&["a"]), 0)));
    }

    #[test]
    fn whoever_registers_takes_part_until_somebody_is_named() {
        let open = ShardConfig::default();
        assert_eq!(tried(&change(&[], &[], Some(2)), &open), Ok((ids(&[]), 2)));
        assert!(tried(&change(&[], &[], Some(3)), &open).is_err());
        assert_eq!(tried(&change(&[], &["b"], None), &open), Ok((ids(&["a", "c"]), 0)));
    }

    #[test]
    fn a_shard_agrees_when_seats_and_w_are_as_wanted() {
        let mut wanted = ShardConfig {
            ack_replicas: 2,
            members: ids(&["a", "b", "c"]),
            ..ShardConfig::default()
        };
        assert!(agrees(&state(&["a", "b", "c"], 2), &wanted));
        assert!(!agrees(&state(&["a", "b"], 2), &wanted));
        let mut shrunk = state(&["a", "b", "c"], 1);
        shrunk.shrunk_from = 2;
        assert!(!agrees(&shrunk, &wanted));
        wanted.when_short = WhenShort::Shrink;
        assert!(agrees(&shrunk, &wanted));
        shrunk.phase = Phase::Electing;
        assert!(!agrees(&shrunk, &wanted));
    }
}
