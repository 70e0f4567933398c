//! What a proxy is started with.

use std::time::Duration;

use crate::route::ReadPolicy;
use crate::topology::Addr;

/// The settings of one proxy, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: Vec<Addr>,
    /// Where the admin pages are.
    pub admin: Option<Addr>,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// The master.
    pub master: Addr,
    /// Its replicas.
    pub replicas: Vec<Addr>,
    /// Where reads may go.
    pub reads: ReadPolicy,
    /// How old the newest sample that a replica has passed may be, in milliseconds.
    pub max_lag_ms: u64,
    /// How long a command waits for a master before it is refused, in milliseconds.
    pub hold_max_ms: u64,
    /// How long opening a backend connection may take.
    pub connect_timeout: Duration,
    /// Clients at once.
    pub clients_max: usize,
}

impl Settings {
    /// The defaults of design §12 for one listener and one master.
    pub fn new(listen: Vec<Addr>, master: Addr) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            listen,
            admin: None,
            workers: (cores / 2).clamp(1, 4),
            master,
            replicas: Vec::new(),
            reads: ReadPolicy::Master,
            max_lag_ms: 1000,
            hold_max_ms: 5000,
            connect_timeout: Duration::from_millis(1000),
            clients_max: 10_000,
        }
    }
}
