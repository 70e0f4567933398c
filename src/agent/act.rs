//! Doing to our own Redis what an executor asks: the MULTI blocks of park, fence, promote and follow.
//!
//! Owns: [`Actor`], the agent's working connection, and the internal ACL users `pm-agent` (this agent's
//! connections), `repl-<epoch>` (replicas, and who catches up behind one) and `px-<epoch>` (proxies, at the master and its replicas). Refuses:
//! deciding whether to obey.
//!
//! Invariants: each block begins by killing every other connection of an agent, so a command that got
//! stuck in an older one is discarded instead of running later (rule R9); each leaves the epoch in
//! `masteruser`, where it lives exactly as long as the memory it protects; commands are sent only after the
//! login was answered, so a stuck connection always is one that the kill can name. The connection is kept
//! open and logged in: a park written to a Redis that is stopped is the first thing it does when it goes on.

use std::time::Duration;

use redis_protocol::resp2::types::BytesFrame;

use crate::peer;
use crate::topology::{Addr, Epoch, RunId, ShardId};

use super::glance::{Glance, look_until};
use super::info;
use super::machine::facts::{Facts, PARKED_AT, Role};
use super::machine::obedience::{Ask, Mark};
use super::redis::{Connection, Login, RedisError, text, texts};
use super::seam::Claim;

/// How long one block may take.
const BLOCK_LIMIT: Duration = Duration::from_millis(400);
/// The user of every agent's working connection.
const AGENT_USER: &str = "pm-agent";

/// Carries commands out on one Redis.
#[derive(Debug)]
pub struct Actor {
    addr: Addr,
    shard: ShardId,
    login: Login,
    secret: Vec<u8>,
    /// Password of `pm-agent`, drawn anew for each life of an agent.
    password: String,
    warm: Option<Warm>,
    /// Which lives it may work on; none: any.
    claim: Option<Claim>,
    /// The epoch and the life of the master that this Redis was told to follow last.
    followed: Option<(Epoch, RunId)>,
}

/// A connection that is logged in as `pm-agent`, and the life at its other end.
#[derive(Debug)]
struct Warm {
    connection: Connection,
    run_id: RunId,
    /// The internal users there; nobody else makes any, so a block needs no question before it.
    users: Vec<String>,
}

impl Actor {
    /// An actor for the Redis at `addr`. `secret` is the cluster's; `password` must differ in each life.
    pub fn new(addr: Addr, shard: ShardId, login: Login, secret: Vec<u8>, password: String) -> Self {
        Self {
            addr,
            shard,
            login,
            secret,
            password,
            warm: None,
            claim: None,
            followed: None,
        }
    }

    /// One that touches no life that is not granted.
    pub fn with_claim(self, claim: Claim) -> Self {
        Self {
            claim: Some(claim),
            ..self
        }
    }

    /// Opens the working connection ahead of need.
    pub async fn warm_up(&mut self) -> Result<(), RedisError> {
        if self.warm.is_none() {
            self.warm = Some(self.open().await?);
        }
        Ok(())
    }

    /// Waits until the working connection ends, if there is one. May be dropped and called again.
    pub async fn cooled(&mut self) {
        if let Some(warm) = &mut self.warm {
            warm.connection.ended().await;
            self.warm = None;
        }
    }

    /// Carries `ask` out and reads what Redis says then. Never sends it twice: a connection that breaks may
    /// have been killed by a newer command, which an old one repeated would undo.
    pub async fn act(&mut self, ask: &Ask) -> Result<Facts, RedisError> {
        let warm = match self.warm.take() {
            Some(warm) => warm,
            None => self.open().await?,
        };
        self.act_on(warm, ask).await
    }

    /// The same over the connection of the last success only: whoever parked this Redis since has ended it, and what was
    /// to follow an older park must not come after that.
    pub async fn go_on(&mut self, ask: &Ask) -> Result<Facts, RedisError> {
        match self.warm.take() {
            Some(warm) => self.act_on(warm, ask).await,
            None => Err(RedisError::Lost("it ended after the park".to_owned())),
        }
    }

    async fn act_on(&mut self, mut warm: Warm, ask: &Ask) -> Result<Facts, RedisError> {
        if let Ask::Promote { run_id, .. } | Ask::Fence { run_id, .. } | Ask::Renew { run_id, .. } = ask
            && warm.run_id != *run_id
        {
            return Err(RedisError::Says(
                "another process answers than the one that was meant".to_owned(),
            ));
        }
        let facts = match ask {
            Ask::Park { epoch } => self.park(&mut warm, *epoch).await?,
            Ask::Fence { epoch, .. } => self.fence(&mut warm, *epoch).await?,
            Ask::Reach { mark, .. } => await_mark(&mut warm, mark.as_ref()).await?,
            Ask::Promote { epoch, mark, .. } => self.promote(&mut warm, *epoch, mark.as_ref()).await?,
            Ask::Renew { epoch, .. } => self.renew(&mut warm, *epoch).await?,
            Ask::Follow {
                epoch,
                addr,
                run_id,
                fence,
                ..
            } => {
                self.followed = Some((*epoch, run_id.clone()));
                self.follow(&mut warm, *epoch, addr, run_id).await?;
                await_link(&mut warm, *fence).await?
            }
        };
        self.warm = Some(warm);
        Ok(facts)
    }

