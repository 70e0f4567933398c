//! What is read of a frame to tell what it means.

use crate::proxy::client::subscriptions::Family;
use crate::resp::is_marked;

/// What a frame is.
pub(super) enum Meaning {
    /// A subscription, or its end.
    Confirms(Family),
    /// Said without being asked.
    Message,
    /// The answer to the oldest request.
    Reply,
}

/// `1700000000.123456 [0 127.0.0.1:50000] "PING"`, or the beginning of one.
pub(super) fn is_monitor_line(line: &[u8]) -> bool {
    let time = line.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.');
    line.get(time.count()..).is_some_and(|rest| rest.starts_with(b" ["))
}

/// Whether a line for who monitors shows what pointsman asked for itself.
pub(super) fn is_own_line(line: &[u8]) -> bool {
    let name = memchr::memmem::find(line, b"] \"").and_then(|end| line.get(end + 3..));
    let name = name.and_then(|rest| rest.split(|byte| *byte == b'"').next());
    name.is_some_and(is_marked)
}

/// The bulk strings at the front of an array or a push.
pub(in crate::proxy::client) fn words(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line(frame).map_or(&[][..], |(_, rest)| rest);
    std::iter::from_fn(move || {
        let (header, after) = line(rest)?;
        let length: usize = std::str::from_utf8(header.strip_prefix(b"$")?).ok()?.parse().ok()?;
        let word = after.get(..length)?;
        rest = after.get(length + 2..)?;
        Some(word)
    })
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    Some((line, &bytes[end + 1..]))
}
