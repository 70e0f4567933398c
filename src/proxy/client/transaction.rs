//! Where a session stands between WATCH, MULTI and EXEC on a connection of its own, and what becomes of it when that
//! connection is lost. Pure.
//!
//! ```text
//!            WATCH             MULTI
//!   None ------------> Watching -----> Queueing --EXEC, DISCARD--> None
//!                         | lost          | lost     | a request that we refuse
//!                         v               v          v
//!                       Stale --MULTI--> Doomed    Lost, Aborted, Refused
//! ```
//! The states of the lower row have no connection: their requests are answered here until EXEC or DISCARD, which end
//! all of them. Invariant: nothing that was asked for within one of those is ever executed.

use crate::proxy::backend::Role;
use crate::route::{Fate, Verdict, plan};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transaction {
    /// Outside any.
    None,
    /// WATCH was sent.
    Watching,
    /// MULTI was sent.
    Queueing,
    /// What was watched may have changed unseen: the next EXEC answers as if it had.
    Stale,
    /// MULTI after `Stale`.
    Doomed,
    /// Lost with its master: every request says so, and EXEC aborts.
    Lost,
    /// One of its requests was refused by us, which makes EXEC abort as it does in Redis.
    Aborted,
    /// One of its requests is none that we pass on, which EXEC will say.
    Refused,
}

/// What a request is to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Other,
}

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// It goes to the session's own connection.
    Forward,
    /// Transactions have nothing to say about it.
    Outside,
    /// It is answered here.
    Say(Told),
}

/// What a client is told instead of what Redis would have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Ok,
    Queued,
    /// EXEC's answer when a watched key changed.
    Nil,
    Aborted,
    Refused,
    LostInside,
    Nested,
    WatchInside,
    ExecWithoutMulti,
    DiscardWithoutMulti,
    /// As for a command outside transactions.
    Verdict(Verdict),
}

impl Word {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "multi" => Self::Multi,
            "exec" => Self::Exec,
            "discard" => Self::Discard,
            "watch" => Self::Watch,
            "unwatch" => Self::Unwatch,
            _ => Self::Other,
        }
    }
}

impl Told {
    /// The line; nothing for what only the connection's ledger knows.
    pub(super) fn line(self, resp3: bool) -> &'static [u8] {
        match self {
            Self::Ok => b"+OK\r\n",
            Self::Queued => b"+QUEUED\r\n",
            Self::Nil if resp3 => b"_\r\n",
            Self::Nil => b"*-1\r\n",
            Self::Aborted => b"-EXECABORT Transaction discarded because of previous errors.\r\n",
            Self::Refused => {
                b"-EXECABORT Transaction discarded because of: NOPERM pointsman does not pass on one of its commands\r\n"
            }
            Self::LostInside => b"-MASTERDOWN transaction lost with its master: not executed\r\n",
            Self::Nested => b"-ERR MULTI calls can not be nested\r\n",
            Self::WatchInside => b"-ERR WATCH inside MULTI is not allowed\r\n",
            Self::ExecWithoutMulti => b"-ERR EXEC without MULTI\r\n",
            Self::DiscardWithoutMulti => b"-ERR DISCARD without MULTI\r\n",
            Self::Verdict(verdict) => verdict.line().unwrap_or_default(),
        }
    }
}

impl Transaction {
    /// Whether the session's connection has something on it that would be lost with it.
    pub(super) fn needs_connection(self) -> bool {
        matches!(self, Self::Watching | Self::Queueing)
    }

    /// Whether it is one without a connection, between MULTI and EXEC.
    pub(super) fn is_ghost(self) -> bool {
        matches!(self, Self::Doomed | Self::Lost | Self::Aborted | Self::Refused)
    }

    /// Whether any request may have to do with it.
    pub(super) fn concerns_all(self) -> bool {
        self.needs_connection() || self.is_ghost()
    }

    /// Where it stands once its connection is gone.
    pub(super) fn lost(self) -> Self {
        match self {
            Self::Watching => Self::Stale,
            Self::Queueing => Self::Lost,
            Self::None | Self::Stale | Self::Doomed | Self::Lost | Self::Aborted | Self::Refused => self,
        }
    }

