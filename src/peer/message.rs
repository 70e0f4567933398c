//! What is said on a peer connection, and how it is written down.

use std::str;

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame;

use serde::{Deserialize, Serialize};

use super::Version;
use super::frame::{array, parts};
use crate::topology::{Addr, Course, Epoch, NodeId, RunId, ShardId};

/// Who connects to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another agent of the shard.
    Agent,
    /// A proxy.
    Proxy,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Proxy => "proxy",
        }
    }

    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        match name {
            b"agent" => Some(Self::Agent),
            b"proxy" => Some(Self::Proxy),
            _ => None,
        }
    }
}

/// A shard's state as it stands in ZooKeeper, told on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Which shard.
    pub shard: ShardId,
    /// The version of the znode; an older one is no news.
    pub version: i32,
    /// The znode's value.
    pub state: Bytes,
}

/// Go to this node with what hears, before it is master: everything that was published has reached it, and nothing new
/// is, anywhere (datapath-rules B8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Which shard.
    pub shard: ShardId,
    /// The epoch that is about to be published.
    pub epoch: Epoch,
    /// Who will be its master.
    pub node: NodeId,
    /// Where its Redis listens.
    pub addr: Addr,
    /// Which life of it.
    pub run_id: RunId,
    /// Which move it is, from version 2 on.
    pub course: Option<Course>,
}

/// What an agent tells everyone who is connected, unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A state that stands in ZooKeeper.
    State(Relayed),
    /// A switchover has come to where listeners move.
    Attach(Attach),
}

/// What one proxy went through because a shard's master changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that waited.
    pub held: u64,
    /// Requests that were sent again.
    pub resent: u64,
    /// Requests answered with INDOUBT.
    pub indoubt: u64,
    /// Requests answered with MASTERDOWN.
    pub failed: u64,
    /// Microseconds from the first sign of the change to the first request that the new master could be sent.
    pub took_us: u64,
}

/// How long a shard's published master may be believed in, as far as the agent that says so has a say (rule C7): nobody
/// that needs this agent for it elects a successor to it over its silence before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The epoch that the master was published in.
    pub epoch: Epoch,
    /// Milliseconds, from the moment on at which the agent was asked.
    pub good_ms: u64,
    /// How many agents have to say so. The master's own may be enough: it parks its Redis when its word is over.
    pub enough: usize,
}

/// What a client asks; each gets one reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The agent's status, as JSON.
    State,
    /// A command of an executor (park, fence, reach, promote, follow), as JSON; the reply is JSON.
    Ask(Bytes),
    /// This proxy has no write of an epoch below this one in flight any more. From version 2 on it says for which move:
    /// one that was given up may have reserved the same epoch.
    Drained(ShardId, Epoch, Option<Course>),
    /// What hears at this proxy hears the node of [`News::Attach`] now.
    Attached(ShardId, Epoch, Option<Course>),
    /// This proxy's requests go to the master of this epoch.
    Report(ShardId, Epoch, Report),
    /// A state that the sender knows to stand in ZooKeeper.
    Relay(Relayed),
    /// How long the shard's master may be believed in; the reply is a [`Word`] as JSON, or null. An agent of version 2 that
    /// does not know the request yet refuses it.
    Word(ShardId),
}

impl Request {
    /// As an end of this version writes it.
    pub fn frame(&self, version: Version) -> BytesFrame {
        match self {
            Self::State => array(&[b"STATE"]),
            Self::Ask(json) => array(&[b"ASK", json]),
            Self::Drained(shard, epoch, course) => {
                let epoch = epoch.to_string();
                with_course(
                    &[b"DRAINED", shard.as_str().as_bytes(), epoch.as_bytes()],
                    course,
                    version,
                )
            }
            Self::Attached(shard, epoch, course) => {
                let epoch = epoch.to_string();
                with_course(
                    &[b"ATTACHED", shard.as_str().as_bytes(), epoch.as_bytes()],
                    course,
                    version,
                )
            }
            Self::Report(shard, epoch, report) => {
                let json = serde_json::to_vec(report).unwrap_or_default();
                array(&[
                    b"REPORT",
                    shard.as_str().as_bytes(),
                    epoch.to_string().as_bytes(),
                    &json,
                ])
            }
            Self::Relay(relayed) => relayed.frame(),
            Self::Word(shard) => array(&[b"WORD", shard.as_str().as_bytes()]),
        }
    }

    /// The request in a frame; none if it is none. What later versions may put behind it is passed over.
    pub fn parse(frame: &BytesFrame) -> Option<Self> {
        match parts(frame)?.as_slice() {
            [b"STATE", ..] => Some(Self::State),
            [b"ASK", json, ..] => Some(Self::Ask(Bytes::copy_from_slice(json))),
            [b"DRAINED", shard, epoch, more @ ..] => {
                Some(Self::Drained(shard_id(shard)?, Epoch(number(epoch)?), course(more)))
            }
            [b"ATTACHED", shard, epoch, more @ ..] => {
                Some(Self::Attached(shard_id(shard)?, Epoch(number(epoch)?), course(more)))
            }
            [b"REPORT", shard, epoch, json, ..] => {
                let report = serde_json::from_slice(json).ok()?;
                Some(Self::Report(shard_id(shard)?, Epoch(number(epoch)?), report))
            }
            [b"RELAY", ..] => Relayed::parse(frame).map(Self::Relay),
            [b"WORD", shard, ..] => Some(Self::Word(shard_id(shard)?)),
            _ => None,
        }
    }
}

impl Relayed {
    pub(super) fn frame(&self) -> BytesFrame {
        let version = self.version.to_string();
        array(&[
            b"RELAY",
            self.shard.as_str().as_bytes(),
            version.as_bytes(),
            &self.state,
        ])
    }

