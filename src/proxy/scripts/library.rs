//! Which scripts are known, and which of them each life of a node has. Pure.
//!
//! Bodies are numbered as they come to be known, and nodes get them in that order: so one number says what a node has.
//! Invariants: at most [`BODIES_MAX`] bodies and [`BYTES_MAX`] bytes are kept, the oldest goes, one that a client only
//! evaluated before one that it loaded; what a node has belongs to one life, and another begins with nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::topology::{Addr, RunId};

/// Bodies that are kept at most.
pub const BODIES_MAX: usize = 1000;
/// Their bytes together.
pub const BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest body that is kept.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Different bodies that are taken from EVAL between two flushes. A client that sends more makes each anew, and Redis
/// keeps for ever what is loaded: from then on only SCRIPT LOAD adds any.
pub const EVALUATED_MAX: usize = 10_000;
/// What one question to a node may carry.
const BATCH_BODIES_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// A script's SHA1 as Redis writes it, in lower case.
pub type Digest = [u8; 40];

/// A body's place in the order in which they came to be known, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u64);

impl Number {
    fn after(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How a script came to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It ran, in this life of a node, where that is known: that one has it.
    Ran(Option<RunId>),
    /// A client asked for it to be loaded.
    Loaded,
}

#[derive(Debug)]
struct Kept {
    body: Arc<[u8]>,
    digest: Option<Digest>,
    origin: Origin,
}

/// What is known of one node.
#[derive(Debug, Default)]
struct Node {
    /// Replicas may be asked to run a script as soon as all of them have it.
    is_replica: bool,
    life: Option<RunId>,
    /// That life has all bodies up to this one.
    has: Number,
    /// Whether it is certain that this life goes on.
    certain: bool,
}

/// See the file's note.
#[derive(Debug, Default)]
pub struct Library {
    kept: BTreeMap<Number, Kept>,
    by_body: HashMap<Arc<[u8]>, Number, RandomState>,
    by_digest: HashMap<Digest, Number, RandomState>,
    bytes: usize,
    last: Number,
    evaluated: usize,
    nodes: HashMap<Addr, Node>,
}

/// Bodies that a node lacks, in order.
pub type Batch = Vec<(Number, Arc<[u8]>)>;

impl Library {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether EVAL adds nothing any more.
    pub fn is_closed(&self) -> bool {
        self.evaluated >= EVALUATED_MAX
    }

    /// The newest number that was given.
    pub fn last(&self) -> Number {
        self.last
    }

    /// The number of a body.
    pub fn number_of(&self, body: &[u8]) -> Option<(Number, &Arc<[u8]>)> {
        let (body, number) = self.by_body.get_key_value(body)?;
        Some((*number, body))
    }

    /// All digests that are known, with their numbers.
    pub fn digests(&self) -> impl Iterator<Item = (Digest, Number)> + '_ {
        self.by_digest.iter().map(|(digest, number)| (*digest, *number))
    }

    /// Learns a body. One that is known by a number up to `stale` is learnt anew. Says whether others had to go.
    pub fn learn(&mut self, body: &Arc<[u8]>, origin: Origin, stale: Number) -> bool {
        if body.len() > BODY_BYTES_MAX {
            return false;
        }
        if let Some(number) = self.by_body.get(body).copied() {
            if number > stale {
                if let (Some(kept), Origin::Loaded) = (self.kept.get_mut(&number), origin) {
                    kept.origin = Origin::Loaded;
                }
                return false;
            }
            self.forget(number);
        }
        if origin != Origin::Loaded {
            if self.is_closed() {
                return false;
            }
            self.evaluated += 1;
        }
        self.last = self.last.after();
        self.bytes += body.len();
        self.by_body.insert(body.clone(), self.last);
        let kept = Kept {
            body: body.clone(),
            digest: None,
            origin,
        };
        self.kept.insert(self.last, kept);
        let evicts = self.evict();
        self.nodes.values_mut().for_each(|node| node.advance(&self.kept));
        evicts
    }

    /// Forgets all bodies with a number up to this one: no node has them any more.
    pub fn flush(&mut self, up_to: Number) {
        let gone: Vec<Number> = self.kept.range(..=up_to).map(|(number, _)| *number).collect();
        gone.into_iter().for_each(|number| self.forget(number));
        self.evaluated = self.kept.len();
    }

    /// Forgets a body that a node cannot read.
    pub fn forget(&mut self, number: Number) {
        let Some(kept) = self.kept.remove(&number) else { return };
        self.bytes -= kept.body.len();
        self.by_body.remove(&kept.body);
        if let Some(digest) = kept.digest {
            self.by_digest.remove(&digest);
        }
    }

    /// Topology names this node.
    pub fn follow(&mut self, addr: &Addr, is_replica: bool) {
        self.nodes.entry(addr.clone()).or_default().is_replica = is_replica;
    }

    /// Topology names no others.
    pub fn follow_no_others(&mut self, named: impl Fn(&Addr) -> bool) {
        self.nodes.retain(|addr, _| named(addr));
    }

