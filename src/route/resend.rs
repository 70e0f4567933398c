//! What becomes of a session's commands when their backend is lost (design §7, rules A3 and B14).
//!
//! Invariant: nothing is re-sent that may have been executed, and nothing overtakes: answers come first, re-sent
//! commands are always the end of what the session had in flight.

/// What is known of one unanswered command whose connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not all of its bytes were written: Redis runs whole requests only, so it was not executed (B16).
    Unsent,
    /// Sent, and it changes nothing.
    SentRead,
    /// Sent, and it may have been executed.
    SentWrite,
}

/// What a client is told about a command that is not re-sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `-INDOUBT`: it may have been executed.
    InDoubt,
    /// `-MASTERDOWN`: it was not answered and a later write of the session is in doubt, so that reading again could
    /// show a future the client has not asked for yet (B14).
    MasterDown,
}

impl Answer {
    /// The error line the client gets.
    pub fn line(self) -> &'static [u8] {
        match self {
            Self::InDoubt => {
                b"-INDOUBT the master was lost before it answered: the write may or may not have been executed\r\n"
            }
            Self::MasterDown => b"-MASTERDOWN the master was lost: this was not answered and is not sent again\r\n",
        }
    }
}

/// Answers for the first commands; all that follow are to be sent again, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One answer for each of the first commands.
    pub answers: Vec<Answer>,
}

/// Decides for all commands that one session had on the lost connection, in the order they were given.
pub fn plan(fates: &[Fate]) -> Plan {
    let last_write = fates.iter().rposition(|fate| *fate == Fate::SentWrite);
    let answered = last_write.map_or(0, |at| at + 1);
    let answers = fates[..answered]
        .iter()
        .map(|fate| match fate {
            Fate::SentWrite => Answer::InDoubt,
            Fate::SentRead | Fate::Unsent => Answer::MasterDown,
        })
        .collect();
    Plan { answers }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sent_writes_are_in_doubt_and_the_rest_is_sent_again() {
        use Fate::{SentRead, SentWrite, Unsent};
        assert_eq!(plan(&[SentRead, Unsent]).answers, []);
        assert_eq!(plan(&[SentWrite, SentRead, Unsent]).answers, [Answer::InDoubt]);
        assert_eq!(plan(&[SentRead, SentWrite, SentRead]).answers, [Answer::MasterDown, Answer::InDoubt]);
    }

    proptest! {
        #[test]
        fn no_write_that_was_sent_is_ever_sent_again(fates in prop::collection::vec(prop_oneof![Just(Fate::Unsent), Just(Fate::SentRead), Just(Fate::SentWrite)], 0..20)) {
            let plan = plan(&fates);
            prop_assert!(fates[plan.answers.len()..].iter().all(|fate| *fate != Fate::SentWrite));
        }
    }
}
