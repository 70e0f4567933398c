//! The agent's end: accepts, checks who it is, answers in order, tells news.
//!
//! Owns: [`serve`] and its connections. Refuses: meaning. Invariants: at most [`CONNECTIONS_MAX`] connections; one
//! request of a connection is under way at a time; a connection that breaks a rule is told so and closed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use redis_protocol::error::RedisProtocolError;
use redis_protocol::resp2::types::BytesFrame;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::bulletin::Bulletin;
use super::frame::{Bounded, array, parts};
use super::message::{Kind, Request};
use super::proof::{End, Nonces, nonce, prove, proven};
use super::{HANDSHAKE_LIMIT, Version};

/// How many agents and proxies may be connected at a time.
const CONNECTIONS_MAX: usize = 1024;
/// How long the agent may take to answer one request before the connection says so.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A request on its way to the agent.
#[derive(Debug)]
pub struct Inbound {
    /// What kind of client asks.
    pub kind: Kind,
    /// Its name, as it gave it.
    pub id: String,
    /// What it asks.
    pub request: Request,
    /// Where the reply goes. Dropped without one: the client is told that there is none.
    pub reply: oneshot::Sender<Bytes>,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("it went away")]
    Gone,
    #[error("{0}")]
    Broken(#[from] RedisProtocolError),
    #[error("handshake too slow")]
    Slow,
    #[error("{0}")]
    Refused(&'static str),
}

type Wire = Framed<TcpStream, Bounded>;

/// Serves peers until `stop`. Requests go to `requests`, whose bound holds clients back; each new value of `news` is
/// told to all that are connected.
pub async fn serve(
    listener: TcpListener,
    secret: Arc<[u8]>,
    requests: mpsc::Sender<Inbound>,
    news: watch::Receiver<Bulletin>,
    stop: CancellationToken,
) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a peer could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (secret, requests, news, stop) = (Arc::clone(&secret), requests.clone(), news.clone(), stop.clone());
        tokio::spawn(async move {
            let mut wire = Framed::new(stream, Bounded::default());
            let end = tokio::select! {
                () = stop.cancelled() => Ok(()),
                end = converse(&mut wire, &secret, &requests, news) => end,
            };
            if let Err(Closed::Refused(why)) = &end {
                let line = BytesFrame::Error(format!("ERR {why}").into());
                // It is being closed anyway; that it cannot be told so changes nothing.
                let _ = timeout(HANDSHAKE_LIMIT, wire.send(line)).await;
            }
            if let Err(reason) = end {
                tracing::debug!(%reason, "a peer connection ended");
            }
            drop(seat);
        });
    }
}

async fn converse(
    wire: &mut Wire,
    secret: &[u8],
    requests: &mpsc::Sender<Inbound>,
    mut news: watch::Receiver<Bulletin>,
) -> Result<(), Closed> {
    wire.get_ref().set_nodelay(true).map_err(|_| Closed::Gone)?;
    let (kind, id, version) = timeout(HANDSHAKE_LIMIT, welcome(wire, secret))
        .await
        .map_err(|_| Closed::Slow)??;
    news.mark_changed();
    let mut told = Bulletin::default();
    loop {
        tokio::select! {
            frame = wire.next() => {
                let frame = frame.ok_or(Closed::Gone)??;
                let reply = match Request::parse(&frame) {
                    Some(request) => answer(requests, kind, &id, request).await,
                    // One that a later version knows.
                    None if version > Version::FIRST => BytesFrame::Error("ERR not a request".into()),
                    None => return Err(Closed::Refused("not a request")),
                };
                wire.send(reply).await?;
            }
            changed = news.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let latest = news.borrow_and_update().clone();
                for news in latest.since(&told) {
                    wire.send(news.frame(version)).await?;
                }
                told = latest;
            }
        }
    }
}

async fn welcome(wire: &mut Wire, secret: &[u8]) -> Result<(Kind, String, Version), Closed> {
    let hello = wire.next().await.ok_or(Closed::Gone)??;
    let hello = parts(&hello).ok_or(Closed::Refused("HELLO first"))?;
    let [b"HELLO", theirs, kind, id, client, ..] = hello.as_slice() else {
        return Err(Closed::Refused("HELLO first"));
    };
    let theirs = Version::parse(theirs).ok_or(Closed::Refused("HELLO first, of version 1 or later"))?;
    let version = theirs.min(Version::OURS);
    let kind = Kind::parse(kind).ok_or(Closed::Refused("neither agent nor proxy"))?;
    let id = String::from_utf8_lossy(id).into_owned();
    let server = nonce().ok_or(Closed::Refused("no randomness"))?;
    let nonces = Nonces {
        client: client.to_vec(),
        server,
    };
    let proof = prove(secret, End::Server, &nonces);
    let spoken = version.to_string();
    // Version 1 takes two parts only.
    let spoken = (version > Version::FIRST).then_some(spoken.as_bytes());
    let welcome: Vec<&[u8]> = [nonces.server.as_slice(), &proof].into_iter().chain(spoken).collect();
    wire.send(array(&welcome)).await?;
    let auth = wire.next().await.ok_or(Closed::Gone)??;
    match parts(&auth).as_deref() {
        Some([b"AUTH", proof]) if proven(secret, End::Client, &nonces, proof) => {}
        _ => return Err(Closed::Refused("wrong cluster secret")),
    }
    wire.send(BytesFrame::SimpleString(Bytes::from_static(b"OK"))).await?;
    Ok((kind, id, version))
}

async fn answer(requests: &mpsc::Sender<Inbound>, kind: Kind, id: &str, request: Request) -> BytesFrame {
    let (reply, answer) = oneshot::channel();
    let inbound = Inbound {
        kind,
        id: id.to_owned(),
        request,
        reply,
    };
    let asking = async {
        requests.send(inbound).await.ok()?;
        answer.await.ok()
    };
    match timeout(ANSWER_LIMIT, asking).await {
        Ok(Some(reply)) => BytesFrame::BulkString(reply),
        Ok(None) | Err(_) => BytesFrame::Error("ERR no answer from the agent".into()),
    }
}
