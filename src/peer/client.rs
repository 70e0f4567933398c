//! The other end: one connection to an agent.
//!
//! Owns: [`Client`]: the handshake, asking, hearing news. Refuses: reconnecting (the owner decides when). Invariant:
//! replies come in the order of the requests; news between them is kept apart, the newest [`NEWS_MAX`] of it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use redis_protocol::resp2::types::BytesFrame;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::frame::{Bounded, array, parts};
use super::message::{Kind, News, Request};
use super::proof::{End, Nonces, nonce, prove, proven};
use super::{HANDSHAKE_LIMIT, Version};
use crate::topology::Addr;

/// News that comes while a reply is awaited.
const NEWS_MAX: usize = 16;

/// Why an agent did not answer.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No answer in time; the connection is of no use any more.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// It does not know the cluster's secret.
    #[error("the agent at {0} does not know the cluster's secret")]
    Stranger(Addr),
    /// It answered with an error.
    #[error("the agent says: {0}")]
    Says(String),
}

/// One connection to an agent.
#[derive(Debug)]
pub struct Client {
    wire: Framed<TcpStream, Bounded>,
    news: VecDeque<News>,
    version: Version,
}

impl Client {
    /// Connects to the agent at `addr` and proves to it, and it to us, that both know `secret`.
    pub async fn connect(addr: &Addr, kind: Kind, id: &str, secret: &[u8]) -> Result<Self, PeerError> {
        match Self::connect_as(Version::OURS, addr, kind, id, secret).await {
            // An agent of the first version, which knows no other.
            Err(PeerError::Says(line)) if line.ends_with(" of version 1") => {
                Self::connect_as(Version::FIRST, addr, kind, id, secret).await
            }
            done => done,
        }
    }

