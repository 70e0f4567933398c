//! What goes wrong in a run, drawn from a seed: the same seed gives the same plan, whatever happens meanwhile.
//!
//! Roles are resolved when a fault begins: "the master" is whoever it is then.

use std::fmt::{self, Display, Formatter};
use std::ops::AddAssign;

use crate::support::Dice;

/// A host, by what it is when it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The node of the master.
    Master,
    /// The node of a replica: the first or the second by name.
    Replica(usize),
    /// A proxy's.
    Proxy(usize),
    /// A server of the ensemble.
    ZooKeeper(usize),
    /// The server that leads the ensemble.
    Leader,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What the host serves with is killed, and started again at the end. A Redis is empty then.
    Kill(Who),
    /// A Redis is killed and started again at once, empty.
    RestartEmpty(Who),
    /// What the host serves with is stopped, and goes on at the end.
    Stop(Who),
    /// A node's Redis and its agent are stopped together, as when a virtual machine is paused.
    Pause(Who),
    /// A node's agent is killed, and started again at the end.
    KillAgent(Who),
    /// A node's agent is asked to leave and started again at once.
    RestartAgent(Who),
    /// A host reaches nobody.
    Isolate(Who),
    /// A host reaches no server of the ensemble.
    WithoutZooKeeper(Who),
    /// A host and a proxy reach each other and nobody else.
    Minority(Who, Who),
    /// Two hosts do not reach each other.
    Cut(Who, Who),
    /// What the first host sends to the second is lost.
    OneWay(Who, Who),
    /// Nothing that a host sends arrives.
    Mute(Who),
    /// A third of what a host sends is lost.
    Lossy(Who),
    /// The operator asks for another master.
    Switchover,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it begins, in milliseconds from the beginning of the run.
    pub at_ms: u64,
    /// When it is over, from its own beginning.
    pub length_ms: u64,
    /// What it is.
    pub fault: Fault,
}

impl Display for Step {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:>6} ms, for {:>4} ms: {:?}",
            self.at_ms, self.length_ms, self.fault
        )
    }
}

/// What became of a step.
#[derive(Clone, Debug)]
pub struct Deed {
    /// What was to be done.
    pub step: Step,
    /// Whom it hit, or why it was left out.
    pub outcome: Result<String, String>,
}

impl Display for Deed {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(whom) => write!(out, "{} {whom}", self.step),
            Err(why) => write!(out, "{} left out: {why}", self.step),
        }
    }
}

/// How many faults of each sort were done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Processes of any kind killed with SIGKILL: a Redis, an agent, a proxy, a ZooKeeper.
    pub kills: u64,
    /// Of those, masters.
    pub masters: u64,
    /// Hosts that did not reach others, both ways or one, or only now and then.
    pub partitions: u64,
    /// Processes that were stopped for a while.
    pub stops: u64,
    /// Agents restarted, masters asked to move.
    pub requests: u64,
}

impl Tally {
    /// Counts what was done.
    pub fn of(deeds: &[Deed]) -> Self {
        let mut tally = Self::default();
        for deed in deeds.iter().filter(|deed| deed.outcome.is_ok()) {
            match deed.step.fault {
                Fault::Kill(who) | Fault::RestartEmpty(who) => {
                    tally.kills += 1;
                    tally.masters += u64::from(who == Who::Master);
                }
                Fault::KillAgent(_) => tally.kills += 1,
                Fault::Stop(_) | Fault::Pause(_) => tally.stops += 1,
                Fault::RestartAgent(_) | Fault::Switchover => tally.requests += 1,
                Fault::Isolate(_)
                | Fault::WithoutZooKeeper(_)
                | Fault::Minority(..)
                | Fault::Cut(..)
                | Fault::OneWay(..)
                | Fault::Mute(_)
                | Fault::Lossy(_) => tally.partitions += 1,
            }
        }
        tally
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.kills += other.kills;
        self.masters += other.masters;
        self.partitions += other.partitions;
        self.stops += other.stops;
        self.requests += other.requests;
    }
}

impl Display for Tally {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            kills,
            masters,
            partitions,
            stops,
            requests,
        } = self;
        write!(
            out,
            "{kills} kills ({masters} of masters), {partitions} partitions, {stops} stops, {requests} requests"
        )
    }
}

/// The shortest and longest time from the beginning of one fault to that of the next, in milliseconds.
const PAUSE_MS: (u64, u64) = (300, 2800);
/// How long a fault lasts.
const LENGTH_MS: (u64, u64) = (150, 4500);

