//! What a client that asked with SYNC sees of a replica's stream: what a master without pointsman would have sent.
//!
//! ```text
//! replica --$length, RDB, commands--> CopiedStream --$length, RDB, commands without ours--> client
//! ```
//! Acknowledgements leave their marks in the stream, and a replica, other than a master, does not begin it with a SELECT.
//! SYNC knows no offsets, so that commands may be left out; a stream that PSYNC began is none of this file's.
//! Pure. Invariants: a command is shown whole or not at all, in the database it was executed in; from the first byte on
//! that cannot be read all is passed on as it is.

use crate::proxy::backend::put_request;
use crate::resp::{
    ARGUMENTS_MAX_LATER, Args, FrameStream, OWN_CHANNELS, RequestLimits, RequestScanner, Scan, Span, is_marked,
    parse_i64,
};

/// The longest line that says how long the data is.
const LENGTH_LINE_MAX: usize = 64;
/// How much of the data is looked at for the database that the stream begins in.
const PREFACE_BYTES: usize = 1024;
/// The field of the data that says so.
const DATABASE_FIELD: &[u8] = b"\x0erepl-stream-db";
/// A command that is longer is not collected.
const COLLECTED_BYTES_MAX: usize = 64 * 1024;
const LIMITS: RequestLimits = RequestLimits {
    bulk_bytes_max: u32::MAX as u64,
    arguments_max: ARGUMENTS_MAX_LATER,
    authenticated: true,
};

/// A stream on its way to the client.
#[derive(Debug)]
pub(super) struct CopiedStream {
    at: At,
    /// What is looked at but not whole yet.
    pending: Vec<u8>,
    /// The database of the next command, and that of which the client knows.
    database: Option<i64>,
    shown: Option<i64>,
}

#[derive(Debug)]
enum At {
    /// The line that says how long the data is; then `Data`.
    Length,
    /// So many bytes of data are to come; then `Command`.
    Data(u64),
    /// A command that is not whole.
    Command,
    /// Within a long command; then `Command`.
    Inside(FrameStream),
    /// What cannot be read is passed on for good.
    Opaque,
}

impl CopiedStream {
    pub(super) fn new() -> Self {
        Self {
            at: At::Length,
            pending: Vec::new(),
            database: None,
            shown: None,
        }
    }

    /// Takes bytes of the stream and gives what the client is to see of them.
    pub(super) fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Length => bytes = self.length(bytes, out),
                At::Data(left) => {
                    let part = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (data, rest) = bytes.split_at(part);
                    *left -= part as u64;
                    let ends = *left == 0;
                    self.data(data, ends);
                    out.extend_from_slice(data);
                    bytes = rest;
                }
                At::Command => {
                    self.pending.extend_from_slice(bytes);
                    bytes = &[];
                    self.commands(out);
                }
                At::Inside(frame) => {
                    let Ok((used, ends)) = frame.feed(bytes, &LIMITS) else {
                        self.at = At::Opaque;
                        continue;
                    };
                    out.extend_from_slice(&bytes[..used]);
                    bytes = &bytes[used..];
                    if ends {
                        self.at = At::Command;
                    }
                }
                At::Opaque => {
                    out.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
    }

    /// Looks for the length of the data; empty lines before it say that it is being made.
    fn length<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(bytes.len(), |at| at + 1);
        let (part, rest) = bytes.split_at(end);
        out.extend_from_slice(part);
        self.pending.extend_from_slice(part);
        let line = self.pending.as_slice();
        if line.ends_with(b"\n") {
            let length = line.trim_ascii().strip_prefix(b"$").and_then(parse_i64);
            self.at = match length.and_then(|length| u64::try_from(length).ok()) {
                _ if line.trim_ascii().is_empty() => At::Length,
                Some(length) if length > 0 => At::Data(length),
                // Up to a mark that may be anywhere.
                Some(_) | None => At::Opaque,
            };
            self.pending.clear();
        } else if line.len() > LENGTH_LINE_MAX {
            self.at = At::Opaque;
            self.pending.clear();
        }
        rest
    }

    fn data(&mut self, data: &[u8], ends: bool) {
        if self.database.is_none() {
            let room = PREFACE_BYTES.saturating_sub(self.pending.len());
            self.pending.extend_from_slice(&data[..data.len().min(room)]);
            self.database = database_in(&self.pending);
        }
        if ends {
            // A server that has never had a replica before does not say.
            self.database = self.database.or(Some(0));
            self.pending.clear();
            self.at = At::Command;
        }
    }

    fn commands(&mut self, out: &mut Vec<u8>) {
        let pending = std::mem::take(&mut self.pending);
        let (mut rest, mut spans) = (pending.as_slice(), Vec::new());
        loop {
            let mut scanner = RequestScanner::default();
            match scanner.scan(rest, &mut spans, &LIMITS) {
                Ok(Scan::Frame(length)) => {
                    let (command, behind) = rest.split_at(length);
                    self.command(command, &spans, out);
                    rest = behind;
                }
                Ok(Scan::Nothing(length) | Scan::Inline(length)) => {
                    out.extend_from_slice(&rest[..length]);
                    rest = &rest[length..];
                }
                Ok(Scan::Incomplete(need)) if need > COLLECTED_BYTES_MAX => match scanner.stream(rest.len()) {
                    Some(frame) => {
                        self.select(out);
                        out.extend_from_slice(rest);
                        self.at = At::Inside(frame);
                        return;
                    }
                    None => break,
                },
                Ok(Scan::Incomplete(_)) => break,
                Err(_) => {
                    out.extend_from_slice(rest);
                    self.at = At::Opaque;
                    return;
                }
            }
        }
        self.pending = rest.to_vec();
    }

    fn command(&mut self, command: &[u8], spans: &[Span], out: &mut Vec<u8>) {
        let args = Args::new(command, spans);
        let argument = args.get(1).unwrap_or_default();
        let is = |name: &[u8]| args.name().eq_ignore_ascii_case(name);
        if is(b"select") {
            self.database = parse_i64(argument).or(self.database);
            return;
        }
        // A WAIT asks the replicas how far they are; who asked with SYNC does not know.
        let asks = is(b"replconf") && argument.eq_ignore_ascii_case(b"getack");
        if asks || (is_marked(args.name()) && argument.starts_with(OWN_CHANNELS)) {
            return;
        }
        if !is(b"ping") {
            self.select(out);
        }
        out.extend_from_slice(command);
    }

    fn select(&mut self, out: &mut Vec<u8>) {
        if let Some(database) = self.database.filter(|_| self.shown != self.database) {
            put_request(out, &[b"SELECT", database.to_string().as_bytes()]);
            self.shown = self.database;
        }
    }
}

