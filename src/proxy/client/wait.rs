//! WAIT and WAITAOF: how many replicas have what the client wrote (rules A5, A6).
//!
//! ```text
//! session --drain--> task --ROLE, SPUBLISH, WAIT in one write--> the master --3 replies--> session
//! ```
//! The writes went over lanes, so WAIT on whatever connection knows nothing of them: what is propagated right before
//! it, by the same connection, moves that behind all of them. It counts only if the server was a master then and did
//! publish. One that is cut short is asked again, with the time that is left, of whoever is master next. Invariant: what
//! was written under one reign of a master is never vouched for by another's replicas, unless replicas acknowledged all
//! that the client was told; a planned move ends no reign.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::debug;

use super::dispatch::Outcome;
use super::lost::with_time_left;
use super::session::{Park, Session};
use super::window::RunId;
use crate::clock;
use crate::command::Command;
use crate::proxy::backend::{Login, Target, connect_to, put_own};
use crate::proxy::shard::{Reign, Shard};
use crate::resp::{Heed, ReplyScanner, Stop};
use crate::route::{Line, refusal};
use crate::topology::ShardIndex;

/// The number of its runs among the lanes of the session's window; no lane has it.
const WAIT_LANE: u32 = u32::MAX - 2;
/// Nobody listens there.
const CHANNEL: &[u8] = b"__pointsman:wait";
/// How often the wait looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(500);
/// How often it looks for a master after it was cut short.
const LOOK_FOR_MASTER: Duration = Duration::from_millis(5);
/// Bytes of the three replies that are read at most.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// A reply that changes what the requests behind it mean, or that they must not overtake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Awaits {
    /// None.
    #[default]
    Nothing,
    /// That to WAIT.
    Replicas,
    /// That to the only request in flight, which changes who the client is, or what it hears.
    Own,
}

/// Which writes of a session no WAIT has vouched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Unproven {
    /// None.
    #[default]
    Nothing,
    /// Some, the first of them under this reign.
    Since(Reign),
    /// Some under a reign that is over, and the client was told. The next write begins anew.
    Told,
}

impl Unproven {
    /// Where it stands after a write.
    #[inline]
    pub(super) fn wrote(self, reign: Reign) -> Self {
        match self {
            Self::Nothing | Self::Told => Self::Since(reign),
            Self::Since(_) => self,
        }
    }

    /// Whether a master's replicas may vouch for it.
    fn is_lost(self, reign: Reign) -> bool {
        match self {
            Self::Nothing => false,
            Self::Since(since) => since != reign,
            Self::Told => true,
        }
    }
}

