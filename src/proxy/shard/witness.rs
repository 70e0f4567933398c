//! The witness: one connection of each worker to a master that is logged in with the epoch's pass and nothing else
//! (rule A15). Lanes act for their sessions' users, so the fence of another epoch does not end them; it ends this one.
//!
//! Where writes are acknowledged it asks for that, too: it is of the epoch and the life that the lanes lead to, and was
//! open before the first of them (rule R11). When it ends, what it did not vouch for is in doubt.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::warn;

use super::Shard;
use super::rounds::{Outcome, Rounds, Ticket, Words};
use crate::clock;
use crate::proxy::backend::{Target, put_own};
use crate::proxy::worker::Worker;
use crate::resp::{Heed, ReplyScanner, Stop};

/// How often it asks something, so that nobody takes it for idle: the shortest `timeout` of Redis is a second, and may be
/// set at any time.
const ASK_EVERY: Duration = Duration::from_millis(400);
/// How often it looks for replies that have waited too long.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Until a round is tried again that could not be asked.
const REST: Duration = Duration::from_millis(5);
/// Replies of a round.
const ROUND_REPLIES: usize = 4;
/// Bytes of replies that are not whole, at most: a role has a line for each replica.
const HEARD_BYTES_MAX: usize = 64 * 1024;

/// Ends with what holds it.
#[derive(Debug)]
pub(super) struct Witness {
    pub target: Rc<Target>,
    stream: Rc<TcpStream>,
    watching: AbortHandle,
    acks: Option<Rc<Acks>>,
}

/// What it is asked to vouch for.
#[derive(Debug)]
struct Acks {
    rounds: RefCell<Rounds>,
    due: Notify,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Witness {
    /// Watches the connection on which `target` was greeted, and tells the shard when it testifies no more. `last` is the
    /// last ticket that a former one gave.
    pub fn keep(shard: &Rc<Shard>, worker: &Rc<Worker>, target: &Rc<Target>, stream: TcpStream, last: Ticket) -> Self {
        let stream = Rc::new(stream);
        let acks = (target.acks > 0).then(|| {
            Rc::new(Acks {
                rounds: RefCell::new(Rounds::new(target.acks, last)),
                due: Notify::new(),
            })
        });
        let watch = Watch {
            shard: shard.clone(),
            worker: worker.clone(),
            stream: stream.clone(),
            acks: acks.clone(),
            asked: VecDeque::new(),
            scanner: ReplyScanner::default(),
            heard: Vec::new(),
            scanned: 0,
            round: Vec::new(),
            rests: false,
            complained: None,
        };
        let told = target.clone();
        let watching = tokio::task::spawn_local(async move {
            let (shard, worker) = (watch.shard.clone(), watch.worker.clone());
            let why = watch.run().await;
            shard.witness_lost(&worker, &told, why);
        });
        Self {
            target: target.clone(),
            stream,
            watching: watching.abort_handle(),
            acks,
        }
    }

    /// Whether its end has come already, although nobody has looked yet: that tells a fenced master from a silent one.
    pub fn has_ended(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&*self.stream).peek(&mut byte) {
            Ok(length) => length == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Whether it asks for acknowledgements.
    pub fn acknowledges(&self) -> bool {
        self.acks.is_some()
    }

    /// What a reply waits for that has come just now.
    pub fn ticket(&self) -> Option<Ticket> {
        let acks = self.acks.as_ref()?;
        let mut rounds = acks.rounds.borrow_mut();
        let ticket = rounds.ticket();
        if rounds.is_due() {
            acks.due.notify_one();
        }
        Some(ticket)
    }

    /// The last ticket that it gave.
    pub fn last(&self) -> Ticket {
        self.acks
            .as_ref()
            .map_or_else(Ticket::default, |acks| acks.rounds.borrow().last())
    }
}

/// What was asked, and how many replies answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Role,
    Round,
}

/// The conversation on the connection.
struct Watch {
    shard: Rc<Shard>,
    worker: Rc<Worker>,
    stream: Rc<TcpStream>,
    acks: Option<Rc<Acks>>,
    asked: VecDeque<Asked>,
    scanner: ReplyScanner,
    heard: Vec<u8>,
    /// How many bytes of `heard` were scanned.
    scanned: usize,
    /// Replies of the round under way.
    round: Vec<Vec<u8>>,
    /// A round could not be asked a moment ago.
    rests: bool,
    /// What was said last of rounds that prove nothing.
    complained: Option<&'static str>,
}

/// What happened next.
enum Event {
    Readable,
    Due,
    Quiet,
    Look,
    Rested,
}

impl Watch {
    /// Lives until the connection says that the server is of the epoch no more, or ends.
    async fn run(mut self) -> &'static str {
        loop {
            let event = self.event().await;
            if let Err(why) = self.on(event) {
                return why;
            }
        }
    }

    async fn event(&self) -> Event {
        let due = async {
            match &self.acks {
                Some(acks) => acks.due.notified().await,
                None => std::future::pending().await,
            }
        };
        let holds = self.acks.is_some() && self.shard.holds_replies();
        tokio::select! {
            biased;
            _ = self.stream.readable() => Event::Readable,
            () = due, if !self.rests => Event::Due,
            () = sleep(REST), if self.rests => Event::Rested,
            () = sleep(LOOK_EVERY), if holds => Event::Look,
            () = sleep(ASK_EVERY) => Event::Quiet,
        }
    }

