//! Clients that copy all data as a replica does (`redis-cli --rdb`, migration tools): SYNC, PSYNC and REPLCONF.
//!
//! ```text
//! client --REPLCONF--> kept      client --PSYNC--> a replica --bytes as they are-----> client
//!                                client --SYNC---> a replica --`copied`: without ours-> client
//!                                client --REPLCONF ACK--------> the same replica
//! ```
//! A copy is never taken from a master whose replicas acknowledge: there it would be a replica that is no member. Invariants:
//! from SYNC on the session asks nothing else of anybody, because what it hears is no RESP; of what the client says only
//! REPLCONF is passed on.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::close::CloseReason;
use super::copied::CopiedStream;
use super::dispatch::Outcome;
use super::session::{Park, Session};
use super::transaction::Transaction;
use crate::command::Command;
use crate::proxy::backend::{Login, Target, ask, connect_control, connect_to, exchange, put_own};
use crate::resp::{Args, RequestScanner, Scan};
use crate::topology::ShardIndex;

/// What a replica says of itself before it asks for data.
const OPTIONS: [&[u8]; 6] = [
    b"listening-port",
    b"ip-address",
    b"capa",
    b"version",
    b"rdb-only",
    b"rdb-filter-only",
];
/// REPLCONFs that are kept, and their bytes.
const SAID_MAX: usize = 16;
const SAID_BYTES_MAX: usize = 4 * 1024;
/// Bytes passed on at once.
const PART_BYTES: usize = 64 * 1024;
/// Unwritten bytes above which no more is read from the replica.
const UNWRITTEN_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of an unfinished request of the client.
const UNFINISHED_BYTES_MAX: usize = 4 * 1024;
/// How long a server may take to say what it is.
const ROLE_LIMIT: Duration = Duration::from_millis(500);
/// How often a silent copy looks whether its client was closed.
const LOOK: Duration = Duration::from_millis(500);

/// What the client said of itself as a replica.
#[derive(Debug, Default)]
pub(super) struct Said {
    requests: Vec<u8>,
    count: usize,
}

impl Session {
    /// Judges one of the words of a replica; all else that is refused stays so.
    pub(super) fn copying(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        let is_free = {
            let state = self.state();
            state.transaction == Transaction::None && state.feed.is_none() && state.pinned.is_none()
        };
        match &*command.name {
            _ if !is_free || self.worker.shard_count() > 1 => self.not_passed_on(command),
            "replconf" => self.speaks_as_replica(args, frame),
            "sync" | "psync" if self.state().window.unanswered() > 0 => Outcome::Park(Park::Drain),
            "sync" => self.begin_copy(frame, Some(CopiedStream::new())),
            "psync" => self.begin_copy(frame, None),
            _ => self.not_passed_on(command),
        }
    }

    fn speaks_as_replica(self: &Rc<Self>, args: &Args, frame: &[u8]) -> Outcome {
        let option = args.get(1).unwrap_or_default();
        let is = |word: &[u8]| option.eq_ignore_ascii_case(word);
        if is(b"ack") || is(b"getack") {
            // Redis does not answer these, and they mean nothing before there is a copy.
            return Outcome::Done;
        }
        if args.len().is_multiple_of(2) {
            return self.refuse(|out| out.extend_from_slice(b"-ERR syntax error\r\n"));
        }
        if !OPTIONS.iter().any(|known| is(known)) {
            return self.refuse(|out| {
                out.extend_from_slice(b"-ERR Unrecognized REPLCONF option: ");
                out.extend(option.iter().take(128).filter(|byte| !matches!(byte, b'\r' | b'\n')));
                out.extend_from_slice(b"\r\n");
            });
        }
        let kept = {
            let mut state = self.state();
            let said = &mut state.about().as_replica;
            let fits = said.count < SAID_MAX && said.requests.len() + frame.len() <= SAID_BYTES_MAX;
            if fits {
                said.requests.extend_from_slice(frame);
                said.count += 1;
            }
            fits
        };
        let reply: &[u8] = if kept {
            b"+OK\r\n"
        } else {
            b"-ERR too many REPLCONF\r\n"
        };
        self.refuse(|out| out.extend_from_slice(reply))
    }

