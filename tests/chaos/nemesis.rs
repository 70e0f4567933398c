//! Makes a plan come true.
//!
//! Invariant: at most one node is without its memory. With two of three gone, what both had acknowledged is gone too,
//! which no protocol can help; so a fault that empties a Redis is left out while not every node counts.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use pointsman::clock;

use crate::cluster::{Cluster, NODES, PROXIES};
use crate::network::ways;
use crate::plan::{Deed, Fault, Step, Who};
use crate::support::Process;

/// One thing that is wrong now.
enum Wrong {
    Killed(&'static str),
    KilledAgent(&'static str),
    Stopped(&'static str),
    Paused(&'static str),
    Cut(Vec<(&'static str, &'static str)>),
    Lossy(Vec<(&'static str, &'static str)>),
}

/// Does to `cluster` what the plan says, and returns what was done. What is wrong at the end stays so.
#[track_caller]
pub fn run(cluster: &mut Cluster, plan: &[Step], length: Duration) -> Vec<Deed> {
    let mut nemesis = Nemesis {
        cluster,
        wrong: Vec::new(),
        asked: Vec::new(),
        done: Vec::new(),
    };
    let start = clock::now();
    let wait = |at_ms| {
        thread::sleep(Duration::from_millis(at_ms).saturating_sub(start.elapsed()));
    };
    for step in plan {
        // What is over before this begins ends first.
        while let Some(at_ms) = nemesis.next_end().filter(|at_ms| *at_ms <= step.at_ms) {
            wait(at_ms);
            nemesis.end(at_ms);
        }
        wait(step.at_ms);
        nemesis.begin(step);
    }
    let last = u64::try_from(length.as_millis()).unwrap();
    while let Some(at_ms) = nemesis.next_end().filter(|at_ms| *at_ms <= last) {
        wait(at_ms);
        nemesis.end(at_ms);
    }
    wait(last);
    nemesis.done
}

struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    /// And when it ends, in milliseconds.
    wrong: Vec<(u64, Wrong)>,
    /// Commands of the operator, which end by themselves.
    asked: Vec<Process>,
    done: Vec<Deed>,
}

impl Nemesis<'_> {
    fn next_end(&self) -> Option<u64> {
        self.wrong.iter().map(|(at_ms, _)| *at_ms).min()
    }

    fn begin(&mut self, step: &Step) {
        let end_ms = step.at_ms + step.length_ms;
        let outcome = self.attempt(step.fault).map(|(wrong, whom)| {
            self.wrong.extend(wrong.map(|wrong| (end_ms, wrong)));
            whom
        });
        self.done.push(Deed { step: *step, outcome });
        self.wire();
    }

    fn end(&mut self, at_ms: u64) {
        let over: Vec<(u64, Wrong)> = self.wrong.extract_if(.., |(end, _)| *end == at_ms).collect();
        for (_, wrong) in over {
            match wrong {
                Wrong::Killed(host) => self.cluster.start_server(host),
                Wrong::KilledAgent(node) => self.cluster.start_agent(node),
                Wrong::Stopped(host) => self.cluster.signal_server(host, Signal::SIGCONT),
                Wrong::Paused(node) => {
                    self.cluster.signal_server(node, Signal::SIGCONT);
                    self.cluster.signal_agent(node, Signal::SIGCONT);
                }
                Wrong::Cut(_) | Wrong::Lossy(_) => {}
            }
        }
        self.wire();
    }

    /// Cuts what is to be cut now.
    fn wire(&self) {
        let (mut cut, mut lossy) = (Vec::new(), Vec::new());
        for (_, wrong) in &self.wrong {
            match wrong {
                Wrong::Cut(ways) => cut.extend_from_slice(ways),
                Wrong::Lossy(ways) => lossy.extend_from_slice(ways),
                _ => {}
            }
        }
        self.cluster.network().replace(&cut, &lossy);
    }

    /// Begins a fault; says what is wrong then and whom it hit, or why it is left out.
    fn attempt(&mut self, fault: Fault) -> Result<(Option<Wrong>, String), String> {
        let mut whom = Vec::new();
        let mut host = |nemesis: &Self, who| -> Result<&'static str, String> {
            let host = nemesis.resolve(who)?;
            whom.push(host);
            Ok(host)
        };
        let wrong = match fault {
            Fault::Kill(who) => {
                let host = host(self, who)?;
                self.may_kill(host)?;
                self.cluster.kill_server(host);
                Some(Wrong::Killed(host))
            }
            Fault::RestartEmpty(who) => {
                let node = host(self, who)?;
                self.may_kill(node)?;
                self.cluster.kill_server(node);
                self.cluster.start_server(node);
                None
            }
            Fault::Stop(who) => {
                let host = host(self, who)?;
                self.untouched(host)?;
                self.cluster.signal_server(host, Signal::SIGSTOP);
                Some(Wrong::Stopped(host))
            }
            Fault::Pause(who) => {
                let node = host(self, who)?;
                self.untouched(node)?;
                self.cluster.signal_server(node, Signal::SIGSTOP);
                self.cluster.signal_agent(node, Signal::SIGSTOP);
                Some(Wrong::Paused(node))
            }
            Fault::KillAgent(who) => {
                let node = host(self, who)?;
                self.untouched(node)?;
                self.cluster.kill_agent(node);
                Some(Wrong::KilledAgent(node))
            }
            Fault::RestartAgent(who) => {
                let node = host(self, who)?;
                self.untouched(node)?;
                self.cluster.restart_agent(node);
                None
            }
            Fault::Isolate(who) => {
                let host = host(self, who)?;
                let rest = self.rest(&[host]);
                Some(Wrong::Cut([ways(&[host], &rest), ways(&rest, &[host])].concat()))
            }
            Fault::WithoutZooKeeper(who) => {
                let host = host(self, who)?;
                let ensemble = self.cluster.ensemble();
                Some(Wrong::Cut([ways(&[host], ensemble), ways(ensemble, &[host])].concat()))
            }
            Fault::Minority(node, proxy) => {
                let side = [host(self, node)?, host(self, proxy)?];
                let rest = self.rest(&side);
                Some(Wrong::Cut([ways(&side, &rest), ways(&rest, &side)].concat()))
            }
            Fault::Cut(one, other) => {
                let (one, other) = (host(self, one)?, host(self, other)?);
                Some(Wrong::Cut(vec![(one, other), (other, one)]))
            }
            Fault::OneWay(from, to) => Some(Wrong::Cut(vec![(host(self, from)?, host(self, to)?)])),
            Fault::Mute(who) => {
                let host = host(self, who)?;
                Some(Wrong::Cut(ways(&[host], &self.rest(&[host]))))
            }
            Fault::Lossy(who) => {
                let host = host(self, who)?;
                Some(Wrong::Lossy(ways(&[host], &self.rest(&[host]))))
            }
            Fault::Switchover => {
                self.asked.push(self.cluster.begin(&["switchover", "s1"]));
                None
            }
        };
        Ok((wrong, whom.join(" ")))
    }

    fn resolve(&self, who: Who) -> Result<&'static str, String> {
        match who {
            Who::Master => self.cluster.master().ok_or("there is no master".to_owned()),
            Who::Replica(number) => {
                let master = self.cluster.master().ok_or("there is no master".to_owned())?;
                let mut others = NODES.into_iter().filter(|node| *node != master);
                Ok(others.nth(number).unwrap())
            }
            Who::Proxy(number) => Ok(PROXIES[number]),
            Who::ZooKeeper(number) => Ok(self.cluster.ensemble()[number]),
            Who::Leader => self
                .cluster
                .zookeeper_leader()
                .ok_or("nobody leads the ensemble".to_owned()),
        }
    }

    /// Every host but these and the operator's.
    fn rest(&self, left_out: &[&str]) -> Vec<&'static str> {
        let all = NODES.iter().chain(&PROXIES).chain(self.cluster.ensemble());
        all.copied().filter(|host| !left_out.contains(host)).collect()
    }

    fn may_kill(&self, host: &str) -> Result<(), String> {
        self.untouched(host)?;
        if NODES.contains(&host) && !self.cluster.all_count_now() {
            return Err("not every node counts".to_owned());
        }
        Ok(())
    }

    /// A host's processes are wrong in one way at a time.
    fn untouched(&self, host: &str) -> Result<(), String> {
        let touched = self.wrong.iter().any(|(_, wrong)| match wrong {
            Wrong::Killed(other) | Wrong::KilledAgent(other) | Wrong::Stopped(other) | Wrong::Paused(other) => {
                *other == host
            }
            Wrong::Cut(_) | Wrong::Lossy(_) => false,
        });
        match touched {
            true => Err(format!("{host} is not itself")),
            false => Ok(()),
        }
    }
}
