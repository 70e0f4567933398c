//! Looking at one Redis, again and again.
//!
//! Owns: [`Probe`], one connection that asks INFO and the carried epoch each interval, the watch on the process where
//! it is local, and the second opinion on a silent one. Refuses: verdicts (that is
//! `machine::detector`). Invariants: an end of file alone is never reported as death, only a refused
//! reconnect or a dead process is; whatever Redis answers, it is alive.
//!
//! A paused Redis (`CLIENT PAUSE ALL`) answers no command, and a stopped one neither. What tells them
//! apart is a frame that is no command: a living event loop refuses it at once, paused or not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use crate::clock;
use crate::topology::Addr;

use super::beat::Beat;
use super::info;
use super::machine::detector::Seen;
use super::process::Process;
use super::redis::{Connection, Login, RedisError, text, texts};

/// How long a living event loop may take to refuse nonsense.
const NUDGE_LIMIT: Duration = Duration::from_millis(100);
/// A frame that is no command.
const NONSENSE: &[u8] = b"*1\r\n$x\r\n";

/// Looks at the Redis at one address.
#[derive(Debug)]
pub struct Probe {
    addr: Addr,
    login: Login,
    beat: Beat,
    /// Whether the process may be looked for on this machine.
    local: bool,
    connection: Option<Connection>,
    process: Option<Arc<Process>>,
    /// How much memory it held at the last reading.
    resident_bytes: Option<u64>,
    next: Instant,
}

impl Probe {
    /// A probe that looks at each `beat`, and at once for the first time. `local`: Redis runs on this machine, beside this agent.
    pub fn new(addr: Addr, login: Login, beat: Beat, local: bool) -> Self {
        Self {
            addr,
            login,
            beat,
            local,
            connection: None,
            process: None,
            resident_bytes: None,
            next: clock::now(),
        }
    }

    /// Waits for the next look, or for the death of the process if that comes first, and says what was
    /// seen. May be dropped at any point: the connection is then opened anew.
    pub async fn look(&mut self) -> Seen {
        let (process, resident_bytes) = (self.process.clone(), self.resident_bytes);
        let death = || death_of(process.as_deref(), resident_bytes);
        let next = self.next;
        tokio::select! {
            biased;
            () = death() => self.buried(),
            () = sleep_until(next.into()) => {
                let asked_at = clock::now();
                self.next = self.beat.after(asked_at);
                tokio::select! {
                    biased;
                    () = death() => self.buried(),
                    seen = self.ask(asked_at) => seen,
                }
            }
        }
    }

    fn buried(&mut self) -> Seen {
        self.process = None;
        self.connection = None;
        self.next = self.beat.after(clock::now());
        Seen::Dead
    }

    async fn ask(&mut self, asked_at: Instant) -> Seen {
        let mut last = RedisError::Unexpected("nothing");
        // A connection that broke is no sign of death: what a new one meets is.
        for _ in 0..2 {
            match self.read(asked_at).await {
                Ok(seen) => return seen,
                Err(error @ RedisError::Lost(_)) => last = error,
                Err(error) => {
                    last = error;
                    break;
                }
            }
        }
        match last {
            RedisError::Refused => Seen::Dead,
            RedisError::Says(_) | RedisError::Unexpected(_) => Seen::Alive,
            RedisError::Timeout | RedisError::Lost(_) => self.nudge().await,
        }
    }

    async fn read(&mut self, asked_at: Instant) -> Result<Seen, RedisError> {
        let limit = self.beat.interval().max(Duration::from_millis(20));
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.addr, &self.login, limit).await?,
        };
        let replies = connection
            .ask_all(&[&["INFO"], &["CONFIG", "GET", "masteruser"]], limit)
            .await?;
        let [reply, setting] = replies.as_slice() else {
            return Err(RedisError::Unexpected("INFO"));
        };
        let reply = text(reply).ok_or(RedisError::Unexpected("INFO"))?;
        let setting = texts(setting).get(1).copied().unwrap_or("").to_owned();
        let facts = info::facts(reply, &setting).ok_or(RedisError::Unexpected("INFO"))?;
        if self.local {
            self.resident_bytes = info::resident_bytes(reply);
            if self.process.as_ref().is_none_or(|process| process.dead()) {
                let found = info::process(reply).and_then(|(pid, uptime)| Process::find(pid, uptime));
                self.process = found.map(Arc::new);
            }
        }
        self.connection = Some(connection);
        Ok(Seen::Up { facts, asked_at })
    }

    /// Whether the event loop of a silent Redis still turns.
    async fn nudge(&self) -> Seen {
        let nudging = async {
            let mut stream = TcpStream::connect((self.addr.host(), self.addr.port())).await?;
            stream.write_all(NONSENSE).await?;
            stream.read(&mut [0; 64]).await
        };
        match timeout(NUDGE_LIMIT, nudging).await {
            Ok(Ok(read)) if read > 0 => Seen::Alive,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Seen::Dead,
            Ok(Ok(_) | Err(_)) | Err(_) => Seen::Silent,
        }
    }
}

/// Ends when the process is dead; never, if there is none to look at.
async fn death_of(process: Option<&Process>, resident_bytes: Option<u64>) {
    match process {
        Some(process) => process.death(resident_bytes).await,
        None => std::future::pending().await,
    }
}