    /// Without offsets the stream can be `seen` as a master without pointsman would have sent it.
    fn begin_copy(self: &Rc<Self>, frame: &[u8], seen: Option<CopiedStream>) -> Outcome {
        let (said, login) = {
            let mut state = self.state();
            let said = std::mem::take(&mut state.about().as_replica);
            state.about().copies = true;
            let login = Login {
                resp3: false,
                database: 0,
                ..state.login.clone()
            };
            // From here on this session reads for itself.
            state.park = Park::Verify;
            (said, login)
        };
        let (session, request) = (self.clone(), frame.to_vec());
        tokio::task::spawn_local(async move {
            match session.first_to_give(&login, &said, &request).await {
                Ok((source, begun)) => {
                    let end = session.copy(source, &begun, seen).await;
                    debug!(client = session.id, "a copy ends: {end:?}");
                    session.close(match end {
                        Ok(reason) => reason,
                        Err(_) => CloseReason::Network,
                    });
                }
                Err(line) => {
                    session.refuse(|out| out.extend_from_slice(&line));
                    {
                        let mut state = session.state();
                        state.about().copies = false;
                        state.park = Park::Open;
                    }
                    session.wake();
                }
            }
        });
        Outcome::Done
    }

    /// The first server that gives a copy, and what it has said; or the last error line.
    async fn first_to_give(&self, login: &Login, said: &Said, request: &[u8]) -> Result<(TcpStream, Vec<u8>), Vec<u8>> {
        let mut nodes = self.worker.nodes();
        let mut last = b"-ERR no replica can be copied from now\r\n".to_vec();
        if nodes.is_empty() {
            return Err(last);
        }
        // Where replicas acknowledge, the master has no others.
        let master = nodes.remove(0);
        let may_be_master = self.worker.shard(ShardIndex(0)).acks() == 0;
        for target in nodes.into_iter().chain(may_be_master.then_some(master)) {
            if !may_be_master && !self.is_replica(&target).await {
                continue;
            }
            match self.ask_for_copy(&target, login, said, request).await {
                Ok((source, begun)) if begun.starts_with(b"-") => {
                    debug!(client = self.id, node = %target.addr, "no copy from there");
                    drop(source);
                    last = begun;
                }
                Ok(given) => return Ok(given),
                Err(error) => debug!(client = self.id, node = %target.addr, "no copy from there: {error}"),
            }
        }
        Err(last)
    }

    /// Whether a server is a replica with a link to its master.
    async fn is_replica(&self, target: &Target) -> bool {
        let asking = async {
            let mut stream = connect_control(target, self.worker.connect_timeout()).await.ok()?;
            let mut request = Vec::new();
            put_own(&mut request, &[b"ROLE"]);
            ask(&mut stream, &request, 1, &target.addr).await.ok()
        };
        let reply = timeout(ROLE_LIMIT, asking).await.ok().flatten().unwrap_or_default();
        reply.starts_with(b"*5\r\n$5\r\nslave\r\n") && reply.windows(13).any(|part| part == b"$9\r\nconnected")
    }

