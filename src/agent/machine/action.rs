//! What the machine wants done, and what comes back.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::topology::codec::{ShardConfig, SwitchRequest};
use crate::topology::{Addr, Course, Epoch, NodeId, RunId};

use super::detector::{PeerSeen, Seen};
use super::facts::Facts;
use super::obedience::{Ask, Refusal};
use super::outcome::Outcome;
use super::state::{MasterOf, State, Versioned};
use super::switch::Target;

/// Names one question to another agent, so that its answer finds its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// Names one question of another agent to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names one piece of work on our own Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job(pub u64);

/// How loud a sentence is: `Warn` = someone should look, `Error` = someone must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A decision, as it should be.
    Info,
    /// Someone should look.
    Warn,
    /// Someone must look.
    Error,
}

/// The answer to an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// Carried out; this is what Redis says now.
    Done(Box<Facts>),
    /// Not carried out, by the rules of obedience.
    Refused(Refusal),
    /// Not carried out: the process of its Redis is gone.
    Gone,
    /// Not carried out, or not known to be: no agent, no Redis, no answer in time.
    Failed(String),
}

/// A registered node, as far as elections need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub node: NodeId,
    /// Where its Redis listens.
    pub addr: Addr,
}

/// Evidence for `/suspects`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Who says so.
    pub by: NodeId,
    /// Which master.
    pub master: NodeId,
    /// Which life of it.
    pub run_id: RunId,
    /// The agent beside the master says that it serves; the number tells one such word from the next.
    pub denial: Option<u64>,
}

/// What became of a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is written; this is the znode's version now.
    Done(i32),
    /// Somebody else wrote first.
    Conflict,
    /// The connection broke: it may or may not be written.
    Unknown,
}

/// What the machine wants done. Carried out in order; none of them blocks the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the state if the znode still has this version; `None`: create it. One at a time.
    Write {
        /// The condition.
        expect: Option<i32>,
        /// The new value.
        state: State,
    },
    /// Catch up with the ensemble (`sync`), then read the state.
    ReadState,
    /// Put or take back our evidence.
    Suspect(Option<Suspicion>),
    /// Ask the agent of another node.
    Ask {
        /// To be given back with the answer.
        id: AskId,
        /// Whose agent.
        node: NodeId,
        /// What.
        ask: Ask,
    },
    /// Carry this out on another node's Redis, whose agent is gone: a park over a fresh connection, anything else only over
    /// the one that parked. The answer is an [`Input::Answered`].
    Deputise {
        /// To be given back with the answer.
        id: AskId,
        /// Where that Redis listens.
        addr: Addr,
        /// What.
        ask: Ask,
    },
    /// Answer another agent.
    Answer {
        /// Which question.
        ticket: Ticket,
        /// The answer.
        reply: Reply,
    },
    /// Do this to our own Redis, giving up whatever was being done to it.
    Act {
        /// To be given back with the result.
        job: Job,
        /// What.
        ask: Ask,
    },
    /// Keep the highest epoch obeyed on disk.
    Remember(Epoch),
    /// Keep on disk what the data of our Redis has been called in this shard; all of it, the last one last.
    Keep(Vec<String>),
    /// Tell proxies and agents of a state that stands in ZooKeeper, faster than its watch does.
    Relay(Versioned),
    /// Tell proxies that those who hear are to move to this node, which will be the master of this epoch.
    Attach(Epoch, Course, Target),
    /// Write a history record; afterwards the request that it ends is deleted.
    Record(Box<Outcome>),
    /// Add to the history how much our Redis had that the master of this epoch did not, if it was master before.
    Lost {
        /// The published epoch.
        epoch: Epoch,
        /// Bytes of the stream.
        bytes: u64,
    },
    /// Log a sentence.
    Say(Level, String),
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The agent is to end once [`super::Machine::at_rest`].
    Leave,
    /// The store is connected, and this is what it says after a `sync` begun after that.
    Synced(Option<Versioned>),
    /// The store is away; nothing is known of it until the next `Synced`.
    StoreLost,
    /// A state came by watch, read or relay.
    State(Versioned),
    /// Who is registered.
    Nodes(Vec<Registered>),
    /// The evidence of all agents.
    Suspects(Vec<Suspicion>),
    /// What somebody wants done to the master, if anything.
    Wish(Option<SwitchRequest>),
    /// What the operator wants of the shard.
    Wanted(ShardConfig),
    /// The proxies that tell of drains.
    Proxies(BTreeSet<String>),
    /// A proxy has no write of an epoch below this one in flight; for which move, if it says so.
    Drained(String, Epoch, Option<Course>),
    /// Those who hear through a proxy hear the node that will be the master of this epoch.
    Attached(String, Epoch, Option<Course>),
    /// The outcome of the last [`Action::Write`].
    Written(Written),
    /// What the probe of our own Redis found.
    Own(Seen),
    /// What the probe of the published master found.
    Master(MasterOf, Seen),
    /// What became of asking another agent for its status.
    Peer(NodeId, PeerSeen),
    /// Another agent asks something of us.
    Asked(Ticket, Ask),
    /// The answer to an [`Action::Ask`].
    Answered(AskId, Reply),
    /// The result of an [`Action::Act`]: what Redis says after it.
    Acted(Job, Result<Box<Facts>, String>),
}