    /// A node says which life it is in.
    pub fn lives(&mut self, addr: &Addr, life: &RunId) {
        let node = self.nodes.entry(addr.clone()).or_default();
        if node.life.as_ref() != Some(life) {
            (node.life, node.has) = (Some(life.clone()), Number(0));
        }
        node.certain = true;
        node.advance(&self.kept);
    }

    /// The connection to a node is gone: it may have been started anew.
    pub fn may_have_died(&mut self, addr: &Addr) {
        if let Some(node) = self.nodes.get_mut(addr) {
            node.certain = false;
        }
    }

    /// The next bodies that a life of a node lacks; none if the node is in another.
    pub fn missing(&self, addr: &Addr, life: &RunId) -> Batch {
        let Some(node) = self.nodes.get(addr).filter(|node| node.life.as_ref() == Some(life)) else {
            return Vec::new();
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (number, kept) in self.kept.range(node.has.after()..).take(BATCH_BODIES_MAX) {
            bytes += kept.body.len();
            if bytes > BATCH_BYTES_MAX && !batch.is_empty() {
                break;
            }
            batch.push((*number, kept.body.clone()));
        }
        batch
    }

    /// Whether a node lacks something, as far as its life is known.
    pub fn lacks_something(&self, addr: &Addr) -> bool {
        let node = self.nodes.get(addr);
        node.is_some_and(|node| self.kept.range(node.has.after()..).next().is_some())
    }

    /// The body with this digest.
    pub fn body_of(&self, digest: &Digest) -> Option<&Arc<[u8]>> {
        let number = self.by_digest.get(digest)?;
        self.kept.get(number).map(|kept| &kept.body)
    }

    /// A body has this digest.
    pub fn is_called(&mut self, body: &[u8], digest: Digest) {
        if let Some(number) = self.by_body.get(body)
            && let Some(kept) = self.kept.get_mut(number)
        {
            kept.digest = Some(digest);
            self.by_digest.insert(digest, *number);
        }
    }

    /// A life of a node has a body now, whose digest is this one.
    pub fn has(&mut self, addr: &Addr, life: &RunId, number: Number, digest: Digest) {
        if let Some(kept) = self.kept.get_mut(&number) {
            kept.digest = Some(digest);
            self.by_digest.insert(digest, number);
        }
        if let Some(node) = self.nodes.get_mut(addr).filter(|node| node.life.as_ref() == Some(life)) {
            node.has = node.has.max(number);
            node.advance(&self.kept);
        }
    }

    /// All replicas have the bodies up to this number.
    pub fn everywhere(&self) -> Number {
        let has = |node: &Node| if node.certain { node.has } else { Number(0) };
        let replicas = self.nodes.values().filter(|node| node.is_replica);
        replicas.map(has).min().unwrap_or(self.last)
    }

    fn evict(&mut self) -> bool {
        let mut evicts = false;
        while self.kept.len() > BODIES_MAX || self.bytes > BYTES_MAX {
            let mut older = self.kept.range(..self.last);
            let evaluated = older.clone().find(|(_, kept)| kept.origin != Origin::Loaded);
            let Some((oldest, _)) = evaluated.or_else(|| older.next()) else {
                break;
            };
            let oldest = *oldest;
            self.forget(oldest);
            evicts = true;
        }
        evicts
    }
}

impl Node {
    /// Steps over what this life has without having been given it.
    fn advance(&mut self, kept: &BTreeMap<Number, Kept>) {
        let Some(life) = &self.life else { return };
        let own = |kept: &Kept| matches!(&kept.origin, Origin::Ran(Some(there)) if there == life);
        let next = |has: Number| kept.range(has.after()..).next();
        while let Some((number, kept)) = next(self.has)
            && own(kept)
        {
            self.has = *number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Number = Number(0);

    fn addr(port: u16) -> Addr {
        Addr::new("127.0.0.1", port)
    }

    fn body(text: &str) -> Arc<[u8]> {
        text.as_bytes().into()
    }

    fn ran_in(life: &str) -> Origin {
        Origin::Ran(Some(life.into()))
    }

    /// A library of these bodies, which ran in life `m` of the master; its replica is in life `r`.
    fn library(bodies: &[&str]) -> Library {
        let mut library = Library::default();
        library.follow(&addr(1), false);
        library.follow(&addr(2), true);
        library.lives(&addr(1), &"m".into());
        library.lives(&addr(2), &"r".into());
        for text in bodies {
            library.learn(&body(text), ran_in("m"), NONE);
        }
        library
    }

    fn missing(library: &Library, port: u16, life: &str) -> Vec<String> {
        let missing = library.missing(&addr(port), &life.into());
        let text = |body: Arc<[u8]>| String::from_utf8(body.to_vec()).unwrap();
        missing.into_iter().map(|(_, body)| text(body)).collect()
    }

    fn load_all(library: &mut Library, port: u16, life: &str) {
        for (number, _) in library.missing(&addr(port), &life.into()) {
            let mut digest = [b'0'; 40];
            digest[39] = b'0' + u8::try_from(number.0 % 10).unwrap();
            library.has(&addr(port), &life.into(), number, digest);
        }
    }

    #[test]
    fn a_node_gets_what_did_not_run_on_it_once_in_each_life() {
        let mut library = library(&["a", "b"]);
        assert!(missing(&library, 1, "m").is_empty() && !library.lacks_something(&addr(1)));
        assert_eq!(missing(&library, 2, "r"), ["a", "b"]);
        assert_eq!(library.everywhere(), NONE);
        load_all(&mut library, 2, "r");
        assert!(!library.lacks_something(&addr(2)));
        assert_eq!(library.everywhere(), Number(2));
        library.learn(&body("c"), Origin::Loaded, NONE);
        assert_eq!(missing(&library, 1, "m"), ["c"]);
        // Another process at the same address has nothing; what is known of the former says nothing about it.
        library.lives(&addr(1), &"m2".into());
        assert_eq!(missing(&library, 1, "m2"), ["a", "b", "c"]);
        assert!(missing(&library, 1, "m").is_empty());
    }

    #[test]
    fn a_replica_whose_connection_is_gone_counts_as_having_nothing_until_it_says_who_it_is() {
        let mut library = library(&["a"]);
        load_all(&mut library, 2, "r");
        library.may_have_died(&addr(2));
        assert_eq!(library.everywhere(), NONE);
        library.lives(&addr(2), &"r".into());
        assert_eq!(library.everywhere(), Number(1));
        library.follow(&addr(3), true);
        assert_eq!(library.everywhere(), NONE);
        library.follow_no_others(|named| *named != addr(3));
        assert_eq!(library.everywhere(), Number(1));
    }

    #[test]
    fn a_flush_forgets_what_was_known_before_it_and_keeps_what_came_meanwhile() {
        let mut library = library(&["a", "b"]);
        load_all(&mut library, 2, "r");
        let mark = library.last();
        // It ran again while the flush was under way: it may be there again.
        library.learn(&body("a"), ran_in("m"), mark);
        library.flush(mark);
        assert!(library.number_of(b"b").is_none());
        assert_eq!(missing(&library, 2, "r"), ["a"]);
        assert_eq!(library.digests().count(), 0);
        library.flush(library.last());
        assert!(library.is_empty() && library.bytes == 0);
    }

    #[test]
    fn the_oldest_goes_and_evaluated_ones_first() {
        let mut library = Library::default();
        library.learn(&body("loaded"), Origin::Loaded, NONE);
        for number in 0..BODIES_MAX - 1 {
            assert!(!library.learn(&body(&format!("body {number}")), ran_in("m"), NONE));
        }
        assert!(library.learn(&body("one more"), ran_in("m"), NONE));
        assert_eq!(library.kept.len(), BODIES_MAX);
        assert!(library.number_of(b"body 0").is_none());
        assert!(library.number_of(b"body 1").is_some() && library.number_of(b"loaded").is_some());
    }

    #[test]
    fn bytes_are_bounded_too_and_what_is_too_long_is_not_kept() {
        let mut library = Library::default();
        let long = |fill: char, len: usize| body(&fill.to_string().repeat(len));
        library.learn(&long('x', BODY_BYTES_MAX + 1), Origin::Loaded, NONE);
        assert!(library.is_empty());
        for fill in ['a', 'b', 'c', 'd'] {
            assert!(!library.learn(&long(fill, BODY_BYTES_MAX), Origin::Loaded, NONE));
        }
        assert_eq!(library.bytes, BYTES_MAX);
        assert!(library.learn(&body("e"), Origin::Loaded, NONE));
        assert_eq!((library.kept.len(), library.bytes), (4, BYTES_MAX - BODY_BYTES_MAX + 1));
    }

    #[test]
    fn scripts_that_are_made_anew_each_time_are_not_loaded_without_end() {
        let mut library = Library::default();
        for number in 0..EVALUATED_MAX {
            assert!(!library.is_closed());
            library.learn(&body(&format!("{number}")), Origin::Ran(None), NONE);
        }
        assert!(library.is_closed());
        library.learn(&body("one more"), Origin::Ran(None), NONE);
        library.learn(&body("loaded"), Origin::Loaded, NONE);
        assert!(library.number_of(b"one more").is_none() && library.number_of(b"loaded").is_some());
        library.flush(library.last());
        assert!(!library.is_closed());
    }

    #[test]
    fn a_batch_is_bounded_and_never_empty_while_something_is_missing() {
        let mut library = library(&[]);
        let long = body(&"x".repeat(BATCH_BYTES_MAX + 1));
        library.learn(&long, Origin::Loaded, NONE);
        library.learn(&body("short"), Origin::Loaded, NONE);
        let batch = library.missing(&addr(2), &"r".into());
        assert_eq!(batch.len(), 1);
        load_all(&mut library, 2, "r");
        assert_eq!(missing(&library, 2, "r"), ["short"]);
    }
}
