//! CLIENT TRACKING with REDIRECT: Redis tells another connection of the keys that this one reads, and knows both by ids of
//! its own.
//!
//! ```text
//! session --roll: where is client n?--> worker of n: n has, or gets, a feed --our end of it--> task
//! task --CLIENT LIST--> the id of that connection --> session: CLIENT TRACKING ON REDIRECT id
//! ```
//! Both connections are feeds, kept until their clients leave. Invariant: neither is ever replaced by another one. If one
//! of them is lost, its client's connection is closed, as it would be without us: whoever caches keys has to forget them
//! then, and nobody could say which of the two connections heard of what.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::close::CloseReason;
use super::dispatch::Outcome;
use super::feed::{Feed, Link};
use super::roster::id_at_redis;
use super::session::{Park, Session};
use super::transaction::Transaction;
use crate::clock;
use crate::proxy::backend::connect_control;
use crate::proxy::roll::Place;
use crate::topology::ShardIndex;

/// How long until a client without a connection is asked again whether it has one.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Where the session's invalidations go, or are to go.
#[derive(Debug)]
pub(super) struct Redirection {
    /// The client that the session named.
    pub to: u64,
    /// The id by which Redis knows that client's connection; `None` if there is no such client.
    pub id: Option<String>,
    /// It was found for the request that waits for it.
    pub fresh: bool,
}

/// The reply to a question about tracking, in which Redis' id of the other connection is to be that of the client.
#[derive(Debug)]
pub(super) struct RedirectReply {
    from: String,
    to: String,
    bytes: Vec<u8>,
}

impl RedirectReply {
    /// Takes a whole reply, or the end of one.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.bytes.extend_from_slice(bytes);
        if !self.bytes.ends_with(b"\r\n") {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        match memchr::memmem::find(&bytes, self.from.as_bytes()) {
            Some(at) => {
                out.extend_from_slice(&bytes[..at]);
                out.extend_from_slice(self.to.as_bytes());
                out.extend_from_slice(&bytes[at + self.from.len()..]);
            }
            None => out.extend_from_slice(&bytes),
        }
    }
}

impl Session {
    /// By which id Redis knows the connection of client `to`, found for the request that asks; or what that has to wait for.
    pub(super) fn redirected_to(self: &Rc<Self>, to: u64) -> Result<Option<String>, Outcome> {
        let mut state = self.state();
        if let Some(known) = state.redirection.as_ref().filter(|known| known.fresh && known.to == to) {
            return Ok(known.id.clone());
        }
        if state.window.unanswered() > 0 {
            return Err(Outcome::Park(Park::Drain));
        }
        state.park = Park::Verify;
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let id = session.find_connection(to).await;
            session.state().redirection = Some(Box::new(Redirection { to, id, fresh: true }));
            session.resume();
        });
        Err(Outcome::Park(Park::Verify))
    }

    /// What was found is used up: the next request looks anew.
    pub(super) fn uses_redirection(&self) {
        if let Some(redirection) = &mut self.state().redirection {
            redirection.fresh = false;
        }
    }

    /// Puts the client's id in place of Redis' in the reply to a question about tracking.
    pub(super) fn redirect_reply(&self) -> Option<RedirectReply> {
        let state = self.state();
        let redirection = state.redirection.as_ref()?;
        let number = |id: &str| format!(":{id}\r\n");
        Some(RedirectReply {
            from: number(redirection.id.as_deref()?),
            to: number(&redirection.to.to_string()),
            bytes: Vec::new(),
        })
    }

    async fn find_connection(&self, client: u64) -> Option<String> {
        let limit = self.worker.connect_timeout();
        let until_ms = clock::monotonic_ms() + u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        loop {
            match self.worker.roll().place_of(client).await {
                None => return None,
                Some(Place::Opening) => {}
                Some(Place::At(local)) => {
                    let looking = tokio::time::timeout(limit, self.look_up(local));
                    if let Ok(Some(id)) = looking.await {
                        return Some(id);
                    }
                }
            }
            if self.is_closed() || clock::monotonic_ms() > until_ms {
                return None;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn look_up(&self, local: SocketAddr) -> Option<String> {
        let master = self.worker.shard(ShardIndex(0)).serving()?;
        let mut stream = connect_control(&master, self.worker.connect_timeout()).await.ok()?;
        id_at_redis(&mut stream, &master.addr, &local.to_string()).await
    }

    /// Where the client's own connection to Redis is, for others to redirect to. It gets one, and keeps it.
    pub(super) fn place(self: &Rc<Self>) -> Place {
        let mut state = self.state();
        state.is_redirected_to = true;
        let Some(feed) = &mut state.feed else {
            drop(state);
            self.wake();
            return Place::Opening;
        };
        feed.line.redirected = true;
        match &feed.link {
            Link::Up(tap) => tap.local_addr().map_or(Place::Opening, Place::At),
            Link::Down => Place::Opening,
        }
    }

    /// Gives the session the feed that others redirect to, once nothing else is in its way.
    pub(super) fn tend_redirection(self: &Rc<Self>) {
        {
            let mut state = self.state();
            let free = state.feed.is_none() && state.pinned.is_none() && state.window.unanswered() == 0;
            if !state.is_redirected_to || !free || state.transaction != Transaction::None {
                return;
            }
            let mut feed = Box::new(Feed::of(state.login.clone()));
            feed.line.redirected = true;
            state.feed = Some(feed);
        }
        if !self.open_feed() {
            self.state().feed = None;
        }
    }

    /// Ends a client whose connection is lost that redirects, or that others redirect to.
    pub(super) fn give_up_redirection(&self) {
        let redirects = self.with_feed(|feed| feed.line.redirected || feed.line.tracking.redirects());
        if redirects == Some(true) {
            self.close(CloseReason::RedirectLost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_id_of_a_connection_is_told_as_that_of_its_client() {
        let told = |parts: &[&[u8]]| {
            let mut reply = RedirectReply {
                from: ":71\r\n".to_owned(),
                to: ":5\r\n".to_owned(),
                bytes: Vec::new(),
            };
            let mut out = Vec::new();
            parts.iter().for_each(|part| reply.take(part, &mut out));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(told(&[b":71\r\n"]), ":5\r\n");
        assert_eq!(told(&[b":7", b"1\r", b"\n"]), ":5\r\n");
        assert_eq!(
            told(&[b"$8\r\nredirect\r\n:71\r\n$8\r\nprefixes\r\n*0\r\n"]),
            "$8\r\nredirect\r\n:5\r\n$8\r\nprefixes\r\n*0\r\n"
        );
        assert_eq!(told(&[b":-1\r\n"]), ":-1\r\n");
    }
}
