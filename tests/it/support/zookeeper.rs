//! One standalone ZooKeeper, as Debian packages it, with a small heap.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::process::Process;
use super::{START_DEADLINE, free_port, holds_within};

/// Milliseconds of a ZooKeeper tick: sessions end at multiples of it.
const TICK_MS: u32 = 100;

/// A ZooKeeper on a free loopback port; killed when dropped.
pub struct ZooKeeper {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl ZooKeeper {
    /// Starts it and waits until it serves (1 to 2 s).
    #[track_caller]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..5 {
            let port = free_port();
            if let Some(process) = launch(port, dir.path()) {
                return Self { process, port, dir };
            }
        }
        panic!("ZooKeeper does not start");
    }

    /// Starts it again on the same port with the data it had (sessions included).
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = launch(self.port, self.dir.path()).expect("ZooKeeper came back");
    }

    /// The port clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The connect string, `127.0.0.1:port`.
    pub fn connect(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Kills it (SIGKILL).
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Freezes it (SIGSTOP).
    pub fn stop(&self) {
        self.process.stop();
    }

    /// Lets a frozen one go on (SIGCONT).
    pub fn cont(&self) {
        self.process.cont();
    }
}

/// `None` when it ended at once, for example because somebody else took the port.
fn launch(port: u16, dir: &Path) -> Option<Process> {
    let config = dir.join("zoo.cfg");
    fs::write(
        &config,
        format!(
            "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\ntickTime={TICK_MS}\n\
             minSessionTimeout=200\nmaxSessionTimeout=60000\nmaxClientCnxns=0\n\
             admin.enableServer=false\n4lw.commands.whitelist=srvr\n",
            dir.display()
        ),
    )
    .unwrap();
    let mut command = server(&config);
    command.current_dir(dir);
    let mut process = Process::spawn(command, &dir.join("log"));
    let mut serves = false;
    holds_within(START_DEADLINE, || {
        serves = is_serving(port);
        serves || !process.is_running()
    });
    (serves && process.is_running()).then_some(process)
}

/// The command that runs a server with this config.
pub fn server(config: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .args(["-Xms32m", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .args([
            "-Dzookeeper.admin.enableServer=false",
            "-Dzookeeper.fsync.warningthresholdms=60000",
        ])
        .args(["-cp", "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar"])
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(config);
    command
}

fn is_serving(port: u16) -> bool {
    ask(&format!("127.0.0.1:{port}"), "srvr").starts_with("Zookeeper version")
}

/// What a server answers to a word of four letters; nothing where it does not.
pub fn ask(server: &str, word: &str) -> String {
    let mut answer = String::new();
    let Ok(mut stream) = TcpStream::connect(server) else {
        return answer;
    };
    let asked =
        stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok() && stream.write_all(word.as_bytes()).is_ok();
    if asked && stream.read_to_string(&mut answer).is_err() {
        answer.clear();
    }
    answer
}
