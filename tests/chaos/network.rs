//! Hosts as network namespaces, joined by a bridge in one more; cuts between them by nftables in there.
//!
//! ```text
//!  host a (10.0.0.1) --veth--+
//!  host b (10.0.0.2) --veth--+-- bridge in the switch: drops what is cut, or some of what is lossy
//!  host c (10.0.0.3) --veth--+
//! ```
//!
//! Invariant: no namespace has a name. Each lives as long as a file or a process of this test holds it, and the processes
//! die with the test; so nothing is left of a test that is killed, and tests at the same time cannot meet: every network
//! has the same addresses, and none is connected to the machine's.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

use crate::support::{Spawner, run_by};

/// Of a hundred packets on a lossy way, so many are lost.
const LOST_OF_HUNDRED: u32 = 30;

/// A network namespace.
#[derive(Clone)]
pub struct Namespace {
    file: Arc<File>,
    spawner: Arc<Spawner>,
}

impl Namespace {
    fn new() -> io::Result<Self> {
        let (sender, made) = sync_channel(1);
        let spawner = Spawner::start(move || {
            let file = unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .and_then(|()| File::open("/proc/thread-self/ns/net"));
            sender.send(file).unwrap();
        });
        Ok(Self {
            file: Arc::new(made.recv().unwrap()?),
            spawner: Arc::new(spawner),
        })
    }

    /// Who starts processes in here.
    pub fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// Does something in here, on a thread of its own: sockets that it opens stay in here.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Connects from in here.
    pub fn connect(&self, addr: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&addr, patience))
    }

    /// Runs a command to its end; the error says what it said.
    fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        // `run_by` takes for granted that there is such a program.
        let paths = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
        let found = paths.map(|folder| PathBuf::from(folder).join(program));
        let Some(path) = found.iter().find(|path| path.exists()) else {
            return Err(format!("there is no '{program}': conf/setup.sh installs it"));
        };
        let mut command = Command::new(path);
        command.args(args);
        let output = run_by(&self.spawner, command);
        match output.code {
            Some(0) => Ok(()),
            _ => Err(format!("{program} {}: {}", args.join(" "), output.stderr.trim())),
        }
    }

    /// How others in this machine name it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }
}

/// One host.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Where its processes run.
    pub namespace: Namespace,
}

impl Host {
    /// An address of a port of it.
    pub fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.address)
    }
}

/// Hosts that reach each other, unless they are cut from each other.
pub struct Network {
    hosts: Vec<Host>,
    switch: Namespace,
    dir: TempDir,
}

impl Network {
    /// Hosts of these names; or why there can be none on this machine.
    pub fn of(names: &[&str]) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let denied =
            |error| format!("no network namespaces ({error}): they need root or CAP_SYS_ADMIN and CAP_NET_ADMIN");
        let switch = Namespace::new().map_err(denied)?;
        let mut hosts = Vec::new();
        for (number, name) in (1..).zip(names) {
            hosts.push(Host {
                name: (*name).to_owned(),
                address: format!("10.0.0.{number}"),
                namespace: Namespace::new().map_err(denied)?,
            });
        }
        let network = Self { hosts, switch, dir };
        network.wire()?;
        Ok(network)
    }

    /// A host.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    /// The names of all hosts.
    pub fn names(&self) -> Vec<&str> {
        self.hosts.iter().map(|host| host.name.as_str()).collect()
    }

    /// Lets nothing pass from each of `from` to each of `to`; what goes the other way passes.
    #[track_caller]
    pub fn cut_one_way(&self, from: &[&str], to: &[&str]) {
        self.add("cut", from, to);
    }

    /// Lets nothing pass between these and those.
    #[track_caller]
    pub fn cut(&self, these: &[&str], those: &[&str]) {
        self.add("cut", these, those);
        self.add("cut", those, these);
    }

    /// Lets nothing pass between these and all others but the ones `except`.
    #[track_caller]
    pub fn isolate(&self, these: &[&str], except: &[&str]) {
        let left_out = |name: &&str| !these.contains(name) && !except.contains(name);
        let others: Vec<&str> = self.names().into_iter().filter(left_out).collect();
        self.cut(these, &others);
    }

    /// Loses some of what is sent from each of `from` to each of `to`.
    #[track_caller]
    pub fn lose_some(&self, from: &[&str], to: &[&str]) {
        self.add("lossy", from, to);
    }

    /// Lets everything pass again.
    #[track_caller]
    pub fn heal(&self) {
        self.replace(&[], &[]);
    }

    /// Cuts these ways, makes those lossy, and lets everything else pass: all at one moment. A way is from one host to
    /// another.
    #[track_caller]
    pub fn replace(&self, cut: &[(&str, &str)], lossy: &[(&str, &str)]) {
        let mut rules = "flush set bridge net cut\nflush set bridge net lossy\n".to_owned();
        rules += &self.elements("cut", cut);
        rules += &self.elements("lossy", lossy);
        self.rule(&rules).unwrap();
    }

    fn add(&self, set: &str, from: &[&str], to: &[&str]) {
        self.rule(&self.elements(set, &ways(from, to))).unwrap();
    }

    fn elements(&self, set: &str, ways: &[(&str, &str)]) -> String {
        let between = |(from, to): &(&str, &str)| format!("{} . {}", self.host(from).address, self.host(to).address);
        match ways.iter().map(between).collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => none,
            some => format!("add element bridge net {set} {{ {some} }}\n"),
        }
    }

    fn rule(&self, rules: &str) -> Result<(), String> {
        let file = self.dir.path().join("rules");
        fs::write(&file, rules).map_err(|error| error.to_string())?;
        self.switch.run("nft", &["-f", &file.display().to_string()])
    }

    fn batch(&self, namespace: &Namespace, lines: &str) -> Result<(), String> {
        let file = self.dir.path().join("links");
        fs::write(&file, lines).map_err(|error| error.to_string())?;
        namespace.run("ip", &["-batch", &file.display().to_string()])
    }

    fn wire(&self) -> Result<(), String> {
        let mut lines = "link set lo up\nlink add bridge type bridge forward_delay 0 mcast_snooping 0\n".to_owned();
        lines += "link set bridge up\n";
        for (number, host) in self.hosts.iter().enumerate() {
            let path = host.namespace.path();
            lines += &format!("link add port{number} type veth peer name eth0 netns {path}\n");
            lines += &format!("link set port{number} master bridge up\n");
        }
        self.batch(&self.switch, &lines)?;
        for host in &self.hosts {
            let own = format!(
                "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n",
                host.address
            );
            self.batch(&host.namespace, &own)?;
        }
        self.rule(&format!(
            "table bridge net {{\n\
             set cut {{ type ipv4_addr . ipv4_addr; }}\n\
             set lossy {{ type ipv4_addr . ipv4_addr; }}\n\
             chain forward {{\n\
             type filter hook forward priority 0; policy accept;\n\
             ip saddr . ip daddr @cut drop\n\
             ip saddr . ip daddr @lossy numgen random mod 100 < {LOST_OF_HUNDRED} drop\n\
             }}\n}}\n"
        ))
    }
}

