//! What becomes of a session's commands when their backend is lost or refuses them (design §7, rules A3, B14, B16).
//!
//! Invariant: nothing is re-sent that may have been executed, and nothing overtakes: answers come first, re-sent
//! commands are always the end of what the session had in flight.

/// What is known of one command whose connection is gone. A transaction sent as one block counts as one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Redis answered it, and nobody has seen the answer yet.
    Answered {
        /// It may have changed something: a write, a script, a published message.
        executed: bool,
    },
    /// Redis proved that it did not run it (see [`super::refusal`]).
    Refused,
    /// Not all of its bytes were written: Redis runs whole requests only, so it was not executed (B16).
    Unsent,
    /// Sent, and it changes nothing.
    SentRead,
    /// Sent, and it may have been executed.
    SentWrite,
}

/// What is done about one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client gets what Redis answered.
    Show,
    /// `-INDOUBT`: it may have been executed.
    InDoubt,
    /// `-MASTERDOWN`: it changed nothing, and a write of the session that came after it is executed or in doubt, so
    /// that sending it again would re-order (A3) or show a future the client has not asked for yet (B14).
    MasterDown,
    /// It is sent again.
    Resend,
}

impl Verdict {
    /// The error line the client gets, if it is one of ours.
    pub fn line(self) -> Option<&'static [u8]> {
        match self {
            Self::InDoubt => Some(
                b"-INDOUBT the master was lost before it answered: the write may or may not have been executed\r\n",
            ),
            Self::MasterDown => {
                Some(b"-MASTERDOWN the master was lost: this changed nothing and is not sent again\r\n")
            }
            Self::Show | Self::Resend => None,
        }
    }
}

/// Decides for all commands that one session had on the lost connection, in the order they were given.
pub fn plan(fates: &[Fate]) -> Vec<Verdict> {
    let settled = fates.iter().position(|fate| !matches!(fate, Fate::Answered { .. }));
    let Some(stop) = settled else {
        return vec![Verdict::Show; fates.len()];
    };
    let may_be_done = |fate: &Fate| matches!(fate, Fate::SentWrite | Fate::Answered { executed: true });
    let resent_from = fates.iter().rposition(may_be_done).map_or(stop, |at| stop.max(at + 1));
    let last_doubt = fates.iter().rposition(|fate| *fate == Fate::SentWrite);
    let verdict = |(at, fate): (usize, &Fate)| match fate {
        _ if at >= resent_from => Verdict::Resend,
        Fate::Answered { .. } => Verdict::Show,
        Fate::SentWrite => Verdict::InDoubt,
        // Redis itself would have shown the refusal and gone on.
        Fate::Refused if last_doubt.is_none_or(|doubt| doubt < at) => Verdict::Show,
        Fate::Refused | Fate::Unsent | Fate::SentRead => Verdict::MasterDown,
    };
    fates.iter().enumerate().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WRITTEN: Fate = Fate::Answered { executed: true };
    const READ: Fate = Fate::Answered { executed: false };

    #[test]
    fn sent_writes_are_in_doubt_and_the_rest_is_sent_again() {
        use Fate::{SentRead, SentWrite, Unsent};
        use Verdict::{InDoubt, MasterDown, Resend};
        assert_eq!(plan(&[SentRead, Unsent]), [Resend, Resend]);
        assert_eq!(plan(&[SentWrite, SentRead, Unsent]), [InDoubt, Resend, Resend]);
        assert_eq!(plan(&[SentRead, SentWrite, SentRead]), [MasterDown, InDoubt, Resend]);
    }

    #[test]
    fn refused_commands_are_sent_again_with_all_that_followed() {
        use Verdict::{Resend, Show};
        // The read saw a future without the write before it: its answer is thrown away.
        assert_eq!(
            plan(&[WRITTEN, Fate::Refused, READ, Fate::Refused, Fate::Unsent]),
            [Show, Resend, Resend, Resend, Resend]
        );
        assert_eq!(plan(&[READ, WRITTEN]), [Show, Show]);
    }

    #[test]
    fn a_refusal_before_an_executed_write_is_shown() {
        use Verdict::{Resend, Show};
        assert_eq!(
            plan(&[Fate::Refused, READ, WRITTEN, Fate::Refused, READ]),
            [Show, Show, Show, Resend, Resend]
        );
    }

    #[test]
    fn a_refusal_before_a_lost_write_is_masterdown() {
        use Verdict::{InDoubt, MasterDown, Show};
        assert_eq!(
            plan(&[Fate::Refused, READ, Fate::SentRead, Fate::SentWrite]),
            [MasterDown, Show, MasterDown, InDoubt]
        );
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop::sample::select(vec![
            WRITTEN,
            READ,
            Fate::Refused,
            Fate::Unsent,
            Fate::SentRead,
            Fate::SentWrite,
        ])
    }

    proptest! {
        #[test]
        fn nothing_done_is_sent_again_and_nothing_overtakes(fates in prop::collection::vec(fate(), 0..20)) {
            let verdicts = plan(&fates);
            prop_assert_eq!(verdicts.len(), fates.len());
            let resent = verdicts.iter().position(|verdict| *verdict == Verdict::Resend).unwrap_or(fates.len());
            prop_assert!(verdicts[resent..].iter().all(|verdict| *verdict == Verdict::Resend));
            for (at, (fate, verdict)) in fates.iter().zip(&verdicts).enumerate() {
                let doubt_follows = fates[at..].contains(&Fate::SentWrite);
                let fitting = match verdict {
                    Verdict::Resend => !matches!(fate, Fate::SentWrite | Fate::Answered { executed: true }),
                    Verdict::InDoubt => *fate == Fate::SentWrite,
                    Verdict::Show => matches!(fate, Fate::Answered { .. } | Fate::Refused),
                    Verdict::MasterDown => matches!(fate, Fate::Refused | Fate::Unsent | Fate::SentRead),
                };
                prop_assert!(fitting, "{:?} for {:?}", verdict, fate);
                if *fate == Fate::Refused && doubt_follows {
                    prop_assert_eq!(*verdict, Verdict::MasterDown);
                }
            }
        }

        #[test]
        fn what_nobody_may_have_run_is_always_sent_again(fates in prop::collection::vec(prop::sample::select(vec![READ, Fate::Refused, Fate::Unsent, Fate::SentRead]), 0..20)) {
            let shown = fates.iter().take_while(|fate| **fate == READ).count();
            let verdicts = plan(&fates);
            prop_assert!(verdicts[..shown].iter().all(|verdict| *verdict == Verdict::Show));
            prop_assert!(verdicts[shown..].iter().all(|verdict| *verdict == Verdict::Resend));
        }
    }
}