/// What became of a WAIT.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The server said this to it.
    Said(Vec<u8>),
    /// It proves nothing, because of this.
    Nothing(&'static str),
    /// The same, but another master may say more.
    CutShort(&'static str),
}

impl Session {
    pub(super) fn wait(self: &Rc<Self>, command: &Command, frame: &[u8]) -> Outcome {
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        if let Some(park) = self.hold_without_master() {
            return Outcome::Park(park);
        }
        let shard = self.worker.shard(ShardIndex(0));
        let none: &[u8] = if &*command.name == "wait" {
            b":0\r\n"
        } else {
            b"*2\r\n:0\r\n:0\r\n"
        };
        let mut state = self.state();
        let run = state.window.reserve(WAIT_LANE, 1);
        state.awaits = Awaits::Replicas;
        let login = Login {
            resp3: false,
            ..state.login.clone()
        };
        drop(state);
        let (session, wait) = (self.clone(), frame.to_vec());
        tokio::task::spawn_local(async move {
            let reign = shard.reign();
            let asking = session.ask_masters(&shard, reign, &login, wait);
            let answer = session.while_here(asking).await;
            session.waited(&shard, reign, run, answer, none);
        });
        Outcome::Done
    }

    /// Asks the master, and the next one if the first was cut short by a planned move.
    async fn ask_masters(&self, shard: &Rc<Shard>, reign: Reign, login: &Login, wait: Vec<u8>) -> Answer {
        let since_ms = clock::monotonic_ms();
        let mut left = Some(wait.clone());
        loop {
            let Some(target) = self.next_master(shard).await else {
                return Answer::Nothing("there is no master");
            };
            let Some(request) = left.take().filter(|_| shard.reign() == reign) else {
                return Answer::Nothing("another master reigns");
            };
            let answer = ask(&target, login, &self.request(&request), self.worker.connect_timeout()).await;
            let Answer::CutShort(why) = answer else { return answer };
            debug!(client = self.id, "a wait is cut short: {why}");
            // The master may not be known yet to be one no more.
            if shard.serving().is_some_and(|serving| serving == target) {
                shard.suspect(&self.worker);
            }
            tokio::time::sleep(LOOK_FOR_MASTER).await;
            let waited_ms = clock::monotonic_ms() - since_ms;
            left = Some(with_time_left(&wait, waited_ms, self.worker.commands()).unwrap_or_else(|| wait.clone()));
        }
    }

    /// The master, as soon as there is one; not for longer than anything waits for one.
    async fn next_master(&self, shard: &Rc<Shard>) -> Option<Rc<Target>> {
        let until_ms = clock::monotonic_ms() + self.worker.hold_max_ms();
        loop {
            if let Some(target) = shard.serving() {
                return Some(target);
            }
            if clock::monotonic_ms() > until_ms {
                return None;
            }
            tokio::time::sleep(LOOK_FOR_MASTER).await;
        }
    }

    /// The three requests; servers before 7.0 have no SPUBLISH.
    fn request(&self, wait: &[u8]) -> Vec<u8> {
        let publish: &[u8] = if self.worker.redis_is_at_least(7, 0) {
            b"SPUBLISH"
        } else {
            b"PUBLISH"
        };
        let mut request = Vec::new();
        put_own(&mut request, &[b"ROLE"]);
        put_own(&mut request, &[publish, CHANNEL, self.id.to_string().as_bytes()]);
        request.extend_from_slice(wait);
        request
    }

    /// Nobody waits for a client that has left.
    async fn while_here(&self, asking: impl Future<Output = Answer>) -> Answer {
        let gone = async {
            while !self.is_closed() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            answer = asking => answer,
            () = gone => Answer::Nothing("the client left"),
        }
    }

    fn waited(self: &Rc<Self>, shard: &Rc<Shard>, reign: Reign, run: RunId, answer: Answer, none: &[u8]) {
        let mut state = self.state();
        state.awaits = Awaits::Nothing;
        let unproven = &mut state.seat(shard).unproven;
        // What was acknowledged is where any master is; of the rest the client was told.
        let kept = shard.acks() > 0;
        let lost = shard.reign() != reign || (!kept && unproven.is_lost(reign));
        let reply = match answer {
            Answer::Said(reply) if reply.starts_with(b"-") || !lost => reply,
            Answer::Said(_) => none.to_vec(),
            Answer::Nothing(why) | Answer::CutShort(why) => {
                debug!(client = self.id, "a wait proves nothing: {why}");
                none.to_vec()
            }
        };
        if lost {
            *unproven = Unproven::Told;
        } else if !reply.starts_with(b"-") && reply != none {
            *unproven = Unproven::Nothing;
        }
        drop(state);
        let worker = self.worker.clone();
        self.fill(run, &reply, 1, &worker);
        worker.flush_dirty();
        self.wake();
    }
}

async fn ask(target: &Target, login: &Login, request: &[u8], limit: Duration) -> Answer {
    let Ok(mut stream) = connect_to(target, login, limit).await else {
        return Answer::CutShort("the master is not reached");
    };
    match replies(&mut stream, request).await {
        Some(replies) => judge(&replies),
        None => Answer::CutShort("the master was lost"),
    }
}

/// Sends the request and reads three replies; `None` if they do not come.
async fn replies(stream: &mut TcpStream, request: &[u8]) -> Option<[Vec<u8>; 3]> {
    stream.write_all(request).await.ok()?;
    let (mut scanner, mut unread, mut ends) = (ReplyScanner::default(), Vec::new(), Vec::new());
    let (mut at, mut replies) = (0, Vec::new());
    while ends.len() < 3 {
        let scanned = scanner.scan(&unread[at..], 1, Heed::Nothing);
        at += scanned.used;
        match scanned.stop {
            Stop::Counted => ends.push(at),
            Stop::Starved if unread.len() < REPLY_BYTES_MAX => {
                if stream.read_buf(&mut unread).await.ok()? == 0 {
                    return None;
                }
            }
            Stop::Starved | Stop::Noted | Stop::Push | Stop::Malformed => return None,
        }
    }
    let mut from = 0;
    for end in ends {
        replies.push(unread[from..end].to_vec());
        from = end;
    }
    replies.try_into().ok()
}

/// What the replies to the three requests prove.
fn judge([role, published, waited]: &[Vec<u8>; 3]) -> Answer {
    if refusal::of_command(waited) == Line::Refusal {
        return Answer::CutShort("the server is demoted");
    }
    if waited.starts_with(b"-") {
        return Answer::Said(waited.clone());
    }
    if role.starts_with(b"-") {
        return Answer::Nothing("the user may not ask for the role");
    }
    if !role.starts_with(b"*3\r\n$6\r\nmaster\r\n") {
        return Answer::CutShort("the server is no master");
    }
    if !published.starts_with(b":") {
        return Answer::Nothing("the server did not publish");
    }
    Answer::Said(waited.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:9\r\n*0\r\n";

    fn judged(role: &[u8], published: &[u8], waited: &[u8]) -> Answer {
        judge(&[role.to_vec(), published.to_vec(), waited.to_vec()])
    }

    #[test]
    fn only_a_master_that_published_vouches_for_anything() {
        let said = |reply: &[u8]| Answer::Said(reply.to_vec());
        assert_eq!(judged(MASTER, b":0\r\n", b":2\r\n"), said(b":2\r\n"));
        let slave = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$4\r\nsync\r\n:1\r\n";
        assert!(matches!(judged(slave, b":0\r\n", b":2\r\n"), Answer::CutShort(_)));
        let unblocked =
            b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";
        assert!(matches!(judged(MASTER, b":0\r\n", unblocked), Answer::CutShort(_)));
        assert!(matches!(
            judged(MASTER, b"-MISCONF x\r\n", b":2\r\n"),
            Answer::Nothing(_)
        ));
        assert!(matches!(
            judged(b"-NOPERM x\r\n", b":0\r\n", b":2\r\n"),
            Answer::Nothing(_)
        ));
        assert_eq!(
            judged(MASTER, b":0\r\n", b"-ERR timeout is negative\r\n"),
            said(b"-ERR timeout is negative\r\n")
        );
    }

    #[test]
    fn what_one_reign_wrote_is_not_vouched_for_by_another_until_the_client_was_told_and_wrote_again() {
        let (old, new) = (Reign(1), Reign(2));
        let wrote = Unproven::Nothing.wrote(old);
        assert!(!wrote.is_lost(old));
        assert!(wrote.is_lost(new));
        assert_eq!(wrote.wrote(new), wrote);
        assert!(Unproven::Told.is_lost(new));
        assert!(!Unproven::Told.wrote(new).is_lost(new));
        assert!(!Unproven::Nothing.is_lost(new));
    }
}
