//! What a client has asked for since its MULTI, on a connection of its own: enough to bring another connection there.
//!
//! Nothing of it is executed before EXEC, so all of it may be sent twice, the second time to another master. What was
//! answered already fills the place of nobody in the window, what was not keeps its place in the window.
//! Invariant: `bytes` are the requests from MULTI on, whole and in order, or nothing is ever sent again.

use std::fmt;

use super::session::Pinned;
use crate::proxy::backend::Lost;

/// Bytes of one transaction that are kept; a longer one is lost with its master.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// What becomes of a transaction whose connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// It is brought to the next connection.
    Again,
    /// What it watched may have changed: it will do nothing.
    Empty,
    /// It is too long for that.
    Lost,
}

/// The requests since MULTI.
pub(super) struct Queue {
    prospect: Prospect,
    bytes: Vec<u8>,
    /// Where each of them ends in `bytes`; what was sent may be longer than what is kept, or shorter.
    ends: Vec<usize>,
    count: usize,
    /// What the lost connection knew of them.
    pub before: Option<Box<Pinned>>,
}

impl Queue {
    /// Begins with the request that is MULTI.
    pub(super) fn begin(multi: &[u8], watched: bool) -> Box<Self> {
        let mut queue = Box::new(Self {
            prospect: if watched { Prospect::Empty } else { Prospect::Again },
            bytes: Vec::new(),
            ends: Vec::new(),
            count: 0,
            before: None,
        });
        queue.add(multi);
        queue
    }

    /// Adds a request.
    pub(super) fn add(&mut self, request: &[u8]) {
        self.count += 1;
        if self.prospect != Prospect::Again {
            return;
        }
        if self.bytes.len() + request.len() > KEPT_BYTES_MAX {
            self.forget();
        } else {
            self.bytes.extend_from_slice(request);
            self.ends.push(self.bytes.len());
        }
    }

    /// A request was not kept.
    pub(super) fn forget(&mut self) {
        if self.prospect == Prospect::Again {
            self.prospect = Prospect::Lost;
            (self.bytes, self.ends) = Default::default();
        }
    }

    /// How many requests they are, MULTI included.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether it began with a key watched.
    pub(super) fn is_watched(&self) -> bool {
        self.prospect == Prospect::Empty
    }

    /// What is to become of it.
    pub(super) fn prospect(&self) -> Prospect {
        self.prospect
    }

    /// How many of the requests that went with a connection are its own, at their end.
    pub(super) fn share(&self, lost: usize) -> usize {
        self.count.min(lost)
    }

    /// The requests that were answered, given those of its own that were not; how many they are.
    pub(super) fn answered<'l>(&self, unanswered: impl Iterator<Item = &'l Lost>) -> (Vec<u8>, usize) {
        let answered = self.count.saturating_sub(unanswered.count());
        let end = match answered {
            0 => 0,
            answered => self.ends.get(answered - 1).copied().unwrap_or(self.bytes.len()),
        };
        (self.bytes[..end].to_vec(), answered)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::backend::Role;
    use crate::proxy::client::window::Window;
    use crate::route::Fate;

    fn lost(bytes: &str) -> Lost {
        Lost {
            run: Window::default().nobody(),
            replies: 1,
            fate: Fate::SentWrite,
            role: Role::Plain,
            bytes: bytes.as_bytes().to_vec(),
            answer: Vec::new(),
            since_ms: None,
        }
    }

    #[test]
    fn what_was_answered_is_what_was_not_lost() {
        let mut queue = Queue::begin(b"MULTI ", false);
        queue.add(b"SET 1 ");
        queue.add(b"SET 2 ");
        assert_eq!((queue.share(1), queue.share(9)), (1, 3));
        assert_eq!(queue.answered([].iter()), (b"MULTI SET 1 SET 2 ".to_vec(), 3));
        assert_eq!(queue.answered([lost("SET 2 ")].iter()), (b"MULTI SET 1 ".to_vec(), 2));
        // As a scan that is kept with a shorter cursor than it was sent with.
        assert_eq!(
            queue.answered([lost("SCAN 32513 ")].iter()),
            (b"MULTI SET 1 ".to_vec(), 2)
        );
        let all = ["MULTI ", "SET 1 ", "SET 2 "].map(lost);
        assert_eq!(queue.answered(all.iter()), (Vec::new(), 0));
    }

    #[test]
    fn a_long_one_is_lost_and_a_watched_one_will_be_empty() {
        let mut queue = Queue::begin(&[b'x'; KEPT_BYTES_MAX], false);
        assert_eq!(queue.prospect(), Prospect::Again);
        queue.add(b"y");
        assert_eq!(queue.prospect(), Prospect::Lost);
        let mut watched = Queue::begin(b"MULTI ", true);
        watched.add(&[b'x'; 2 * KEPT_BYTES_MAX]);
        assert_eq!(watched.prospect(), Prospect::Empty);
    }
}
