//! Clients that log in to the proxy itself, by a file of users, and are one user to the servers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Circuit, Client, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);
/// `secret` is alice's password, in SHA-256.
const USERS: &str =
    "default:everybody\nalice:#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\nbob:old\nbob:new\n";

struct Guests {
    circuit: Circuit,
    _dir: TempDir,
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A config with these users, who are `app` with this password to the servers.
fn config(dir: &Path, listen: &str, master: &str, password: &str) -> String {
    write(&dir.join("users"), USERS, 0o600);
    write(&dir.join("password"), password, 0o600);
    let path = dir.join("proxy.toml");
    let shown = dir.display();
    let text = format!(
        "[proxy]\nlisten = [\"{listen}\"]\nmaster = \"{master}\"\nworkers = 1\nusers_file = \"{shown}/users\"\n\
         users_redis_user = \"app\"\nusers_redis_password_file = \"{shown}/password\"\n"
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

impl Guests {
    fn start(password: &str) -> Self {
        let redis = Redis::start(&[]);
        let app = [
            "ACL",
            "SETUSER",
            "app",
            "on",
            ">app-password",
            "~app:*",
            "&*",
            "+@all",
            "-@dangerous",
        ];
        assert_eq!(redis.command(&app), Value::ok());
        let dir = tempfile::tempdir().unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let config = config(dir.path(), &listen, &redis.addr(), password);
        let mut proxy = Pointsman::start(&["proxy", "--config", &config]);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        let circuit = Circuit { redis, proxy, listen };
        Self { circuit, _dir: dir }
    }

    fn client_of(&self, user: &str, password: &str) -> Client {
        let mut client = self.circuit.client();
        assert_eq!(client.command(&["AUTH", user, password]), Value::ok());
        client
    }
}

#[test]
fn guests_log_in_with_passwords_of_the_proxys_own_in_the_words_of_redis() {
    let guests = Guests::start("app-password");
    let redis = Redis::start(&["--requirepass", "everybody"]);
    let attempts: [&[&str]; 8] = [
        &["GET", "app:k"],
        &["AUTH", "wrong"],
        &["AUTH", "alice", "wrong"],
        &["AUTH", "nobody", "secret"],
        &["AUTH", "app", "app-password"],
        &["AUTH", "a", "b", "c"],
        &["HELLO", "2", "AUTH", "alice", "wrong"],
        &["GET", "app:k"],
    ];
    let (mut ours, mut theirs) = (guests.circuit.client(), redis.client());
    for attempt in attempts {
        let said = ours.command(attempt);
        assert_eq!(said, theirs.command(attempt), "{attempt:?}");
        assert!(matches!(said, Value::Error(_)), "{attempt:?}");
    }
    for (user, password) in [
        ("default", "everybody"),
        ("alice", "secret"),
        ("bob", "old"),
        ("bob", "new"),
    ] {
        let mut client = guests.client_of(user, password);
        assert_eq!(client.command(&["ACL", "WHOAMI"]), Value::bulk(user));
        assert_eq!(client.command(&["SET", "app:k", user]), Value::ok());
    }
    let mut client = guests.circuit.client();
    assert_eq!(client.command(&["AUTH", "everybody"]), Value::ok());
    assert_eq!(client.command(&["GET", "app:k"]), Value::bulk("bob"));
    assert!(client.command(&["AUTH", "wrong"]).is_error("WRONGPASS"));
    assert_eq!(
        client.command(&["GET", "app:k"]),
        Value::bulk("bob"),
        "it is still who it was"
    );
    assert_eq!(client.command(&["RESET"]), Value::Simple("RESET".to_owned()));
    assert!(client.command(&["GET", "app:k"]).is_error("NOAUTH"));
    assert!(matches!(
        client.command(&["HELLO", "3", "AUTH", "alice", "secret"]),
        Value::Map(_)
    ));
    assert_eq!(client.command(&["ACL", "WHOAMI"]), Value::bulk("alice"));
    guests.circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn guests_are_one_user_to_the_servers_whatever_they_do() {
    let guests = Guests::start("app-password");
    let (redis, mut alice, mut bob) = (
        &guests.circuit.redis,
        guests.client_of("alice", "secret"),
        guests.client_of("bob", "new"),
    );
    for client in [&mut alice, &mut bob] {
        assert!(client.command(&["GET", "other"]).is_error("NOPERM"));
        assert!(client.command(&["CONFIG", "GET", "port"]).is_error("NOPERM"));
    }
    // On a lane, in a transaction in pieces, blocked, and subscribed.
    assert_eq!(alice.command(&["SET", "app:k", "1"]), Value::ok());
    assert_eq!(alice.command(&["WATCH", "app:k"]), Value::ok());
    assert_eq!(alice.command(&["MULTI"]), Value::ok());
    assert_eq!(alice.command(&["INCR", "app:k"]), Value::Simple("QUEUED".to_owned()));
    assert_eq!(alice.command(&["EXEC"]), Value::Array(vec![Value::Int(2)]));
    alice.send(b"BLPOP app:list 0\r\n");
    assert!(matches!(bob.command(&["SUBSCRIBE", "news"]), Value::Array(_)));
    eventually(SOON, || redis.command(&["CLIENT", "LIST"]).text().contains("cmd=blpop"));
    let list = redis.command(&["CLIENT", "LIST"]).text();
    let theirs: Vec<&str> = list.lines().filter(|line| line.contains(" user=app ")).collect();
    for word in ["cmd=blpop", "cmd=subscribe"] {
        assert!(theirs.iter().any(|line| line.contains(word)), "{word}: {list}");
    }
    assert_eq!(redis.command(&["RPUSH", "app:list", "x"]), Value::Int(1));
    assert_eq!(
        alice.read_reply(),
        Value::Array(["app:list", "x"].map(Value::bulk).to_vec())
    );
    // To each other they are who they are.
    let mut carol = guests.client_of("default", "everybody");
    let list = carol.command(&["CLIENT", "LIST"]).text();
    for user in ["alice", "bob", "default"] {
        assert!(list.contains(&format!(" user={user} ")), "{list}");
    }
    assert!(!list.contains("user=app"), "{list}");
    assert!(
        carol
            .command(&["CLIENT", "KILL", "USER", "app"])
            .is_error("ERR No such user 'app'")
    );
    assert_eq!(carol.command(&["CLIENT", "KILL", "USER", "bob"]), Value::Int(1));
    guests.circuit.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn guests_go_on_as_that_user_after_the_servers_have_closed_everything() {
    let guests = Guests::start("app-password");
    let mut client = guests.client_of("alice", "secret");
    assert_eq!(client.command(&["SET", "app:k", "1"]), Value::ok());
    for round in 0..3 {
        guests.circuit.redis.command(&["CLIENT", "KILL", "USER", "app"]);
        eventually(SOON, || client.command(&["GET", "app:k"]) == Value::bulk("1"));
        assert!(client.command(&["GET", "other"]).is_error("NOPERM"), "round {round}");
    }
}

#[test]
fn a_servers_refusal_of_that_user_is_told_and_logged() {
    let guests = Guests::start("not-the-password");
    let mut client = guests.client_of("alice", "secret");
    for _ in 0..3 {
        assert!(client.command(&["GET", "app:k"]).is_error("WRONGPASS"));
    }
    let log = guests.circuit.proxy.log();
    assert_eq!(
        log.matches("see to users_redis_user and users_redis_password_file")
            .count(),
        1,
        "{log}"
    );
    assert!(!log.contains("not-the-password"));
    guests
        .circuit
        .proxy
        .assert_no_undeclared_warnings(&["a server refuses who clients are there"]);
}

#[test]
fn a_file_of_users_that_others_can_read_or_that_is_nonsense_ends_a_proxy_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "127.0.0.1:1", "127.0.0.1:1", "x");
    let users = dir.path().join("users");
    for (text, mode, what) in [
        (USERS, 0o644, "everybody on this machine may use it: run 'chmod 600"),
        ("alice\n", 0o600, "line 1 is not of the form name:password"),
        ("", 0o600, "it names no user"),
    ] {
        write(&users, text, mode);
        let ended = Pointsman::run(&["proxy", "--config", &config]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(what) && ended.stderr.contains(users.to_str().unwrap()),
            "{}",
            ended.stderr
        );
    }
}
