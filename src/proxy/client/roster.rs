//! CLIENT LIST, INFO and KILL: our own clients, of all workers, in Redis' words. Redis' connections are none of theirs.

use std::rc::Rc;

use super::close::CloseReason;
use super::dispatch::Outcome;
use super::local::put_bulk;
use super::portrait::Portrait;
use super::selection::Selection;
use super::session::{Park, Session};
use crate::command::{Command, refusal};
use crate::proxy::roll::Question;
use crate::proxy::worker::Worker;
use crate::resp::{Args, put_i64};

impl Session {
    pub(super) fn client_info(self: &Rc<Self>, frame: &[u8]) -> Outcome {
        let line = self.portrait(frame.len()).line();
        self.say_text(&[&line[..], b"\n"].concat())
    }

    pub(super) fn client_list(self: &Rc<Self>, args: &Args, frame: &[u8]) -> Outcome {
        let of = match Selection::listed(args) {
            Ok(of) => of,
            Err(line) => return self.refuse(|out| out.extend_from_slice(&line)),
        };
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        // By the time the workers answer, this request is forgotten: its own line is made now.
        let own = self.portrait(frame.len());
        let own = of.means(&own).then(|| own.line());
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let mut text = Vec::new();
            for (id, line) in session.worker.roll().list(&of).await {
                let own = own.as_ref().filter(|_| id == session.id);
                text.extend_from_slice(own.unwrap_or(&line));
                text.push(b'\n');
            }
            session.say_text(&text);
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    pub(super) fn client_kill(self: &Rc<Self>, command: &Command, args: &Args) -> Outcome {
        if args.len() == 2 {
            return self.refuse(|out| refusal::wrong_arity(command, out));
        }
        let mut of = match Selection::killed(args, self.id) {
            Ok(of) => of,
            Err(line) => return self.refuse(|out| out.extend_from_slice(&line)),
        };
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        // Who kills itself is told so first.
        let own = of.means(&self.portrait(0));
        of.spare(self.id);
        let old_form = args.len() == 3;
        let session = self.clone();
        tokio::task::spawn_local(async move {
            let killed = session.worker.roll().kill(&of).await + u64::from(own);
            session.refuse(|out| match (old_form, killed) {
                (true, 0) => out.extend_from_slice(b"-ERR No such client\r\n"),
                (true, _) => out.extend_from_slice(b"+OK\r\n"),
                (false, _) => {
                    out.push(b':');
                    put_i64(out, i64::try_from(killed).unwrap_or(i64::MAX));
                    out.extend_from_slice(b"\r\n");
                }
            });
            if own {
                session.close(CloseReason::Killed);
            }
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    /// Goes on after what it waited for aside.
    pub(super) fn resume(&self) {
        self.state().park = Park::Open;
        self.wake();
    }

    /// Text for people: verbatim where the protocol has that.
    fn say_text(self: &Rc<Self>, text: &[u8]) -> Outcome {
        let resp3 = self.state().login.resp3;
        self.refuse(|out| {
            if resp3 {
                out.push(b'=');
                put_i64(out, i64::try_from(text.len() + 4).unwrap_or(i64::MAX));
                out.extend_from_slice(b"\r\ntxt:");
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            } else {
                put_bulk(out, text);
            }
        })
    }
}

/// Answers what another session, of this worker or of another, asks about this worker's clients. That it has ended
/// meanwhile is no concern.
pub fn answer(worker: &Worker, question: Question) {
    let meant = |of: &Selection| -> Vec<(Rc<Session>, Portrait)> {
        let clients = worker.clients();
        let described = clients.into_iter().map(|client| {
            let portrait = client.portrait(0);
            (client, portrait)
        });
        described.filter(|(_, portrait)| of.means(portrait)).collect()
    };
    match question {
        Question::List { of, answer } => {
            let lines = meant(&of)
                .iter()
                .map(|(client, portrait)| (client.id, portrait.line()))
                .collect();
            answer.send(lines).unwrap_or_default();
        }
        Question::Kill { of, answer } => {
            let meant = meant(&of);
            for (client, _) in &meant {
                client.close(CloseReason::Killed);
            }
            answer.send(meant.len() as u64).unwrap_or_default();
        }
    }
}
