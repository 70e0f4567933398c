//! Reads the reply to `COMMAND` (RESP2) into rows.
//!
//! The shape differs by version: six fields up to 6.0, seven in 6.2 (ACL categories), ten from 7.0 on (tips, key
//! specifications, subcommands). Everything is bounded: commands, specifications per command, the length of a name; a
//! name with anything but printable ASCII in it is refused, as it could never be told apart in a log.

use redis_protocol::resp2::types::BytesFrame;
use thiserror::Error;

use super::row::{Row, RowSpec};

/// Most commands and subcommands that are taken in.
pub const COMMANDS_MAX: usize = 4_096;
/// Most key specifications of one command.
pub const SPECS_MAX: usize = 32;
/// Longest full name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a reply is not the reply to `COMMAND`.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReplyError {
    /// The reply is not an array.
    #[error("the reply to COMMAND is not an array")]
    NotAnArray,
    /// There are too many.
    #[error("more than {COMMANDS_MAX} commands")]
    TooMany,
    /// The entry at this position is not a command's.
    #[error("entry {0} of the reply to COMMAND has a wrong shape")]
    Entry(usize),
}

/// All commands and subcommands of a reply to `COMMAND`.
pub fn rows(reply: &BytesFrame) -> Result<Vec<Row>, ReplyError> {
    let BytesFrame::Array(entries) = reply else {
        return Err(ReplyError::NotAnArray);
    };
    let mut rows = Vec::with_capacity(entries.len().min(COMMANDS_MAX));
    for (index, entry) in entries.iter().enumerate() {
        let fields = array(entry).ok_or(ReplyError::Entry(index))?;
        rows.push(row(fields).ok_or(ReplyError::Entry(index))?);
        // Subcommands have none of their own.
        for child in fields.get(9).and_then(array).unwrap_or_default() {
            let fields = array(child).ok_or(ReplyError::Entry(index))?;
            rows.push(row(fields).ok_or(ReplyError::Entry(index))?);
            if rows.len() > COMMANDS_MAX {
                return Err(ReplyError::TooMany);
            }
        }
        if rows.len() > COMMANDS_MAX {
            return Err(ReplyError::TooMany);
        }
    }
    Ok(rows)
}

fn row(fields: &[BytesFrame]) -> Option<Row> {
    let name = text(fields.first()?)?.to_ascii_lowercase();
    let sound = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
    let arity = i32::try_from(integer(fields.get(1)?)?).ok()?;
    let flags = array(fields.get(2)?)?;
    let flags = flags
        .iter()
        .map(|flag| text(flag).map(str::to_owned))
        .collect::<Option<_>>()?;
    let keys = match fields.get(8) {
        Some(specs) => specifications(array(specs)?)?,
        None => legacy(fields.get(3..6)?)?,
    };
    sound.then_some(Row {
        name,
        arity,
        flags,
        keys,
    })
}

fn specifications(specs: &[BytesFrame]) -> Option<Vec<RowSpec>> {
    if specs.len() > SPECS_MAX {
        return None;
    }
    specs.iter().map(specification).collect()
}

fn specification(spec: &BytesFrame) -> Option<RowSpec> {
    let spec = array(spec)?;
    let flags = array(field(spec, "flags")?)?;
    let mut found = RowSpec {
        flags: flags
            .iter()
            .map(|flag| text(flag).map(str::to_owned))
            .collect::<Option<_>>()?,
        ..RowSpec::default()
    };
    let (kind, begin) = step(field(spec, "begin_search")?)?;
    match kind {
        "index" => found.index = Some(integer(field(begin, "index")?)?),
        "keyword" => {
            let word = text(field(begin, "keyword")?)?.to_owned();
            found.keyword = Some((word, integer(field(begin, "startfrom")?)?));
        }
        _ => {}
    }
    let (kind, find) = step(field(spec, "find_keys")?)?;
    let three = |names: [&str; 3]| -> Option<[i64; 3]> {
        let [a, b, c] = names.map(|name| field(find, name).and_then(integer));
        Some([a?, b?, c?])
    };
    match kind {
        "range" => found.range = Some(three(["lastkey", "keystep", "limit"])?),
        "keynum" => found.keynum = Some(three(["keynumidx", "firstkey", "keystep"])?),
        _ => {}
    }
    Some(found)
}

/// First key, last key and step of a server older than key specifications. The last key counts from the name there.
fn legacy(positions: &[BytesFrame]) -> Option<Vec<RowSpec>> {
    let [first, last, step] = positions else { return None };
    let (first, last, step) = (integer(first)?, integer(last)?, integer(step)?);
    if first <= 0 {
        return Some(Vec::new());
    }
    let last = if last < 0 { last } else { last.saturating_sub(first) };
    Some(vec![RowSpec {
        index: Some(first),
        range: Some([last, step, 0]),
        ..RowSpec::default()
    }])
}

/// The `type` and the `spec` of one half of a key specification.
fn step(half: &BytesFrame) -> Option<(&str, &[BytesFrame])> {
    let half = array(half)?;
    Some((text(field(half, "type")?)?, array(field(half, "spec")?)?))
}

/// The value after a name in a flattened map.
fn field<'a>(pairs: &'a [BytesFrame], name: &str) -> Option<&'a BytesFrame> {
    let pair = pairs.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name))?;
    Some(&pair[1])
}

fn array(frame: &BytesFrame) -> Option<&[BytesFrame]> {
    match frame {
        BytesFrame::Array(items) => Some(items),
        _ => None,
    }
}

fn text(frame: &BytesFrame) -> Option<&str> {
    match frame {
        BytesFrame::SimpleString(bytes) | BytesFrame::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn integer(frame: &BytesFrame) -> Option<i64> {
    match frame {
        BytesFrame::Integer(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redis_protocol::resp2::decode::decode_bytes;

    use super::*;

    fn decoded(bytes: &str) -> BytesFrame {
        decode_bytes(&bytes.to_owned().into()).unwrap().unwrap().0
    }

    #[test]
    fn an_old_servers_positions_become_a_specification() {
        let reply = decoded("*1\r\n*7\r\n$4\r\nMGET\r\n:-2\r\n*1\r\n+readonly\r\n:2\r\n:3\r\n:1\r\n*0\r\n");
        let rows = rows(&reply).unwrap();
        assert_eq!(rows[0].name, "mget");
        assert_eq!(rows[0].keys[0].index, Some(2));
        assert_eq!(rows[0].keys[0].range, Some([1, 1, 0]));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert_eq!(rows(&decoded("+OK\r\n")), Err(ReplyError::NotAnArray));
        assert_eq!(rows(&decoded("*1\r\n:1\r\n")), Err(ReplyError::Entry(0)));
        let newline = "*1\r\n*6\r\n$3\r\na\nb\r\n:1\r\n*0\r\n:0\r\n:0\r\n:0\r\n";
        assert_eq!(rows(&decoded(newline)), Err(ReplyError::Entry(0)));
    }

    #[test]
    fn one_command_too_many_is_refused() {
        let one = "*6\r\n$1\r\na\r\n:1\r\n*0\r\n:0\r\n:0\r\n:0\r\n";
        let reply = |count: usize| decoded(&format!("*{count}\r\n{}", one.repeat(count)));
        assert_eq!(rows(&reply(COMMANDS_MAX)).unwrap().len(), COMMANDS_MAX);
        assert_eq!(rows(&reply(COMMANDS_MAX + 1)), Err(ReplyError::TooMany));
    }
}
