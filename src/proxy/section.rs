//! The section of INFO about the proxy itself, which a client that asks for all, for the default or for `proxy` finds behind
//! Redis' own.

use std::fmt::Write as _;

use super::worker::Worker;
use crate::resp::Args;
use crate::route::ReadPolicy;

/// Whether an INFO asks for it: names no section, or one of these.
pub fn is_wanted(args: &Args) -> bool {
    let wanted = [&b"proxy"[..], b"default", b"all", b"everything"];
    args.len() == 1
        || args
            .iter()
            .skip(1)
            .any(|word| wanted.iter().any(|name| word.eq_ignore_ascii_case(name)))
}

/// The section, lines ended as Redis ends them. Figures are of the whole proxy, states as this worker sees them.
pub fn section(worker: &Worker) -> String {
    let settings = worker.settings();
    let reads = match settings.reads {
        ReadPolicy::Master => "master",
        ReadPolicy::Causal => "causal",
    };
    let mut text = format!(
        "# Proxy\r\nproxy_version:{}\r\nproxy_id:{}\r\nproxy_process_id:{}\r\nproxy_uptime_in_seconds:{}\r\nproxy_workers:{}\r\n\
         proxy_connected_clients:{}\r\nproxy_clients_max:{}\r\nproxy_reads:{reads}\r\nproxy_shards:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        settings.id,
        std::process::id(),
        worker.started().elapsed().as_secs(),
        settings.workers,
        worker.census().connected(),
        settings.clients_max,
        worker.shard_count(),
    );
    let snapshot = worker.snapshot();
    for (number, shard) in snapshot.shards.iter().enumerate() {
        let master = shard
            .master
            .as_ref()
            .map_or_else(String::new, |master| master.addr.to_string());
        let phase = format!("{:?}", shard.phase).to_lowercase();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "proxy_shard{number}:id={},epoch={},phase={phase},master={master},ack_replicas={},nodes={}\r\n",
            shard.id,
            shard.epoch,
            shard.ack_replicas.max(settings.ack_replicas),
            shard.nodes.len()
        );
    }
    text
}
