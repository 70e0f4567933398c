//! Who holds which fences raised: the writes of one connection, until they are answered or lost.
//!
//! ```text
//! scan a run --> Footprint --> FenceLog::appended (raises) --> bytes --> replies --> FenceLog::answered (settles)
//! ```
//! Owns the pairing of raise and settle. Refuses to know replies and sessions. Invariant: what was raised is settled
//! exactly once: when its command is answered, or, with a margin, when the log is dropped.

use std::collections::VecDeque;
use std::sync::Arc;

use super::fences::{Cell, Fences, KeyCell, SampleNumber, ShardFences};

/// Capacity that an empty log or footprint keeps; 8 bytes each.
const IDLE_CAPACITY_MAX: usize = 4_096;
/// Changes that a transaction remembers one by one while it is queued; beyond it, it may change any key.
const QUEUED_MAX: usize = 4_096;

/// What one write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// One key.
    Key(KeyCell),
    /// Perhaps every key of the shard.
    Every,
    /// No key, but what keyless reads see: a function library, for example.
    Nameless,
}

/// A change, and which command of a connection makes it.
#[derive(Clone, Copy, Debug)]
struct Held {
    command: u32,
    change: Change,
}

/// What the writes of one run change; kept by its caller and used again, so that the common path allocates nothing.
///
/// A command is named by its place in the run, the place of its *reply* that is: what is queued between MULTI and EXEC
/// belongs to EXEC. Each write must be told of in at least one way, in the order of the run.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    changes: Vec<Held>,
}

impl Footprint {
    /// The command at `place` writes `key`.
    #[inline]
    pub fn writes_key(&mut self, fences: &Fences, place: u32, key: &[u8]) {
        self.push(place, Change::Key(fences.key_cell(key)));
    }

    /// The command at `place` may write any key (`Command::fences_all`, or keys that cannot all be found).
    pub fn writes_every_key(&mut self, place: u32) {
        self.push(place, Change::Every);
    }

    /// The command at `place` is a write that names no key.
    pub fn writes_nameless(&mut self, place: u32) {
        self.push(place, Change::Nameless);
    }

    /// Everything is executed by the command at `place`: an EXEC.
    pub fn belongs_to(&mut self, place: u32) {
        for held in &mut self.changes {
            held.command = place;
        }
    }

    /// Forgets which keys exactly, if they are too many to remember for long: it may be any key then.
    pub fn bound(&mut self) {
        if self.changes.len() > QUEUED_MAX {
            self.clear();
            self.writes_every_key(0);
        }
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Forgets everything, for the next run.
    pub fn clear(&mut self) {
        self.changes.clear();
        self.changes.shrink_to(IDLE_CAPACITY_MAX);
    }

    fn push(&mut self, command: u32, change: Change) {
        self.changes.push(Held { command, change });
    }
}

/// The cells that a connection's changes are marked in.
#[derive(Debug)]
struct Cells {
    fences: Arc<Fences>,
    shard: Arc<ShardFences>,
}

impl Cells {
    fn raise(&self, change: Change) {
        if let Some(cell) = self.cell(change) {
            cell.raise();
        }
    }

    fn settle(&self, change: Change, number: SampleNumber) {
        if let Some(cell) = self.cell(change) {
            cell.settle(number);
        }
    }

    fn cell(&self, change: Change) -> Option<&Cell> {
        match change {
            Change::Key(at) => Some(self.fences.cell(at)),
            Change::Every => Some(&self.shard.all),
            Change::Nameless => None,
        }
    }
}

/// The fences that one connection's unanswered writes hold raised, in the order of its ledger.
///
/// Bounded by the bytes that a connection takes unanswered: each entry stands for a key in them. All entries together
/// hold one mark in the shard's `any` fence, so that a busy connection does not touch it for every command.
#[derive(Debug)]
pub struct FenceLog {
    cells: Cells,
    held: VecDeque<Held>,
    /// Commands appended and answered so far; they wrap, and never are half the range apart.
    appended: u32,
    answered: u32,
}

impl FenceLog {
    /// The log of a new connection to a master of `shard`.
    pub fn new(fences: Arc<Fences>, shard: Arc<ShardFences>) -> Self {
        Self {
            cells: Cells { fences, shard },
            held: VecDeque::new(),
            appended: 0,
            answered: 0,
        }
    }

