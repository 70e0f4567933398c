//! A small blocking RESP client (RESP2 and RESP3), for tests only.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long a reply may take before the test fails.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// One reply, of RESP2 or RESP3.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`, without the dash (RESP3's `!` as well)
    Error(String),
    /// `:1`
    Int(i64),
    /// `$3` (RESP3's `=` as well, its `txt:` included)
    Bulk(Vec<u8>),
    /// `*2`
    Array(Vec<Value>),
    /// `$-1`, `*-1`, `_`
    Null,
    /// `%1`: keys and values in turn
    Map(Vec<Value>),
    /// `~1`
    Set(Vec<Value>),
    /// `>2`
    Push(Vec<Value>),
    /// `,1.5`, as written
    Double(String),
    /// `#t`
    Bool(bool),
    /// `(123`, as written
    BigNumber(String),
    /// `|1`, the attribute's pairs in turn; the reply it belongs to follows
    Attribute(Vec<Value>),
}

impl Value {
    /// A bulk string.
    pub fn bulk(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    /// `+OK`.
    pub fn ok() -> Self {
        Self::Simple("OK".into())
    }

    /// The text of a simple string, bulk string or error; empty for everything else.
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        }
    }

    /// Whether this is an error whose line begins with `prefix`.
    pub fn is_error(&self, prefix: &str) -> bool {
        matches!(self, Self::Error(line) if line.starts_with(prefix))
    }
}

/// A connection; every read and write has a deadline of [`REPLY_TIMEOUT`] unless set otherwise.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects, or fails the test.
    #[track_caller]
    pub fn connect(addr: impl ToSocketAddrs) -> Self {
        Self::try_connect(addr).expect("a connection")
    }

    /// Connects.
    pub fn try_connect(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::over(TcpStream::connect(addr)?)
    }

    /// Speaks over a connection that is open already.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Changes how long a read may take.
    pub fn set_read_timeout(&self, timeout: Duration) {
        self.stream().set_read_timeout(Some(timeout)).unwrap();
    }

    /// The socket, for tests that set options on it or close one half.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Writes raw bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the bytes are taken");
    }

    /// Writes raw bytes.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends one command and reads one reply.
    #[track_caller]
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Value {
        self.try_command(args).expect("a reply")
    }

    /// Sends one command and reads one reply.
    pub fn try_command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Value> {
        self.try_send(&encode(args))?;
        self.try_read_reply()
    }

    /// Reads one reply.
    #[track_caller]
    pub fn read_reply(&mut self) -> Value {
        self.try_read_reply().expect("a reply")
    }

    /// Reads one reply; `UnexpectedEof` when the server closed, `WouldBlock` at the deadline.
    pub fn try_read_reply(&mut self) -> io::Result<Value> {
        let line = self.read_line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| broken(&line))?;
        Ok(match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Int(number(rest)?),
            "," => Value::Double(rest.to_owned()),
            "(" => Value::BigNumber(rest.to_owned()),
            "#" => Value::Bool(rest == "t"),
            "_" => Value::Null,
            "$" | "*" if rest == "-1" => Value::Null,
            "$" | "=" => Value::Bulk(self.read_bulk(rest)?),
            "!" => Value::Error(String::from_utf8_lossy(&self.read_bulk(rest)?).into_owned()),
            "*" => Value::Array(self.read_many(number(rest)?)?),
            "~" => Value::Set(self.read_many(number(rest)?)?),
            ">" => Value::Push(self.read_many(number(rest)?)?),
            "%" => Value::Map(self.read_many(number(rest)? * 2)?),
            "|" => Value::Attribute(self.read_many(number(rest)? * 2)?),
            _ => return Err(broken(&line)),
        })
    }

    /// Whether the server has closed the connection (or resets it); waits for at most the read timeout.
    pub fn is_closed(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn read_bulk(&mut self, length: &str) -> io::Result<Vec<u8>> {
        let length = usize::try_from(number(length)?).map_err(|_| broken(length))?;
        let mut bytes = vec![0; length + 2];
        self.reader.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn read_many(&mut self, count: i64) -> io::Result<Vec<Value>> {
        (0..count).map(|_| self.try_read_reply()).collect()
    }
}

/// Reads on until what was heard ends with `last`; how it went if it never does.
pub fn hear_until(stream: &mut TcpStream, last: &[u8], heard: &mut Vec<u8>) {
    let mut buffer = [0; 64 * 1024];
    while !heard.ends_with(last) {
        let instead: &[u8] = match stream.read(&mut buffer) {
            Ok(count) if count > 0 => {
                heard.extend_from_slice(&buffer[..count]);
                continue;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => b"<no answer>",
            // An end, or a reset: what was unread when it was closed.
            Ok(_) | Err(_) => b"<closed>",
        };
        heard.extend_from_slice(instead);
        return;
    }
}

/// A command as an array of bulk strings.
pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| broken(text))
}

fn broken(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP: {line:?}"))
}
