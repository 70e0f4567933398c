//! The reply to a script that was not known: what shows that it ran, and that the server has it.

use std::sync::Arc;

use super::Scripts;
use super::library::Origin;
use crate::topology::RunId;

/// Waits for the first byte of a reply. An error teaches nothing: the user may have had no right to run a script, and
/// must not get it loaded by having tried.
#[derive(Debug)]
pub struct ScriptReply {
    scripts: Arc<Scripts>,
    /// Until the first byte came.
    body: Option<Arc<[u8]>>,
    life: Option<RunId>,
}

impl ScriptReply {
    /// The reply to `body` from a server in this life.
    pub fn new(scripts: &Arc<Scripts>, body: &[u8], life: Option<&RunId>) -> Self {
        Self {
            scripts: scripts.clone(),
            body: Some(body.into()),
            life: life.cloned(),
        }
    }

    /// The request goes to another life; nothing of a reply has come.
    pub fn comes_from(&mut self, life: Option<&RunId>) {
        self.life = life.cloned();
    }

    /// Takes bytes of the reply.
    pub fn hear(&mut self, bytes: &[u8]) {
        let Some(first) = bytes.first() else { return };
        if let Some(body) = self.body.take()
            && !matches!(first, b'-' | b'!')
        {
            self.scripts.learn(&body, Origin::Ran(self.life.take()));
        }
    }
}
