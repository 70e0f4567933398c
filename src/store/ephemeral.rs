//! One ephemeral znode of ours, kept there whatever becomes of sessions.
//!
//! Owns: creating, updating, deleting it, and doing so again in each new session or after somebody deleted it.
//! Refuses: taking a znode that another session holds, unless its value shows that it is that of our own earlier
//! life.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::{Connection, Hint, Lifetime, Owner, Store, StoreError, Value, Watch};
use crate::clock;

/// Until what failed is tried again, and a znode that is taken is looked at again.
const AGAIN: Duration = Duration::from_millis(100);
/// The same after a refusal, which stays one until somebody changes something.
const REFUSED_AGAIN: Duration = Duration::from_secs(2);

/// Whether the znode is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As it should be: there with our value, or absent if there is to be none.
    Settled,
    /// Not yet, or not known.
    Unsettled,
    /// Another session holds it since we first looked.
    Taken(Instant),
}

/// See the module's note. Dropped, it is no longer kept; the session's end deletes it.
#[derive(Debug)]
pub struct Ephemeral {
    wanted: watch::Sender<Option<Vec<u8>>>,
    standing: watch::Receiver<Standing>,
    /// Ends with us before it does anything more.
    _keeping: AbortOnDropHandle<()>,
}

impl Ephemeral {
    /// Keeps the znode at `path`; there is none until [`Ephemeral::set`]. `ours` says whether a value that
    /// another session left is that of our own earlier life, which may be replaced at once.
    pub fn keep(store: &Store, path: String, ours: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        let (wanted, wishes) = watch::channel(None);
        let (tell, standing) = watch::channel(Standing::Unsettled);
        let worker = Worker {
            watch: store.watch(&path),
            connection: store.connection(),
            store: store.clone(),
            path,
            ours,
            wishes,
            tell,
        };
        let keeping = tokio::spawn(worker.run());
        Self {
            wanted,
            standing,
            _keeping: AbortOnDropHandle::new(keeping),
        }
    }

    /// What is to stand there from now on; none: nothing.
    pub fn set(&self, value: Option<Vec<u8>>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != value;
            *wanted = value;
            changed
        });
    }

    /// Whether it does.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }
}

/// What to do about a znode that is not as wanted.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Create,
    Set(i32),
    Delete(i32),
    Wait,
}

fn step(wanted: Option<&[u8]>, found: Option<&Value>, ours: impl Fn(&[u8]) -> bool) -> Step {
    match (wanted, found) {
        (None, None) => Step::Nothing,
        (Some(_), None) => Step::Create,
        (Some(wanted), Some(found)) if found.owner == Owner::Us => {
            if found.bytes == wanted {
                Step::Nothing
            } else {
                Step::Set(found.version)
            }
        }
        (None, Some(found)) if found.owner == Owner::Us => Step::Delete(found.version),
        // Left by an earlier life: it would go with that one's session, and take nothing of ours with it.
        (_, Some(found)) if ours(&found.bytes) => Step::Delete(found.version),
        (Some(_), Some(_)) => Step::Wait,
        (None, Some(_)) => Step::Nothing,
    }
}

struct Worker<F> {
    store: Store,
    path: String,
    ours: F,
    watch: Watch,
    connection: watch::Receiver<Connection>,
    wishes: watch::Receiver<Option<Vec<u8>>>,
    tell: watch::Sender<Standing>,
}

impl<F: Fn(&[u8]) -> bool> Worker<F> {
    async fn run(mut self) {
        // The last refusal, so that each is said once.
        let mut said = None;
        loop {
            let wanted = self.wishes.borrow_and_update().clone();
            self.connection.borrow_and_update();
            let settled = self.settle(wanted).await;
            let standing = match (&settled, *self.tell.borrow()) {
                (Ok(true), _) => Standing::Settled,
                (Ok(false), Standing::Taken(since)) => Standing::Taken(since),
                (Ok(false), Standing::Settled | Standing::Unsettled) => Standing::Taken(clock::now()),
                (Err(_), Standing::Taken(since)) => Standing::Taken(since),
                (Err(_), Standing::Settled | Standing::Unsettled) => Standing::Unsettled,
            };
            self.tell.send_if_modified(|told| {
                let changed = *told != standing;
                *told = standing;
                changed
            });
            let mut again = (settled != Ok(true)).then_some(AGAIN);
            match settled {
                Err(error @ (StoreError::Forbidden { .. } | StoreError::Refused { .. })) => {
                    again = Some(REFUSED_AGAIN);
                    if said.as_ref() != Some(&error) {
                        tracing::warn!("{error}; until then others do not see this here");
                        said = Some(error);
                    }
                }
                Err(error) => tracing::debug!(%error, path = %self.path, "an ephemeral is not there yet"),
                Ok(_) => said = None,
            }
            tokio::select! {
                changed = self.wishes.changed() => if changed.is_err() { return },
                changed = self.connection.changed() => if changed.is_err() { return },
                Hint::Everything | Hint::Paths(_) = self.watch.changed() => {}
                () = sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }

    /// Makes it so; false if another session holds it. After a write it looks again, whatever its outcome.
    async fn settle(&self, wanted: Option<Vec<u8>>) -> Result<bool, StoreError> {
        loop {
            let found = self.store.get(&self.path).await?;
            let done = match step(wanted.as_deref(), found.as_ref(), &self.ours) {
                Step::Nothing => return Ok(true),
                Step::Wait => return Ok(false),
                Step::Create => {
                    let bytes = wanted.clone().unwrap_or_default();
                    self.store.create(&self.path, bytes, Lifetime::Ephemeral).await
                }
                Step::Set(version) => {
                    let bytes = wanted.clone().unwrap_or_default();
                    self.store.set(&self.path, bytes, version).await.map(|_| ())
                }
                Step::Delete(version) => self.store.delete(&self.path, Some(version)).await,
            };
            match done {
                Ok(()) | Err(StoreError::Exists(_) | StoreError::Missing(_) | StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_own_earlier_life_is_replaced() {
        let value = |owner, bytes: &[u8]| Value {
            bytes: bytes.to_vec(),
            version: 4,
            owner,
            created: 1,
        };
        let ours = |bytes: &[u8]| bytes == b"me";
        let us = value(Owner::Us, b"a");
        let stranger = value(Owner::Other, b"a");
        let predecessor = value(Owner::Other, b"me");
        assert_eq!(step(Some(b"a"), None, ours), Step::Create);
        assert_eq!(step(Some(b"a"), Some(&us), ours), Step::Nothing);
        assert_eq!(step(Some(b"b"), Some(&us), ours), Step::Set(4));
        assert_eq!(step(None, Some(&us), ours), Step::Delete(4));
        assert_eq!(step(Some(b"b"), Some(&stranger), ours), Step::Wait);
        assert_eq!(step(None, Some(&stranger), ours), Step::Nothing);
        assert_eq!(step(Some(b"b"), Some(&predecessor), ours), Step::Delete(4));
        assert_eq!(step(None, None, ours), Step::Nothing);
    }
}
