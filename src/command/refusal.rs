//! Refusals of requests in Redis' own words (redis-server 7.0 and later).
//!
//! Redis copies at most 128 bytes of a name or of all arguments together into such an error, stops at a NUL byte, as C
//! strings do, and turns line breaks into blanks, so that a refusal is always one line. So does this file.

use crate::resp::Args;

use super::entry::Command;

/// How much of a name, or of all arguments, an error repeats, in bytes.
const ECHO_BYTES_MAX: usize = 128;

/// `-ERR unknown command 'x', with args beginning with: 'a' 'b' `.
pub fn unknown_command(args: &Args, out: &mut Vec<u8>) {
    out.extend_from_slice(b"-ERR unknown command '");
    echo(args.name(), ECHO_BYTES_MAX, out);
    out.extend_from_slice(b"', with args beginning with: ");
    let begin = out.len();
    for arg in args.iter().skip(1) {
        let room = ECHO_BYTES_MAX.saturating_sub(out.len() - begin);
        if room == 0 {
            break;
        }
        out.push(b'\'');
        echo(arg, room, out);
        out.extend_from_slice(b"' ");
    }
    out.extend_from_slice(b"\r\n");
}

/// `-ERR unknown subcommand 'x'. Try CONFIG HELP.`
pub fn unknown_subcommand(args: &Args, out: &mut Vec<u8>) {
    out.extend_from_slice(b"-ERR unknown subcommand '");
    echo(args.get(1).unwrap_or_default(), ECHO_BYTES_MAX, out);
    out.extend_from_slice(b"'. Try ");
    out.extend(args.name().iter().map(u8::to_ascii_uppercase));
    out.extend_from_slice(b" HELP.\r\n");
}

/// `-ERR wrong number of arguments for 'config|get' command`.
pub fn wrong_arity(command: &Command, out: &mut Vec<u8>) {
    named(b"-ERR wrong number of arguments for '", command, b"' command\r\n", out);
}

/// `-CROSSSLOT Keys in request don't hash to the same slot`, as Redis Cluster says it.
pub fn cross_slot(out: &mut Vec<u8>) {
    out.extend_from_slice(b"-CROSSSLOT Keys in request don't hash to the same slot\r\n");
}

/// `-ERR No such user 'x'`
pub fn no_such_user(user: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"-ERR No such user '");
    echo(user, user.len(), out);
    out.extend_from_slice(b"'\r\n");
}

/// `-ERR pointsman does not support 'x' yet`: our own, for a command whose path is not built.
pub fn not_yet(command: &Command, out: &mut Vec<u8>) {
    named(b"-ERR pointsman does not support '", command, b"' yet\r\n", out);
}

/// `-NOPERM pointsman does not pass on 'x'`: our own, for a command that no client may have executed.
pub fn not_passed_on(command: &Command, out: &mut Vec<u8>) {
    named(b"-NOPERM pointsman does not pass on '", command, b"'\r\n", out);
}

/// Whether a first word is a browser's rather than a client's. Redis closes such a connection without an answer, whatever
/// the number of arguments (rule A14).
pub fn is_cross_protocol(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

fn named(before: &[u8], command: &Command, after: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(before);
    out.extend_from_slice(command.name.as_bytes());
    out.extend_from_slice(after);
}

fn echo(word: &[u8], bytes_max: usize, out: &mut Vec<u8>) {
    let shown = &word[..word.len().min(bytes_max)];
    let shown = shown.split(|byte| *byte == 0).next().unwrap_or_default();
    out.extend(shown.iter().map(|byte| match byte {
        b'\r' | b'\n' => b' ',
        other => *other,
    }));
}
