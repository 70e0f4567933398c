//! Scripts, loaded ahead where a node may lack them (rule B5): EVALSHA finds on a new master, and on a replica that
//! reads go to, what EVAL or SCRIPT LOAD brought to another node.
//!
//! ```text
//! EVAL --lane--> master --reply that is no error--> ScriptReply --learn--> Library --changes--> loader: SCRIPT LOAD
//! SCRIPT LOAD --everynode--> all nodes --master's OK--> learn ------------^  |                  on every other node
//! worker: Shelf (no lock on a hit) <---- how widely a script is known -------'
//! ```
//! Owns: which scripts are known, and which life of a node has them. Refuses: curing a NOSCRIPT by sending again
//! (rule A3): what still comes is the client's. Invariants: only what ran, or what a client could load, is loaded; a
//! replica is asked to run only what all replicas have; after a SCRIPT FLUSH through us nothing from before it is
//! loaded again.

mod library;
mod link;
mod loader;
mod reply;
mod shelf;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{RwLock, RwLockWriteGuard, watch};
use tokio::time::timeout;
use tracing::{debug, info};

pub use library::{BODY_BYTES_MAX, Origin};
pub use loader::load;
pub use reply::ScriptReply;
pub use shelf::{Known, Shelf};

use crate::topology::{Addr, RunId};
use library::{Digest, Library, Number};

/// How long a master that lacks scripts may be kept from taking commands.
const BEFORE_SERVING_MAX: Duration = Duration::from_millis(250);
/// How long a SCRIPT FLUSH waits for scripts that are being loaded.
const FLUSH_WAIT_MAX: Duration = Duration::from_millis(2500);

/// What all workers and the loader share.
#[derive(Debug)]
pub struct Scripts {
    library: Mutex<Library>,
    /// Grows when something may be on a shelf that is no longer in the library.
    generation: AtomicU64,
    /// Grows with each digest that comes or goes.
    digests_version: AtomicU64,
    /// All replicas have the bodies up to this number.
    everywhere: AtomicU64,
    /// The library takes nothing more from EVAL.
    closed: AtomicBool,
    /// While a flush is under way: what has a number up to this one may be gone.
    stale: AtomicU64,
    /// Held while scripts are loaded, and wholly by a flush: nothing that it removes may be loaded right behind it.
    loading: RwLock<()>,
    /// Grows with each change of what is known.
    changes: watch::Sender<u64>,
}

