//! The failover protocol under a model checker: every order in which its parties can step, within bounds.
//!
//! What is explored is an abstract model of the protocol, small enough to be exhausted, each of whose rules can be switched
//! off. The real machine is explored, with tighter bounds, by `agent::machine::check`; the two share their invariants.
//!
//! - `state`: three Redis nodes (life, log of write ids, replid/replid2, whom they follow with which credential, whose
//!   proxies they admit) with the agents beside them; the shard's znode, written by compare-and-set only; two executors
//!   at once, each of which may stop at any step for ever or go on when it is long obsolete; published snapshots of any
//!   age, as proxies may use them; writes and their acknowledgements.
//! - `steps`, `executor`: what each party may do next. Every step may be delayed for ever, so that partitions, lost
//!   answers, hangs and deaths of executors need no steps of their own; a claim is possible in every state, so false
//!   suspicion needs none either. A lost outcome of a compare-and-set is an executor that stops after it.
//! - `rules`: the switches, and the bounds of a run. `protocol`: the invariants.
//! - `breaks`: each rule switched off must break an invariant, and with it on the same bounds must hold.
//! - `holds`: what holds with all rules on, exhausted.
//!
//! Not in it: time, half-done full synchronisations, PINGs and expiry in offsets, chains of replicas, reads, the last resort
//! of W = 0. A step of an executor and its agent is one: a command that overtakes an answer is explored with the real
//! machine only.
//!
//! How to read a counterexample: each line is a step, in order. `executor: 0` is the newest one; nodes are 0 (the first
//! master), 1 and 2. `Write { epoch }` is a write through the snapshot of that epoch, `Obey` an agent that follows a
//! published state on its own.

mod breaks;
mod executor;
mod holds;
mod protocol;
mod rules;
mod search;
mod state;
mod steps;
