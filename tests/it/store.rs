//! The store: ZooKeeper and its twin in memory promise the same, and a session is kept through outages.

use std::time::Duration;

use pointsman::clock;
use pointsman::store::{
    Connection, Ephemeral, Hint, Lifetime, Loss, Memory, Owner, Settings, Standing, Store, StoreError,
};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{ZooKeeper, free_port};

const LIMIT: Duration = Duration::from_secs(20);

fn settings(connect: &str, timeout_ms: u64) -> Settings {
    Settings {
        session_timeout: Duration::from_millis(timeout_ms),
        ..Settings::new(connect, "test")
    }
}

/// Waits until the connection is as wanted.
async fn until(store: &Store, what: &str, wanted: impl Fn(&Connection) -> bool) -> Connection {
    let mut connection = store.connection();
    match tokio::time::timeout(LIMIT, connection.wait_for(|now| wanted(now))).await {
        Ok(Ok(now)) => *now,
        other => panic!("not {what}: {other:?}"),
    }
}

fn is_up(connection: &Connection) -> bool {
    matches!(connection, Connection::Up { .. })
}

fn session(connection: Connection) -> u64 {
    match connection {
        Connection::Up { session, .. } => session,
        Connection::Away => panic!("away"),
    }
}

/// Waits until a reading of `path` is as wanted.
async fn until_read(store: &Store, path: &str, wanted: impl Fn(Option<(&[u8], Owner)>) -> bool) {
    let end = clock::now() + LIMIT;
    loop {
        let read = store.get(path).await;
        if let Ok(value) = &read
            && wanted(value.as_ref().map(|value| (value.bytes.as_slice(), value.owner)))
        {
            return;
        }
        assert!(clock::now() < end, "{path}: {read:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn standing(ephemeral: &Ephemeral, wanted: impl Fn(&Standing) -> bool) {
    let mut standing = ephemeral.standing();
    let waited = tokio::time::timeout(LIMIT, standing.wait_for(|now| wanted(now))).await;
    assert!(waited.is_ok(), "{:?}", ephemeral.standing());
}

async fn hint(watch: &mut pointsman::store::Watch) -> Hint {
    tokio::time::timeout(LIMIT, watch.changed()).await.expect("a hint")
}

/// What both stores promise. `a` and `b` are sessions with one ensemble.
async fn promises(a: Store, b: Store) {
    let path = "/shards/s1/state";
    assert_eq!(a.get(path).await, Ok(None));
    assert_eq!(
        a.set(path, b"0".to_vec(), 0).await,
        Err(StoreError::Missing(path.to_owned()))
    );
    assert_eq!(a.children("/shards").await, Ok(vec![]));

    let mut watch = b.watch("/shards");
    assert_eq!(hint(&mut watch).await, Hint::Everything, "set first, then read");

    // Creating makes the parents, and a compare-and-set wants the version.
    assert_eq!(a.create(path, b"1".to_vec(), Lifetime::Persistent).await, Ok(()));
    let again = a.create(path, b"x".to_vec(), Lifetime::Persistent).await;
    assert_eq!(again, Err(StoreError::Exists(path.to_owned())));
    assert_eq!(a.ensure(path, b"x".to_vec()).await, Ok(()));
    assert_eq!(b.sync().await, Ok(()));
    let read = b.get(path).await.unwrap().unwrap();
    assert_eq!(
        (read.bytes.as_slice(), read.version, read.owner),
        (&b"1"[..], 0, Owner::Nobody)
    );
    assert_eq!(b.set(path, b"2".to_vec(), 0).await, Ok(1));
    let late = a.set(path, b"3".to_vec(), 0).await;
    assert_eq!(late, Err(StoreError::Conflict(path.to_owned())));
    assert_eq!(b.children("/shards").await, Ok(vec!["s1".to_owned()]));

    // Hints name what changed, at any depth, and coalesce.
    let mut hinted = Vec::new();
    while !hinted.contains(&path.to_owned()) {
        match hint(&mut watch).await {
            Hint::Paths(paths) => hinted.extend(paths),
            Hint::Everything => panic!("nothing was missed"),
        }
    }
    assert!(hinted.iter().all(|path| path.starts_with("/shards")), "{hinted:?}");

    // Numbered znodes count up, also past deleted ones.
    assert_eq!(a.append("/history/s1", b"r0".to_vec()).await, Ok(0));
    assert_eq!(b.append("/history/s1", b"r1".to_vec()).await, Ok(1));
    assert_eq!(a.delete("/history/s1/0000000001", None).await, Ok(()));
    assert_eq!(a.append("/history/s1", b"r2".to_vec()).await, Ok(2));
    let names = ["0000000000", "0000000002"].map(str::to_owned);
    assert_eq!(a.children("/history/s1").await, Ok(names.to_vec()));
    assert!(matches!(
        a.delete("/history/s1", None).await,
        Err(StoreError::Refused { .. })
    ));
    let stale = a.delete("/history/s1/0000000000", Some(3)).await;
    assert!(matches!(stale, Err(StoreError::Conflict(_))), "{stale:?}");

    // Ephemerals: whose they are, one holder at a time, an own earlier life is replaced.
    let at = "/shards/s1/nodes/a";
    let first = Ephemeral::keep(&a, at.to_owned(), |_| false);
    first.set(Some(b"one".to_vec()));
    standing(&first, |now| *now == Standing::Settled).await;
    until_read(&a, at, |read| read == Some((b"one", Owner::Us))).await;
    until_read(&b, at, |read| read == Some((b"one", Owner::Other))).await;
    first.set(Some(b"two".to_vec()));
    until_read(&b, at, |read| read == Some((b"two", Owner::Other))).await;
    let rival = Ephemeral::keep(&b, at.to_owned(), |_| false);
    rival.set(Some(b"mine".to_vec()));
    standing(&rival, |now| matches!(now, Standing::Taken(_))).await;
    drop(rival);
    // Somebody deletes it by hand: it comes back.
    b.delete(at, None).await.unwrap();
    until_read(&b, at, |read| read == Some((b"two", Owner::Other))).await;
    drop(first);
    let heir = Ephemeral::keep(&b, at.to_owned(), |left| left == b"two");
    heir.set(Some(b"three".to_vec()));
    until_read(&b, at, |read| read == Some((b"three", Owner::Us))).await;
    heir.set(None);
    until_read(&a, at, |read| read.is_none()).await;
    heir.set(Some(b"four".to_vec()));
    until_read(&a, at, |read| read == Some((b"four", Owner::Other))).await;

    // A closed session takes its ephemerals along at once, and does nothing more.
    b.close().await;
    until_read(&a, at, |read| read.is_none()).await;
    assert_eq!(b.get(path).await, Err(StoreError::Away));
    assert_eq!(b.set(path, b"4".to_vec(), 1).await, Err(StoreError::Away));
}

#[tokio::test]
async fn the_store_in_memory_keeps_its_promises() {
    let ensemble = Memory::default();
    promises(ensemble.store(), ensemble.store()).await;
}

#[tokio::test]
async fn zookeeper_keeps_the_same_promises() {
    let zookeeper = ZooKeeper::start();
    let settings = settings(&zookeeper.connect(), 10_000);
    let store = async || Store::connect(&settings).await.unwrap();
    promises(store().await, store().await).await;
}

#[tokio::test]
async fn the_store_in_memory_fails_on_demand() {
    let ensemble = Memory::default();
    let store = ensemble.store();
    store.create("/a", b"1".to_vec(), Lifetime::Persistent).await.unwrap();
    ensemble.lose_next_write(Loss::Done);
    assert_eq!(store.set("/a", b"2".to_vec(), 0).await, Err(StoreError::Unknown));
    ensemble.lose_next_write(Loss::NotDone);
    assert_eq!(store.set("/a", b"3".to_vec(), 1).await, Err(StoreError::Unknown));
    assert_eq!(store.get("/a").await.unwrap().unwrap().bytes, b"2");
    let kept = Ephemeral::keep(&store, "/e".to_owned(), |_| false);
    kept.set(Some(b"e".to_vec()));
    until_read(&store, "/e", |read| read.is_some()).await;
    ensemble.stop();
    assert_eq!(store.get("/a").await, Err(StoreError::Away));
    ensemble.start();
    let before = session(until(&store, "up", is_up).await);
    ensemble.expire();
    until(&store, "a new session", |now| is_up(now) && session(*now) != before).await;
    until_read(&store, "/e", |read| read == Some((b"e", Owner::Us))).await;
}

#[tokio::test]
async fn no_server_is_one_clear_sentence() {
    let port = free_port();
    let error = Store::connect(&settings(&format!("127.0.0.1:{port}"), 1000))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("ZooKeeper at 127.0.0.1:{port} does not answer (connection refused): start it, or correct the address")
    );
    let error = Store::connect(&settings("", 1000)).await.unwrap_err();
    assert!(matches!(error, StoreError::BadAddress { .. }), "{error:?}");
}

#[tokio::test]
async fn a_session_outlives_an_outage_that_the_client_library_gives_up_on() {
    let mut zookeeper = ZooKeeper::start();
    let store = Store::connect(&settings(&zookeeper.connect(), 2000)).await.unwrap();
    let kept = Ephemeral::keep(&store, "/e".to_owned(), |_| false);
    kept.set(Some(b"e".to_vec()));
    until_read(&store, "/e", |read| read.is_some()).await;
    let before = until(&store, "up", is_up).await;
    let mut watch = store.watch("/");
    assert_eq!(hint(&mut watch).await, Hint::Everything);
    zookeeper.kill9();
    until(&store, "away", |now| *now == Connection::Away).await;
    assert_eq!(store.get("/e").await, Err(StoreError::Away));
    // The outage itself: longer than 7/5 of the session timeout, when the library declares the session expired.
    tokio::time::sleep(Duration::from_millis(3200)).await;
    zookeeper.restart();
    let after = until(&store, "up again", is_up).await;
    assert_eq!(session(after), session(before), "only a server ends a session");
    assert_ne!(after, before);
    let read = store.get("/e").await.unwrap().unwrap();
    assert_eq!(
        (read.owner, read.version),
        (Owner::Us, 0),
        "the ephemeral was never gone"
    );
    // Events of the time away may be lost: everything is to be read again, and the watch is set again.
    while hint(&mut watch).await != Hint::Everything {}
    store.create("/later", Vec::new(), Lifetime::Persistent).await.unwrap();
    while hint(&mut watch).await != Hint::Paths(["/later".to_owned()].into()) {}
}

/// Stands between a client and a server, and can be cut.
struct Relay {
    listen: u16,
    server: u16,
    cut: Option<CancellationToken>,
}

impl Relay {
    async fn start(server: u16) -> Self {
        let mut relay = Self {
            listen: free_port(),
            server,
            cut: None,
        };
        relay.mend().await;
        relay
    }

    async fn mend(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.listen)).await.unwrap();
        let cut = CancellationToken::new();
        self.cut = Some(cut.clone());
        let server = self.server;
        let accepting = {
            let cut = cut.clone();
            async move {
                loop {
                    let (mut client, _) = listener.accept().await.unwrap();
                    let carrying = async move {
                        let mut onward = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                        let _ = copy_bidirectional(&mut client, &mut onward).await;
                    };
                    tokio::spawn(cut.clone().run_until_cancelled_owned(carrying));
                }
            }
        };
        tokio::spawn(cut.run_until_cancelled_owned(accepting));
    }

    fn cut(&mut self) {
        self.cut.take().unwrap().cancel();
    }
}