/// The database that an RDB file names as that of the stream behind it: a short string, encoded as an 8- or 16-bit number.
fn database_in(data: &[u8]) -> Option<i64> {
    let at = data
        .windows(DATABASE_FIELD.len())
        .position(|part| part == DATABASE_FIELD)?;
    match data.get(at + DATABASE_FIELD.len()..)? {
        [0xc0, number, ..] => Some(i64::from(*number)),
        [0xc1, low, high, ..] => Some(i64::from(u16::from_le_bytes([*low, *high]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &[u8] = b"REDIS0010\xfa\x0erepl-stream-db\xc0\x05\xfa\x07repl-id\xc0\x01";

    fn request(line: &str) -> Vec<u8> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut out = Vec::new();
        put_request(&mut out, &words);
        out
    }

    fn requests(lines: &[&str]) -> Vec<u8> {
        lines.iter().flat_map(|line| request(line)).collect()
    }

    fn stream(data: &[u8], commands: &[u8]) -> Vec<u8> {
        [format!("\n\n${}\r\n", data.len()).as_bytes(), data, commands].concat()
    }

    /// What is seen of a stream, which is the same in whatever pieces it comes.
    fn seen(stream: &[u8]) -> Vec<u8> {
        let seen = |size: usize| {
            let (mut copied, mut out) = (CopiedStream::new(), Vec::new());
            stream.chunks(size).for_each(|part| copied.take(part, &mut out));
            out
        };
        let whole = seen(stream.len());
        for size in [1, 2, 7, 1000] {
            assert!(seen(size) == whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn it_begins_with_the_database_and_is_without_what_is_our_own() {
        let commands = requests(&[
            "PING",
            "sPUBLISH __pointsman:ack 7",
            "REPLCONF GETACK *",
            "SET a 1",
            "SELECT 0",
            "sPUBLISH __pointsman:ack 8",
            "SELECT 5",
            "MULTI",
            "SPUBLISH __pointsman:ack theirs",
            "SELECT 3",
            "sET b 2",
            "EXEC",
        ]);
        let expected = requests(&[
            "PING",
            "SELECT 5",
            "SET a 1",
            "MULTI",
            "SPUBLISH __pointsman:ack theirs",
            "SELECT 3",
            "sET b 2",
            "EXEC",
        ]);
        assert_eq!(seen(&stream(DATA, &commands)), stream(DATA, &expected));
    }

    #[test]
    fn data_that_names_no_database_is_followed_by_the_first_one() {
        let commands = requests(&["SET a 1", "SELECT 2", "SELECT 0", "DEL a"]);
        let expected = requests(&["SELECT 0", "SET a 1", "DEL a"]);
        assert_eq!(seen(&stream(b"REDIS0010", &commands)), stream(b"REDIS0010", &expected));
    }

    #[test]
    fn a_database_may_have_a_large_number() {
        for (number, database) in [(&b"\xc0\x7f"[..], 127), (b"\xc1\x00\x01", 256)] {
            assert_eq!(database_in(&[DATABASE_FIELD, number].concat()), Some(database));
        }
        assert_eq!(database_in(DATABASE_FIELD), None);
    }

    #[test]
    fn a_long_command_is_passed_on_without_being_collected() {
        let long = format!("RPUSH l {} {}", "x".repeat(3 * COLLECTED_BYTES_MAX), "y".repeat(9));
        let many = format!("RPUSH l{}", " z".repeat(2 * COLLECTED_BYTES_MAX));
        let commands = requests(&[&long, "SET a 1", &many, "sPUBLISH __pointsman:ack 1", "DEL a"]);
        let expected = requests(&["SELECT 5", &long, "SET a 1", &many, "DEL a"]);
        for size in [COLLECTED_BYTES_MAX, 5 * COLLECTED_BYTES_MAX] {
            let (mut copied, mut out) = (CopiedStream::new(), Vec::new());
            for part in stream(DATA, &commands).chunks(size) {
                copied.take(part, &mut out);
                assert!(copied.pending.len() <= 2 * COLLECTED_BYTES_MAX);
            }
            assert!(out == stream(DATA, &expected), "in pieces of {size}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_passed_on_as_it_is() {
        let marked = [
            b"$EOF:0123456789\r\nREDIS".to_vec(),
            requests(&["sPUBLISH __pointsman:ack 1"]),
        ]
        .concat();
        for opaque in [
            marked,
            [stream(DATA, b"*x\r\n"), requests(&["sPUBLISH __pointsman:ack 1"])].concat(),
            vec![b'$'; 2 * LENGTH_LINE_MAX],
        ] {
            assert_eq!(seen(&opaque), opaque);
        }
    }
}
