//! Requests: where each one ends and where its arguments lie.
//!
//! ```text
//! client bytes --> RequestScanner --> frame + spans --> command table --> run --> lane
//!                  ^^^^^^^^^^^^^^
//! ```
//! The scanner reads as Redis does (`processMultibulkBuffer` in `networking.c`), down to what Redis does not
//! check: if the two disagreed on where a request ends, replies would go to the wrong client. It keeps 32 bytes
//! between calls, never reads an argument's bytes, and never reads a byte twice.

use memchr::memchr;

use super::args::Span;
use super::error::ProtocolError;
use super::number::parse_i64;

/// The longest header line or inline request in bytes (`PROTO_INLINE_MAX_SIZE` of Redis).
pub const INLINE_BYTES_MAX: usize = 64 * 1024;
/// The most arguments of one request that servers before 7.0 take.
pub const ARGUMENTS_MAX: i64 = 1024 * 1024;
/// The most that later ones take.
pub const ARGUMENTS_MAX_LATER: i64 = i32::MAX as i64;
/// The longest argument in bytes unless configured otherwise (`proto-max-bulk-len` of Redis).
pub const BULK_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// As Redis, for clients that have not authenticated yet.
const UNAUTHENTICATED_ARGUMENTS_MAX: i64 = 10;
const UNAUTHENTICATED_BULK_BYTES_MAX: i64 = 16 * 1024;

/// What a client may send.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// The longest argument in bytes.
    pub bulk_bytes_max: u64,
    /// The most arguments.
    pub arguments_max: i64,
    /// Whether the client has authenticated; until then Redis allows 10 arguments of 16 KiB.
    pub authenticated: bool,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            bulk_bytes_max: BULK_BYTES_MAX,
            arguments_max: ARGUMENTS_MAX,
            authenticated: true,
        }
    }
}

/// What lies at the front of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// A whole request of this many bytes; its arguments are in the spans, relative to its first byte.
    Frame(usize),
    /// This many bytes that ask for nothing and get no reply (`*0`, `*-1`, a blank line).
    Nothing(usize),
    /// A line of this many bytes that is an inline command, line end included.
    Inline(usize),
    /// The request is not whole yet. It is at least this long in bytes, as far as its headers tell.
    Incomplete(usize),
}

/// Scans one request at a time, resumable at any byte.
#[derive(Clone, Debug, Default)]
pub struct RequestScanner {
    /// Bytes of the current frame already understood.
    position: usize,
    /// Arguments still to come; 0 outside a multi-bulk request.
    arguments_left: u32,
    /// Length of the argument whose header was read, `None` while its header is awaited.
    bulk: Option<u32>,
    /// Bytes already searched for a line end.
    searched: usize,
}

impl RequestScanner {
    /// Looks at `bytes`, which begin at the current request's first byte and hold everything received of it.
    ///
    /// `spans` belongs to the scanner while a request is incomplete: it holds the arguments found so far. After
    /// `Frame`, `Nothing` or `Inline` the caller drops that many bytes, and the next call begins a new request.
    pub fn scan(&mut self, bytes: &[u8], spans: &mut Vec<Span>, limits: &RequestLimits) -> Result<Scan, ProtocolError> {
        if self.arguments_left == 0 {
            let Some(first) = bytes.first() else {
                return Ok(Scan::Incomplete(1));
            };
            spans.clear();
            if *first != b'*' {
                return self.inline(bytes);
            }
            let Some((count, next)) = self.header(bytes, 0, ProtocolError::TooBigCountString)? else {
                return Ok(Scan::Incomplete(bytes.len() + 1));
            };
            let count = count
                .filter(|count| *count <= limits.arguments_max)
                .ok_or(ProtocolError::InvalidMultibulkLength)?;
            if count > UNAUTHENTICATED_ARGUMENTS_MAX && !limits.authenticated {
                return Err(ProtocolError::UnauthenticatedMultibulkLength);
            }
            if count <= 0 {
                return Ok(Scan::Nothing(next));
            }
            self.arguments_left = u32::try_from(count).unwrap_or(u32::MAX);
            self.position = next;
        }
        self.arguments(bytes, spans, limits)
    }

    /// Whether the current request is partly understood (and `spans` in use).
    pub fn is_inside(&self) -> bool {
        self.arguments_left > 0
    }