    /// Where it stands once its connection proves never to have been: nothing was lost with a master.
    pub(super) fn unopened(self) -> Self {
        match self {
            Self::Queueing => Self::Aborted,
            Self::Watching => Self::Stale,
            Self::None | Self::Stale | Self::Doomed | Self::Lost | Self::Aborted | Self::Refused => self,
        }
    }

    /// Where it stands once a request was refused that Redis has not seen.
    pub(super) fn aborted(self) -> Self {
        match self {
            Self::Queueing | Self::Doomed => Self::Aborted,
            Self::None | Self::Watching | Self::Stale | Self::Lost | Self::Aborted | Self::Refused => self,
        }
    }

    /// Where it stands once a request was queued that is not passed on: what changed since WATCH no longer matters.
    pub(super) fn refused(self) -> Self {
        match self {
            Self::Queueing | Self::Doomed => Self::Refused,
            Self::None | Self::Watching | Self::Stale | Self::Lost | Self::Aborted | Self::Refused => self,
        }
    }

    /// What a request does, and where the session stands after it.
    pub(super) fn on(self, word: Word) -> (Reaction, Self) {
        use Reaction::{Forward, Say};
        match self {
            Self::None | Self::Watching | Self::Stale => self.on_outside(word),
            Self::Queueing => match word {
                Word::Exec | Word::Discard => (Forward, Self::None),
                Word::Multi | Word::Watch | Word::Unwatch | Word::Other => (Forward, self),
            },
            Self::Doomed | Self::Lost | Self::Aborted | Self::Refused => match word {
                Word::Exec if self == Self::Doomed => (Say(Told::Nil), Self::None),
                Word::Exec if self == Self::Refused => (Say(Told::Refused), Self::None),
                Word::Exec => (Say(Told::Aborted), Self::None),
                Word::Discard => (Say(Told::Ok), Self::None),
                Word::Multi => (Say(Told::Nested), self),
                Word::Watch => (Say(Told::WatchInside), self),
                Word::Unwatch | Word::Other if self == Self::Lost => (Say(Told::LostInside), self),
                Word::Unwatch | Word::Other => (Say(Told::Queued), self),
            },
        }
    }

    fn on_outside(self, word: Word) -> (Reaction, Self) {
        use Reaction::{Forward, Outside, Say};
        match (word, self) {
            (Word::Exec, _) => (Say(Told::ExecWithoutMulti), self),
            (Word::Discard, _) => (Say(Told::DiscardWithoutMulti), self),
            (Word::Multi, Self::Stale) => (Say(Told::Ok), Self::Doomed),
            (Word::Multi, _) => (Forward, Self::Queueing),
            (Word::Watch, Self::Stale) => (Say(Told::Ok), self),
            (Word::Watch, _) => (Forward, Self::Watching),
            (Word::Unwatch, Self::Watching) => (Forward, Self::None),
            (Word::Unwatch, _) => (Say(Told::Ok), Self::None),
            (Word::Other, Self::Watching) => (Forward, self),
            (Word::Other, _) => (Outside, self),
        }
    }
}

