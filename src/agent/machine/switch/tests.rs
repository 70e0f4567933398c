//! Every step of a switchover, driven by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::facts::{PARKED_AT, sample};
use super::wait::ASK_AGAIN;
use super::*;
use crate::clock;

const MS: Duration = Duration::from_millis(1);

/// A switchover from a to b, driven by hand.
struct Bench {
    now: Instant,
    switchover: Switchover,
    proxies: BTreeSet<String>,
}

fn id(name: &str) -> NodeId {
    NodeId::from(name)
}

fn addr(port: u16) -> Addr {
    Addr::new("127.0.0.1", port)
}

fn serving() -> State {
    State {
        epoch: Epoch(4),
        phase: Phase::Serving,
        executor: id("c"),
        nonce: "old".to_owned(),
        master: Some(MasterOf {
            node: id("a"),
            addr: addr(1),
            run_id: RunId::from("a"),
        }),
        lineage: vec!["r4".to_owned()],
        members: ["a", "b", "c"].map(id).into(),
        valid: ["a", "b"].map(|name| (id(name), RunId::from(name))).into(),
        ack_replicas: 0,
        switch: None,
        shrunk_from: 0,
        accept: None,
        moved: None,
    }
}

fn linked(node: &str, offset: i64) -> Facts {
    Facts {
        follows: Some(addr(1)),
        link_up: true,
        epoch: Epoch(4),
        ..sample(node, "r4", offset)
    }
}

fn mastering(node: &str, replid: &str, offset: i64) -> Facts {
    Facts {
        role: Role::Master,
        follows: None,
        ..sample(node, replid, offset)
    }
}

fn mark(offset: i64) -> Mark {
    Mark {
        replid: "r4".to_owned(),
        offset,
    }
}

fn look() -> Ask {
    Ask::Reach {
        epoch: Epoch(5),
        mark: None,
    }
}

fn reach(offset: i64) -> Ask {
    Ask::Reach {
        epoch: Epoch(5),
        mark: Some(mark(offset)),
    }
}

fn fence() -> Ask {
    Ask::Fence {
        epoch: Epoch(5),
        run_id: RunId::from("a"),
    }
}

fn promote(offset: i64) -> Ask {
    Ask::Promote {
        epoch: Epoch(5),
        run_id: RunId::from("b"),
        mark: Some(mark(offset)),
    }
}

fn done(facts: Facts) -> Reply {
    Reply::Done(Box::new(facts))
}

