//! Fences: what a replica must have before a read may go to it (design §5, rules A9 and A10).
//!
//! ```text
//! write: raise --> bytes appended --> executed, answered --> settle(requested + 1) --> reply shown
//! read:  need = highest word of its cells --> a replica that has passed that sample, else the master
//! sampler: requested += 1 --> master asked for its offset --> a replica's applied offset is at or past it: passed
//! ```
//! Owns the cells and the count of samples. Refuses to know connections, offsets and time. Invariant: a replica that
//! has passed the sample a settled cell asks for has every write that was settled there, because that sample was
//! requested after those writes were executed; a cell with a pending write is passed by nobody.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;

use crate::topology::{Epoch, ShardId};

/// Key cells of one proxy: 512 KiB. Two keys that share one only cost each other some reads on the master.
const KEY_CELLS: usize = 1 << 16;
/// Bits of a cell that hold the sample number: at 100 samples a second they last for centuries.
const NUMBER_BITS: u32 = 40;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;
const ONE_PENDING: u64 = 1 << NUMBER_BITS;
/// Pending writes at which a cell stays raised for as long as the proxy lives: counting on could wrap to "none".
const PENDING_STUCK: u64 = 1 << 23;
/// How many samples a write on a lost connection holds its keys back: about a second at the sampler's pace.
const LOST_MARGIN_SAMPLES: u64 = 100;

/// A round of samples of this proxy, counted from 1; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleNumber(pub u64);

/// What a replica must have passed for a read: the highest word of all cells the read looks at.
///
/// A pending write stands in a word's upper bits, so the maximum also says "nobody has this".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Need(u64);

impl Need {
    /// Any replica in service will do.
    pub const NONE: Self = Self(0);
    /// No replica will do.
    pub const MASTER: Self = Self(u64::MAX);

    /// Both needs at once.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    /// A sample requested after `number` was: the need of one who has seen data of that time.
    #[must_use]
    pub fn after(number: SampleNumber) -> Self {
        Self(number.0 + 1)
    }

    /// Whether only the master will do.
    pub fn is_master(self) -> bool {
        self.0 > NUMBER_MASK
    }

    /// Whether a replica that has passed `passed` will do.
    #[inline]
    pub fn met_by(self, passed: SampleNumber) -> bool {
        passed.0 != 0 && passed.0 >= self.0
    }
}

/// One fence: pending writes in the upper 24 bits, the sample number asked for in the lower 40.
#[derive(Debug)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    fn new(number: u64) -> Self {
        Self(AtomicU64::new(number & NUMBER_MASK))
    }

    #[inline]
    pub(super) fn need(&self) -> Need {
        Need(self.0.load(Ordering::Acquire))
    }

    /// One more write may be executed from now on.
    #[inline]
    pub(super) fn raise(&self) {
        // The check cannot be undercut: threads are far fewer than the counts between here and the wrap.
        if self.0.load(Ordering::Relaxed) >> NUMBER_BITS < PENDING_STUCK {
            self.0.fetch_add(ONE_PENDING, Ordering::AcqRel);
        }
    }

    /// One write less, and its readers need `number`: in one step, so that nobody sees half of it.
    #[inline]
    pub(super) fn settle(&self, number: SampleNumber) {
        let settled = |word: u64| {
            let pending = word >> NUMBER_BITS;
            let down = u64::from(pending > 0 && pending < PENDING_STUCK);
            Some(((pending - down) << NUMBER_BITS) | (word & NUMBER_MASK).max(number.0))
        };
        let _never_refused = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, settled);
    }
}

/// Where a key's fence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyCell(pub(super) u16);

/// The fences of one proxy, shared by all its workers and the sampler.
///
/// The database is not part of a key here: MOVE, COPY and SWAPDB carry keys from one to the other.
#[derive(Debug)]
pub struct Fences {
    keys: Box<[Cell]>,
    hasher: RandomState,
    requested: AtomicU64,
    wanted: AtomicU64,
    shards: Mutex<HashMap<ShardId, Arc<ShardFences>>>,
}

impl Default for Fences {
    fn default() -> Self {
        Self::new()
    }
}

impl Fences {
    /// Fences of a proxy that has just started: only a replica that passes a sample requested from now on is good.
    pub fn new() -> Self {
        Self {
            keys: (0..KEY_CELLS).map(|_| Cell::new(1)).collect(),
            hasher: RandomState::default(),
            requested: AtomicU64::new(0),
            wanted: AtomicU64::new(1),
            shards: Mutex::default(),
        }
    }

