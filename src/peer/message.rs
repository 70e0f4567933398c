//! What is said on a peer connection, and how it is written down.

use std::str;

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame;

use super::frame::{array, parts};
use crate::topology::{Epoch, ShardId};

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

/// What a client asks; each gets one reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The agent's status, as JSON.
    State,
    /// A command of an executor (park, promote, follow), as JSON; the reply is JSON.
    Ask(Bytes),
    /// This proxy has no write of an epoch below this one in flight any more.
    Drained(ShardId, Epoch),
    /// A state that the sender knows to stand in ZooKeeper.
    Relay(Relayed),
}

impl Request {
    pub(super) fn frame(&self) -> BytesFrame {
        match self {
            Self::State => array(&[b"STATE"]),
            Self::Ask(json) => array(&[b"ASK", json]),
            Self::Drained(shard, epoch) => {
                array(&[b"DRAINED", shard.as_str().as_bytes(), epoch.to_string().as_bytes()])
            }
            Self::Relay(relayed) => relayed.frame(),
        }
    }

    /// The request in a frame; none if it is none.
    pub(super) fn parse(frame: &BytesFrame) -> Option<Self> {
        match parts(frame)?.as_slice() {
            [b"STATE"] => Some(Self::State),
            [b"ASK", json] => Some(Self::Ask(Bytes::copy_from_slice(json))),
            [b"DRAINED", shard, epoch] => Some(Self::Drained(shard_id(shard)?, Epoch(number(epoch)?))),
            [b"RELAY", ..] => Relayed::parse(frame).map(Self::Relay),
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
        let [b"RELAY", shard, version, state] = parts.as_slice() else {
            return None;
        };
        Some(Self {
            shard: shard_id(shard)?,
            version: number(version)?,
            state: Bytes::copy_from_slice(state),
        })
    }
}

fn shard_id(part: &[u8]) -> Option<ShardId> {
    let name = str::from_utf8(part).ok()?;
    (!name.is_empty()).then(|| ShardId::from(name))
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
            Request::Drained(ShardId::from("s1"), Epoch(3)),
            Request::Relay(relayed),
        ] {
            assert_eq!(Request::parse(&request.frame()), Some(request));
        }
        for nonsense in [
            array(&[]),
            array(&[b"FLUSHALL"]),
            array(&[b"DRAINED", b"s1", b"x"]),
            array(&[b"RELAY", b"", b"1", b""]),
            BytesFrame::Integer(1),
            BytesFrame::Array(vec![BytesFrame::Null]),
        ] {
            assert_eq!(Request::parse(&nonsense), None, "{nonsense:?}");
        }
    }
}
