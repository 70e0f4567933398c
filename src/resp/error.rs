//! What is wrong with a client's bytes, in Redis' own words (`networking.c`).

use thiserror::Error;

/// A request that cannot be read. The client is told and the connection is closed, as Redis does.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// The line of `*` does not end.
    #[error("too big mbulk count string")]
    TooBigCountString,
    /// The line of `$` does not end.
    #[error("too big bulk count string")]
    TooBigBulkCountString,
    /// An inline request does not end.
    #[error("too big inline request")]
    TooBigInlineRequest,
    /// The number after `*` is none, or too large.
    #[error("invalid multibulk length")]
    InvalidMultibulkLength,
    /// The number after `$` is none, negative, or too large.
    #[error("invalid bulk length")]
    InvalidBulkLength,
    /// Too many arguments for a client that has not authenticated.
    #[error("unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// Too long an argument for a client that has not authenticated.
    #[error("unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// Something else where an argument's header should begin.
    #[error("expected '$', got '{}'", char::from(*.0))]
    ExpectedDollar(u8),
    /// Quotes that do not close in an inline request.
    #[error("unbalanced quotes in request")]
    UnbalancedQuotes,
    /// A request of more than 4 GiB.
    #[error("too big request")]
    TooBig,
}

impl ProtocolError {
    /// Appends the reply that Redis gives.
    pub fn put_reply(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"-ERR Protocol error: ");
        match self {
            // The byte as it is: Redis does not translate it.
            Self::ExpectedDollar(byte) => {
                out.extend_from_slice(b"expected '$', got '");
                out.push(if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte });
                out.push(b'\'');
            }
            other => out.extend_from_slice(other.to_string().as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
    }
}
