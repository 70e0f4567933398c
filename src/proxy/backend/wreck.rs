//! What was in flight on a lane that ends, cut into commands, and what Redis still answered to them.
//!
//! ```text
//! ledger + bytes --cut--> units <--log-- replies that came after the first refusal
//!                           |
//!                           +--by_session--> Lost --> route::plan --> shown, in doubt, or sent again
//! ```
//! Nobody has seen a logged reply. Invariant: units stand in the order they were sent; the first `next` are answered.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::ledger::Entry;
use crate::command::{Flags, Lookup, Table};
use crate::proxy::client::{RunId, Session};
use crate::resp::{Args, Heed, ReplyScanner, RequestLimits, RequestScanner, Scan, Span, Stop};
use crate::route::{Fate, Line, refusal};

/// Replies that are kept of a lane that refuses commands, in bytes; what would need more counts as unanswered.
const LOG_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a command is to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing.
    Plain,
    /// MULTI, commands and EXEC in one, sent and answered whole.
    Block,
    /// MULTI on a private connection.
    Multi,
    /// EXEC on a private connection.
    Exec,
    /// DISCARD on a private connection.
    Discard,
    /// WATCH or UNWATCH on a private connection.
    Watch,
    /// Nobody knows any more: it was streamed, and its bytes were not kept.
    Forgotten,
}

/// What has to be known of a command to judge it.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// What it is to a transaction.
    pub role: Role,
    writes: bool,
    /// A script, a module and DEBUG ERROR choose the words of their errors themselves: they prove nothing.
    own_words: bool,
}

/// One command, or a block of them, that was in flight.
struct Unit {
    session: Rc<Session>,
    run: RunId,
    replies: u32,
    bytes: Range<usize>,
    /// All of its bytes were written.
    sent: bool,
    traits: Traits,
    came: Came,
}

/// What Redis said; ranges of the log.
enum Came {
    Nothing,
    /// An answer that was held back: it is not acknowledged.
    Held,
    Answer(Range<usize>),
    Refusal(Range<usize>),
}

/// One command, or a block of them, of a lane that is gone.
pub struct Lost {
    /// Where in its session's window.
    pub run: RunId,
    /// How many replies its client expects.
    pub replies: u32,
    /// What is known of it.
    pub fate: Fate,
    /// What it is to a transaction.
    pub role: Role,
    /// Its bytes; none if it was streamed.
    pub bytes: Vec<u8>,
    /// What Redis answered, if it did.
    pub answer: Vec<u8>,
    /// Since when it may have been blocking, on a private connection.
    pub since_ms: Option<u64>,
}

/// Everything that was in flight.
#[derive(Default)]
pub struct Wreck {
    bytes: Vec<u8>,
    units: Vec<Unit>,
    next: usize,
    private: bool,
    front_since_ms: u64,
    scanner: ReplyScanner,
    log: Vec<u8>,
    /// Where in the log the next unit's replies begin, and the last of them.
    began: usize,
    last_began: usize,
    /// Replies of the next unit that are complete.
    complete: u32,
    interrupted: Vec<Rc<Session>>,
    /// What was written needs an acknowledgement, which nobody gives any more.
    acknowledges: bool,
    /// Redis has closed the connection behind an answer: what it read beyond that, it did not run.
    closed_behind: bool,
}

impl Traits {
    /// What `args` are.
    pub fn of(args: &Args, table: &Table) -> Self {
        let Lookup::Known(command) = table.lookup(args) else {
            return Self {
                role: Role::Plain,
                writes: true,
                own_words: true,
            };
        };
        let role = match &*command.name {
            "multi" => Role::Multi,
            "exec" => Role::Exec,
            "discard" => Role::Discard,
            "watch" | "unwatch" => Role::Watch,
            _ => Role::Plain,
        };
        Self {
            role,
            writes: command.is_write() || role == Role::Exec,
            own_words: command.flags.has_any(Flags::NO_MANDATORY_KEYS.with(Flags::MODULE)) || &*command.name == "debug",
        }
    }

    /// Whether it may change something.
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// Whether a reply shows that nothing was changed and nothing read: an error in Redis' own words, or one to what stands
    /// around a transaction.
    pub fn changed_nothing(&self, reply: &[u8]) -> bool {
        let error = reply.starts_with(b"-") && !self.own_words && !matches!(self.role, Role::Block | Role::Forgotten);
        error || matches!(self.role, Role::Multi | Role::Discard | Role::Watch)
    }