    async fn park(&self, warm: &mut Warm, epoch: Epoch) -> Result<Facts, RedisError> {
        let users = std::mem::take(&mut warm.users);
        let block = Block::new(&users);
        self.halt(warm, epoch, block).await
    }

    /// As a park, but the replicas' user stays, and with it their links: what is still on its way to them arrives
    /// (rule R8; before Redis 7 the `REPLICAOF` of a master cuts them all the same).
    async fn fence(&self, warm: &mut Warm, epoch: Epoch) -> Result<Facts, RedisError> {
        let users = std::mem::take(&mut warm.users).into_iter();
        let (kept, gone): (Vec<_>, Vec<_>) = users.partition(|user| peer::role_of(user) == Some(peer::Role::Replica));
        warm.users = kept;
        let block = Block::new(&gone);
        self.halt(warm, epoch, block).await
    }

    async fn halt(&self, warm: &mut Warm, epoch: Epoch, mut block: Block) -> Result<Facts, RedisError> {
        block.push(&["INFO"]);
        block.carry(epoch, "");
        let (host, port) = PARKED_AT.split_once(':').unwrap_or(("127.0.0.1", "1"));
        block.push(&["REPLICAOF", host, port]);
        block.push(&["INFO"]);
        let replies = block.run(warm).await?;
        let (before, mut after) = readings(&replies)?;
        // The park ended a synchronisation under way; what it left is not whole.
        after.syncing |= before.syncing;
        after.epoch = epoch;
        Ok(after)
    }

    /// Makes it the master. The node was parked, or has reached `mark`; then what the block itself reads decides.
    async fn promote(&self, warm: &mut Warm, epoch: Epoch, mark: Option<&Mark>) -> Result<Facts, RedisError> {
        let (before, after) = self.enthrone(warm, epoch, &["REPLICAOF", "NO", "ONE"]).await?;
        match mark {
            Some(mark) if !has_reached(&before, mark) => Err(RedisError::Says(format!(
                "promoted at {} of stream {}, where {} of {} was wanted",
                before.offset, before.replid, mark.offset, mark.replid
            ))),
            Some(_) | None => Ok(after),
        }
    }

    /// It is the master and stays it: those of the old epoch lose their users and with them their connections (rule R5).
    async fn renew(&self, warm: &mut Warm, epoch: Epoch) -> Result<Facts, RedisError> {
        let (before, after) = self.enthrone(warm, epoch, &[]).await?;
        match before.role {
            Role::Master => Ok(after),
            Role::Replica => Err(RedisError::Says("it is no master".to_owned())),
        }
    }

    /// The users of an epoch at its master, in place of all others', and what makes it one. Read before and after.
    async fn enthrone(&self, warm: &mut Warm, epoch: Epoch, command: &[&str]) -> Result<(Facts, Facts), RedisError> {
        let replicas = peer::name(peer::Role::Replica, epoch);
        let proxies = peer::name(peer::Role::Proxy, epoch);
        let token = self.token(peer::Role::Replica, epoch, &warm.run_id);
        // A user that is made anew loses its connections, those of this epoch do not.
        let keep = [&replicas, &proxies];
        let gone = std::mem::take(&mut warm.users);
        let gone: Vec<String> = gone.into_iter().filter(|user| !keep.contains(&user)).collect();
        let mut block = Block::new(&gone);
        block.push(&["INFO"]);
        block.admit_replicas(&replicas, &token);
        block.admit_proxies(&proxies, &self.token(peer::Role::Proxy, epoch, &warm.run_id));
        block.carry(epoch, &token);
        if !command.is_empty() {
            block.push(command);
        }
        block.push(&["INFO"]);
        let replies = block.run(warm).await?;
        warm.users = vec![replicas, proxies];
        let (before, mut after) = readings(&replies)?;
        after.epoch = epoch;
        Ok((before, after))
    }

