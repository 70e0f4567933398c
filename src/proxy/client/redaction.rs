//! Replies of a node in which pointsman's own part is left out or put right (design §10): its users, what it asked for
//! itself, the replicas' credential, and how many clients there are.
//!
//! ```text
//! node --reply--> Redaction, collected --whole--> what the client is to see --> window
//! ```
//! Pure. Invariants: a user of ours is to a client as one that does not exist; what cannot be read is not passed on.

use std::sync::Arc;

use super::everynode::is_ours;
use crate::command::Own;
use crate::proxy::backend::{put_request, with_words};
use crate::proxy::census::Census;
use crate::resp::{Args, Heed, ReplyScanner, Stop, is_marked, parse_i64, put_i64};

/// The longest reply that is read, in bytes: some ten thousand users.
const REPLY_BYTES_MAX: usize = 4 << 20;
/// Entries of the slow log that are asked for beyond those that the client wants, because some may be our own.
const ENTRIES_MORE: i64 = 1024;
/// How many entries SLOWLOG GET gives to who does not say.
const ENTRIES: i64 = 10;
/// No user has such a name: Redis allows no spaces in them.
const NOBODY: &[u8] = b"no body";
const UNREADABLE: &[u8] = b"-ERR pointsman cannot read what redis says here, or it is longer than 4 MiB\r\n";

/// The reply to one request on its way to the client.
#[derive(Debug)]
pub(super) struct Redaction {
    own: Own,
    /// Elements that the client wants at most.
    wanted: Option<usize>,
    census: Arc<Census>,
    /// What INFO says beside what Redis says.
    section: String,
    scanner: ReplyScanner,
    bytes: Vec<u8>,
    refused: bool,
}

/// What is put right in the reply to a request, and the request to send in its place, if it is another.
pub(super) fn redacted(own: Own, args: &Args, census: &Arc<Census>) -> (Option<Redaction>, Option<Vec<u8>>) {
    let redaction = |wanted| Some(Redaction::new(own, wanted, census.clone()));
    match own {
        Own::User if args.get(2).is_some_and(is_ours) => (None, Some(with_words(args, &[(2, NOBODY)]))),
        Own::User => (None, None),
        Own::Users | Own::Settings | Own::Clients => (redaction(None), None),
        Own::SlowLog => {
            // All of them, for servers that know -1; what is no number is for Redis to refuse.
            let given = args.get(2).map_or(Some(ENTRIES), parse_i64).filter(|count| *count >= 0);
            let Some(count) = given else {
                return (redaction(None), None);
            };
            let more = count.saturating_add(ENTRIES_MORE).to_string();
            let words: Vec<&[u8]> = args.iter().take(2).chain([more.as_bytes()]).collect();
            let mut instead = Vec::new();
            put_request(&mut instead, &words);
            (redaction(usize::try_from(count).ok()), Some(instead))
        }
    }
}

impl Redaction {
    fn new(own: Own, wanted: Option<usize>, census: Arc<Census>) -> Self {
        Self {
            own,
            wanted,
            census,
            section: String::new(),
            scanner: ReplyScanner::default(),
            bytes: Vec::new(),
            refused: false,
        }
    }

    /// The same, with this section at the end of INFO.
    pub(super) fn and(mut self, section: String) -> Self {
        self.section = section;
        self
    }

    /// Takes bytes of the reply and gives what the client is to see of them.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.refused {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        let scanned = self.scanner.scan(bytes, 1, Heed::Nothing);
        let goes_on = scanned.stop == Stop::Starved && scanned.replies == 0;
        if goes_on && self.bytes.len() <= REPLY_BYTES_MAX {
            return;
        }
        let reply = std::mem::take(&mut self.bytes);
        let whole = !goes_on && reply.len() <= REPLY_BYTES_MAX;
        match self.seen(&reply).filter(|_| whole) {
            Some(seen) => out.extend_from_slice(&seen),
            None => {
                self.refused = true;
                out.extend_from_slice(UNREADABLE);
            }
        }
    }

    /// The request is sent again, and nothing of a reply was shown.
    pub(super) fn begins_anew(&mut self) {
        self.scanner = ReplyScanner::default();
        self.bytes.clear();
    }

    /// What a client is to see of a whole reply; `None` if it is not what Redis says.
    fn seen(&self, reply: &[u8]) -> Option<Vec<u8>> {
        if matches!(reply.first()?, b'+' | b'-' | b'!' | b'_') || reply.starts_with(b"*-1") || reply.starts_with(b"$-1")
        {
            // OK, nothing, or a refusal.
            return Some(reply.to_vec());
        }
        match self.own {
            Own::User => Some(reply.to_vec()),
            Own::Users => without(reply, is_about_ours, None),
            Own::SlowLog => without(
                reply,
                |entry| command_of(entry).is_some_and(is_own_command),
                self.wanted,
            ),
            Own::Settings => blanked(reply),
            Own::Clients => counted(reply, &self.census, &self.section),
        }
    }
}

