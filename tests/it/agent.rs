//! The agent's hands on real redis-servers: park, promote, follow, and what they protect against.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pointsman::agent::act::{Actor, read};
use pointsman::agent::beat::Beat;
use pointsman::agent::machine::detector::Seen;
use pointsman::agent::machine::facts::{Facts, Role};
use pointsman::agent::machine::obedience::Ask;
use pointsman::agent::probe;
use pointsman::agent::redis::{Connection, Login, text};
use pointsman::clock;
use pointsman::topology::{Addr, Epoch, NodeId, RunId, ShardId};

const LIMIT: Duration = Duration::from_secs(10);

/// A redis-server that ends with the test.
pub struct Server {
    child: Child,
    pub addr: Addr,
    _dir: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::start_on(port, &["--replicaof", "127.0.0.1", "1"]).await
    }

    pub async fn start_on(port: u16, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The server dies with the thread that started it, however the test ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server"]);
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--repl-diskless-sync-delay",
            "0",
        ]);
        command
            .args(extra)
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Debian's servers share a default pid file path; none of them needs one.
        command.args(["--pidfile", dir.path().join("redis.pid").to_str().unwrap()]);
        let child = command.spawn().unwrap();
        let server = Self {
            child,
            addr: Addr::new("127.0.0.1", port),
            _dir: dir,
        };
        let end = clock::now() + LIMIT;
        while Connection::open(&server.addr, &Login::default(), LIMIT).await.is_err() {
            assert!(clock::now() < end, "redis-server does not come up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    pub async fn ask(&self, command: &[&str]) -> String {
        let mut connection = Connection::open(&self.addr, &Login::default(), LIMIT).await.unwrap();
        let reply = connection.ask(command, LIMIT).await.unwrap();
        text(&reply).map_or(format!("{reply:?}"), str::to_owned)
    }

    pub async fn facts(&self) -> Facts {
        let mut connection = Connection::open(&self.addr, &Login::default(), LIMIT).await.unwrap();
        read(&mut connection).await.unwrap()
    }

    /// Waits until a reading satisfies `wanted`.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Facts) -> bool) -> Facts {
        let end = clock::now() + LIMIT;
        loop {
            let facts = self.facts().await;
            if wanted(&facts) {
                return facts;
            }
            assert!(clock::now() < end, "not {what}: {facts:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn actor(&self) -> Actor {
        let shard = ShardId::from("s1");
        Actor::new(
            self.addr.clone(),
            shard,
            Login::default(),
            b"secret".to_vec(),
            "life-1".to_owned(),
        )
    }

    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(done.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn park(epoch: u64) -> Ask {
    Ask::Park { epoch: Epoch(epoch) }
}

fn promote(epoch: u64, run_id: &RunId) -> Ask {
    Ask::Promote {
        epoch: Epoch(epoch),
        run_id: run_id.clone(),
        mark: None,
    }
}

fn follow(epoch: u64, master: &Server, facts: &Facts) -> Ask {
    Ask::Follow {
        epoch: Epoch(epoch),
        master: NodeId::from("m"),
        addr: master.addr.clone(),
        run_id: facts.run_id.clone(),
        fence: facts.offset,
    }
}

/// Parks both, promotes the first, lets the second follow it.
async fn pair(epoch: u64, master: &Server, replica: &Server) -> Facts {
    let (mut first, mut second) = (master.actor(), replica.actor());
    let parked = first.act(&park(epoch)).await.unwrap();
    second.act(&park(epoch)).await.unwrap();
    let promoted = first.act(&promote(epoch, &parked.run_id)).await.unwrap();
    let following = second.act(&follow(epoch, master, &promoted)).await.unwrap();
    assert!(
        following.link_up && following.offset >= promoted.offset,
        "{following:?}"
    );
    // A master without a backlog renames its stream for its first replica.
    assert_eq!(following.replid, master.facts().await.replid);
    promoted
}

#[tokio::test]
async fn a_parked_node_is_promoted_and_another_proves_itself_behind_it() {
    let (one, two) = (Server::start().await, Server::start().await);
    let mut actor = one.actor();
    let parked = actor.act(&park(1)).await.unwrap();
    assert!(parked.parked() && parked.epoch == Epoch(1), "{parked:?}");
    assert_eq!(one.facts().await.epoch, Epoch(1), "the epoch lives in Redis");
    let promoted = pair(2, &one, &two).await;
    assert_eq!((promoted.role, promoted.epoch), (Role::Master, Epoch(2)));
    assert_ne!(promoted.replid, parked.replid);
    one.ask(&["SET", "k", "v"]).await;
    two.until("replicated", |facts| facts.keys == 1).await;
}

#[tokio::test]
async fn only_the_life_that_was_parked_is_promoted() {
    let server = Server::start().await;
    let mut actor = server.actor();
    actor.act(&park(1)).await.unwrap();
    actor.act(&promote(1, &RunId::from("another"))).await.unwrap_err();
    assert_eq!(server.facts().await.role, Role::Replica);
}

#[tokio::test]
async fn a_park_takes_the_old_epochs_credentials_away() {
    let (one, two) = (Server::start().await, Server::start().await);
    pair(2, &one, &two).await;
    assert!(one.ask(&["ACL", "GETUSER", "repl-2"]).await.contains("psync"));
    one.actor().act(&park(3)).await.unwrap();
    assert_eq!(one.ask(&["ACL", "GETUSER", "repl-2"]).await, "Null");
    two.until("unlinked", |facts| !facts.link_up).await;
}

/// Rule R9, with the experiment that forced it: without the kill in the park's block the stuck command runs
/// after the park, and the node follows the old master.
#[tokio::test]
async fn a_command_stuck_in_a_frozen_redis_is_discarded_by_the_park() {
    let (old, node) = (Server::start().await, Server::start().await);
    let mut stuck = node.actor();
    stuck.act(&park(1)).await.unwrap();
    let parked = old.actor().act(&park(1)).await.unwrap();
    let promoted = old.actor().act(&promote(1, &parked.run_id)).await.unwrap();
    // Which of two waiting connections Redis hears first is up to its event loop: try several times.
    for round in 0..6 {
        let (mut newer, mut stuck) = (node.actor(), node.actor());
        if round % 2 == 0 {
            newer.warm_up().await.unwrap();
        }
        stuck.warm_up().await.unwrap();
        newer.warm_up().await.unwrap();
        node.signal("-STOP");
        let parking = tokio::spawn(async move { (newer.act(&park(2)).await, newer) });
        tokio::time::sleep(Duration::from_millis(30)).await;
        // An older command that reaches Redis behind the park, on a connection opened before it.
        let late = follow(1, &old, &promoted);
        let following = tokio::spawn(async move { stuck.act(&late).await });
        tokio::time::sleep(Duration::from_millis(30)).await;
        node.signal("-CONT");
        let (answer, mut newer) = parking.await.unwrap();
        if answer.is_err() {
            newer.act(&park(2)).await.unwrap();
        }
        drop(following);
        // From an answered park on nothing older takes effect.
        for _ in 0..20 {
            let facts = node.facts().await;
            assert!(facts.parked() && facts.epoch == Epoch(2), "round {round}: {facts:?}");
        }
    }
}

#[tokio::test]
async fn a_master_that_comes_back_empty_wipes_nobody() {
    let (mut master, replica) = (Server::start().await, Server::start().await);
    pair(2, &master, &replica).await;
    master.ask(&["SET", "k", "v"]).await;
    replica.until("replicated", |facts| facts.keys == 1).await;
    let port = master.addr.port();
    drop(std::mem::replace(&mut master, Server::start().await));
    // Not even one that was not told to start parked: it lacks the epoch's credential.
    let empty = Server::start_on(port, &[]).await;
    let end = clock::now() + Duration::from_millis(2500);
    while clock::now() < end {
        let facts = replica.facts().await;
        assert!(facts.keys == 1 && !facts.link_up, "{facts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let denied = empty.ask(&["INFO", "errorstats"]).await;
    assert!(denied.contains("WRONGPASS"), "the replica did try: {denied}");
}

async fn sees(probe: &mut probe::Probe, what: &str, limit: Duration, wanted: impl Fn(&Seen) -> bool) -> Duration {
    let start = clock::now();
    loop {
        let left = limit
            .checked_sub(clock::now() - start)
            .unwrap_or_else(|| panic!("not {what} in {limit:?}"));
        match tokio::time::timeout(left, probe.look()).await {
            Ok(seen) if wanted(&seen) => return clock::now() - start,
            Ok(_) => {}
            Err(_) => panic!("not {what} in {limit:?}"),
        }
    }
}

#[tokio::test]
async fn the_death_of_a_process_is_seen_at_once() {
    let server = Server::start().await;
    let mut probe = probe::Probe::new(
        server.addr.clone(),
        Login::default(),
        Beat::new(Duration::from_millis(100)),
        true,
    );
    sees(&mut probe, "up", LIMIT, |seen| matches!(seen, Seen::Up { .. })).await;
    server.signal("-KILL");
    let took = sees(&mut probe, "dead", LIMIT, |seen| *seen == Seen::Dead).await;
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[tokio::test]
async fn from_afar_a_refused_reconnect_is_death_and_an_end_of_file_is_not() {
    let server = Server::start().await;
    let mut probe = probe::Probe::new(
        server.addr.clone(),
        Login::default(),
        Beat::new(Duration::from_millis(100)),
        false,
    );
    sees(&mut probe, "up", LIMIT, |seen| matches!(seen, Seen::Up { .. })).await;
    server.ask(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    for _ in 0..5 {
        assert_ne!(probe.look().await, Seen::Dead);
    }
    server.signal("-KILL");
    sees(&mut probe, "dead", LIMIT, |seen| *seen == Seen::Dead).await;
}

#[tokio::test]
async fn a_frozen_server_is_silent_and_a_paused_one_is_alive() {
    let server = Server::start().await;
    let mut probe = probe::Probe::new(
        server.addr.clone(),
        Login::default(),
        Beat::new(Duration::from_millis(50)),
        true,
    );
    sees(&mut probe, "up", LIMIT, |seen| matches!(seen, Seen::Up { .. })).await;
    server.ask(&["CLIENT", "PAUSE", "1500", "ALL"]).await;
    sees(&mut probe, "alive though paused", LIMIT, |seen| *seen == Seen::Alive).await;
    sees(&mut probe, "up after the pause", LIMIT, |seen| {
        matches!(seen, Seen::Up { .. })
    })
    .await;
    server.signal("-STOP");
    for _ in 0..10 {
        assert!(matches!(probe.look().await, Seen::Silent));
    }
    server.signal("-CONT");
    sees(&mut probe, "up again", LIMIT, |seen| matches!(seen, Seen::Up { .. })).await;
}

#[tokio::test]
async fn users_that_an_acl_load_removes_are_put_back_unless_the_node_was_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.acl");
    std::fs::write(&file, "user default on nopass ~* &* +@all\n").unwrap();
    let server = Server::start_on(
        crate::support::free_port(),
        &["--replicaof", "127.0.0.1", "1", "--aclfile", file.to_str().unwrap()],
    )
    .await;
    let mut actor = server.actor();
    let life = actor.act(&park(1)).await.unwrap().run_id;
    actor.act(&promote(1, &life)).await.unwrap();
    let users = async || {
        let mut connection = Connection::open(&server.addr, &Login::default(), LIMIT).await.unwrap();
        let reply = connection.ask(&["ACL", "USERS"], LIMIT).await.unwrap();
        let names = pointsman::agent::redis::texts(&reply).into_iter().map(str::to_owned);
        names.filter(|name| name.ends_with("-1")).collect::<Vec<String>>()
    };
    let before = users().await;
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!(server.ask(&["ACL", "LOAD"]).await, "OK");
    assert_eq!(users().await.len(), 0);
    tokio::time::timeout(LIMIT, actor.cooled()).await.unwrap();
    actor.warm_up().await.unwrap();
    assert_eq!(users().await, before);
    let fence = Ask::Fence {
        epoch: Epoch(2),
        run_id: life,
    };
    actor.act(&fence).await.unwrap();
    assert_eq!(server.ask(&["ACL", "LOAD"]).await, "OK");
    tokio::time::timeout(LIMIT, actor.cooled()).await.unwrap();
    actor.warm_up().await.unwrap();
    assert_eq!(users().await.len(), 0, "nothing for who was fenced");
}
