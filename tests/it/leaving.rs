//! Agents that are asked to end while they have something under way.

use pointsman::clock;
use pointsman::peer::Request;
use pointsman::topology::Phase;
use pointsman::topology::codec::Ending;

use crate::agent_store::{Shard, master, shard};
use crate::switchover::Proxy;

#[tokio::test]
async fn a_switchover_that_is_not_fenced_yet_is_taken_back_first() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    // It never says that it has drained.
    let _proxy = Proxy::start(&shard).await;
    let id = shard.ask_for(Some(&shard.replica(&first))).await;
    shard
        .until_state("switching", |state| state.phase == Phase::Switching)
        .await;
    let start = clock::now();
    shard.end_agent(&master(&first)).await;
    println!("the agent ended after {:?}", clock::now() - start);
    let record = shard.history().await.pop().unwrap();
    assert_eq!(
        (record.request.as_ref(), &record.result),
        (Some(&id), &Ending::RolledBack),
        "{record:?}"
    );
    assert!(record.why.contains("its agent stops"), "{}", record.why);
    let state = shard.until("serving", |_| true).await;
    assert_eq!((state.epoch, &state.master), (first.epoch, &first.master));
    shard.ended(&id).await;
}

#[tokio::test]
async fn the_record_of_a_switchover_stands_when_its_executor_has_ended() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    // It never reports what the change cost it, for which the record waits a while.
    let mut proxy = Proxy::start(&shard).await;
    let id = shard.ask_for(Some(&shard.replica(&first))).await;
    let switching = shard
        .until_state("switching", |state| state.phase == Phase::Switching)
        .await;
    let epoch = switching.switch.unwrap().epoch;
    proxy.tell(Request::Drained(self::shard(), epoch, None)).await;
    proxy.attach().await;
    proxy.tell(Request::Attached(self::shard(), epoch, None)).await;
    shard.until("published", |state| state.epoch == epoch).await;
    shard.end_agent(&master(&first)).await;
    let record = shard.history().await.pop().unwrap();
    assert_eq!(
        (record.request.as_ref(), &record.result),
        (Some(&id), &Ending::Done),
        "{record:?}"
    );
    shard.ended(&id).await;
}