    /// Whether a reply that begins with `bytes` refuses the command. `queued`: the replies before EXEC's in a block.
    pub fn line(&self, bytes: &[u8], queued: &[u8], private: bool) -> Line {
        match self.role {
            Role::Block => refusal::of_exec(bytes, Some(queued)),
            Role::Exec => refusal::of_exec(bytes, None),
            _ if self.own_words => Line::Answer,
            Role::Plain | Role::Multi | Role::Discard | Role::Watch | Role::Forgotten if private => {
                refusal::of_command(bytes)
            }
            Role::Plain | Role::Multi | Role::Discard | Role::Watch | Role::Forgotten => {
                refusal::of_shared_command(bytes)
            }
        }
    }
}

impl Wreck {
    /// A wreck without anything in it, of a connection that one session owned or that several shared, and whose writes are
    /// acknowledged or not. What will be first in it had its turn at `front_since_ms`.
    pub fn new(private: bool, acknowledges: bool, front_since_ms: u64) -> Self {
        Self {
            private,
            acknowledges,
            front_since_ms,
            ..Self::default()
        }
    }

    /// Adds commands behind those that are there. `bytes` are the entries', of which the first `written` left.
    pub fn cut(&mut self, entries: VecDeque<Entry<Rc<Session>>>, bytes: &[u8], written: usize, table: &Table) {
        let (base, mut at) = (self.bytes.len(), 0);
        self.bytes.extend_from_slice(bytes);
        let mut frames = Frames::default();
        for entry in entries {
            let mut rest = entry.bytes;
            let mut block: Option<(usize, bool)> = None;
            for number in 0..entry.count {
                let begin = at;
                let traits = match frames.next(bytes.get(at..at + rest).unwrap_or_default(), table) {
                    Some((len, traits)) => {
                        (at, rest) = (at + len, rest - len);
                        traits
                    }
                    None => Traits::FORGOTTEN,
                };
                if entry.block && entry.released == 0 {
                    let (begin, writes) = block.unwrap_or((begin, false));
                    let exec = traits.role == Role::Exec;
                    block = Some((begin, writes || (traits.writes && !exec)));
                    continue;
                }
                if number >= entry.released {
                    let range = base + begin..base + at;
                    let mut unit = Unit::new(&entry, 1, range, at <= written, traits);
                    if number < entry.answered {
                        unit.came = Came::Held;
                    }
                    self.units.push(unit);
                }
            }
            if let Some((begin, writes)) = block {
                let traits = Traits {
                    role: Role::Block,
                    writes,
                    own_words: false,
                };
                let range = base + begin..base + at;
                let mut unit = Unit::new(&entry, entry.count, range, at <= written, traits);
                if entry.answered == entry.count {
                    unit.came = Came::Held;
                }
                self.units.push(unit);
            }
        }
        let held = |unit: &&Unit| matches!(unit.came, Came::Held);
        self.next += self.units[self.next..].iter().take_while(held).count();
    }

    /// Whether Redis still has something to answer.
    pub fn awaits_replies(&self) -> bool {
        self.units.get(self.next).is_some_and(|unit| unit.sent) && self.log.len() <= LOG_BYTES_MAX
    }

