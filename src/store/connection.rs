//! Whether the store can be reached.

/// The connection as it is now. Each change counts up, so that none is overlooked by who looks late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing is known of the store. Next: `Up`.
    Away,
    /// Connected. Next: `Away`, or `Up` with a higher attachment if the time away was overlooked.
    Up {
        /// Counts sessions: in a new one our ephemerals are gone.
        session: u64,
        /// Counts connections: after each, changes may have been missed and everything is to be read again.
        attachment: u64,
    },
}
