//! Whether what clients were told of one key can have happened in one order: linearizability of a register that is
//! written, read and counted up.
//!
//! The search is that of Wing and Gong with Lowe's memory of what was tried: an operation may be the next one if none that
//! is left was over before it began; a set of operations done that leaves the same value is tried once. What is known of
//! keys together follows from each alone (linearizability is local), so keys are checked one by one. An operation of
//! unknown outcome has no end: it may take effect at any time after it began, or never. What was refused as not executed
//! is not part of a history.

use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};

/// How many sets of operations are tried before the question counts as undecided.
const TRIED_MAX: usize = 3_000_000;

/// What was asked, and what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The key was set to this.
    Write(i64),
    /// This was read; none: there was no such key.
    Read(Option<i64>),
    /// One was added; none: the sum is not known.
    Add(Option<i64>),
}

/// One operation on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: u32,
    /// When it was asked, in microseconds.
    pub begun: u64,
    /// When it was answered; none: whether it was done is not known.
    pub ended: Option<u64>,
    /// What it was.
    pub action: Action,
}

impl Display for Operation {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        let ended = self.ended.map_or("?".to_owned(), |ended| format!("{:.3}", ms(ended)));
        let Self {
            client, begun, action, ..
        } = self;
        write!(out, "{:.3}..{ended} ms client {client}: {action:?}", ms(*begun))
    }
}

/// Why a history is none of a single register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// After the longest order that fits, with the value it leaves, none of these can be the next.
    Stuck {
        /// The last operations of that order.
        before: Vec<Operation>,
        /// What the key holds then.
        value: Option<i64>,
        /// What cannot follow.
        next: Vec<Operation>,
    },
    /// It is too much to try.
    Undecided,
}

impl Display for Wrong {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided => write!(out, "not decided after {TRIED_MAX} tries"),
            Self::Stuck { before, value, next } => {
                writeln!(out, "no order fits; the longest that does ends with")?;
                for operation in before {
                    writeln!(out, "    {operation}")?;
                }
                writeln!(out, "  it leaves {value:?}, and none of these can follow:")?;
                for operation in next {
                    writeln!(out, "    {operation}")?;
                }
                Ok(())
            }
        }
    }
}

/// Whether `history`, of a key that was not there at first, is linearizable.
pub fn check(history: &[Operation]) -> Result<(), Wrong> {
    Search::new(history).run()
}

/// The value after `action`, if its answer is right for `value`.
fn apply(action: Action, value: Option<i64>) -> Option<Option<i64>> {
    match action {
        Action::Write(new) => Some(Some(new)),
        Action::Read(seen) => (seen == value).then_some(value),
        Action::Add(sum) => {
            let right = value.unwrap_or(0) + 1;
            (sum.is_none() || sum == Some(right)).then_some(Some(right))
        }
    }
}

struct Search {
    /// In the order in which they began.
    operations: Vec<Operation>,
    taken: Vec<u64>,
    value: Option<i64>,
    /// What is taken, and the value before it.
    order: Vec<(usize, Option<i64>)>,
    /// Operations with an end that are not taken.
    left: usize,
    tried: HashSet<(Vec<u64>, Option<i64>)>,
    best: Option<Wrong>,
    fewest_left: usize,
}

impl Search {
    fn new(history: &[Operation]) -> Self {
        let counted = history
            .iter()
            .any(|operation| matches!(operation.action, Action::Add(_)));
        // What nobody saw of a write in doubt can as well not have been done.
        let matters = |operation: &&Operation| match (operation.ended, operation.action) {
            (None, Action::Read(_)) => false,
            (None, Action::Write(value)) => {
                let sees = |other: &Operation| other.action == Action::Read(Some(value));
                counted || history.iter().any(sees)
            }
            _ => true,
        };
        let mut operations: Vec<Operation> = history.iter().filter(matters).copied().collect();
        operations.sort_by_key(|operation| operation.begun);
        let left = operations.iter().filter(|operation| operation.ended.is_some()).count();
        Self {
            taken: vec![0; operations.len().div_ceil(64)],
            operations,
            value: None,
            order: Vec::new(),
            left,
            tried: HashSet::new(),
            best: None,
            fewest_left: usize::MAX,
        }
    }

