//! Whether what was added to a set or a list is there: all that was acknowledged, nothing that was not asked for, nothing
//! before it was asked for, nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

/// What became of one addition, as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged at this time.
    Done(u64),
    /// Nobody knows.
    InDoubt,
    /// Refused, not executed.
    NotDone,
}

/// One addition of an element that nobody else adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addition {
    /// When it was asked, in microseconds.
    pub begun: u64,
    /// What became of it.
    pub fate: Fate,
}

/// One look whether an element is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which one.
    pub element: u64,
    /// When it was asked, in microseconds.
    pub begun: u64,
    /// When it was answered.
    pub ended: u64,
    /// The answer.
    pub there: bool,
}

/// What is wrong with one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Acknowledged, and not there in the end.
    Lost(u64),
    /// Seen, or acknowledged, and not there at a later look.
    Vanished(u64),
    /// There, although nobody asked for it or it was said not to be executed.
    Invented(u64),
    /// Seen before it was asked for.
    Early(u64),
    /// There more than once.
    Repeated(u64),
}

impl Fault {
    /// Whether it is a matter of durability: what a failover without acknowledgement by replicas may do.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Lost(_) | Self::Vanished(_))
    }
}

impl Display for Fault {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(element) => write!(out, "{element} was acknowledged and is not there in the end"),
            Self::Vanished(element) => write!(out, "{element} was there and was not at a later look"),
            Self::Invented(element) => write!(out, "{element} is there, and should not be"),
            Self::Early(element) => write!(out, "{element} was seen before anybody asked for it"),
            Self::Repeated(element) => write!(out, "{element} is there more than once"),
        }
    }
}

/// All faults of a collection: `last` is what it holds in the end.
pub fn faults(additions: &BTreeMap<u64, Addition>, looks: &[Look], last: &[u64]) -> BTreeSet<Fault> {
    let mut faults = BTreeSet::new();
    let mut held = BTreeSet::new();
    for element in last {
        if !held.insert(*element) {
            faults.insert(Fault::Repeated(*element));
        }
    }
    let executed = |element| additions.get(element).filter(|addition| addition.fate != Fate::NotDone);
    let invented = held.iter().filter(|element| executed(element).is_none());
    faults.extend(invented.map(|element| Fault::Invented(*element)));
    for (element, addition) in additions {
        if matches!(addition.fate, Fate::Done(_)) && !held.contains(element) {
            faults.insert(Fault::Lost(*element));
        }
    }
    faults.extend(unlike(additions, looks));
    faults
}

/// The looks that do not go with the additions.
fn unlike(additions: &BTreeMap<u64, Addition>, looks: &[Look]) -> Vec<Fault> {
    let mut faults = Vec::new();
    // Since when each is known to be there.
    let mut there_since: BTreeMap<u64, u64> = BTreeMap::new();
    for (element, addition) in additions {
        if let Fate::Done(at) = addition.fate {
            there_since.insert(*element, at);
        }
    }
    for look in looks.iter().filter(|look| look.there) {
        match additions.get(&look.element) {
            Some(addition) if addition.fate != Fate::NotDone => {
                if look.ended < addition.begun {
                    faults.push(Fault::Early(look.element));
                }
            }
            _ => faults.push(Fault::Invented(look.element)),
        }
        let since = there_since.entry(look.element).or_insert(look.ended);
        *since = look.ended.min(*since);
    }
    let gone = looks.iter().filter(|look| !look.there);
    let late = gone.filter(|look| there_since.get(&look.element).is_some_and(|since| *since < look.begun));
    faults.extend(late.map(|look| Fault::Vanished(look.element)));
    faults
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linear::{Action, Operation, check};

    fn added(element: u64, begun: u64, fate: Fate) -> (u64, Addition) {
        (element, Addition { begun, fate })
    }

    fn look(element: u64, begun: u64, ended: u64, there: bool) -> Look {
        Look {
            element,
            begun,
            ended,
            there,
        }
    }

    fn found(additions: &[(u64, Addition)], looks: &[Look], last: &[u64]) -> Vec<Fault> {
        let additions = additions.iter().copied().collect();
        faults(&additions, looks, last).into_iter().collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_what_was_refused_is_not_and_doubt_may_go_either_way() {
        let additions = [
            added(1, 0, Fate::Done(5)),
            added(2, 1, Fate::InDoubt),
            added(3, 2, Fate::NotDone),
        ];
        assert_eq!(found(&additions, &[], &[1]), []);
        assert_eq!(found(&additions, &[], &[2, 1]), []);
        assert_eq!(found(&additions, &[], &[2]), [Fault::Lost(1)]);
        assert_eq!(found(&additions, &[], &[1, 3]), [Fault::Invented(3)]);
        assert_eq!(found(&additions, &[], &[1, 4]), [Fault::Invented(4)]);
        assert_eq!(found(&additions, &[], &[1, 2, 2]), [Fault::Repeated(2)]);
        assert_eq!(found(&additions, &[], &[1, 1]), [Fault::Repeated(1)]);
    }

    #[test]
    fn looks_see_nothing_early_and_nothing_vanish() {
        let additions = [added(1, 10, Fate::Done(20)), added(2, 10, Fate::InDoubt)];
        let seen = |looks: &[Look]| found(&additions, looks, &[1, 2]);
        assert_eq!(
            seen(&[look(1, 0, 15, true), look(1, 12, 18, false), look(1, 21, 22, true)]),
            []
        );
        assert_eq!(seen(&[look(1, 0, 9, true)]), [Fault::Early(1)]);
        assert_eq!(seen(&[look(1, 21, 22, false)]), [Fault::Vanished(1)]);
        assert_eq!(seen(&[look(2, 50, 51, false), look(2, 52, 53, true)]), []);
        assert_eq!(
            seen(&[look(2, 50, 51, true), look(2, 52, 53, false)]),
            [Fault::Vanished(2)]
        );
        assert_eq!(seen(&[look(3, 50, 51, true)]), [Fault::Invented(3)]);
        assert!(Fault::Lost(1).is_loss() && Fault::Vanished(1).is_loss() && !Fault::Early(1).is_loss());
    }

    fn fate() -> impl Strategy<Value = (u64, Option<u64>)> {
        (0..10_u64, proptest::option::of(0..5_u64))
    }

    proptest! {
        /// One element is a register that is written once.
        #[test]
        fn looks_fit_exactly_where_a_register_would_be_linearizable(
            (begun, length) in fate(),
            seen in proptest::collection::vec((0..20_u64, 0..6_u64, any::<bool>()), 0..5),
            last in any::<bool>(),
        ) {
            let fate = length.map_or(Fate::InDoubt, |length| Fate::Done(begun + length));
            let mut looks: Vec<Look> =
                seen.iter().map(|(begun, length, there)| look(1, *begun, begun + length, *there)).collect();
            let mut history = vec![Operation {
                client: 0,
                begun,
                ended: length.map(|length| begun + length),
                action: Action::Write(1),
            }];
            let mut end = look(1, 100, 101, last);
            history.extend(looks.iter().chain([&end]).map(|look| Operation {
                client: 0,
                begun: look.begun,
                ended: Some(look.ended),
                action: Action::Read(look.there.then_some(1)),
            }));
            end.there = last;
            looks.push(end);
            let additions = [added(1, begun, fate)];
            let held: &[u64] = if last { &[1] } else { &[] };
            prop_assert_eq!(found(&additions, &looks, held).is_empty(), check(&history).is_ok(), "{:?}", history);
        }
    }
}
