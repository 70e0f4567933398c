//! Configuration files: raw, then checked.
//!
//! ```text
//! file --toml--> ProxyFile | AgentFile --flags laid over it--> check() --> Proxy | Agent
//!           \--> topology::codec::TopologyFile
//! ```
//!
//! Owns: what a file may say, its defaults and limits, the secret's file. Refuses: unknown keys, values out of range,
//! files of another kind, and acting on any of it. Invariant: a checked type holds no nonsense; each refusal is one
//! sentence that names file, line, key and remedy.

mod agent;
mod document;
mod error;
mod proxy;
mod secret;
mod users;
mod value;

pub use agent::{Agent, AgentFile, OnStop, OnStopError, Password, TimingsFile};
pub use document::{Document, File, Kind, agent_toml, proxy_toml};
pub use error::{ConfigError, Problem};
pub use proxy::{Listener, Proxy, ProxyFile, ReadPolicy, Source, StaleReads, ZooKeeper};
pub use secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, read_secret, read_user_and_password};
pub use users::Users;
pub use value::{Ensemble, EnsembleError, Name};