/// Decides about everything that was in flight on a lost connection of a session's own, in the order it was given.
/// `now` is where the session stands behind all of it.
pub(super) fn bury(commands: &[(Role, Fate)], now: Transaction) -> Vec<Told> {
    let first = commands.iter().find_map(|(role, _)| match role {
        Role::Multi => Some(false),
        Role::Exec | Role::Discard => Some(true),
        Role::Plain | Role::Block | Role::Watch | Role::Forgotten => None,
    });
    let mut inside = first.unwrap_or(now == Transaction::Queueing);
    let (mut spoiled, mut settled) = (false, 0);
    let mut told = Vec::with_capacity(commands.len());
    for (at, (role, fate)) in commands.iter().enumerate() {
        if inside || matches!(role, Role::Multi | Role::Watch) {
            settled = at + 1;
        }
        spoiled |= inside && *fate == Fate::Refused;
        told.push(match (role, fate) {
            (_, Fate::Answered { .. }) => Told::Verdict(Verdict::Show),
            (Role::Multi | Role::Discard, _) => Told::Ok,
            (Role::Watch, _) if !inside => Told::Ok,
            (Role::Exec, Fate::SentWrite) if !spoiled => Told::Verdict(Verdict::InDoubt),
            (Role::Exec, _) => Told::Aborted,
            (Role::Forgotten, Fate::SentWrite) => Told::Verdict(Verdict::InDoubt),
            (Role::Plain | Role::Block | Role::Watch | Role::Forgotten, _) if inside => Told::LostInside,
            (_, Fate::SentWrite) => Told::Verdict(Verdict::InDoubt),
            (_, Fate::Refused | Fate::Unsent | Fate::SentRead) => Told::Verdict(Verdict::MasterDown),
        });
        match role {
            Role::Multi => (inside, spoiled) = (true, false),
            Role::Exec | Role::Discard => inside = false,
            Role::Plain | Role::Block | Role::Watch | Role::Forgotten => {}
        }
    }
    // What comes after the last of the transaction is judged like commands of any lane.
    let fates: Vec<Fate> = commands[settled..].iter().map(|(_, fate)| *fate).collect();
    told.truncate(settled);
    told.extend(plan(&fates).into_iter().map(Told::Verdict));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: Told = Told::Verdict(Verdict::Show);
    const IN_DOUBT: Told = Told::Verdict(Verdict::InDoubt);
    const RESENT: Told = Told::Verdict(Verdict::Resend);
    const ANSWERED: Fate = Fate::Answered { executed: false };

    #[test]
    fn an_exec_that_was_sent_is_in_doubt_and_one_that_was_not_aborts() {
        let sent = [
            (Role::Multi, ANSWERED),
            (Role::Plain, Fate::SentWrite),
            (Role::Exec, Fate::SentWrite),
            (Role::Plain, Fate::SentRead),
        ];
        assert_eq!(
            bury(&sent, Transaction::None),
            [SHOWN, Told::LostInside, IN_DOUBT, RESENT]
        );
        let unsent = [(Role::Plain, Fate::Unsent), (Role::Exec, Fate::Unsent)];
        assert_eq!(bury(&unsent, Transaction::None), [Told::LostInside, Told::Aborted]);
    }

    #[test]
    fn what_is_not_passed_on_is_queued_and_exec_says_why_it_does_nothing() {
        let refused = Transaction::Queueing.refused();
        assert_eq!(refused.on(Word::Other), (Reaction::Say(Told::Queued), refused));
        assert_eq!(
            refused.on(Word::Exec),
            (Reaction::Say(Told::Refused), Transaction::None)
        );
        assert_eq!(refused.on(Word::Discard), (Reaction::Say(Told::Ok), Transaction::None));
        assert_eq!(Transaction::Lost.refused(), Transaction::Lost);
    }

    #[test]
    fn a_refused_request_spoils_its_transaction_only() {
        let commands = [
            (Role::Plain, Fate::Refused),
            (Role::Exec, Fate::SentWrite),
            (Role::Multi, Fate::SentRead),
            (Role::Exec, Fate::SentWrite),
        ];
        assert_eq!(
            bury(&commands, Transaction::None),
            [Told::LostInside, Told::Aborted, Told::Ok, IN_DOUBT]
        );
    }

    #[test]
    fn a_lost_multi_refuses_until_exec_and_a_lost_watch_empties_it() {
        let lost = Transaction::Queueing.lost();
        assert_eq!(lost.on(Word::Other), (Reaction::Say(Told::LostInside), lost));
        assert_eq!(lost.on(Word::Exec), (Reaction::Say(Told::Aborted), Transaction::None));
        assert_eq!(lost.on(Word::Discard), (Reaction::Say(Told::Ok), Transaction::None));
        let stale = Transaction::Watching.lost();
        assert_eq!(stale.on(Word::Other), (Reaction::Outside, stale));
        let (said, doomed) = stale.on(Word::Multi);
        assert_eq!((said, doomed), (Reaction::Say(Told::Ok), Transaction::Doomed));
        assert_eq!(doomed.on(Word::Other), (Reaction::Say(Told::Queued), doomed));
        assert_eq!(doomed.on(Word::Exec), (Reaction::Say(Told::Nil), Transaction::None));
    }
}
