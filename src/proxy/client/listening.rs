//! Whose reply a session listens to: scans' (rule A12), scripts' that were not seen before (rule B5), and what tells of
//! pointsman itself.
//!
//! Such a request is a run of its own, so that the window knows which bytes are its reply; inside a transaction it goes
//! over the session's own connection, where EXEC's reply is listened to. Refuses: reading replies, which `listener`
//! does.

use std::rc::Rc;

use super::cursor::{self, CursorReply};
use super::dispatch::Outcome;
use super::listener::{Ear, Listener, Listeners, Which, move_to, reserve_for};
use super::redaction::redacted;
use super::run::{Ride, Run};
use super::session::{Held, Session, State};
use super::transaction::Transaction;
use crate::command::{Class, Command, Concern, Lookup, Own};
use crate::proxy::backend::Lane;
use crate::proxy::scripts::{BODY_BYTES_MAX, Known, ScriptReply};
use crate::proxy::section;
use crate::resp::Args;
use crate::route::cursor::Scope;
use crate::topology::RunId;

/// What stands before the body in a request, at most.
const HEAD_BYTES_MAX: usize = 1024;
const TOO_MUCH: &[u8] =
    b"-ERR pointsman takes at most 1024 scans, new scripts and questions about the server in one transaction\r\n";

impl Session {
    /// Takes note of what a request brings that is about to join a run.
    pub(super) fn concerns(&self, concern: Concern, args: &Args, ride: &mut Ride) {
        match concern {
            // Those ride no lane.
            Concern::None | Concern::Own(_) => {}
            Concern::Cursor(_) => ride.alone = true,
            Concern::Body => {
                let known = self.knows(args);
                ride.alone = known == Known::Not;
                ride.is_masters |= known != Known::Everywhere;
            }
            Concern::Digest => {
                let known = self
                    .worker
                    .shelf()
                    .digest(self.worker.scripts(), args.get(1).unwrap_or_default());
                ride.is_masters |= known != Known::Everywhere;
            }
        }
    }

    /// Whether a reply to the request would be listened to.
    pub(super) fn would_listen(&self, command: &Command, args: &Args) -> bool {
        match command.concern {
            Concern::Cursor(_) | Concern::Own(_) => true,
            Concern::Body => self.knows(args) == Known::Not,
            Concern::None | Concern::Digest => false,
        }
    }

    /// What is listened to in the reply to a request that goes to a server in this life, and the request to send in its
    /// place, if it is another.
    pub(super) fn listen(
        &self,
        command: &Command,
        args: &Args,
        life: Option<&RunId>,
    ) -> (Option<Ear>, Option<Vec<u8>>) {
        match command.concern {
            Concern::Cursor(at) => {
                let given = args.get(at).unwrap_or_default();
                let scope = match command.class {
                    Class::Everywhere => Scope::of_scan(given, self.worker.shard_count()),
                    _ => Scope::ONE,
                };
                let instead = cursor::for_server(given, scope.tag(life));
                let instead = instead.map(|cursor| cursor::with_cursor(args, at, cursor));
                (Some(Ear::Cursor(CursorReply::new(scope, life))), instead)
            }
            Concern::Body if self.knows(args) == Known::Not => {
                let body = args.get(1).unwrap_or_default();
                let reply = ScriptReply::new(self.worker.scripts(), body, life);
                (Some(Ear::Script(reply)), None)
            }
            Concern::Own(own) => {
                let (redaction, instead) = redacted(own, args, self.worker.census());
                let redaction = redaction.map(|redaction| match own {
                    Own::Clients if section::is_wanted(args) => redaction.and(section::section(&self.worker)),
                    _ => redaction,
                });
                (redaction.map(Ear::Redacts), instead)
            }
            Concern::None | Concern::Body | Concern::Digest => (None, None),
        }
    }

    /// Appends a run of one request whose reply is listened to.
    pub(super) fn append_alone(self: &Rc<Self>, state: &mut State, lane: &Rc<Lane>, run: &Run, frame: &[u8]) {
        if run.writes {
            state.wrote(&lane.shard);
        }
        let mut spans = Vec::new();
        let heard = Args::read(frame, &mut spans).and_then(|args| match self.worker.commands().lookup(&args) {
            Lookup::Known(command) => Some(self.listen(command, &args, lane.life())),
            Lookup::Unknown | Lookup::UnknownSubcommand(_) => None,
        });
        let (ear, instead) = heard.unwrap_or_default();
        let listener = ear.map(Listener::One);
        let id = reserve_for(&mut state.window, &mut state.listeners, lane.number, listener);
        let frame = instead.as_deref().unwrap_or(frame);
        lane.append(self, id, 1, frame, &self.worker.footprint(), run.cover());
        if run.changes && !state.blocks_on(lane) {
            lane.writes();
        }
        self.worker.watch_lanes();
    }

    /// Prepares a request to be sent again to a server in this life.
    pub(super) fn begin_anew(&self, listeners: &mut Listeners, held: &mut Held, life: Option<&RunId>) {
        if move_to(listeners, Which::Run(held.run), life)
            && let Some(anew) = cursor::begun_anew(&held.bytes, self.worker.commands())
        {
            held.bytes = anew;
        }
    }

    /// Refuses a request inside a transaction in whose reply too much is listened to already.
    pub(super) fn listens_to_too_much(self: &Rc<Self>, command: &Command, args: &Args) -> Option<Outcome> {
        let listens = matches!(command.concern, Concern::Cursor(_) | Concern::Own(_));
        let own = matches!(
            command.class_for(args),
            Class::EveryNode | Class::Session | Class::Subscribe
        );
        if !listens && !own && !matches!(&*command.name, "wait" | "waitaof") {
            return None;
        }
        let full = {
            let state = self.state();
            let pinned = state.pinned.as_ref();
            state.transaction == Transaction::Queueing && pinned.is_some_and(|pinned| pinned.elements.is_full())
        };
        full.then(|| {
            self.abort_transaction();
            self.refuse(|out| out.extend_from_slice(TOO_MUCH))
        })
    }

    /// Whether a request of at least `need` bytes is to be collected until the body of its script is there.
    pub(super) fn waits_for_body(&self, args: &Args, need: usize) -> bool {
        args.get(1).is_none() && need <= BODY_BYTES_MAX + HEAD_BYTES_MAX
    }

    fn knows(&self, args: &Args) -> Known {
        let body = args.get(1).unwrap_or_default();
        self.worker.shelf().body(self.worker.scripts(), body)
    }
}
