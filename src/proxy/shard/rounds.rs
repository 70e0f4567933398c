//! Rounds of acknowledgement: what one connection to a master asks so that it may vouch for everything that was answered
//! before (design §4, rules A5 and R11).
//!
//! ```text
//! reply of a write --ticket--> the next round: ROLE, (S)PUBLISH, WAIT, ROLE in one write --4 replies--> acknowledged, or not
//! ```
//! Pure: no clock, no socket. Group commit: one round is under way, all that is answered meanwhile waits for the next.
//! Invariants: a ticket names a round that begins after it was given, so that whatever it stands for was executed before
//! what the round publishes; a round counts only if the server was a master in it and did publish, because WAIT looks no
//! further than what its own connection has propagated (Redis 7.2 and later).
//!
//! What counts is not WAIT's number, which is of any replicas: WAIT is what makes them acknowledge. The first ROLE says how
//! far everything goes that was executed before, the second which members have that. What is on disk is not in there: of
//! WAITAOF's number all strangers are taken off. A replica that is asked tells of its disk what was there before it was
//! asked, so that such a round is asked again without publishing: for the same bytes, which are there by then.

use std::cmp::max;
use std::collections::BTreeSet;

use super::members::{Members, RollCall};
use crate::proxy::backend::put_own;

/// The first slice of a WAIT. One issued before a replica is linked gets no answer from it for up to a second, so that a
/// new connection asks again soon.
const SLICE_FIRST_MS: u64 = 2;
/// The longest slice: a replica may be linked anew at any time.
const SLICE_LAST_MS: u64 = 50;
/// Nobody listens there.
const CHANNEL: &[u8] = b"__pointsman:ack";

/// The round that something waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Ticket {
    /// No round will do.
    pub const NEVER: Self = Self(u64::MAX);
}

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// It knows SPUBLISH (Redis 7.0).
    pub sharded: bool,
    /// Replicas count that have it on disk (WAITAOF, Redis 7.2).
    pub on_disk: bool,
}

