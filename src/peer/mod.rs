//! The small protocol between agents and proxies, on the agent's own port.
//!
//! ```text
//!  client                                   server (the agent)
//!    HELLO 1 <agent|proxy> <id> <nonce> -->   *2 <nonce> <proof of the server>
//!    AUTH <proof of the client>         -->   +OK          (or an error line, and the end)
//!    STATE | ASK <json> | RELAY <shard> <version> <state> | DRAINED <shard> <epoch> | ATTACHED <shard> <epoch>
//!      | REPORT <shard> <epoch> <json>  -->   one reply each, in order
//!                                       <--   RELAY <shard> <version> <state>                    at any time: news, no
//!                                       <--   ATTACH <shard> <epoch> <node> <addr> <run_id>      reply
//! ```
//!
//! Owns: RESP2 frames of at most [`FRAME_MAX`], the handshake, requests and replies. Refuses: what the requests
//! mean (an agent's machine decides) and Redis. Invariants: nothing but the handshake is understood before both
//! ends have proven that they know the cluster's secret, and each connection's proof is bound to the nonces of
//! that connection; every queue is bounded; of several relays only the newest is kept for a slow reader.

mod client;
mod credential;
mod frame;
mod message;
mod proof;
mod server;

pub use client::{Client, PeerError};
pub use credential::{Role, name, role_of, token};
pub use message::{Attach, Kind, News, Relayed, Report, Request};
pub use server::{Inbound, serve};

/// The longest frame either end accepts, in bytes.
pub const FRAME_MAX: usize = 256 * 1024;
/// How long a handshake may take.
pub const HANDSHAKE_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