    async fn connect_as(version: Version, addr: &Addr, kind: Kind, id: &str, secret: &[u8]) -> Result<Self, PeerError> {
        let connecting = async {
            let stream = TcpStream::connect((addr.host(), addr.port()))
                .await
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::ConnectionRefused => PeerError::Refused,
                    _ => PeerError::Lost(error.to_string()),
                })?;
            stream
                .set_nodelay(true)
                .map_err(|error| PeerError::Lost(error.to_string()))?;
            let mut client = Self {
                wire: Framed::new(stream, Bounded::default()),
                news: VecDeque::new(),
                version,
            };
            client.introduce(addr, kind, id, secret).await?;
            Ok(client)
        };
        timeout(HANDSHAKE_LIMIT, connecting)
            .await
            .map_err(|_| PeerError::Timeout)?
    }

    async fn introduce(&mut self, addr: &Addr, kind: Kind, id: &str, secret: &[u8]) -> Result<(), PeerError> {
        let ours = nonce().ok_or_else(|| PeerError::Lost("no randomness".to_owned()))?;
        let version = self.version.to_string();
        let hello: [&[u8]; 5] = [
            b"HELLO",
            version.as_bytes(),
            kind.name().as_bytes(),
            id.as_bytes(),
            &ours,
        ];
        self.send(array(&hello)).await?;
        let welcome = self.receive().await?;
        let stranger = || PeerError::Stranger(addr.clone());
        let welcome = parts(&welcome).ok_or_else(stranger)?;
        let [theirs, proof, more @ ..] = welcome.as_slice() else {
            return Err(stranger());
        };
        let spoken = more
            .first()
            .map_or(Some(Version::FIRST), |digits| Version::parse(digits));
        self.version = spoken.ok_or_else(stranger)?.min(self.version);
        let nonces = Nonces {
            client: ours,
            server: theirs.to_vec(),
        };
        if !proven(secret, End::Server, &nonces, proof) {
            return Err(stranger());
        }
        self.send(array(&[b"AUTH", &prove(secret, End::Client, &nonces)]))
            .await?;
        self.receive().await.map(|_| ())
    }

    /// Asks and waits at most `limit` for the reply. After an error the connection must be given up.
    pub async fn ask(&mut self, request: &Request, limit: Duration) -> Result<Bytes, PeerError> {
        let asking = async {
            self.send(request.frame(self.version)).await?;
            loop {
                let frame = self.receive().await?;
                if let Some(news) = News::parse(&frame) {
                    if self.news.len() >= NEWS_MAX {
                        self.news.pop_front();
                    }
                    self.news.push_back(news);
                    continue;
                }
                return match frame {
                    BytesFrame::BulkString(reply) => Ok(reply),
                    BytesFrame::Array(_) if self.passes_over() => continue,
                    BytesFrame::SimpleString(_)
                    | BytesFrame::Error(_)
                    | BytesFrame::Integer(_)
                    | BytesFrame::Array(_)
                    | BytesFrame::Null => Err(PeerError::Lost("it does not speak our protocol".to_owned())),
                };
            }
        };
        timeout(limit, asking).await.map_err(|_| PeerError::Timeout)?
    }

    /// The next news. May be dropped and called again without losing any.
    pub async fn hear(&mut self) -> Result<News, PeerError> {
        if let Some(news) = self.news.pop_front() {
            return Ok(news);
        }
        loop {
            let frame = self.receive().await?;
            match News::parse(&frame) {
                Some(news) => return Ok(news),
                None if matches!(frame, BytesFrame::Array(_)) && self.passes_over() => {}
                None => return Err(PeerError::Lost("a reply to nothing".to_owned())),
            }
        }
    }

    /// Whether news of a kind that we do not know may come: no reply is an array.
    fn passes_over(&self) -> bool {
        self.version > Version::FIRST
    }

    async fn send(&mut self, frame: BytesFrame) -> Result<(), PeerError> {
        self.wire
            .send(frame)
            .await
            .map_err(|error| PeerError::Lost(error.to_string()))
    }

    async fn receive(&mut self) -> Result<BytesFrame, PeerError> {
        match self.wire.next().await {
            None => Err(PeerError::Lost("closed by the agent".to_owned())),
            Some(Err(error)) => Err(PeerError::Lost(error.to_string())),
            Some(Ok(BytesFrame::Error(line))) => Err(PeerError::Says(line.to_string())),
            Some(Ok(frame)) => Ok(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::topology::{Course, Epoch, ShardId};

    /// The end of an agent of version 1: what it is asked after two hellos.
    async fn first_version(listener: TcpListener) -> BytesFrame {
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = Framed::new(stream, Bounded::default());
        let hello = wire.next().await.unwrap().unwrap();
        assert_eq!(parts(&hello).unwrap()[1], b"2");
        let refused = BytesFrame::Error("ERR HELLO first, of version 1".into());
        wire.send(refused).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = Framed::new(stream, Bounded::default());
        let hello = wire.next().await.unwrap().unwrap();
        let hello = parts(&hello).unwrap();
        assert_eq!((hello.len(), hello[1]), (5, b"1".as_slice()));
        let nonces = Nonces {
            client: hello[4].to_vec(),
            server: b"s".to_vec(),
        };
        let proof = prove(b"secret", End::Server, &nonces);
        wire.send(array(&[b"s", &proof])).await.unwrap();
        wire.next().await.unwrap().unwrap();
        wire.send(BytesFrame::SimpleString("OK".into())).await.unwrap();
        let asked = wire.next().await.unwrap().unwrap();
        wire.send(BytesFrame::BulkString("noted".into())).await.unwrap();
        asked
    }

    #[tokio::test]
    async fn an_agent_of_the_first_version_is_spoken_to_as_it_understands() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
        let agent = tokio::spawn(first_version(listener));
        let mut client = Client::connect(&addr, Kind::Proxy, "p1", b"secret").await.unwrap();
        let course = Some(Course::from("c1"));
        let drained = Request::Drained(ShardId::from("s1"), Epoch(3), course);
        client.ask(&drained, HANDSHAKE_LIMIT).await.unwrap();
        assert_eq!(agent.await.unwrap(), array(&[b"DRAINED", b"s1", b"3"]));
    }
}