    /// A run of `commands` is about to be appended: call it *before* its bytes are. Reads count as well.
    #[inline]
    pub fn appended(&mut self, commands: u32, footprint: &Footprint) {
        if !footprint.is_empty() {
            self.raise(footprint);
        }
        self.appended = self.appended.wrapping_add(commands);
    }

    /// The replies of the next `commands` have arrived: call it *before* any client is shown them.
    #[inline]
    pub fn answered(&mut self, commands: u32) {
        self.answered = self.answered.wrapping_add(commands);
        if self.first_is_answered() {
            self.settle_answered();
        }
    }

    /// Moves what the next `commands` hold raised into a log of its own, if anything: they were executed and answered, and
    /// may yet be lost, so that nobody may take them for settled.
    pub fn set_aside(&mut self, commands: u32) -> Option<Self> {
        self.answered = self.answered.wrapping_add(commands);
        let mut aside = Self::new(self.cells.fences.clone(), self.cells.shard.clone());
        while self.first_is_answered() {
            aside.held.extend(self.held.pop_front());
        }
        if aside.held.is_empty() {
            return None;
        }
        if !self.held.is_empty() {
            // One mark for each of them.
            self.cells.shard.any().raise();
        }
        Some(aside)
    }

    /// Takes over what another log of the same shard holds raised, for as long as itself. What is too much to be
    /// remembered is every key.
    pub fn absorb(&mut self, mut other: Self) {
        let number = self.cells.fences.number_after_loss();
        if !self.held.is_empty() && !other.held.is_empty() {
            self.cells.shard.any().settle(number);
        }
        self.held.append(&mut other.held);
        if self.held.len() > QUEUED_MAX {
            self.cells.raise(Change::Every);
            for held in self.held.drain(..) {
                self.cells.settle(held.change, number);
            }
            self.held.push_back(Held {
                command: 0,
                change: Change::Every,
            });
        }
    }

    /// How many changes are held raised.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn raise(&mut self, footprint: &Footprint) {
        if self.held.is_empty() {
            self.cells.shard.any().raise();
        }
        for held in &footprint.changes {
            self.cells.raise(held.change);
            self.held.push_back(Held {
                command: self.appended.wrapping_add(held.command),
                change: held.change,
            });
        }
    }

    fn settle_answered(&mut self) {
        let number = self.cells.fences.number_after_answer();
        while self.first_is_answered() {
            let Some(held) = self.held.pop_front() else { break };
            self.cells.settle(held.change, number);
        }
        if self.held.is_empty() {
            self.cells.shard.any().settle(number);
            self.held.shrink_to(IDLE_CAPACITY_MAX);
        }
    }

    #[inline]
    fn first_is_answered(&self) -> bool {
        let is_answered = |held: &Held| self.answered.wrapping_sub(held.command).cast_signed() > 0;
        self.held.front().is_some_and(is_answered)
    }
}

