//! What a shard has agreed on: `/shards/<s>/config` and `/shards/<s>/state`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Znode, check_id, check_names};
use crate::topology::{Addr, Epoch, NodeId, Phase, RunId, Switch};

/// The most members a shard may have.
const MEMBERS_MAX: usize = 64;
/// The highest epoch: more than a shard has in a billion years, and a number that every reader of JSON knows exactly.
const EPOCH_MAX: u64 = 1 << 53;

/// `/shards/<s>/config`: what the operator wants of the shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardConfig {
    /// Replicas that must acknowledge a write (W).
    pub ack_replicas: u32,
    /// The configured members; empty if they are whoever registers.
    #[serde(default)]
    pub members: BTreeSet<NodeId>,
    /// What happens while fewer than W replicas are there.
    #[serde(default)]
    pub when_short: WhenShort,
    /// How long they must have been missing before W is lowered, where it is.
    #[serde(default = "shrink_after_ms")]
    pub shrink_after_ms: u64,
    /// W = 0: an election whose best candidate is known to lack more bytes of the stream than this waits for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loss_bytes: Option<u64>,
    /// Who changed this last, for the history.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub changed_by: String,
}

/// What a shard does while fewer replicas than W are there to acknowledge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenShort {
    /// Strict: writes wait, and no acknowledgement is given.
    #[default]
    Block,
    /// Not strict: W is lowered to what is there, and raised again once the replicas are back.
    Shrink,
}

/// Long enough for a replica that is started anew.
fn shrink_after_ms() -> u64 {
    10_000
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            ack_replicas: 0,
            members: BTreeSet::new(),
            when_short: WhenShort::default(),
            shrink_after_ms: shrink_after_ms(),
            max_loss_bytes: None,
            changed_by: String::new(),
        }
    }
}

impl Znode for ShardConfig {
    fn check(&self) -> Result<(), String> {
        check_members(&self.members)?;
        let replicas = self.members.len().saturating_sub(1);
        if !self.members.is_empty() && usize::try_from(self.ack_replicas).is_ok_and(|w| w > replicas) {
            return Err(format!(
                "ack_replicas is {}, but there are {replicas} replicas",
                self.ack_replicas
            ));
        }
        Ok(())
    }
}

/// `/shards/<s>/state`: who is master in which epoch, and whose data counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// The fencing number.
    pub epoch: Epoch,
    /// What the shard is doing.
    pub phase: Phase,
    /// The agent that made the last claim.
    pub executor: NodeId,
    /// Drawn anew at each claim.
    pub nonce: String,
    /// The master of the last `serving` state; it, its address and its life are there together or not at all.
    pub master: Option<NodeId>,
    /// Where it listens.
    pub addr: Option<Addr>,
    /// Which life of it was promoted.
    pub run_id: Option<RunId>,
    /// Replication ids whose data counts.
    pub lineage: Vec<String>,
    /// The nodes that count.
    pub members: BTreeSet<NodeId>,
    /// Members proven to hold this epoch's data, by the life of their process.
    pub valid: BTreeMap<NodeId, RunId>,
    /// Replicas that must acknowledge a write (W).
    pub w: u32,
    /// The move under way; there exactly while the phase is `switching`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<Switch>,
    /// W before it was lowered because too few replicas were there; 0 if it was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shrunk_from: u32,
    /// The operator's word that the election under way may lose acknowledged writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<Accept>,
    /// The last move that was claimed, whatever became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Switch>,
}

/// An operator accepts a loss. It is good for one publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Who, for the history.
    #[serde(default)]
    pub asked_by: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde wants")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `/shards/<s>/switch`: somebody wants the master moved. Deleted by the executor once the outcome is in the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRequest {
    /// Drawn by who asks; the history's record carries it.
    pub id: String,
    /// The node that is to be master; none: the best replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
    /// Who asks, for people.
    #[serde(default)]
    pub asked_by: String,
}

impl Znode for SwitchRequest {
    fn check(&self) -> Result<(), String> {
        check_id("request id", &self.id)?;
        check_names(self.to.iter().map(NodeId::as_str))
    }
}