/// A SCRIPT FLUSH under way.
#[derive(Debug)]
pub struct Flush<'s> {
    scripts: &'s Scripts,
    up_to: Number,
    _loading: Option<RwLockWriteGuard<'s, ()>>,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            library: Mutex::default(),
            generation: AtomicU64::new(1),
            digests_version: AtomicU64::new(1),
            everywhere: AtomicU64::default(),
            closed: AtomicBool::default(),
            stale: AtomicU64::default(),
            loading: RwLock::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Scripts {
    /// Learns a script.
    pub fn learn(&self, body: &Arc<[u8]>, origin: Origin) {
        let evicts = self.change(|library| {
            let evicts = library.learn(body, origin, Number(self.stale.load(Ordering::Relaxed)));
            if library.is_closed() && !self.closed.swap(true, Ordering::Relaxed) {
                info!(
                    "clients make their scripts anew each time: from now on only those of SCRIPT LOAD are loaded ahead"
                );
            }
            evicts
        });
        if evicts {
            self.shelves_are_stale();
        }
    }

    /// Learns a script that a server gave this digest, in lower case.
    pub fn learn_loaded(&self, body: &Arc<[u8]>, digest: &[u8]) {
        self.learn(body, Origin::Loaded);
        if let Ok(digest) = Digest::try_from(digest) {
            self.change(|library| library.is_called(body, digest));
        }
    }

    /// The body of a script, if it is known by its digest.
    pub fn body_of(&self, digest: &[u8]) -> Option<Arc<[u8]>> {
        let mut digest = Digest::try_from(digest).ok()?;
        digest.make_ascii_lowercase();
        self.library().body_of(&digest).cloned()
    }

    /// Keeps a master from taking commands until it has all scripts that are known, for a bounded time. Costs nothing
    /// if it has them: a node that was a replica has got them before.
    pub async fn before_serving(&self, addr: &Addr, life: Option<&RunId>) {
        let Some(life) = life else { return };
        let mut changes = self.changes.subscribe();
        self.change(|library| library.lives(addr, life));
        if !self.library().lacks_something(addr) {
            return;
        }
        let loaded = timeout(
            BEFORE_SERVING_MAX,
            changes.wait_for(|_| !self.library().lacks_something(addr)),
        );
        if loaded.await.is_err() {
            debug!(node = %addr, "the master serves before it has all scripts");
        }
    }

    /// Begins a flush: waits until nothing is being loaded, and lets nothing be loaded until it ends.
    pub async fn flush(&self) -> Flush<'_> {
        let loading = timeout(FLUSH_WAIT_MAX, self.loading.write()).await.ok();
        let up_to = self.library().last();
        self.stale.store(up_to.0, Ordering::Relaxed);
        self.shelves_are_stale();
        Flush {
            scripts: self,
            up_to,
            _loading: loading,
        }
    }

    fn library(&self) -> MutexGuard<'_, Library> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the library, and tells everybody who follows it.
    fn change<T>(&self, change: impl FnOnce(&mut Library) -> T) -> T {
        let mut library = self.library();
        let done = change(&mut library);
        self.everywhere.store(library.everywhere().0, Ordering::Release);
        drop(library);
        self.changes.send_modify(|changes| *changes += 1);
        done
    }

    fn shelves_are_stale(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.digests_have_changed();
    }

    fn digests_have_changed(&self) {
        self.digests_version.fetch_add(1, Ordering::AcqRel);
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn digests_version(&self) -> u64 {
        self.digests_version.load(Ordering::Acquire)
    }

    fn digests(&self) -> HashMap<Digest, Number, RandomState> {
        self.library().digests().collect()
    }

    fn widely(&self, number: Number) -> Known {
        if number.0 <= self.everywhere.load(Ordering::Acquire) {
            Known::Everywhere
        } else {
            Known::Somewhere
        }
    }

    /// A body's number; an error says how widely it is known without one.
    fn number_of(&self, body: &[u8]) -> Result<(Number, Arc<[u8]>), Known> {
        let library = self.library();
        match library.number_of(body) {
            Some((number, body)) if number.0 > self.stale.load(Ordering::Relaxed) => Ok((number, body.clone())),
            None if library.is_closed() => Err(Known::Ignored),
            Some(_) | None => Err(Known::Not),
        }
    }
}

impl Flush<'_> {
    /// The master has done it.
    pub fn done(self) {
        self.scripts.change(|library| library.flush(self.up_to));
        self.scripts.closed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        self.scripts.stale.store(0, Ordering::Relaxed);
        self.scripts.shelves_are_stale();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(scripts: &Arc<Scripts>, body: &str, reply: &[u8]) {
        let mut listening = ScriptReply::new(scripts, body.as_bytes(), Some(&"m".into()));
        reply.chunks(1).for_each(|byte| listening.hear(byte));
    }

    #[test]
    fn a_script_is_learnt_from_a_reply_that_is_no_error() {
        let (scripts, mut shelf) = (Arc::new(Scripts::default()), Shelf::default());
        ran(
            &scripts,
            "return 1",
            b"-NOPERM this user has no permissions to run the 'eval' command\r\n",
        );
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Not);
        ran(&scripts, "return 1", b":1\r\n");
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Everywhere);
        let replica = Addr::new("127.0.0.1", 2);
        scripts.change(|library| library.follow(&replica, true));
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Somewhere);
        assert_eq!(shelf.digest(&scripts, &[b'A'; 40]), Known::Ignored);
        scripts.change(|library| {
            library.lives(&replica, &"r".into());
            library.has(&replica, &"r".into(), Number(1), [b'a'; 40]);
        });
        scripts.digests_have_changed();
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Everywhere);
        assert_eq!(shelf.digest(&scripts, &[b'A'; 40]), Known::Everywhere);
        assert_eq!(shelf.digest(&scripts, b"abc"), Known::Ignored);
    }

    #[tokio::test]
    async fn a_flush_that_failed_forgets_nothing_and_one_that_was_done_everything() {
        let (scripts, mut shelf) = (Arc::new(Scripts::default()), Shelf::default());
        ran(&scripts, "return 1", b":1\r\n");
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Everywhere);
        let flush = scripts.flush().await;
        // It may be gone by now: if it runs again it is known again.
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Not);
        drop(flush);
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Everywhere);
        let flush = scripts.flush().await;
        ran(&scripts, "return 2", b":2\r\n");
        flush.done();
        assert_eq!(shelf.body(&scripts, b"return 1"), Known::Not);
        assert_eq!(shelf.body(&scripts, b"return 2"), Known::Everywhere);
    }
}
