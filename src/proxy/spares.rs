//! Private connections that nobody owns at the moment: opened for one session, left as clean as they were, and taken by
//! the next that needs one. A client that blocks again and again costs no connection each time, and its request does
//! not come late for having waited for one.
//!
//! Invariant: only commands that leave nothing behind ran on them (rule B9), and nothing is in flight.

use std::cell::RefCell;
use std::rc::Rc;

use super::backend::{Lane, Login, Target};

/// How many one worker keeps for one shard.
const SPARES_MAX: usize = 32;

/// The spare connections of one worker to one shard's master.
#[derive(Default)]
pub struct Spares {
    lanes: RefCell<Vec<Rc<Lane>>>,
}

impl Spares {
    /// One of a login to a server, if there is one. It belongs to who asked.
    pub fn take(&self, login: &Login, target: &Target) -> Option<Rc<Lane>> {
        let mut lanes = self.lanes.borrow_mut();
        let fits = |lane: &Rc<Lane>| lane.login == *login && *lane.target == *target && !lane.has_ended();
        let at = lanes.iter().rposition(fits)?;
        Some(lanes.swap_remove(at))
    }

    /// Takes one back. Past the bound it is ended.
    pub fn put(&self, lane: Rc<Lane>) {
        let mut lanes = self.lanes.borrow_mut();
        if lanes.len() < SPARES_MAX && !lane.has_ended() && !lane.is_released() {
            lanes.push(lane);
        } else {
            lane.release();
        }
    }

    /// Forgets those that do not stay.
    pub fn retain(&self, mut stays: impl FnMut(&Rc<Lane>) -> bool) {
        self.lanes.borrow_mut().retain(|lane| stays(lane));
    }
}
