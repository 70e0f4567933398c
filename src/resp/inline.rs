//! Inline commands: a line of words, as typed into telnet. Re-written as a multi-bulk request at once, so that
//! nothing past the listener knows of them.

use super::error::ProtocolError;
use super::number::put_i64;

/// Appends the request that the inline command `line` stands for, quotes and escapes resolved as
/// `sdssplitargs` of Redis does. Appends nothing for a line without words.
pub fn put_inline_as_request(line: &[u8], out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let words = split(line)?;
    if words.is_empty() {
        return Ok(());
    }
    put_header(out, b'*', words.len());
    for word in &words {
        put_header(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

fn put_header(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    put_i64(out, i64::try_from(count).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
}

fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        // A NUL ends the line, as it ends a C string.
        if rest.first().is_none_or(|byte| *byte == 0) {
            return Ok(words);
        }
        let (word, after) = word(rest)?;
        words.push(word);
        rest = after;
    }
}

/// One word and what follows it. Quotes may begin inside a word; what follows a closing quote must be a space.
fn word(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] | [b' ' | b'\n' | b'\r' | b'\t' | 0, ..] => return Ok((word, rest)),
            [quote @ (b'"' | b'\''), inner @ ..] => {
                let after = quoted(*quote, inner, &mut word)?;
                if after
                    .first()
                    .is_some_and(|byte| !byte.is_ascii_whitespace() && *byte != 0)
                {
                    return Err(ProtocolError::UnbalancedQuotes);
                }
                return Ok((word, after));
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn quoted<'a>(quote: u8, mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        rest = match rest {
            [] | [0, ..] => return Err(ProtocolError::UnbalancedQuotes),
            [byte, after @ ..] if *byte == quote => return Ok(after),
            [b'\\', b'x', high, low, after @ ..] if quote == b'"' && hex(*high).is_some() && hex(*low).is_some() => {
                word.push(hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0));
                after
            }
            [b'\\', byte, after @ ..] if quote == b'"' => {
                word.push(match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                after
            }
            [b'\\', b'\'', after @ ..] if quote == b'\'' => {
                word.push(b'\'');
                after
            }
            [byte, after @ ..] => {
                word.push(*byte);
                after
            }
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_quotes_and_escapes_are_read_as_redis_does() {
        assert_eq!(
            split(b"SET  k\tv\r\n").unwrap(),
            [b"SET".to_vec(), b"k".to_vec(), b"v".to_vec()]
        );
        assert_eq!(
            split(br#"SET "a b\x41\n" 'c\'d' """#).unwrap(),
            [&b"SET"[..], b"a bA\n", b"c'd", b""]
        );
        for unbalanced in [&br#"GET "k"#[..], br#"GET "k"x"#, b"GET 'k", br#"GET "k\""#] {
            assert_eq!(split(unbalanced), Err(ProtocolError::UnbalancedQuotes));
        }
    }

    #[test]
    fn an_inline_command_becomes_a_request() {
        let mut out = Vec::new();
        put_inline_as_request(b"GET k\r\n", &mut out).unwrap();
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
}
