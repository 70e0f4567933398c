//! Following one node: its connection, and what its answers mean for the facts.
//!
//! Each node has a task of its own, so that one that hangs delays no other. Owns: reconnecting, and the order
//! "number first, request after". Refuses to judge: [`Stream`] does. Invariant: a replica that cannot be asked, or is
//! unfit, serves nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, trace};

use super::control::{Answer, Control, ControlError, ControlLogin};
use super::info::{Identity, Role, Unfit};
use super::replicas::ReplicaFacts;
use super::stream::Stream;
use crate::route::{Fences, SampleNumber};
use crate::topology::{Addr, ReplOffset, RunId};

const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_millis(500);
/// How long a connection may take to be opened and an answer to come.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long a replica's question waits for the master's answer of the same round: with it, it says more.
const MASTER_FIRST_MAX: Duration = Duration::from_millis(5);
/// How often, and how soon, a replica that has not passed the newest sample is asked again within a round.
const AGAIN_MAX: u32 = 2;
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// What the tasks of one shard share under one epoch.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) fences: Arc<Fences>,
    stream: Mutex<Stream>,
    newest: watch::Sender<SampleNumber>,
}

impl Feed {
    pub(super) fn new(fences: Arc<Fences>, max_lag_ms: u64) -> Self {
        Self {
            fences,
            stream: Mutex::new(Stream::new(max_lag_ms)),
            newest: watch::Sender::new(SampleNumber(0)),
        }
    }

    pub(super) fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round soon: somebody came or went.
    fn want_a_round(&self) {
        self.fences.want(SampleNumber(self.fences.requested().0 + 1));
    }
}

/// A node to follow.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) addr: Addr,
    pub(super) login: ControlLogin,
    /// The only process that will do, if it is known.
    pub(super) run_id: Option<RunId>,
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{0}: {1}")]
    Unfit(Addr, Unfit),
    #[error("{0} is another process than the one that was made master")]
    OtherProcess(Addr),
    /// The sampler ended.
    #[error("no more rounds")]
    NoMoreRounds,
}

/// Samples the master in every round, for as long as there are rounds.
pub(super) async fn follow_master(feed: Arc<Feed>, node: Node, mut rounds: watch::Receiver<SampleNumber>) {
    let mut retry = Retry::new("master");
    loop {
        let end = ask_master(&feed, &node, &mut rounds, &mut retry).await;
        if retry.is_over(end).await {
            return;
        }
    }
}

async fn ask_master(
    feed: &Feed,
    node: &Node,
    rounds: &mut watch::Receiver<SampleNumber>,
    retry: &mut Retry,
) -> Result<(), End> {
    let mut control = Control::open(&node.addr, &node.login, ANSWER_MAX).await?;
    if node.run_id.as_ref().is_some_and(|wanted| wanted != control.run_id()) {
        return Err(End::OtherProcess(node.addr.clone()));
    }
    feed.want_a_round();
    loop {
        rounds.changed().await.map_err(|_| End::NoMoreRounds)?;
        // Read before the request is written: what was settled up to this number is in the answer.
        let number = feed.fences.requested();
        let Answer { replication, clock } = control.sample(ANSWER_MAX).await?;
        let said = feed.stream().master_says(control.run_id(), &replication, clock, number);
        said.map_err(|unfit| End::Unfit(node.addr.clone(), unfit))?;
        retry.succeeded();
        feed.newest.send_replace(number);
    }
}

/// Compares a replica with the master's samples in every round, for as long as there are rounds.
pub(super) async fn follow_replica(
    feed: Arc<Feed>,
    node: Node,
    facts: Arc<ReplicaFacts>,
    mut rounds: watch::Receiver<SampleNumber>,
) {
    let mut retry = Retry::new("replica");
    loop {
        let end = ask_replica(&feed, &node, &facts, &mut rounds, &mut retry).await;
        leave_service(&feed, &facts);
        if retry.is_over(end).await {
            return;
        }
    }
}

