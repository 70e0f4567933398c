//! Replies: where each one ends, without ever needing a whole one.
//!
//! ```text
//! redis --> lane reader --> ReplyScanner --> ledger entry --> window --> client
//!                           ^^^^^^^^^^^^
//! ```
//! The scanner keeps one counter of outstanding elements instead of a stack, so nesting costs no memory and has no
//! limit to attack. Push frames (`>`) and attributes (`|`) are not counted at any depth (RESP3 specification); a push
//! between replies is reported, because only the owner of a connection can say whether it may occur there.

use memchr::memchr;

/// Why a scan stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All bytes are used up.
    Starved,
    /// As many replies as wanted are complete.
    Counted,
    /// The next reply begins at `used` and is one that the caller wants to look at; nothing of it is scanned.
    Noted,
    /// A push frame begins at `used`, between replies; nothing of it is scanned.
    Push,
    /// The bytes at `used` are no RESP.
    Malformed,
}

/// Which replies a scan stops before, so that the caller can look at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heed {
    /// None.
    Nothing,
    /// Errors.
    Errors,
    /// Errors, and what may become `+QUEUED`: the only lines that can say that a command was not run.
    Refusals,
}

/// What a scan got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes scanned.
    pub used: usize,
    /// Replies completed within them.
    pub replies: u32,
    /// Why it ended there.
    pub stop: Stop,
}

/// Finds the ends of replies in a stream of bytes; resumable at any byte.
#[derive(Clone, Debug, Default)]
pub struct ReplyScanner {
    /// Elements that the current reply still lacks; 0 between replies.
    pending: u64,
    /// Bytes of a bulk string still to come, its line end included.
    bulk_left: u64,
    /// A header line that is not whole yet.
    line: Option<Line>,
    /// The current frame is a push between replies and counts for none.
    out_of_band: bool,
}

/// A header line of which some bytes were seen.
#[derive(Clone, Debug)]
struct Line {
    kind: u8,
    number: Number,
}

/// The number of a header line, read byte by byte.
#[derive(Clone, Copy, Debug, Default)]
struct Number {
    value: u64,
    digits: u8,
    negative: bool,
}

/// No aggregate of Redis has more elements, no bulk more bytes; more is nonsense that would overflow the counter.
const NUMBER_MAX: u64 = 1 << 40;
const PENDING_MAX: u64 = 1 << 56;

impl ReplyScanner {
    /// Whether a reply has begun and not ended.
    pub fn is_inside(&self) -> bool {
        self.pending > 0
    }

    /// Scans until `want` replies are complete, or the next one is a push or one to heed.
    pub fn scan(&mut self, bytes: &[u8], want: u32, heed: Heed) -> Scanned {
        let (mut used, mut replies) = (0, 0);
        let stop = loop {
            if self.pending == 0 {
                if replies == want {
                    break Stop::Counted;
                }
                match bytes.get(used) {
                    None => break Stop::Starved,
                    Some(b'-' | b'!') if heed != Heed::Nothing => break Stop::Noted,
                    Some(b'+') if heed == Heed::Refusals && matches!(bytes.get(used + 1), None | Some(b'Q')) => {
                        break Stop::Noted;
                    }
                    Some(b'>') => break Stop::Push,
                    Some(_) => self.pending = 1,
                }
            }
            match self.advance(bytes, &mut used) {
                Ok(true) if self.pending == 0 => {
                    if !std::mem::take(&mut self.out_of_band) {
                        replies += 1;
                    }
                }
                Ok(true) => {}
                Ok(false) => break Stop::Starved,
                Err(()) => break Stop::Malformed,
            }
        };
        Scanned { used, replies, stop }
    }

    /// Begins a push frame that [`Stop::Push`] reported; the next scan runs through it without counting it.
    pub fn begin_push(&mut self) {
        self.pending = 1;
        self.out_of_band = true;
    }

    /// Whether the frame being scanned is a push between replies.
    pub fn is_in_push(&self) -> bool {
        self.out_of_band
    }

