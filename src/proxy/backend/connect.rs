//! Opening a connection to Redis and bringing it into a session's state.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::target::{Pass, Target};
use crate::proxy::shared::{Identity, Unfit, identify};
use crate::resp::{Args, Heed, ReplyScanner, Stop, marked, put_i64};
use crate::topology::Addr;

/// A verified user name and password.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The user, `default` for a bare password.
    pub user: Vec<u8>,
    /// The password that this session gave.
    pub password: Vec<u8>,
}

/// What a connection is told before its first command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Login {
    /// Who it acts for; `None` is the default user.
    pub credential: Option<Rc<Credential>>,
    /// Which database it uses.
    pub database: u32,
    /// Whether it speaks RESP3.
    pub resp3: bool,
    /// Whether its reads leave the servers' idea of what is used alone (CLIENT NO-TOUCH, Redis 7.2 and later).
    pub no_touch: bool,
}

impl Login {
    /// The user it acts for.
    pub fn user(&self) -> &[u8] {
        self.credential
            .as_ref()
            .map_or(b"default", |credential| &credential.user)
    }

    /// Whether it acts for another user than the default one, whose rights may differ from node to node (rule A16).
    pub fn is_named_user(&self) -> bool {
        self.credential
            .as_ref()
            .is_some_and(|credential| credential.user != b"default")
    }
}

/// Why a connection could not be had.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The network says no.
    #[error("cannot connect to {0}: {1}")]
    Network(Addr, #[source] io::Error),
    /// Nothing was heard in time.
    #[error("{0} does not answer within {1:?}")]
    Silent(Addr, Duration),
    /// Redis says no, in its own words.
    #[error("{0} refused the login: {1}")]
    Refused(Addr, String),
    /// It is not of the epoch that topology means, in its own words.
    #[error("{0} does not take the proxy's own login: {1}")]
    NotOfEpoch(Addr, String),
    /// It is no replica that may be read from now.
    #[error("{0} cannot be read from: {1}")]
    Unfit(Addr, #[source] Unfit),
}

const NO_PASSWORD: &str = "-NOAUTH Authentication required.";
/// How long an idle connection to Redis goes unchecked.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Bytes of a handshake's replies that are read at most.
const HANDSHAKE_REPLY_BYTES_MAX: usize = 64 * 1024;

/// Connects within `limit` and logs in. Sets `TCP_NODELAY`, keepalive and `TCP_USER_TIMEOUT`.
pub async fn connect(addr: &Addr, login: &Login, limit: Duration) -> Result<TcpStream, ConnectError> {
    within(limit, addr, open(addr, None, login, limit)).await
}

/// The same, once the server has proven that it is of the target's epoch.
pub async fn connect_to(target: &Target, login: &Login, limit: Duration) -> Result<TcpStream, ConnectError> {
    within(
        limit,
        &target.addr,
        open(&target.addr, target.pass.as_deref(), login, limit),
    )
    .await
}

/// Connects within `limit` as nobody's: with the pass of the epoch, or not logged in where there is none. For questions
/// about connections and logins only.
pub async fn connect_control(target: &Target, limit: Duration) -> Result<TcpStream, ConnectError> {
    let opening = async {
        let mut stream = open_socket(&target.addr, limit).await?;
        if let Some(pass) = target.pass.as_deref() {
            show(&mut stream, pass, &target.addr).await?;
        }
        Ok(stream)
    };
    within(limit, &target.addr, opening).await
}

/// Connects within `limit`, and does not log in.
pub async fn connect_mute(addr: &Addr, limit: Duration) -> Result<TcpStream, ConnectError> {
    within(limit, addr, open_socket(addr, limit)).await
}

async fn within<T>(
    limit: Duration,
    addr: &Addr,
    opening: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(limit, opening)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Silent(addr.clone(), limit)))
}

/// How long what was sent to Redis may go without a sign from its host, by the limit of opening a connection: then the
/// connection is lost. Twice, so that agents who suspect a host after as long replace it first.
pub fn silence(limit: Duration) -> Duration {
    limit.saturating_mul(2)
}

async fn open_socket(addr: &Addr, limit: Duration) -> Result<TcpStream, ConnectError> {
    let network = |error| ConnectError::Network(addr.clone(), error);
    let stream = TcpStream::connect((addr.host(), addr.port())).await.map_err(network)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true).map_err(network)?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
        .map_err(network)?;
    socket.set_tcp_user_timeout(Some(silence(limit))).map_err(network)?;
    Ok(stream)
}

async fn open(addr: &Addr, pass: Option<&Pass>, login: &Login, limit: Duration) -> Result<TcpStream, ConnectError> {
    let mut stream = open_socket(addr, limit).await?;
    if let Some(pass) = pass {
        show(&mut stream, pass, addr).await?;
    }
    let early = settle_before_login(&mut stream, login, addr).await?;
    let (request, commands) = login_request(login, early, pass.is_some());
    if commands > 0 {
        log_in(&mut stream, &request, commands, addr)
            .await
            .map_err(|error| match error {
                // As it would have said to who shows no password at all.
                ConnectError::Refused(addr, line) if login.credential.is_none() && line.starts_with("-WRONGPASS") => {
                    ConnectError::Refused(addr, NO_PASSWORD.to_owned())
                }
                error => error,
            })?;
    }
    Ok(stream)
}