/// The ways from each of `from` to each of `to`.
pub fn ways<'a>(from: &[&'a str], to: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
    pairs.filter(|(from, to)| from != to).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// Whether a word that `from` says arrives at `to`, on a connection of its own.
    fn hears(network: &Network, from: &str, to: &str) -> bool {
        let (from, to) = (network.host(from), network.host(to));
        let at = to.at(1000).parse().unwrap();
        let listener = to.namespace.within(|| TcpListener::bind(("0.0.0.0", 1000)).unwrap());
        let Ok(mut stream) = from.namespace.connect(at, PATIENCE) else {
            return false;
        };
        let mut heard = listener.accept().unwrap().0;
        heard.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"word").unwrap();
        heard.read_exact(&mut [0; 4]).is_ok()
    }

    #[test]
    fn hosts_hear_each_other_unless_they_are_cut_and_again_when_that_is_healed() {
        let Some(network) = crate::network(&["a", "b", "c"]) else {
            return;
        };
        let all = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")];
        let heard = || all.map(|(from, to)| hears(&network, from, to));
        assert_eq!(heard(), [true; 6]);
        network.cut(&["a"], &["b"]);
        assert_eq!(heard(), [false, false, true, true, true, true]);
        network.heal();
        network.isolate(&["a"], &["b"]);
        assert_eq!(heard(), [true, true, false, false, true, true]);
        network.heal();
        assert_eq!(heard(), [true; 6]);
    }

    #[test]
    fn a_way_may_be_cut_while_the_way_back_is_not() {
        let Some(network) = crate::network(&["a", "b"]) else {
            return;
        };
        let (a, b) = (network.host("a"), network.host("b"));
        let listener = b.namespace.within(|| TcpListener::bind(("0.0.0.0", 1000)).unwrap());
        let mut near = a.namespace.connect(b.at(1000).parse().unwrap(), PATIENCE).unwrap();
        let mut far = listener.accept().unwrap().0;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        network.cut_one_way(&["a"], &["b"]);
        near.write_all(b"word").unwrap();
        far.write_all(b"word").unwrap();
        assert!(near.read_exact(&mut [0; 4]).is_ok());
        assert!(far.read_exact(&mut [0; 4]).is_err());
        network.heal();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(far.read_exact(&mut [0; 4]).is_ok(), "it is sent again");
    }

    #[test]
    fn some_packets_are_lost_on_a_lossy_way() {
        let Some(network) = crate::network(&["a", "b"]) else {
            return;
        };
        let (a, b) = (network.host("a"), network.host("b"));
        let bind = |host: &Host| {
            host.namespace
                .within(|| std::net::UdpSocket::bind("0.0.0.0:1000").unwrap())
        };
        let (near, far) = (bind(a), bind(b));
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        network.lose_some(&["a"], &["b"]);
        for _ in 0..100 {
            near.send_to(b"word", b.at(1000)).unwrap();
        }
        let mut arrived = 0;
        while far.recv(&mut [0; 4]).is_ok() {
            arrived += 1;
        }
        assert!((40..=95).contains(&arrived), "{arrived}");
    }
}
