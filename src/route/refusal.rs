//! The lines by which Redis proves that it did not run a command (rule A4).
//!
//! A line proves it only as a whole: a script may answer anything, and `UNBLOCKED` has texts that belong to the client.
//! Who words its own errors (scripts, modules) is not believed at all; that is the caller's to know. NOREPLICAS is not
//! here: users set `min-replicas-to-write` themselves. Texts as in Redis 6.2 to 8.0 and Valkey 8.1.

/// What a line that has begun to arrive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It proves that the command was not run, and it is whole.
    Refusal,
    /// It may still become a refusal.
    Unfinished,
    /// An answer like any other.
    Answer,
}

const READONLY: &[u8] = b"-READONLY You can't write against a read only replica.\r\n";
const QUEUED: &[u8] = b"+QUEUED\r\n";
const REFUSALS: [&[u8]; 5] = [
    READONLY,
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-LOADING Valkey is loading the dataset in memory\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n",
];
const ABORTED_BY: &[u8] = b"-EXECABORT Transaction discarded because of: ";
const ABORTED: &[u8] = b"-EXECABORT Transaction discarded because of previous errors.\r\n";

/// What the reply to a single command is, of which `bytes` have come.
pub fn of_command(bytes: &[u8]) -> Line {
    REFUSALS
        .iter()
        .map(|text| compare(bytes, text))
        .fold(Line::Answer, surer)
}

/// What the reply to a command is that was sent outside any transaction, on a connection that others share: there
/// `+QUEUED` says that the connection is inside somebody's MULTI, and that the command was not run (rule A2).
pub fn of_shared_command(bytes: &[u8]) -> Line {
    surer(of_command(bytes), compare(bytes, QUEUED))
}

/// What the reply to EXEC is. `queued` are the replies to MULTI and to the commands before it, where they are known:
/// a transaction that was discarded for errors was refused only if each of those errors was a refusal.
pub fn of_exec(bytes: &[u8], queued: Option<&[u8]>) -> Line {
    let by_name = match (bytes.strip_prefix(ABORTED_BY), ABORTED_BY.starts_with(bytes)) {
        (Some(cause), _) => REFUSALS
            .iter()
            .map(|text| compare(cause, &text[1..]))
            .fold(Line::Answer, surer),
        (None, true) => Line::Unfinished,
        (None, false) => Line::Answer,
    };
    let by_errors = match queued {
        Some(queued) if only_refusals(queued) => compare(bytes, ABORTED),
        Some(_) | None => Line::Answer,
    };
    surer(by_name, by_errors)
}

/// Whether there are errors among these lines, and all of them are refusals.
fn only_refusals(lines: &[u8]) -> bool {
    let mut errors = lines
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"-"))
        .map(of_command)
        .peekable();
    errors.peek().is_some() && errors.all(|line| line == Line::Refusal)
}

fn compare(bytes: &[u8], text: &[u8]) -> Line {
    if bytes.starts_with(text) {
        Line::Refusal
    } else if text.starts_with(bytes) {
        Line::Unfinished
    } else {
        Line::Answer
    }
}

fn surer(one: Line, other: Line) -> Line {
    match (one, other) {
        (Line::Refusal, _) | (_, Line::Refusal) => Line::Refusal,
        (Line::Unfinished, _) | (_, Line::Unfinished) => Line::Unfinished,
        (Line::Answer, Line::Answer) => Line::Answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_of_redis_are_refusals() {
        assert_eq!(of_command(READONLY), Line::Refusal);
        assert_eq!(of_command(&[READONLY, b"+OK\r\n"].concat()), Line::Refusal);
        for answer in [
            "-READONLY You can't write against a read only replica. script: 1234\r\n",
            "-READONLY Can not run script with write flag on readonly replica.\r\n",
            "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n",
            "-UNBLOCKED the stream key no longer exists\r\n",
            "-NOREPLICAS Not enough good replicas to write.\r\n",
            "-LOADING\r\n",
            "+QUEUED\r\n",
        ] {
            assert_eq!(of_command(answer.as_bytes()), Line::Answer, "{answer}");
        }
        assert_eq!(of_shared_command(QUEUED), Line::Refusal);
        assert_eq!(of_shared_command(b"+Q"), Line::Unfinished);
    }

    #[test]
    fn every_beginning_of_a_refusal_may_become_one() {
        for text in REFUSALS {
            for end in 0..text.len() {
                assert_eq!(of_command(&text[..end]), Line::Unfinished);
            }
        }
        let abort = [ABORTED_BY, &READONLY[1..]].concat();
        for end in 0..abort.len() {
            assert_eq!(of_exec(&abort[..end], None), Line::Unfinished);
        }
        assert_eq!(of_exec(&abort, None), Line::Refusal);
    }

    #[test]
    fn a_discarded_transaction_was_refused_if_every_error_was_a_refusal() {
        let queued = |errors: &[&[u8]]| [&[&b"+OK\r\n"[..], QUEUED], errors].concat().concat();
        let wrong = &b"-ERR wrong number of arguments for 'get' command\r\n"[..];
        assert_eq!(of_exec(ABORTED, Some(&queued(&[READONLY, READONLY]))), Line::Refusal);
        assert_eq!(of_exec(ABORTED, Some(&queued(&[READONLY, wrong]))), Line::Answer);
        assert_eq!(of_exec(ABORTED, Some(&queued(&[]))), Line::Answer);
        assert_eq!(of_exec(ABORTED, None), Line::Answer);
        assert_eq!(of_exec(b"*1\r\n:1\r\n", None), Line::Answer);
    }
}