    /// Turns into a scanner that needs no byte again, for a request too large to collect: `have` bytes of it are
    /// there. `None` unless an argument's bytes are what is missing.
    pub fn stream(&self, have: usize) -> Option<FrameStream> {
        let end = self.position + self.bulk? as usize + 2;
        let bulk_left = end.checked_sub(have)?;
        Some(FrameStream {
            arguments_left: self.arguments_left,
            bulk_left,
            header: Vec::new(),
        })
    }

    fn arguments(
        &mut self,
        bytes: &[u8],
        spans: &mut Vec<Span>,
        limits: &RequestLimits,
    ) -> Result<Scan, ProtocolError> {
        while self.arguments_left > 0 {
            let len = match self.bulk {
                Some(len) => len,
                None => {
                    let Some(first) = bytes.get(self.position) else {
                        return Ok(Scan::Incomplete(self.position + 1));
                    };
                    if *first != b'$' {
                        // Redis looks for the line end first, and so tells a too long line apart.
                        self.header(bytes, self.position, ProtocolError::TooBigBulkCountString)?;
                        return Err(ProtocolError::ExpectedDollar(*first));
                    }
                    let Some((len, next)) = self.header(bytes, self.position, ProtocolError::TooBigBulkCountString)?
                    else {
                        return Ok(Scan::Incomplete(bytes.len() + 1));
                    };
                    let len = checked_bulk_len(len, limits)?;
                    self.position = next;
                    self.bulk = Some(len);
                    len
                }
            };
            let end = self.position + len as usize + 2;
            if end > bytes.len() {
                return Ok(Scan::Incomplete(end));
            }
            spans.push(Span {
                start: u32::try_from(self.position).map_err(|_| ProtocolError::TooBig)?,
                len,
            });
            self.position = end;
            self.bulk = None;
            self.arguments_left -= 1;
        }
        let len = self.position;
        *self = Self::default();
        Ok(Scan::Frame(len))
    }

    /// The number on the line at `start` and where the next line begins; `None` while the line is not whole.
    /// Like Redis, takes any two bytes from a `\r` on for the line end.
    fn header(
        &mut self,
        bytes: &[u8],
        start: usize,
        too_long: ProtocolError,
    ) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
        let from = self.searched.max(start + 1).min(bytes.len());
        // Nearly all headers end within a few bytes: a plain loop beats a call.
        let near = (from + 12).min(bytes.len());
        let found = match bytes[from..near].iter().position(|byte| *byte == b'\r') {
            Some(at) => Some(from + at),
            None => memchr(b'\r', &bytes[near..]).map(|at| near + at),
        };
        let Some(end) = found else {
            if bytes.len() - start > INLINE_BYTES_MAX {
                return Err(too_long);
            }
            self.searched = bytes.len();
            return Ok(None);
        };
        if end + 2 > bytes.len() {
            self.searched = end;
            return Ok(None);
        }
        self.searched = 0;
        Ok(Some((parse_i64(&bytes[start + 1..end]), end + 2)))
    }

    fn inline(&mut self, bytes: &[u8]) -> Result<Scan, ProtocolError> {
        let from = self.searched.min(bytes.len());
        let Some(at) = memchr(b'\n', &bytes[from..]) else {
            if bytes.len() > INLINE_BYTES_MAX {
                return Err(ProtocolError::TooBigInlineRequest);
            }
            self.searched = bytes.len();
            return Ok(Scan::Incomplete(bytes.len() + 1));
        };
        self.searched = 0;
        let len = from + at + 1;
        let blank = bytes[..len].iter().all(u8::is_ascii_whitespace);
        Ok(if blank { Scan::Nothing(len) } else { Scan::Inline(len) })
    }
}

/// Finds the end of one request of which the front was understood already, without keeping any of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameStream {
    /// Arguments still to come, the current one included.
    arguments_left: u32,
    /// Bytes of the current argument still to come, its line end included.
    bulk_left: usize,
    /// The bytes of a header line that is not whole yet.
    header: Vec<u8>,
}

impl FrameStream {
    /// Longest header line: `$`, a number, and the two bytes of a line end.
    const HEADER_BYTES_MAX: usize = 32;

