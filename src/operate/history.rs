//! What happened to a cluster's shards.

use std::time::Duration;

use super::cluster::{Cluster, OperateError};
use super::table::Table;
use crate::topology::ShardId;
use crate::topology::codec::{Phases, Place, Record};

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
    /// For people: a row for each operation, and under it the `phases` if they are asked for.
    pub fn table(&self, with_phases: bool) -> String {
        if self.0.is_empty() {
            return "nothing happened yet\n".to_owned();
        }
        let mut table = Table::new(&[
            "time", "shard", "kind", "result", "from", "to", "epoch", "took", "repoint", "held", "resent", "in doubt",
            "failed", "lost", "asked by", "why",
        ]);
        for record in &self.0 {
            table.row(row(record));
            if with_phases && !record.phases_ms.0.is_empty() {
                table.note(phases(record));
            }
        }
        table.to_string()
    }
}

fn row(record: &Record) -> [String; 16] {
    let node = |node: &Option<_>| node.as_ref().map_or("-".to_owned(), ToString::to_string);
    let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    [
        time(record),
        record.shard.to_string(),
        record.kind.to_string(),
        record.result.to_string(),
        node(&record.from),
        node(&record.to),
        record.epoch.to_string(),
        took(record),
        record.phases_ms.of(Phases::REPOINT).map_or("-".to_owned(), ms),
        count(record.held),
        count(record.resent),
        count(record.indoubt),
        count(record.failed),
        record.lost_bytes.map_or("-".to_owned(), |bytes| format!("{bytes} B")),
        record.asked_by.clone().unwrap_or("-".to_owned()),
        record.why.clone(),
    ]
}

/// How long it took from its first phase to its last; nothing if it had none.
pub(super) fn took(record: &Record) -> String {
    match record.phases_ms.0.is_empty() {
        true => "-".to_owned(),
        false => ms(record.phases_ms.took()),
    }
}

/// Each phase with its milliseconds, in order.
pub(super) fn phases(record: &Record) -> String {
    let phases = record.phases_ms.0.iter();
    let each: Vec<String> = phases.map(|(name, took)| format!("{name} {}", number(*took))).collect();
    format!("{} ms", each.join(", "))
}

/// What it was to clients.
pub(super) fn counts(record: &Record) -> String {
    let (Some(held), Some(resent), Some(indoubt), Some(failed)) =
        (record.held, record.resent, record.indoubt, record.failed)
    else {
        return "no proxy told what it was to clients".to_owned();
    };
    format!("held {held}, resent {resent}, in doubt {indoubt}, failed {failed}")
}

fn ms(took: Duration) -> String {
    format!("{} ms", number(took))
}

/// Milliseconds, to the tenth while that can be told.
fn number(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    if ms < 100.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.0}")
    }
}

/// As it stands in JSON: RFC 3339.
fn time(record: &Record) -> String {
    let json = serde_json::to_value(record).unwrap_or_default();
    json["time"].as_str().unwrap_or("-").to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::topology::codec::{Ending, Kind};
    use crate::topology::{Epoch, NodeId};

    pub(in crate::operate) fn switchover() -> Record {
        let phases = [("claim", 3000), ("fence", 500), ("publish", 5300), ("repoint", 7200)];
        let phases = phases.map(|(name, us)| (name.to_owned(), Duration::from_micros(us)));
        Record {
            seq: 3,
            time: 1_700_000_000_123,
            shard: ShardId::from("s1"),
            kind: Kind::Switchover,
            from: Some(NodeId::from("s1-a")),
            to: Some(NodeId::from("s1-b")),
            epoch: Epoch(4),
            phases_ms: Phases(phases.into()),
            held: Some(12),
            resent: Some(3),
            indoubt: Some(0),
            failed: Some(0),
            offset: Some(77),
            lost_bytes: Some(0),
            asked_by: Some("me@here".to_owned()),
            request: Some("r1".to_owned()),
            result: Ending::Done,
            why: "asked for".to_owned(),
        }
    }

    #[test]
    fn operations_are_read_at_a_glance_with_their_phases_under_them() {
        let failover = Record {
            kind: Kind::Failover,
            phases_ms: Phases(vec![("detect".to_owned(), Duration::from_millis(1234))]),
            held: None,
            resent: None,
            indoubt: None,
            failed: None,
            lost_bytes: None,
            asked_by: None,
            ..switchover()
        };
        let refused = Record {
            phases_ms: Phases::default(),
            result: Ending::Refused,
            ..failover.clone()
        };
        let history = History(vec![switchover(), failover, refused]);
        let table = history.table(true);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1].join(" "),
            "2023-11-14T22:13:20.123Z s1 switchover done s1-a s1-b 4 8.8 ms 7.2 ms 12 3 0 0 0 B me@here asked for"
        );
        assert_eq!(lines[2].join(" "), "claim 3.0, fence 0.5, publish 5.3, repoint 7.2 ms");
        assert_eq!(
            lines[3].join(" "),
            "2023-11-14T22:13:20.123Z s1 failover done s1-a s1-b 4 1234 ms - - - - - - - asked for"
        );
        assert_eq!(lines[4].join(" "), "detect 1234 ms");
        assert!(lines[5].join(" ").contains("failover refused s1-a s1-b 4 - - -"));
        assert_eq!(lines.len(), 6, "no phases, no line");
        assert_eq!(history.table(false).lines().count(), 4);
        assert_eq!(History(Vec::new()).table(true), "nothing happened yet\n");
    }
}