    /// The fences that concern a whole shard. They outlive snapshots; ask once per snapshot, not per command.
    pub fn shard(&self, id: &ShardId) -> Arc<ShardFences> {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let next = SampleNumber(self.requested.load(Ordering::SeqCst) + 1);
        let shard = shards.entry(id.clone());
        shard.or_insert_with(|| Arc::new(ShardFences::new(next))).clone()
    }

    /// What a read of `key` needs, beside [`ShardFences::need_of_keyed`].
    #[inline]
    pub fn need_of(&self, key: &[u8]) -> Need {
        self.cell(self.key_cell(key)).need()
    }

    /// The newest sample number handed out.
    #[inline]
    pub fn requested(&self) -> SampleNumber {
        SampleNumber(self.requested.load(Ordering::SeqCst))
    }

    /// Begins a round of samples: call it *before* its first request is written. All nodes are asked under this
    /// number, or under a later one if a node's request is written later.
    pub fn request(&self) -> SampleNumber {
        let number = SampleNumber(self.requested.fetch_add(1, Ordering::SeqCst) + 1);
        // The request must not leave before every worker can see that it was counted.
        fence(Ordering::SeqCst);
        number
    }

    /// The highest sample number that somebody needs: as long as it is not passed everywhere, sampling is worth it.
    pub fn wanted(&self) -> SampleNumber {
        SampleNumber(self.wanted.load(Ordering::Acquire))
    }

    /// Somebody needs `number` passed. Costs a load, and an exchange once per sample.
    #[inline]
    pub fn want(&self, number: SampleNumber) {
        if self.wanted.load(Ordering::Relaxed) < number.0 {
            self.wanted.fetch_max(number.0, Ordering::AcqRel);
        }
    }

    /// The number that settles writes whose replies have arrived: no sample with it was requested yet.
    #[inline]
    pub(super) fn number_after_answer(&self) -> SampleNumber {
        let number = SampleNumber(self.requested().0 + 1);
        self.want(number);
        number
    }

    /// The number that settles writes whose fate is unknown.
    ///
    /// Their bytes may still lie in the socket of a master that lives on, and be executed a moment after a sample on
    /// another connection was answered. So the fence asks for a later one. A master that stalls for longer than this
    /// right after it lost the connection can still surprise a reader, with a write whose client was told INDOUBT;
    /// an acknowledged write is never concerned, and a deposed master is the epoch's business, not ours.
    pub(super) fn number_after_loss(&self) -> SampleNumber {
        let number = SampleNumber(self.requested().0 + 1 + LOST_MARGIN_SAMPLES);
        self.want(number);
        number
    }

    #[inline]
    pub(super) fn key_cell(&self, key: &[u8]) -> KeyCell {
        let [low, high, ..] = self.hasher.hash_one(key).to_le_bytes();
        KeyCell(u16::from_le_bytes([low, high]))
    }

    #[inline]
    pub(super) fn cell(&self, at: KeyCell) -> &Cell {
        &self.keys[usize::from(at.0)]
    }
}

#[derive(Debug)]
#[repr(align(128))]
struct OwnLine(Cell);

/// The fences that concern a whole shard.
#[derive(Debug)]
pub struct ShardFences {
    /// Moved by every write: on a cache line of its own, since the others are read all the time.
    any: OwnLine,
    /// Moved by writes that may change any key.
    pub(super) all: Cell,
    epoch: AtomicU64,
}

impl ShardFences {
    fn new(number: SampleNumber) -> Self {
        Self {
            any: OwnLine(Cell::new(number.0)),
            all: Cell::new(number.0),
            epoch: AtomicU64::new(0),
        }
    }

    /// What every read that names all its keys needs, beside those keys' own needs (commands whose scope is `Keys`).
    #[inline]
    pub fn need_of_keyed(&self) -> Need {
        self.all.need()
    }

    /// What a read needs that may see keys it does not name (commands whose scope is `Shard`).
    #[inline]
    pub fn need_of_any(&self) -> Need {
        self.any().need()
    }

    pub(super) fn any(&self) -> &Cell {
        &self.any.0
    }

    /// Somebody goes over to the master of `epoch`: call it before the first command is sent there.
    ///
    /// From then on replicas known under older epochs serve nobody, also not a worker that has not heard of it yet:
    /// what the new master acknowledges, they may never get.
    pub fn enter(&self, epoch: Epoch) {
        self.epoch.fetch_max(epoch.0, Ordering::AcqRel);
    }

