//! The small protocol between agents and proxies, on the agent's own port.
//!
//! ```text
//!  client                                   server (the agent)
//!    HELLO 2 <agent|proxy> <id> <nonce> -->   *3 <nonce> <proof of the server> <version>
//!    AUTH <proof of the client>         -->   +OK          (or an error line, and the end)
//!    STATE | ASK <json> | RELAY <shard> <version> <state> | DRAINED <shard> <epoch> <course>
//!      | ATTACHED <shard> <epoch> <course> | WORD <shard>
//!      | REPORT <shard> <epoch> <json>  -->   one reply each, in order
//!                                       <--   at any time, without a reply: RELAY <shard> <version> <state>
//!                                             | ATTACH <shard> <epoch> <node> <addr> <run_id> <course>
//! ```
//!
//! Agents and proxies are upgraded apart. The server answers the lower of both versions; one of version 1 refuses every
//! other, so that the client comes again and says 1. Version 1 says no courses and takes no frame that it does not know;
//! from version 2 on, parts behind those that are known and news of an unknown kind are passed over, and an unknown
//! request gets an error line.
//!
//! Owns: RESP2 frames of at most [`FRAME_MAX`], the handshake, requests and replies. Refuses: what the requests
//! mean (an agent's machine decides) and Redis. Invariants: nothing but the handshake is understood before both
//! ends have proven that they know the cluster's secret, and each connection's proof is bound to the nonces of
//! that connection; every queue is bounded; of several relays only the newest is kept for a slow reader.

mod bulletin;
mod client;
mod credential;
mod frame;
mod message;
mod proof;
mod server;
mod version;

pub use bulletin::Bulletin;
pub use client::{Client, PeerError};
pub use credential::{Role, name, role_of, token};
pub use frame::Bounded;
pub use message::{Attach, Kind, News, Relayed, Report, Request, Word};
pub use server::{Inbound, serve};
pub use version::Version;

/// The longest frame either end accepts, in bytes.
pub const FRAME_MAX: usize = 256 * 1024;
/// How long a handshake may take.
pub const HANDSHAKE_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