async fn ask_replica(
    feed: &Feed,
    node: &Node,
    facts: &ReplicaFacts,
    rounds: &mut watch::Receiver<SampleNumber>,
    retry: &mut Retry,
) -> Result<(), End> {
    let mut control = Control::open(&node.addr, &node.login, ANSWER_MAX).await?;
    let mut newest = feed.newest.subscribe();
    let mut progress = Progress::default();
    feed.want_a_round();
    loop {
        rounds.changed().await.map_err(|_| End::NoMoreRounds)?;
        let number = *rounds.borrow_and_update();
        wait_for_master(&mut newest, number).await;
        for _ in 0..=AGAIN_MAX {
            let answer = control.sample(ANSWER_MAX).await?;
            retry.succeeded();
            if !progress.take(feed, control.run_id(), &answer, facts) {
                break;
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}

/// Waits a little; without a master the replica is asked all the same.
async fn wait_for_master(newest: &mut watch::Receiver<SampleNumber>, number: SampleNumber) {
    let waited = timeout(MASTER_FIRST_MAX, newest.wait_for(|known| *known >= number)).await;
    if waited.is_err() {
        trace!("the master has not answered this round");
    }
}

/// What is remembered of a replica from one answer to the next.
#[derive(Debug, Default)]
pub(super) struct Progress {
    applied: ReplOffset,
    unfit: Option<Unfit>,
}

impl Progress {
    /// Takes an answer in; says whether asking again soon may bring more.
    pub(super) fn take(&mut self, feed: &Feed, run_id: &RunId, answer: &Answer, facts: &ReplicaFacts) -> bool {
        let (judged, newest) = {
            let stream = feed.stream();
            let newest = stream.newest().map(|sample| sample.number);
            (stream.judge(&answer.replication, answer.clock), newest)
        };
        self.notice_a_step_back(answer, feed, facts);
        match judged {
            Err(unfit) => {
                if self.unfit.replace(unfit) != Some(unfit) {
                    info!("the replica serves no reads: {unfit}");
                }
                leave_service(feed, facts);
                false
            }
            Ok(None) => false,
            Ok(Some(sample)) => {
                self.unfit = None;
                let identity = Identity {
                    run_id: run_id.clone(),
                    replid: answer.replication.replid.clone(),
                };
                facts.pass(&identity, sample.number, sample.asked_ms);
                Some(sample.number) < newest
            }
        }
    }

    /// An offset that went back means that the data was replaced between two answers: that is another life.
    fn notice_a_step_back(&mut self, answer: &Answer, feed: &Feed, facts: &ReplicaFacts) {
        if let Role::Replica { applied, .. } = answer.replication.role {
            if applied < self.applied {
                leave_service(feed, facts);
            }
            self.applied = applied;
        }
    }
}

/// Sessions that read there may move as soon as another replica passes a sample requested from now on.
pub(super) fn leave_service(feed: &Feed, facts: &ReplicaFacts) {
    if facts.is_in_service() {
        facts.void();
        feed.want_a_round();
    }
}

/// Waiting times between connections, and one log line per kind of trouble.
#[derive(Debug)]
struct Retry {
    what: &'static str,
    wait: Duration,
    told: Option<String>,
}

impl Retry {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            wait: RETRY_FIRST,
            told: None,
        }
    }

    fn succeeded(&mut self) {
        if self.told.take().is_some() {
            info!("the {} is sampled again", self.what);
        }
        self.wait = RETRY_FIRST;
    }

    /// Waits for the next attempt, unless there is to be none.
    async fn is_over(&mut self, end: Result<(), End>) -> bool {
        match end {
            Ok(()) => {}
            Err(End::NoMoreRounds) => return true,
            Err(end) => self.tell(&end),
        }
        sleep(self.wait).await;
        self.wait = (self.wait * 2).min(RETRY_LAST);
        false
    }

    fn tell(&mut self, end: &End) {
        let reason = end.to_string();
        if self.told.as_ref() == Some(&reason) {
            debug!("the {} is not sampled: {reason}", self.what);
        } else {
            info!("the {} is not sampled, reads do without: {reason}", self.what);
            self.told = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::info::Replication;
    use super::super::replicas::Replicas;
    use super::super::stream::ClockReading;
    use super::*;
    use crate::topology::Epoch;

    const NOON: ClockReading = ClockReading {
        server_ms: 0,
        asked_ms: 0,
        answered_ms: 0,
    };

    fn reading(role: Role) -> Replication {
        Replication {
            replid: "r1".into(),
            role,
        }
    }

    fn replica(applied: i64, syncing: bool) -> Answer {
        Answer {
            replication: reading(Role::Replica {
                applied: ReplOffset(applied),
                link_up: true,
                syncing,
            }),
            clock: NOON,
        }
    }

    fn sampled_at_ten() -> (Feed, Arc<ReplicaFacts>) {
        let fences = Arc::new(Fences::new());
        let known = Replicas::new(fences.clone());
        let addr = "127.0.0.1:1".parse().unwrap();
        let facts = known.facts(&"s1".into(), &"a".into(), &addr, Epoch(1));
        let feed = Feed::new(fences, 1_000);
        let number = feed.fences.request();
        let master = reading(Role::Master(ReplOffset(10)));
        feed.stream().master_says(&"m".into(), &master, NOON, number).unwrap();
        (feed, facts)
    }

    #[test]
    fn data_that_was_replaced_unseen_is_another_life() {
        let (feed, facts) = sampled_at_ten();
        let mut progress = Progress::default();
        progress.take(&feed, &"x".into(), &replica(20, false), &facts);
        let life = facts.standing().life;
        progress.take(&feed, &"x".into(), &replica(21, false), &facts);
        assert_eq!(facts.standing().life, life);
        progress.take(&feed, &"x".into(), &replica(15, false), &facts);
        assert!(facts.is_in_service() && facts.standing().life != life);
    }

    #[test]
    fn a_replica_leaves_service_at_once_and_somebody_wants_a_round() {
        let (feed, facts) = sampled_at_ten();
        let mut progress = Progress::default();
        progress.take(&feed, &"x".into(), &replica(20, false), &facts);
        assert!(feed.fences.wanted() <= feed.fences.requested());
        progress.take(&feed, &"x".into(), &replica(20, true), &facts);
        assert!(!facts.is_in_service() && feed.fences.wanted() > feed.fences.requested());
    }

    #[test]
    fn a_replica_that_is_behind_is_worth_asking_again() {
        let (feed, facts) = sampled_at_ten();
        let mut progress = Progress::default();
        progress.take(&feed, &"x".into(), &replica(10, false), &facts);
        let number = feed.fences.request();
        let master = reading(Role::Master(ReplOffset(30)));
        feed.stream().master_says(&"m".into(), &master, NOON, number).unwrap();
        assert!(progress.take(&feed, &"x".into(), &replica(29, false), &facts));
        assert!(!progress.take(&feed, &"x".into(), &replica(30, false), &facts));
    }
}
