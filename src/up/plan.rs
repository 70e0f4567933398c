//! What will run: names, addresses, folders.

use crate::operate::{AgentAt, NodeAt, ProxyAt, RedisAt};
use crate::topology::codec::Slots;
use crate::topology::{Addr, NodeId, ShardId};

use super::error::UpError;
use super::settings::Settings;

/// The first port that is tried, below those from which the kernel draws ports of outgoing connections.
const PORT_FIRST: u16 = 10_000;
/// How many ports are tried.
const PORT_COUNT: u16 = 22_000;

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A server of the ensemble.
    ZooKeeper(usize),
    /// A node's redis-server.
    Redis(usize),
    /// A node's agent.
    Agent(usize),
    /// A proxy.
    Proxy(usize),
}

/// A server of our own ensemble.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Where clients connect.
    pub port: u16,
    /// Where followers connect.
    pub quorum_port: u16,
    /// Where leaders are elected.
    pub election_port: u16,
}

/// Everything that will run. The pids in it are set by who starts it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster's name.
    pub cluster: String,
    /// The ensemble's connect string.
    pub connect: String,
    /// The servers of it that are ours.
    pub zookeepers: Vec<Member>,
    /// The shards.
    pub shards: Vec<ShardId>,
    /// Their nodes.
    pub nodes: Vec<NodeAt>,
    /// The proxies.
    pub proxies: Vec<ProxyAt>,
}

impl Plan {
    /// The plan for `settings`. `free` says whether a port is free, `seed` where to begin looking.
    pub fn new(settings: &Settings, seed: u16, free: impl Fn(u16) -> bool) -> Result<Self, UpError> {
        let mut tried = 0;
        let mut port = || {
            while tried < PORT_COUNT {
                let port = PORT_FIRST + (seed % PORT_COUNT + tried) % PORT_COUNT;
                tried += 1;
                if port != settings.listen.port() && free(port) {
                    return Ok(port);
                }
            }
            Err(UpError::NoPort)
        };
        let mut zookeepers = Vec::new();
        for _ in 0..if settings.zookeeper.is_some() {
            0
        } else {
            settings.zookeepers
        } {
            zookeepers.push(Member {
                port: port()?,
                quorum_port: port()?,
                election_port: port()?,
            });
        }
        let servers: Vec<String> = zookeepers
            .iter()
            .map(|member| format!("127.0.0.1:{}", member.port))
            .collect();
        let shards: Vec<ShardId> = (1..=settings.shards)
            .map(|number| ShardId::new(format!("s{number}")))
            .collect();
        let (mut nodes, mut proxies) = (Vec::new(), Vec::new());
        for shard in &shards {
            for letter in ('a'..='z').take(settings.replicas + 1) {
                nodes.push(node(shard, letter, &mut port)?);
            }
        }
        for number in 1..=settings.proxies {
            let listen = match number {
                1 if settings.listen.port() != 0 => settings.listen.clone(),
                _ => Addr::new(settings.listen.host(), port()?),
            };
            proxies.push(ProxyAt {
                id: format!("proxy-{number}"),
                pid: None,
                listen,
                admin: Addr::new("127.0.0.1", port()?),
            });
        }
        Ok(Self {
            // An ensemble that runs already may know another `up`, whose state is none of ours.
            cluster: settings
                .zookeeper
                .as_ref()
                .map_or("up".to_owned(), |_| format!("up-{seed:04x}")),
            connect: settings
                .zookeeper
                .as_ref()
                .map_or(servers.join(","), ToString::to_string),
            zookeepers,
            shards,
            nodes,
            proxies,
        })
    }

