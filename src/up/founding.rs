//! What the cluster is told before its agents come: `/config`, `/slots`, `/shards/<s>/config`.

use super::plan::Plan;
use crate::store::{Store, StoreError};
use crate::topology::codec::{ClusterConfig, Place, ShardConfig, encode};

/// Writes what is missing.
pub async fn found(store: &Store, plan: &Plan, ack_replicas: u32) -> Result<(), StoreError> {
    let write = |place: Place, bytes: Vec<u8>| async move { store.ensure(&place.to_string(), bytes).await };
    write(Place::Config, encode(&ClusterConfig::default())).await?;
    for shard in &plan.shards {
        let config = ShardConfig {
            ack_replicas,
            members: plan.members(shard).cloned().collect(),
            ..ShardConfig::default()
        };
        write(Place::ShardConfig(shard.clone()), encode(&config)).await?;
    }
    // Last: who finds it finds everything.
    write(Place::Slots, encode(&plan.slots())).await
}
