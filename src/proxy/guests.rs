//! Clients that log in to the proxy and not to the servers (`users_file`), to which all of them are one user.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tracing::warn;

use super::backend::{Credential, Target};
use crate::config::Users;

/// Who may log in to the proxy.
#[derive(Clone, Debug)]
pub struct Guests {
    /// Who they are.
    pub users: Users,
    /// Name and password of the one user that all of them are to the servers; none: whoever everybody is.
    pub redis_login: Option<(String, String)>,
}

/// What a worker knows of them; nothing where clients log in to the servers.
#[derive(Default)]
pub struct Lodge {
    guests: Option<Arc<Guests>>,
    credential: Option<Rc<Credential>>,
    /// It was said that the servers refuse that one.
    refused: Cell<bool>,
}

impl Lodge {
    /// For these guests.
    pub fn of(guests: Option<Arc<Guests>>) -> Self {
        let login = guests.as_ref().and_then(|guests| guests.redis_login.as_ref());
        let credential = login.map(|(user, password)| {
            Rc::new(Credential {
                user: user.as_bytes().to_vec(),
                password: password.as_bytes().to_vec(),
            })
        });
        Self {
            guests,
            credential,
            refused: Cell::new(false),
        }
    }

    /// Who may log in to the proxy itself; none: that is the servers' affair.
    pub fn users(&self) -> Option<&Users> {
        self.guests.as_ref().map(|guests| &guests.users)
    }

    /// Who those are to the servers; none: the default user without a password.
    pub fn credential(&self) -> Option<Rc<Credential>> {
        self.credential.clone()
    }

    /// A server is greeted as master: what it refuses is said again.
    pub fn new_master(&self) {
        self.refused.set(false);
    }

    /// A server refused a login. Where it is that of all clients somebody has to know; it is said once for each master.
    pub fn login_refused(&self, target: &Target, line: &str) {
        if self.guests.is_some() && !self.refused.replace(true) {
            let what = "a server refuses who clients are there: see to users_redis_user and users_redis_password_file";
            warn!(server = %target.addr, "{what}: {line}");
        }
    }
}
