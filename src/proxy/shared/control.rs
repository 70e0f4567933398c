//! The sampler's own connection to a node, in RESP2.
//!
//! Owns: connecting, logging in, asking for a sample. Refuses: retrying and deciding. Invariant: every question has a
//! deadline, and after one that was missed or broken the connection is not used again, so that an answer never answers
//! another question. One connection is one process: its run id is asked once.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use redis_protocol::codec::Resp2;
use redis_protocol::resp2::types::BytesFrame;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::info::{self, Replication};
use super::stream::ClockReading;
use crate::clock;
use crate::resp::marked;
use crate::topology::{Addr, RunId};

/// User and password for the sampler; no user means the default one, no password no login.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ControlLogin {
    /// The ACL user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

impl fmt::Debug for ControlLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlLogin")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Why a node gives no samples. All of them mean: close, and connect again later.
#[derive(Debug, Error)]
pub(super) enum ControlError {
    #[error("{0} cannot be reached: {1}")]
    Network(Addr, String),
    #[error("{0} does not answer within {1:?}")]
    Silent(Addr, Duration),
    #[error("{0} refuses: {1}")]
    Refused(Addr, String),
    #[error("{0} answers something that is no INFO or TIME")]
    Unexpected(Addr),
}

/// What one question brought.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) replication: Replication,
    pub(super) clock: ClockReading,
}

/// See the file's note.
#[derive(Debug)]
pub(super) struct Control {
    addr: Addr,
    framed: Framed<TcpStream, Resp2>,
    run_id: RunId,
}

impl Control {
    /// Connects, logs in and asks who is there, all within `limit`.
    pub(super) async fn open(addr: &Addr, login: &ControlLogin, limit: Duration) -> Result<Self, ControlError> {
        let opening = async {
            let network = |error: std::io::Error| ControlError::Network(addr.clone(), error.to_string());
            let stream = TcpStream::connect((addr.host(), addr.port())).await.map_err(network)?;
            stream.set_nodelay(true).map_err(network)?;
            let mut control = Self {
                addr: addr.clone(),
                framed: Framed::new(stream, Resp2::default()),
                run_id: RunId::from(""),
            };
            if let Some(password) = &login.password {
                let user = login.user.as_deref().unwrap_or("default");
                control.ask(&[&["AUTH", user, password]]).await?;
            }
            let replies = control.ask(&[&["INFO", "server"]]).await?;
            let run_id = replies.first().and_then(text).and_then(info::run_id);
            control.run_id = run_id.ok_or_else(|| ControlError::Unexpected(addr.clone()))?;
            Ok(control)
        };
        timeout(limit, opening)
            .await
            .unwrap_or_else(|_| Err(ControlError::Silent(addr.clone(), limit)))
    }

    /// The process at the other end.
    pub(super) fn run_id(&self) -> &RunId {
        &self.run_id
    }

    /// Asks for role, stream, offset and time in one write.
    pub(super) async fn sample(&mut self, limit: Duration) -> Result<Answer, ControlError> {
        let silent = ControlError::Silent(self.addr.clone(), limit);
        let asked_ms = clock::monotonic_ms();
        let questions: [&[&str]; 2] = [&["TIME"], &["INFO", "replication"]];
        let replies = timeout(limit, self.ask(&questions)).await.map_err(|_| silent)??;
        let answered_ms = clock::monotonic_ms();
        let unexpected = || ControlError::Unexpected(self.addr.clone());
        let [time, info] = replies.as_slice() else {
            return Err(unexpected());
        };
        Ok(Answer {
            replication: text(info).and_then(info::replication).ok_or_else(unexpected)?,
            clock: ClockReading {
                server_ms: time_ms(time).ok_or_else(unexpected)?,
                asked_ms,
                answered_ms,
            },
        })
    }

    async fn ask(&mut self, commands: &[&[&str]]) -> Result<Vec<BytesFrame>, ControlError> {
        for command in commands {
            self.framed
                .feed(request(command))
                .await
                .map_err(|error| self.lost(&error))?;
        }
        let flushed = SinkExt::<BytesFrame>::flush(&mut self.framed).await;
        flushed.map_err(|error| self.lost(&error))?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            match self.framed.next().await {
                None => return Err(ControlError::Network(self.addr.clone(), "closed by redis".to_owned())),
                Some(Err(error)) => return Err(self.lost(&error)),
                Some(Ok(BytesFrame::Error(line))) => {
                    return Err(ControlError::Refused(self.addr.clone(), line.to_string()));
                }
                Some(Ok(frame)) => replies.push(frame),
            }
        }
        Ok(replies)
    }

    fn lost(&self, error: &redis_protocol::error::RedisProtocolError) -> ControlError {
        ControlError::Network(self.addr.clone(), error.to_string())
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

fn text(frame: &BytesFrame) -> Option<&str> {
    match frame {
        BytesFrame::BulkString(bytes) | BytesFrame::SimpleString(bytes) => std::str::from_utf8(bytes).ok(),
        BytesFrame::Error(_) | BytesFrame::Integer(_) | BytesFrame::Array(_) | BytesFrame::Null => None,
    }
}

/// TIME's seconds and microseconds.
fn time_ms(frame: &BytesFrame) -> Option<u64> {
    let BytesFrame::Array(parts) = frame else { return None };
    let number = |at: usize| parts.get(at).and_then(text)?.parse::<u64>().ok();
    number(0)?.checked_mul(1_000)?.checked_add(number(1)? / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_in_milliseconds() {
        assert_eq!(time_ms(&request(&["1700000000", "123456"])), Some(1_700_000_000_123));
        for strange in [request(&["1700000000"]), request(&["x", "1"]), BytesFrame::Null] {
            assert_eq!(time_ms(&strange), None);
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let login = ControlLogin {
            user: Some("px".to_owned()),
            password: Some("secret".to_owned()),
        };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
