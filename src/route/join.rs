//! Joining the replies to the parts of a split request into one. Pure.
//!
//! Elements are shown as soon as they are there and it is their turn; what comes earlier is held. Nothing is shown
//! before every part has begun to answer well: an error of one part is an error of the whole, which says what was done
//! all the same.

use super::split::{Joining, Split};
use crate::resp::{Heed, ReplyScanner, Stop, put_i64};
use crate::topology::ShardId;

/// The replies to the parts of one request.
#[derive(Clone, Debug)]
pub struct Join {
    joining: Joining,
    writes: bool,
    parts: Vec<Heard>,
    /// For each element its part.
    order: Vec<u16>,
    /// How many elements were shown.
    shown: usize,
    /// Whether anything was.
    begun: bool,
    /// What is drawn by.
    lot: u64,
}

/// What one part answered.
#[derive(Clone, Debug)]
struct Heard {
    shard: ShardId,
    bytes: Vec<u8>,
    /// How many of them were shown.
    used: usize,
    scanner: ReplyScanner,
    whole: bool,
}

impl Heard {
    /// The length of its line that says how many elements follow; none if that is not whole yet.
    fn header(&self) -> Option<usize> {
        let end = self.bytes.windows(2).position(|pair| pair == b"\r\n")?;
        Some(end + 2)
    }

    /// The first error among its replies, of which there are two at most, without its sign and its end.
    fn error(&self) -> Option<&str> {
        let second = self.header().and_then(|end| self.bytes.get(end..));
        let mut replies = [Some(&self.bytes[..]), second].into_iter().flatten();
        let error = replies.find_map(|reply| reply.strip_prefix(b"-"))?;
        let end = error.windows(2).position(|pair| pair == b"\r\n")?;
        Some(std::str::from_utf8(&error[..end]).unwrap_or("ERR an error that is no text"))
    }

    fn number(&self) -> Option<i64> {
        let line = self.bytes.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
        std::str::from_utf8(line).ok()?.parse().ok()
    }
}

impl Join {
    /// Nothing was answered yet. `name` gives a shard's, `lot` is any number.
    pub fn new(split: &mut Split, lot: u64, name: impl Fn(&super::Part) -> ShardId) -> Self {
        let parts = split.parts.iter().map(|part| Heard {
            shard: name(part),
            bytes: Vec::new(),
            used: 0,
            scanner: ReplyScanner::default(),
            whole: false,
        });
        Self {
            joining: split.joining,
            writes: split.writes,
            parts: parts.collect(),
            order: std::mem::take(&mut split.order),
            shown: 0,
            begun: false,
            lot,
        }
    }

    /// A part answered these bytes, which are the last of its reply if it is `whole`.
    pub fn fill(&mut self, part: usize, bytes: &[u8], whole: bool) {
        let Some(heard) = self.parts.get_mut(part) else { return };
        heard.bytes.extend_from_slice(bytes);
        heard.whole |= whole;
    }

    /// Appends to `out` what can be shown now. Says whether that was all.
    pub fn show(&mut self, out: &mut Vec<u8>) -> bool {
        let is_array = |heard: &Heard| heard.bytes.starts_with(b"*");
        let shows_arrays = matches!(self.joining, Joining::Elements | Joining::Concatenation);
        if self.begun || (shows_arrays && self.parts.iter().all(is_array)) {
            return self.show_elements(out);
        }
        if !self.parts.iter().all(|heard| heard.whole) {
            return false;
        }
        match self.joining {
            Joining::Sum => {
                let numbers: Option<Vec<i64>> = self.parts.iter().map(Heard::number).collect();
                match numbers {
                    Some(numbers) => {
                        out.push(b':');
                        put_i64(out, numbers.into_iter().fold(0, i64::saturating_add));
                        out.extend_from_slice(b"\r\n");
                    }
                    None => self.put_failure(out),
                }
            }
            Joining::Draw => match self.drawn() {
                Some(key) => out.extend_from_slice(key),
                None => self.put_failure(out),
            },
            Joining::Agreement if self.parts.iter().all(|heard| heard.bytes == self.parts[0].bytes) => {
                out.extend_from_slice(&self.parts[0].bytes);
            }
            Joining::Agreement | Joining::Elements | Joining::Concatenation => self.put_failure(out),
        }
        true
    }

