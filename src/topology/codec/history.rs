//! What happened: `/history/<shard>/<seq>`, which is also a row of `pointsman history --json`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Znode, check_names};
use crate::topology::{Epoch, NodeId, ShardId};

/// One operation on a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, which is the znode's; 0 in the znode itself, whose number is not known before it is made.
    #[serde(default)]
    pub seq: u64,
    /// When it ended, in milliseconds since 1970; written as RFC 3339 in UTC.
    #[serde(with = "rfc3339")]
    pub time: u64,
    /// Which shard.
    pub shard: ShardId,
    /// What it was.
    pub kind: Kind,
    /// The master before, if any.
    pub from: Option<NodeId>,
    /// The master after.
    pub to: Option<NodeId>,
    /// The epoch it published.
    pub epoch: Epoch,
    /// How long each phase took, in order.
    pub phases_ms: Phases,
    /// Commands that waited for it, where known.
    #[serde(default)]
    pub held: Option<u64>,
    /// Commands that were sent again, where known.
    #[serde(default)]
    pub resent: Option<u64>,
    /// Commands whose outcome stayed unknown, where known.
    #[serde(default)]
    pub indoubt: Option<u64>,
    /// Commands that were answered with MASTERDOWN because of it, where known.
    #[serde(default)]
    pub failed: Option<u64>,
    /// What the new master held of the stream, in bytes; for people who compare.
    #[serde(default)]
    pub offset: Option<i64>,
    /// Bytes of the replication stream that were lost, where known.
    #[serde(default)]
    pub lost_bytes: Option<u64>,
    /// Who asked for it; nobody asks for a failover.
    #[serde(default)]
    pub asked_by: Option<String>,
    /// The request it answers, see [`SwitchRequest`](super::SwitchRequest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What became of it.
    #[serde(default)]
    pub result: Ending,
    /// Why, in a sentence.
    #[serde(default)]
    pub why: String,
}

/// What became of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It came to its end.
    #[default]
    Done,
    /// It was refused before anything was done; `why` says the reason.
    Refused,
    /// It was begun and taken back; the master is as it was.
    RolledBack,
    /// It could not be taken back: the election that the next record tells of followed.
    Failed,
    /// What a newer version knows.
    #[serde(untagged)]
    Other(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
            Self::Other(word) => word,
        })
    }
}

/// What an operation was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The shard's first master.
    Founding,
    /// A master was gone.
    Failover,
    /// A master was moved on purpose.
    Switchover,
    /// Members or W changed; the master stayed.
    Members,
    /// A kind that a newer version knows.
    #[serde(untagged)]
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Founding => "founding",
            Self::Failover => "failover",
            Self::Switchover => "switchover",
            Self::Members => "members",
            Self::Other(name) => name,
        })
    }
}

/// Names and durations in the order in which they happened; a JSON object of milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phases(pub Vec<(String, Duration)>);

/// More phases than any operation has.
const PHASES_MAX: usize = 64;
/// Longer than any of them takes, 35 years, and short enough that a double tells microseconds apart.
const PHASE_MICROS_MAX: u64 = 1 << 50;

impl Phases {
    /// How long the slowest proxy took to get to the new master. It runs beside the others, not after them.
    pub const REPOINT: &'static str = "repoint";

    /// How long the operation took: its phases one after the other.
    pub fn took(&self) -> Duration {
        let steps = self.0.iter().filter(|(name, _)| name != Self::REPOINT);
        steps.map(|(_, took)| *took).sum()
    }

    /// How long a phase took, if the operation had it.
    pub fn of(&self, phase: &str) -> Option<Duration> {
        let found = self.0.iter().find(|(name, _)| name == phase);
        found.map(|(_, took)| *took)
    }
}

impl Znode for Record {
    fn check(&self) -> Result<(), String> {
        check_names([self.shard.as_str()])?;
        check_names(self.from.iter().chain(&self.to).map(NodeId::as_str))
    }
}

