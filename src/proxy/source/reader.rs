//! Reading the znodes into the picture.
//!
//! Owns: what to read for which hint. Invariants: after each connection everything is read behind a `sync`;
//! states are read before nodes, since clients wait for the former; nonsense is said once per version and leaves
//! the picture as it was.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::picture::Picture;
use crate::clock;
use crate::store::{Hint, Store, StoreError, Value};
use crate::telemetry::Said;
use crate::topology::codec::{CodecError, NodeInfo, Place, ShardState, Slots, Znode, check_name, decode, remedy};
use crate::topology::{NodeId, ShardId};

/// What is to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// All of it, behind a `sync`.
    pub(super) everything: bool,
    slots: bool,
    states: BTreeSet<ShardId>,
    nodes: BTreeSet<ShardId>,
}

impl Due {
    pub(super) fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what a hint is about. `known` are the shards in the picture.
    pub(super) fn add(&mut self, hint: &Hint, known: &[ShardId]) {
        let Hint::Paths(paths) = hint else {
            self.everything = true;
            return;
        };
        for path in paths {
            match Place::parse(path) {
                Some(Place::Slots) => self.slots = true,
                Some(Place::State(shard)) if known.contains(&shard) => drop(self.states.insert(shard)),
                Some(Place::Node(shard, _) | Place::Nodes(shard)) if known.contains(&shard) => {
                    self.nodes.insert(shard);
                }
                Some(Place::ShardConfig(shard) | Place::Suspects(shard) | Place::Suspect(shard, _))
                    if known.contains(&shard) => {}
                // A shard that comes or goes.
                _ if path.starts_with("/shards") => self.everything = true,
                _ => {}
            }
        }
    }
}

pub(super) struct Reader {
    pub(super) store: Store,
    pub(super) picture: Picture,
    said: Said,
}

impl Reader {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            picture: Picture::default(),
            said: Said::default(),
        }
    }

    /// Reads slots and states. What is due beyond that is left in `due`; on an error all of it is.
    pub(super) async fn read_states(&mut self, due: &mut Due) -> Result<(), StoreError> {
        if due.everything {
            self.store.sync().await?;
            let names = self.store.children(&Place::Shards.to_string()).await?;
            let ids: Vec<ShardId> = names
                .iter()
                .filter(|name| check_name(name).is_ok())
                .map(|name| ShardId::from(name.as_str()))
                .collect();
            self.picture.set_shards(&ids);
        }
        let all = due.everything.then(|| self.picture.shards());
        if due.everything || due.slots {
            let path = Place::Slots.to_string();
            let found = self.store.get(&path).await?;
            if let Some(slots) = found.and_then(|value| self.understand::<Slots>(&value, &path)) {
                self.picture.slots = Some(slots);
            }
        }
        let shards: Vec<ShardId> = all.unwrap_or_else(|| due.states.iter().cloned().collect());
        let paths: Vec<String> = shards
            .iter()
            .map(|shard| Place::State(shard.clone()).to_string())
            .collect();
        let values = join_all(paths.iter().map(|path| self.store.get(path))).await;
        for ((shard, path), value) in shards.iter().zip(&paths).zip(values) {
            let Some(value) = value? else { continue };
            if let Some(state) = self.understand::<ShardState>(&value, path)
                && !self.picture.set_state(shard, value.version, state)
            {
                tracing::debug!(%shard, version = value.version, "an older state is not taken");
            }
        }
        if due.everything {
            due.nodes = self.picture.shards().into_iter().collect();
        }
        (due.everything, due.slots) = (false, false);
        due.states.clear();
        Ok(())
    }

    /// Reads the nodes of the shards that are due.
    pub(super) async fn read_nodes(&mut self, due: &mut Due) -> Result<(), StoreError> {
        while let Some(shard) = due.nodes.first().cloned() {
            let parent = Place::Nodes(shard.clone()).to_string();
            let names = self.store.children(&parent).await?;
            let paths: Vec<String> = names.iter().map(|name| format!("{parent}/{name}")).collect();
            let values = join_all(paths.iter().map(|path| self.store.get(path))).await;
            let registered: Vec<NodeId> = names.iter().map(|name| NodeId::from(name.as_str())).collect();
            let mut nodes = Vec::new();
            for ((node, path), value) in registered.iter().zip(&paths).zip(values) {
                let Some(value) = value? else { continue };
                if let Some(info) = self.understand::<NodeInfo>(&value, path) {
                    nodes.push((node.clone(), info));
                }
            }
            self.picture.set_nodes(&shard, &registered, nodes);
            due.nodes.remove(&shard);
        }
        Ok(())
    }

    fn understand<Z: Znode>(&mut self, value: &Value, path: &str) -> Option<Z> {
        let read: Result<Z, CodecError> = decode(&value.bytes, path);
        match read {
            Ok(znode) => Some(znode),
            Err(error) => {
                self.say(
                    &format!("{path} {} {}", value.created, value.version),
                    &format!("{error}; what was known before stays; {}", remedy(path)),
                );
                None
            }
        }
    }

    /// Says something once per `about`.
    pub(super) fn say(&mut self, about: &str, sentence: &str) {
        if self.said.first(clock::now(), about) {
            tracing::warn!("{sentence}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_say_what_to_read() {
        let known = [ShardId::from("s1")];
        let due = |path: &str| {
            let mut due = Due::default();
            due.add(&Hint::Paths([path.to_owned()].into()), &known);
            due
        };
        assert!(due("/slots").slots);
        assert_eq!(due("/shards/s1/state").states, known.clone().into());
        assert_eq!(due("/shards/s1/nodes/a").nodes, known.clone().into());
        assert!(due("/shards/s1/suspects/a").is_empty());
        assert!(due("/proxies/p").is_empty());
        assert!(due("/shards").everything && due("/shards/s2").everything && due("/shards/s2/state").everything);
        let mut all = Due::default();
        all.add(&Hint::Everything, &known);
        assert_eq!(all, Due::everything());
    }
}
