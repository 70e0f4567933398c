//! The loader's connection to one node.
//!
//! Invariant: every question has a deadline, and after one that was missed or broken the connection is not used again.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::library::{Batch, Digest};
use crate::proxy::backend::{ConnectError, ask, put_own};
use crate::proxy::shared::ControlLogin;
use crate::resp::{Heed, ReplyScanner, Stop};
use crate::topology::{Addr, RunId};

/// How long opening a connection, or a batch of scripts, may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Bytes of its replies that are read at most.
const REPLIES_BYTES_MAX: usize = 64 * 1024;

/// Why a node gets no scripts now. All of them mean: close, and connect again later.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0} does not say which life it is in")]
    Nameless(Addr),
    #[error("{0} closed the connection")]
    Closed(Addr),
    #[error("{0} does not answer within {ANSWER_MAX:?}")]
    Silent(Addr),
    #[error("{0} refuses scripts: {1}")]
    Refused(Addr, String),
}

/// What a node made of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// It has it.
    Digest(Digest),
    /// It cannot read it.
    Unreadable,
}

/// A connection to a node that said which life it is in.
#[derive(Debug)]
pub(super) struct Link {
    addr: Addr,
    stream: TcpStream,
    pub(super) life: RunId,
}

impl Link {
    /// Connects, logs in and asks who is there.
    pub(super) async fn open(addr: &Addr, login: &ControlLogin) -> Result<Self, LinkError> {
        let silent = LinkError::Silent(addr.clone());
        timeout(ANSWER_MAX, Self::open_unbounded(addr, login))
            .await
            .map_err(|_| silent)?
    }

    async fn open_unbounded(addr: &Addr, login: &ControlLogin) -> Result<Self, LinkError> {
        let network = |error| ConnectError::Network(addr.clone(), error);
        let mut stream = TcpStream::connect((addr.host(), addr.port())).await.map_err(network)?;
        stream.set_nodelay(true).map_err(network)?;
        let (mut request, mut commands) = (Vec::new(), 1);
        if let Some(password) = &login.password {
            let user = login.user.as_deref().unwrap_or("default");
            put_own(&mut request, &[b"AUTH", user.as_bytes(), password.as_bytes()]);
            commands += 1;
        }
        put_own(&mut request, &[b"INFO", b"server"]);
        let info = ask(&mut stream, &request, commands, addr).await?;
        let info = String::from_utf8_lossy(&info);
        let life = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(Self {
            addr: addr.clone(),
            stream,
            life: RunId::from(life.ok_or_else(|| LinkError::Nameless(addr.clone()))?),
        })
    }

    /// Loads bodies, in order.
    pub(super) async fn load(&mut self, batch: &Batch) -> Result<Vec<Made>, LinkError> {
        let silent = LinkError::Silent(self.addr.clone());
        timeout(ANSWER_MAX, self.exchange(batch)).await.map_err(|_| silent)?
    }

    /// Returns when the node is gone.
    pub(super) async fn closed(&mut self) -> LinkError {
        let mut unasked = [0; 1];
        // Nothing comes that was not asked for, so anything that is read is the end.
        let _ = self.stream.read(&mut unasked).await;
        LinkError::Closed(self.addr.clone())
    }

    async fn exchange(&mut self, batch: &Batch) -> Result<Vec<Made>, LinkError> {
        let closed = || LinkError::Closed(self.addr.clone());
        let mut request = Vec::new();
        for (_, body) in batch {
            put_own(&mut request, &[b"SCRIPT", b"LOAD", body]);
        }
        self.stream.write_all(&request).await.map_err(|_| closed())?;
        let (mut scanner, mut replies, mut at, mut began) = (ReplyScanner::default(), Vec::new(), 0, 0);
        let mut made = Vec::with_capacity(batch.len());
        while made.len() < batch.len() {
            let scanned = scanner.scan(&replies[at..], 1, Heed::Nothing);
            at += scanned.used;
            match scanned.stop {
                Stop::Counted => {
                    made.push(read(&replies[began..at]).map_err(|line| LinkError::Refused(self.addr.clone(), line))?);
                    began = at;
                }
                Stop::Starved if replies.len() < REPLIES_BYTES_MAX => {
                    if self.stream.read_buf(&mut replies).await.map_err(|_| closed())? == 0 {
                        return Err(closed());
                    }
                }
                Stop::Starved | Stop::Noted | Stop::Push | Stop::Malformed => return Err(closed()),
            }
        }
        Ok(made)
    }
}

/// What a reply to SCRIPT LOAD says; an error is the line, if it is about the node and not about the script.
fn read(reply: &[u8]) -> Result<Made, String> {
    let digest = reply
        .strip_prefix(b"$40\r\n")
        .and_then(|rest| rest.strip_suffix(b"\r\n"));
    if let Some(digest) = digest.and_then(|digest| Digest::try_from(digest).ok()) {
        return Ok(Made::Digest(digest));
    }
    // "-ERR Error compiling script (new function): ..."
    if reply.starts_with(b"-ERR Error compiling") {
        return Ok(Made::Unreadable);
    }
    Err(String::from_utf8_lossy(reply).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_read_a_script_is_told_from_one_that_takes_none() {
        let digest = [b'a'; 40];
        let reply = [b"$40\r\n".as_slice(), &digest, b"\r\n"].concat();
        assert_eq!(read(&reply), Ok(Made::Digest(digest)));
        assert_eq!(
            read(b"-ERR Error compiling script (new function): x\r\n"),
            Ok(Made::Unreadable)
        );
        assert_eq!(
            read(b"-NOAUTH Authentication required.\r\n"),
            Err("-NOAUTH Authentication required.".to_owned())
        );
    }
}
