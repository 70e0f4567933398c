//! Why a client's connection ends. Each close is logged once, with one of these.

use std::fmt;

/// The reason of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client closed it.
    Left,
    /// QUIT.
    Quit,
    /// The connection failed.
    Network,
    /// The client sent what is no RESP; it was told so.
    Protocol,
    /// `POST` or `Host:`: a browser was tricked into talking to Redis; Redis closes such connections, too.
    CrossProtocol,
    /// CLIENT KILL, of its own or of another client.
    Killed,
    /// The client does not read its replies.
    SlowReader,
    /// Half of a reply was passed on when its backend was lost; nothing true can follow it.
    ReplyCutOff,
    /// Redis no longer lets the client be subscribed as it was.
    FeedRefused,
    /// A transaction on a subscriber's connection was lost with it.
    TransactionLost,
    /// The server that a copy was taken from ended it.
    CopyEnded,
    /// The backend was lost on which the client was told of keys that another one reads, or the other way round.
    RedirectLost,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "the client left",
            Self::Quit => "QUIT",
            Self::Network => "the connection failed",
            Self::Protocol => "protocol error",
            Self::CrossProtocol => "possible cross protocol scripting attack",
            Self::Killed => "CLIENT KILL",
            Self::SlowReader => "the client does not read its replies",
            Self::ReplyCutOff => "the backend was lost in the middle of a reply",
            Self::FeedRefused => "the master refuses the client's login or subscriptions",
            Self::CopyEnded => "the copy has ended",
            Self::TransactionLost => "the backend was lost in the middle of a subscriber's transaction",
            Self::RedirectLost => "the backend was lost that invalidations were redirected from or to",
        })
    }
}
