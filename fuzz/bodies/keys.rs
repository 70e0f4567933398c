//! Where the keys of any request are: inside it, for every command of the data file.
//!
//! The bytes are the request's words, with blanks between them.

use pointsman::command::{Command, KeyPositions, Lookup, Table, refusal};
use pointsman::resp::{Args, Span};

/// The target.
pub fn run(bytes: &[u8]) {
    judged(Table::builtin(), &words(bytes));
}

/// The words of a line.
pub fn words(line: &[u8]) -> Vec<Vec<u8>> {
    line.split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect()
}

/// A request as clients write it.
pub fn request(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// What a table makes of a request, checked.
pub fn judged(table: &Table, words: &[Vec<u8>]) {
    let written = request(words);
    let mut spans: Vec<Span> = Vec::new();
    let Some(args) = Args::read(&written, &mut spans) else {
        panic!("{words:?} is a request");
    };
    let mut said = Vec::new();
    match table.lookup(&args) {
        Lookup::Known(command) => {
            located(command, &args);
            if command.arity_ok(args.len()) {
                return;
            }
            refusal::wrong_arity(command, &mut said);
        }
        Lookup::UnknownSubcommand(_) => refusal::unknown_subcommand(&args, &mut said),
        Lookup::Unknown => refusal::unknown_command(&args, &mut said),
    }
    let line = said.strip_suffix(b"\r\n");
    assert!(
        line.is_some_and(|line| !line.contains(&b'\n')),
        "a refusal is one line: {said:?}"
    );
}

/// Checks where a command's keys are, whether they are found or not.
pub fn located(command: &Command, args: &Args) {
    let mut found = KeyPositions::new();
    let result = command.keys(args, &mut found);
    let inside = |at: usize| (1..args.len()).contains(&at);
    for position in found.as_slice() {
        assert!(inside(position.at as usize), "{command}: a key at {}", position.at);
    }
    assert!(
        result.is_ok() || !found.is_complete(),
        "{command}: complete in spite of {result:?}"
    );
    if let Some((at, _)) = command.timeout_at(args) {
        assert!(inside(at), "{command}: a time at {at}");
    }
    for (option, id) in command.latest_at(args) {
        assert!(inside(option) && inside(id), "{command}: ids at {option} and {id}");
    }
    command.blocks(args);
    command.rides_lane(args);
    command.class_for(args);
    command.fence_scope(args);
}
