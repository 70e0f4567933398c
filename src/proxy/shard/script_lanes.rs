//! Lanes to the master for what runs scripts (rule B1): a script may take for ever, and Redis executes nothing that stands
//! behind it on its connection until it is killed, while it answers BUSY on every other one.
//!
//! So a script never goes behind or before what another session has in flight, as long as there are lanes for that. Past
//! [`LANES_MAX`] sessions share the lane that has been idle last: what stands still longest is not the one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::proxy::backend::{Lane, Login};

/// Lanes of one login, in one worker to one master.
const LANES_MAX: usize = 16;

/// The lanes for scripts of one shard.
#[derive(Default)]
pub(super) struct ScriptLanes {
    /// In the order in which they were idle last.
    lanes: RefCell<HashMap<Login, Vec<Rc<Lane>>>>,
}

impl ScriptLanes {
    /// A lane on which nothing is in flight, opened if there is none.
    pub(super) fn take(&self, login: &Login, open: impl FnOnce() -> Rc<Lane>) -> Rc<Lane> {
        let mut all = self.lanes.borrow_mut();
        let lanes = all.entry(login.clone()).or_default();
        // Of several the one used last, so that the others may be closed.
        let lane = match lanes.iter().rposition(|lane| lane.is_idle()) {
            Some(at) => lanes.remove(at),
            None if lanes.len() < LANES_MAX => open(),
            None => lanes.remove(lanes.len() - 1),
        };
        lanes.push(lane.clone());
        lane
    }

    /// Whether `lane` is one of them.
    pub(super) fn has(&self, login: &Login, lane: &Rc<Lane>) -> bool {
        let all = self.lanes.borrow();
        all.get(login)
            .is_some_and(|lanes| lanes.iter().any(|known| Rc::ptr_eq(known, lane)))
    }

    /// Forgets those that do not stay.
    pub(super) fn retain(&self, mut stays: impl FnMut(&Rc<Lane>) -> bool) {
        self.lanes.borrow_mut().retain(|_, lanes| {
            lanes.retain(&mut stays);
            !lanes.is_empty()
        });
    }
}