/// Shows the pass of an epoch; a refusal means another one.
async fn show(stream: &mut TcpStream, pass: &Pass, addr: &Addr) -> Result<(), ConnectError> {
    let mut request = Vec::new();
    put_own(&mut request, &[b"AUTH", pass.user.as_bytes(), pass.token.as_bytes()]);
    log_in(stream, &request, 1, addr).await.map_err(|error| match error {
        ConnectError::Refused(addr, line) => ConnectError::NotOfEpoch(addr, line),
        error => error,
    })
}

/// Sends what begins a connection in one write; nothing else may be under way. An AUTH is the first of it.
///
/// From 7.2 on Redis (and Valkey) swallows the refusal of an AUTH if it owes the connection another reply at that moment
/// (<https://github.com/redis/redis/issues/15640>): so nothing is sent before its answer is here, or counted on after it.
async fn log_in(stream: &mut TcpStream, request: &[u8], commands: u32, addr: &Addr) -> Result<(), ConnectError> {
    let refuses = |_, reply: &[u8]| reply.starts_with(b"-");
    let replies = exchange_until(stream, request, commands as usize, addr, refuses).await?;
    match replies.last() {
        Some(reply) if reply.starts_with(b"-") => {
            let line = String::from_utf8_lossy(reply).trim_end().to_owned();
            Err(ConnectError::Refused(addr.clone(), line))
        }
        _ => Ok(()),
    }
}

/// Sends `request` of `commands` commands and returns the bytes of all replies; an error reply fails it.
pub async fn ask(stream: &mut TcpStream, request: &[u8], commands: u32, addr: &Addr) -> Result<Vec<u8>, ConnectError> {
    ask_for(stream, request, commands, addr, HANDSHAKE_REPLY_BYTES_MAX).await
}

/// Sends `request` of `count` commands and returns their replies one by one, whatever they are.
pub async fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    count: usize,
    addr: &Addr,
) -> Result<Vec<Vec<u8>>, ConnectError> {
    exchange_until(stream, request, count, addr, |_, _| false).await
}