    pub(super) fn parse(frame: &BytesFrame) -> Option<Self> {
        let parts = parts(frame)?;
        let [b"RELAY", shard, version, state, ..] = parts.as_slice() else {
            return None;
        };
        Some(Self {
            shard: shard_id(shard)?,
            version: number(version)?,
            state: Bytes::copy_from_slice(state),
        })
    }
}

impl Attach {
    fn frame(&self, version: Version) -> BytesFrame {
        let (epoch, addr) = (self.epoch.to_string(), self.addr.to_string());
        let parts: [&[u8]; 6] = [
            b"ATTACH",
            self.shard.as_str().as_bytes(),
            epoch.as_bytes(),
            self.node.as_str().as_bytes(),
            addr.as_bytes(),
            self.run_id.as_str().as_bytes(),
        ];
        with_course(&parts, &self.course, version)
    }

    fn parse(frame: &BytesFrame) -> Option<Self> {
        let parts = parts(frame)?;
        let [b"ATTACH", shard, epoch, node, addr, run_id, more @ ..] = parts.as_slice() else {
            return None;
        };
        Some(Self {
            shard: shard_id(shard)?,
            epoch: Epoch(number(epoch)?),
            node: NodeId::from(str::from_utf8(node).ok()?),
            addr: number(addr)?,
            run_id: RunId::from(str::from_utf8(run_id).ok()?),
            course: course(more),
        })
    }
}

impl News {
    /// As an end of this version writes it.
    pub fn frame(&self, version: Version) -> BytesFrame {
        match self {
            Self::State(relayed) => relayed.frame(),
            Self::Attach(attach) => attach.frame(version),
        }
    }

    /// The news in a frame; none if it is none. What later versions may put behind it is passed over.
    pub fn parse(frame: &BytesFrame) -> Option<Self> {
        let state = Relayed::parse(frame).map(Self::State);
        state.or_else(|| Attach::parse(frame).map(Self::Attach))
    }
}

fn shard_id(part: &[u8]) -> Option<ShardId> {
    let name = str::from_utf8(part).ok()?;
    (!name.is_empty()).then(|| ShardId::from(name))
}

/// Version 1 takes no part more than it knows.
fn with_course(parts: &[&[u8]], course: &Option<Course>, version: Version) -> BytesFrame {
    let course = course.as_ref().filter(|_| version >= Version::COURSES);
    let course = course.map(|course| course.as_str().as_bytes());
    let parts: Vec<&[u8]> = parts.iter().copied().chain(course).collect();
    array(&parts)
}

fn course(more: &[&[u8]]) -> Option<Course> {
    let name = str::from_utf8(more.first()?).ok()?;
    (!name.is_empty()).then(|| Course::from(name))
}

fn number<N: str::FromStr>(part: &[u8]) -> Option<N> {
    str::from_utf8(part).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_a_round_trip_and_nonsense_does_not() {
        let relayed = Relayed {
            shard: ShardId::from("s1"),
            version: 7,
            state: Bytes::from_static(b"{}"),
        };
        for request in [
            Request::State,
            Request::Ask(Bytes::from_static(b"{\"park\":{}}")),
            Request::Drained(ShardId::from("s1"), Epoch(3), None),
            Request::Drained(ShardId::from("s1"), Epoch(3), Some(Course::from("c1"))),
            Request::Attached(ShardId::from("s1"), Epoch(3), Some(Course::from("c1"))),
            Request::Report(
                ShardId::from("s1"),
                Epoch(3),
                Report {
                    held: 7,
                    ..Report::default()
                },
            ),
            Request::Relay(relayed.clone()),
            Request::Word(ShardId::from("s1")),
        ] {
            assert_eq!(Request::parse(&request.frame(Version::OURS)), Some(request));
        }
        let attach = Attach {
            shard: ShardId::from("s1"),
            epoch: Epoch(3),
            node: NodeId::from("s1-b"),
            addr: Addr::new("127.0.0.1", 7002),
            run_id: RunId::from("b1"),
            course: Some(Course::from("c1")),
        };
        for news in [News::State(relayed), News::Attach(attach)] {
            assert_eq!(News::parse(&news.frame(Version::OURS)), Some(news));
        }
        for nonsense in [
            array(&[]),
            array(&[b"FLUSHALL"]),
            array(&[b"DRAINED", b"s1", b"x"]),
            array(&[b"RELAY", b"", b"1", b""]),
            array(&[b"REPORT", b"s1", b"1", b"[]"]),
            BytesFrame::Integer(1),
            BytesFrame::Array(vec![BytesFrame::Null]),
        ] {
            assert_eq!(Request::parse(&nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn version_1_gets_no_part_that_it_does_not_know_and_later_ones_may_say_more() {
        let course = Some(Course::from("c1"));
        let drained = Request::Drained(ShardId::from("s1"), Epoch(3), course.clone());
        assert_eq!(drained.frame(Version::FIRST), array(&[b"DRAINED", b"s1", b"3"]));
        let more = array(&[b"DRAINED", b"s1", b"3", b"c1", b"and more"]);
        assert_eq!(Request::parse(&more), Some(drained));
        let plain = array(&[b"ATTACH", b"s1", b"3", b"s1-b", b"127.0.0.1:7002", b"b1"]);
        let Some(news) = News::parse(&plain) else {
            panic!("version 1 is understood");
        };
        assert_eq!(news.frame(Version::OURS), plain);
        let News::Attach(attach) = news else { panic!("{news:?}") };
        let named = News::Attach(Attach { course, ..attach });
        assert_eq!(named.frame(Version::FIRST), plain);
        assert_ne!(named.frame(Version::OURS), plain);
    }
}
