//! Cursors of SCAN, HSCAN, SSCAN and ZSCAN (rule A12), which mean something to the process that gave them only: each
//! has its own order of buckets, and going on with another's cursor loses elements in silence.
//!
//! ```text
//! server: raw (below 2^36) --> client: tag of the server's life << 36 | raw (below 2^53) --> server: raw, or 0
//! ```
//! Owns: what a client sees of a cursor, and what a server sees of it. Pure. Invariants: 0 stays 0; a cursor goes back
//! raw only to the life that gave it, any other begins anew, so that elements may come twice and are never lost; the
//! tag follows from the life alone, so that all proxies agree. What carries no tag is the client's own and passes.

use crate::command::{Concern, Lookup, Table};
use crate::proxy::backend::with_words;
use crate::resp::Args;
use crate::route::cursor::{RAW_BITS, RAW_MAX, Scope, TAG_MAX, Tag, number};
use crate::topology::RunId;

/// The longest head of a reply up to its cursor: `*2`, `$20` and 20 digits with their line ends.
const HEAD_BYTES_MAX: usize = 64;
const TOO_LARGE: &[u8] = b"-ERR pointsman cannot pass on a scan cursor of 2^36 or more\r\n";

/// What a server with these cursors is to get in place of `cursor`; `None`: just that, and if it is nonsense the
/// server says so.
pub(super) fn for_server(cursor: &[u8], tag: Option<Tag>) -> Option<u64> {
    let given = number(cursor)?;
    match given >> RAW_BITS {
        0 => None,
        _ if tag.is_some_and(|tag| tag.is_on(given)) => Some(given & RAW_MAX),
        known if known <= TAG_MAX => Some(0),
        // More than we ever give.
        _ => None,
    }
}

/// The request with another cursor in it.
pub(super) fn with_cursor(args: &Args, at: usize, cursor: u64) -> Vec<u8> {
    with_words(args, &[(at, cursor.to_string().as_bytes())])
}

/// A request as another life of a server is to get it: its scan begins anew, whatever cursor it had.
pub(super) fn begun_anew(request: &[u8], table: &Table) -> Option<Vec<u8>> {
    let mut spans = Vec::new();
    let args = Args::read(request, &mut spans)?;
    let Lookup::Known(command) = table.lookup(&args) else {
        return None;
    };
    match command.concern {
        Concern::Cursor(at) if number(args.get(at)?).is_some_and(|cursor| cursor > 0) => {
            Some(with_cursor(&args, at, 0))
        }
        Concern::Cursor(_) | Concern::None | Concern::Body | Concern::Digest | Concern::Own(_) => None,
    }
}

/// The reply to one scan on its way to the client.
#[derive(Debug)]
pub(super) struct CursorReply {
    scope: Scope,
    /// None: its cursors pass as they are.
    tag: Option<Tag>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The cursor is not whole yet; what there is of the reply is here.
    Head(Vec<u8>),
    /// It was put in, or the reply has none.
    Passes,
    /// The client was told that the cursor cannot be passed on.
    Refused,
}

/// What the beginning of a reply is.
enum Head {
    Unfinished,
    /// No reply of a scan.
    Other,
    /// A cursor, and how many bytes it ends after.
    Cursor(u64, usize),
}

impl CursorReply {
    /// To a scan of `scope`, by a server in this life.
    pub(super) fn new(scope: Scope, life: Option<&RunId>) -> Self {
        Self {
            scope,
            tag: scope.tag(life),
            state: State::Head(Vec::new()),
        }
    }

    /// The request is sent again, and nothing of a reply has come. Says whether the scan must begin anew for that.
    pub(super) fn moves_to(&mut self, life: Option<&RunId>) -> bool {
        let tag = self.scope.tag(life);
        let same = tag.is_some() && self.tag == tag;
        self.tag = tag;
        !same
    }

