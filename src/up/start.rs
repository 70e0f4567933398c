//! The order in which a circuit comes up, and how long each step may take.

use std::time::Duration;

use tokio::time::sleep;

use super::children::how;
use super::circuit::{Run, say};
use super::error::UpError;
use super::founding;
use super::plan::Part;
use super::readiness;
use crate::clock;
use crate::store::{self, Store, StoreError};
use crate::topology::Addr;

/// How long a part may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long replicas are waited for after the first write worked.
const LINK_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

impl Run {
    /// Starts everything and returns when a write through every proxy works.
    pub(super) async fn start_all(&mut self) -> Result<(), UpError> {
        for index in 0..self.plan.zookeepers.len() {
            self.start(Part::ZooKeeper(index))?;
        }
        for index in 0..self.plan.nodes.len() {
            self.start(Part::Redis(index))?;
        }
        for index in 0..self.plan.zookeepers.len() {
            let (name, port) = (self.plan.name(Part::ZooKeeper(index)), self.plan.zookeepers[index].port);
            self.until(&name, START_LIMIT, async || readiness::zookeeper(port).await)
                .await?;
        }
        let password = self.settings.password().map(str::to_owned);
        for index in 0..self.plan.nodes.len() {
            let (part, addr) = (Part::Redis(index), self.plan.nodes[index].redis.addr.clone());
            let (name, pid) = (self.plan.name(part), self.children.pid(part).unwrap_or_default());
            let look = async || readiness::redis(&addr, password.as_deref(), pid).await;
            self.until(&name, START_LIMIT, look).await?;
        }
        self.found().await?;
        for index in 0..self.plan.nodes.len() {
            self.start(Part::Agent(index))?;
        }
        for index in 0..self.plan.proxies.len() {
            self.start(Part::Proxy(index))?;
        }
        self.publish()?;
        for index in 0..self.plan.proxies.len() {
            let (name, addr) = (
                self.plan.name(Part::Proxy(index)),
                self.plan.proxies[index].listen.clone(),
            );
            let plan = self.plan.clone();
            let look = async || readiness::writes(&addr, password.as_deref(), &plan).await;
            self.until(&name, START_LIMIT, look).await?;
        }
        self.wait_for_replicas().await?;
        self.show();
        Ok(())
    }

    async fn store(&self) -> Result<Store, StoreError> {
        let settings = store::Settings {
            connect: self.plan.connect.clone(),
            cluster: self.plan.cluster.clone(),
            session_timeout: self.settings.session_timeout,
            credentials: self.credentials.clone(),
        };
        Store::connect(&settings).await
    }

    async fn found(&mut self) -> Result<(), UpError> {
        let store = self.store().await?;
        let plan = self.plan.clone();
        let acks = self.settings.ack_replicas;
        let look = async || match founding::found(&store, &plan, acks).await {
            // It may have been written: writing what is missing once more is right in any case.
            Err(error @ (StoreError::Away | StoreError::Unknown)) => Err(error.to_string()),
            other => Ok(other),
        };
        self.until("ZooKeeper", START_LIMIT, look).await??;
        store.close().await;
        Ok(())
    }

    /// A replica that is late does not keep anybody from writing. Once all of them count, a master that dies the next
    /// moment is replaced.
    async fn wait_for_replicas(&mut self) -> Result<(), UpError> {
        let (plan, secret) = (self.plan.clone(), self.secret.clone());
        let store = self.store().await?;
        let look = async || {
            readiness::linked(&plan, &secret).await?;
            readiness::all_count(&store, &plan).await
        };
        let waited = self.until("a replica", LINK_LIMIT, look).await;
        store.close().await;
        match waited {
            Err(UpError::Silent { last, .. }) => {
                say(&format!("not all replicas are linked yet: {last}"));
                Ok(())
            }
            other => other,
        }
    }

    /// Looks until `look` says that it is so, for at most `limit`; a child that ends meanwhile is the end.
    async fn until<T>(
        &mut self,
        name: &str,
        limit: Duration,
        look: impl AsyncFn() -> Result<T, String>,
    ) -> Result<T, UpError> {
        let deadline = clock::now() + limit;
        loop {
            let seen = look().await;
            self.logs.show();
            if let Ok(ended) = self.ended.try_recv() {
                return Err(UpError::Ended {
                    name: self.plan.name(ended.part),
                    how: how(ended.status),
                    last: self.logs.last(ended.part),
                });
            }
            match seen {
                Ok(value) => return Ok(value),
                Err(last) if clock::now() >= deadline => {
                    return Err(UpError::Silent {
                        name: name.to_owned(),
                        seconds: limit.as_secs(),
                        last,
                    });
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    /// Prints where everything is.
    fn show(&self) {
        say(&format!("zookeeper  {}", self.plan.connect));
        for node in &self.plan.nodes {
            let (redis, agent) = (&node.redis.addr, &node.agent.listen);
            say(&format!("{:<10} redis {redis}  agent {agent}", node.id.as_str()));
        }
        for proxy in &self.plan.proxies {
            say(&format!(
                "{:<10} {}  admin http://{}",
                proxy.id, proxy.listen, proxy.admin
            ));
        }
        let dir = self.dir.display();
        say(&format!("logs and up.json are in {dir}; Ctrl-C ends everything"));
        if let Some(first) = self.plan.proxies.first() {
            say(&format!("try: {}", try_it(&first.listen)));
        }
    }
}

fn try_it(addr: &Addr) -> String {
    match addr.host() {
        "127.0.0.1" => format!("redis-cli -p {} set greeting hello", addr.port()),
        host => format!("redis-cli -h {host} -p {} set greeting hello", addr.port()),
    }
}
