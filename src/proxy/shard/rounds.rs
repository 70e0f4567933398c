//! Rounds of acknowledgement: what one connection to a master asks so that it may vouch for everything that was answered
//! before (design §4, rules A5 and R11).
//!
//! ```text
//! reply of a write --ticket--> the next round: ROLE, (S)PUBLISH, WAIT W in one write --3 replies--> acknowledged, or not
//! ```
//! Pure: no clock, no socket. Group commit: one round is under way, all that is answered meanwhile waits for the next.
//! Invariants: a ticket names a round that begins after it was given, so that whatever it stands for was executed before
//! what the round publishes; a round counts only if the server was a master in it and did publish, because WAIT looks no
//! further than what its own connection has propagated (Redis 7.2 and later).

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

    /// Begins a round: appends what is to be written at once.
    pub fn begin(&mut self, words: Words, out: &mut Vec<u8>) {
        self.begun += 1;
        self.wanted = self.wanted.max(self.begun);
        self.under_way = true;
        let nonce = self.begun.to_string();
        let (w, slice) = (self.w.to_string(), self.slice_ms.to_string());
        let publish: &[u8] = if words.sharded { b"SPUBLISH" } else { b"PUBLISH" };
        put_own(out, &[b"ROLE"]);
        put_own(out, &[publish, CHANNEL, nonce.as_bytes()]);
        if words.on_disk {
            put_own(out, &[b"WAITAOF", b"0", w.as_bytes(), slice.as_bytes()]);
        } else {
            put_own(out, &[b"WAIT", w.as_bytes(), slice.as_bytes()]);
        }
    }

    /// Takes in the replies to the round under way: to ROLE, to the publishing, and to the waiting.
    pub fn end(&mut self, [role, published, waited]: [&[u8]; 3]) -> Outcome {
        self.under_way = false;
        if role.starts_with(b"*5\r\n$5\r\nslave\r\n") {
            return Outcome::Deposed("the server is a replica");
        }
        if !role.starts_with(b"*3\r\n$6\r\nmaster\r\n") {
            return Outcome::Void("the server does not tell its role");
        }
        if waited.starts_with(b"-UNBLOCKED ") {
            return Outcome::Deposed("the server is demoted");
        }
        if !published.starts_with(b":") {
            return Outcome::Void("the server does not publish");
        }
        let Some(count) = count(waited) else {
            return Outcome::Void("the server does not wait");
        };
        if count < self.w {
            self.counted = count;
            self.slice_ms = (self.slice_ms * 2).min(SLICE_LAST_MS);
            return Outcome::Short;
        }
        self.counted = 0;
        self.acknowledged = self.begun;
        Outcome::Acknowledged(Ticket(self.begun))
    }

    /// How many replicas the last round counted that were too few.
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

    fn rounds(w: u32) -> Rounds {
        Rounds::new(w, Ticket::default())
    }

    fn begun(rounds: &mut Rounds) -> String {
        let mut out = Vec::new();
        rounds.begin(PLAIN, &mut out);
        String::from_utf8(out).unwrap()
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
        assert_eq!(rounds.end([MASTER, b":0\r\n", b":1\r\n"]), Outcome::Acknowledged(early));
        assert!(rounds.is_due());
        begun(&mut rounds);
        assert_eq!(rounds.end([MASTER, b":0\r\n", b":2\r\n"]), Outcome::Acknowledged(late));
        assert!(!rounds.is_due());
    }

    #[test]
    fn a_round_that_proves_nothing_is_asked_again_and_covers_all_that_came_since() {
        let slave = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$4\r\nsync\r\n:1\r\n";
        let misconf = b"-MISCONF x\r\n";
        let unblocked = b"-UNBLOCKED force unblock from blocking operation\r\n";
        for (replies, deposed) in [
            ([&b"-BUSY x\r\n"[..], b":0\r\n", b":1\r\n"], false),
            ([MASTER, misconf, b":1\r\n"], false),
            ([MASTER, b":0\r\n", b"-ERR unknown command\r\n"], false),
            ([slave, b":0\r\n", b":1\r\n"], true),
            ([MASTER, b":0\r\n", unblocked], true),
        ] {
            let mut rounds = rounds(1);
            let first = rounds.ticket();
            begun(&mut rounds);
            let outcome = rounds.end(replies);
            assert_eq!(matches!(outcome, Outcome::Deposed(_)), deposed, "{outcome:?}");
            assert!(deposed || matches!(outcome, Outcome::Void(_)), "{outcome:?}");
            assert!(rounds.is_due());
            begun(&mut rounds);
            let Outcome::Acknowledged(upto) = rounds.end([MASTER, b":0\r\n", b":1\r\n"]) else {
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
            let request = begun(&mut rounds);
            slices.push(request.trim_end().rsplit("\r\n").next().unwrap().to_owned());
            assert_eq!(rounds.end([MASTER, b":0\r\n", b":1\r\n"]), Outcome::Short);
            assert_eq!(rounds.counted(), 1);
        }
        assert_eq!(slices, ["2", "4", "8", "16", "32", "50", "50"]);
        begun(&mut rounds);
        assert!(matches!(
            rounds.end([MASTER, b":0\r\n", b":2\r\n"]),
            Outcome::Acknowledged(_)
        ));
        assert_eq!(rounds.counted(), 0);
    }

    #[test]
    fn servers_are_asked_in_words_that_they_know() {
        let mut out = Vec::new();
        let words = Words {
            sharded: false,
            on_disk: true,
        };
        let mut rounds = rounds(1);
        rounds.ticket();
        rounds.begin(words, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("$7\r\npUBLISH\r\n") && text.contains("$7\r\nwAITAOF\r\n$1\r\n0\r\n$1\r\n1\r\n"));
        assert!(matches!(
            rounds.end([MASTER, b":0\r\n", b"*2\r\n:1\r\n:1\r\n"]),
            Outcome::Acknowledged(_)
        ));
    }

    #[test]
    fn tickets_of_a_former_connection_are_none_of_the_next() {
        let mut former = rounds(1);
        let old = former.ticket();
        assert!(Rounds::new(1, former.last()).ticket() > old);
    }
}
