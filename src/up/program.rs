//! The command line of each part, and the files it reads.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ground::{Ground, JARS, Version};
use super::plan::{Part, Plan};
use super::settings::Settings;
use super::zookeeper;
use crate::agent::machine::facts::PARKED_AT;
use crate::config::{AgentFile, Name, OnStop, ProxyFile, agent_toml, proxy_toml};
use crate::operate::{AUTH_FILE, NodeAt, ProxyAt, SECRET_FILE};

/// Knows Redis' `enable-debug-command`.
const REDIS_WITH_DEBUG_SWITCH: Version = Version(7, 0);

/// Makes commands.
#[derive(Debug)]
pub struct Programs {
    dir: PathBuf,
    settings: Settings,
    ground: Ground,
    pointsman: PathBuf,
}

impl Programs {
    /// For the circuit in `dir`.
    pub fn new(dir: &Path, settings: &Settings, ground: Ground) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            settings: settings.clone(),
            ground,
            pointsman: env::current_exe()?,
        })
    }

    /// Writes what `part` reads and returns the command that runs it.
    pub fn command(&self, plan: &Plan, part: Part) -> io::Result<Command> {
        let folder = self.dir.join(plan.place(part).0);
        let mut command = match part {
            Part::ZooKeeper(index) => {
                zookeeper::write_config(&folder, plan, index, self.settings.session_timeout)?;
                java(&folder)
            }
            Part::Redis(index) => self.redis(&plan.nodes[index], &folder),
            Part::Agent(index) => {
                let config = agent_toml(&self.agent(plan, &plan.nodes[index])?);
                self.own("agent", config, &folder.join("agent.toml"))?
            }
            Part::Proxy(index) => {
                let config = proxy_toml(&self.proxy(plan, &plan.proxies[index])?);
                self.own("proxy", config, &folder.join("proxy.toml"))?
            }
        };
        command.current_dir(folder);
        Ok(command)
    }

    /// A redis-server that boots parked: it follows nobody until its agent says whom.
    fn redis(&self, node: &NodeAt, folder: &Path) -> Command {
        let mut command = Command::new("redis-server");
        command
            .args([
                "--port",
                &node.redis.addr.port().to_string(),
                "--bind",
                "127.0.0.1",
                "--dir",
            ])
            .arg(folder)
            .arg("--pidfile")
            .arg(folder.join("redis.pid"))
            .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"])
            // After a diskless one Redis sends a replica nothing until its next acknowledgement, up to a second later,
            // although it calls it online: what is written meanwhile would be lost with the master.
            .args(["--repl-diskless-sync", "no"]);
        command.arg("--replicaof").args(PARKED_AT.split(':'));
        if self.ground.redis >= REDIS_WITH_DEBUG_SWITCH {
            command.args(["--enable-debug-command", "no"]);
        }
        for option in &self.settings.redis {
            command.arg(format!("--{}", option.key));
            match option.value.is_empty() {
                true => command.arg(""),
                false => command.args(option.value.split_whitespace()),
            };
        }
        command
    }

    fn agent(&self, plan: &Plan, node: &NodeAt) -> io::Result<AgentFile> {
        let members: Result<Vec<Name>, _> = plan.members(&node.shard).map(|id| id.as_str().parse()).collect();
        Ok(AgentFile {
            node: Some(node.id.as_str().parse().map_err(io::Error::other)?),
            shard: Some(node.shard.as_str().parse().map_err(io::Error::other)?),
            redis: Some(node.redis.addr.clone()),
            redis_password: self.settings.password().map(str::to_owned),
            listen: node.agent.listen.clone(),
            admin: Some(node.agent.admin.clone()),
            zookeeper: Some(plan.connect.parse().map_err(io::Error::other)?),
            cluster: plan.cluster.parse().map_err(io::Error::other)?,
            session_timeout_ms: self.session_timeout_ms(),
            zookeeper_auth_file: (!plan.zookeepers.is_empty()).then(|| self.dir.join(AUTH_FILE)),
            secret_file: Some(self.dir.join(SECRET_FILE)),
            members: members.map_err(io::Error::other)?,
            ack_replicas: self.settings.ack_replicas.into(),
            // The agent makes a folder named after its node in there, which is the node's.
            data_dir: self.dir.clone(),
            // An `up` that ends has nobody to hand anything over to.
            on_stop: OnStop::Leave,
            ..AgentFile::default()
        })
    }

    fn proxy(&self, plan: &Plan, proxy: &ProxyAt) -> io::Result<ProxyFile> {
        Ok(ProxyFile {
            id: Some(proxy.id.parse().map_err(io::Error::other)?),
            listen: vec![proxy.listen.clone()],
            admin: Some(proxy.admin.clone()),
            zookeeper: Some(plan.connect.parse().map_err(io::Error::other)?),
            cluster: plan.cluster.parse().map_err(io::Error::other)?,
            session_timeout_ms: self.session_timeout_ms(),
            zookeeper_auth_file: (!plan.zookeepers.is_empty()).then(|| self.dir.join(AUTH_FILE)),
            secret_file: Some(self.dir.join(SECRET_FILE)),
            ..ProxyFile::default()
        })
    }

    fn session_timeout_ms(&self) -> u64 {
        u64::try_from(self.settings.session_timeout.as_millis()).unwrap_or(u64::MAX)
    }

    /// One of our own commands, with its config written to `path`.
    fn own(&self, name: &str, config: Result<String, toml::ser::Error>, path: &Path) -> io::Result<Command> {
        fs::write(path, config.map_err(io::Error::other)?)?;
        let mut command = Command::new(&self.pointsman);
        command.args(["--log", &self.settings.log, name, "--config"]).arg(path);
        Ok(command)
    }
}

fn java(folder: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .args([
            "-Xms32m",
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
        ])
        .args([
            "-Dzookeeper.admin.enableServer=false",
            "-Dzookeeper.fsync.warningthresholdms=60000",
        ])
        .args(["-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", &JARS.join(":")])
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(folder.join("zoo.cfg"));
    command
}