impl Znode for ShardState {
    fn check(&self) -> Result<(), String> {
        if self.epoch == Epoch(0) {
            return Err("epoch 0, which comes before the first".to_owned());
        }
        let later = self.switch.as_ref().map_or(self.epoch, |switch| switch.epoch);
        if self.epoch.max(later) > Epoch(EPOCH_MAX) {
            return Err(format!("epoch {}, more than {EPOCH_MAX}", self.epoch.max(later)));
        }
        match (&self.master, &self.addr, &self.run_id) {
            (Some(_), Some(_), Some(_)) => {}
            (None, None, None) if self.phase == Phase::Electing => {}
            (None, None, None) => return Err("no master, though it is not electing".to_owned()),
            _ => return Err("master, addr and run_id are not there together".to_owned()),
        }
        if self.members.is_empty() {
            return Err("no members".to_owned());
        }
        check_members(&self.members)?;
        if let Some(stranger) = self.valid.keys().find(|id| !self.members.contains(*id)) {
            return Err(format!("{stranger} counts as valid, but is no member"));
        }
        if let Some(master) = self.master.as_ref().filter(|id| !self.members.contains(*id))
            && self.phase != Phase::Electing
        {
            return Err(format!("the master {master} is no member"));
        }
        match (&self.switch, self.phase) {
            (Some(switch), Phase::Switching) if switch.epoch <= self.epoch => {
                return Err("a switchover to no later epoch".to_owned());
            }
            (Some(switch), Phase::Switching) => check_names([switch.to.as_str()])?,
            (None, Phase::Switching) => return Err("switching, but not to whom".to_owned()),
            (Some(_), Phase::Serving | Phase::Electing) => return Err("a switchover, though not switching".to_owned()),
            (None, Phase::Serving | Phase::Electing) => {}
        }
        if self.accept.is_some() && self.phase != Phase::Electing {
            return Err("an accepted loss, though it is not electing".to_owned());
        }
        check_names(self.moved.iter().map(|moved| moved.to.as_str()))?;
        let names = self.valid.keys().chain(self.master.iter()).chain([&self.executor]);
        check_names(names.map(NodeId::as_str))?;
        for run_id in self.valid.values().chain(&self.run_id) {
            check_id("run_id", run_id.as_str())?;
        }
        self.lineage.iter().try_for_each(|id| check_id("replication id", id))
    }
}

fn check_members(members: &BTreeSet<NodeId>) -> Result<(), String> {
    if members.len() > MEMBERS_MAX {
        return Err(format!("{} members, more than {MEMBERS_MAX}", members.len()));
    }
    check_names(members.iter().map(NodeId::as_str))
}

