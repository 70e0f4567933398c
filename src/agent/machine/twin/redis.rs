//! A simulated Redis: as much of replication as the rules reason about.
//!
//! Owns: roles, replication ids with `replid2`, a log of write ids in place of a data set, partial and full
//! resynchronisation by Redis' rule, the per-epoch feeding credential, loss of memory by a kill.

use crate::agent::machine::facts::{Facts, PARKED_AT, Role};
use crate::agent::machine::obedience::{Ask, Mark};
use crate::topology::{Addr, Epoch, NodeId, RunId};

/// One life of one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    pub run_id: RunId,
    pub role: Role,
    pub replid: String,
    pub replid2: String,
    pub second: i64,
    /// Ids of writes; 0 stands for a PING or expiry that is nobody's write.
    pub log: Vec<u64>,
    pub follows: Option<Addr>,
    pub linked: bool,
    /// Steps until a full synchronisation is through.
    pub syncing: u32,
    pub epoch: Epoch,
    /// Whether it keeps a backlog: a master without one renames its stream for its first replica.
    pub backlog: bool,
    /// The epoch whose credential this node accepts from replicas.
    pub feeds: Option<Epoch>,
    pub priority: u32,
}

/// A Redis over its lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SimRedis {
    pub node: NodeId,
    pub addr: Addr,
    pub life: Option<Life>,
    pub frozen: bool,
    /// The operator's preference.
    pub priority: u32,
    /// Who holds the working connection in place of its own agent.
    pub deputy: Option<(NodeId, u32)>,
    lives: u32,
    streams: u32,
}

impl SimRedis {
    pub fn new(node: &NodeId, port: u16) -> Self {
        let mut redis = Self {
            node: node.clone(),
            addr: Addr::new("127.0.0.1", port),
            life: None,
            frozen: false,
            priority: 100,
            deputy: None,
            lives: 0,
            streams: 0,
        };
        redis.start(Vec::new(), None);
        redis
    }

    /// Starts parked, with what it found on disk.
    pub fn start(&mut self, log: Vec<u64>, stream: Option<String>) {
        self.lives += 1;
        let fresh = self.fresh_stream();
        self.frozen = false;
        self.deputy = None;
        self.life = Some(Life {
            run_id: RunId::new(format!("{}-{}", self.node, self.lives)),
            role: Role::Replica,
            replid: stream.unwrap_or(fresh),
            replid2: String::new(),
            second: -1,
            log,
            follows: PARKED_AT.parse().ok(),
            linked: false,
            syncing: 0,
            epoch: Epoch(0),
            backlog: false,
            feeds: None,
            priority: self.priority,
        });
    }

    pub fn fresh_stream(&mut self) -> String {
        self.streams += 1;
        format!("stream-{}-{}", self.node, self.streams)
    }

    pub fn up(&self) -> Option<&Life> {
        self.life.as_ref().filter(|_| !self.frozen)
    }

    /// A replica asks for the stream: a backlog is made, and with it a new name, if there was none.
    pub fn make_backlog(&mut self) {
        if self.life.as_ref().is_none_or(|life| life.backlog) {
            return;
        }
        let fresh = self.fresh_stream();
        if let Some(life) = &mut self.life {
            life.backlog = true;
            life.replid = fresh;
            life.replid2 = String::new();
            life.second = -1;
        }
    }