impl Bench {
    fn new(proxies: &[&str]) -> Self {
        let now = clock::now();
        let request = SwitchRequest {
            id: "one".to_owned(),
            to: Some(id("b")),
            asked_by: "a test".to_owned(),
        };
        let target = Target {
            node: id("b"),
            addr: addr(2),
            run_id: RunId::from("b"),
        };
        Self {
            now,
            switchover: Switchover::new(now, serving(), Epoch(5), request, target).unwrap(),
            proxies: proxies.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn pass(&mut self, time: Duration) -> Vec<Order> {
        self.now += time;
        self.switchover.advance(self.now, &Timings::default(), &self.proxies)
    }

    fn answer(&mut self, node: &str, ask: &Ask, reply: Reply) -> Vec<Order> {
        self.now += MS;
        let mut orders = self
            .switchover
            .handle_reply(self.now, &id(node), ask, reply, Some(&addr(2)));
        orders.extend(self.pass(Duration::ZERO));
        orders
    }

    /// From the sounding to the claim that stands.
    fn claimed(proxies: &[&str]) -> Self {
        let mut bench = Self::new(proxies);
        assert_eq!(bench.pass(Duration::ZERO), [Order::Ask(id("a"), look())]);
        let orders = bench.answer("a", &look(), done(mastering("a", "r4", 70)));
        assert_eq!(orders, [Order::Ask(id("b"), reach(70))]);
        assert_eq!(bench.answer("b", &reach(70), done(linked("b", 70))), [Order::Claim]);
        let claimed = bench
            .switchover
            .claim(bench.now, &serving(), &id("a"), "new".to_owned())
            .unwrap();
        assert_eq!(
            (claimed.epoch, claimed.reach(), claimed.phase),
            (Epoch(4), Epoch(5), Phase::Switching)
        );
        assert_eq!(bench.switchover.handle_written(bench.now, &claimed), None);
        bench
    }

    /// From there to the fence.
    fn fenced(proxies: &[&str]) -> Self {
        let mut bench = Self::claimed(proxies);
        for proxy in proxies {
            bench.switchover.handle_drained((*proxy).to_owned(), Epoch(5), None);
        }
        assert_eq!(bench.pass(Duration::ZERO), [Order::Ask(id("a"), look())]);
        bench.answer("a", &look(), done(mastering("a", "r4", 80)));
        let orders = bench.answer("b", &reach(80), done(linked("b", 81)));
        assert_eq!(orders, [Order::Ask(id("a"), fence())]);
        assert!(!bench.switchover.reversible());
        let orders = bench.answer("a", &fence(), done(sample("a", "r4", 90)));
        assert_eq!(orders, [Order::Ask(id("b"), reach(90))]);
        bench
    }
}

fn ending(orders: &[Order]) -> &'static str {
    match orders {
        [Order::Abandon(_)] => "election",
        [Order::Write(state)] if state.phase == Phase::Serving && state.epoch == Epoch(4) => "rollback",
        [Order::Retreat(_)] => "retreat",
        _ => "none",
    }
}

#[test]
fn all_steps_lead_to_a_publication_that_lost_nothing() {
    let mut bench = Bench::fenced(&["p", "q"]);
    assert_eq!(bench.answer("b", &reach(90), done(linked("b", 89))), []);
    assert_eq!(bench.pass(ASK_AGAIN), [Order::Ask(id("b"), reach(90))]);
    let orders = bench.answer("b", &reach(90), done(linked("b", 90)));
    assert!(matches!(orders.as_slice(), [Order::Attach(Epoch(5), course, target)]
        if target.node == id("b") && course.as_str() == "new"));
    bench
        .switchover
        .handle_attached("p".to_owned(), Epoch(5), Some(&Course::from("new")));
    bench
        .switchover
        .handle_attached("q".to_owned(), Epoch(5), Some(&Course::from("given up")));
    assert_eq!(bench.pass(MS), []);
    bench.switchover.handle_attached("q".to_owned(), Epoch(5), None);
    assert_eq!(bench.pass(MS), [Order::Ask(id("b"), promote(90))]);
    let orders = bench.answer("b", &promote(90), done(mastering("b", "r5", 90)));
    let follow = |order: &Order| match order {
        Order::Ask(node, ask @ Ask::Follow { fence: 90, .. }) => (node.clone(), ask.clone()),
        other => panic!("{other:?}"),
    };
    let follows: BTreeMap<NodeId, Ask> = orders.iter().map(follow).collect();
    // The fenced master and whoever was valid; c comes when it reads of it.
    assert_eq!(follows.keys().collect::<Vec<_>>(), [&id("a")]);
    let facts = Facts {
        follows: Some(addr(2)),
        link_up: true,
        epoch: Epoch(5),
        ..sample("a", "r5", 95)
    };
    let orders = bench.answer("a", &follows[&id("a")], done(facts));
    let [Order::Write(state)] = orders.as_slice() else {
        panic!("{orders:?}")
    };
    assert_eq!(
        (state.epoch, state.phase, &state.switch),
        (Epoch(5), Phase::Serving, &None)
    );
    assert_eq!(state.master.as_ref().unwrap().node, id("b"));
    assert_eq!(state.lineage, ["r5"]);
    assert_eq!(state.valid.keys().collect::<Vec<_>>(), [&id("a"), &id("b")]);
    let outcome = bench.switchover.handle_written(bench.now, state).unwrap();
    assert_eq!((outcome.result, outcome.epoch), (Ending::Done, Epoch(5)));
    assert_eq!((outcome.lost_bytes, outcome.offset), (Some(0), Some(90)));
    assert_eq!(outcome.request.as_deref(), Some("one"));
}

#[test]
fn a_target_that_does_not_keep_up_costs_nobody_anything() {
    let mut bench = Bench::new(&[]);
    bench.pass(Duration::ZERO);
    bench.answer("a", &look(), done(mastering("a", "r4", 70)));
    bench.answer("b", &reach(70), done(linked("b", 60)));
    assert_eq!(ending(&bench.pass(Timings::default().catch_up)), "retreat");
}

#[test]
fn proxies_are_waited_for_only_so_long_and_not_twice() {
    let mut bench = Bench::claimed(&["p", "q"]);
    bench.switchover.handle_drained("p".to_owned(), Epoch(5), None);
    bench.switchover.handle_drained("q".to_owned(), Epoch(4), None);
    bench
        .switchover
        .handle_drained("q".to_owned(), Epoch(5), Some(&Course::from("given up")));
    assert_eq!(
        bench.pass(MS),
        [],
        "q spoke of another epoch, and of another move to this one"
    );
    let orders = bench.pass(Timings::default().drain_max);
    let [Order::Say(Level::Warn, sentence), Order::Ask(..)] = orders.as_slice() else {
        panic!("{orders:?}")
    };
    assert!(sentence.contains(" q "), "{sentence}");
    bench.answer("a", &look(), done(mastering("a", "r4", 80)));
    bench.answer("b", &reach(80), done(linked("b", 80)));
    bench.answer("a", &fence(), done(sample("a", "r4", 90)));
    bench.answer("b", &reach(90), done(linked("b", 90)));
    bench.switchover.handle_attached("p".to_owned(), Epoch(5), None);
    assert_eq!(bench.pass(MS), [Order::Ask(id("b"), promote(90))]);
}

#[test]
fn before_the_fence_it_is_taken_back_and_after_it_never() {
    let limit = Timings::default().catch_up;
    let drained = |mut bench: Bench| {
        bench.pass(MS);
        bench
    };
    let mut silent = drained(Bench::claimed(&[]));
    assert_eq!(ending(&silent.pass(limit)), "rollback", "the master does not answer");
    let mut died = drained(Bench::claimed(&[]));
    assert_eq!(ending(&died.answer("a", &look(), Reply::Gone)), "election");
    let mut behind = drained(Bench::claimed(&[]));
    behind.answer("a", &look(), done(mastering("a", "r4", 80)));
    let gone = behind.answer("b", &reach(80), Reply::Gone);
    assert_eq!(ending(&gone), "rollback");
    let [Order::Write(state)] = gone.as_slice() else {
        panic!("{gone:?}")
    };
    assert_eq!((&state.switch, state.serving().unwrap().node.as_str()), (&None, "a"));
    let outcome = behind.switchover.handle_written(behind.now, state).unwrap();
    assert_eq!((outcome.result, outcome.epoch), (Ending::RolledBack, Epoch(4)));

    for reply in [
        Reply::Failed("no answer in time".to_owned()),
        Reply::Gone,
        done(mastering("a", "r4", 80)),
        done(Facts {
            follows: PARKED_AT.parse().ok(),
            ..sample("a'", "r4", 80)
        }),
    ] {
        let mut bench = drained(Bench::claimed(&[]));
        bench.answer("a", &look(), done(mastering("a", "r4", 80)));
        bench.answer("b", &reach(80), done(linked("b", 80)));
        assert_eq!(
            ending(&bench.answer("a", &fence(), reply.clone())),
            "election",
            "{reply:?}"
        );
    }
    let mut late = Bench::fenced(&[]);
    late.answer("b", &reach(90), done(linked("b", 89)));
    assert_eq!(ending(&late.pass(limit)), "election");
    let mut dead = Bench::fenced(&[]);
    assert_eq!(ending(&dead.answer("b", &reach(90), Reply::Gone)), "election");
    for facts in [mastering("b'", "r5", 90), linked("b", 90)] {
        let mut bench = Bench::fenced(&[]);
        bench.answer("b", &reach(90), done(linked("b", 90)));
        bench.pass(MS);
        assert_eq!(ending(&bench.answer("b", &promote(90), done(facts))), "election");
    }
}

#[test]
fn without_the_store_it_is_taken_back_as_far_as_it_can_be() {
    let mut draining = Bench::claimed(&["p1"]);
    let now = draining.now;
    let order = draining.switchover.interrupt(now, "away".to_owned());
    assert!(matches!(order, Some(Order::Write(state)) if state.serving().is_some() && state.epoch == Epoch(4)));
    let mut fenced = Bench::fenced(&[]);
    let now = fenced.now;
    assert_eq!(fenced.switchover.interrupt(now, "away".to_owned()), None);
    let mut sounding = Bench::new(&[]);
    let now = sounding.now;
    let order = sounding.switchover.interrupt(now, "away".to_owned());
    assert!(matches!(order, Some(Order::Retreat(_))));
}

#[test]
fn only_the_targets_own_life_on_the_masters_stream_has_reached_a_mark() {
    for facts in [
        linked("b'", 90),
        linked("b", 89),
        Facts {
            replid: "r9".to_owned(),
            ..linked("b", 90)
        },
        Facts {
            syncing: true,
            ..linked("b", 90)
        },
        mastering("b", "r4", 90),
    ] {
        let mut bench = Bench::fenced(&[]);
        assert_eq!(bench.answer("b", &reach(90), done(facts.clone())), [], "{facts:?}");
    }
    let unlinked = Facts {
        link_up: false,
        ..linked("b", 90)
    };
    let mut bench = Bench::fenced(&[]);
    let orders = bench.answer("b", &reach(90), done(unlinked));
    assert!(
        matches!(orders.as_slice(), [Order::Attach(..), ..]),
        "what it has is enough"
    );
}