/// The kind and the elements of an array, a set or a map; of a map, names and values in turn.
fn elements(reply: &[u8]) -> Option<(u8, Vec<&[u8]>)> {
    let (kind, rest) = reply.split_first()?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let count: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    let count = match kind {
        b'*' | b'~' => count,
        b'%' => count.checked_mul(2)?,
        _ => return None,
    };
    let mut left = &rest[end + 2..];
    let mut all = Vec::new();
    for _ in 0..count {
        let scanned = ReplyScanner::default().scan(left, 1, Heed::Nothing);
        if scanned.stop != Stop::Counted {
            return None;
        }
        let (element, more) = left.split_at(scanned.used);
        all.push(element);
        left = more;
    }
    left.is_empty().then_some((*kind, all))
}

/// The reply without the elements that are ours, and with so many at most.
fn without(reply: &[u8], is_own: impl Fn(&[u8]) -> bool, most: Option<usize>) -> Option<Vec<u8>> {
    let (kind, mut kept) = elements(reply)?;
    kept.retain(|element| !is_own(element));
    kept.truncate(most.unwrap_or(usize::MAX));
    let mut out = vec![kind];
    put_i64(&mut out, i64::try_from(kept.len()).ok()?);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&kept.concat());
    Some(out)
}

/// Settings without who the replicas are to their master: agents make that anew in each epoch.
fn blanked(reply: &[u8]) -> Option<Vec<u8>> {
    let (kind, all) = elements(reply)?;
    let mut out = vec![kind];
    let count = if kind == b'%' { all.len() / 2 } else { all.len() };
    put_i64(&mut out, i64::try_from(count).ok()?);
    out.extend_from_slice(b"\r\n");
    for pair in all.chunks(2) {
        let secret = texts(pair[0]).first().is_some_and(|name| is_credential(name));
        out.extend_from_slice(pair[0]);
        out.extend_from_slice(if secret { b"$0\r\n\r\n" } else { pair.get(1)? });
    }
    Some(out)
}

/// Whether a setting says who a replica is to its master.
pub(super) fn is_credential(setting: &[u8]) -> bool {
    setting.eq_ignore_ascii_case(b"masteruser") || setting.eq_ignore_ascii_case(b"masterauth")
}

/// INFO with this proxy's clients in place of its connections. Those that block do so on connections of their own.
fn counted(reply: &[u8], census: &Census, section: &str) -> Option<Vec<u8>> {
    let head = reply.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let text = reply.get(head..)?.strip_suffix(b"\r\n")?;
    let mut told = Vec::with_capacity(text.len() + 16);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"connected_clients:") {
            told.extend_from_slice(format!("connected_clients:{}\r\n", census.connected()).as_bytes());
        } else if let Some(count) = line
            .strip_prefix(b"blocked_clients:")
            .and_then(|count| parse_i64(count.trim_ascii()))
        {
            let paused = i64::try_from(census.paused()).unwrap_or(i64::MAX);
            told.extend_from_slice(format!("blocked_clients:{}\r\n", count.saturating_add(paused)).as_bytes());
        } else {
            told.extend_from_slice(line);
        }
    }
    if !section.is_empty() {
        // Between two sections there is an empty line; what INFO says in RESP3 begins with its kind.
        if told.ends_with(b"\n") {
            told.extend_from_slice(b"\r\n");
        }
        told.extend_from_slice(section.as_bytes());
    }
    let mut out = vec![*reply.first().filter(|kind| matches!(kind, b'$' | b'='))?];
    put_i64(&mut out, i64::try_from(told.len()).ok()?);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&told);
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// The name of the command that an entry of the slow log is about.
fn command_of(entry: &[u8]) -> Option<&[u8]> {
    let (_, fields) = elements(entry)?;
    let (_, words) = elements(fields.get(3)?)?;
    texts(words.first()?).first().copied()
}