    /// Carries a command out, as the agent's MULTI would.
    pub fn act(&mut self, ask: &Ask) -> Result<Box<Facts>, String> {
        let fresh = match ask {
            Ask::Promote { .. } => self.fresh_stream(),
            Ask::Park { .. } | Ask::Fence { .. } | Ask::Reach { .. } | Ask::Renew { .. } | Ask::Follow { .. } => {
                String::new()
            }
        };
        let Some(life) = self.life.as_mut().filter(|_| !self.frozen) else {
            return Err("no answer".into());
        };
        let syncing = life.syncing > 0;
        match ask {
            Ask::Park { epoch } => {
                life.role = Role::Replica;
                life.follows = PARKED_AT.parse().ok();
                life.linked = false;
                life.syncing = 0;
                life.epoch = *epoch;
                life.feeds = None;
            }
            // The replicas keep their links: what they are fed with stays.
            Ask::Fence { epoch, run_id } => {
                if life.run_id != *run_id {
                    return Err("another life".into());
                }
                life.role = Role::Replica;
                life.follows = PARKED_AT.parse().ok();
                life.linked = false;
                life.syncing = 0;
                life.epoch = *epoch;
            }
            Ask::Reach { .. } => {}
            Ask::Promote { epoch, run_id, mark } => {
                if life.run_id != *run_id {
                    return Err("another life".into());
                }
                let short = mark.as_ref().is_some_and(|mark| !life.has_reached(mark));
                let role = life.role;
                if role == Role::Replica {
                    life.replid2 = std::mem::replace(&mut life.replid, fresh);
                    life.second = life.offset() + 1;
                }
                life.role = Role::Master;
                life.follows = None;
                life.epoch = *epoch;
                life.feeds = Some(*epoch);
                // Redis is told before it is known.
                if short {
                    return Err("it had not reached the mark".into());
                }
            }
            Ask::Renew { epoch, run_id } => {
                if life.run_id != *run_id {
                    return Err("another life".into());
                }
                if life.role != Role::Master {
                    return Err("it is no master".into());
                }
                life.epoch = *epoch;
                life.feeds = Some(*epoch);
            }
            Ask::Follow { epoch, addr, .. } => {
                if life.follows.as_ref() != Some(addr) {
                    life.linked = false;
                }
                life.role = Role::Replica;
                life.follows = Some(addr.clone());
                life.epoch = *epoch;
                life.feeds = Some(*epoch);
            }
        }
        let mut facts = life.facts();
        facts.syncing |= syncing && matches!(ask, Ask::Park { .. });
        Ok(Box::new(facts))
    }
}

impl Life {
    pub fn offset(&self) -> i64 {
        i64::try_from(self.log.len()).unwrap() + 10
    }

    pub fn has_reached(&self, mark: &Mark) -> bool {
        let (stream, offset) = match self.role {
            Role::Replica => (&self.replid, self.offset()),
            Role::Master => (&self.replid2, self.second - 1),
        };
        *stream == mark.replid && offset >= mark.offset && self.syncing == 0
    }

    pub fn facts(&self) -> Facts {
        Facts {
            run_id: self.run_id.clone(),
            role: self.role,
            replid: self.replid.clone(),
            replid2: self.replid2.clone(),
            second_offset: self.second,
            offset: self.offset(),
            follows: self.follows.clone(),
            link_up: self.linked,
            syncing: self.syncing > 0,
            loading: false,
            keys: u64::from(self.log.iter().any(|id| *id != 0)),
            epoch: self.epoch,
            dirty: false,
            priority: self.priority,
            replicas: 0,
        }
    }

    /// Whether a recent write is in its data set.
    pub fn holds(&self, id: u64) -> bool {
        self.log.iter().rev().take(400).any(|known| *known == id)
    }

    /// The link to its master broke.
    pub fn cut(&mut self) {
        self.linked = false;
        self.syncing = 0;
    }

    /// One step of replication from `master`; `reach` is how many writes it may take over at most.
    pub fn replicate(&mut self, master: &Life, reach: usize) {
        // A fenced master goes on feeding those who were linked, and nobody else; a replica feeds while it is linked itself.
        let flows = master.role == Role::Master || master.linked || self.linked;
        let renamed = self.linked && master.role == Role::Replica && master.replid != self.replid;
        if !flows || renamed || master.syncing > 0 || master.feeds != Some(self.epoch) {
            self.linked = false;
            self.syncing = 0;
            return;
        }
        if !self.linked {
            return self.synchronise(master);
        }
        let from = self.log.len().min(master.log.len());
        let to = (from + reach).min(master.log.len());
        self.log.extend_from_slice(&master.log[from..to]);
    }

    /// Whether it is given the rest of the stream only: it names the master's stream, or the one that left.
    pub fn resumes(&self, master: &Life) -> bool {
        let same = self.replid == master.replid && self.offset() <= master.offset();
        same || self.branches(master)
    }

    fn branches(&self, master: &Life) -> bool {
        self.replid == master.replid2 && self.offset() < master.second
    }

    fn synchronise(&mut self, master: &Life) {
        let branch = self.branches(master);
        if self.syncing == 0 && !self.resumes(master) {
            // The old data is dropped while the old name of the stream stays.
            self.log.clear();
            self.syncing = 5;
            return;
        }
        if self.syncing > 1 {
            self.syncing -= 1;
            return;
        }
        if self.syncing == 1 {
            self.log = master.log.clone();
            self.replid2 = String::new();
            self.second = -1;
        } else if branch {
            self.replid2 = std::mem::replace(&mut self.replid, master.replid.clone());
            self.second = self.offset() + 1;
        }
        self.syncing = 0;
        assert!(
            master.log.starts_with(&self.log),
            "I4: a partial resynchronisation over a foreign prefix"
        );
        self.replid = master.replid.clone();
        self.backlog = true;
        self.linked = true;
    }
}
