//! What stands in znodes and in topology files: any bytes give an error, or a value that is written as bytes which stand
//! for the same.

use std::fmt::Debug;

use pointsman::topology::codec::{
    ClusterConfig, NodeInfo, Place, ProxyInfo, Record, ShardConfig, ShardState, Slots, Suspect, SwitchRequest,
    TopologyFile, Znode, decode, encode, remedy,
};

/// The target.
pub fn run(bytes: &[u8]) {
    comes_back::<ClusterConfig>(bytes);
    comes_back::<Slots>(bytes);
    comes_back::<ShardConfig>(bytes);
    comes_back::<ShardState>(bytes);
    comes_back::<SwitchRequest>(bytes);
    comes_back::<NodeInfo>(bytes);
    comes_back::<Suspect>(bytes);
    comes_back::<ProxyInfo>(bytes);
    comes_back::<Record>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = TopologyFile::parse(text, "topology.toml");
        if let Some(place) = Place::parse(text) {
            assert_eq!(Place::parse(&place.to_string()), Some(place));
        }
        remedy(text);
    }
}

fn comes_back<Z: Znode + Debug + PartialEq>(bytes: &[u8]) {
    let Ok(value) = decode::<Z>(bytes, "/a/znode") else {
        return;
    };
    let again = decode::<Z>(&encode(&value), "/a/znode");
    assert_eq!(
        again.as_ref(),
        Ok(&value),
        "{}",
        String::from_utf8_lossy(&encode(&value))
    );
}