    /// Takes bytes of the reply and gives what the client is to see of them.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match &mut self.state {
            State::Passes => out.extend_from_slice(bytes),
            State::Refused => {}
            State::Head(head) => {
                head.extend_from_slice(bytes);
                let head = std::mem::take(head);
                self.state = self.take_head(head, out);
            }
        }
    }

    fn take_head(&self, head: Vec<u8>, out: &mut Vec<u8>) -> State {
        match (read_head(&head), self.tag) {
            (Head::Unfinished, _) => return State::Head(head),
            (Head::Cursor(raw, _), _) if raw > RAW_MAX => {
                out.extend_from_slice(TOO_LARGE);
                return State::Refused;
            }
            (Head::Cursor(raw, end), Some(tag)) if raw > 0 => put_cursor(tag.put_on(raw), &head[end..], out),
            (Head::Cursor(0, end), _) if self.scope.after() > 0 => put_cursor(self.scope.after(), &head[end..], out),
            (Head::Other | Head::Cursor(..), _) => out.extend_from_slice(&head),
        }
        State::Passes
    }
}

fn put_cursor(cursor: u64, rest: &[u8], out: &mut Vec<u8>) {
    let cursor = cursor.to_string();
    out.extend_from_slice(format!("*2\r\n${}\r\n{cursor}\r\n", cursor.len()).as_bytes());
    out.extend_from_slice(rest);
}

fn read_head(head: &[u8]) -> Head {
    let Some(rest) = head.strip_prefix(b"*2\r\n$") else {
        return unfinished_if(b"*2\r\n$".starts_with(head));
    };
    let short = unfinished_if(head.len() < HEAD_BYTES_MAX);
    let Some((len, rest)) = line(rest) else { return short };
    let Some((cursor, rest)) = line(rest) else { return short };
    match number(cursor) {
        Some(raw) if number(len) == Some(cursor.len() as u64) => Head::Cursor(raw, head.len() - rest.len()),
        Some(_) | None => Head::Other,
    }
}

fn unfinished_if(may_go_on: bool) -> Head {
    if may_go_on { Head::Unfinished } else { Head::Other }
}