/// The same, but no reply is waited for after one of which `is_last` says so; the first is number 0.
pub async fn exchange_until(
    stream: &mut TcpStream,
    request: &[u8],
    count: usize,
    addr: &Addr,
    is_last: impl Fn(usize, &[u8]) -> bool,
) -> Result<Vec<Vec<u8>>, ConnectError> {
    let network = |error| ConnectError::Network(addr.clone(), error);
    stream.write_all(request).await.map_err(network)?;
    let (mut scanner, mut unread, mut at) = (ReplyScanner::default(), Vec::new(), 0);
    let (mut replies, mut from) = (Vec::with_capacity(count), 0);
    while replies.len() < count {
        let scanned = scanner.scan(&unread[at..], 1, Heed::Nothing);
        at += scanned.used;
        match scanned.stop {
            Stop::Counted => {
                let reply = unread[from..at].to_vec();
                from = at;
                let ends = is_last(replies.len(), &reply);
                replies.push(reply);
                if ends {
                    break;
                }
            }
            Stop::Starved => {
                let full = unread.len() > HANDSHAKE_REPLY_BYTES_MAX;
                if stream.read_buf(&mut unread).await.map_err(network)? == 0 || full {
                    return Err(network(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            Stop::Noted | Stop::Push | Stop::Malformed => return Err(network(io::ErrorKind::InvalidData.into())),
        }
    }
    Ok(replies)
}

/// As [`ask`], for replies that may be up to `bytes_max` long.
pub async fn ask_for(
    stream: &mut TcpStream,
    request: &[u8],
    commands: u32,
    addr: &Addr,
    bytes_max: usize,
) -> Result<Vec<u8>, ConnectError> {
    let network = |error| ConnectError::Network(addr.clone(), error);
    stream.write_all(request).await.map_err(network)?;
    let (mut scanner, mut replies, mut left) = (ReplyScanner::default(), Vec::new(), commands);
    let mut scanned_to = 0;
    loop {
        let from = replies.len();
        if stream.read_buf(&mut replies).await.map_err(network)? == 0 || from > bytes_max {
            return Err(network(io::ErrorKind::UnexpectedEof.into()));
        }
        let scanned = scanner.scan(&replies[scanned_to..], left, Heed::Errors);
        scanned_to += scanned.used;
        left -= scanned.replies;
        match scanned.stop {
            Stop::Counted => return Ok(replies),
            Stop::Starved => {}
            Stop::Noted if !replies[scanned_to..].ends_with(b"\n") => {}
            Stop::Noted => {
                let line = String::from_utf8_lossy(&replies[scanned_to..]);
                return Err(ConnectError::Refused(
                    addr.clone(),
                    line.lines().next().unwrap_or_default().to_owned(),
                ));
            }
            Stop::Push | Stop::Malformed => return Err(network(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// Asks, on the very connection that reads are to go over, which replica it leads to and whether that is fit
/// (rule A11).
pub async fn identify_replica(stream: &mut TcpStream, addr: &Addr, limit: Duration) -> Result<Identity, ConnectError> {
    let mut request = Vec::new();
    for section in [&b"server"[..], b"persistence", b"replication"] {
        put_own(&mut request, &[b"INFO", section]);
    }
    let reply = timeout(limit, ask(stream, &request, 3, addr))
        .await
        .unwrap_or_else(|_| Err(ConnectError::Silent(addr.clone(), limit)))?;
    identify(&String::from_utf8_lossy(&reply)).map_err(|unfit| ConnectError::Unfit(addr.clone(), unfit))
}

/// Asks which life a connection leads to; `None` if the user may not know.
pub async fn ask_life(stream: &mut TcpStream, addr: &Addr, limit: Duration) -> Result<Option<String>, ConnectError> {
    let mut request = Vec::new();
    put_own(&mut request, &[b"INFO", b"server"]);
    let reply = timeout(limit, ask(stream, &request, 1, addr))
        .await
        .unwrap_or_else(|_| Err(ConnectError::Silent(addr.clone(), limit)));
    match reply {
        Ok(info) => {
            let info = String::from_utf8_lossy(&info);
            let life = info.lines().find_map(|line| line.strip_prefix("run_id:"));
            Ok(life.map(str::to_owned))
        }
        Err(ConnectError::Refused(..)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a connection is already before it logs in.
#[derive(Clone, Copy, Debug, Default)]
struct Early {
    resp3: bool,
    database: bool,
}

/// A named user may lack the right to SELECT or to say HELLO, and yet use a connection on which that was done before its
/// AUTH, as a client's own would be. So it is tried as whoever the connection is at first; refusals are no matter.
async fn settle_before_login(stream: &mut TcpStream, login: &Login, addr: &Addr) -> Result<Early, ConnectError> {
    let mut early = Early::default();
    if !login.is_named_user() {
        return Ok(early);
    }
    let database = login.database.to_string();
    for (wanted, done, words) in [
        (login.resp3, &mut early.resp3, [&b"HELLO"[..], b"3"]),
        (
            login.database != 0,
            &mut early.database,
            [b"SELECT", database.as_bytes()],
        ),
    ] {
        if wanted {
            let mut request = Vec::new();
            put_own(&mut request, &words);
            *done = match ask(stream, &request, 1, addr).await {
                Ok(_) => true,
                Err(ConnectError::Refused(..)) => false,
                Err(error) => return Err(error),
            };
        }
    }
    Ok(early)
}

fn login_request(login: &Login, early: Early, is_somebody: bool) -> (Vec<u8>, u32) {
    let (mut request, mut commands) = (Vec::new(), 0);
    if let Some(credential) = &login.credential {
        put_own(&mut request, &[b"AUTH", &credential.user, &credential.password]);
        commands += 1;
    } else if is_somebody {
        // Back to who every connection is at first; a user without a password takes any.
        put_own(&mut request, &[b"AUTH", b"default", b"none"]);
        commands += 1;
    }
    if login.resp3 && !early.resp3 {
        put_own(&mut request, &[b"HELLO", b"3"]);
        commands += 1;
    }
    if login.no_touch {
        put_own(&mut request, &[b"CLIENT", b"NO-TOUCH", b"ON"]);
        commands += 1;
    }
    if login.database != 0 && !early.database {
        put_own(&mut request, &[b"SELECT", login.database.to_string().as_bytes()]);
        commands += 1;
    }
    (request, commands)
}

/// A request with other words in some places.
pub fn with_words(args: &Args, changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut words: Vec<&[u8]> = args.iter().collect();
    for (at, word) in changes {
        words[*at] = word;
    }
    let mut request = Vec::new();
    put_request(&mut request, &words);
    request
}

/// Appends one request of pointsman's own, with its mark: one that clients are not to see in MONITOR and SLOWLOG.
pub fn put_own(out: &mut Vec<u8>, args: &[&[u8]]) {
    let Some((name, rest)) = args.split_first() else { return };
    let name = marked(name);
    let words: Vec<&[u8]> = std::iter::once(&name[..]).chain(rest.iter().copied()).collect();
    put_request(out, &words);
}

/// Appends one request.
pub fn put_request(out: &mut Vec<u8>, args: &[&[u8]]) {
    let header = |kind: u8, count: usize, out: &mut Vec<u8>| {
        out.push(kind);
        put_i64(out, i64::try_from(count).unwrap_or(i64::MAX));
        out.extend_from_slice(b"\r\n");
    };
    header(b'*', args.len(), out);
    for arg in args {
        header(b'$', arg.len(), out);
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}
