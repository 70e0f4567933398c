//! One control connection to a Redis, in RESP2.
//!
//! Owns: connecting, asking, the errors that matter to an agent. Refuses: retrying and deciding. Invariant:
//! every question has a deadline, and after one that was missed the connection is not used again, so a reply
//! never answers another question.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use redis_protocol::codec::Resp2;
use redis_protocol::resp2::types::BytesFrame;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use crate::resp::marked;
use crate::topology::Addr;

/// Why Redis did not answer as hoped.
#[derive(Debug, Error)]
pub enum RedisError {
    /// Nobody listens there: the process is gone (or was never started).
    #[error("connection refused")]
    Refused,
    /// No answer in time. What was sent may still be carried out.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke. What was sent may have been carried out.
    #[error("connection lost: {0}")]
    Lost(String),
    /// Redis answered with an error line: it is alive.
    #[error("redis says: {0}")]
    Says(String),
    /// Redis answered something that is no answer to this.
    #[error("unexpected answer to {0}")]
    Unexpected(&'static str),
}

/// User and password for Redis; no user means the `default` one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// The ACL user, if not `default`.
    pub user: Option<String>,
    /// The password, if one is needed.
    pub password: Option<String>,
}

/// See the module's note.
#[derive(Debug)]
pub struct Connection {
    framed: Framed<TcpStream, Resp2>,
}

impl Connection {
    /// Connects within `limit` and logs in if there is something to log in with.
    pub async fn open(addr: &Addr, login: &Login, limit: Duration) -> Result<Self, RedisError> {
        let connecting = TcpStream::connect((addr.host(), addr.port()));
        let stream = timeout(limit, connecting).await.map_err(|_| RedisError::Timeout)?;
        let stream = stream.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => RedisError::Refused,
            _ => RedisError::Lost(error.to_string()),
        })?;
        stream
            .set_nodelay(true)
            .map_err(|error| RedisError::Lost(error.to_string()))?;
        let mut connection = Self {
            framed: Framed::new(stream, Resp2::default()),
        };
        if let Some(password) = &login.password {
            let user = login.user.as_deref().unwrap_or("default");
            connection.ask(&["AUTH", user, password], limit).await?;
        }
        Ok(connection)
    }

    /// Asks one command and waits for its reply; an error line is an error.
    pub async fn ask(&mut self, command: &[&str], limit: Duration) -> Result<BytesFrame, RedisError> {
        let mut replies = self.ask_all(&[command], limit).await?;
        replies.pop().ok_or(RedisError::Unexpected("a command"))
    }

    /// Sends commands in one write and collects their replies; the first error line is an error.
    pub async fn ask_all(&mut self, commands: &[&[&str]], limit: Duration) -> Result<Vec<BytesFrame>, RedisError> {
        timeout(limit, self.exchange(commands))
            .await
            .map_err(|_| RedisError::Timeout)?
    }

    /// Waits until the other end closes. Nothing was asked, so anything that comes instead makes the connection
    /// useless as well.
    pub async fn ended(&mut self) {
        let _end = self.framed.next().await;
    }

    async fn exchange(&mut self, commands: &[&[&str]]) -> Result<Vec<BytesFrame>, RedisError> {
        let lost = |error: redis_protocol::error::RedisProtocolError| RedisError::Lost(error.to_string());
        for command in commands {
            self.framed.feed(request(command)).await.map_err(lost)?;
        }
        SinkExt::<BytesFrame>::flush(&mut self.framed).await.map_err(lost)?;
        let mut replies = Vec::with_capacity(commands.len());
        let mut refusal = None;
        for _ in commands {
            match self.framed.next().await {
                None => return Err(RedisError::Lost("closed by redis".to_owned())),
                Some(Err(error)) => return Err(lost(error)),
                Some(Ok(BytesFrame::Error(line))) => {
                    refusal.get_or_insert(RedisError::Says(line.to_string()));
                }
                Some(Ok(frame)) => replies.push(frame),
            }
        }
        refusal.map_or(Ok(replies), Err)
    }
}

/// A request with the mark of pointsman's own.
fn request(command: &[&str]) -> BytesFrame {
    let parts = command.iter().enumerate().map(|(at, part)| match at {
        0 => marked(part.as_bytes()).into(),
        _ => Bytes::copy_from_slice(part.as_bytes()),
    });
    BytesFrame::Array(parts.map(BytesFrame::BulkString).collect())
}

/// The text of a reply, if it is one.
pub fn text(frame: &BytesFrame) -> Option<&str> {
    match frame {
        BytesFrame::BulkString(bytes) | BytesFrame::SimpleString(bytes) => std::str::from_utf8(bytes).ok(),
        BytesFrame::Error(_) | BytesFrame::Integer(_) | BytesFrame::Array(_) | BytesFrame::Null => None,
    }
}

/// The texts of an array reply; others are left out.
pub fn texts(frame: &BytesFrame) -> Vec<&str> {
    match frame {
        BytesFrame::Array(frames) => frames.iter().filter_map(text).collect(),
        BytesFrame::BulkString(_)
        | BytesFrame::SimpleString(_)
        | BytesFrame::Error(_)
        | BytesFrame::Integer(_)
        | BytesFrame::Null => Vec::new(),
    }
}