/// The first line, and what follows its end.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], &bytes[end + 2..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::backend::put_request;

    fn life() -> RunId {
        RunId::from("0123456789012345678901234567890123456789")
    }

    fn tag() -> Tag {
        Scope::ONE.tag(Some(&life())).unwrap()
    }

    fn reply(cursor: u64) -> Vec<u8> {
        let cursor = cursor.to_string();
        format!("*2\r\n${}\r\n{cursor}\r\n*2\r\n$1\r\na\r\n$3\r\n*2\r\r\n", cursor.len()).into_bytes()
    }

    fn passed(parts: &[&[u8]]) -> Vec<u8> {
        let (mut reply, mut out) = (CursorReply::new(Scope::ONE, Some(&life())), Vec::new());
        parts.iter().for_each(|part| reply.take(part, &mut out));
        out
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_given_to_the_life_that_gave_it_and_to_no_other() {
        let other = Scope::ONE.tag(Some(&RunId::from("other"))).unwrap();
        assert_ne!(tag(), other);
        for raw in [1, 32_513, RAW_MAX] {
            let given = tag().put_on(raw);
            assert!(given < 1 << 53 && given > RAW_MAX);
            let given = given.to_string();
            assert_eq!(for_server(given.as_bytes(), Some(tag())), Some(raw));
            assert_eq!(for_server(given.as_bytes(), Some(other)), Some(0));
            assert_eq!(for_server(given.as_bytes(), None), Some(0));
        }
        for own in [
            "0",
            "7",
            "007",
            "68719476735",
            "-1",
            "+5",
            " 5",
            "x",
            "",
            "9007199254740992",
            "18446744073709551615",
            "99999999999999999999",
        ] {
            assert_eq!(for_server(own.as_bytes(), Some(tag())), None, "{own}");
        }
    }

    #[test]
    fn the_end_of_one_shard_is_the_beginning_of_the_next() {
        let first = Scope::of_scan(b"0", 2);
        let (mut scan, mut out) = (CursorReply::new(first, None), Vec::new());
        scan.take(&reply(0), &mut out);
        let next = 1u64 << 52;
        assert!(
            out.starts_with(format!("*2\r\n$16\r\n{next}\r\n*2\r\n").as_bytes()),
            "{out:?}"
        );
        let second = Scope::of_scan(next.to_string().as_bytes(), 2);
        let life = RunId::from("x");
        assert_eq!(
            for_server(next.to_string().as_bytes(), second.tag(Some(&life))),
            Some(0)
        );
        let (mut scan, mut out) = (CursorReply::new(second, Some(&life)), Vec::new());
        scan.take(&reply(0), &mut out);
        assert_eq!(out, reply(0));
    }

    #[test]
    fn the_end_of_a_scan_and_errors_pass_as_they_are() {
        for whole in [
            reply(0),
            b"-ERR invalid cursor\r\n".to_vec(),
            b"*-1\r\n".to_vec(),
            b"_\r\n".to_vec(),
            b"+QUEUED\r\n".to_vec(),
            b"*2\r\n*0\r\n*0\r\n".to_vec(),
            b"*2\r\n$1\r\nx\r\n*0\r\n".to_vec(),
            b"*1\r\n$1\r\n5\r\n".to_vec(),
        ] {
            assert_eq!(passed(&[&whole]), whole);
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            assert_eq!(passed(&bytes), whole);
        }
    }

    #[test]
    fn a_cursor_that_leaves_no_room_for_the_tag_is_refused_loudly() {
        assert_eq!(passed(&[&reply(RAW_MAX + 1)]), TOO_LARGE);
        let largest = reply(u64::MAX);
        let bytes: Vec<&[u8]> = largest.chunks(1).collect();
        assert_eq!(passed(&bytes), TOO_LARGE);
        assert_eq!(passed(&[&reply(RAW_MAX)]), reply(tag().put_on(RAW_MAX)));
    }

    #[test]
    fn a_scan_goes_on_only_in_the_life_that_is_known_to_be_the_same() {
        let (one, other) = (life(), RunId::from("other"));
        let (one, other) = (Some(&one), Some(&other));
        for (before, after, anew) in [
            (one, one, false),
            (one, other, true),
            (one, None, true),
            (None, one, true),
            (None, None, true),
        ] {
            assert_eq!(CursorReply::new(Scope::ONE, before).moves_to(after), anew);
        }
        let (mut nameless, mut out) = (CursorReply::new(Scope::ONE, None), Vec::new());
        nameless.take(&reply(5), &mut out);
        assert_eq!(out, reply(5));
    }

    #[test]
    fn a_request_for_another_life_begins_its_scan_anew() {
        let anew = |words: &[&[u8]]| {
            let mut request = Vec::new();
            put_request(&mut request, words);
            begun_anew(&request, Table::builtin()).map(|bytes| String::from_utf8(bytes).unwrap())
        };
        assert_eq!(
            anew(&[b"HSCAN", b"h", b"77", b"COUNT", b"5"]).as_deref(),
            Some("*5\r\n$5\r\nHSCAN\r\n$1\r\nh\r\n$1\r\n0\r\n$5\r\nCOUNT\r\n$1\r\n5\r\n")
        );
        assert!(anew(&[b"scan", b"5"]).is_some());
        for same in [&[&b"SCAN"[..], b"0"], &[b"SCAN", b"x"], &[b"GET", b"5"]] {
            assert_eq!(anew(same), None);
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_reply(raw in 0..=RAW_MAX, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let whole = reply(raw);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut at = 0;
            for cut in cuts.into_iter().chain([whole.len()]) {
                parts.push(&whole[at..cut]);
                at = cut;
            }
            let expected = if raw == 0 { whole.clone() } else { reply(tag().put_on(raw)) };
            prop_assert_eq!(passed(&parts), expected);
        }
    }
}
