//! Who may do what with our znodes: with credentials nobody else, and whoever has the wrong ones is told so.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman::store::{Credentials, Ephemeral, Lifetime, Settings, Standing, Store, StoreError};

use nix::sys::signal::Signal;
use pointsman::peer::{self, Role};
use pointsman::topology::{Epoch, RunId, ShardId};
use serde_json::Value as Json;

use crate::support::{Client, Pointsman, Redis, Up, Value, ZooKeeper, eventually, free_port};

const LIMIT: Duration = Duration::from_secs(20);

fn settings(zookeeper: &ZooKeeper, user: Option<(&str, &str)>, world_reads: bool) -> Settings {
    Settings {
        credentials: user.map(|(user, password)| Credentials {
            user: user.to_owned(),
            password: password.to_owned(),
            world_reads,
        }),
        ..Settings::new(&zookeeper.connect(), "test")
    }
}

async fn connect(settings: &Settings) -> Store {
    Store::connect(settings).await.unwrap()
}

fn forbidden<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(error @ StoreError::Forbidden { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

const OURS: Option<(&str, &str)> = Some(("pointsman", "right"));

#[tokio::test]
async fn an_outsider_can_neither_read_nor_write() {
    let mut zookeeper = ZooKeeper::start();
    let store = connect(&settings(&zookeeper, OURS, false)).await;
    let at = "/shards/s1/state";
    store.create(at, b"1".to_vec(), Lifetime::Persistent).await.unwrap();
    store.append("/history/s1", b"r".to_vec()).await.unwrap();
    let kept = Ephemeral::keep(&store, "/shards/s1/nodes/a".to_owned(), |_| false);
    kept.set(Some(b"a".to_vec()));
    kept.standing().wait_for(|now| *now == Standing::Settled).await.unwrap();
    // The session's connection is another one then: it shows again who it is.
    let before = *store.connection().borrow();
    zookeeper.restart();
    store
        .connection()
        .wait_for(|now| *now != before && matches!(now, pointsman::store::Connection::Up { .. }))
        .await
        .unwrap();
    assert_eq!(store.set(at, b"2".to_vec(), 0).await, Ok(1));

    for who in [None, Some(("pointsman", "wrong")), Some(("other", "right"))] {
        let outsider = connect(&settings(&zookeeper, who, false)).await;
        let said = forbidden(outsider.get(at).await);
        assert!(
            said.starts_with("ZooKeeper refuses /pointsman/test/shards/s1/state "),
            "{said}"
        );
        let told = match who {
            None => "without a password: name the file that holds user:password with zookeeper_auth_file",
            Some((user, _)) => &format!("to the user '{user}' with this password: correct the file that"),
        };
        assert!(said.contains(told), "{said}");
        forbidden(outsider.set(at, b"3".to_vec(), 1).await);
        forbidden(outsider.delete("/shards/s1/nodes/a", None).await);
        forbidden(outsider.children("/shards").await);
        forbidden(
            outsider
                .create("/shards/s2/state", Vec::new(), Lifetime::Persistent)
                .await,
        );
        forbidden(outsider.append("/history/s1", Vec::new()).await);
        outsider.close().await;
    }
    // Clusters with other credentials share what is above their roots.
    let other = Settings {
        cluster: "other".to_owned(),
        ..settings(&zookeeper, Some(("other", "x")), false)
    };
    let other = connect(&other).await;
    other.create("/config", Vec::new(), Lifetime::Persistent).await.unwrap();
    assert_eq!(
        store
            .exposed(&[String::new(), "/shards".to_owned(), at.to_owned()])
            .await,
        Ok(vec![])
    );
}

#[tokio::test]
async fn anybody_may_read_and_no_more_where_that_is_wanted() {
    let zookeeper = ZooKeeper::start();
    let store = connect(&settings(&zookeeper, OURS, true)).await;
    store.create("/a", b"1".to_vec(), Lifetime::Persistent).await.unwrap();
    let outsider = connect(&settings(&zookeeper, None, false)).await;
    assert_eq!(outsider.get("/a").await.unwrap().unwrap().bytes, b"1");
    assert_eq!(outsider.children("").await.unwrap(), ["a"]);
    forbidden(outsider.set("/a", b"2".to_vec(), 0).await);
    forbidden(outsider.delete("/a", None).await);
    forbidden(outsider.create("/b", Vec::new(), Lifetime::Persistent).await);
    assert_eq!(store.exposed(&["/a".to_owned()]).await, Ok(vec![]));
    let strict = connect(&settings(&zookeeper, OURS, false)).await;
    assert_eq!(strict.exposed(&["/a".to_owned()]).await.unwrap(), ["/pointsman/test/a"]);
}

fn auth_file(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("auth");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn secret_file(dir: &Path) -> PathBuf {
    let path = dir.join("secret");
    fs::write(&path, "0123456789abcdef").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The whole of it under `up` works with credentials (`endtoend`); this is what others meet there.
#[test]
fn an_up_keeps_its_znodes_to_itself() {
    let up = Up::start(&["--replicas", "1"]);
    up.all_count("s1");
    let dir = tempfile::tempdir().unwrap();
    let (connect, cluster) = (up.store_settings().connect, up.store_settings().cluster);
    let at = ["--zookeeper", &connect, "--cluster", &cluster];
    let wrong = auth_file(dir.path(), "pointsman:wrong\n");
    let wrong = ["--zookeeper-auth-file", wrong.to_str().unwrap()];
    let secret = up.dir().join("secret");
    let secret = ["--secret-file", secret.to_str().unwrap()];
    for (command, more) in [("status", &secret[..]), ("history", &[]), ("switchover", &["s1"])] {
        let nobody = Pointsman::run(&[&[command], &at[..], more].concat());
        assert_eq!(nobody.code, Some(1), "{}", nobody.stdout);
        assert!(
            nobody.stderr.contains("/config without a password: name the file"),
            "{}",
            nobody.stderr
        );
        let stranger = Pointsman::run(&[&[command], &at[..], &wrong[..], more].concat());
        assert_eq!(stranger.code, Some(1), "{}", stranger.stdout);
        assert!(
            stranger.stderr.contains("to the user 'pointsman' with this password"),
            "{}",
            stranger.stderr
        );
        assert_eq!(stranger.stderr.lines().count(), 1, "{}", stranger.stderr);
    }
    let right = up.dir().join("zookeeper-auth");
    let right = ["--zookeeper-auth-file", right.to_str().unwrap()];
    let status = Pointsman::run(&[&["status"], &at[..], &right[..], &secret[..]].concat());
    assert!(status.stdout.contains("serving"), "{}{}", status.stdout, status.stderr);
    let moved = Pointsman::run(&[&["switchover", "s1"], &at[..], &right[..]].concat());
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    let history = Pointsman::run(&[&["history"], &at[..], &right[..]].concat());
    assert!(history.stdout.contains("switchover"), "{}", history.stdout);

    // Agents and proxies with the wrong password end with one sentence, and have changed nothing.
    let mut proxy = Pointsman::start(&[&["proxy", "--listen", "127.0.0.1:0"], &at[..], &wrong[..]].concat());
    assert_eq!(proxy.exit_code(LIMIT), Some(1));
    assert_eq!(proxy.log().matches("with this password").count(), 1, "{}", proxy.log());
    let listen = format!("127.0.0.1:{}", free_port());
    let redis = up.redis("s1-a");
    let data = dir.path().to_str().unwrap();
    let own = [
        "agent",
        "--node",
        "x",
        "--shard",
        "s1",
        "--redis",
        &redis,
        "--listen",
        &listen,
        "--data-dir",
        data,
    ];
    let mut agent = Pointsman::start(&[&own[..], &at[..], &wrong[..], &secret[..]].concat());
    assert_eq!(agent.exit_code(LIMIT), Some(1));
    assert_eq!(agent.log().matches("with this password").count(), 1, "{}", agent.log());
    assert_eq!(up.client().command(&["SET", "k", "v"]), Value::ok());
    up.assert_calm(&[]);
}

#[test]
fn znodes_that_stay_open_are_reported_and_those_that_close_later_once() {
    let zookeeper = ZooKeeper::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let open = runtime.block_on(async {
        let open = connect(&settings(&zookeeper, None, false)).await;
        open.create("/shards/s1/nodes", Vec::new(), Lifetime::Persistent)
            .await
            .unwrap();
        open
    });
    let dir = tempfile::tempdir().unwrap();
    let (auth, secret) = (auth_file(dir.path(), "pointsman:right\n"), secret_file(dir.path()));
    let (listen, connect) = (format!("127.0.0.1:{}", free_port()), zookeeper.connect());
    let args = [
        "agent",
        "--node",
        "s1-a",
        "--shard",
        "s1",
        "--redis",
        "127.0.0.1:1",
        "--cluster",
        "test",
        "--zookeeper",
        &connect,
        "--listen",
        &listen,
        "--data-dir",
        dir.path().to_str().unwrap(),
        "--secret-file",
        secret.to_str().unwrap(),
        "--zookeeper-auth-file",
        auth.to_str().unwrap(),
    ];
    let mut agent = Pointsman::start(&args);
    let line = agent.wait_for_line(LIMIT, |line| line.contains("everybody who reaches ZooKeeper"));
    for part in [
        "use /pointsman/test, /pointsman/test/shards, /pointsman/test/shards/s1/nodes: they were made",
        "'setAcl -R /pointsman/test auth:pointsman:cdrwa'",
    ] {
        assert!(line.contains(part), "{line}");
    }
    // Its registration is its own, in a parent that is not.
    eventually(LIMIT, || {
        runtime.block_on(open.children("/shards/s1/nodes")) == Ok(vec!["s1-a".to_owned()])
    });
    forbidden(runtime.block_on(open.get("/shards/s1/nodes/s1-a")));
}

#[test]
fn no_log_holds_a_secret() {
    let up = Up::start(&[
        "--replicas",
        "1",
        "--log",
        "trace",
        "--redis",
        "requirepass=hunter2hunter2",
    ]);
    up.all_count_as("s1", "hunter2hunter2");
    let output = up.operate("switchover", &["s1", "--log", "trace"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let read = |name: &str| fs::read_to_string(up.dir().join(name)).unwrap();
    let (secret, auth) = (read("secret"), read("zookeeper-auth"));
    let mut hidden = vec![
        secret.clone(),
        auth.split_once(':').unwrap().1.to_owned(),
        "hunter2hunter2".to_owned(),
    ];
    let state = up.state("s1");
    let run_id = RunId::from(state["run_id"].as_str().unwrap());
    for role in [Role::Proxy, Role::Replica] {
        let epoch = Epoch(state["epoch"].as_u64().unwrap());
        hidden.push(peer::token(
            secret.as_bytes(),
            role,
            &ShardId::from("s1"),
            epoch,
            &run_id,
        ));
    }
    let mut logs = up.logs(&["agent.log", "proxy.log", "zookeeper.log", "redis.log", "up.json"]);
    assert!(logs.len() >= 6, "{logs:?}");
    logs.push(("switchover".into(), output.stderr));
    logs.push(("up".into(), up.up.log()));
    for (log, text) in logs {
        let found = hidden.iter().position(|secret| text.contains(secret.as_str()));
        assert_eq!(found, None, "{}", log.display());
    }
}

/// Two nodes whose user `default` is off, with users of the operator's.
struct Guarded {
    nodes: Vec<Redis>,
    dir: tempfile::TempDir,
}

const USERS: [&str; 19] = [
    "--user",
    "default",
    "off",
    "--user",
    "admin",
    "on",
    ">admin-pass",
    "~*",
    "&*",
    "+@all",
    "--user",
    "bob",
    "on",
    ">bob-pass",
    "~b*",
    "+get",
    "+set",
    "+acl|whoami",
    "+info",
];

impl Guarded {
    fn start(last: &[&[&str]]) -> Self {
        let nodes = last.iter().map(|more| Redis::start(&[&USERS[..], more].concat()));
        let this = Self {
            nodes: nodes.collect(),
            dir: tempfile::tempdir().unwrap(),
        };
        for (name, text) in [
            ("secret", "0123456789abcdef"),
            ("password", "admin-pass\n"),
            ("auth", "pointsman:x"),
        ] {
            fs::write(this.path(name), text).unwrap();
            fs::set_permissions(this.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        this
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn login(listen: &str, user: &str) -> Client {
        let mut client = Client::connect(listen);
        assert_eq!(client.command(&["AUTH", user, &format!("{user}-pass")]), Value::ok());
        client
    }
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().map(|one| one.text().to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn users_of_the_operator_and_ours_live_beside_each_other() {
    let zookeeper = ZooKeeper::start();
    let parked = ["--replicaof", "127.0.0.1", "1"];
    let mut guarded = Guarded::start(&[&parked, &parked]);
    let connect = zookeeper.connect();
    let (secret, auth) = (guarded.path("secret"), guarded.path("auth"));
    let common = [
        "--zookeeper",
        &connect,
        "--cluster",
        "c",
        "--secret-file",
        &secret,
        "--zookeeper-auth-file",
        &auth,
    ];
    let mut agents = Vec::new();
    for (node, redis) in ["s1-a", "s1-b"].iter().zip(&guarded.nodes) {
        let (redis, listen, data) = (redis.addr(), format!("127.0.0.1:{}", free_port()), guarded.path("data"));
        let password = guarded.path("password");
        let own = [
            "agent",
            "--node",
            node,
            "--shard",
            "s1",
            "--redis",
            &redis,
            "--listen",
            &listen,
            "--data-dir",
            &data,
            "--redis-user",
            "admin",
            "--redis-password-file",
            &password,
            "--member",
            "s1-a",
            "--member",
            "s1-b",
        ];
        agents.push(Pointsman::start(&[&own[..], &common].concat()));
    }
    let listen = format!("127.0.0.1:{}", free_port());
    let proxy = Pointsman::start(&[&["proxy", "--listen", &listen][..], &common].concat());
    eventually(LIMIT, || Client::try_connect(listen.clone()).is_ok());
    // Who has not logged in is nobody.
    let mut nobody = Client::connect(listen.as_str());
    assert!(nobody.command(&["GET", "b"]).is_error("NOAUTH"));
    let mut admin = Guarded::login(&listen, "admin");
    let mut bob = Guarded::login(&listen, "bob");
    assert_eq!(bob.command(&["SET", "b1", "v"]), Value::ok());
    assert!(bob.command(&["SET", "other", "v"]).is_error("NOPERM"));
    assert!(bob.command(&["ACL", "USERS"]).is_error("NOPERM"));
    assert_eq!(bob.command(&["ACL", "WHOAMI"]).text(), "bob");

    assert_eq!(texts(&admin.command(&["ACL", "USERS"])), ["admin", "bob", "default"]);
    let rules = texts(&admin.command(&["ACL", "LIST"]));
    let names: Vec<&str> = rules.iter().map(|rule| rule.split(' ').nth(1).unwrap()).collect();
    assert_eq!(names, ["admin", "bob", "default"]);
    for ours in ["px-1", "repl-1", "pm-agent", "absent"] {
        assert_eq!(admin.command(&["ACL", "GETUSER", ours]), Value::Null, "{ours}");
    }
    assert_ne!(admin.command(&["ACL", "GETUSER", "bob"]), Value::Null);
    for persists in [&["ACL", "SAVE"][..], &["CONFIG", "REWRITE"]] {
        assert!(admin.command(persists).is_error("NOPERM"), "{persists:?}");
    }
    // A user made by a client is every node's; ours cannot be touched.
    let made = ["ACL", "SETUSER", "eve", "on", ">eve-pass", "~*", "+@all"];
    assert_eq!(admin.command(&made), Value::ok());
    assert!(admin.command(&["ACL", "DELUSER", "px-1"]).is_error("NOPERM"));
    let mut eve = Guarded::login(&listen, "eve");

    // The master dies: everybody stays who they are.
    let settings = Settings {
        cluster: "c".to_owned(),
        ..settings(&zookeeper, Some(("pointsman", "x")), false)
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(self::connect(&settings));
    eventually(LIMIT, || {
        let found = runtime.block_on(store.get("/shards/s1/state")).unwrap().unwrap();
        let state: Json = serde_json::from_slice(&found.bytes).unwrap();
        state["valid"].as_object().unwrap().len() == 2
    });
    let master = guarded.nodes.iter().position(|node| {
        let mut direct = Guarded::login(&node.addr(), "admin");
        let direct_users = texts(&direct.command(&["ACL", "USERS"]));
        assert!(direct_users.contains(&"pm-agent".to_owned()), "{direct_users:?}");
        matches!(direct.command(&["ROLE"]), Value::Array(role) if role[0].text() == "master")
    });
    guarded.nodes[master.unwrap()].kill9();
    eventually(LIMIT, || bob.command(&["SET", "b2", "v"]) == Value::ok());
    assert_eq!(eve.command(&["SET", "x", "v"]), Value::ok());
    assert_eq!(
        texts(&admin.command(&["ACL", "USERS"])),
        ["admin", "bob", "default", "eve"]
    );
    proxy.assert_no_undeclared_warnings(&["no master: "]);
}

#[test]
fn a_proxy_without_agents_logs_in_as_its_own_user() {
    let guarded = Guarded::start(&[&[], &[]]);
    let [master, replica] = &guarded.nodes[..] else {
        panic!()
    };
    let mut direct = Guarded::login(&replica.addr(), "admin");
    for setting in [["masteruser", "admin"], ["masterauth", "admin-pass"]] {
        assert_eq!(
            direct.command(&[&["CONFIG", "SET"][..], &setting].concat()),
            Value::ok()
        );
    }
    let addr = master.addr();
    let (host, port) = addr.rsplit_once(':').unwrap();
    assert_eq!(direct.command(&["REPLICAOF", host, port]), Value::ok());
    let rights = "&* +@connection +@pubsub +role +info +time +config|get +wait +select +script +command";
    for node in &guarded.nodes {
        let made = [
            &["ACL", "SETUSER", "pointsman", "on", ">pw"][..],
            &rights.split(' ').collect::<Vec<_>>(),
        ]
        .concat();
        assert_eq!(Guarded::login(&node.addr(), "admin").command(&made), Value::ok());
    }
    let topology = guarded.path("topology.toml");
    let text = format!(
        "[[topology.shards]]\nid = 's1'\nnodes = ['{addr}', '{}']\n",
        replica.addr()
    );
    fs::write(&topology, text).unwrap();
    fs::write(guarded.path("password"), "pw").unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let password = guarded.path("password");
    let as_whom = ["--redis-user", "pointsman", "--redis-password-file", &password];
    for source in [
        &["--topology", &topology][..],
        &["--master", &addr, "--replica", &replica.addr()],
    ] {
        let mut proxy = Pointsman::start(&[&["proxy", "--listen", &listen][..], source, &as_whom].concat());
        proxy.wait_for_line(LIMIT, |line| line.contains("the master serves"));
        let mut nobody = Client::connect(listen.as_str());
        assert!(nobody.command(&["GET", "b"]).is_error("NOAUTH"));
        let mut bob = Guarded::login(&listen, "bob");
        assert_eq!(bob.command(&["SET", "b1", "v"]), Value::ok());
        assert!(bob.command(&["GET", "other"]).is_error("NOPERM"));
        assert_eq!(bob.command(&["GET", "b1"]).text(), "v");
        proxy.assert_no_undeclared_warnings(&[]);
    }
    // A wrong password is said, and nothing else happens.
    fs::write(guarded.path("password"), "wrong").unwrap();
    let mut proxy = Pointsman::start(&[&["proxy", "--listen", &listen, "--master", &addr][..], &as_whom].concat());
    proxy.wait_for_line(LIMIT, |line| {
        line.contains("refuses pointsman, the proxy's own user: -WRONGPASS")
    });
}

/// Reads and writes znodes of an `up` as somebody who may.
fn with_store<T>(up: &Up, work: impl AsyncFnOnce(&Store) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = connect(&up.store_settings()).await;
        let done = work(&store).await;
        store.close().await;
        done
    })
}

#[test]
fn hostile_znodes_are_named_and_change_nothing() {
    let up = Up::start(&["--replicas", "2"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    let before = up.state("s1");
    let state = |change: &dyn Fn(&mut Json)| {
        let mut state = before.clone();
        change(&mut state);
        state.to_string().into_bytes()
    };
    let at = "/shards/s1/state";
    let agents_and_proxy = &["agent.log", "proxy.log"][..];
    // Where, what, who says so, in which words.
    let cases: Vec<(&str, Vec<u8>, &[&str], &str)> = vec![
        (at, b"nonsense".to_vec(), agents_and_proxy, "never delete it"),
        (at, b"{}".to_vec(), agents_and_proxy, "missing field"),
        (at, b"\xff\x00\xfe".to_vec(), agents_and_proxy, "expected value"),
        (at, vec![b' '; 1_000_000], agents_and_proxy, "EOF"),
        (at, state(&|state| state["epoch"] = (-1).into()), agents_and_proxy, "-1"),
        (
            at,
            state(&|state| state["epoch"] = (1u64 << 63).into()),
            agents_and_proxy,
            "more than",
        ),
        (
            at,
            state(&|state| state["epoch"] = "2".into()),
            agents_and_proxy,
            "invalid type",
        ),
        (
            at,
            state(&|state| state["master"] = "x".into()),
            agents_and_proxy,
            "the master x is no member",
        ),
        (
            at,
            state(&|state| state["valid"]["x"] = "x1".into()),
            agents_and_proxy,
            "x counts as valid",
        ),
        (
            at,
            state(&|state| state["members"] = Json::Array(Vec::new())),
            agents_and_proxy,
            "no members",
        ),
        (
            at,
            state(&|state| state["members"] = Json::Array(vec!["a/b".into()])),
            agents_and_proxy,
            "is no name",
        ),
        (at, state(&|state| state["w"] = (-1).into()), agents_and_proxy, "-1"),
        (
            at,
            state(&|state| state["addr"] = "nowhere".into()),
            agents_and_proxy,
            "nowhere",
        ),
        ("/slots", b"[]".to_vec(), &["proxy.log"], "/slots holds nonsense"),
        (
            "/shards/s1/switch",
            b"nonsense".to_vec(),
            &["agent.log"],
            "or delete it",
        ),
        (
            "/shards/s1/switch",
            b"{\"id\":\"a/b\",\"to\":\"x y\"}".to_vec(),
            &["agent.log"],
            "request id",
        ),
        (
            "/shards/s1/nodes/x",
            b"nonsense".to_vec(),
            agents_and_proxy,
            "or delete it",
        ),
        (
            "/shards/s1/suspects/x",
            b"nonsense".to_vec(),
            &["agent.log"],
            "or delete it",
        ),
        ("/proxies/x", b"nonsense".to_vec(), &["agent.log"], "or delete it"),
        (
            "/shards/s9/state",
            b"nonsense".to_vec(),
            &["proxy.log"],
            "holds nonsense",
        ),
    ];
    for (path, bytes, logs, words) in &cases {
        let old = with_store(&up, async |store| {
            let old = store.get(path).await.unwrap();
            match &old {
                Some(old) => drop(store.set(path, bytes.clone(), old.version).await.unwrap()),
                None => store.create(path, bytes.clone(), Lifetime::Persistent).await.unwrap(),
            }
            old
        });
        for log in *logs {
            let said =
                |(_, text): &(PathBuf, String)| text.lines().any(|line| line.contains(path) && line.contains(words));
            let all_say_it = || up.logs(&[log]).iter().all(said);
            assert!(
                crate::support::holds_within(LIMIT, all_say_it),
                "{log} does not say '{words}' of {path}"
            );
        }
        assert_eq!(client.command(&["SET", "k", words]), Value::ok());
        assert_eq!(client.command(&["GET", "k"]).text(), *words);
        with_store(&up, async |store| {
            let now = store.get(path).await.unwrap().unwrap();
            assert_eq!(&now.bytes, bytes, "nobody touched {path}");
            match old {
                Some(old) => drop(store.set(path, old.bytes, now.version).await.unwrap()),
                None => store.delete(path, None).await.unwrap(),
            }
        });
    }
    // What a living agent says of itself comes back by itself.
    let own = "/shards/s1/nodes/s1-a";
    with_store(&up, async |store| {
        let old = store.get(own).await.unwrap().unwrap();
        store.set(own, b"nonsense".to_vec(), old.version).await.unwrap();
    });
    eventually(LIMIT, || up.znode(own)["redis"] == up.node("s1-a")["redis"]["addr"]);
    let after = up.state("s1");
    assert_eq!(
        (&after["epoch"], &after["master"]),
        (&before["epoch"], &before["master"])
    );
    assert!(up.history("failover").is_empty() && up.history("switchover").is_empty());
    // Each is said once, or twice where two tasks read it.
    for (log, text) in up.logs(&["agent.log", "proxy.log"]) {
        let warnings = text
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
            .count();
        assert!(warnings <= 2 * cases.len(), "{}: {warnings} warnings", log.display());
    }
    // And a failover works as ever.
    let master = up.master("s1");
    up.signal(&master, "redis", Signal::SIGKILL);
    eventually(LIMIT, || client.command(&["SET", "k", "w"]) == Value::ok());
}

/// An agent by hand in the cluster `test`, without credentials.
fn lone_agent(zookeeper: &ZooKeeper, dir: &Path, shard: &str, redis: &Redis) -> Pointsman {
    let (connect, secret) = (zookeeper.connect(), secret_file(dir));
    let (listen, node) = (format!("127.0.0.1:{}", free_port()), format!("{shard}-a"));
    let (redis, data) = (redis.addr(), dir.join(shard));
    fs::create_dir_all(&data).unwrap();
    let own = [
        "agent", "--node", &node, "--shard", shard, "--redis", &redis, "--member", &node,
    ];
    let at = ["--zookeeper", &connect, "--cluster", "test", "--listen", &listen];
    let files = [
        "--data-dir",
        data.to_str().unwrap(),
        "--secret-file",
        secret.to_str().unwrap(),
    ];
    Pointsman::start(&[&own[..], &at, &files].concat())
}

#[test]
fn hostile_znodes_that_an_agent_finds_when_it_starts_are_named_and_stay() {
    let zookeeper = ZooKeeper::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(connect(&settings(&zookeeper, None, false)));
    let put = |path: &str, bytes: &[u8]| {
        runtime
            .block_on(store.create(path, bytes.to_vec(), Lifetime::Persistent))
            .unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    // What the operator wants of the shard: the agent's own settings count until it can be read.
    let cases: [(&str, &[u8], &str); 3] = [
        ("s1", b"nonsense", "expected"),
        ("s2", b"{}", "missing field"),
        ("s3", br#"{"ack_replicas":-1,"members":[]}"#, "-1"),
    ];
    for (shard, bytes, words) in cases {
        let path = format!("/shards/{shard}/config");
        put(&path, bytes);
        let redis = Redis::start(&["--replicaof", "127.0.0.1", "1"]);
        let mut agent = lone_agent(&zookeeper, dir.path(), shard, &redis);
        let line = agent.wait_for_line(LIMIT, |line| line.contains("this agent's own settings count"));
        assert!(line.contains(&path) && line.contains(words), "{line}");
        agent.wait_for_line(LIMIT, |line| line.contains("is the master of epoch 1"));
        let kept = runtime.block_on(store.get(&path)).unwrap().unwrap();
        assert_eq!((kept.bytes.as_slice(), kept.version), (bytes, 0), "{path}");
    }
    // A cluster that cannot be read is nobody's to touch.
    for bytes in [&b"nonsense"[..], br#"{"schema":99}"#] {
        let found = runtime.block_on(store.get("/config")).unwrap().unwrap();
        runtime
            .block_on(store.set("/config", bytes.to_vec(), found.version))
            .unwrap();
        let redis = Redis::start(&["--replicaof", "127.0.0.1", "1"]);
        let mut agent = lone_agent(&zookeeper, dir.path(), "s4", &redis);
        let connect = zookeeper.connect();
        let at = ["--zookeeper", &connect, "--cluster", "test", "--listen", "127.0.0.1:0"];
        let mut proxy = Pointsman::start(&[&["proxy"][..], &at].concat());
        for ended in [&mut agent, &mut proxy] {
            assert_eq!(ended.exit_code(LIMIT), Some(1), "{}", ended.log());
            assert!(ended.log().contains("/config"), "{}", ended.log());
        }
        assert_eq!(runtime.block_on(store.get("/shards/s4/state")), Ok(None));
    }
}

/// A registration may claim what it likes of its data: elections ask the agents, and count lives that the state names.
#[test]
fn hostile_znodes_that_lie_about_data_lose_nothing() {
    let up = Up::start(&["--replicas", "2", "--ack-replicas", "1"]);
    up.all_count("s1");
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    let before = up.state("s1");
    // A registration that claims the master's life and data: the master's own stays what it was.
    let liar = serde_json::json!({
        "host": "liar", "redis": format!("127.0.0.1:{}", free_port()), "peer": format!("127.0.0.1:{}", free_port()),
        "run_id": before["run_id"], "role": "master", "replid": before["lineage"][0], "priority": 1,
    });
    with_store(&up, async |store| {
        store
            .create(
                "/shards/s1/nodes/x",
                liar.to_string().into_bytes(),
                Lifetime::Persistent,
            )
            .await
            .unwrap();
    });
    assert_eq!(client.command(&["SET", "k", "w"]), Value::ok());
    let master = up.master("s1");
    up.signal(&master, "redis", Signal::SIGKILL);
    eventually(LIMIT, || client.command(&["GET", "k"]).text() == "w");
    let after = up.state("s1");
    assert_ne!(after["master"], before["master"]);
    assert!(after["valid"]["x"].is_null() && after["master"] != "x", "{after}");
}

#[test]
fn a_restored_ensemble_is_not_believed() {
    let up = Up::start(&["--replicas", "1"]);
    up.all_count("s1");
    let old = up.state("s1");
    assert_eq!(up.operate("switchover", &["s1"]).code, Some(0));
    up.all_count("s1");
    let master = up.master("s1");
    let mut client = up.client();
    with_store(&up, async |store| {
        let now = store.get("/shards/s1/state").await.unwrap().unwrap();
        store
            .set("/shards/s1/state", old.to_string().into_bytes(), now.version)
            .await
            .unwrap();
    });
    let shouts = || {
        up.logs(&["agent.log"]).iter().all(|(_, text)| {
            text.lines()
                .any(|line| (line.contains(" WARN ") || line.contains(" ERROR ")) && line.contains("epoch"))
        })
    };
    assert!(crate::support::holds_within(LIMIT, shouts), "nobody shouts");
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    let role = Client::connect(up.redis(&master).as_str()).command(&["ROLE"]);
    assert!(matches!(role, Value::Array(role) if role[0].text() == "master"));
    for (log, text) in up.logs(&["agent.log", "proxy.log"]) {
        let warnings = text
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
            .count();
        assert!(warnings <= 20, "{}: {warnings} warnings", log.display());
    }
}