#[cfg(test)]
pub(super) fn sample() -> ShardState {
    ShardState {
        epoch: Epoch(3),
        phase: Phase::Serving,
        executor: NodeId::from("s1-b"),
        nonce: "0123456789abcdef".to_owned(),
        master: Some(NodeId::from("s1-a")),
        addr: "127.0.0.1:7001".parse().ok(),
        run_id: Some(RunId::from("a1")),
        lineage: vec!["r1".to_owned()],
        members: ["s1-a", "s1-b"].map(NodeId::from).into(),
        valid: [("s1-a", "a1"), ("s1-b", "b1")]
            .map(|(node, life)| (NodeId::from(node), RunId::from(life)))
            .into(),
        w: 1,
        switch: None,
        shrunk_from: 0,
        accept: None,
        moved: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{decode, encode};
    use super::*;

    fn refusal(change: impl FnOnce(&mut ShardState)) -> String {
        let mut state = sample();
        change(&mut state);
        decode::<ShardState>(&encode(&state), "/shards/s1/state")
            .unwrap_err()
            .what
    }

    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        assert!(refusal(|state| state.epoch = Epoch(0)).contains("epoch 0"));
        assert!(refusal(|state| state.epoch = Epoch(1 << 63)).contains("more than"));
        assert!(refusal(|state| state.epoch = Epoch(EPOCH_MAX + 1)).contains("more than"));
        let stranger = || NodeId::from("x");
        assert!(refusal(|state| state.master = Some(stranger())).contains("master x is no member"));
        assert!(refusal(|state| drop(state.valid.insert(stranger(), RunId::from("x1")))).contains("x counts as valid"));
        assert!(refusal(|state| state.addr = None).contains("together"));
        assert!(refusal(|state| state.phase = Phase::Switching).contains("to whom"));
        let switch = |epoch| {
            Some(Switch {
                to: NodeId::from("s1-b"),
                epoch,
                request: String::new(),
                course: None,
            })
        };
        assert!(refusal(|state| state.switch = switch(Epoch(4))).contains("not switching"));
        let early = |state: &mut ShardState| (state.phase, state.switch) = (Phase::Switching, switch(Epoch(3)));
        assert!(refusal(early).contains("no later epoch"));
        assert!(refusal(|state| state.members.clear()).contains("no members"));
        assert!(refusal(|state| state.executor = NodeId::from("a/b")).contains("no name"));
        assert!(refusal(|state| state.run_id = Some(RunId::from(""))).contains("run_id"));
        assert!(refusal(|state| state.lineage = vec!["r 1".to_owned()]).contains("replication id"));
        let bare = |state: &mut ShardState| {
            (state.master, state.addr, state.run_id) = (None, None, None);
        };
        assert!(refusal(bare).contains("not electing"));
    }

    #[test]
    fn a_state_is_readable_and_newer_fields_are_ignored() {
        let text = String::from_utf8(encode(&sample())).unwrap();
        assert!(
            text.contains(r#""phase":"serving""#) && text.contains(r#""addr":"127.0.0.1:7001""#),
            "{text}"
        );
        let newer = text.replacen('{', r#"{"later":{"a":1},"#, 1);
        assert_eq!(decode::<ShardState>(newer.as_bytes(), "p").unwrap(), sample());
    }

    #[test]
    fn more_acknowledgements_than_replicas_are_refused() {
        let config = |w: u32, members: &[&str]| ShardConfig {
            ack_replicas: w,
            members: members.iter().map(|name| NodeId::from(*name)).collect(),
            ..ShardConfig::default()
        };
        assert!(config(1, &["a", "b"]).check().is_ok());
        assert!(config(2, &["a", "b"]).check().is_err());
        assert!(config(2, &[]).check().is_ok(), "whoever registers");
    }

    fn names() -> impl Strategy<Value = String> {
        "[A-Za-z0-9._-]{3,64}"
    }

    proptest! {
        #[test]
        fn states_survive_a_round_trip(
            epoch in 1u64..EPOCH_MAX,
            lives in prop::collection::btree_map(names(), "[0-9a-f]{40}", 1..5),
            nonce in "\\PC{0,20}",
            electing in any::<bool>(),
            w in any::<u32>(),
        ) {
            let valid: BTreeMap<NodeId, RunId> =
                lives.iter().map(|(name, life)| (NodeId::new(name.as_str()), RunId::new(life.as_str()))).collect();
            let (master, run_id) = valid.first_key_value().unwrap();
            let state = ShardState {
                epoch: Epoch(epoch),
                phase: if electing { Phase::Electing } else { Phase::Switching },
                executor: master.clone(),
                nonce,
                master: (!electing).then(|| master.clone()),
                addr: (!electing).then(|| Addr::new("::1", 7001)),
                run_id: (!electing).then(|| run_id.clone()),
                lineage: lives.into_values().collect(),
                members: valid.keys().cloned().collect(),
                switch: (!electing).then(|| Switch { to: master.clone(), epoch: Epoch(epoch).next(), request: String::new(), course: None }),
                moved: electing.then(|| Switch { to: master.clone(), epoch: Epoch(epoch), request: "r1".to_owned(), course: None }),
                valid,
                w,
                shrunk_from: w,
                accept: electing.then(|| Accept { asked_by: "somebody".to_owned() }),
            };
            prop_assert_eq!(decode::<ShardState>(&encode(&state), "p").unwrap(), state);
        }
    }
}