#[tokio::test]
async fn a_watch_outlives_connections_that_are_lost_within_a_session() {
    let zookeeper = ZooKeeper::start();
    let mut relay = Relay::start(zookeeper.port()).await;
    let near = Store::connect(&settings(&zookeeper.connect(), 10_000)).await.unwrap();
    let far = format!("127.0.0.1:{}", relay.listen);
    let store = Store::connect(&settings(&far, 10_000)).await.unwrap();
    let mut watch = store.watch("/shards");
    assert_eq!(hint(&mut watch).await, Hint::Everything);
    let first = session(until(&store, "up", is_up).await);
    for round in ["/shards/1", "/shards/2", "/shards/3"] {
        relay.cut();
        until(&store, "away", |now| *now == Connection::Away).await;
        relay.mend().await;
        assert_eq!(session(until(&store, "up again", is_up).await), first);
        while hint(&mut watch).await != Hint::Everything {}
        near.create(round, Vec::new(), Lifetime::Persistent).await.unwrap();
        let told = |hint: Hint| matches!(hint, Hint::Paths(paths) if paths.contains(round));
        while !told(hint(&mut watch).await) {}
    }
}

#[tokio::test]
async fn a_session_that_the_server_ended_is_replaced_and_its_ephemerals_return() {
    let zookeeper = ZooKeeper::start();
    let mut relay = Relay::start(zookeeper.port()).await;
    let near = Store::connect(&settings(&zookeeper.connect(), 10_000)).await.unwrap();
    let store = Store::connect(&settings(&format!("127.0.0.1:{}", relay.listen), 400))
        .await
        .unwrap();
    let kept = Ephemeral::keep(&store, "/e".to_owned(), |_| false);
    kept.set(Some(b"e".to_vec()));
    until_read(&near, "/e", |read| read.is_some()).await;
    let before = session(until(&store, "up", is_up).await);
    relay.cut();
    until_read(&near, "/e", |read| read.is_none()).await;
    relay.mend().await;
    until(&store, "a new session", |now| is_up(now) && session(*now) != before).await;
    until_read(&near, "/e", |read| read == Some((b"e", Owner::Other))).await;
    until_read(&store, "/e", |read| read == Some((b"e", Owner::Us))).await;
}

