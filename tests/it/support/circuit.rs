//! The smallest circuit: a Redis and a proxy with one worker before it.

use super::{Client, Pointsman, Redis, START_DEADLINE, eventually, free_port};

/// A Redis and a proxy before it. Each subject adds what it asks of one, in an `impl` block of its own.
pub struct Circuit {
    /// The master.
    pub redis: Redis,
    /// The proxy.
    pub proxy: Pointsman,
    /// Where the proxy listens.
    pub listen: String,
}

impl Circuit {
    /// Starts both, the Redis with these arguments.
    #[track_caller]
    pub fn start(redis_args: &[&str]) -> Self {
        let redis = Redis::start(redis_args);
        let addr = redis.addr();
        Self::before(redis, &addr)
    }

    /// Starts a proxy that reaches `redis` at `addr`.
    #[track_caller]
    pub fn before(redis: Redis, addr: &str) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut proxy = Pointsman::start(&["proxy", "--listen", &listen, "--master", addr, "--workers", "1"]);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        Self { redis, proxy, listen }
    }

    /// Waits until Redis says that one client is blocked.
    #[track_caller]
    pub fn has_blocked_one(&self) {
        let blocked = || self.redis.command(&["INFO", "clients"]).text();
        eventually(START_DEADLINE, || blocked().contains("blocked_clients:1"));
    }

    /// A new client of the proxy.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }
}