impl Drop for FenceLog {
    /// The connection is gone. What it had unanswered may have been executed, or still be.
    fn drop(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let number = self.cells.fences.number_after_loss();
        for held in &self.held {
            self.cells.settle(held.change, number);
        }
        self.cells.shard.any().settle(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Need;

    fn ground() -> (Arc<Fences>, Arc<ShardFences>) {
        let fences = Arc::new(Fences::new());
        let shard = fences.shard(&"s1".into());
        (fences, shard)
    }

    fn writes(fences: &Fences, keys: &[(u32, &str)]) -> Footprint {
        let mut footprint = Footprint::default();
        for (place, key) in keys {
            footprint.writes_key(fences, *place, key.as_bytes());
        }
        footprint
    }

    /// What passes now, if everything requested so far was passed.
    fn is_open(fences: &Fences, need: Need) -> bool {
        need.met_by(fences.requested())
    }

    #[test]
    fn each_write_is_settled_by_its_own_reply() {
        let (fences, shard) = ground();
        let mut log = FenceLog::new(fences.clone(), shard.clone());
        log.appended(4, &writes(&fences, &[(1, "a"), (3, "b")]));
        fences.request();
        log.answered(1);
        assert!(fences.need_of(b"a").is_master(), "a read before it was answered");
        log.answered(1);
        assert!(!fences.need_of(b"a").is_master() && fences.need_of(b"b").is_master());
        assert!(shard.need_of_any().is_master());
        log.answered(2);
        assert_eq!(log.held(), 0);
        for need in [fences.need_of(b"a"), fences.need_of(b"b"), shard.need_of_any()] {
            assert!(
                !is_open(&fences, need),
                "the sample requested before the answer is no good"
            );
            assert!(need.met_by(SampleNumber(fences.requested().0 + 1)));
        }
    }

    #[test]
    fn a_sample_taken_while_a_write_lies_in_the_lane_is_no_good_after_it() {
        let (fences, shard) = ground();
        let mut lane = FenceLog::new(fences.clone(), shard);
        // SET x lies in the lane's buffer; a sample is requested and passed; then SET is executed.
        lane.appended(1, &writes(&fences, &[(0, "x")]));
        let passed = fences.request();
        // C has seen the new value by MULTI, GET, EXEC on the master. Its next GET must not go to that replica,
        assert!(!fences.need_of(b"x").met_by(passed));
        // nor when SET is answered at last,
        lane.answered(1);
        assert!(!fences.need_of(b"x").met_by(passed));
        // but to one that has passed a sample requested since.
        assert!(fences.need_of(b"x").met_by(fences.request()));
    }

    #[test]
    fn the_answer_to_one_writer_does_not_hide_the_write_of_another() {
        let (fences, shard) = ground();
        let (mut one, mut other) = (
            FenceLog::new(fences.clone(), shard.clone()),
            FenceLog::new(fences.clone(), shard),
        );
        one.appended(1, &writes(&fences, &[(0, "x")]));
        other.appended(1, &writes(&fences, &[(0, "x")]));
        one.answered(1);
        // All replicas have the first write; the second is executed, and seen on the master, but not answered.
        let passed = fences.request();
        assert!(!fences.need_of(b"x").met_by(passed));
        other.answered(1);
        assert!(!fences.need_of(b"x").met_by(passed));
        assert!(fences.need_of(b"x").met_by(fences.request()));
    }

    #[test]
    fn writes_to_any_key_fence_every_read() {
        let (fences, shard) = ground();
        let mut log = FenceLog::new(fences.clone(), shard.clone());
        let mut footprint = Footprint::default();
        footprint.writes_every_key(0);
        log.appended(1, &footprint);
        assert!(shard.need_of_keyed().is_master() && shard.need_of_any().is_master());
        log.answered(1);
        assert!(!shard.need_of_keyed().is_master() && !is_open(&fences, shard.need_of_keyed()));
    }

    #[test]
    fn nameless_writes_fence_nameless_reads_only() {
        let (fences, shard) = ground();
        let mut log = FenceLog::new(fences.clone(), shard.clone());
        let mut footprint = Footprint::default();
        footprint.writes_nameless(0);
        fences.request();
        log.appended(1, &footprint);
        assert!(shard.need_of_any().is_master() && is_open(&fences, shard.need_of_keyed()));
    }

    #[test]
    fn a_lost_connection_settles_with_a_margin() {
        let (fences, shard) = ground();
        let mut log = FenceLog::new(fences.clone(), shard.clone());
        log.appended(1, &writes(&fences, &[(0, "a")]));
        drop(log);
        for need in [fences.need_of(b"a"), shard.need_of_any()] {
            assert!(!need.is_master());
            assert!(!need.met_by(SampleNumber(50)) && need.met_by(SampleNumber(101)));
        }
        assert_eq!(
            fences.wanted(),
            SampleNumber(101),
            "sampling goes on until it is passed"
        );
    }

    #[test]
    fn counting_survives_the_wrap() {
        let (fences, shard) = ground();
        let mut log = FenceLog::new(fences.clone(), shard);
        (log.appended, log.answered) = (u32::MAX - 1, u32::MAX - 1);
        log.appended(4, &writes(&fences, &[(0, "a"), (3, "b")]));
        log.answered(1);
        assert!(!fences.need_of(b"a").is_master() && fences.need_of(b"b").is_master());
        log.answered(3);
        assert!(!fences.need_of(b"b").is_master());
    }

    #[test]
    fn what_a_transaction_queued_is_settled_by_exec() {
        let (fences, shard) = ground();
        let mut queued = Footprint::default();
        queued.writes_key(&fences, 0, b"a");
        queued.writes_key(&fences, 0, b"b");
        queued.belongs_to(2);
        let mut log = FenceLog::new(fences.clone(), shard);
        log.appended(3, &queued);
        log.answered(2);
        assert!(fences.need_of(b"a").is_master() && fences.need_of(b"b").is_master());
        log.answered(1);
        assert!(!fences.need_of(b"a").is_master() && !is_open(&fences, fences.need_of(b"b")));
    }

    #[test]
    fn what_is_set_aside_stays_raised_until_it_is_let_go() {
        let (fences, shard) = ground();
        let mut log = FenceLog::new(fences.clone(), shard.clone());
        log.appended(3, &writes(&fences, &[(0, "a"), (1, "b"), (2, "c")]));
        let aside = log.set_aside(2).unwrap();
        log.answered(1);
        assert!(fences.need_of(b"a").is_master() && fences.need_of(b"b").is_master());
        assert!(!fences.need_of(b"c").is_master() && shard.need_of_any().is_master());
        assert!(log.set_aside(0).is_none());
        log.appended(1, &writes(&fences, &[(0, "d")]));
        let mut all = log.set_aside(1).unwrap();
        assert!(shard.need_of_any().is_master());
        all.absorb(aside);
        assert!(fences.need_of(b"a").is_master() && fences.need_of(b"d").is_master());
        drop(all);
        for need in [fences.need_of(b"a"), fences.need_of(b"d"), shard.need_of_any()] {
            assert!(!need.is_master());
        }
    }

    #[test]
    fn more_than_can_be_remembered_of_what_was_set_aside_is_every_key() {
        let (fences, shard) = ground();
        let mut all = FenceLog::new(fences.clone(), shard.clone());
        for round in 0..=QUEUED_MAX {
            let mut log = FenceLog::new(fences.clone(), shard.clone());
            log.appended(1, &writes(&fences, &[(0, &round.to_string())]));
            all.absorb(log.set_aside(1).unwrap());
            assert_eq!(shard.need_of_keyed().is_master(), round == QUEUED_MAX);
        }
        assert_eq!(all.held(), 1);
        drop(all);
        assert!(!shard.need_of_keyed().is_master() && !shard.need_of_any().is_master());
        assert!(!fences.need_of(b"0").is_master());
    }

    #[test]
    fn a_footprint_beyond_the_limit_is_every_key() {
        for (count, every) in [(QUEUED_MAX, false), (QUEUED_MAX + 1, true)] {
            let (fences, shard) = ground();
            let mut queued = Footprint::default();
            for key in 0..count {
                queued.writes_key(&fences, 0, key.to_string().as_bytes());
                queued.bound();
            }
            let mut log = FenceLog::new(fences, shard.clone());
            log.appended(1, &queued);
            assert_eq!(shard.need_of_keyed().is_master(), every, "{count}");
        }
    }
}
