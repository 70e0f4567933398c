//! Which node a run of reads goes to (design §5, rules B10, B11).
//!
//! Owns: the read policy, what is known of a replica at the moment of a decision, a session's attachment to one.
//! Refuses: connections and clocks. Invariant: a run goes to a replica only if that replica, in its present life, has
//! passed everything the run needs and a sample young enough; a session changes replica only to one that has passed a
//! sample requested after its last read.

use super::fences::{Need, SampleNumber};

/// Where reads may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadPolicy {
    /// To the master.
    Master,
    /// To a replica that has everything this proxy acknowledged of the keys, else to the master.
    #[default]
    Causal,
}

/// One life of one replica under one epoch: its process, as the sampler found it. Never used twice, 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Life(pub(crate) u32);

impl Life {
    /// No life known.
    pub const NONE: Self = Self(0);
}

/// What is known of a replica at the moment of a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its present life, and the one the connection that would be used belongs to.
    pub life: Life,
    /// The newest sample it has passed in that life; 0: it serves nobody now.
    pub passed: SampleNumber,
    /// When that sample was requested.
    pub passed_at_ms: u64,
}

impl Standing {
    /// Not in service.
    pub const NONE: Self = Self {
        life: Life::NONE,
        passed: SampleNumber(0),
        passed_at_ms: 0,
    };

    /// Whether it has passed anything, and lately: also what other proxies wrote is at most so old (B10).
    #[inline]
    pub fn is_fresh(&self, now_ms: u64, max_lag_ms: u64) -> bool {
        self.passed.0 != 0 && now_ms.saturating_sub(self.passed_at_ms) <= max_lag_ms
    }
}

/// A run of reads that looks for a node.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The policy of its session.
    pub policy: ReadPolicy,
    /// What its keys need.
    pub need: Need,
    /// The newest sample number handed out (`Fences::requested`).
    pub requested: SampleNumber,
    /// The present moment.
    pub now_ms: u64,
    /// How old a replica's newest passed sample may be.
    pub max_lag_ms: u64,
    /// A hash of the session's id: it spreads sessions over replicas.
    pub session: u64,
}

/// Where a run of reads goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To the master.
    Master,
    /// To the replica at this place of the shard's list.
    Replica(usize),
}

const MARK_BITS: u32 = 40;
const MARK_MASK: u64 = (1 << MARK_BITS) - 1;

/// Which replica a session reads from in one shard, and the newest sample requested when it last did: 8 bytes.
///
/// Reads on the master leave it alone: they would move the mark with every read, and the session would never leave
/// the master again (B11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stickiness(u64);

impl Stickiness {
    fn new(life: Life, mark: SampleNumber) -> Self {
        Self((u64::from(life.0) << MARK_BITS) | (mark.0 & MARK_MASK))
    }

    /// The life it sticks to.
    pub fn life(self) -> Life {
        Life(u32::try_from(self.0 >> MARK_BITS).unwrap_or_default())
    }

    /// Reads on that replica were answered when `requested` was the newest number: call it before the answer is shown.
    ///
    /// [`choose`] marks the moment a read is sent; the data may be as new as the moment it is answered.
    #[inline]
    pub fn answered(&mut self, requested: SampleNumber) {
        if self.life() != Life::NONE && requested > self.mark() {
            *self = Self::new(self.life(), requested);
        }
    }

    fn mark(self) -> SampleNumber {
        SampleNumber(self.0 & MARK_MASK)
    }
}

/// Chooses for a run of reads and moves the session's attachment along. `standing` is asked for as few of the `count`
/// replicas as possible.
pub fn choose(ask: &Ask, sticky: &mut Stickiness, count: usize, standing: impl Fn(usize) -> Standing) -> Choice {
    if ask.policy == ReadPolicy::Master || ask.need.is_master() {
        return Choice::Master;
    }
    let life = sticky.life();
    if life != Life::NONE {
        let own = (0..count)
            .map(|at| (at, standing(at)))
            .find(|(_, found)| found.life == life);
        if let Some((at, own)) = own
            && own.is_fresh(ask.now_ms, ask.max_lag_ms)
        {
            // Forced to the master by its keys only: that moves nobody.
            return ask.settle_on(at, &own, ask.need, sticky).unwrap_or(Choice::Master);
        }
    }
    // All it has read so far must be there, too, as far as it may have been written elsewhere.
    let need = match life {
        Life::NONE => ask.need,
        _ => ask.need.and(Need::after(sticky.mark())),
    };
    let candidates = (0..count).map(|at| (at, standing(at)));
    let best = candidates
        .filter(|(_, found)| found.is_fresh(ask.now_ms, ask.max_lag_ms) && need.met_by(found.passed))
        .max_by_key(|(at, _)| weight(ask.session, *at));
    best.and_then(|(at, found)| ask.settle_on(at, &found, need, sticky))
        .unwrap_or(Choice::Master)
}

impl Ask {
    fn settle_on(&self, at: usize, found: &Standing, need: Need, sticky: &mut Stickiness) -> Option<Choice> {
        if !need.met_by(found.passed) {
            return None;
        }
        *sticky = Stickiness::new(found.life, self.requested.max(sticky.mark()));
        Some(Choice::Replica(at))
    }
}

