//! The option words of the few commands whose keys, blocking or reach depend on them.
//!
//! Reads options the way the server's own parser does, not by looking for a word anywhere: a stream may be called
//! STREAMS and a group BLOCK. An option this file does not know ends the reading and is reported as such.

use crate::resp::Args;

/// The options of XREAD and XREADGROUP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    /// Where the word STREAMS is.
    pub streams: Option<usize>,
    /// Where the time after BLOCK is; the last one counts.
    pub block: Option<usize>,
    /// Whether a word was met that is no option we know.
    pub strange: bool,
}

/// Reads the options of XREAD and XREADGROUP.
pub(super) fn of_streams(args: &Args) -> StreamOptions {
    let mut found = StreamOptions::default();
    let mut at = 1;
    while let Some(word) = args.get(at) {
        at += match () {
            () if is(word, "STREAMS") => {
                found.streams = Some(at);
                break;
            }
            () if is(word, "BLOCK") => {
                found.block = Some(at + 1);
                2
            }
            () if is(word, "COUNT") || is(word, "CLAIM") => 2,
            () if is(word, "GROUP") => 3,
            () if is(word, "NOACK") => 1,
            () => {
                found.strange = true;
                break;
            }
        };
    }
    found
}

/// The options of SORT and SORT_RO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SortOptions {
    /// Where the destination is; the last one counts.
    pub store: Option<usize>,
    /// Whether keys are read that no argument names (BY and GET patterns).
    pub patterns: bool,
}

/// Reads the options of SORT and SORT_RO.
pub(super) fn of_sort(args: &Args) -> SortOptions {
    let mut found = SortOptions::default();
    let mut at = 2;
    while let Some(word) = args.get(at) {
        at += if is(word, "STORE") && at + 1 < args.len() {
            found.store = Some(at + 1);
            2
        } else if is(word, "BY") || is(word, "GET") {
            found.patterns = true;
            2
        } else if is(word, "LIMIT") {
            3
        } else {
            1
        };
    }
    found
}

/// Where the destination of GEORADIUS or GEORADIUSBYMEMBER is; the last one counts.
pub(super) fn of_radius(args: &Args) -> Option<usize> {
    let mut store = None;
    let mut at = 5;
    while let Some(word) = args.get(at) {
        let destination = (is(word, "STORE") || is(word, "STOREDIST")) && at + 1 < args.len();
        at += if destination { 2 } else { 1 };
        store = if destination { Some(at - 1) } else { store };
    }
    store
}

/// Where the keys of MIGRATE begin if they are not its third argument.
pub(super) fn of_migrate(args: &Args) -> Option<usize> {
    let mut at = 6;
    while let Some(word) = args.get(at) {
        at += match () {
            () if is(word, "KEYS") => return Some(at + 1),
            () if is(word, "AUTH") => 2,
            () if is(word, "AUTH2") => 3,
            () => 1,
        };
    }
    None
}

/// Whether an argument is this word, in any case.
pub(super) fn is(word: &[u8], expected: &str) -> bool {
    word.eq_ignore_ascii_case(expected.as_bytes())
}
