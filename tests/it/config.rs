//! Config files: what is documented is what is checked, and each refusal names file, line, key and remedy.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pointsman::config::{
    AgentFile, Document, File, Listener, ProxyFile, agent_toml, proxy_toml, read_secret, read_user_and_password,
};
use tempfile::TempDir;

use crate::support::Pointsman;

fn documented(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name);
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

/// Every key has a line of its own: set if it has a default, set as an example if it is `needed`, else behind a `#`.
fn assert_documents(text: &str, file: &serde_json::Value, needed: &[&str]) {
    for (key, value) in file.as_object().unwrap() {
        if value.is_object() {
            assert_documents(text, value, &[]);
            continue;
        }
        let hash = if value.is_null() && !needed.contains(&key.as_str()) {
            "# "
        } else {
            ""
        };
        let documented = text.lines().any(|line| line.starts_with(&format!("{hash}{key} = ")));
        assert!(documented, "{hash}{key} is not documented");
    }
}

#[test]
fn the_documented_configs_hold_every_key_with_its_default() {
    let (path, text) = documented("proxy.toml");
    let document = Document::parse(&path, text.clone()).unwrap();
    document.check().unwrap();
    let File::Proxy(mut file) = document.file else {
        panic!("a proxy's")
    };
    file.zookeeper = None;
    assert_eq!(file, ProxyFile::default());
    assert_documents(&text, &serde_json::to_value(file).unwrap(), &["zookeeper"]);

    let (path, text) = documented("agent.toml");
    let document = Document::parse(&path, text.clone()).unwrap();
    document.check().unwrap();
    let File::Agent(file) = document.file else {
        panic!("an agent's")
    };
    let bare = AgentFile {
        node: None,
        shard: None,
        redis: None,
        zookeeper: None,
        secret_file: None,
        ..file
    };
    assert_eq!(bare, AgentFile::default());
    let needed = ["node", "shard", "redis", "zookeeper", "secret_file"];
    assert_documents(&text, &serde_json::to_value(bare).unwrap(), &needed);

    let (path, text) = documented("topology.toml");
    Document::parse(&path, text.clone()).unwrap().check().unwrap();
    let keys = serde_json::json!({ "id": "", "slots": "", "nodes": "" });
    assert_documents(&text, &keys, &[]);
}

#[test]
fn what_stands_behind_a_hash_is_allowed_there() {
    for (name, keys) in [
        (
            "proxy.toml",
            &[
                "id",
                "admin",
                "workers",
                "zookeeper_auth_file",
                "redis_user",
                "redis_password_file",
                "users_file",
                "users_redis_user",
                "users_redis_password_file",
            ][..],
        ),
        (
            "agent.toml",
            &[
                "redis_user",
                "redis_password_file",
                "admin",
                "zone",
                "zookeeper_auth_file",
            ],
        ),
    ] {
        let (path, mut text) = documented(name);
        for key in keys {
            let hidden = format!("# {key} = ");
            assert!(text.contains(&hidden), "{key}");
            text = text.replacen(&hidden, &format!("{key} = "), 1);
        }
        Document::parse(&path, text).unwrap().check().unwrap();
    }
}

#[test]
fn a_written_config_reads_back_as_it_was() {
    let file = AgentFile {
        node: Some("s1-a".parse().unwrap()),
        members: vec!["s1-a".parse().unwrap()],
        ..AgentFile::default()
    };
    let text = agent_toml(&file).unwrap();
    let read = Document::parse(Path::new("x"), text).unwrap().file;
    assert_eq!(read, File::Agent(file));
    let file = ProxyFile {
        listeners: vec![Listener {
            listen: "h:1".parse().unwrap(),
            ack_replicas: 2,
        }],
        ..ProxyFile::default()
    };
    let text = proxy_toml(&file).unwrap();
    let read = Document::parse(Path::new("x"), text).unwrap().file;
    assert_eq!(read, File::Proxy(file));
}

struct Checked {
    dir: TempDir,
}

impl Checked {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The exit code and the one line that `check-config` says about `text`, the file's folder cut off.
    fn check(&self, text: &str) -> (Option<i32>, String) {
        let path = self.dir.path().join("f.toml");
        fs::write(&path, text).unwrap();
        let output = Pointsman::run(&["check-config", path.to_str().unwrap()]);
        let said = format!("{}{}", output.stdout, output.stderr);
        let said = said.replace(&format!("{}/", self.dir.path().display()), "");
        assert_eq!(said.matches('\n').count(), 1, "{said}");
        (output.code, said.trim_end().to_owned())
    }
}