#[tokio::test]
async fn a_write_under_way_when_the_server_dies_has_no_known_outcome() {
    let mut zookeeper = ZooKeeper::start();
    let store = Store::connect(&settings(&zookeeper.connect(), 4000)).await.unwrap();
    store.create("/a", b"1".to_vec(), Lifetime::Persistent).await.unwrap();
    zookeeper.stop();
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.set("/a", b"2".to_vec(), 0).await }
    });
    // Lets it begin; the server cannot answer.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    zookeeper.kill9();
    assert_eq!(writing.await.unwrap(), Err(StoreError::Unknown));
    until(&store, "away", |now| *now == Connection::Away).await;
    assert_eq!(
        store.set("/a", b"2".to_vec(), 0).await,
        Err(StoreError::Away),
        "not sent"
    );
}

#[tokio::test]
async fn a_frozen_server_is_away_and_what_it_ended_meanwhile_returns() {
    let zookeeper = ZooKeeper::start();
    let store = Store::connect(&settings(&zookeeper.connect(), 1000)).await.unwrap();
    let kept = Ephemeral::keep(&store, "/e".to_owned(), |_| false);
    kept.set(Some(b"e".to_vec()));
    until_read(&store, "/e", |read| read.is_some()).await;
    zookeeper.stop();
    until(&store, "away", |now| *now == Connection::Away).await;
    assert_eq!(store.get("/e").await, Err(StoreError::Away), "nobody waits for it");
    zookeeper.cont();
    until(&store, "up", is_up).await;
    until_read(&store, "/e", |read| read == Some((b"e", Owner::Us))).await;
}
