//! One `up`, from its start to its end.

use std::fs;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::children::{Children, Ended, how};
use super::control::{Control, Request};
use super::error::UpError;
use super::folder::Folder;
use super::ground;
use super::logs::Logs;
use super::plan::{Part, Plan};
use super::program::Programs;
use super::settings::Settings;
use crate::operate::{Circuit, SECRET_FILE, ServerAt, ZooKeeperAt, own_credentials};
use crate::store::Credentials;
use crate::topology::Addr;

/// Ends and restarts that were not looked at yet.
const EVENTS_MAX: usize = 64;
/// How often logs are looked at.
const LOG_PERIOD: Duration = Duration::from_millis(200);
/// How long a child is gone before `--restart` starts it again.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// How long children may take to end by themselves.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Runs a circuit until `shutdown`. Blocks its thread, which must live as long as the process: it is the children's
/// parent.
pub fn run(settings: &Settings, shutdown: &CancellationToken) -> Result<(), UpError> {
    let ground = ground::check(settings)?;
    let system = |error| UpError::System("cannot start an event loop", error);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(system)?;
    let folder = Folder::take(&settings.dir)?;
    let done = runtime.block_on(async {
        let mut run = Run::prepare(settings, ground, &folder)?;
        let done = tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(()),
            done = run.live() => done,
        };
        run.end().await;
        done
    });
    let dir = settings.dir.display().to_string();
    let left = folder.leave().map_err(|error| UpError::Folder(dir, error));
    done.and(left)
}

/// A circuit that runs.
pub(super) struct Run {
    pub(super) settings: Settings,
    pub(super) dir: PathBuf,
    pub(super) plan: Plan,
    pub(super) secret: Arc<[u8]>,
    pub(super) credentials: Option<Credentials>,
    pub(super) children: Children,
    pub(super) logs: Logs,
    pub(super) ended: mpsc::Receiver<Ended>,
    pub(super) control: Control,
    programs: Programs,
    due: mpsc::Sender<Part>,
    restarts: mpsc::Receiver<Part>,
}

impl Run {
    fn prepare(settings: &Settings, ground: ground::Ground, folder: &Folder) -> Result<Self, UpError> {
        let dir = folder.path();
        let refused = |error| UpError::Folder(dir.display().to_string(), error);
        let seed = getrandom::u32().unwrap_or_else(|_| std::process::id());
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let plan = Plan::new(settings, u16::try_from(seed % 65_536).unwrap_or_default(), free)?;
        folder.prepare(&plan).map_err(refused)?;
        let secret = fs::read(dir.join(SECRET_FILE)).map_err(refused)?;
        let credentials = own_credentials(dir).map_err(|error| refused(io::Error::other(error)))?;
        let programs = Programs::new(dir, settings, ground);
        let (tell, ended) = mpsc::channel(EVENTS_MAX);
        let (due, restarts) = mpsc::channel(EVENTS_MAX);
        Ok(Self {
            programs: programs.map_err(|error| UpError::System("cannot find the pointsman program", error))?,
            control: Control::listen(dir).map_err(refused)?,
            settings: settings.clone(),
            dir: dir.to_owned(),
            plan,
            secret: secret.into(),
            credentials,
            children: Children::new(tell),
            logs: Logs::default(),
            ended,
            due,
            restarts,
        })
    }

    /// Starts everything, then looks after it.
    async fn live(&mut self) -> Result<(), UpError> {
        self.start_all().await?;
        say("ready");
        let mut ticks = interval(LOG_PERIOD);
        loop {
            tokio::select! {
                Some(ended) = self.ended.recv() => self.note(ended)?,
                Some(part) = self.restarts.recv() => self.again(part)?,
                Some(request) = self.control.requests.recv() => self.obey(request)?,
                _ = ticks.tick() => self.logs.show(),
            }
        }
    }

    /// Starts `part` and says so in `up.json`.
    pub(super) fn start(&mut self, part: Part) -> Result<(), UpError> {
        let name = self.plan.name(part);
        let refused = |error| UpError::Spawn(name.clone(), error);
        let command = self.programs.command(&self.plan, part).map_err(refused)?;
        let log = self.log_of(part);
        self.children.start(part, command, &log).map_err(refused)?;
        self.logs.watch(part, name, &log);
        Ok(())
    }