/// The plan of a run of `length_ms` on a cluster with so many servers of ZooKeeper.
pub fn plan(seed: u64, length_ms: u64, zookeepers: usize) -> Vec<Step> {
    let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    let mut steps = Vec::new();
    let mut at_ms = dice.between(PAUSE_MS.0, PAUSE_MS.1);
    while at_ms < length_ms {
        steps.push(Step {
            at_ms,
            length_ms: dice.between(LENGTH_MS.0, LENGTH_MS.1),
            fault: fault(&mut dice, zookeepers),
        });
        at_ms += dice.between(PAUSE_MS.0, PAUSE_MS.1);
    }
    steps
}

fn fault(dice: &mut Dice, zookeepers: usize) -> Fault {
    let node = node(dice);
    let proxy = Who::Proxy(dice.one_of(&[0, 1]));
    let server = match dice.roll(2) {
        0 => Who::Leader,
        _ => Who::ZooKeeper(usize::try_from(dice.roll(zookeepers as u64)).unwrap()),
    };
    let other = match node {
        Who::Master => Who::Replica(dice.one_of(&[0, 1])),
        _ => Who::Master,
    };
    match dice.roll(24) {
        0..=2 => Fault::Kill(node),
        3..=4 => Fault::RestartEmpty(node),
        5..=6 => Fault::Stop(node),
        7..=8 => Fault::Pause(node),
        9 => Fault::KillAgent(node),
        10 => Fault::RestartAgent(node),
        11..=12 => Fault::Isolate(dice.one_of(&[node, node, proxy])),
        13 => Fault::WithoutZooKeeper(dice.one_of(&[node, proxy])),
        14 => Fault::Minority(node, proxy),
        15..=16 => Fault::Cut(node, dice.one_of(&[other, proxy])),
        17 => Fault::OneWay(node, dice.one_of(&[other, proxy])),
        18 => Fault::OneWay(dice.one_of(&[other, proxy]), node),
        19 => dice.one_of(&[Fault::Mute(node), Fault::Lossy(node)]),
        20 => Fault::Kill(server),
        21 => dice.one_of(&[Fault::Stop(server), Fault::Isolate(server)]),
        22 => dice.one_of(&[Fault::Kill(proxy), Fault::Stop(proxy)]),
        _ => Fault::Switchover,
    }
}

/// The master as often as both others.
fn node(dice: &mut Dice) -> Who {
    dice.one_of(&[Who::Master, Who::Master, Who::Replica(0), Who::Replica(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_plan_and_another_one_another() {
        let lines = |seed| -> Vec<String> { plan(seed, 60_000, 3).iter().map(Step::to_string).collect() };
        assert_eq!(lines(7), lines(7));
        assert_ne!(lines(7), lines(8));
        assert!(lines(7).len() > 20, "{:#?}", lines(7));
    }

    #[test]
    fn what_was_left_out_does_not_count() {
        let deed = |fault, outcome: Result<&str, &str>| Deed {
            step: Step {
                at_ms: 1,
                length_ms: 2,
                fault,
            },
            outcome: outcome.map(str::to_owned).map_err(str::to_owned),
        };
        let deeds = [
            deed(Fault::Kill(Who::Master), Ok("n1")),
            deed(Fault::Kill(Who::Leader), Ok("z2")),
            deed(Fault::Kill(Who::Master), Err("there is no master")),
            deed(Fault::Minority(Who::Master, Who::Proxy(0)), Ok("n2 p1")),
        ];
        let tally = Tally::of(&deeds);
        assert_eq!((tally.kills, tally.masters, tally.partitions), (2, 1, 1));
        assert_eq!((tally.stops, tally.requests), (0, 0));
        assert_eq!(
            deeds[2].to_string(),
            "     1 ms, for    2 ms: Kill(Master) left out: there is no master"
        );
    }

    #[test]
    fn every_kind_of_fault_is_drawn() {
        let name = |fault: &Fault| format!("{fault:?}").split(['(', ' ']).next().unwrap().to_owned();
        let drawn: std::collections::BTreeSet<String> = (0..20)
            .flat_map(|seed| plan(seed, 60_000, 3))
            .map(|step| name(&step.fault))
            .collect();
        assert_eq!(drawn.len(), 14, "{drawn:?}");
    }
}