    /// Runs over `bytes`; returns how many belong to the request, and whether it ends there.
    pub fn feed(&mut self, bytes: &[u8], limits: &RequestLimits) -> Result<(usize, bool), ProtocolError> {
        let mut used = 0;
        loop {
            let taken = self.bulk_left.min(bytes.len() - used);
            used += taken;
            self.bulk_left -= taken;
            if self.bulk_left > 0 {
                return Ok((used, false));
            }
            if self.header.is_empty() {
                self.arguments_left -= 1;
                if self.arguments_left == 0 {
                    return Ok((used, true));
                }
            }
            let Some(byte) = bytes.get(used) else {
                // The end of an argument is counted once: a header that has begun says that it was.
                self.arguments_left += u32::from(self.header.is_empty());
                return Ok((used, false));
            };
            used += 1;
            self.header.push(*byte);
            match self.header.as_slice() {
                [b'$', number @ .., b'\r', _] => {
                    self.bulk_left = checked_bulk_len(parse_i64(number), limits)? as usize + 2;
                    self.header.clear();
                }
                [b'$', ..] if self.header.len() < Self::HEADER_BYTES_MAX => {}
                [b'$', ..] => return Err(ProtocolError::InvalidBulkLength),
                _ => return Err(ProtocolError::ExpectedDollar(*byte)),
            }
        }
    }
}