    /// Asks one server, and waits for the beginning of what it says: an error line whole.
    async fn ask_for_copy(
        &self,
        target: &Target,
        login: &Login,
        said: &Said,
        request: &[u8],
    ) -> io::Result<(TcpStream, Vec<u8>)> {
        let mut source = connect_to(target, login, self.worker.connect_timeout())
            .await
            .map_err(io::Error::other)?;
        // What it does not know of these it does without, as the client would.
        exchange(&mut source, &said.requests, said.count, &target.addr)
            .await
            .map_err(io::Error::other)?;
        source.write_all(request).await?;
        let mut begun = Vec::new();
        loop {
            if self.is_closed() || self.has_left() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if let Ok(read) = timeout(LOOK, source.read_buf(&mut begun)).await
                && read? == 0
            {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // It says that it is there by empty lines, until the data is ready.
            let word = begun.iter().find(|byte| **byte != b'\n');
            match word {
                Some(b'-') if begun.ends_with(b"\r\n") => {
                    let line = begun.iter().skip_while(|byte| **byte == b'\n').copied().collect();
                    return Ok((source, line));
                }
                Some(b'-') if begun.len() < PART_BYTES => {}
                Some(_) => return Ok((source, begun)),
                None => {
                    self.pass_on(&begun);
                    begun.clear();
                }
            }
        }
    }

    /// Whether the client has closed its side.
    fn has_left(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        matches!(socket2::SockRef::from(self.socket()).peek(&mut byte), Ok(0))
    }

    /// Passes on what the server says, and the client's acknowledgements, until one of them ends.
    async fn copy(&self, source: TcpStream, begun: &[u8], mut seen: Option<CopiedStream>) -> io::Result<CloseReason> {
        let (mut reader, mut writer) = source.into_split();
        let mut pass_on = |bytes: &[u8]| match &mut seen {
            Some(seen) => {
                seen.take(bytes, &mut self.state().out);
                self.flush();
            }
            None => self.pass_on(bytes),
        };
        pass_on(begun);
        let (mut part, mut unfinished) = (vec![0; PART_BYTES], Vec::new());
        loop {
            while self.unwritten() > UNWRITTEN_BYTES_MAX && !self.is_closed() {
                // It is woken by a client that is closed, too, if not at once.
                let _elapsed = timeout(LOOK, self.socket().writable()).await;
                self.flush();
            }
            if self.is_closed() {
                return Ok(CloseReason::Killed);
            }
            tokio::select! {
                read = reader.read(&mut part) => match read? {
                    0 => return Ok(CloseReason::CopyEnded),
                    count => pass_on(&part[..count]),
                },
                readable = self.socket().readable() => {
                    readable?;
                    match self.heard_as_replica(&mut unfinished)? {
                        Heard::Nothing => {}
                        Heard::Requests(requests) => writer.write_all(&requests).await?,
                        Heard::End(reason) => return Ok(reason),
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn pass_on(&self, bytes: &[u8]) {
        self.state().out.extend_from_slice(bytes);
        self.flush();
    }

    /// What the client said since: whole REPLCONFs.
    fn heard_as_replica(&self, unfinished: &mut Vec<u8>) -> io::Result<Heard> {
        let mut read = [0; 1024];
        match self.socket().try_read(&mut read) {
            Ok(0) => return Ok(Heard::End(CloseReason::Left)),
            Ok(count) => unfinished.extend_from_slice(&read[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(error) => return Err(error),
        }
        let limits = self.worker.request_limits();
        let (mut spans, mut at) = (Vec::new(), 0);
        loop {
            let rest = &unfinished[at..];
            match RequestScanner::default().scan(rest, &mut spans, &limits) {
                Ok(Scan::Frame(length)) if Args::new(rest, &spans).name().eq_ignore_ascii_case(b"replconf") => {
                    at += length
                }
                Ok(Scan::Nothing(length)) if length > 0 => at += length,
                Ok(Scan::Nothing(_) | Scan::Incomplete(_)) if rest.len() <= UNFINISHED_BYTES_MAX => break,
                Ok(Scan::Frame(_) | Scan::Inline(_) | Scan::Nothing(_) | Scan::Incomplete(_)) | Err(_) => {
                    return Ok(Heard::End(CloseReason::Protocol));
                }
            }
        }
        let rest = unfinished.split_off(at);
        let requests = std::mem::replace(unfinished, rest);
        Ok(if requests.is_empty() {
            Heard::Nothing
        } else {
            Heard::Requests(requests)
        })
    }
}

/// What a client says that gets a copy.
enum Heard {
    Nothing,
    Requests(Vec<u8>),
    End(CloseReason),
}