/// The replica with the highest weight is a session's own as long as it serves: each session ranks them differently,
/// and one that leaves moves its own sessions only.
fn weight(session: u64, at: usize) -> u64 {
    let seat = u64::try_from(at).unwrap_or(u64::MAX).wrapping_add(1);
    let mixed = (session ^ seat.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed ^ (mixed >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LAG_MS: u64 = 1_000;

    fn ask(need: Need, requested: u64, session: u64) -> Ask {
        Ask {
            policy: ReadPolicy::Causal,
            need,
            requested: SampleNumber(requested),
            now_ms: 5_000,
            max_lag_ms: MAX_LAG_MS,
            session,
        }
    }

    fn replica(life: u32, passed: u64) -> Standing {
        Standing {
            life: Life(life),
            passed: SampleNumber(passed),
            passed_at_ms: 5_000,
        }
    }

    fn need(number: u64) -> Need {
        Need::after(SampleNumber(number - 1))
    }

    #[test]
    fn the_master_policy_and_pending_writes_lead_to_the_master() {
        let replicas = [replica(1, 9)];
        let mut sticky = Stickiness::default();
        let forced = ask(Need::MASTER, 9, 1);
        assert_eq!(choose(&forced, &mut sticky, 1, |at| replicas[at]), Choice::Master);
        let chosen = Ask {
            policy: ReadPolicy::Master,
            ..ask(Need::NONE, 9, 1)
        };
        assert_eq!(choose(&chosen, &mut sticky, 1, |at| replicas[at]), Choice::Master);
        assert_eq!(sticky, Stickiness::default());
    }

    #[test]
    fn a_replica_is_good_from_the_sample_its_keys_need() {
        for (passed, choice) in [(4, Choice::Master), (5, Choice::Replica(0)), (6, Choice::Replica(0))] {
            let mut sticky = Stickiness::default();
            let got = choose(&ask(need(5), 9, 1), &mut sticky, 1, |_| replica(1, passed));
            assert_eq!(got, choice, "passed {passed}");
        }
    }

    #[test]
    fn a_replica_that_passed_nothing_lately_is_left() {
        for (age_ms, choice) in [(MAX_LAG_MS, Choice::Replica(0)), (MAX_LAG_MS + 1, Choice::Master)] {
            let old = Standing {
                passed_at_ms: 5_000 - age_ms,
                ..replica(1, 9)
            };
            let got = choose(&ask(Need::NONE, 9, 1), &mut Stickiness::default(), 1, |_| old);
            assert_eq!(got, choice, "{age_ms} ms old");
        }
    }

    #[test]
    fn a_session_stays_on_its_replica_and_sessions_spread() {
        let replicas = [replica(1, 9), replica(2, 9), replica(3, 9)];
        let mut counts = [0; 3];
        for session in 0..3_000_u64 {
            let session = session.wrapping_mul(0x2545_F491_4F6C_DD1D);
            let mut sticky = Stickiness::default();
            let Choice::Replica(first) = choose(&ask(Need::NONE, 9, session), &mut sticky, 3, |at| replicas[at]) else {
                panic!("all are good");
            };
            counts[first] += 1;
            for requested in 10..15 {
                let again = choose(&ask(Need::NONE, requested, session), &mut sticky, 3, |at| replicas[at]);
                assert_eq!(again, Choice::Replica(first));
            }
        }
        assert!(counts.iter().all(|count| (700..1_300).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_read_forced_to_the_master_by_its_key_does_not_move_the_session() {
        let replicas = [replica(1, 9), replica(2, 12)];
        let mut sticky = Stickiness::new(Life(1), SampleNumber(9));
        let before = sticky;
        let fenced = ask(need(12), 12, 1);
        assert_eq!(choose(&fenced, &mut sticky, 2, |at| replicas[at]), Choice::Master);
        assert_eq!(sticky, before);
        let free = ask(need(3), 12, 1);
        assert_eq!(choose(&free, &mut sticky, 2, |at| replicas[at]), Choice::Replica(0));
    }

    #[test]
    fn a_session_moves_only_to_a_replica_that_has_all_it_may_have_seen() {
        let mut sticky = Stickiness::new(Life(1), SampleNumber(0));
        sticky.answered(SampleNumber(20));
        let gone = |passed: u64| move |at: usize| if at == 0 { Standing::NONE } else { replica(2, passed) };
        let free = ask(Need::NONE, 21, 1);
        assert_eq!(
            choose(&free, &mut sticky, 2, gone(20)),
            Choice::Master,
            "requested before the last read ended"
        );
        assert_eq!(choose(&free, &mut sticky, 2, gone(21)), Choice::Replica(1));
        assert_eq!(sticky.life(), Life(2));
    }

    #[test]
    fn a_new_life_of_the_same_replica_is_another_replica() {
        let mut sticky = Stickiness::new(Life(1), SampleNumber(20));
        let free = ask(Need::NONE, 30, 1);
        assert_eq!(choose(&free, &mut sticky, 1, |_| replica(7, 15)), Choice::Master);
        assert_eq!(choose(&free, &mut sticky, 1, |_| replica(7, 21)), Choice::Replica(0));
    }

    #[test]
    fn marks_never_go_back() {
        let mut sticky = Stickiness::new(Life(3), SampleNumber(20));
        sticky.answered(SampleNumber(10));
        assert_eq!(sticky, Stickiness::new(Life(3), SampleNumber(20)));
        let mut fresh = Stickiness::default();
        fresh.answered(SampleNumber(10));
        assert_eq!(
            fresh,
            Stickiness::default(),
            "who sticks to nothing has nothing to remember"
        );
    }

    #[test]
    fn attachments_hold_the_largest_life_and_mark() {
        let sticky = Stickiness::new(Life((1 << 24) - 1), SampleNumber(MARK_MASK));
        assert_eq!(
            (sticky.life(), sticky.mark()),
            (Life((1 << 24) - 1), SampleNumber(MARK_MASK))
        );
    }
}
