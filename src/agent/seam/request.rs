//! The end of a requested switchover's znode.
//!
//! Invariant: only the request that was ended is deleted: not one that somebody made after it.

use std::time::Duration;

use tokio::time::sleep;

use crate::store::{Store, StoreError};
use crate::topology::ShardId;
use crate::topology::codec::{Place, SwitchRequest, decode};

/// Until a request that could not be deleted is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Deletes the request with this id, if it still stands.
pub(super) async fn end(store: &Store, shard: &ShardId, id: &str) {
    let path = Place::Switch(shard.clone()).to_string();
    loop {
        match delete(store, &path, id).await {
            Ok(()) | Err(StoreError::Missing(_)) => return,
            // Written anew, or not known: what stands there now is looked at again.
            Err(StoreError::Conflict(_) | StoreError::Away | StoreError::Unknown) => {}
            Err(error) => {
                tracing::warn!(%error, request = id, "a request that was ended cannot be deleted");
                return;
            }
        }
        sleep(AGAIN).await;
    }
}

/// Whether the request with this id still waits for its end. Waits for the store.
pub(super) async fn stands(store: &Store, shard: &ShardId, id: &str) -> bool {
    let path = Place::Switch(shard.clone()).to_string();
    loop {
        match find(store, &path, id).await {
            Ok(found) => return found.is_some(),
            Err(StoreError::Away | StoreError::Unknown) => {}
            Err(error) => {
                tracing::warn!(%error, request = id, "a request that is to be ended cannot be read");
                return true;
            }
        }
        sleep(AGAIN).await;
    }
}

async fn delete(store: &Store, path: &str, id: &str) -> Result<(), StoreError> {
    match find(store, path, id).await? {
        Some(version) => store.delete(path, Some(version)).await,
        None => Ok(()),
    }
}

/// The version of the request with this id, if it stands.
async fn find(store: &Store, path: &str, id: &str) -> Result<Option<i32>, StoreError> {
    // The read may go to a server that lags behind the one we saw the request on.
    store.sync().await?;
    let found = store.get(path).await?;
    let ours = found.filter(|value| decode::<SwitchRequest>(&value.bytes, path).is_ok_and(|request| request.id == id));
    Ok(ours.map(|value| value.version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Lifetime, Loss, Memory};
    use crate::topology::codec::encode;

    fn request(id: &str) -> Vec<u8> {
        encode(&SwitchRequest {
            id: id.to_owned(),
            to: None,
            asked_by: "a test".to_owned(),
        })
    }

    #[tokio::test]
    async fn only_the_request_that_was_ended_is_deleted() {
        let ensemble = Memory::default();
        let (store, shard) = (ensemble.store(), ShardId::from("s1"));
        let path = "/shards/s1/switch";
        end(&store, &shard, "one").await;
        store.create(path, request("two"), Lifetime::Persistent).await.unwrap();
        end(&store, &shard, "one").await;
        assert!(store.get(path).await.unwrap().is_some());
        assert!(stands(&store, &shard, "two").await && !stands(&store, &shard, "one").await);
        for loss in [Loss::Done, Loss::NotDone] {
            ensemble.lose_next_write(loss);
            end(&store, &shard, "two").await;
            assert_eq!(store.get(path).await.unwrap(), None, "{loss:?}");
            store.create(path, request("two"), Lifetime::Persistent).await.unwrap();
        }
    }
}