/// Whether a command is our own, or a replica's.
fn is_own_command(name: &[u8]) -> bool {
    let replication = name.eq_ignore_ascii_case(b"replconf") || name.eq_ignore_ascii_case(b"psync");
    replication || is_marked(name)
}

/// Whether an element is a name (USERS), a rule `user NAME ..` (LIST) or an entry with a `username` (LOG) of ours.
fn is_about_ours(element: &[u8]) -> bool {
    let texts = texts(element);
    match texts.as_slice() {
        [text] => {
            let mut words = text.split(|byte| *byte == b' ');
            match (words.next(), words.next()) {
                (Some(b"user"), Some(name)) => is_ours(name),
                (Some(name), None) => is_ours(name),
                _ => false,
            }
        }
        fields => {
            let mut pairs = fields.windows(2).filter(|pair| pair[0] == b"username");
            pairs.any(|pair| is_ours(pair[1]))
        }
    }
}

/// All bulk strings in a reply.
pub(super) fn texts(mut reply: &[u8]) -> Vec<&[u8]> {
    let mut texts = Vec::new();
    while let Some(end) = reply.windows(2).position(|pair| pair == b"\r\n") {
        let (line, rest) = (&reply[..end], &reply[end + 2..]);
        reply = rest;
        if let [b'$', length @ ..] = line
            && let Some(length) = std::str::from_utf8(length)
                .ok()
                .and_then(|length| length.parse::<usize>().ok())
            && rest.len() >= length + 2
        {
            texts.push(&rest[..length]);
            reply = &rest[length + 2..];
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(own: Own, wanted: Option<usize>, reply: &str) -> String {
        let census = Arc::new(Census::default());
        let _clients = [census.connects(), census.connects(), census.pauses()];
        let mut outs = Vec::new();
        // Whole, and byte by byte.
        for size in [reply.len(), 1] {
            let mut redaction = Redaction::new(own, wanted, census.clone());
            let mut out = Vec::new();
            reply
                .as_bytes()
                .chunks(size.max(1))
                .for_each(|part| redaction.take(part, &mut out));
            outs.push(String::from_utf8(out).unwrap());
        }
        assert_eq!(outs[0], outs[1]);
        outs.remove(0)
    }

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    #[test]
    fn the_slow_log_is_without_what_is_our_own() {
        let entry = |words: &[&str]| {
            let words: String = words.iter().map(|word| bulk(word)).collect();
            format!("*6\r\n:1\r\n:2\r\n:3\r\n*2\r\n{words}$0\r\n\r\n$0\r\n\r\n")
        };
        let (get, info, ack) = (
            entry(&["GET", "info"]),
            entry(&["iNFO", "server"]),
            entry(&["REPLCONF", "ACK"]),
        );
        let log = format!("*5\r\n{info}{get}{ack}{get}{get}");
        assert_eq!(shown(Own::SlowLog, Some(2), &log), format!("*2\r\n{get}{get}"));
        assert_eq!(shown(Own::SlowLog, None, &log), format!("*3\r\n{get}{get}{get}"));
        assert_eq!(shown(Own::SlowLog, None, "-NOPERM no\r\n"), "-NOPERM no\r\n");
    }

    #[test]
    fn settings_do_not_tell_the_replicas_credential() {
        for (head, count) in [("*", 4), ("%", 2)] {
            let pairs = |value: &str| [bulk("masterauth"), bulk(value), bulk("port"), bulk("1")].concat();
            let reply = format!("{head}{count}\r\n{}", pairs("secret"));
            let expected = format!("{head}{count}\r\n{}", pairs(""));
            assert_eq!(shown(Own::Settings, None, &reply), expected);
        }
        assert_eq!(shown(Own::Settings, None, "*0\r\n"), "*0\r\n");
    }

    #[test]
    fn info_counts_clients_and_not_connections() {
        let info = "# Clients\r\nconnected_clients:77\r\nblocked_clients:3\r\nmaxclients:9\r\n";
        let expected = "# Clients\r\nconnected_clients:2\r\nblocked_clients:4\r\nmaxclients:9\r\n";
        assert_eq!(shown(Own::Clients, None, &bulk(info)), bulk(expected));
        let verbatim = |text: &str| format!("={}\r\ntxt:{text}\r\n", text.len() + 4);
        assert_eq!(shown(Own::Clients, None, &verbatim(info)), verbatim(expected));
    }

    #[test]
    fn info_ends_with_the_proxys_section_where_that_is_wanted() {
        let census = Arc::new(Census::default());
        let section = "# Proxy\r\nproxy_id:p\r\n";
        let said = |text: &str| {
            let (mut redaction, mut out) = (
                Redaction::new(Own::Clients, None, census.clone()).and(section.to_owned()),
                Vec::new(),
            );
            redaction.take(text.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        let server = "# Server\r\nredis_version:7\r\n";
        assert_eq!(said(&bulk(server)), bulk(&format!("{server}\r\n{section}")));
        assert_eq!(said(&bulk("")), bulk(section));
        let verbatim = |text: &str| format!("={}\r\ntxt:{text}\r\n", text.len() + 4);
        assert_eq!(said(&verbatim("")), verbatim(section));
    }

    #[test]
    fn what_cannot_be_read_is_not_passed_on() {
        for reply in ["$2\r\nhi\r\n", ":1\r\n"] {
            assert_eq!(shown(Own::Users, None, reply).as_bytes(), UNREADABLE);
        }
        let long = bulk(&"x".repeat(REPLY_BYTES_MAX));
        let census = Arc::new(Census::default());
        let (mut out, mut spans, mut frame) = (Vec::new(), Vec::new(), Vec::new());
        put_request(&mut frame, &[b"ACL", b"LIST"]);
        let args = Args::read(&frame, &mut spans).unwrap();
        let mut redaction = redacted(Own::Users, &args, &census).0.unwrap();
        let list = format!("*1\r\n{long}");
        list.as_bytes()
            .chunks(65536)
            .for_each(|part| redaction.take(part, &mut out));
        assert_eq!(out, UNREADABLE);
    }

    fn filtered(reply: &str) -> Option<String> {
        Some(shown(Own::Users, None, reply)).filter(|shown| shown.as_bytes() != UNREADABLE)
    }

    #[test]
    fn users_and_rules_of_ours_are_left_out() {
        let names = "*4\r\n$5\r\nalice\r\n$7\r\ndefault\r\n$8\r\npm-agent\r\n$4\r\npx-3\r\n";
        assert_eq!(filtered(names).unwrap(), "*2\r\n$5\r\nalice\r\n$7\r\ndefault\r\n");
        let rules = "*3\r\n$13\r\nuser repl-2 on\r\n";
        assert_eq!(filtered(rules), None, "not what it says it is");
        let rules = "*3\r\n$14\r\nuser repl-2 on\r\n$16\r\nuser px-alice on\r\n$14\r\nuser default #\r\n";
        assert_eq!(
            filtered(rules).unwrap(),
            "*2\r\n$16\r\nuser px-alice on\r\n$14\r\nuser default #\r\n"
        );
        for same in ["*0\r\n", "+OK\r\n", "-NOPERM no\r\n"] {
            assert_eq!(filtered(same).unwrap(), same);
        }
        assert_eq!(filtered("$2\r\nhi\r\n"), None);
    }

    #[test]
    fn entries_of_a_log_are_left_out_in_both_protocols() {
        let entry = |head: &str, user: &str| {
            let length = user.len();
            format!("{head}\r\n$5\r\ncount\r\n:1\r\n$8\r\nusername\r\n${length}\r\n{user}\r\n$3\r\nage\r\n,1.5\r\n")
        };
        for head in ["*6", "%3"] {
            let log = format!("*2\r\n{}{}", entry(head, "px-1"), entry(head, "bob"));
            assert_eq!(filtered(&log).unwrap(), format!("*1\r\n{}", entry(head, "bob")));
        }
    }
}