#[test]
fn check_config_tells_the_kind_or_names_line_key_and_remedy() {
    let checked = Checked::new();
    for (text, kind) in [
        ("[proxy]\nmaster = '127.0.0.1:1'\n", "a proxy's config"),
        (
            "[agent]\nnode = 'a'\nshard = 's'\nredis = 'h:1'\nzookeeper = 'z:1'\nsecret_file = 's'\n",
            "an agent's config",
        ),
        ("[[topology.shards]]\nid = 's'\nnodes = ['h:1']\n", "a topology"),
    ] {
        assert_eq!(checked.check(text), (Some(0), format!("f.toml: {kind}, fine")));
    }
    for (text, sentence) in [
        (
            "",
            "f.toml: it holds no [proxy], [agent] or [topology] table: begin with one of them",
        ),
        (
            "[proxy]\nmaster = 'h:1'\n[[topology.shards]]\nid = 's'\nnodes = ['h:1']\n",
            "f.toml: it holds several of [proxy], [agent] and [topology]: make a file of each",
        ),
        (
            "[proxy]\nmaster = 'h:1'\nworkers = 0\n",
            "f.toml:3: workers: 0 is not within 1 to 256",
        ),
        (
            "[proxy]\nmaster = 'h:1'\nworkers = 257\n",
            "f.toml:3: workers: 257 is not within 1 to 256",
        ),
        (
            "[proxy]\nmaster = 'h'\n",
            "f.toml:2: master: 'h' is not an address: write HOST:PORT, for example 127.0.0.1:6379 or [::1]:6379",
        ),
        (
            "[proxy]\nmaster = 'h:1'\nreads = 'any'\n",
            "f.toml:3: reads: unknown variant any, expected master or causal",
        ),
        (
            "[proxy]\n# none\n",
            "f.toml:1: master: nothing says where Redis is: give one of zookeeper, topology and master",
        ),
        (
            "[proxy]\nmaster = 'h:1'\nzookeeper = 'h:1'\n",
            "f.toml:2: master: only one of zookeeper, topology and master may be given",
        ),
        (
            "[proxy]\nmaster = 'h:1'\nack_replicas = 1\n",
            "f.toml:3: ack_replicas: 1 replicas can never acknowledge anything where there are 0: name them in replicas, or ask for \
             that many at most",
        ),
        (
            "[proxy]\nmaster = 'h:1'\nreplicas = ['h:2']\nlisteners = [{ listen = 'h:3', ack_replicas = 2 }]\n",
            "f.toml:4: listeners: 2 replicas can never acknowledge anything where there are 1: name them in replicas, or ask for \
             that many at most",
        ),
        (
            "[proxy]\ntopology = 't'\nack_replicas = 2\nlisteners = [{ listen = 'h:3', ack_replicas = 1 }]\n",
            "f.toml:4: listeners: h:3 asks for 1 replicas where all clients get 2: one may ask for more, never for less",
        ),
        (
            "[proxy]\ntopology = 't'\nlisten = ['h:3']\nlisteners = [{ listen = 'h:3', ack_replicas = 1 }]\n",
            "f.toml:4: listeners: h:3 is listed twice",
        ),
        (
            "[agent]\nnode = 'a'\n",
            "f.toml:1: redis: it is missing: give where its Redis listens, HOST:PORT",
        ),
        (
            "[agent]\nnode = 'a/b'\n",
            "f.toml:2: node: \"a/b\" is no name: use 1 to 64 letters, digits, '.', '_' or '-'",
        ),
        (
            "[agent]\nnode = 'a'\nack_replicas = 1\n",
            "f.toml:3: ack_replicas: members are not given: list them, so that it is known who acknowledges",
        ),
        (
            "[agent]\nnode = 'a'\nmembers = ['a', 'b']\nack_replicas = 2\n",
            "f.toml:4: ack_replicas: 2 replicas can never acknowledge anything where 2 members have 1: give at most that",
        ),
        (
            "[agent]\nnode = 'a'\n[agent.timings]\nprobe_ms = 0\n",
            "f.toml:4: probe_ms: 0 is not within 1 to 60000",
        ),
        (
            "[agent]\nnode = 'a'\nredis = '0.0.0.0:1'\nshard = 's'\n",
            "f.toml:3: redis: 0.0.0.0:1 is published to the others, who cannot connect to it: give the address they see",
        ),
        (
            "[[topology.shards]]\nid = 's'\nslots = ['0-99', '101-16383']\nnodes = ['h:1']\n",
            "f.toml:1: [[topology.shards]]: slot 100 belongs to no shard",
        ),
        (
            "[[topology.shards]]\nid = 's'\nnodes = [\n  'h:1',\n  'h:1',\n]\n",
            "f.toml:5: nodes: h:1 is listed twice",
        ),
    ] {
        assert_eq!(
            checked.check(text),
            (Some(2), format!("pointsman: {sentence}")),
            "{text}"
        );
    }
    let (code, said) = checked.check("[proxy]\nmaster = 'h:1'\nworker = 2\n");
    assert_eq!(code, Some(2));
    assert!(
        said.starts_with("pointsman: f.toml:3: worker: no such key; expected one of id, listen"),
        "{said}"
    );
    let (code, said) = checked.check("[proxy]\nmaster = h:1\n");
    assert_eq!(code, Some(2));
    assert!(said.starts_with("pointsman: f.toml:2: master: "), "{said}");
    let missing = Pointsman::run(&["check-config", "/nowhere/at-all.toml"]);
    assert_eq!(missing.code, Some(2));
    assert!(missing.stderr.contains("/nowhere/at-all.toml: "), "{}", missing.stderr);
}