/// What a round has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything up to this ticket is acknowledged.
    Acknowledged(Ticket),
    /// Too few replicas in this slice; the next round asks again.
    Short,
    /// Nothing: the server could not be asked so. To be tried again after a while.
    Void(&'static str),
    /// Nothing, and nothing more is to be expected: it is no master.
    Deposed(&'static str),
}

/// The rounds of one connection.
#[derive(Debug)]
pub struct Rounds {
    w: u32,
    begun: u64,
    wanted: u64,
    acknowledged: u64,
    under_way: bool,
    slice_ms: u64,
    counted: u32,
    on_disk: bool,
    /// How far everything went that was executed before the round under way published.
    reach: u64,
    /// The next question is for what the last one was.
    again: bool,
    /// Whom WAIT waits for beside W: strangers, which are quicker than members.
    beside: u32,
    /// Replicas that are no members, in the last round.
    strangers: BTreeSet<String>,
}

impl Rounds {
    /// Rounds that ask for `w` replicas; `last` is the last ticket that a former connection may have given.
    pub fn new(w: u32, last: Ticket) -> Self {
        Self {
            w,
            begun: last.0,
            wanted: last.0,
            acknowledged: last.0,
            under_way: false,
            slice_ms: SLICE_FIRST_MS,
            counted: 0,
            on_disk: false,
            reach: 0,
            again: false,
            beside: 0,
            strangers: BTreeSet::new(),
        }
    }

    /// What a reply waits for that has come just now.
    pub fn ticket(&mut self) -> Ticket {
        self.wanted = self.begun + 1;
        Ticket(self.wanted)
    }

    /// The highest ticket that was given.
    pub fn last(&self) -> Ticket {
        Ticket(self.wanted.max(self.begun))
    }

    /// Whether somebody waits for a round that has not begun, and none is under way.
    pub fn is_due(&self) -> bool {
        !self.under_way && self.wanted > self.acknowledged
    }

    /// Begins a round, or asks for the last one again: appends what is to be written at once.
    pub fn begin(&mut self, words: Words, out: &mut Vec<u8>) {
        self.under_way = true;
        self.on_disk = words.on_disk;
        if !self.again {
            self.begun += 1;
            self.wanted = self.wanted.max(self.begun);
            if self.on_disk {
                self.slice_ms = SLICE_FIRST_MS;
            }
        }
        let nonce = self.begun.to_string();
        let (count, slice) = (self.waits_for().to_string(), self.slice_ms.to_string());
        put_own(out, &[b"ROLE"]);
        match (self.again, words.sharded) {
            (true, _) => put_own(out, &[b"ROLE"]),
            (false, true) => put_own(out, &[b"SPUBLISH", CHANNEL, nonce.as_bytes()]),
            (false, false) => put_own(out, &[b"PUBLISH", CHANNEL, nonce.as_bytes()]),
        }
        if words.on_disk {
            put_own(out, &[b"WAITAOF", b"0", count.as_bytes(), slice.as_bytes()]);
        } else {
            put_own(out, &[b"WAIT", count.as_bytes(), slice.as_bytes()]);
        }
        put_own(out, &[b"ROLE"]);
    }

    /// Takes in the replies to the round under way: to ROLE, to the publishing, to the waiting, and to the second ROLE.
    pub fn end(&mut self, [before, published, waited, after]: [&[u8]; 4], members: &Members) -> Outcome {
        self.under_way = false;
        let again = std::mem::take(&mut self.again);
        if [before, after]
            .iter()
            .any(|role| role.starts_with(b"*5\r\n$5\r\nslave\r\n"))
        {
            return Outcome::Deposed("the server is a replica");
        }
        let (Some(before), Some(after)) = (RollCall::read(before), RollCall::read(after)) else {
            return Outcome::Void("the server does not tell its role");
        };
        if waited.starts_with(b"-UNBLOCKED ") {
            return Outcome::Deposed("the server is demoted");
        }
        if !again && !published.starts_with(b":") {
            return Outcome::Void("the server does not publish");
        }
        let Some(waited) = count(waited) else {
            return Outcome::Void("the server does not wait");
        };
        // One that has left meanwhile may have been counted by WAITAOF, too.
        let listed = before.strangers(members).chain(after.strangers(members));
        self.strangers = listed
            .map(|replica| format!("{}:{}", replica.host, replica.port))
            .collect();
        let strangers = u32::try_from(self.strangers.len()).unwrap_or(u32::MAX);
        if !again {
            self.reach = before.offset;
        }
        let mut counted = after.members_at(self.reach, members);
        if self.on_disk {
            counted = counted.min(waited.saturating_sub(strangers));
        }
        if counted < self.w {
            self.counted = counted;
            self.again = self.on_disk;
            if waited >= self.waits_for() {
                // Others were quicker. One more each time, lest it is asked without pause.
                self.beside = max(strangers, self.beside + 1);
            }
            self.slice_ms = (self.slice_ms * 2).min(SLICE_LAST_MS);
            return Outcome::Short;
        }
        self.counted = 0;
        self.beside = if self.on_disk { strangers } else { 0 };
        self.acknowledged = self.begun;
        Outcome::Acknowledged(Ticket(self.begun))
    }

    fn waits_for(&self) -> u32 {
        self.w.saturating_add(self.beside)
    }

    /// The replicas that the last round met and that are no members, `host:port`.
    pub fn strangers(&self) -> &BTreeSet<String> {
        &self.strangers
    }

    /// How many members the last round counted that were too few.
    pub fn counted(&self) -> u32 {
        self.counted
    }

    /// How many are asked for.
    pub fn asked_for(&self) -> u32 {
        self.w
    }
}

/// The number of replicas in a reply to WAIT, or to WAITAOF: the last one.
fn count(reply: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(reply).ok()?;
    if !text.starts_with(':') && !text.starts_with("*2\r\n:") {
        return None;
    }
    text.trim_end().rsplit(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:9\r\n*0\r\n";
    const PLAIN: Words = Words {
        sharded: true,
        on_disk: false,
    };
    /// What replicas have that lack nothing.
    const ALL: u64 = 9;

    fn rounds(w: u32) -> Rounds {
        Rounds::new(w, Ticket::default())
    }

    fn members() -> Members {
        Members::at(["h:1", "h:2"].iter().map(|addr| addr.parse().unwrap()))
    }

    /// A master's second answer: replicas by their ports, and up to where they have acknowledged.
    fn lists(replicas: &[(u16, u64)]) -> Vec<u8> {
        let mut reply = format!("*3\r\n$6\r\nmaster\r\n:12\r\n*{}\r\n", replicas.len());
        for (port, has) in replicas {
            let has = has.to_string();
            reply += &format!("*3\r\n$1\r\nh\r\n$1\r\n{port}\r\n${}\r\n{has}\r\n", has.len());
        }
        reply.into_bytes()
    }

    fn ended(rounds: &mut Rounds, waited: &str, replicas: &[(u16, u64)]) -> Outcome {
        let after = lists(replicas);
        rounds.end([MASTER, b":0\r\n", waited.as_bytes(), &after], &members())
    }

    fn begun_with(rounds: &mut Rounds, words: Words) -> String {
        let mut out = Vec::new();
        rounds.begin(words, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("*1\r\n$4\r\nrOLE\r\n"), "marked as our own: {text}");
        text.to_ascii_uppercase()
    }

    /// Begins a round: how many replicas it waits for, and how long.
    fn begun(rounds: &mut Rounds) -> (u32, u64) {
        let request = begun_with(rounds, PLAIN);
        let words: Vec<&str> = request.trim_end().rsplit("\r\n").collect();
        assert_eq!((words[0], words[7]), ("ROLE", "WAIT"));
        (words[5].parse().unwrap(), words[3].parse().unwrap())
    }

    #[test]
    fn what_comes_while_a_round_is_under_way_waits_for_the_next() {
        let mut rounds = rounds(1);
        assert!(!rounds.is_due());
        let early = rounds.ticket();
        assert!(rounds.is_due() && early == rounds.ticket());
        begun(&mut rounds);
        let late = rounds.ticket();
        assert!(late > early && !rounds.is_due());
        assert_eq!(ended(&mut rounds, ":1\r\n", &[(1, ALL)]), Outcome::Acknowledged(early));
        assert!(rounds.is_due());
        begun(&mut rounds);
        let both = [(1, ALL), (2, ALL)];
        assert_eq!(ended(&mut rounds, ":2\r\n", &both), Outcome::Acknowledged(late));
        assert!(!rounds.is_due());
    }

    #[test]
    fn a_round_that_proves_nothing_is_asked_again_and_covers_all_that_came_since() {
        let slave = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$4\r\nsync\r\n:1\r\n";
        let misconf = b"-MISCONF x\r\n";
        let unblocked = b"-UNBLOCKED force unblock from blocking operation\r\n";
        let (busy, one) = (b"-BUSY x\r\n", lists(&[(1, ALL)]));
        for (replies, deposed) in [
            ([&busy[..], b":0\r\n", b":1\r\n", &one], false),
            ([MASTER, misconf, b":1\r\n", &one], false),
            ([MASTER, b":0\r\n", b"-ERR unknown command\r\n", &one], false),
            ([MASTER, b":0\r\n", b":1\r\n", busy], false),
            ([slave, b":0\r\n", b":1\r\n", &one], true),
            ([MASTER, b":0\r\n", b":1\r\n", slave], true),
            ([MASTER, b":0\r\n", unblocked, &one], true),
        ] {
            let mut rounds = rounds(1);
            let first = rounds.ticket();
            begun(&mut rounds);
            let outcome = rounds.end(replies, &members());
            assert_eq!(matches!(outcome, Outcome::Deposed(_)), deposed, "{outcome:?}");
            assert!(deposed || matches!(outcome, Outcome::Void(_)), "{outcome:?}");
            assert!(rounds.is_due());
            begun(&mut rounds);
            let Outcome::Acknowledged(upto) = ended(&mut rounds, ":1\r\n", &[(1, ALL)]) else {
                panic!("not acknowledged");
            };
            assert!(upto > first);
        }
    }

    #[test]
    fn too_few_replicas_are_counted_and_slices_grow_to_their_limit() {
        let mut rounds = rounds(2);
        rounds.ticket();
        let mut slices = Vec::new();
        for _ in 0..7 {
            slices.push(begun(&mut rounds));
            assert_eq!(ended(&mut rounds, ":1\r\n", &[(1, ALL), (2, ALL - 1)]), Outcome::Short);
            assert_eq!(rounds.counted(), 1);
        }
        assert_eq!(slices, [2, 4, 8, 16, 32, 50, 50].map(|slice| (2, slice)));
        begun(&mut rounds);
        let outcome = ended(&mut rounds, ":2\r\n", &[(1, ALL), (2, ALL + 1)]);
        assert!(matches!(outcome, Outcome::Acknowledged(_)), "{outcome:?}");
        assert_eq!(rounds.counted(), 0);
    }

    #[test]
    fn a_replica_that_is_no_member_never_counts_and_is_waited_for_only_while_it_is_in_the_way() {
        let mut rounds = rounds(1);
        rounds.ticket();
        assert_eq!(begun(&mut rounds).0, 1);
        assert_eq!(ended(&mut rounds, ":1\r\n", &[(1, 3), (7, ALL)]), Outcome::Short);
        assert_eq!(rounds.counted(), 0);
        assert!(rounds.strangers().iter().eq(["h:7"]));
        for _ in 0..3 {
            assert_eq!(begun(&mut rounds).0, 2, "else it would be asked without pause");
            assert_eq!(ended(&mut rounds, ":1\r\n", &[(1, 3), (7, ALL)]), Outcome::Short);
        }
        begun(&mut rounds);
        // WAIT is over, and the member there just then.
        let outcome = ended(&mut rounds, ":1\r\n", &[(1, ALL), (7, ALL)]);
        assert!(matches!(outcome, Outcome::Acknowledged(_)), "{outcome:?}");
        rounds.ticket();
        assert_eq!(begun(&mut rounds).0, 1);
        assert_eq!(ended(&mut rounds, ":9\r\n", &[]), Outcome::Short);
        assert!(rounds.strangers().is_empty());
    }

    #[test]
    fn servers_are_asked_in_words_that_they_know() {
        let words = Words {
            sharded: false,
            on_disk: true,
        };
        let mut rounds = rounds(1);
        rounds.ticket();
        let text = begun_with(&mut rounds, words);
        assert!(text.contains("$7\r\nPUBLISH\r\n") && text.contains("$7\r\nWAITAOF\r\n$1\r\n0\r\n$1\r\n1\r\n"));
        let outcome = ended(&mut rounds, "*2\r\n:1\r\n:1\r\n", &[(1, ALL)]);
        assert!(matches!(outcome, Outcome::Acknowledged(_)), "{outcome:?}");
    }

    #[test]
    fn of_those_that_have_it_on_disk_every_stranger_is_taken_off() {
        let words = Words { on_disk: true, ..PLAIN };
        let mut rounds = rounds(1);
        rounds.ticket();
        let mut ends = |waited: &str, replicas: &[(u16, u64)]| {
            let asked = begun_with(&mut rounds, words);
            let outcome = ended(&mut rounds, waited, replicas);
            (
                asked.contains("WAITAOF\r\n$1\r\n0\r\n$1\r\n2\r\n"),
                matches!(outcome, Outcome::Acknowledged(_)),
            )
        };
        // Whose disk it is, is not said. The same bytes are asked for until they are there.
        assert_eq!(ends("*2\r\n:1\r\n:1\r\n", &[(1, ALL), (7, 0)]), (false, false));
        assert_eq!(ends("*2\r\n:1\r\n:1\r\n", &[(1, ALL), (7, 0)]), (true, false));
        assert_eq!(ends("*2\r\n:1\r\n:2\r\n", &[(1, ALL), (7, ALL)]), (true, true));
        assert_eq!(ends("*2\r\n:1\r\n:0\r\n", &[(1, ALL)]), (true, false));
    }

    #[test]
    fn what_is_to_be_on_disk_is_asked_for_until_it_is_there_and_covers_nothing_newer() {
        let words = Words { on_disk: true, ..PLAIN };
        let mut rounds = rounds(1);
        let early = rounds.ticket();
        assert!(begun_with(&mut rounds, words).contains("PUBLISH"));
        let late = rounds.ticket();
        for _ in 0..2 {
            assert_eq!(ended(&mut rounds, "*2\r\n:1\r\n:0\r\n", &[(1, ALL)]), Outcome::Short);
            assert!(rounds.is_due());
            assert!(!begun_with(&mut rounds, words).contains("PUBLISH"));
            assert_eq!(rounds.ticket(), late);
        }
        let outcome = ended(&mut rounds, "*2\r\n:1\r\n:1\r\n", &[(1, ALL)]);
        assert_eq!(outcome, Outcome::Acknowledged(early));
        assert!(rounds.is_due());
        assert!(begun_with(&mut rounds, words).contains("PUBLISH"));
        let outcome = ended(&mut rounds, "*2\r\n:1\r\n:1\r\n", &[(1, ALL)]);
        assert_eq!(outcome, Outcome::Acknowledged(late));
        // One that proved nothing has not told how far everything went either.
        rounds.ticket();
        begun_with(&mut rounds, words);
        let void = rounds.end([MASTER, b"-MISCONF x\r\n", b"*2\r\n:1\r\n:1\r\n", MASTER], &members());
        assert!(matches!(void, Outcome::Void(_)), "{void:?}");
        assert!(begun_with(&mut rounds, words).contains("PUBLISH"));
    }

    #[test]
    fn tickets_of_a_former_connection_are_none_of_the_next() {
        let mut former = rounds(1);
        let old = former.ticket();
        assert!(Rounds::new(1, former.last()).ticket() > old);
    }
}
