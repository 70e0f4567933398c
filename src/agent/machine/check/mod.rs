//! The machine itself under a model checker: three of them, simulated servers, the store, in every order, within bounds.
//!
//! The abstract model of the protocol (`tests/model`) is exhausted with wide bounds and has each rule as a switch; this one
//! finds out whether the code follows the rules, whatever comes before whatever. It shares the twin world's servers
//! and invariants: I1 to I4, and L: from any state a fair schedule without further faults comes to serve.
//!
//! What is a step of its own: an agent looks around (its Redis, the master, the other agents), learns what the store
//! says, is stopped for longer than any of its waits; a question, an answer, a compare-and-set, a command to Redis
//! arrives, in any order; the outcome of a compare-and-set or an answer is lost; a replica takes over one write; a
//! client writes through a snapshot of any age, and is acknowledged; a Redis or an agent dies, hangs, comes back.
//!
//! Bounds, beside the budget of faults: only some agents look around, and only when that makes them act (so that not every
//! mixture of old views is explored); a question that is obeyed is carried out and, unless answers may be lost, answered at
//! once; time passes only by whole [`print::PASS`]es, which is a false suspicion, too, and stagger is zero, so that agents
//! duel; the third class of detection (a silent host) and proxies that tell of drains are left to the twin world; epochs
//! end at a limit, and so do the states that are looked at. `print` says which states are one.
//!
//! Rules are not switched off in the machine. Instead the world lies ([`Lie`]) about what the rule rests on, which must
//! be found. A counterexample is printed step by step with what the agents say; what matters of it belongs into a
//! twin run or a test of the part that failed, before it is repaired.

mod deliver;
mod model;
mod print;
mod runs;
mod schedule;
mod world;

/// What the world makes the machines believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Nothing.
    None,
    /// A park is answered as if it had been carried out (F2: park before promote).
    ParkNotDone,
    /// A fence is answered as if it had been carried out (R8).
    FenceNotDone,
    /// Acknowledgements are not waited for: W is 1 in the state, and 0 at the proxies.
    NoWait,
    /// A master that stays in a new epoch says that its users are new, and they are not (R5, ha-rules d6).
    RenewNotDone,
    /// What the operator wants is written over the state, without an epoch of its own (R5, ha-rules c1).
    PlainChange,
    /// A living master whose agent is gone is said to be parked, and is not.
    DeputyNotDone,
}