    /// Scans one header line or one bulk's bytes. `Ok(false)`: the bytes ran out.
    #[inline]
    fn advance(&mut self, bytes: &[u8], used: &mut usize) -> Result<bool, ()> {
        if self.bulk_left > 0 {
            let there = (bytes.len() - *used) as u64;
            let taken = self.bulk_left.min(there);
            self.bulk_left -= taken;
            *used += usize::try_from(taken).map_err(|_| ())?;
            if self.bulk_left > 0 {
                return Ok(false);
            }
            self.pending -= 1;
            return Ok(true);
        }
        let line = match self.line.take() {
            Some(line) => line,
            None => {
                let Some(kind) = bytes.get(*used) else { return Ok(false) };
                if !is_plain(*kind) && !matches!(kind, b'$' | b'*' | b'%' | b'~' | b'|' | b'>' | b'=' | b'!') {
                    return Err(());
                }
                *used += 1;
                Line {
                    kind: *kind,
                    number: Number::default(),
                }
            }
        };
        if is_plain(line.kind) {
            return self.plain(line, bytes, used);
        }
        self.counted(line, bytes, used)
    }

    /// A line whose content does not matter.
    fn plain(&mut self, line: Line, bytes: &[u8], used: &mut usize) -> Result<bool, ()> {
        match memchr(b'\n', &bytes[*used..]) {
            None => {
                *used = bytes.len();
                self.line = Some(line);
                Ok(false)
            }
            Some(at) => {
                *used += at + 1;
                self.pending -= 1;
                Ok(true)
            }
        }
    }

    /// A line that announces a length.
    fn counted(&mut self, mut line: Line, bytes: &[u8], used: &mut usize) -> Result<bool, ()> {
        loop {
            let Some(byte) = bytes.get(*used) else {
                self.line = Some(line);
                return Ok(false);
            };
            match byte {
                b'0'..=b'9' => line.number.push(*byte)?,
                b'-' if line.number.digits == 0 && !line.number.negative => line.number.negative = true,
                b'\r' => {}
                b'\n' if line.number.digits > 0 => {
                    *used += 1;
                    return self.announced(&line).map(|()| true);
                }
                _ => return Err(()),
            }
            *used += 1;
        }
    }

    fn announced(&mut self, line: &Line) -> Result<(), ()> {
        let count = line.number.value;
        let none = line.number.negative;
        match line.kind {
            b'$' | b'=' | b'!' if none => self.pending -= 1,
            b'$' | b'=' | b'!' => self.bulk_left = count + 2,
            b'*' | b'~' if none => self.pending -= 1,
            _ if none => return Err(()),
            b'*' | b'~' => self.pending = self.pending - 1 + count,
            b'%' => self.pending = self.pending - 1 + 2 * count,
            b'|' => self.pending += 2 * count,
            // Between replies the push is the frame itself, within one it is an extra.
            b'>' if self.out_of_band && self.pending == 1 => self.pending = count,
            b'>' => self.pending += count,
            _ => return Err(()),
        }
        if self.pending > PENDING_MAX { Err(()) } else { Ok(()) }
    }
}

impl Number {
    fn push(&mut self, digit: u8) -> Result<(), ()> {
        self.value = self.value * 10 + u64::from(digit - b'0');
        self.digits = self.digits.saturating_add(1);
        if self.value > NUMBER_MAX { Err(()) } else { Ok(()) }
    }
}

