//! Names that clients ask for and no table has: which of them a server is asked about, and which are refused at once. Pure.
//!
//! Invariants: a name that the server does not know is asked about once within [`UNKNOWN_MS`], as long as it is among the
//! last [`NAMES_MAX`]; no request asks twice; names that clients draw cost a bounded memory, and a bounded number of questions.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;

use crate::command::reply::NAME_BYTES_MAX;

/// Names that are remembered, 32 bytes each.
const NAMES_MAX: usize = 1024;
/// How long a server is believed that does not know a name: a module that is loaded later is found after that.
pub const UNKNOWN_MS: u64 = 60_000;
/// How long a name is refused about which no server could be asked.
pub const UNASKED_MS: u64 = 1000;
/// Questions within [`WINDOW_MS`].
const QUESTIONS_MAX: u32 = 32;
const WINDOW_MS: u64 = 1000;

/// Names that are refused for a while.
#[derive(Debug, Default)]
pub struct Strangers {
    /// Hash of the name, in lower case, and until when.
    known: HashMap<u64, u64>,
    /// The oldest first.
    order: VecDeque<u64>,
    hasher: foldhash::fast::RandomState,
    window_began_ms: u64,
    questions: u32,
}

impl Strangers {
    /// Whether a server should be asked about a name.
    pub fn may_ask(&mut self, name: &[u8], now_ms: u64) -> bool {
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
        if !is_name || self.has(name, now_ms) {
            return false;
        }
        if now_ms.saturating_sub(self.window_began_ms) >= WINDOW_MS {
            (self.window_began_ms, self.questions) = (now_ms, 0);
        }
        self.questions += 1;
        self.questions <= QUESTIONS_MAX
    }

    /// Whether a name is one that is refused at present.
    pub fn has(&self, name: &[u8], now_ms: u64) -> bool {
        self.known
            .get(&self.hash(name))
            .is_some_and(|until_ms| now_ms < *until_ms)
    }

    /// A name is refused until then.
    pub fn add(&mut self, name: &[u8], until_ms: u64) {
        let hash = self.hash(name);
        if self.known.insert(hash, until_ms).is_some() {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > NAMES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_refused_for_a_while_in_any_case() {
        let mut strangers = Strangers::default();
        assert!(strangers.may_ask(b"mod.get", 5));
        strangers.add(b"MOD.get", UNKNOWN_MS);
        assert!(!strangers.may_ask(b"mod.GET", UNKNOWN_MS - 1));
        assert!(strangers.may_ask(b"mod.get", UNKNOWN_MS));
        strangers.add(b"mod.get", UNKNOWN_MS + UNASKED_MS);
        assert!(!strangers.may_ask(b"mod.get", UNKNOWN_MS + 1));
    }

    #[test]
    fn what_is_no_name_is_not_asked_about() {
        let mut strangers = Strangers::default();
        for name in [&b""[..], b"a b", b"a\r\n", b"\xff", &[b'x'; NAME_BYTES_MAX + 1]] {
            assert!(!strangers.may_ask(name, 0), "{}", name.escape_ascii());
        }
        assert!(strangers.may_ask(&[b'x'; NAME_BYTES_MAX], 0));
    }

    #[test]
    fn drawn_names_cost_a_bounded_number_of_questions_and_names() {
        let mut strangers = Strangers::default();
        let mut asked = 0;
        for number in 0..100_000_u64 {
            let name = format!("name{number}");
            if strangers.may_ask(name.as_bytes(), number / 100) {
                asked += 1;
                strangers.add(name.as_bytes(), UNKNOWN_MS);
            }
        }
        assert_eq!(asked, QUESTIONS_MAX, "within one second");
        for number in 0..3 * NAMES_MAX {
            strangers.add(format!("name{number}").as_bytes(), UNKNOWN_MS);
        }
        assert_eq!((strangers.known.len(), strangers.order.len()), (NAMES_MAX, NAMES_MAX));
        assert!(strangers.has(format!("name{}", 2 * NAMES_MAX).as_bytes(), 2000));
        assert!(!strangers.has(b"name0", 2000));
    }
}