    /// Writes `up.json` as things are now.
    pub(super) fn publish(&self) -> Result<(), UpError> {
        let mut nodes = self.plan.nodes.clone();
        for (index, node) in nodes.iter_mut().enumerate() {
            node.redis.pid = self.children.pid(Part::Redis(index));
            node.agent.pid = self.children.pid(Part::Agent(index));
        }
        let mut proxies = self.plan.proxies.clone();
        for (index, proxy) in proxies.iter_mut().enumerate() {
            proxy.pid = self.children.pid(Part::Proxy(index));
        }
        let servers = 0..self.plan.zookeepers.len();
        let pids: Vec<Option<i32>> = servers.map(|index| self.children.pid(Part::ZooKeeper(index))).collect();
        let circuit = Circuit {
            cluster: self.plan.cluster.clone(),
            zookeeper: ZooKeeperAt {
                connect: self.plan.connect.clone(),
                pid: pids.first().copied().flatten(),
                servers: servers_at(&self.plan, &pids),
                pids,
            },
            proxies,
            nodes,
        };
        let refused = |error| UpError::Folder(self.dir.display().to_string(), error);
        circuit.write(&self.dir).map_err(refused)
    }

    fn log_of(&self, part: Part) -> PathBuf {
        let (folder, log) = self.plan.place(part);
        Path::new(&self.dir).join(folder).join(log)
    }

    /// A child is gone.
    fn note(&mut self, ended: Ended) -> Result<(), UpError> {
        let (part, name, how) = (ended.part, self.plan.name(ended.part), how(ended.status));
        say(&format!("{name} (pid {}) ended: {how}", ended.pid));
        if let Part::Redis(index) | Part::Agent(index) = part {
            self.control
                .failed(index, &format!("{name} ended ({how}): {}", self.logs.last(part)));
        }
        if self.settings.restart {
            let due = self.due.clone();
            tokio::spawn(async move {
                sleep(RESTART_AFTER).await;
                // Nobody listens when `up` is ending.
                let _ = due.send(part).await;
            });
        }
        self.publish()
    }

    /// Starts a child again, unless `up-node` did meanwhile.
    fn again(&mut self, part: Part) -> Result<(), UpError> {
        if self.children.pid(part).is_some() {
            return Ok(());
        }
        match self.start(part) {
            Ok(()) => say(&format!("{} is started again", self.plan.name(part))),
            Err(error) => say(&error.to_string()),
        }
        self.publish()
    }

    /// What `up-node` asks: starts what is not running of a node, and answers when it is linked.
    fn obey(&mut self, request: Request) -> Result<(), UpError> {
        let Some(index) = self.plan.nodes.iter().position(|node| node.id.as_str() == request.node) else {
            let known: Vec<&str> = self.plan.nodes.iter().map(|node| node.id.as_str()).collect();
            let why = format!("there is no node {}: there are {}", request.node, known.join(", "));
            request.refuse(why);
            return Ok(());
        };
        for part in [Part::Redis(index), Part::Agent(index)] {
            if self.children.pid(part).is_some() {
                continue;
            }
            if let Err(error) = self.start(part) {
                request.refuse(error.to_string());
                return self.publish();
            }
            say(&format!("{} is started again", self.plan.name(part)));
        }
        let agent = self.plan.nodes[index].agent.listen.clone();
        self.control
            .wait_until_linked(index, request, agent, self.secret.clone());
        self.publish()
    }

    /// Ends everything: those that use others before those that are used.
    async fn end(&mut self) {
        let ends_first = |part| matches!(part, Part::Proxy(_) | Part::Agent(_));
        self.children.end(ends_first, END_PATIENCE).await;
        self.children
            .end(|part| matches!(part, Part::Redis(_)), END_PATIENCE)
            .await;
        self.children.end(|_| true, END_PATIENCE).await;
    }
}

fn servers_at(plan: &Plan, pids: &[Option<i32>]) -> Vec<ServerAt> {
    let servers = plan.zookeepers.iter().zip(pids);
    servers
        .map(|(member, pid)| ServerAt {
            addr: Addr::new("127.0.0.1", member.port),
            pid: *pid,
        })
        .collect()
}

/// Tells the operator. Whether anybody reads it changes nothing.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