    /// A key of one of the shards, each by how many it has. None if one of them did not say.
    fn drawn(&self) -> Option<&[u8]> {
        let read = |heard: &'_ Heard| {
            let end = heard.header()?;
            let count = std::str::from_utf8(heard.bytes.get(1..end - 2)?).ok()?.parse().ok()?;
            let is_well = heard.bytes.starts_with(b":") && !heard.bytes[end..].starts_with(b"-");
            is_well.then_some((end, count))
        };
        let read: Option<Vec<(usize, u64)>> = self.parts.iter().map(read).collect();
        let read = read?;
        let all: u64 = read.iter().map(|(_, count)| *count).sum();
        let mut left = self.lot.checked_rem(all).unwrap_or(0);
        let mut answers = self.parts.iter().zip(read);
        let drawn = answers.find(|(_, (_, count))| {
            let is_it = left < *count;
            left = left.saturating_sub(*count);
            is_it
        });
        // All are empty: each says so.
        let (heard, end) = drawn.map_or_else(
            || self.parts.first().map(|heard| (heard, heard.header().unwrap_or(0))),
            |(heard, (end, _))| Some((heard, end)),
        )?;
        Some(&heard.bytes[end..])
    }

    fn show_elements(&mut self, out: &mut Vec<u8>) -> bool {
        if !self.begun {
            let headers: Option<Vec<usize>> = self.parts.iter().map(Heard::header).collect();
            let Some(headers) = headers else { return false };
            for ((heard, header), part) in self.parts.iter_mut().zip(headers).zip(0..) {
                heard.used = header;
                if self.joining == Joining::Concatenation {
                    let count = std::str::from_utf8(&heard.bytes[1..header - 2]).ok();
                    let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
                    self.order.extend(std::iter::repeat_n(part, count));
                }
            }
            out.push(b'*');
            put_i64(out, i64::try_from(self.order.len()).unwrap_or(i64::MAX));
            out.extend_from_slice(b"\r\n");
            self.begun = true;
        }
        while let Some(part) = self.order.get(self.shown) {
            let heard = &mut self.parts[usize::from(*part)];
            let scanned = heard.scanner.scan(&heard.bytes[heard.used..], 1, Heed::Nothing);
            out.extend_from_slice(&heard.bytes[heard.used..heard.used + scanned.used]);
            heard.used += scanned.used;
            match scanned.stop {
                Stop::Counted => self.shown += 1,
                Stop::Starved if scanned.replies == 1 => self.shown += 1,
                Stop::Starved | Stop::Noted | Stop::Push | Stop::Malformed => break,
            }
        }
        for heard in &mut self.parts {
            heard.bytes.drain(..heard.used);
            heard.used = 0;
        }
        self.shown == self.order.len()
    }

    /// How many parts there are.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// How many bytes wait for their turn.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.parts.iter().map(|heard| heard.bytes.len()).sum()
    }

    /// At least one part says no. A part that was done although others were not makes the whole one of unknown
    /// outcome to who retries it.
    fn put_failure(&self, out: &mut Vec<u8>) {
        let said: Vec<(&ShardId, Option<&str>)> =
            self.parts.iter().map(|heard| (&heard.shard, heard.error())).collect();
        let errors = || said.iter().filter_map(|(shard, error)| Some((shard, (*error)?)));
        let Some((_, first)) = errors().next() else {
            out.extend_from_slice(b"-ERR a shard gave an answer of another kind\r\n");
            return;
        };
        let done: Vec<&str> = said
            .iter()
            .filter(|(_, error)| error.is_none())
            .map(|(shard, _)| shard.as_str())
            .collect();
        let in_doubt = errors().any(|(_, error)| error.starts_with("INDOUBT "));
        if !self.writes || (done.is_empty() && !in_doubt) {
            out.extend_from_slice(format!("-{first}\r\n").as_bytes());
            return;
        }
        let not: Vec<String> = errors().map(|(shard, error)| format!("on {shard}: {error}")).collect();
        let done = match done.as_slice() {
            [] => "not known to be executed on any shard".to_owned(),
            done => format!("executed on {} only", done.join(", ")),
        };
        out.extend_from_slice(format!("-INDOUBT {done}; {}\r\n", not.join("; ")).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::split::Part;
    use super::*;
    use crate::topology::ShardIndex;

    fn join(joining: Joining, writes: bool, keys: &[u32], order: &[u16]) -> Join {
        let parts = keys.iter().zip(0..).map(|(keys, at)| Part {
            shard: ShardIndex(at),
            request: Vec::new(),
            replies: 1,
            keys: *keys,
        });
        let mut split = Split {
            joining,
            writes,
            parts: parts.collect(),
            order: order.to_vec(),
        };
        Join::new(&mut split, 5, |part| {
            ShardId::from(format!("s{}", part.shard.0 + 1).as_str())
        })
    }

    fn joined(mut join: Join, replies: &[&str]) -> String {
        let mut out = Vec::new();
        for (at, reply) in replies.iter().enumerate() {
            assert!(!join.show(&mut out));
            join.fill(at, reply.as_bytes(), true);
        }
        assert!(join.show(&mut out));
        assert_eq!(join.held() * usize::from(out.starts_with(b"*")), 0);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_added_and_consent_is_everybodys() {
        assert_eq!(
            joined(join(Joining::Sum, true, &[2, 1], &[]), &[":2\r\n", ":1\r\n"]),
            ":3\r\n"
        );
        let consent = || join(Joining::Agreement, true, &[1, 1], &[]);
        assert_eq!(joined(consent(), &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
    }

    #[test]
    fn elements_stand_in_the_order_of_their_keys() {
        let join = join(Joining::Elements, false, &[2, 1], &[0, 1, 0]);
        assert_eq!(
            joined(join, &["*2\r\n$1\r\na\r\n$-1\r\n", "*1\r\n_\r\n"]),
            "*3\r\n$1\r\na\r\n_\r\n$-1\r\n"
        );
    }

    #[test]
    fn arrays_follow_each_other() {
        let join = || join(Joining::Concatenation, false, &[0, 0, 0], &[]);
        let keys = joined(
            join(),
            &["*1\r\n$1\r\na\r\n", "*0\r\n", "*2\r\n$1\r\nb\r\n$2\r\ncd\r\n"],
        );
        assert_eq!(keys, "*3\r\n$1\r\na\r\n$1\r\nb\r\n$2\r\ncd\r\n");
        assert_eq!(joined(join(), &["*0\r\n", "*0\r\n", "*0\r\n"]), "*0\r\n");
    }

    #[test]
    fn a_key_is_drawn_by_how_many_there_are() {
        let draw = || join(Joining::Draw, false, &[0, 0, 0], &[]);
        let (a, b, c) = ("$1\r\na\r\n", "$1\r\nb\r\n", "$1\r\nc\r\n");
        let of = |counts: [u64; 3]| {
            let replies = counts.iter().zip([a, b, c]);
            let replies: Vec<String> = replies
                .map(|(count, key)| format!(":{count}\r\n{}", if *count > 0 { key } else { "$-1\r\n" }))
                .collect();
            joined(draw(), &replies.iter().map(String::as_str).collect::<Vec<_>>())
        };
        // The lot is 5.
        assert_eq!([of([6, 1, 1]), of([5, 1, 1]), of([2, 3, 9])], [a, b, c]);
        assert_eq!([of([0, 4, 0]), of([0, 0, 0])], [b, "$-1\r\n"]);
        let down = "-MASTERDOWN x\r\n";
        assert_eq!(joined(draw(), &[":1\r\n$1\r\na\r\n", down, ":0\r\n$-1\r\n"]), down);
        // Both of its requests failed, or the second: one reply in any case.
        let well = ":1\r\n$1\r\na\r\n";
        let (both, second) = (format!("{down}{down}"), format!(":1\r\n{down}"));
        assert_eq!(joined(draw(), &[well, &both, well]), down);
        assert_eq!(joined(draw(), &[well, well, &second]), down);
    }

    #[test]
    fn what_all_say_the_same_is_said_once() {
        let join = || join(Joining::Agreement, true, &[0, 0], &[]);
        let exists = "-ERR Library 'l' already exists\r\n";
        assert_eq!(joined(join(), &[exists, exists]), exists);
        assert_eq!(joined(join(), &["$1\r\nl\r\n", "$1\r\nl\r\n"]), "$1\r\nl\r\n");
        assert!(joined(join(), &[exists, "$1\r\nl\r\n"]).starts_with("-INDOUBT executed on s2 only; on s1: ERR "));
    }

    #[test]
    fn an_error_of_one_part_is_one_of_the_whole_and_says_what_was_done() {
        let down = "-MASTERDOWN no master for the shard: not executed\r\n";
        let doubt = "-INDOUBT the master was lost\r\n";
        let mget = || join(Joining::Elements, false, &[1, 1], &[0, 1]);
        assert_eq!(joined(mget(), &["*1\r\n$1\r\na\r\n", down]), down);
        assert_eq!(joined(mget(), &[down, doubt]), down);
        let mset = || join(Joining::Agreement, true, &[1, 1], &[]);
        assert_eq!(joined(mset(), &[down, down]), down);
        assert_eq!(
            joined(mset(), &["+OK\r\n", down]),
            "-INDOUBT executed on s1 only; on s2: MASTERDOWN no master for the shard: not executed\r\n"
        );
        assert_eq!(
            joined(mset(), &[down, doubt]),
            "-INDOUBT not known to be executed on any shard; on s1: MASTERDOWN no master for the shard: not executed; \
             on s2: INDOUBT the master was lost\r\n"
        );
        let del = join(Joining::Sum, true, &[1, 1], &[]);
        assert!(joined(del, &["-NOPERM x\r\n", ":1\r\n"]).starts_with("-INDOUBT executed on s2 only; on s1: NOPERM x"));
    }

    proptest! {
        #[test]
        fn any_arrival_gives_the_same(
            order in prop::collection::vec(0u16..3, 1..30),
            sizes in prop::collection::vec(0usize..40, 30),
            steps in prop::collection::vec((0usize..3, 1usize..30), 0..200),
        ) {
            let mut replies = vec![String::new(); 3];
            let mut expected = format!("*{}\r\n", order.len());
            let mut keys = [0u32; 3];
            for (number, part) in order.iter().enumerate() {
                let element = match sizes[number] {
                    0 => "$-1\r\n".to_owned(),
                    size => format!("${size}\r\n{}\r\n", "\r\n$9*:-xyz".repeat(4).chars().take(size).collect::<String>()),
                };
                expected += &element;
                replies[usize::from(*part)] += &element;
                keys[usize::from(*part)] += 1;
            }
            let present: Vec<usize> = (0..3).filter(|part| keys[*part] > 0).collect();
            let at = |part: u16| u16::try_from(present.iter().position(|one| *one == usize::from(part)).unwrap()).unwrap();
            let order: Vec<u16> = order.into_iter().map(at).collect();
            let replies: Vec<String> = present.iter().map(|part| format!("*{}\r\n{}", keys[*part], replies[*part])).collect();
            let keys: Vec<u32> = present.iter().map(|part| keys[*part]).collect();
            let mut join = join(Joining::Elements, false, &keys, &order);
            let (mut out, mut sent) = (Vec::new(), vec![0usize; replies.len()]);
            let all = (0..replies.len()).map(|part| (part, usize::MAX));
            let mut ended = false;
            for (part, count) in steps.into_iter().chain(all) {
                let Some(reply) = replies.get(part) else { continue };
                let end = sent[part].saturating_add(count).min(reply.len());
                join.fill(part, &reply.as_bytes()[sent[part]..end], end == reply.len());
                sent[part] = end;
                ended = join.show(&mut out);
            }
            prop_assert!(ended);
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
            prop_assert_eq!(join.held(), 0);
        }
    }
}
