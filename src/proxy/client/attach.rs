//! What hears moves to the next master before it is one (rule B8).
//!
//! ```text
//! old tap --marker--> its answer, or the end: everything published was heard
//! new tap ------------- opened meanwhile -------------------------------------> subscribes again, goes on
//! ```
//! The old master is fenced by then: what was published has reached the next one, and nothing more is published
//! anywhere until that one is promoted. So there is nothing to hear twice, and nothing to miss while the taps change.
//! Invariant: between the marker and the change nothing is asked; after it only a master gets what may write.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info};

use super::feed::Link;
use super::session::{Session, State};
use crate::peer::Attach;
use crate::proxy::backend::{LaneEnd, Login, Tap, Target};
use crate::proxy::shard::Shard;
use crate::proxy::worker::Worker;
use crate::topology::ShardIndex;

/// How long a fenced master may take to say that it said everything.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long subscribing again may take before nobody waits for it.
const ATTACH_MAX: Duration = Duration::from_secs(2);

/// The connection that a feed moves to.
pub(super) struct Moving {
    pub tap: Rc<Tap>,
    pub login: Login,
}

/// Brings this worker's subscribers of a shard to the node that is about to be its master; done once all of them hear it,
/// or it took too long.
pub async fn attach(worker: &Rc<Worker>, shard: &Rc<Shard>, attach: &Attach) {
    let late = shard.serving().is_some_and(|master| master.epoch >= attach.epoch);
    // Feeds are at the first shard only.
    if late || !Rc::ptr_eq(&worker.shard(ShardIndex(0)), shard) {
        return;
    }
    let target = Rc::new(Target {
        node: attach.node.clone(),
        addr: attach.addr.clone(),
        epoch: attach.epoch,
        run_id: Some(attach.run_id.clone()),
        acks: shard.acks(),
        // It has that user only once it is master.
        pass: None,
    });
    let (done, mut all_done) = mpsc::channel(1);
    let movers: Vec<Rc<Session>> = worker.clients();
    for session in &movers {
        session.move_feed(&target, &done);
    }
    drop(done);
    if timeout(DRAIN_MAX, all_done.recv()).await.is_ok() {
        return;
    }
    for session in movers {
        session.take_over();
    }
    if timeout(ATTACH_MAX, all_done.recv()).await.is_err() {
        info!(shard = %shard.id, "not all subscribers have moved in time");
    }
}

impl Session {
    /// Begins to move the session's feed, if it has one; `done` is dropped when that has come to an end.
    fn move_feed(self: &Rc<Self>, target: &Rc<Target>, done: &mpsc::Sender<()>) {
        {
            let mut state = self.state();
            let State {
                feed, login, streaming, ..
            } = &mut *state;
            let Some(feed) = feed.as_mut().filter(|feed| !feed.leads_to(target)) else {
                return;
            };
            let login = login.clone();
            let tap = self.open_tap(target.clone(), login.clone(), Duration::ZERO);
            if let Some(before) = feed.moving.replace(Moving { tap, login }) {
                before.tap.close();
            } else if let Link::Up(old) = &feed.link
                && streaming.is_none()
            {
                // Else it would get into the middle of a request; it follows that.
                feed.line.mark(|bytes| old.send(bytes));
            }
            feed.attaching = Some(done.clone());
            if matches!(feed.link, Link::Up(_)) {
                return;
            }
        }
        self.take_over();
    }

    /// Goes on with the connection that the feed moves to; the old one is drained, lost, or too slow. `false`: the feed
    /// does not move.
    pub(super) fn take_over(self: &Rc<Self>) -> bool {
        let left = {
            let mut state = self.state();
            let Some(feed) = state.feed.as_mut().filter(|feed| feed.moving.is_some()) else {
                return false;
            };
            match &feed.link {
                Link::Up(old) => {
                    let old = old.clone();
                    old.close();
                    Some(feed.lose(&old))
                }
                Link::Down => None,
            }
        };
        if let Some(left) = left {
            self.put_up_with(left);
        }
        let Some(Moving { tap, login }) = self.with_feed(|feed| feed.moving.take()).flatten() else {
            return true;
        };
        self.go_on_over(tap, login);
        // Somebody's password may have been verified meanwhile.
        self.feed_follows();
        self.wake();
        true
    }

    /// The connection that the feed was to move to is gone: the feed stays where it is, until that is.
    pub(super) fn did_not_move(self: &Rc<Self>, tap: &Rc<Tap>, end: &LaneEnd) -> bool {
        let given_up = self.with_feed(|feed| {
            let moving = feed.moving.take_if(|moving| Rc::ptr_eq(&moving.tap, tap));
            moving.map(|_| feed.attaching = None)
        });
        if given_up.flatten().is_none() {
            return false;
        }
        debug!(client = self.id, server = %tap.target.addr, "the feed stays: {end}");
        self.wake();
        true
    }
}
