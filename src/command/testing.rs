//! Requests for this house's tests, from a line of words.

use crate::resp::{Args, Span};

use super::{Command, Lookup, Table};

/// Calls `test` with the words of a line as arguments; `""` stands for an empty one.
pub(super) fn with_args<T>(line: &str, test: impl FnOnce(&Args) -> T) -> T {
    let words = line.split(' ').filter(|word| !word.is_empty());
    let words: Vec<&[u8]> = words
        .map(|word| if word == "\"\"" { &[] } else { word.as_bytes() })
        .collect();
    with_words(&words, test)
}

/// Calls `test` with these arguments.
pub(super) fn with_words<T>(words: &[&[u8]], test: impl FnOnce(&Args) -> T) -> T {
    let mut buffer = Vec::new();
    let mut spans = Vec::new();
    for word in words {
        spans.push(Span {
            start: buffer.len() as u32,
            len: word.len() as u32,
        });
        buffer.extend_from_slice(word);
    }
    test(&Args::new(&buffer, &spans))
}

/// The built-in command that these arguments name.
pub(super) fn command(args: &Args) -> Command {
    match Table::builtin().lookup(args) {
        Lookup::Known(command) => command.clone(),
        other => panic!("{:?} is {other:?}", String::from_utf8_lossy(args.name())),
    }
}
