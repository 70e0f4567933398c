//! One redis-server in a directory of its own.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::Process;
use super::{Client, START_DEADLINE, Value, free_port, holds_within};

/// A redis-server on a free loopback port; killed when dropped.
pub struct Redis {
    process: Process,
    port: u16,
    dir: TempDir,
    binary: String,
    args: Vec<String>,
}

impl Redis {
    /// Starts `redis-server` without persistence and with `args` (`&["--appendonly", "yes"]`) behind our own, and
    /// waits until it answers PING.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        Self::start_binary("redis-server", args)
    }

    /// The same with a server binary of one's own choice.
    #[track_caller]
    pub fn start_binary(binary: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        for _ in 0..5 {
            let port = free_port();
            if let Some(process) = launch(binary, port, dir.path(), &args) {
                return Self {
                    process,
                    port,
                    dir,
                    binary: binary.to_owned(),
                    args,
                };
            }
        }
        panic!("{binary} does not start with {args:?}");
    }

    /// Starts it again on the same port after [`Redis::kill9`]: a new life, in the same directory.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = launch(&self.binary, self.port, self.dir.path(), &self.args).expect("redis-server came back");
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// A new connection to it.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.addr())
    }

    /// One command on a connection of its own.
    #[track_caller]
    pub fn command(&self, args: &[&str]) -> Value {
        self.client().command(args)
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

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// `None` when the server ended at once, for example because somebody else took the port.
fn launch(binary: &str, port: u16, dir: &Path, args: &[String]) -> Option<Process> {
    let mut command = Command::new(binary);
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--dir"])
        .arg(dir)
        .args(args)
        .current_dir(dir);
    let mut process = Process::spawn(command, &dir.join("log"));
    let mut answers = false;
    holds_within(START_DEADLINE, || {
        answers = Client::try_connect(("127.0.0.1", port))
            .and_then(|mut client| client.try_command(&["PING"]))
            .is_ok_and(|reply| reply == Value::Simple("PONG".into()) || is_auth_error(&reply));
        answers || !process.is_running()
    });
    // Another server may answer on a port that ours could not bind.
    (answers && process.is_running()).then_some(process)
}

fn is_auth_error(reply: &Value) -> bool {
    matches!(reply, Value::Error(line) if line.starts_with("NOAUTH"))
}