    /// All parts, in the order in which they are started.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let zookeepers = (0..self.zookeepers.len()).map(Part::ZooKeeper);
        let redis = (0..self.nodes.len()).map(Part::Redis);
        let agents = (0..self.nodes.len()).map(Part::Agent);
        let proxies = (0..self.proxies.len()).map(Part::Proxy);
        zookeepers.chain(redis).chain(agents).chain(proxies)
    }

    /// The folder of a part below DIR, and the name of its log in there.
    pub fn place(&self, part: Part) -> (String, &'static str) {
        match part {
            Part::ZooKeeper(index) => (format!("zookeeper-{}", index + 1), "zookeeper.log"),
            Part::Redis(index) => (self.nodes[index].id.to_string(), "redis.log"),
            Part::Agent(index) => (self.nodes[index].id.to_string(), "agent.log"),
            Part::Proxy(index) => (self.proxies[index].id.clone(), "proxy.log"),
        }
    }

    /// What people call a part.
    pub fn name(&self, part: Part) -> String {
        match part {
            Part::ZooKeeper(index) if self.zookeepers.len() > 1 => format!("zookeeper-{}", index + 1),
            Part::ZooKeeper(_) => "zookeeper".to_owned(),
            Part::Redis(index) => format!("{}'s redis-server", self.nodes[index].id),
            Part::Agent(index) => format!("{}'s agent", self.nodes[index].id),
            Part::Proxy(index) => self.proxies[index].id.clone(),
        }
    }

    /// The nodes of a shard.
    pub fn members<'a>(&'a self, shard: &'a ShardId) -> impl Iterator<Item = &'a NodeId> {
        self.nodes
            .iter()
            .filter(move |node| node.shard == *shard)
            .map(|node| &node.id)
    }

    /// Who owns which slots.
    pub fn slots(&self) -> Slots {
        Slots::spread(&self.shards)
    }
}

fn node(shard: &ShardId, letter: char, port: &mut impl FnMut() -> Result<u16, UpError>) -> Result<NodeAt, UpError> {
    let mut addr = || port().map(|port| Addr::new("127.0.0.1", port));
    Ok(NodeAt {
        id: NodeId::new(format!("{shard}-{letter}")),
        shard: shard.clone(),
        redis: RedisAt {
            addr: addr()?,
            pid: None,
        },
        agent: AgentAt {
            pid: None,
            listen: addr()?,
            admin: addr()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings() -> Settings {
        Settings {
            dir: ".pointsman".into(),
            listen: Addr::new("127.0.0.1", 10_001),
            shards: 2,
            replicas: 1,
            ack_replicas: 0,
            proxies: 2,
            zookeeper: None,
            zookeepers: 3,
            session_timeout: Duration::from_secs(4),
            redis: Vec::new(),
            restart: false,
            log: "info".to_owned(),
        }
    }

    #[test]
    fn names_are_those_of_the_contract_and_no_port_is_given_twice() {
        let plan = Plan::new(&settings(), 0, |port| port != 10_003).unwrap();
        let ids: Vec<&str> = plan.nodes.iter().map(|node| node.id.as_str()).collect();
        assert_eq!(ids, ["s1-a", "s1-b", "s2-a", "s2-b"]);
        assert_eq!(plan.proxies[1].id, "proxy-2");
        assert_eq!(plan.proxies[0].listen.port(), 10_001);
        assert_eq!(plan.connect.split(',').count(), 3);
        let mut ports: Vec<u16> = plan
            .nodes
            .iter()
            .flat_map(|node| {
                [
                    node.redis.addr.port(),
                    node.agent.listen.port(),
                    node.agent.admin.port(),
                ]
            })
            .collect();
        ports.extend(
            plan.proxies
                .iter()
                .flat_map(|proxy| [proxy.listen.port(), proxy.admin.port()]),
        );
        ports.extend(
            plan.zookeepers
                .iter()
                .flat_map(|zk| [zk.port, zk.quorum_port, zk.election_port]),
        );
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
        assert!(!ports.contains(&10_003), "a port in use");
    }

    #[test]
    fn without_free_ports_it_says_so() {
        assert!(matches!(Plan::new(&settings(), 7, |_| false), Err(UpError::NoPort)));
    }
}
