//! The steps of an election that a run meets rarely, driven by hand.

use std::time::Duration;

use super::super::facts::{PARKED_AT, sample};
use super::*;
use crate::clock;
use crate::topology::RunId;

fn id(name: &str) -> NodeId {
    NodeId::from(name)
}

fn addr() -> Addr {
    Addr::new("127.0.0.1", 2)
}

/// What is left of an unfinished election for epoch 5, after a master a whose stream was r4.
fn unfinished() -> State {
    State {
        epoch: Epoch(5),
        phase: Phase::Electing,
        executor: id("a"),
        nonce: "old".to_owned(),
        master: Some(MasterOf {
            node: id("a"),
            addr: Addr::new("127.0.0.1", 1),
            run_id: RunId::from("a"),
        }),
        lineage: vec!["r4".to_owned()],
        members: ["a", "b", "c"].map(id).into(),
        valid: ["a", "b", "c"].map(|name| (id(name), RunId::from(name))).into(),
        ack_replicas: 1,
        switch: None,
        shrunk_from: 0,
        accept: None,
        moved: None,
    }
}

fn parked(node: &str, offset: i64) -> Reply {
    Reply::Done(Box::new(Facts {
        follows: PARKED_AT.parse().ok(),
        ..sample(node, "r4", offset)
    }))
}

struct Bench {
    now: Instant,
    timings: Timings,
    election: Election,
}

impl Bench {
    /// By c, over a state in this phase; b and c are parked, a is gone, and b, which holds the most, was told.
    fn promoting(from: Phase) -> Self {
        let now = clock::now();
        let claimed = unfinished().claimed_by(&id("c"), "new".to_owned());
        let why = "a test".to_owned();
        let election = Election::new(now, claimed.clone(), Some(from), why, None, Stakes::default());
        let mut bench = Self {
            now,
            timings: Timings::default(),
            election,
        };
        assert!(bench.election.handle_written(now, &claimed).is_none());
        assert_eq!(bench.advance().len(), 3, "all are to be parked");
        let park = Ask::Park { epoch: Epoch(6) };
        for (node, reply) in [("a", Reply::Gone), ("b", parked("b", 90)), ("c", parked("c", 80))] {
            assert_eq!(bench.reply(node, &park, reply), []);
        }
        bench.now += bench.timings.park_grace;
        let orders = bench.advance();
        let told = |order: &Order| matches!(order, Order::Ask(node, Ask::Promote { .. }) if *node == id("b"));
        assert!(orders.iter().any(told), "{orders:?}");
        bench
    }

    fn advance(&mut self) -> Vec<Order> {
        self.election.advance(self.now, &self.timings)
    }

    fn reply(&mut self, node: &str, ask: &Ask, reply: Reply) -> Vec<Order> {
        self.election
            .handle_reply(self.now, &id(node), ask, reply, Some(&addr()))
    }

    /// b is the master, of the stream r6 that it began.
    fn promoted(&mut self) -> Vec<Order> {
        let ask = Ask::Promote {
            epoch: Epoch(6),
            run_id: RunId::from("b"),
            mark: None,
        };
        let facts = Facts {
            role: super::super::facts::Role::Master,
            follows: None,
            replid2: "r4".to_owned(),
            second_offset: 91,
            ..sample("b", "r6", 90)
        };
        self.reply("b", &ask, Reply::Done(Box::new(facts)))
    }
}

fn follows(orders: &[Order]) -> Vec<NodeId> {
    let asked = orders.iter().map(|order| match order {
        Order::Ask(node, Ask::Follow { addr: at, .. }) if *at == addr() => node.clone(),
        other => panic!("{other:?}"),
    });
    asked.collect()
}

#[test]
fn over_an_unfinished_election_the_new_stream_is_announced_before_anybody_follows_it() {
    for from in [Phase::Electing, Phase::Switching] {
        let mut bench = Bench::promoting(from);
        let orders = bench.promoted();
        let [Order::Write(announced)] = orders.as_slice() else {
            panic!("{orders:?}");
        };
        // Were b to die now, who has followed it already would name no stream that counts.
        assert_eq!(announced.lineage, ["r4", "r6"]);
        assert_eq!((announced.epoch, announced.phase), (Epoch(6), Phase::Electing));
        assert_eq!(
            (&announced.nonce, &announced.valid),
            (&"new".to_owned(), &unfinished().valid)
        );
        assert_eq!(bench.promoted(), [], "the answer once more changes nothing");
        bench.now += Duration::from_secs(60);
        assert_eq!(
            bench.advance(),
            [],
            "nor does time: the write has an outcome or is found out"
        );
        assert!(bench.election.stands(announced) && !bench.election.stuck(bench.now, &bench.timings));
        let announced = announced.clone();
        assert!(bench.election.handle_written(bench.now, &announced).is_none());
        assert_eq!(
            follows(&bench.election.resume()),
            [id("c")],
            "who was parked follows, at once"
        );
        assert_eq!(bench.election.resume(), []);
        bench.now += bench.timings.prove_needed;
        let look = bench.advance();
        assert!(
            matches!(look.as_slice(), [Order::Ask(_, Ask::Reach { .. })]),
            "{look:?}"
        );
    }
}

#[test]
fn after_a_master_that_served_and_with_a_known_stream_there_is_nothing_to_announce() {
    let mut bench = Bench::promoting(Phase::Serving);
    assert_eq!(follows(&bench.promoted()), [id("c")]);
    // Promoted before by an executor that announced it and died: its stream is known.
    let mut bench = Bench::promoting(Phase::Electing);
    bench.election.state.lineage.push("r6".to_owned());
    assert_eq!(follows(&bench.promoted()), [id("c")]);
}

#[test]
fn a_claim_by_somebody_else_ends_an_announcement() {
    let mut bench = Bench::promoting(Phase::Electing);
    bench.promoted();
    let theirs = bench.election.state.claimed_by(&id("b"), "theirs".to_owned());
    assert!(!bench.election.stands(&theirs));
}