    async fn follow(&self, warm: &mut Warm, epoch: Epoch, addr: &Addr, run_id: &RunId) -> Result<(), RedisError> {
        let proxies = peer::name(peer::Role::Proxy, epoch);
        let replicas = peer::name(peer::Role::Replica, epoch);
        let token = self.token(peer::Role::Replica, epoch, run_id);
        let mut gone = std::mem::take(&mut warm.users);
        gone.retain(|user| *user != proxies && *user != replicas);
        let mut block = Block::new(&gone);
        block.admit_proxies(&proxies, &self.token(peer::Role::Proxy, epoch, run_id));
        // Who is to join catches up behind a replica (rule R4).
        block.admit_replicas(&replicas, &token);
        block.carry(epoch, &token);
        // To whom it follows already Redis says OK and does nothing: with a new password it would try again a second later.
        let (host, port) = PARKED_AT.split_once(':').unwrap_or(("127.0.0.1", "1"));
        block.push(&["REPLICAOF", host, port]);
        block.push(&["REPLICAOF", addr.host(), &addr.port().to_string()]);
        block.run(warm).await?;
        warm.users = vec![proxies, replicas];
        Ok(())
    }

    /// What those of the epoch in which `master` was promoted log in with.
    fn token(&self, role: peer::Role, epoch: Epoch, master: &RunId) -> String {
        peer::token(&self.secret, role, &self.shard, epoch, master)
    }

    async fn open(&self) -> Result<Warm, RedisError> {
        let mut connection = Connection::open(&self.addr, &self.login, BLOCK_LIMIT).await?;
        if let Some(claim) = &self.claim
            && !claim.holds(&read(&mut connection).await?.run_id)
        {
            return Err(RedisError::Says(
                "it is not known yet whether another agent has it".to_owned(),
            ));
        }
        let password = format!(">{}", self.password);
        let create = [
            "ACL", "SETUSER", AGENT_USER, "reset", "on", &password, "~*", "&*", "+@all",
        ];
        connection.ask(&create, BLOCK_LIMIT).await?;
        connection
            .ask(&["AUTH", AGENT_USER, &self.password], BLOCK_LIMIT)
            .await?;
        let users = connection.ask(&["ACL", "USERS"], BLOCK_LIMIT).await?;
        let facts = read(&mut connection).await?;
        let mut warm = Warm {
            connection,
            run_id: facts.run_id.clone(),
            users: internal_users(&users),
        };
        self.mend(&mut warm, &facts).await?;
        Ok(warm)
    }

    /// Puts back what the epoch that this Redis serves in needs. A client's `ACL LOAD` removes what its file does not name, and
    /// our own user and connection with it, so that this is where it shows. What was fenced or parked is neither a master nor
    /// follows anybody, and gets nothing.
    async fn mend(&self, warm: &mut Warm, facts: &Facts) -> Result<(), RedisError> {
        let epoch = facts.epoch;
        let (replicas, proxies) = (
            peer::name(peer::Role::Replica, epoch),
            peer::name(peer::Role::Proxy, epoch),
        );
        let followed = self.followed.as_ref().filter(|(known, _)| *known == epoch);
        let life = match facts.role {
            Role::Master if epoch.0 > 0 => warm.run_id.clone(),
            Role::Replica if !facts.parked() => match followed {
                Some((_, life)) => life.clone(),
                None => return Ok(()),
            },
            Role::Master | Role::Replica => return Ok(()),
        };
        let mut block = Block::new(&[]);
        let mut lacking = Vec::new();
        if !warm.users.contains(&proxies) {
            block.admit_proxies(&proxies, &self.token(peer::Role::Proxy, epoch, &life));
            lacking.push(proxies);
        }
        if facts.role == Role::Master && !warm.users.contains(&replicas) {
            block.admit_replicas(&replicas, &self.token(peer::Role::Replica, epoch, &life));
            lacking.push(replicas);
        }
        if lacking.is_empty() {
            return Ok(());
        }
        block.run(warm).await?;
        tracing::warn!("somebody removed {} from redis: put back", lacking.join(", "));
        warm.users.extend(lacking);
        Ok(())
    }
}

/// A MULTI block under construction.
struct Block {
    commands: Vec<Vec<String>>,
}

impl Block {
    /// Begins with the fence: other agent connections are killed, internal users of other epochs go.
    fn new(old_users: &[String]) -> Self {
        let mut block = Self { commands: Vec::new() };
        block.push(&["MULTI"]);
        block.push(&["CLIENT", "KILL", "USER", AGENT_USER, "SKIPME", "yes"]);
        if !old_users.is_empty() {
            let names = old_users.iter().map(String::as_str);
            let command: Vec<&str> = ["ACL", "DELUSER"].into_iter().chain(names).collect();
            block.push(&command);
        }
        block
    }

    fn push(&mut self, command: &[&str]) {
        self.commands
            .push(command.iter().map(|part| (*part).to_owned()).collect());
    }

