//! Who we are for ZooKeeper, and who may do what with the znodes that we create.
//!
//! Owns: the credentials (scheme `digest`), the ACLs that follow from them, the words for a refusal. Invariant: with
//! credentials every znode below the cluster's root is its creator's alone, but for reading where that is wanted;
//! `/pointsman` itself, which clusters with other credentials share, lets anybody create beside us and delete nothing.

use std::fmt;

use zookeeper_client::{Acl, Acls, AuthId, CreateOptions, Permission};

use super::StoreError;

/// A user of ZooKeeper's scheme `digest`: whoever knows name and password is that user, wherever they connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name, without a colon.
    pub user: String,
    /// The password.
    pub password: String,
    /// Whether anybody may read what we create.
    pub world_reads: bool,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown.field("user", &self.user).field("world_reads", &self.world_reads);
        shown.finish_non_exhaustive()
    }
}

impl Credentials {
    /// What the scheme takes.
    pub(super) fn digest(&self) -> Vec<u8> {
        format!("{}:{}", self.user, self.password).into_bytes()
    }
}

/// The ACLs of one cluster's znodes.
#[derive(Debug)]
pub(super) struct Access {
    user: Option<String>,
    own: Vec<Acl>,
    shared: Vec<Acl>,
    world: Permission,
}

impl Access {
    pub(super) fn new(credentials: Option<&Credentials>) -> Self {
        let anybody = |permission| Acl::new(permission, AuthId::anyone());
        let Some(credentials) = credentials else {
            return Self {
                user: None,
                own: vec![anybody(Permission::ALL)],
                shared: vec![anybody(Permission::ALL)],
                world: Permission::ALL,
            };
        };
        let creator = Acl::new(Permission::ALL, AuthId::authed());
        let mut own = vec![creator.clone()];
        let mut world = Permission::NONE;
        if credentials.world_reads {
            world = Permission::READ;
            own.push(anybody(world));
        }
        Self {
            user: Some(credentials.user.clone()),
            own,
            shared: vec![creator, anybody(Permission::READ | Permission::CREATE)],
            world,
        }
    }

    /// For what lies below the cluster's root, and the root itself.
    pub(super) fn own<'a>(&'a self, mode: zookeeper_client::CreateMode) -> CreateOptions<'a> {
        mode.with_acls(Acls::new(&self.own))
    }

    /// For what lies above it.
    pub(super) fn shared(&self) -> CreateOptions<'_> {
        zookeeper_client::CreateMode::Persistent.with_acls(Acls::new(&self.shared))
    }

    /// Whether this ACL lets everybody do more than ours would.
    pub(super) fn is_wider(&self, acls: &[Acl]) -> bool {
        let worlds = acls.iter().filter(|acl| acl.scheme() == "world");
        worlds.into_iter().any(|acl| !self.world.has(acl.permission()))
    }

    /// Why ZooKeeper says "not authenticated" of this znode, and what to do about it.
    pub(super) fn refusal(&self, path: String) -> StoreError {
        let why = match &self.user {
            Some(user) => format!(
                "to the user '{user}' with this password: correct the file that zookeeper_auth_file names, or who may use \
                 the znode ('getAcl' and 'setAcl' in zkCli.sh)"
            ),
            None => "without a password: name the file that holds user:password with zookeeper_auth_file".to_owned(),
        };
        StoreError::Forbidden { path, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(world_reads: bool) -> Credentials {
        Credentials {
            user: "pointsman".to_owned(),
            password: "hidden".to_owned(),
            world_reads,
        }
    }

    #[test]
    fn what_everybody_may_do_is_seen() {
        let world = |permission| [Acl::new(permission, AuthId::anyone())];
        let closed = Access::new(Some(&credentials(false)));
        let readable = Access::new(Some(&credentials(true)));
        let open = Access::new(None);
        assert!(closed.is_wider(&world(Permission::READ)) && !readable.is_wider(&world(Permission::READ)));
        for more in [
            Permission::ALL,
            Permission::WRITE,
            Permission::READ | Permission::CREATE,
        ] {
            assert!(closed.is_wider(&world(more)) && readable.is_wider(&world(more)) && !open.is_wider(&world(more)));
        }
        let users = [Acl::new(Permission::ALL, AuthId::new("digest", "somebody:x"))];
        assert!(!closed.is_wider(&users));
    }

    #[test]
    fn passwords_are_not_shown() {
        assert!(!format!("{:?}", credentials(true)).contains("hidden"));
    }
}
