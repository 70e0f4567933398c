//! The topology file as a source.
//!
//! Owns: reading it again when it changes, asking its nodes for their role, and the epochs that follow.
//! Invariant: the epoch of a shard grows with each change of its master, also with the change to none; a file
//! that became nonsense changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::offer::Offer;
use super::role::{Asker, Finding, Role, judge};
use super::{SourceError, unproven_master, unproven_node};
use crate::clock;
use crate::proxy::shared::ControlLogin;
use crate::telemetry::Said;
use crate::topology::codec::{FileShard, TopologyFile};
use crate::topology::{Addr, Epoch, Phase, Shard, ShardId, Snapshot};

/// Between two looks at the file.
const FILE_POLL: Duration = Duration::from_secs(1);
/// Between two questions to the nodes.
const ROLE_POLL: Duration = Duration::from_millis(100);

/// What tells one writing of the file from the next.
type Stamp = (Option<SystemTime>, u64);

pub(super) async fn follow(
    path: PathBuf,
    login: ControlLogin,
    offer: Offer,
    stop: CancellationToken,
) -> Result<(), SourceError> {
    let (stamp, file) = read(&path).await?;
    let mut source = Source {
        path,
        stamp,
        askers: askers(&file, &login),
        login,
        file,
        found: BTreeMap::new(),
        offer,
        said: Said::default(),
    };
    stop.run_until_cancelled(source.run()).await;
    Ok(())
}

struct Source {
    path: PathBuf,
    stamp: Stamp,
    file: TopologyFile,
    askers: Vec<Asker>,
    login: ControlLogin,
    /// What each shard's nodes said last, and since which epoch.
    found: BTreeMap<ShardId, Found>,
    offer: Offer,
    said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    epoch: Epoch,
    master: Option<Addr>,
}

impl Source {
    async fn run(&mut self) {
        let mut ticks = interval(ROLE_POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = clock::now() + FILE_POLL;
        loop {
            ticks.tick().await;
            if clock::now() >= look {
                look = clock::now() + FILE_POLL;
                self.look_at_file().await;
            }
            let heard = join_all(
                self.askers
                    .iter_mut()
                    .map(async |asker| (asker.addr.clone(), asker.ask().await)),
            );
            let heard = heard.await;
            self.take(&heard);
        }
    }

    async fn look_at_file(&mut self) {
        match stamp(&self.path).await {
            Ok(stamp) if stamp == self.stamp => return,
            Ok(_) | Err(_) => {}
        }
        match read(&self.path).await {
            Ok((stamp, file)) => {
                self.stamp = stamp;
                if file != self.file {
                    tracing::info!(path = %self.path.display(), "the topology file has changed");
                    self.askers = askers(&file, &self.login);
                    self.file = file;
                }
            }
            Err(error) => self.say(format!("{error}; the topology stays as it was")),
        }
    }

    fn take(&mut self, heard: &[(Addr, Role)]) {
        let mut shards = Vec::with_capacity(self.file.shards.len());
        let mut complaints = Vec::new();
        for shard in &self.file.shards {
            let heard: Vec<_> = heard
                .iter()
                .filter(|(addr, _)| shard.nodes.contains(addr))
                .cloned()
                .collect();
            let before = self.found.get(&shard.id);
            let finding = judge(before.and_then(|before| before.master.as_ref()), &heard);
            complaints.extend(complaint(&shard.id, &finding, &heard));
            let found = advance(before, finding);
            shards.push(picture(shard, &found));
            self.found.insert(shard.id.clone(), found);
        }
        for complaint in complaints {
            self.say(complaint);
        }
        self.offer.make(Snapshot {
            shards,
            slots: self.file.slots.clone(),
        });
    }

    fn say(&mut self, sentence: String) {
        if self.said.first(clock::now(), &sentence) {
            tracing::warn!("{sentence}");
        }
    }
}

fn askers(file: &TopologyFile, login: &ControlLogin) -> Vec<Asker> {
    let addrs = file.shards.iter().flat_map(|shard| shard.nodes.iter().cloned());
    addrs.map(|addr| Asker::new(addr, login.clone())).collect()
}

fn advance(before: Option<&Found>, finding: Finding) -> Found {
    let master = match finding {
        Finding::Master(addr) => Some(addr),
        Finding::Nobody | Finding::Several(_) => None,
    };
    match before {
        Some(before) if before.master == master => before.clone(),
        Some(before) => Found {
            epoch: before.epoch.next(),
            master,
        },
        None => Found {
            epoch: Epoch(1),
            master,
        },
    }
}

fn picture(shard: &FileShard, found: &Found) -> Shard {
    Shard {
        id: shard.id.clone(),
        epoch: found.epoch,
        phase: if found.master.is_some() {
            Phase::Serving
        } else {
            Phase::Electing
        },
        master: found.master.as_ref().map(unproven_master),
        nodes: shard.nodes.iter().map(unproven_node).collect(),
        ack_replicas: 0,
        switch: None,
        executor: None,
    }
}

fn complaint(shard: &ShardId, finding: &Finding, heard: &[(Addr, Role)]) -> Option<String> {
    match finding {
        Finding::Master(_) => None,
        Finding::Several(masters) => {
            let masters: Vec<String> = masters.iter().map(Addr::to_string).collect();
            let masters = masters.join(" and ");
            Some(format!(
                "shard {shard}: {masters} all say that they are the master; none is taken until one is left"
            ))
        }
        Finding::Nobody => {
            let heard: Vec<String> = heard.iter().map(|(addr, role)| format!("{addr}: {role:?}")).collect();
            Some(format!(
                "shard {shard}: no node says that it is the master ({})",
                heard.join(", ")
            ))
        }
    }
}

async fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = tokio::fs::metadata(path).await?;
    Ok((metadata.modified().ok(), metadata.len()))
}

/// The stamp is taken first: a change in between shows at the next look.
async fn read(path: &Path) -> Result<(Stamp, TopologyFile), SourceError> {
    let unreadable = |error| SourceError::Unreadable(path.to_owned(), error);
    let stamp = stamp(path).await.map_err(unreadable)?;
    let text = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
    let file = TopologyFile::parse(&text, &path.display().to_string())?;
    Ok((stamp, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_grows_with_each_change_of_master_also_to_none() {
        let (a, b) = (Addr::new("a", 1), Addr::new("b", 1));
        let mut found = advance(None, Finding::Nobody);
        let mut epochs = vec![found.epoch.0];
        for finding in [
            Finding::Master(a.clone()),
            Finding::Master(a.clone()),
            Finding::Several(vec![a, b.clone()]),
            Finding::Nobody,
            Finding::Master(b),
        ] {
            found = advance(Some(&found), finding);
            epochs.push(found.epoch.0);
        }
        assert_eq!(epochs, [1, 2, 2, 3, 3, 4]);
    }
}