    /// The user that replicas log in as.
    fn admit_replicas(&mut self, user: &str, token: &str) {
        let password = format!(">{token}");
        let rights = ["reset", "on", &password, "+psync", "+replconf", "+ping"];
        let command: Vec<&str> = ["ACL", "SETUSER", user].into_iter().chain(rights).collect();
        self.push(&command);
    }

    /// The user that proves the epoch to proxies. It may read what tells of the server, and no key: what a client may do
    /// is up to the user that the proxy logs in as after it.
    fn admit_proxies(&mut self, user: &str, token: &str) {
        let password = format!(">{token}");
        // Redis 6.2 has WAIT and SELECT in @keyspace only.
        let rights = "&* +@connection +@pubsub +role +info +time +config|get +@blocking +wait +select +script +command";
        let mut command = vec!["ACL", "SETUSER", user, "reset", "on", &password];
        command.extend(rights.split(' '));
        self.push(&command);
    }

    /// The epoch's name, and the password for its master if this node is to have one.
    fn carry(&mut self, epoch: Epoch, token: &str) {
        self.push(&["CONFIG", "SET", "masteruser", &format!("repl-{epoch}")]);
        self.push(&["CONFIG", "SET", "masterauth", token]);
    }

    async fn run(mut self, warm: &mut Warm) -> Result<Vec<BytesFrame>, RedisError> {
        self.push(&["EXEC"]);
        let commands: Vec<Vec<&str>> = self
            .commands
            .iter()
            .map(|c| c.iter().map(String::as_str).collect())
            .collect();
        let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
        let mut replies = warm.connection.ask_all(&commands, BLOCK_LIMIT).await?;
        let Some(BytesFrame::Array(replies)) = replies.pop() else {
            return Err(RedisError::Unexpected("EXEC"));
        };
        let refusal = replies.iter().find_map(|reply| match reply {
            BytesFrame::Error(line) => Some(RedisError::Says(line.to_string())),
            BytesFrame::SimpleString(_)
            | BytesFrame::BulkString(_)
            | BytesFrame::Integer(_)
            | BytesFrame::Array(_)
            | BytesFrame::Null => None,
        });
        refusal.map_or(Ok(replies), Err)
    }
}

/// Internal users of any epoch: a master's replicas (`repl-`) and proxies (`px-`).
fn internal_users(users: &BytesFrame) -> Vec<String> {
    let ours = texts(users).into_iter().filter(|name| peer::role_of(name).is_some());
    ours.map(str::to_owned).collect()
}

/// The readings in a block: before what it does, and after.
fn readings(replies: &[BytesFrame]) -> Result<(Facts, Facts), RedisError> {
    let mut readings = replies
        .iter()
        .filter_map(text)
        .filter_map(|reply| info::facts(reply, ""));
    match (readings.next(), readings.next()) {
        (Some(before), Some(after)) => Ok((before, after)),
        (_, None) | (None, _) => Err(RedisError::Unexpected("INFO")),
    }
}

/// Whether a node has applied everything up to the mark, as a replica of that stream or promoted out of it.
fn has_reached(facts: &Facts, mark: &Mark) -> bool {
    let (stream, offset) = match facts.role {
        Role::Replica => (&facts.replid, facts.offset),
        Role::Master => (&facts.replid2, facts.second_offset - 1),
    };
    *stream == mark.replid && offset >= mark.offset && !facts.syncing && !facts.loading
}

/// One reading of a Redis, with the epoch it carries.
pub async fn read(connection: &mut Connection) -> Result<Facts, RedisError> {
    let replies = connection
        .ask_all(&[&["INFO"], &["CONFIG", "GET", "masteruser"]], BLOCK_LIMIT)
        .await?;
    let [info, setting] = replies.as_slice() else {
        return Err(RedisError::Unexpected("INFO"));
    };
    let setting = texts(setting).get(1).copied().unwrap_or("").to_owned();
    text(info)
        .and_then(|info| info::facts(info, &setting))
        .ok_or(RedisError::Unexpected("INFO"))
}

/// Looks until the link is up and `fence` is reached; the last look counts.
async fn await_link(warm: &mut Warm, fence: i64) -> Result<Facts, RedisError> {
    let hopeless = |glance: Glance| !glance.linked || glance.offset.is_some_and(|offset| offset < fence);
    let good = |facts: &Facts| facts.link_up && facts.offset >= fence;
    look_until(&mut warm.connection, hopeless, good).await
}

/// The same until the mark is reached; without one a single look.
async fn await_mark(warm: &mut Warm, mark: Option<&Mark>) -> Result<Facts, RedisError> {
    let Some(mark) = mark else {
        return read(&mut warm.connection).await;
    };
    let hopeless = |glance: Glance| glance.offset.is_some_and(|offset| offset < mark.offset);
    look_until(&mut warm.connection, hopeless, |facts| has_reached(facts, mark)).await
}
