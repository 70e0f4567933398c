//! Where a request's keys are.
//!
//! Follows key specifications as the server does, and a few hand-written finders where specifications do not tell the
//! truth. Invariant: every position handed out is an argument of the request (1..argc), and no walk takes more steps
//! than there are arguments. A count that is no number, negative or larger than the arguments is an error: the server
//! refuses such a request too, with its own words.

use thiserror::Error;

use crate::resp::{Args, parse_i64};

use super::entry::{Command, Finder};
use super::options;
use super::spec::{Begin, Find, KeyKind, KeySpec};

/// Where the keys of one request are; kept by its caller and used again, so that the common path allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct KeyPositions {
    found: Vec<KeyPosition>,
    complete: bool,
}

/// Where one key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPosition {
    /// Which argument, the command's name being 0.
    pub at: u32,
    /// What it is.
    pub kind: KeyKind,
}

/// Why the keys of a request cannot be found. The server refuses such a request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// An argument is missing where a key or a number of keys belongs.
    #[error("too few arguments")]
    Missing,
    /// The number of keys is no whole number.
    #[error("the number of keys is no number")]
    NotANumber,
    /// The number of keys is below zero.
    #[error("the number of keys is negative")]
    Negative,
    /// There are not as many arguments as the number of keys asks for.
    #[error("the number of keys is greater than the number of arguments")]
    TooMany,
    /// XREAD has not as many ids as streams.
    #[error("the list of streams is unbalanced")]
    Unbalanced,
}

/// Positions above which the memory is given back after use; 8 bytes each.
const KEPT_MAX: usize = 1_024;

impl KeyPositions {
    /// Room for the keys of a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// The positions, in the order of the key specifications; a key may be named twice.
    pub fn as_slice(&self) -> &[KeyPosition] {
        &self.found
    }

    /// The positions of keys proper, without shard channels: these are fenced.
    pub fn keys(&self) -> impl Iterator<Item = usize> + '_ {
        let keys = self.found.iter().filter(|position| position.kind == KeyKind::Key);
        keys.map(|position| position.at as usize)
    }

    /// Whether these are all the keys that the request names. If not, it must be taken to concern any key.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    fn clear(&mut self) {
        self.found.clear();
        self.found.shrink_to(KEPT_MAX);
        self.complete = false;
    }

    fn push(&mut self, at: usize, kind: KeyKind) {
        if let Ok(at) = u32::try_from(at) {
            self.found.push(KeyPosition { at, kind });
        }
    }

    fn push_range(&mut self, range: impl Iterator<Item = usize>) {
        for at in range {
            self.push(at, KeyKind::Key);
        }
    }
}

impl Command {
    /// Finds the keys of a request for this command into `out`, which is emptied first. After an error `out` holds
    /// what was found until then and is not complete.
    pub fn keys(&self, args: &Args, out: &mut KeyPositions) -> Result<(), KeyError> {
        out.clear();
        if let Some(at) = self.sole_key() {
            let at = at as usize;
            args.get(at).ok_or(KeyError::Missing)?;
            out.push(at, KeyKind::Key);
            out.complete = true;
            return Ok(());
        }
        let complete = match self.finder {
            Finder::Specs => self.by_specs(args, out)?,
            Finder::Streams => self.of_streams(args, out)?,
            Finder::Sort => first_and(args, options::of_sort(args).store, out)?,
            Finder::Radius => first_and(args, options::of_radius(args), out)?,
            Finder::Migrate => of_migrate(args, out)?,
        };
        out.complete = complete;
        Ok(())
    }

    fn by_specs(&self, args: &Args, out: &mut KeyPositions) -> Result<bool, KeyError> {
        for spec in &self.specs {
            if let Some(first) = begin(spec, args)? {
                follow(spec, first, args.len(), args, out)?;
            }
        }
        Ok(self.names_all_keys)
    }

    fn of_streams(&self, args: &Args, out: &mut KeyPositions) -> Result<bool, KeyError> {
        let options = options::of_streams(args);
        if options.strange {
            self.by_specs(args, out)?;
            return Ok(false);
        }
        let first = options.streams.ok_or(KeyError::Missing)? + 1;
        let count = args.len().saturating_sub(first);
        if count == 0 || count % 2 != 0 {
            return Err(KeyError::Unbalanced);
        }
        out.push_range(first..first + count / 2);
        Ok(true)
    }
}

