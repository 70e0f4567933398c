//! The snapshot as JSON.

use serde_json::{Value, json};

use crate::topology::{Master, Node, Shard, ShardIndex, Snapshot};

pub(super) fn json(snapshot: &Snapshot) -> String {
    let shards = (0..).zip(&snapshot.shards).map(|(index, shard)| {
        let slots = snapshot.slots.ranges_of(ShardIndex(index));
        picture(shard, &slots)
    });
    let mut text = json!({ "shards": shards.collect::<Vec<_>>() }).to_string();
    text.push('\n');
    text
}

fn picture(shard: &Shard, slots: &[(u16, u16)]) -> Value {
    let master = |master: &Master| json!({ "node": master.node, "addr": master.addr, "run_id": master.run_id });
    let node = |node: &Node| {
        json!({
            "id": node.id,
            "addr": node.addr,
            "peer": node.peer,
            "run_id": node.run_id,
            "zone": &*node.zone,
        })
    };
    json!({
        "id": shard.id,
        "epoch": shard.epoch,
        "phase": shard.phase,
        "master": shard.master.as_ref().map(master),
        "slots": slots,
        "ack_replicas": shard.ack_replicas,
        "nodes": shard.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Addr, Epoch, NodeId, Phase, ShardId, SlotMap};

    #[test]
    fn a_snapshot_is_told_whole() {
        let snapshot = Snapshot {
            shards: vec![Shard {
                id: ShardId::from("s1"),
                epoch: Epoch(3),
                phase: Phase::Serving,
                master: Some(Master {
                    node: NodeId::from("s1-a"),
                    addr: Addr::new("h", 1),
                    run_id: None,
                }),
                nodes: Vec::new(),
                ack_replicas: 0,
                switch: None,
                executor: None,
            }],
            slots: SlotMap::single(),
        };
        assert_eq!(
            json(&snapshot),
            "{\"shards\":[{\"ack_replicas\":0,\"epoch\":3,\"id\":\"s1\",\"master\":{\"addr\":\"h:1\",\"node\":\"s1-a\",\
             \"run_id\":null},\"nodes\":[],\"phase\":\"serving\",\"slots\":[[0,16383]]}]}\n"
        );
    }
}