impl Serialize for Phases {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, took) in &self.0 {
            // To the microsecond: whole numbers of nothing would hide what a fast step takes.
            #[expect(
                clippy::cast_precision_loss,
                reason = "a double holds 285 years of microseconds exactly"
            )]
            map.serialize_entry(name, &(took.as_micros() as f64 / 1000.0))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Phases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Phases;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of milliseconds")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Phases, A::Error> {
                let mut phases = Vec::new();
                while let Some((name, ms)) = map.next_entry::<String, f64>()? {
                    if phases.len() >= PHASES_MAX {
                        return Err(A::Error::custom("too many phases"));
                    }
                    let took = Duration::try_from_secs_f64(ms / 1000.0).map_err(A::Error::custom)?;
                    let micros = (took + Duration::from_nanos(500)).as_micros();
                    let micros = u64::try_from(micros).map_err(A::Error::custom)?;
                    if micros > PHASE_MICROS_MAX {
                        return Err(A::Error::custom("a phase of more than 35 years"));
                    }
                    phases.push((name, Duration::from_micros(micros)));
                }
                Ok(Phases(phases))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

mod rfc3339 {
    use super::*;

    /// The last millisecond of year 9999: RFC 3339 goes no further.
    const LAST_MS: u64 = 253_402_300_799_999;

    pub fn serialize<S: Serializer>(ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = ms.min(&LAST_MS);
        serializer.collect_str(&humantime::format_rfc3339_millis(
            UNIX_EPOCH + Duration::from_millis(*ms),
        ))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: SystemTime = humantime::parse_rfc3339(&text).map_err(D::Error::custom)?;
        let since = time.duration_since(UNIX_EPOCH).map_err(D::Error::custom)?;
        u64::try_from(since.as_millis()).map_err(D::Error::custom)
    }
}

/// A record of which tests change what matters to them.
#[cfg(test)]
pub(crate) fn bare_record() -> Record {
    Record {
        seq: 0,
        time: 0,
        shard: ShardId::from("s1"),
        kind: Kind::Switchover,
        from: None,
        to: None,
        epoch: Epoch(2),
        phases_ms: Phases::default(),
        held: None,
        resent: None,
        indoubt: None,
        failed: None,
        offset: None,
        lost_bytes: None,
        asked_by: None,
        request: None,
        result: Ending::Done,
        why: "a test".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{decode, encode};
    use super::*;

    fn sample() -> Record {
        Record {
            seq: 7,
            time: 1_700_000_000_123,
            kind: Kind::Failover,
            from: Some(NodeId::from("s1-a")),
            to: Some(NodeId::from("s1-b")),
            phases_ms: Phases(vec![
                ("detect".to_owned(), Duration::from_micros(4_250)),
                ("claim".to_owned(), Duration::from_micros(5_001)),
            ]),
            resent: Some(3),
            why: "s1-a is gone".to_owned(),
            ..bare_record()
        }
    }

    #[test]
    fn a_record_reads_like_the_row_that_operators_were_promised() {
        let text = String::from_utf8(encode(&sample())).unwrap();
        for part in [
            r#""seq":7"#,
            r#""time":"2023-11-14T22:13:20.123Z""#,
            r#""kind":"failover""#,
            r#""from":"s1-a","to":"s1-b","epoch":2"#,
            r#""phases_ms":{"detect":4.25,"claim":5.001}"#,
            r#""held":null,"resent":3"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(decode::<Record>(text.as_bytes(), "p").unwrap(), sample());
        let newer = text.replace("failover", "resharding");
        let newer = decode::<Record>(newer.as_bytes(), "p").unwrap();
        assert_eq!(newer.kind, Kind::Other("resharding".to_owned()));
    }

    #[test]
    fn nonsense_in_a_record_is_refused() {
        let text = String::from_utf8(encode(&sample())).unwrap();
        for (from, to) in [
            ("2023-11-14T22:13:20.123Z", "yesterday"),
            ("4.25", "-4.25"),
            ("4.25", "1e300"),
            ("4.25", "1125899906842.625"),
            ("\"s1\"", "\"s 1\""),
        ] {
            let wrong = text.replace(from, to);
            assert!(decode::<Record>(wrong.as_bytes(), "p").is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn records_survive_a_round_trip(
            time in 0u64..4_000_000_000_000,
            micros in prop::collection::vec(0u64..1_000_000_000_000, 0..6),
            why in "\\PC{0,40}",
        ) {
            let phases = micros.iter().enumerate().map(|(n, us)| (format!("p{n}"), Duration::from_micros(*us)));
            let record = Record { time, phases_ms: Phases(phases.collect()), why, ..sample() };
            prop_assert_eq!(decode::<Record>(&encode(&record), "p").unwrap(), record);
        }
    }
}