/// The first argument and perhaps a destination.
fn first_and(args: &Args, destination: Option<usize>, out: &mut KeyPositions) -> Result<bool, KeyError> {
    args.get(1).ok_or(KeyError::Missing)?;
    out.push_range(std::iter::once(1).chain(destination));
    Ok(true)
}

fn of_migrate(args: &Args, out: &mut KeyPositions) -> Result<bool, KeyError> {
    let key = args.get(3).ok_or(KeyError::Missing)?;
    match options::of_migrate(args) {
        Some(first) if key.is_empty() => out.push_range(first..args.len()),
        _ => out.push(3, KeyKind::Key),
    }
    Ok(true)
}

/// The first argument of a group, or `None` if the group is not there.
fn begin(spec: &KeySpec, args: &Args) -> Result<Option<usize>, KeyError> {
    match &spec.begin {
        Begin::Index(index) => Ok(Some(*index as usize)),
        Begin::Unknown => Ok(None),
        Begin::Keyword(word, from) => {
            let is_word = |at: &usize| args.get(*at).is_some_and(|found| options::is(found, word));
            let offset = from.unsigned_abs() as usize;
            let found = if *from >= 0 {
                (offset.max(1)..args.len()).find(is_word)
            } else {
                let end = args.len().checked_sub(offset).ok_or(KeyError::Missing)?;
                (1..=end).rev().find(is_word)
            };
            Ok(found.map(|at| at + 1))
        }
    }
}

/// Hands out the keys of a group that begins at `first`.
fn follow(spec: &KeySpec, first: usize, argc: usize, args: &Args, out: &mut KeyPositions) -> Result<(), KeyError> {
    let (first, last, step) = match spec.find {
        Find::Unknown => return Ok(()),
        Find::Range { last, step, limit } => {
            let Some(last) = last_of_range(first, last, limit, argc)? else {
                return Ok(());
            };
            (first, last, step)
        }
        Find::Count {
            number,
            first: skip,
            step,
        } => {
            let number = args.get(first + number as usize).ok_or(KeyError::Missing)?;
            let Some(count) = key_count(number, argc)?.checked_sub(1) else {
                return Ok(());
            };
            let first = first + skip as usize;
            (first, first.saturating_add(count.saturating_mul(step as usize)), step)
        }
    };
    if last >= argc {
        return Err(KeyError::TooMany);
    }
    for at in (first..=last).step_by(step.max(1) as usize) {
        out.push(at, spec.kind);
    }
    Ok(())
}

/// The last argument of a range, or `None` if the range is empty, which is allowed only where its end depends on argc.
fn last_of_range(first: usize, last: i32, limit: u32, argc: usize) -> Result<Option<usize>, KeyError> {
    let distance = last.unsigned_abs() as usize;
    if last >= 0 {
        let last = first.saturating_add(distance);
        return if last < argc {
            Ok(Some(last))
        } else {
            Err(KeyError::Missing)
        };
    }
    let end = match limit {
        0 | 1 => argc,
        _ => first + argc.saturating_sub(first) / limit as usize,
    };
    Ok(end.checked_sub(distance).filter(|last| *last >= first && *last < argc))
}