    fn run(mut self) -> Result<(), Wrong> {
        let mut from = 0;
        while self.left > 0 {
            if self.tried.len() > TRIED_MAX {
                return Err(Wrong::Undecided);
            }
            if let Some(index) = self.next(from) {
                self.take(index);
                from = 0;
                continue;
            }
            self.remember();
            let Some(last) = self.give_back() else {
                return Err(self.best.unwrap_or(Wrong::Undecided));
            };
            from = last + 1;
        }
        Ok(())
    }

    /// The first operation at `from` or after it that may be the next one and was not tried here.
    fn next(&self, from: usize) -> Option<usize> {
        self.open().into_iter().find(|index| {
            *index >= from
                && apply(self.operations[*index].action, self.value).is_some_and(|value| {
                    let mut taken = self.taken.clone();
                    taken[index / 64] |= 1 << (index % 64);
                    !self.tried.contains(&(taken, value))
                })
        })
    }

    /// The operations that no other one has to precede.
    fn open(&self) -> Vec<usize> {
        let (mut open, mut first_end, mut doubtful_add) = (Vec::new(), u64::MAX, false);
        // What is taken of the beginning, by the word.
        let full = self.taken.iter().take_while(|word| **word == u64::MAX).count() * 64;
        for (index, operation) in self.operations.iter().enumerate().skip(full) {
            if self.taken[index / 64] & (1 << (index % 64)) != 0 {
                continue;
            }
            if operation.begun > first_end {
                break;
            }
            first_end = first_end.min(operation.ended.unwrap_or(u64::MAX));
            // Of additions in doubt one is as good as another: the first of them stands for all.
            let doubtful = operation.ended.is_none() && operation.action == Action::Add(None);
            if !(doubtful && doubtful_add) {
                open.push(index);
            }
            doubtful_add |= doubtful;
        }
        open
    }

    fn take(&mut self, index: usize) {
        let operation = self.operations[index];
        self.order.push((index, self.value));
        self.value = apply(operation.action, self.value).unwrap();
        self.taken[index / 64] |= 1 << (index % 64);
        self.left -= usize::from(operation.ended.is_some());
        self.tried.insert((self.taken.clone(), self.value));
    }

    fn give_back(&mut self) -> Option<usize> {
        let (index, value) = self.order.pop()?;
        self.value = value;
        self.taken[index / 64] &= !(1 << (index % 64));
        self.left += usize::from(self.operations[index].ended.is_some());
        Some(index)
    }

