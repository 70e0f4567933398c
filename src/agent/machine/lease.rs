//! How long a master that nobody has to acknowledge to may go on unheard (rule C7, W = 0).
//!
//! ```text
//!  another agent: "I heard the master just now"  --Word----------+--> until when nobody can have been elected --> stand down
//!  the store: our denial of what others suspect  --read back-----+                                            --> Word to proxies
//! ```
//! With W >= 1 a master that is cut off acknowledges nothing, and needs no lease. With W = 0 it would for as long as the
//! cut lasts, while the others elect. They elect a successor to a silent host only once enough of them have heard nothing
//! for `suspicion`. So a master whose agent knows that too few can have got that far may go on, and one that does not know
//! parks itself before.
//!
//! Owns: that reckoning, and what agents tell of it. Refuses: a shard of two, where either would stop without the other
//! (ha.md C7). Invariants: a word counts from when it was asked for, by the clock of who asked, so that clocks need only
//! run equally fast; the store alone or the others alone are enough, so that a restart of either parks nobody; whoever
//! elects over a denial does so twice `suspicion` after the last one, and the master relies on it for a quarter less: that
//! is for a reading of the store that lags.
//!
//! Not covered: a master whose agent is dead, or stands still with it. Proxies that hear nobody stop by themselves.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::peer::Word;
use crate::topology::{Epoch, NodeId, Phase, RunId};

use super::action::{Action, Level, Suspicion};
use super::detector::Health;
use super::facts::Role;
use super::lead::accusers_needed;
use super::obedience::Ask;
use super::state::{MasterOf, State};
use super::timings::Timings;
use super::{Machine, Source};

/// Members at least: of two, neither can tell a cut from the other's death.
const MEMBERS_MIN: usize = 3;
/// How long a denial keeps others from electing, in times of `suspicion`: the store is slower than they are.
const DENIAL_GOOD: u32 = 2;
/// Denials that were sent and not read back.
const DENIALS_MAX: usize = 16;
/// Proxies whose last question is remembered, beyond those that are registered.
const PROXIES_MAX: usize = 256;

/// What this agent knows of how long its Redis, the master, may go on.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    /// The reign it is about, and when it was first heard of.
    reign: Option<(Epoch, RunId, Instant)>,
    /// Until when each of the other members lets it go on.
    words: BTreeMap<NodeId, Instant>,
    /// Denials, by number, and when they were sent.
    denials: VecDeque<(u64, Instant)>,
    /// When the newest one that is known to stand was sent.
    stands: Option<Instant>,
    /// After we were stopped ourselves, the others are asked first.
    grace: Instant,
    last: Instant,
    again: Instant,
    /// It was told to stand down in this reign.
    ended: bool,
}

/// A denial of the master's agent, as another agent read it.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    run_id: RunId,
    number: u64,
    read: Instant,
}

impl Lease {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            reign: None,
            words: BTreeMap::new(),
            denials: VecDeque::new(),
            stands: None,
            grace: now,
            last: now,
            again: now,
            ended: false,
        }
    }

    /// Until when fewer than `enough` others can have heard nothing for long enough.
    fn heard_until(&self, enough: usize) -> Option<Instant> {
        let mut until: Vec<Instant> = self.words.values().copied().collect();
        until.sort_unstable_by(|one, other| other.cmp(one));
        until.get(enough.saturating_sub(1)).copied()
    }

    /// Until when the master may go on: what the others say, what stands in the store, and the time to hear of either.
    fn until(&self, enough: usize, suspicion: Duration) -> Instant {
        let begun = self.reign.as_ref().map(|(_, _, begun)| *begun + suspicion);
        let stands = self.stands.map(|sent| sent + suspicion * DENIAL_GOOD - suspicion / 4);
        let known = [begun, stands, self.heard_until(enough)].into_iter().flatten();
        known.fold(self.grace, Instant::max)
    }

    /// Whether it was over in the last reign.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    fn follow(&mut self, now: Instant, reign: Option<(Epoch, RunId)>, timings: &Timings) {
        let gap = now.saturating_duration_since(self.last);
        self.last = now;
        if gap > timings.stall {
            self.grace = now + timings.probe * 2;
        }
        let known = self.reign.as_ref().map(|(epoch, run_id, _)| (*epoch, run_id.clone()));
        if known != reign {
            self.reign = reign.map(|(epoch, run_id)| (epoch, run_id, now));
            self.words.clear();
            self.stands = None;
            // What ended stays so until the next reign.
            self.ended &= self.reign.is_none();
        }
    }
}

/// How long before its end a lease is given up: the park takes its time, and so does the machine.
fn margin(timings: &Timings) -> Duration {
    (timings.probe * 2).min(timings.suspicion / 4)
}

