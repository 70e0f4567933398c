//! How long the machine waits for what.

use std::time::Duration;

/// The agent's waiting times, and the one measure of lag. None of them is needed for safety: they trade the length of
/// an outage against needless elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// A Redis that answers nothing for this long hangs; a host that is silent for this long is gone.
    pub suspicion: Duration,
    /// Between two readings of a Redis, and two questions to another agent.
    pub probe: Duration,
    /// Another agent that is silent for this long does not answer for its Redis any more.
    pub agent_silence: Duration,
    /// Head start of each agent over the next in rank when a master is gone, so that one claims.
    pub stagger: Duration,
    /// How long enough parked members still wait for a better one.
    pub park_grace: Duration,
    /// How long a publication waits for replicas to prove themselves when none is needed (W = 0).
    pub prove: Duration,
    /// The same when W of them are needed for the next acknowledgement.
    pub prove_needed: Duration,
    /// After this long an unanswered command to an agent is given up.
    pub ask: Duration,
    /// Until a member that could not be parked is asked again.
    pub ask_again: Duration,
    /// After this long an election whose executor is not known to be alive is taken over.
    pub patience: Duration,
    /// After this long the last resort may choose among the members that answered.
    pub last_resort: Duration,
    /// After this long the first master is chosen although members are missing.
    pub founding: Duration,
    /// A gap between two wake-ups longer than this means that we were stopped, not the others.
    pub stall: Duration,
    /// How long a switchover waits for proxies to drain, and again for those who hear through them to move.
    pub drain_max: Duration,
    /// How long its target may take to catch up while clients wait; before the fence it is rolled back then.
    pub catch_up: Duration,
    /// A request whose target cannot take over yet is refused after this long.
    pub switch_wait: Duration,
    /// A switchover does not begin while its target lacks more than this many bytes.
    pub switch_lag_max_bytes: u64,
}

impl Default for Timings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            suspicion: ms(1000),
            probe: ms(100),
            agent_silence: ms(400),
            stagger: ms(20),
            park_grace: ms(30),
            prove: ms(10),
            prove_needed: ms(100),
            ask: ms(500),
            ask_again: ms(100),
            patience: ms(1000),
            last_resort: ms(10_000),
            founding: ms(5000),
            stall: ms(400),
            drain_max: ms(200),
            catch_up: ms(300),
            switch_wait: ms(2000),
            switch_lag_max_bytes: 64 * 1024 * 1024,
        }
    }
}
