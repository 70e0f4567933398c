//! What a server says of its commands: any reply to COMMAND gives an error or a table that is sound.
//!
//! The bytes are a reply (RESP2), and then the words of a request, with blanks between them.

use pointsman::command::Table;
use pointsman::resp::{Args, Span};
use redis_protocol::resp2::decode::decode_bytes;

use super::keys::{judged, located, request, words};

/// The target.
pub fn run(bytes: &[u8]) {
    let Ok(Some((reply, used))) = decode_bytes(&bytes.to_vec().into()) else {
        return;
    };
    let builtin = Table::builtin();
    let Ok(merged) = builtin.merged_with(&reply) else {
        return;
    };
    for (before, after) in builtin.iter().zip(merged.iter()) {
        assert_eq!((before.id, &before.name), (after.id, &after.name));
        assert!(before.lane || !after.lane, "{after} has come onto lanes");
        assert!(!before.is_write() || after.is_write(), "{after} is no write any more");
    }
    let words = words(&bytes[used..]);
    judged(&merged, &words);
    let written = request(&words);
    let mut spans: Vec<Span> = Vec::new();
    let Some(args) = Args::read(&written, &mut spans) else {
        panic!("{words:?} is a request");
    };
    for command in merged.iter().skip(builtin.iter().len()) {
        assert!(!command.lane, "{command} rides lanes");
        located(command, &args);
    }
    let again = merged.merged_with(&reply);
    assert!(
        again.is_ok_and(|again| again.is_same(&merged)),
        "the same reply changes it again"
    );
}
