//! Which life of a master a lane leads to: what its cursors belong to (rule A12), and which scripts it has (rule B5).
//!
//! Told by who opens the lane, from what topology or a greeting said. If nothing has held on to that life since, the lane
//! asks itself: a master that was started anew unseen must be greeted again before anybody's commands reach it.

use std::cell::{Cell, OnceCell};
use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::connect::{ConnectError, ask_life};
use super::lane::Lane;
use crate::topology::{Addr, RunId};

/// See the file's note.
#[derive(Debug, Default)]
pub(super) struct Life {
    told: OnceCell<RunId>,
    unwatched: Cell<bool>,
}

impl Lane {
    /// Which life of a master is at the other end, where that is known.
    pub fn life(&self) -> Option<&RunId> {
        self.life.told.get()
    }

    /// Tells it once which life that is, and whether something would have noticed its end.
    pub fn leads_to(&self, life: Option<RunId>, watched: bool) {
        if let Some(life) = life {
            self.life.unwatched.set(!watched);
            let _ = self.life.told.set(life);
        }
    }
}

impl Life {
    /// Asks over the lane's fresh connection whether it leads to the life that was told, if need be.
    pub(super) async fn prove(&self, stream: &mut TcpStream, addr: &Addr, limit: Duration) -> Result<(), ConnectError> {
        let Some(told) = self.told.get().filter(|_| self.unwatched.get()) else {
            return Ok(());
        };
        match ask_life(stream, addr, limit).await? {
            Some(there) if there != told.as_str() => {
                let anew = io::Error::other("it was started anew since it was greeted");
                Err(ConnectError::Network(addr.clone(), anew))
            }
            Some(_) | None => Ok(()),
        }
    }
}