/// How many of the others must hear the master, so that too few are left to elect over its silence.
fn enough(state: &State) -> usize {
    state.members.len().saturating_sub(accusers_needed(state)).max(1)
}

fn leased(state: &State) -> bool {
    state.ack_replicas == 0 && state.members.len() >= MEMBERS_MIN
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Machine {
    /// The state whose master may serve, if that is known here and nothing newer was obeyed.
    fn undisputed(&self) -> Option<(&State, &MasterOf)> {
        let state = &self.state()?.state;
        let stands = match state.phase {
            Phase::Serving | Phase::Switching => self.obedience.epoch() <= state.epoch && !self.distrusted,
            Phase::Electing => false,
        };
        let master = state.master.as_ref()?;
        stands.then_some((state, master))
    }

    /// The reign of our own Redis, if it is the master and needs a lease.
    fn leased_reign(&self) -> Option<(Epoch, RunId)> {
        let (state, master) = self.undisputed()?;
        let facts = self.detector.own_facts()?;
        let reigns = master.node == self.me.node && facts.run_id == master.run_id && facts.role == Role::Master;
        (leased(state) && reigns && self.detector.health() != Health::Dead)
            .then(|| (state.epoch, master.run_id.clone()))
    }

    /// What this agent can say to whoever asks how long the published master may be believed in.
    pub fn word(&self, now: Instant) -> Option<Word> {
        let (state, master) = self.undisputed()?;
        let word = |left: Duration, enough: usize| {
            (!left.is_zero()).then(|| Word {
                epoch: state.epoch,
                good_ms: milliseconds(left),
                enough,
            })
        };
        if !state.members.contains(&self.me.node) {
            return None;
        }
        if master.node == self.me.node {
            if state.members.len() == 1 {
                return word(self.timings.suspicion, 1);
            }
            let reigns = self.lease.reign.is_some() && !self.lease.ended && self.leased_reign().is_some();
            let until = self.lease.until(enough(state), self.timings.suspicion);
            let left = until.saturating_duration_since(now + margin(&self.timings));
            return word(left, 1).filter(|_| reigns);
        }
        if self.course.is_some() {
            return None;
        }
        let heard = self.detector.heard(master, &self.me.node)?;
        let left = (heard + self.timings.suspicion).saturating_duration_since(now);
        word(left, enough(state))
    }

    /// Another agent said how long it lets our Redis go on, counted from when it was asked.
    pub(super) fn note_word(&mut self, node: &NodeId, asked_at: Instant, word: Option<&Word>) {
        let Some((epoch, ..)) = &self.lease.reign else { return };
        let member = self.state().is_some_and(|known| known.state.members.contains(node));
        if let Some(word) = word.filter(|word| word.epoch == *epoch && member && *node != self.me.node) {
            // No word is good for longer than we ourselves would give.
            let good = Duration::from_millis(word.good_ms).min(self.timings.suspicion);
            self.lease.words.insert(node.clone(), asked_at + good);
        }
    }

    /// A proxy asked: it reaches this host.
    pub fn note_proxy(&mut self, now: Instant, proxy: &str) {
        if self.asked_by.len() >= PROXIES_MAX {
            let suspicion = self.timings.suspicion;
            self.asked_by
                .retain(|_, asked| now.saturating_duration_since(*asked) < suspicion);
        }
        if self.asked_by.len() < PROXIES_MAX {
            self.asked_by.insert(proxy.to_owned(), now);
        }
    }

    /// All evidence was read: ours shows that our denial stands, the master's that it is alive.
    pub(super) fn note_denials(&mut self, now: Instant) {
        let master = self.state().and_then(|known| known.state.master.clone());
        for suspect in &self.suspects {
            let Some(number) = suspect.denial else { continue };
            if suspect.by == self.me.node {
                let sent = self.lease.denials.iter().find(|(sent, _)| *sent == number);
                let sent = sent.map(|(_, at)| *at);
                self.lease.stands = self.lease.stands.max(sent);
            } else if master.as_ref().is_some_and(|master| master.node == suspect.by) {
                let known = self.denied.as_ref();
                if known.is_none_or(|known| known.number != number || known.run_id != suspect.run_id) {
                    self.denied = Some(Denied {
                        run_id: suspect.run_id.clone(),
                        number,
                        read: now,
                    });
                }
            }
        }
    }

    /// Whether the master's agent says in the store that it serves, so that at W = 0 its replacement would only lose what
    /// its replicas lack.
    pub(super) fn is_denied(&self, now: Instant, master: &MasterOf, state: &State) -> bool {
        let fresh = |denied: &&Denied| {
            denied.run_id == master.run_id
                && now.saturating_duration_since(denied.read) < self.timings.suspicion * DENIAL_GOOD
        };
        leased(state) && self.denied.as_ref().filter(fresh).is_some()
    }

    /// Whether more than half of the proxies have asked this agent lately; so none of none.
    fn is_reached(&self, now: Instant) -> bool {
        let Some(proxies) = self.proxies.as_ref().filter(|proxies| !proxies.is_empty()) else {
            return true;
        };
        let lately = |proxy: &&String| {
            let asked = self.asked_by.get(*proxy);
            asked.is_some_and(|asked| now.saturating_duration_since(*asked) < self.timings.suspicion * DENIAL_GOOD)
        };
        proxies.iter().filter(lately).count() * 2 > proxies.len()
    }

    /// Whether our Redis stood down and would be of no use to anybody if it reigned again: those that proxies reach elect.
    pub(super) fn leaves_it_to_others(&self, now: Instant, state: &State) -> bool {
        let ours = state.master.as_ref().is_some_and(|master| master.node == self.me.node);
        if !ours || !self.lease.ended() || self.is_reached(now) {
            return false;
        }
        let others = state.members.iter().filter(|member| **member != self.me.node);
        others
            .filter(|other| self.detector.status_of(now, other).is_some())
            .count()
            < enough(state)
    }

    /// Whether the others hear our Redis, the master, or it needs nobody's word.
    pub(super) fn lease_is_calm(&self) -> bool {
        self.lease.denials.is_empty()
    }

    /// The next moment after `now` at which time alone ends what a lease rests on.
    pub(super) fn lease_due(&self, now: Instant) -> Option<Instant> {
        self.lease.reign.as_ref()?;
        let (state, _) = self.undisputed()?;
        let (enough, suspicion) = (enough(state), self.timings.suspicion);
        let heard = self.lease.heard_until(enough)?.checked_sub(suspicion * 5 / 8);
        let over = self.lease.until(enough, suspicion).checked_sub(margin(&self.timings));
        [heard, over].into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Denies what others suspect, and stands down when the lease is over.
    pub(super) fn keep_lease(&mut self, now: Instant) {
        let reign = self.leased_reign();
        let reigns = reign.is_some();
        self.lease.follow(now, reign, &self.timings);
        let Some((state, _)) = self.undisputed().filter(|_| reigns) else {
            return self.take_denial_back();
        };
        let enough = enough(state);
        let suspicion = self.timings.suspicion;
        let begun = self.lease.reign.as_ref().map(|(_, _, begun)| *begun + suspicion);
        let heard = self.lease.heard_until(enough).max(begun);
        if heard.is_some_and(|heard| heard >= now + suspicion * 5 / 8) {
            self.take_denial_back();
        } else {
            self.deny(now);
        }
        let over = now + margin(&self.timings) >= self.lease.until(enough, suspicion);
        if over && self.running.is_none() && now >= self.lease.again {
            self.stand_down(now);
        }
    }

    fn deny(&mut self, now: Instant) {
        // Several are on their way before the first of them would have to be back.
        let every = self.timings.suspicion / 8;
        let due = self.lease.denials.back().is_none_or(|(_, sent)| now >= *sent + every);
        if !due || !self.connected || !self.is_reached(now) {
            return;
        }
        let Some((_, run_id, _)) = self.lease.reign.clone() else {
            return;
        };
        if self.lease.denials.is_empty() {
            let sentence = "the other agents are not heard: ZooKeeper is told that this master serves".to_owned();
            self.say(Level::Warn, sentence);
        }
        let number = self.draw();
        if self.lease.denials.len() >= DENIALS_MAX {
            self.lease.denials.pop_front();
        }
        self.lease.denials.push_back((number, now));
        self.actions.push_back(Action::Suspect(Some(Suspicion {
            by: self.me.node.clone(),
            master: self.me.node.clone(),
            run_id,
            denial: Some(number),
        })));
    }

    fn take_denial_back(&mut self) {
        if !self.lease.denials.is_empty() {
            self.lease.denials.clear();
            self.lease.stands = None;
            self.actions.push_back(Action::Suspect(self.suspicion.clone()));
        }
    }

    fn stand_down(&mut self, now: Instant) {
        let Some((epoch, run_id, _)) = self.lease.reign.clone() else {
            return;
        };
        self.lease.again = now + self.timings.ask;
        if !std::mem::replace(&mut self.lease.ended, true) {
            let node = &self.me.node;
            let sentence = format!(
                "{node} stands down in epoch {epoch}: neither ZooKeeper nor enough other agents are heard, so they may \
                 elect; without acknowledgements (ack_replicas = 0) what it took from now on would be lost"
            );
            self.say(Level::Warn, sentence);
        }
        // The replicas keep their links: what they lack arrives as soon as they are reached.
        self.act(Source::Lease, Ask::Fence { epoch, run_id });
    }
}