    fn on(&mut self, event: Event) -> Result<(), &'static str> {
        match event {
            Event::Readable => self.read(),
            Event::Due => self.begin(),
            Event::Rested => {
                self.rests = false;
                self.begin()
            }
            Event::Look => {
                self.look();
                Ok(())
            }
            Event::Quiet => {
                let mut request = Vec::new();
                put_own(&mut request, &[b"ROLE"]);
                self.write(&request, Asked::Role)
            }
        }
    }

    /// Begins a round if somebody waits for one.
    fn begin(&mut self) -> Result<(), &'static str> {
        let Some(acks) = &self.acks else { return Ok(()) };
        let mut request = Vec::new();
        {
            let mut rounds = acks.rounds.borrow_mut();
            if !rounds.is_due() {
                return Ok(());
            }
            let words = Words {
                sharded: self.worker.redis_is_at_least(7, 0),
                on_disk: self.worker.acks_on_disk(),
            };
            rounds.begin(words, &mut request);
        }
        self.write(&request, Asked::Round)
    }

    fn write(&mut self, request: &[u8], asked: Asked) -> Result<(), &'static str> {
        match self.stream.try_write(request) {
            Ok(length) if length == request.len() => self.asked.push_back(asked),
            Ok(_) => return Err("the connection takes no whole request"),
            // One that takes nothing is silent, which is for others to judge; a round has to be asked.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && asked == Asked::Role => {}
            Err(_) => return Err("the connection failed"),
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), &'static str> {
        let mut said = [0; 4096];
        match self.stream.try_read(&mut said) {
            Ok(0) => return Err("redis closed the connection"),
            Ok(length) => self.heard.extend_from_slice(&said[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return Err("the connection failed"),
        }
        while let Some(reply) = self.next_reply()? {
            self.replied(reply)?;
        }
        Ok(())
    }

    /// The next whole reply that was heard.
    fn next_reply(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        let scanned = self.scanner.scan(&self.heard[self.scanned..], 1, Heed::Nothing);
        self.scanned += scanned.used;
        match scanned.stop {
            Stop::Counted => {}
            Stop::Starved if scanned.replies == 1 => {}
            Stop::Starved if self.heard.len() < HEARD_BYTES_MAX => return Ok(None),
            Stop::Starved | Stop::Noted | Stop::Push | Stop::Malformed => return Err("unexpected bytes from redis"),
        }
        let rest = self.heard.split_off(self.scanned);
        self.scanned = 0;
        Ok(Some(std::mem::replace(&mut self.heard, rest)))
    }

    fn replied(&mut self, reply: Vec<u8>) -> Result<(), &'static str> {
        let first = self.round.is_empty();
        if (first && !testifies(&reply)) || reply.starts_with(b"-NOAUTH") {
            return Err("the server is of another epoch");
        }
        match self.asked.front() {
            None => return Err("unexpected bytes from redis"),
            Some(Asked::Role) => drop(self.asked.pop_front()),
            Some(Asked::Round) => {
                self.round.push(reply);
                if self.round.len() == ROUND_REPLIES {
                    self.asked.pop_front();
                    return self.round_ended();
                }
            }
        }
        Ok(())
    }

    fn round_ended(&mut self) -> Result<(), &'static str> {
        let replies = std::mem::take(&mut self.round);
        let ([before, published, waited, after], Some(acks)) = (&replies[..], &self.acks) else {
            return Ok(());
        };
        let outcome = {
            let mut rounds = acks.rounds.borrow_mut();
            let outcome = rounds.end([before, published, waited, after], &self.shard.members());
            self.shard.meets_strangers(rounds.strangers());
            outcome
        };
        match outcome {
            Outcome::Acknowledged(upto) => {
                // What came meanwhile need not wait until everybody is told.
                self.begin()?;
                self.shard.acknowledged(&self.worker, upto);
            }
            Outcome::Short => {
                self.begin()?;
                self.look();
            }
            Outcome::Void(why) => {
                self.complain(why);
                self.rests = true;
                self.look();
            }
            Outcome::Deposed(why) => return Err(why),
        }
        Ok(())
    }

    /// A round proved nothing; says so once, since the next may do no better.
    fn complain(&mut self, why: &'static str) {
        if self.complained.replace(why) != Some(why) {
            let master = self
                .stream
                .peer_addr()
                .map_or_else(|_| String::new(), |addr| addr.to_string());
            warn!(shard = %self.shard.id, %master, "replicas' acknowledgements cannot be asked for: {why}; trying again");
        }
    }

    /// Tells those who have waited too long.
    fn look(&self) {
        let Some(acks) = &self.acks else { return };
        let (counted, wanted) = {
            let rounds = acks.rounds.borrow();
            (rounds.counted(), rounds.asked_for())
        };
        let until_ms = clock::monotonic_ms().saturating_sub(self.worker.ack_timeout_ms());
        self.shard.not_acknowledged(&self.worker, until_ms, counted, wanted);
    }
}

/// Whether what a server says to ROLE speaks for it. One that is busy may say so.
fn testifies(said: &[u8]) -> bool {
    let against = [&b"-NOAUTH"[..], b"-NOPERM", b"*5\r\n$5\r\nslave\r\n"];
    !against.iter().any(|words| said.starts_with(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_testifies_and_a_replica_or_a_stranger_does_not() {
        assert!(testifies(b"*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n"));
        // Its replica announces itself by this name.
        assert!(testifies(
            b"*3\r\n$6\r\nmaster\r\n:1\r\n*1\r\n*3\r\n$5\r\nslave\r\n$4\r\n6379\r\n$1\r\n1\r\n"
        ));
        assert!(testifies(b"-BUSY Redis is busy\r\n"));
        assert!(!testifies(b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n"));
        assert!(!testifies(b"-NOAUTH Authentication required.\r\n"));
    }
}