    /// Keeps the place where the search got furthest, for who reads of it.
    fn remember(&mut self) {
        const SHOWN: usize = 8;
        if self.left >= self.fewest_left {
            return;
        }
        self.fewest_left = self.left;
        let last = &self.order[self.order.len().saturating_sub(SHOWN)..];
        self.best = Some(Wrong::Stuck {
            before: last.iter().map(|(index, _)| self.operations[*index]).collect(),
            value: self.value,
            next: self.open().into_iter().map(|index| self.operations[index]).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(begun: u64, ended: u64, action: Action) -> Operation {
        Operation {
            client: 0,
            begun,
            ended: Some(ended),
            action,
        }
    }

    fn doubtful(begun: u64, action: Action) -> Operation {
        Operation {
            client: 0,
            begun,
            ended: None,
            action,
        }
    }

    fn fits(history: &[Operation]) -> bool {
        check(history).is_ok()
    }

    #[test]
    fn a_read_sees_the_write_before_it_and_never_one_that_comes_later() {
        use Action::{Read, Write};
        assert!(fits(&[]));
        assert!(fits(&[
            known(0, 1, Read(None)),
            known(2, 3, Write(5)),
            known(4, 5, Read(Some(5)))
        ]));
        assert!(!fits(&[known(0, 1, Write(5)), known(2, 3, Read(None))]), "lost");
        assert!(
            !fits(&[known(0, 1, Read(Some(5))), known(2, 3, Write(5))]),
            "from the future"
        );
        assert!(
            !fits(&[known(0, 1, Write(5)), known(2, 3, Write(6)), known(4, 5, Read(Some(5)))]),
            "stale"
        );
    }

    #[test]
    fn writes_at_the_same_time_may_come_in_any_order_but_in_one() {
        use Action::{Read, Write};
        let both = [known(0, 10, Write(5)), known(0, 10, Write(6))];
        for (first, second) in [(5, 6), (6, 5)] {
            let seen = [known(1, 2, Read(Some(first))), known(3, 4, Read(Some(second)))];
            assert!(fits(&[&both[..], &seen].concat()));
        }
        let back = [
            known(1, 2, Read(Some(5))),
            known(3, 4, Read(Some(6))),
            known(5, 6, Read(Some(5))),
        ];
        assert!(!fits(&[&both[..], &back].concat()));
    }

    #[test]
    fn what_is_in_doubt_may_be_done_at_once_late_or_never_but_once() {
        use Action::{Add, Read, Write};
        let doubt = doubtful(0, Write(5));
        assert!(fits(&[doubt, known(2, 3, Read(Some(5)))]));
        assert!(fits(&[doubt, known(2, 3, Read(None)), known(4, 5, Read(Some(5)))]));
        assert!(fits(&[doubt, known(2, 3, Read(None))]));
        assert!(
            !fits(&[doubt, known(2, 3, Read(Some(5))), known(4, 5, Read(None))]),
            "seen, and gone"
        );
        assert!(
            !fits(&[doubtful(4, Write(5)), known(2, 3, Read(Some(5)))]),
            "before it was asked"
        );
        let counted = |sum| {
            fits(&[
                known(0, 1, Add(Some(1))),
                doubtful(2, Add(None)),
                known(4, 5, Add(Some(sum))),
            ])
        };
        assert_eq!([1, 2, 3, 4].map(counted), [false, true, true, false], "never twice");
    }

    #[test]
    fn the_place_where_nothing_can_follow_is_told() {
        let Err(Wrong::Stuck { before, value, next }) =
            check(&[known(0, 1, Action::Write(5)), known(2, 3, Action::Read(Some(7)))])
        else {
            panic!("it fits");
        };
        assert_eq!(before.len(), 1);
        assert_eq!((value, next), (Some(5), vec![known(2, 3, Action::Read(Some(7)))]));
    }

    #[test]
    fn a_long_history_with_much_in_doubt_is_decided() {
        let mut history = Vec::new();
        for number in 0..1000_u64 {
            let (begun, ended) = (number * 10, number * 10 + 15);
            let value = i64::try_from(number).unwrap();
            history.push(known(begun, ended, Action::Write(value)));
            history.push(known(begun + 16, begun + 18, Action::Read(Some(value))));
            if number % 50 == 0 {
                history.push(doubtful(begun, Action::Write(-value)));
            }
        }
        assert_eq!(check(&history), Ok(()));

        let adds = (0..500_u64).map(|number| match number % 25 {
            0 => doubtful(number * 10, Action::Add(None)),
            // Of what is in doubt, all is done.
            _ => known(
                number * 10,
                number * 10 + 5,
                Action::Add(Some(i64::try_from(number).unwrap() + 1)),
            ),
        });
        assert_eq!(check(&adds.collect::<Vec<_>>()), Ok(()));
    }

    /// All orders of all sets that hold whatever was answered.
    fn brute(left: &[Operation], value: Option<i64>) -> bool {
        if left.iter().all(|operation| operation.ended.is_none()) {
            return true;
        }
        (0..left.len()).any(|index| {
            let mut rest = left.to_vec();
            let next = rest.remove(index);
            let free = rest
                .iter()
                .all(|other| other.ended.is_none_or(|ended| ended >= next.begun));
            free && apply(next.action, value).is_some_and(|value| brute(&rest, value))
        })
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let value = || 1..4_i64;
        let action = prop_oneof![
            value().prop_map(Action::Write),
            proptest::option::of(value()).prop_map(Action::Read),
            proptest::option::of(value()).prop_map(Action::Add),
        ];
        (action, 0..12_u64, proptest::option::weighted(0.75, 0..6_u64)).prop_map(|(action, begun, length)| Operation {
            client: 0,
            begun,
            // The sum of an addition is known when its end is.
            ended: match action {
                Action::Add(None) => None,
                Action::Add(Some(_)) => Some(begun + length.unwrap_or(1)),
                _ => length.map(|length| begun + length),
            },
            action,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn the_search_finds_an_order_exactly_where_there_is_one(
            history in proptest::collection::vec(operation(), 0..7)
        ) {
            prop_assert_eq!(fits(&history), brute(&history, None), "{:?}", history);
        }
    }
}