/// A number of keys, as strictly as the server reads it.
fn key_count(number: &[u8], argc: usize) -> Result<usize, KeyError> {
    let count = parse_i64(number).ok_or(KeyError::NotANumber)?;
    if count < 0 {
        return Err(KeyError::Negative);
    }
    usize::try_from(count)
        .ok()
        .filter(|count| *count < argc)
        .ok_or(KeyError::TooMany)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::command::entry::FenceScope;
    use crate::command::testing::{command, with_args, with_words};
    use crate::command::{Lookup, Table};

    use super::*;

    /// The keys of a line of words and whether they are all.
    fn keys(line: &str) -> Result<(Vec<usize>, bool), KeyError> {
        with_args(line, |args| {
            let mut out = KeyPositions::new();
            command(args).keys(args, &mut out)?;
            let found = out.as_slice().iter().map(|position| position.at as usize);
            Ok((found.collect(), out.is_complete()))
        })
    }

    #[test]
    fn specifications_are_followed() {
        for (line, expected) in [
            ("GET a", vec![1]),
            ("MGET a b c", vec![1, 2, 3]),
            ("MSET a 1 b 2", vec![1, 3]),
            ("BITOP AND d a b", vec![2, 3, 4]),
            ("BLPOP a b 0", vec![1, 2]),
            ("PFMERGE d", vec![1]),
            ("EVAL x 2 a b c", vec![3, 4]),
            ("EVAL x 0 a", vec![]),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", vec![1, 3, 4]),
            ("BLMPOP 0 2 a b LEFT", vec![3, 4]),
            ("OBJECT ENCODING a", vec![2]),
            ("XGROUP CREATE s g $", vec![2]),
            ("PING", vec![]),
            ("SPUBLISH ch m", vec![1]),
            ("STRALGO LCS IDX KEYS a b", vec![4, 5]),
            ("STRALGO LCS STRINGS a b", vec![]),
        ] {
            assert_eq!(keys(line), Ok((expected, true)), "{line}");
        }
    }

    #[test]
    fn options_are_read_as_the_server_reads_them() {
        for (line, expected) in [
            ("XREAD COUNT 2 STREAMS a b 0 0", vec![4, 5]),
            ("XREAD STREAMS streams 0", vec![2]),
            ("XREADGROUP COUNT 1 GROUP streams c STREAMS a >", vec![7]),
            ("SORT a BY w_* LIMIT 0 1 STORE d", vec![1, 8]),
            ("SORT a BY store STORE d", vec![1, 5]),
            ("SORT a STORE d STORE e", vec![1, 5]),
            ("GEORADIUS a 1 2 3 m STORE d STOREDIST e", vec![1, 9]),
            ("GEORADIUSBYMEMBER a m 3 m STORE d", vec![1, 6]),
            ("GEORADIUSBYMEMBER a m 3 m STORE", vec![1]),
            ("MIGRATE h 1 a 0 5", vec![3]),
            ("MIGRATE h 1 \"\" 0 5 COPY AUTH keys KEYS a b", vec![10, 11]),
        ] {
            assert_eq!(keys(line), Ok((expected, true)), "{line}");
        }
        let (found, complete) = keys("XREAD FUTURE STREAMS a 0").unwrap();
        assert_eq!((found, complete), (vec![3], false));
    }

    #[test]
    fn malformed_counts_are_errors() {
        for (line, error) in [
            ("EVAL x -1 a", KeyError::Negative),
            ("EVAL x 01 a", KeyError::NotANumber),
            ("EVAL x +1 a", KeyError::NotANumber),
            ("EVAL x - a", KeyError::NotANumber),
            ("EVAL x \"\" a", KeyError::NotANumber),
            ("EVAL x 2 a", KeyError::TooMany),
            ("EVAL x 4 a", KeyError::TooMany),
            ("EVAL x 9223372036854775807 a", KeyError::TooMany),
            ("EVAL x 9223372036854775808 a", KeyError::NotANumber),
            ("EVAL x", KeyError::Missing),
            ("GET", KeyError::Missing),
            ("LCS a", KeyError::Missing),
            ("XREAD STREAMS a b 0", KeyError::Unbalanced),
            ("XREAD COUNT 2", KeyError::Missing),
        ] {
            assert_eq!(keys(line), Err(error), "{line}");
        }
    }

    #[test]
    fn channels_are_no_keys() {
        with_args("SSUBSCRIBE a b", |args| {
            let mut out = KeyPositions::new();
            command(args).keys(args, &mut out).unwrap();
            assert_eq!(out.as_slice().len(), 2);
            assert_eq!(out.keys().count(), 0);
        });
    }

    #[test]
    fn reads_that_see_more_than_their_keys_pass_the_shards_fence() {
        let scope = |line: &str| with_args(line, |args| command(args).fence_scope(args));
        for line in [
            "KEYS *",
            "DBSIZE",
            "SCAN 0",
            "RANDOMKEY",
            "SORT_RO a BY w_*",
            "SORT_RO a GET #",
            "EVAL_RO x 1 a",
            "EVALSHA_RO x 0",
            "FCALL_RO f 1 a",
            "XREAD FUTURE STREAMS a 0",
        ] {
            assert_eq!(scope(line), FenceScope::Shard, "{line}");
        }
        for line in [
            "GET a",
            "MGET a b",
            "SORT_RO a ALPHA",
            "XREAD STREAMS a 0",
            "ZUNION 1 a",
            "PING",
            "TIME",
            "ECHO a",
        ] {
            assert_eq!(scope(line), FenceScope::Keys, "{line}");
        }
    }

    #[test]
    fn commands_that_may_change_any_key_say_so() {
        let table = Table::builtin();
        let all = table
            .iter()
            .filter(|command| command.fences_all)
            .map(|command| &*command.name);
        assert_eq!(
            all.collect::<Vec<_>>(),
            [
                "debug",
                "eval",
                "evalsha",
                "fcall",
                "flushall",
                "flushdb",
                "migrate",
                "restore",
                "restore-asking",
                "swapdb"
            ]
        );
        for command in table.iter().filter(|command| command.is_write() && !command.fences_all) {
            assert!(command.names_all_keys, "{command} writes keys it does not name");
        }
    }

    #[test]
    fn arguments_that_travel_with_their_key() {
        let table = Table::builtin();
        let step = |name: &str| table.named(name).unwrap().args_per_key();
        assert_eq!((step("mget"), step("mset"), step("touch")), (Some(1), Some(2), Some(1)));
        assert_eq!((step("get"), step("blpop"), step("zunion")), (None, None, None));
    }

    fn word() -> impl Strategy<Value = Vec<u8>> {
        const KNOWN: &[&str] = &[
            "STREAMS",
            "BLOCK",
            "COUNT",
            "GROUP",
            "STORE",
            "BY",
            "GET",
            "KEYS",
            "AUTH",
            "AUTH2",
            "0",
            "1",
            "2",
            "3",
            "-1",
            "99999999999999999999",
            "-9223372036854775808",
            "2147483648",
            "4294967296",
            "",
        ];
        prop_oneof![
            3 => proptest::sample::select(KNOWN).prop_map(|word| word.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_arguments_do_no_harm(which in any::<proptest::sample::Index>(), rest in proptest::collection::vec(word(), 0..20)) {
            let table = Table::builtin();
            let command = table.get(crate::command::CommandId(which.index(table.iter().len()) as u16)).unwrap();
            let name = command.name.split('|').map(|part| part.as_bytes());
            let words: Vec<&[u8]> = name.chain(rest.iter().map(Vec::as_slice)).collect();
            with_words(&words, |args| {
                let mut out = KeyPositions::new();
                let found = command.keys(args, &mut out);
                assert!(out.as_slice().len() <= 2 * args.len());
                assert!(out.as_slice().iter().all(|position| position.at > 0 && (position.at as usize) < args.len()));
                assert!(found.is_ok() || !out.is_complete());
                if let Some((at, _)) = command.timeout_at(args) {
                    assert!(at > 0 && at < args.len() && command.blocks(args));
                }
                command.fence_scope(args);
                command.class_for(args);
                assert!(!(command.rides_lane(args) && command.blocks(args)));
            });
        }

        #[test]
        fn any_words_are_looked_up_and_refused(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6)) {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            with_words(&words, |args| {
                let mut out = Vec::new();
                match Table::builtin().lookup(args) {
                    Lookup::Known(command) => crate::command::refusal::wrong_arity(command, &mut out),
                    Lookup::UnknownSubcommand(_) => crate::command::refusal::unknown_subcommand(args, &mut out),
                    Lookup::Unknown => crate::command::refusal::unknown_command(args, &mut out),
                }
                assert!(out.starts_with(b"-ERR ") && out.ends_with(b"\r\n"));
                assert!(!out[..out.len() - 2].iter().any(|byte| b"\r\n\0".contains(byte)));
                assert!(out.len() < 1_024);
            });
        }
    }
}