    /// Takes replies to what was sent. `false`: no more are wanted, or they make no sense.
    pub fn log(&mut self, bytes: &[u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() && self.awaits_replies() {
            let left = self.units[self.next].replies - self.complete;
            // The last reply of a block decides about it, so its place has to be known.
            let scanned = self
                .scanner
                .scan(&bytes[at..], left.saturating_sub(1).max(1), Heed::Nothing);
            self.log.extend_from_slice(&bytes[at..at + scanned.used]);
            at += scanned.used;
            self.complete += scanned.replies;
            match left - scanned.replies {
                0 => self.answered(),
                1 if scanned.replies > 0 => self.last_began = self.log.len(),
                _ => {}
            }
            if matches!(scanned.stop, Stop::Push | Stop::Malformed) {
                return false;
            }
        }
        self.awaits_replies()
    }

    fn answered(&mut self) {
        let unit = &mut self.units[self.next];
        let (queued, last) = (&self.log[self.began..self.last_began], &self.log[self.last_began..]);
        let range = self.began..self.log.len();
        unit.came = match unit.traits.line(last, queued, self.private) {
            Line::Refusal => {
                // A command that blocked was let go because of what the server is now (rule B15).
                self.closed_behind |= self.private && last.starts_with(b"-UNBLOCKED ");
                Came::Refusal(range)
            }
            Line::Unfinished | Line::Answer => Came::Answer(range),
        };
        self.next += 1;
        self.complete = 0;
        (self.began, self.last_began) = (self.log.len(), self.log.len());
    }

    /// Tells of the first command, whose bytes were not kept, what could not be seen.
    pub fn begins_with_streamed(&mut self, traits: Traits) {
        if let Some(unit) = self.units.first_mut().filter(|unit| unit.bytes.is_empty()) {
            unit.traits.own_words = traits.own_words;
        }
    }

    /// Remembers whose client got a part of a reply that will never be whole.
    pub fn interrupt(&mut self, sessions: Vec<Rc<Session>>) {
        self.interrupted.extend(sessions);
    }

    /// Whose client that is.
    pub fn interrupted(&self) -> &[Rc<Session>] {
        &self.interrupted
    }

    /// How many commands, or blocks of them, Redis refused.
    pub fn refused(&self) -> usize {
        let refused = |unit: &&Unit| matches!(unit.came, Came::Refusal(_));
        self.units.iter().filter(refused).count()
    }

    /// Everything, session by session in the order they first appear.
    pub fn by_session(self) -> Vec<(Rc<Session>, Vec<Lost>)> {
        let mut found: Vec<(Rc<Session>, Vec<Lost>)> = Vec::new();
        for (at, unit) in self.units.iter().enumerate() {
            let lost = Lost {
                run: unit.run,
                replies: unit.replies,
                fate: unit.fate(self.closed_behind, self.acknowledges, &self.log),
                role: unit.traits.role,
                bytes: self.bytes[unit.bytes.clone()].to_vec(),
                answer: match &unit.came {
                    Came::Nothing | Came::Held => Vec::new(),
                    Came::Answer(range) | Came::Refusal(range) => self.log[range.clone()].to_vec(),
                },
                since_ms: (at == 0 && self.private).then_some(self.front_since_ms),
            };
            match found.iter_mut().find(|(session, _)| Rc::ptr_eq(session, &unit.session)) {
                Some((_, losts)) => losts.push(lost),
                None => found.push((unit.session.clone(), vec![lost])),
            }
        }
        found
    }
}

impl Traits {
    const FORGOTTEN: Self = Self {
        role: Role::Forgotten,
        writes: true,
        own_words: true,
    };
}

impl Unit {
    fn new(entry: &Entry<Rc<Session>>, replies: u32, bytes: Range<usize>, sent: bool, traits: Traits) -> Self {
        Self {
            session: entry.session.clone(),
            run: entry.run,
            replies,
            bytes,
            sent,
            traits,
            came: Came::Nothing,
        }
    }

    fn fate(&self, closed_behind: bool, acknowledges: bool, log: &[u8]) -> Fate {
        let writes = self.traits.writes;
        match (&self.came, self.sent && !closed_behind, writes) {
            (Came::Answer(range), _, _) if acknowledges && self.traits.changed_nothing(&log[range.clone()]) => {
                Fate::Answered { executed: false }
            }
            // What replicas do not vouch for may be gone.
            (Came::Answer(_), _, true) if acknowledges => Fate::SentWrite,
            (Came::Answer(_), _, false) if acknowledges => Fate::SentRead,
            (Came::Answer(_), _, executed) => Fate::Answered { executed },
            (Came::Refusal(_), _, _) => Fate::Refused,
            (Came::Nothing, false, _) => Fate::Unsent,
            (Came::Nothing | Came::Held, _, false) => Fate::SentRead,
            (Came::Nothing | Came::Held, _, true) => Fate::SentWrite,
        }
    }
}

/// Reads one whole request after the other.
#[derive(Default)]
pub struct Frames {
    spans: Vec<Span>,
}

impl Frames {
    /// The length of the request at the front of `bytes`, and what it is.
    pub fn next(&mut self, bytes: &[u8], table: &Table) -> Option<(usize, Traits)> {
        let mut scanner = RequestScanner::default();
        match scanner.scan(bytes, &mut self.spans, &RequestLimits::default()) {
            Ok(Scan::Frame(len)) => Some((len, Traits::of(&Args::new(&bytes[..len], &self.spans), table))),
            Ok(Scan::Nothing(_) | Scan::Inline(_) | Scan::Incomplete(_)) | Err(_) => None,
        }
    }
}
