//! Which commands block, and where their time-outs are: a blocked command that is issued again after a re-point gets
//! the time that is left.

use crate::resp::Args;

use super::entry::Command;
use super::options;

/// What a time-out counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds, possibly with a fraction; 0 is for ever.
    Seconds,
    /// Whole milliseconds; 0 is for ever.
    Milliseconds,
}

/// How a blocking command says for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It does not block, or nobody knows how to say it.
    Unsaid,
    /// By its last argument.
    Last(Unit),
    /// By this argument.
    At(usize, Unit),
    /// By the option BLOCK, without which it does not block.
    Option,
}

impl Patience {
    /// How the command of this name says it.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "blpop" | "brpop" | "bzpopmin" | "bzpopmax" | "blmove" | "brpoplpush" => Self::Last(Unit::Seconds),
            "blmpop" | "bzmpop" => Self::At(1, Unit::Seconds),
            "xread" | "xreadgroup" => Self::Option,
            "wait" | "waitaof" => Self::Last(Unit::Milliseconds),
            _ => Self::Unsaid,
        }
    }
}

impl Command {
    /// Whether the command may block with these arguments. XREAD and XREADGROUP do only with BLOCK; where their options
    /// are not understood the answer is yes if the word is anywhere.
    pub fn blocks(&self, args: &Args) -> bool {
        if self.patience != Patience::Option {
            return self.is_blocking();
        }
        let options = options::of_streams(args);
        let anywhere = || args.iter().any(|word| options::is(word, "BLOCK"));
        options.block.is_some() || (options.strange && anywhere())
    }

    /// Where the streams are of which the request wants only what is newer than the request itself, and where it says so:
    /// XREAD's `$`.
    pub fn latest_at(&self, args: &Args) -> Vec<(usize, usize)> {
        let Some(streams) = options::of_streams(args).streams.filter(|_| &*self.name == "xread") else {
            return Vec::new();
        };
        let count = (args.len() - streams - 1) / 2;
        let pairs = (streams + 1..=streams + count).map(|key| (key, key + count));
        pairs.filter(|(_, id)| args.get(*id) == Some(b"$")).collect()
    }

    /// Where the time-out is among these arguments and what it counts; `None` if there is none.
    pub fn timeout_at(&self, args: &Args) -> Option<(usize, Unit)> {
        let (at, unit) = match self.patience {
            Patience::Unsaid => return None,
            Patience::Last(unit) => (args.len().checked_sub(1)?, unit),
            Patience::At(at, unit) => (at, unit),
            Patience::Option => (options::of_streams(args).block?, Unit::Milliseconds),
        };
        (at > 0 && at < args.len()).then_some((at, unit))
    }
}

#[cfg(test)]
mod tests {
    use crate::command::testing::{command, with_args};

    use super::*;

    fn asked(line: &str) -> (bool, Option<(usize, Unit)>) {
        with_args(line, |args| {
            let command = command(args);
            (command.blocks(args), command.timeout_at(args))
        })
    }

    #[test]
    fn time_outs_are_found() {
        use Unit::{Milliseconds, Seconds};
        for (line, at, unit) in [
            ("BLPOP a b 0", 3, Seconds),
            ("BLMOVE a b LEFT LEFT 1.5", 5, Seconds),
            ("brpoplpush a b 1", 3, Seconds),
            ("BZPOPMIN a 1", 2, Seconds),
            ("BLMPOP 3 1 a LEFT", 1, Seconds),
            ("BZMPOP 3 1 a MIN COUNT 2", 1, Seconds),
            ("WAIT 1 50", 2, Milliseconds),
            ("WAITAOF 1 0 50", 3, Milliseconds),
            ("XREAD COUNT 2 block 7 STREAMS a $", 4, Milliseconds),
            ("XREADGROUP GROUP block c BLOCK 7 NOACK STREAMS a >", 5, Milliseconds),
        ] {
            assert_eq!(asked(line), (true, Some((at, unit))), "{line}");
        }
    }

    #[test]
    fn streams_of_which_only_news_is_wanted_are_found() {
        let latest = |line: &str| with_args(line, |args| command(args).latest_at(args));
        assert_eq!(latest("XREAD BLOCK 0 STREAMS a b c $ 0 $"), [(4, 7), (6, 9)]);
        assert_eq!(latest("XREAD BLOCK 0 STREAMS $ 0"), []);
        assert_eq!(latest("XREADGROUP GROUP g c BLOCK 0 STREAMS a $"), []);
        assert_eq!(
            latest("XREAD BLOCK 0 STREAMS a b $"),
            [],
            "it has no id for each of them"
        );
        assert_eq!(latest("BLPOP $ 0"), []);
    }

    #[test]
    fn reads_of_streams_block_only_when_asked_to() {
        for line in [
            "XREAD STREAMS block 0",
            "XREADGROUP GROUP block c STREAMS a >",
            "XREAD COUNT block STREAMS a 0",
            "GET block",
        ] {
            assert_eq!(asked(line), (false, None), "{line}");
        }
        assert_eq!(asked("XREAD FUTURE 1 BLOCK 5 STREAMS a 0"), (true, None));
        assert_eq!(asked("XREAD BLOCK"), (true, None));
    }
}