#[test]
fn a_password_is_one_line_and_a_user_stands_before_a_colon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth");
    let write = |text: &str| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let said = read_user_and_password(&path).map_err(|error| error.to_string());
        said.inspect_err(|said| assert!(said.starts_with(path.to_str().unwrap()), "{said}"))
    };
    let pair = |user: &str, password: &str| Ok((user.to_owned(), password.to_owned()));
    assert_eq!(write("a:b"), pair("a", "b"));
    assert_eq!(write("a:b:c \r\n"), pair("a", "b:c "));
    for text in ["a", ":b", "a:", "a\n"] {
        assert!(write(text).unwrap_err().contains("user:password"), "{text:?}");
    }
    assert!(write("a:b\nc:d\n").unwrap_err().contains("several lines"));
    assert!(write("\n").unwrap_err().contains("empty"));
}

#[test]
fn a_secret_is_long_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let write = |text: &str, mode: u32| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        read_secret(&path)
            .map(|secret| secret.to_vec())
            .map_err(|error| error.to_string())
    };
    assert_eq!(write("0123456789abcdef\n", 0o600).unwrap(), b"0123456789abcdef");
    assert!(
        write("0123456789abcde\n", 0o600)
            .unwrap_err()
            .contains("has 15 bytes, 16 are needed")
    );
    assert_eq!(write("  0123456789abcdef\r\n\n", 0o400).unwrap(), b"0123456789abcdef");
    let remedy = format!("run 'chmod 600 {}'", path.display());
    for (mode, who) in [
        (0o644, "everybody"),
        (0o602, "everybody"),
        (0o640, "its group"),
        (0o660, "its group"),
    ] {
        let said = write("0123456789abcdef", mode).unwrap_err();
        assert!(said.contains(&remedy) && said.contains(who), "{mode:o}: {said}");
    }
    for (text, why) in [
        (String::new(), "has 0 bytes, 16 are needed"),
        (" \n".repeat(20), "has 0 bytes, 16 are needed"),
        ("x".repeat(4097), "at most 4096 are read"),
    ] {
        assert!(write(&text, 0o600).unwrap_err().contains(why), "{why}");
    }
    assert_eq!(write(&"x".repeat(4096), 0o600).unwrap().len(), 4096);
    fs::write(&path, [0xff; 32]).unwrap();
    assert!(read_secret(&path).unwrap_err().to_string().contains("no text"));
    assert!(read_secret(dir.path()).unwrap_err().to_string().contains("no file"));
    fs::remove_file(&path).unwrap();
    assert!(
        read_secret(&path)
            .unwrap_err()
            .to_string()
            .contains("name a file that can be read")
    );
}
