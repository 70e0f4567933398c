//! What happened to a cluster's shards.

use std::time::Duration;

use super::cluster::{Cluster, OperateError};
use super::table::Table;
use crate::topology::ShardId;
use crate::topology::codec::{Place, Record};

/// All records that are kept, oldest first.
#[derive(Clone, Debug)]
pub struct History(pub Vec<Record>);

impl Cluster {
    /// The history of all shards. A record that holds nonsense is left out, with a warning.
    pub async fn history(&self) -> Result<History, OperateError> {
        let mut records = Vec::new();
        for shard in self.children(&Place::Histories).await? {
            let shard = ShardId::new(shard);
            for name in self.children(&Place::History(shard.clone())).await? {
                let Ok(seq) = name.parse() else {
                    tracing::warn!("/history/{shard}/{name} is no record: its name is no number");
                    continue;
                };
                match self.read::<Record>(&Place::Record(shard.clone(), seq)).await {
                    Ok(Some(record)) => records.push(Record { seq, ..record }),
                    // Cut off since it was listed: the history is bounded.
                    Ok(None) => {}
                    Err(OperateError::Codec(error)) => tracing::warn!("{error}"),
                    Err(other) => return Err(other),
                }
            }
        }
        records.sort_by(|one, other| (one.time, &one.shard, one.seq).cmp(&(other.time, &other.shard, other.seq)));
        Ok(History(records))
    }
}

impl History {
    /// For people.
    pub fn table(&self) -> String {
        if self.0.is_empty() {
            return "nothing happened yet\n".to_owned();
        }
        let mut table = Table::new(&["time", "shard", "kind", "from", "to", "epoch", "took", "why"]);
        let shown = |node: &Option<_>| node.as_ref().map_or("-".to_owned(), ToString::to_string);
        for record in &self.0 {
            let took: Duration = record.phases_ms.0.iter().map(|(_, took)| *took).sum();
            table.row([
                time(record),
                record.shard.to_string(),
                record.kind.to_string(),
                shown(&record.from),
                shown(&record.to),
                record.epoch.to_string(),
                format!("{} ms", took.as_millis()),
                record.why.clone(),
            ]);
        }
        table.to_string()
    }
}

/// As it stands in JSON: RFC 3339.
fn time(record: &Record) -> String {
    let json = serde_json::to_value(record).unwrap_or_default();
    json["time"].as_str().unwrap_or("-").to_owned()
}
