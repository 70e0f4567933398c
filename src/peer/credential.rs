//! What those of one epoch log in with at its Redis servers: nothing secret lies in ZooKeeper.
//!
//! Owns: the names and tokens of internal users (ha.md C3, ha-rules R9). Invariant: a token belongs to one shard, epoch,
//! life of its master and role, so that it is worth nothing anywhere else.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::topology::{Epoch, RunId, ShardId};

/// Whose credential it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A replica at its master.
    Replica,
    /// A proxy at any server of the epoch.
    Proxy,
}

impl Role {
    fn prefix(self) -> &'static str {
        match self {
            Self::Replica => "repl",
            Self::Proxy => "px",
        }
    }
}

/// The name of the user that stands for `role` in `epoch`.
pub fn name(role: Role, epoch: Epoch) -> String {
    format!("{}-{epoch}", role.prefix())
}

/// Whom a user stands for, if it is one of an epoch.
pub fn role_of(user: &str) -> Option<Role> {
    let (prefix, epoch) = user.rsplit_once('-')?;
    epoch.parse::<u64>().ok()?;
    [Role::Replica, Role::Proxy]
        .into_iter()
        .find(|role| role.prefix() == prefix)
}

/// Its password: HMAC-SHA256 of role, shard, epoch and life of the epoch's master under the cluster's secret, in hex.
pub fn token(secret: &[u8], role: Role, shard: &ShardId, epoch: Epoch, master: &RunId) -> String {
    let text = format!("{}\n{shard}\n{epoch}\n{master}", role.prefix());
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else {
        unreachable!("HMAC takes keys of any length");
    };
    mac.update(text.as_bytes());
    let bytes = mac.finalize().into_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_one_role_shard_epoch_and_life() {
        let of = |role, shard: &str, epoch, life: &str| {
            token(b"secret", role, &ShardId::from(shard), Epoch(epoch), &RunId::from(life))
        };
        let one = of(Role::Proxy, "s1", 3, "a");
        assert_eq!(one, of(Role::Proxy, "s1", 3, "a"));
        assert_eq!(one.len(), 64);
        for other in [
            of(Role::Replica, "s1", 3, "a"),
            of(Role::Proxy, "s2", 3, "a"),
            of(Role::Proxy, "s1", 4, "a"),
            of(Role::Proxy, "s1", 3, "b"),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(name(Role::Proxy, Epoch(3)), "px-3");
        assert_eq!(role_of("px-3"), Some(Role::Proxy));
        assert_eq!(role_of("repl-12"), Some(Role::Replica));
        for stranger in ["px", "px-", "px-a", "pxx-3", "alice"] {
            assert_eq!(role_of(stranger), None, "{stranger}");
        }
    }
}
