//! How many clients this proxy has, for what INFO says of them: Redis counts connections, of which the proxy's are few.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The counts of all workers.
#[derive(Debug, Default)]
pub struct Census {
    connected: AtomicUsize,
    paused: AtomicUsize,
}

/// What a client is counted for as long as this lives.
#[derive(Debug)]
pub struct Counted {
    census: Arc<Census>,
    which: fn(&Census) -> &AtomicUsize,
}

impl Census {
    /// How many clients there are.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// How many of them wait for the end of a CLIENT PAUSE.
    pub fn paused(&self) -> usize {
        self.paused.load(Ordering::Relaxed)
    }

    /// A client comes.
    pub fn connects(self: &Arc<Self>) -> Counted {
        Counted::of(self, |census| &census.connected)
    }

    /// A client begins to wait for the end of a pause.
    pub fn pauses(self: &Arc<Self>) -> Counted {
        Counted::of(self, |census| &census.paused)
    }
}

impl Counted {
    fn of(census: &Arc<Census>, which: fn(&Census) -> &AtomicUsize) -> Self {
        which(census).fetch_add(1, Ordering::Relaxed);
        Self {
            census: census.clone(),
            which,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.census).fetch_sub(1, Ordering::Relaxed);
    }
}