fn is_plain(kind: u8) -> bool {
    matches!(kind, b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(bytes: &[u8]) -> Scanned {
        ReplyScanner::default().scan(bytes, u32::MAX, Heed::Nothing)
    }

    #[test]
    fn every_type_is_one_reply() {
        for reply in [
            "+OK\r\n",
            ":1\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "$0\r\n\r\n",
            "*0\r\n",
            "$3\r\nabc\r\n",
            "*2\r\n*1\r\n:1\r\n$1\r\na\r\n",
            "_\r\n",
            "#t\r\n",
            ",1.5\r\n",
            "(123\r\n",
            "=5\r\ntxt:a\r\n",
            "%1\r\n+a\r\n:1\r\n",
            "~1\r\n:1\r\n",
            "!3\r\nERR\r\n",
        ] {
            assert_eq!(
                scan(reply.as_bytes()),
                Scanned {
                    used: reply.len(),
                    replies: 1,
                    stop: Stop::Starved
                },
                "{reply}"
            );
        }
    }

    #[test]
    fn attributes_and_nested_pushes_are_not_counted() {
        let attribute = "|1\r\n+ttl\r\n:10\r\n*1\r\n:1\r\n";
        assert_eq!(scan(attribute.as_bytes()).replies, 1);
        let nested = "*3\r\n$1\r\na\r\n>3\r\n+message\r\n+f\r\n+x\r\n:1\r\n$1\r\nb\r\n+next\r\n";
        assert_eq!(scan(nested.as_bytes()).replies, 2);
    }

    #[test]
    fn a_push_between_replies_is_reported_and_then_skipped() {
        let bytes = b"+OK\r\n>2\r\n+a\r\n+b\r\n+OK\r\n";
        let mut scanner = ReplyScanner::default();
        let first = scanner.scan(bytes, 9, Heed::Nothing);
        assert_eq!(
            first,
            Scanned {
                used: 5,
                replies: 1,
                stop: Stop::Push
            }
        );
        scanner.begin_push();
        assert_eq!(
            scanner.scan(&bytes[5..], 9, Heed::Nothing),
            Scanned {
                used: bytes.len() - 5,
                replies: 1,
                stop: Stop::Starved
            }
        );
    }

    #[test]
    fn error_lines_stop_a_scan_that_watches() {
        let scanned = ReplyScanner::default().scan(b"+OK\r\n-READONLY\r\n", 5, Heed::Errors);
        assert_eq!(
            scanned,
            Scanned {
                used: 5,
                replies: 1,
                stop: Stop::Noted
            }
        );
        let inside = ReplyScanner::default().scan(b"*1\r\n-ERR\r\n", 5, Heed::Errors);
        assert_eq!(inside.replies, 1);
    }

    #[test]
    fn what_may_become_queued_stops_a_scan_for_refusals() {
        let stopped = |bytes: &[u8]| {
            let scanned = ReplyScanner::default().scan(bytes, 5, Heed::Refusals);
            (scanned.used, scanned.stop)
        };
        assert_eq!(stopped(b"+OK\r\n+QUEUED\r\n"), (5, Stop::Noted));
        assert_eq!(stopped(b"+OK\r\n+"), (5, Stop::Noted));
        assert_eq!(stopped(b"+OK\r\n+PONG\r\n"), (12, Stop::Starved));
        assert_eq!(stopped(b":1\r\n-E"), (4, Stop::Noted));
    }

    #[test]
    fn nonsense_is_malformed() {
        for nonsense in ["x", "$x\r\n", "*99999999999999\r\n", "%-1\r\n", "$\r\n"] {
            assert_eq!(scan(nonsense.as_bytes()).stop, Stop::Malformed, "{nonsense}");
        }
    }

    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(b"+OK\r\n".to_vec()),
            Just(b"$-1\r\n".to_vec()),
            any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
            prop::collection::vec(any::<u8>(), 0..30).prop_map(|b| [
                format!("${}\r\n", b.len()).as_bytes(),
                &b,
                b"\r\n"
            ]
            .concat()),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop::collection::vec(inner, 0..4)
                .prop_map(|items| [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat())
        })
    }

    proptest! {
        #[test]
        fn any_split_counts_the_same(replies in prop::collection::vec(reply(), 1..10), cut in any::<prop::sample::Index>()) {
            let bytes = replies.concat();
            prop_assert_eq!(scan(&bytes).replies as usize, replies.len());
            let cut = cut.index(bytes.len() + 1);
            let mut scanner = ReplyScanner::default();
            let first = scanner.scan(&bytes[..cut], u32::MAX, Heed::Nothing);
            prop_assert_eq!(first.used, cut);
            let second = scanner.scan(&bytes[cut..], u32::MAX, Heed::Nothing);
            prop_assert_eq!((first.replies + second.replies) as usize, replies.len());
            prop_assert!(!scanner.is_inside());
        }

        #[test]
        fn agrees_with_redis_protocol(bytes in reply()) {
            let (_, used) = redis_protocol::resp2::decode::decode(&bytes).unwrap().unwrap();
            let scanned = ReplyScanner::default().scan(&bytes, 1, Heed::Nothing);
            prop_assert_eq!((scanned.used, scanned.replies), (used, 1));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'|'), Just(b'>'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..200)) {
            prop_assert!(scan(&bytes).used <= bytes.len());
        }
    }
}