fn checked_bulk_len(len: Option<i64>, limits: &RequestLimits) -> Result<u32, ProtocolError> {
    let len = len.filter(|len| *len >= 0).ok_or(ProtocolError::InvalidBulkLength)?;
    if len.unsigned_abs() > limits.bulk_bytes_max {
        return Err(ProtocolError::InvalidBulkLength);
    }
    if len > UNAUTHENTICATED_BULK_BYTES_MAX && !limits.authenticated {
        return Err(ProtocolError::UnauthenticatedBulkLength);
    }
    u32::try_from(len).map_err(|_| ProtocolError::InvalidBulkLength)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resp::Args;

    fn scan_all(bytes: &[u8], limits: &RequestLimits) -> (Vec<Vec<Vec<u8>>>, Result<usize, ProtocolError>) {
        let (mut scanner, mut spans, mut at, mut frames) = (RequestScanner::default(), Vec::new(), 0, Vec::new());
        loop {
            match scanner.scan(&bytes[at..], &mut spans, limits) {
                Ok(Scan::Frame(len)) => {
                    let args = Args::new(&bytes[at..at + len], &spans);
                    frames.push(args.iter().map(<[u8]>::to_vec).collect());
                    at += len;
                }
                Ok(Scan::Nothing(len)) => at += len,
                Ok(Scan::Inline(len)) => {
                    frames.push(vec![bytes[at..at + len].to_vec()]);
                    at += len;
                }
                Ok(Scan::Incomplete(_)) => return (frames, Ok(at)),
                Err(error) => return (frames, Err(error)),
            }
        }
    }

    fn error(bytes: &[u8]) -> ProtocolError {
        scan_all(bytes, &RequestLimits::default()).1.unwrap_err()
    }

    #[test]
    fn a_pipeline_is_cut_into_its_requests() {
        let (frames, used) = scan_all(
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\n\r\nPING\r\n*1\r\n$4\r\nPI",
            &RequestLimits::default(),
        );
        assert_eq!(
            frames,
            [vec![b"GET".to_vec(), b"k".to_vec()], vec![b"PING\r\n".to_vec()]]
        );
        assert_eq!(used, Ok(32));
    }

    #[test]
    fn errors_have_the_words_of_redis() {
        assert_eq!(error(b"*1\r\n:1\r\n"), ProtocolError::ExpectedDollar(b':'));
        assert_eq!(error(b"*x\r\n"), ProtocolError::InvalidMultibulkLength);
        assert_eq!(error(b"*1048577\r\n"), ProtocolError::InvalidMultibulkLength);
        assert_eq!(error(b"*01\r\n"), ProtocolError::InvalidMultibulkLength);
        assert_eq!(error(b"*1\r\n$-1\r\n"), ProtocolError::InvalidBulkLength);
        assert_eq!(error(b"*1\r\n$536870913\r\n"), ProtocolError::InvalidBulkLength);
        assert_eq!(error(&[b'x'; INLINE_BYTES_MAX + 1]), ProtocolError::TooBigInlineRequest);
        let mut long = vec![b'1'; INLINE_BYTES_MAX + 1];
        long[0] = b'*';
        assert_eq!(error(&long), ProtocolError::TooBigCountString);
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_past_it() {
        let scan = |bytes: &[u8], authenticated| {
            scan_all(
                bytes,
                &RequestLimits {
                    authenticated,
                    ..RequestLimits::default()
                },
            )
            .1
        };
        assert!(scan(b"*1048576\r\n", true).is_ok());
        assert!(scan(b"*1\r\n$536870912\r\n", true).is_ok());
        assert!(scan(b"*10\r\n", false).is_ok());
        assert_eq!(
            scan(b"*11\r\n", false),
            Err(ProtocolError::UnauthenticatedMultibulkLength)
        );
        assert!(scan(b"*1\r\n$16384\r\n", false).is_ok());
        assert_eq!(
            scan(b"*1\r\n$16385\r\n", false),
            Err(ProtocolError::UnauthenticatedBulkLength)
        );
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6).prop_map(|args| {
            let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
            for arg in &args {
                bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                bytes.extend_from_slice(arg);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes
        })
    }

    /// Feeds `bytes` in pieces, keeping only what is incomplete, as a session does.
    fn scan_split(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<Vec<u8>>> {
        let (mut scanner, mut spans, mut tail, mut frames) =
            (RequestScanner::default(), Vec::new(), Vec::new(), Vec::new());
        let mut at = 0;
        for cut in cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]) {
            if cut > at {
                tail.extend_from_slice(&bytes[at..cut]);
                at = cut;
            }
            loop {
                let Ok(scan) = scanner.scan(&tail, &mut spans, &RequestLimits::default()) else {
                    return frames;
                };
                let len = match scan {
                    Scan::Frame(len) => {
                        frames.push(Args::new(&tail[..len], &spans).iter().map(<[u8]>::to_vec).collect());
                        len
                    }
                    Scan::Inline(len) => {
                        frames.push(vec![tail[..len].to_vec()]);
                        len
                    }
                    Scan::Nothing(len) => len,
                    Scan::Incomplete(_) => break,
                };
                tail.drain(..len);
            }
        }
        frames
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(requests in prop::collection::vec(request(), 1..8), mut cuts in prop::collection::vec(any::<usize>(), 0..12)) {
            let bytes = requests.concat();
            cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
            cuts.sort_unstable();
            let (whole, used) = scan_all(&bytes, &RequestLimits::default());
            prop_assert_eq!(used, Ok(bytes.len()));
            prop_assert_eq!(whole.len(), requests.len());
            prop_assert_eq!(scan_split(&bytes, &cuts), whole);
        }

        #[test]
        fn agrees_with_redis_protocol(bytes in request()) {
            use redis_protocol::resp2::types::Resp2Frame as _;
            let (frames, _) = scan_all(&bytes, &RequestLimits::default());
            let (frame, used) = redis_protocol::resp2::decode::decode(&bytes).unwrap().unwrap();
            let redis_protocol::resp2::types::OwnedFrame::Array(items) = frame else { panic!("not an array") };
            let theirs: Vec<Vec<u8>> = items.iter().map(|item| item.as_bytes().unwrap().to_vec()).collect();
            prop_assert_eq!(used, bytes.len());
            prop_assert_eq!(&frames[0], &theirs);
        }

        #[test]
        fn a_streamed_request_ends_where_a_collected_one_does(bytes in request(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..5)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut scanner, mut spans) = (RequestScanner::default(), Vec::new());
            let have = cuts[0];
            let _ = scanner.scan(&bytes[..have], &mut spans, &RequestLimits::default()).unwrap();
            if let Some(mut stream) = scanner.stream(have) {
                let more = [&bytes[..], b"*1"].concat();
                let (mut at, mut done) = (have, false);
                for cut in cuts[1..].iter().copied().chain([more.len()]) {
                    if done {
                        break;
                    }
                    let (used, end) = stream.feed(&more[at..cut], &RequestLimits::default()).unwrap();
                    prop_assert!(end || used == cut - at);
                    (at, done) = (at + used, end);
                }
                prop_assert_eq!((at, done), (bytes.len(), true));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..200)) {
            let (_, result) = scan_all(&bytes, &RequestLimits::default());
            if let Ok(used) = result {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
