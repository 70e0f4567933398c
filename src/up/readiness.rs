//! Whether a part serves already: one look each, bounded in time. What was seen instead is the error.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::plan::Plan;
use crate::agent::redis::{Connection, Login, text};
use crate::operate::{self, State};
use crate::store::Store;
use crate::topology::codec::{Place, ShardState, Slots, decode};
use crate::topology::{Addr, ShardId, slot_of_key};

/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long the key of a first SET lives if its DEL gets lost.
const PROBE_TTL_MS: &str = "10000";
/// The longest answer of ZooKeeper that is read, in bytes.
const SRVR_BYTES_MAX: u64 = 4096;

/// Whether the ZooKeeper server on a loopback port serves, alone or in a quorum.
pub async fn zookeeper(port: u16) -> Result<(), String> {
    let asking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"srvr").await?;
        let mut answer = String::new();
        stream.take(SRVR_BYTES_MAX).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(LOOK_LIMIT, asking).await {
        Err(_) => Err("it does not answer".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) if answer.contains("Mode: ") => Ok(()),
        Ok(Ok(answer)) => Err(answer.trim().to_owned()),
    }
}

/// Whether the redis-server with this pid answers at `addr`.
pub async fn redis(addr: &Addr, password: Option<&str>, pid: i32) -> Result<(), String> {
    let mut connection = open(addr, password).await?;
    let info = connection.ask(&["INFO", "server"], LOOK_LIMIT).await;
    let info = info.map_err(|error| error.to_string())?;
    let line = format!("process_id:{pid}");
    match text(&info).is_some_and(|info| info.lines().any(|found| found == line)) {
        true => Ok(()),
        false => Err(format!("another redis-server answers at {addr}")),
    }
}

/// Whether a write to each shard works through the proxy at `addr`.
pub async fn writes(addr: &Addr, password: Option<&str>, plan: &Plan) -> Result<(), String> {
    let mut connection = open(addr, password).await?;
    let slots = plan.slots();
    for shard in &plan.shards {
        let key = key_of(&slots, shard);
        let set = ["SET", &key, "1", "PX", PROBE_TTL_MS];
        let said = |error: crate::agent::redis::RedisError| format!("shard {shard}: {error}");
        connection.ask(&set, LOOK_LIMIT).await.map_err(said)?;
        connection.ask(&["DEL", &key], LOOK_LIMIT).await.map_err(said)?;
    }
    Ok(())
}

/// Whether all nodes are in service: their agents say that they serve or are linked.
pub async fn linked(plan: &Plan, secret: &[u8]) -> Result<(), String> {
    for node in &plan.nodes {
        one_linked(&node.agent.listen, secret)
            .await
            .map_err(|what| format!("{}: {what}", node.id))?;
    }
    Ok(())
}

/// Whether all nodes of each shard are proven to hold its data, so that any of them may be the next master.
pub async fn all_count(store: &Store, plan: &Plan) -> Result<(), String> {
    for shard in &plan.shards {
        let path = Place::State(shard.clone()).to_string();
        let found = store.get(&path).await.map_err(|error| error.to_string())?;
        let found = found.ok_or_else(|| format!("shard {shard} is not founded"))?;
        let state: ShardState = decode(&found.bytes, &path).map_err(|error| error.to_string())?;
        if let Some(late) = plan.members(shard).find(|id| !state.valid.contains_key(*id)) {
            return Err(format!("{late} has not proven yet that it holds the data of its shard"));
        }
    }
    Ok(())
}

/// Whether the node whose agent listens at `addr` is in service.
pub async fn one_linked(addr: &Addr, secret: &[u8]) -> Result<(), String> {
    let status = operate::ask(addr, secret)
        .await
        .map_err(|error| format!("its agent: {error}"))?;
    // It is the master if it is one at all: whoever is promoted and not published is parked again soon.
    match operate::standing(&status, Some(&status.node)) {
        (_, State::Serving | State::Linked) => Ok(()),
        (_, State::Syncing) => Err("it is catching up with its master".to_owned()),
        (_, State::Parked) => Err("it follows nobody yet".to_owned()),
        (_, State::Down) => Err("its redis-server does not answer".to_owned()),
        (_, State::Foreign) => Err("its redis-server holds data of another origin".to_owned()),
    }
}

async fn open(addr: &Addr, password: Option<&str>) -> Result<Connection, String> {
    let login = Login {
        user: None,
        password: password.map(str::to_owned),
    };
    Connection::open(addr, &login, LOOK_LIMIT)
        .await
        .map_err(|error| error.to_string())
}

/// A key that belongs to `shard`.
fn key_of(slots: &Slots, shard: &ShardId) -> String {
    let owned = |key: &String| {
        let slot = slot_of_key(key.as_bytes()).0;
        slots
            .ranges
            .iter()
            .any(|range| range.shard == *shard && (range.from..=range.to).contains(&slot))
    };
    let mut keys = (0..u32::MAX).map(|number| format!("pointsman:ready:{number}"));
    keys.find(owned).unwrap_or_default()
}