    /// Whether nobody has gone over to a later master than that of `epoch`.
    #[inline]
    pub fn is_newest(&self, epoch: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) <= epoch.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_start_only_a_sample_requested_since_is_good() {
        let fences = Fences::new();
        assert!(!fences.need_of(b"k").met_by(SampleNumber(0)));
        assert!(fences.need_of(b"k").met_by(fences.request()));
    }

    #[test]
    fn a_shard_that_comes_later_needs_a_later_sample() {
        let fences = Fences::new();
        let before = fences.request();
        let shard = fences.shard(&"s1".into());
        assert!(!shard.need_of_any().met_by(before));
        assert!(shard.need_of_any().met_by(fences.request()));
    }

    #[test]
    fn shard_fences_outlive_snapshots() {
        let fences = Fences::new();
        fences.shard(&"s1".into()).all.raise();
        assert!(fences.shard(&"s1".into()).need_of_keyed().is_master());
        assert!(!fences.shard(&"s2".into()).need_of_keyed().is_master());
    }

    #[test]
    fn a_pending_write_is_passed_by_nobody() {
        let cell = Cell::new(1);
        cell.raise();
        assert!(cell.need().is_master());
        assert!(!cell.need().met_by(SampleNumber(NUMBER_MASK)));
    }

    #[test]
    fn the_answer_of_one_writer_leaves_the_others_pending() {
        let cell = Cell::new(1);
        cell.raise();
        cell.raise();
        cell.settle(SampleNumber(7));
        assert!(cell.need().is_master());
        cell.settle(SampleNumber(5));
        assert_eq!(cell.need(), Need(7));
    }

    #[test]
    fn at_the_limit_of_pending_writes_a_cell_stays_raised() {
        let below = Cell(AtomicU64::new((PENDING_STUCK - 1) << NUMBER_BITS));
        below.settle(SampleNumber(1));
        assert_eq!(below.0.load(Ordering::Relaxed) >> NUMBER_BITS, PENDING_STUCK - 2);
        let stuck = Cell(AtomicU64::new((PENDING_STUCK - 1) << NUMBER_BITS));
        stuck.raise();
        for _ in 0..3 {
            stuck.raise();
            stuck.settle(SampleNumber(1));
        }
        assert_eq!(stuck.0.load(Ordering::Relaxed) >> NUMBER_BITS, PENDING_STUCK);
    }

    #[test]
    fn settling_more_than_was_raised_raises_nothing() {
        let cell = Cell::new(1);
        cell.settle(SampleNumber(2));
        assert_eq!(cell.need(), Need(2));
    }

    #[test]
    fn the_highest_need_decides() {
        let need = Need::after(SampleNumber(4)).and(Need(3)).and(Need::NONE);
        assert!(need.met_by(SampleNumber(5)) && !need.met_by(SampleNumber(4)));
        assert!(need.and(Need::MASTER).is_master());
        assert!(
            !Need::NONE.met_by(SampleNumber(0)),
            "a replica that passed nothing serves nobody"
        );
    }

    #[test]
    fn what_is_wanted_only_grows() {
        let fences = Fences::new();
        fences.want(SampleNumber(9));
        fences.want(SampleNumber(4));
        assert_eq!(fences.wanted(), SampleNumber(9));
    }

    #[test]
    fn an_older_epoch_is_over_for_all_once_one_has_left_it() {
        let shard = Fences::new().shard(&"s1".into());
        assert!(shard.is_newest(Epoch(1)));
        shard.enter(Epoch(2));
        shard.enter(Epoch(1));
        assert!(!shard.is_newest(Epoch(1)) && shard.is_newest(Epoch(2)));
    }

    #[test]
    fn keys_spread_over_the_cells() {
        let fences = Fences::new();
        let mut seen = std::collections::HashSet::new();
        for key in 0..KEY_CELLS {
            seen.insert(fences.key_cell(format!("key:{key}").as_bytes()).0);
        }
        // Thrown at random, 1 - 1/e of the cells are hit.
        assert!(seen.len() > KEY_CELLS / 2, "{}", seen.len());
    }

    #[test]
    fn threads_leave_nothing_pending_and_the_highest_number() {
        let cell = Cell::new(1);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let cell = &cell;
                scope.spawn(move || {
                    for round in 0..5_000 {
                        cell.raise();
                        assert!(cell.need().is_master());
                        cell.settle(SampleNumber(round * 4 + thread));
                    }
                });
            }
        });
        assert_eq!(cell.need(), Need(4_999 * 4 + 3));
    }
}
