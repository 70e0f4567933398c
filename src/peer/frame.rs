//! RESP2 frames with a bound.
//!
//! Owns: [`Bounded`], redis-protocol's codec behind two checks: no frame is longer than [`FRAME_MAX`], and none is an array
//! in an array, which nobody here says and which the decoder would follow down until the stack ends. Invariants: nothing is
//! decoded before it is whole, so that no byte is decoded twice; whoever connects, known or not, can make it do no more.

use bytes::{Bytes, BytesMut};
use redis_protocol::codec::Resp2;
use redis_protocol::error::{RedisProtocolError, RedisProtocolErrorKind};
use redis_protocol::resp2::types::BytesFrame;
use tokio_util::codec::{Decoder, Encoder};

use super::FRAME_MAX;
use crate::resp::{Heed, ReplyScanner, Stop};

/// The codec of a peer connection.
#[derive(Debug, Default)]
pub struct Bounded {
    inner: Resp2,
    scanner: ReplyScanner,
    /// Bytes of a frame that is not whole, of which the scanner knows.
    scanned: usize,
}

impl Decoder for Bounded {
    type Item = BytesFrame;
    type Error = RedisProtocolError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<BytesFrame>, RedisProtocolError> {
        let fresh = source.get(self.scanned..).unwrap_or_default();
        let scan = self.scanner.scan(fresh, 1, Heed::Nothing);
        self.scanned += scan.used;
        if self.scanned > FRAME_MAX {
            return Err(refused("frame too long"));
        }
        match scan.stop {
            Stop::Counted => {}
            Stop::Starved => return Ok(None),
            Stop::Noted | Stop::Push | Stop::Malformed => return Err(refused("no frame")),
        }
        let mut whole = source.split_to(std::mem::take(&mut self.scanned));
        if holds_arrays(&whole) {
            return Err(refused("array in an array"));
        }
        match self.inner.decode(&mut whole)? {
            Some(frame) if whole.is_empty() => Ok(Some(frame)),
            // Its lines do not end as they should.
            Some(_) | None => Err(refused("no frame")),
        }
    }
}

fn refused(what: &'static str) -> RedisProtocolError {
    RedisProtocolError::new(RedisProtocolErrorKind::DecodeError, what)
}

/// Whether an element of a whole array is an array.
fn holds_arrays(frame: &[u8]) -> bool {
    let (Some(b'*'), Some(line)) = (frame.first(), frame.iter().position(|byte| *byte == b'\n')) else {
        return false;
    };
    let mut rest = &frame[line + 1..];
    while let Some(kind) = rest.first() {
        if *kind == b'*' {
            return true;
        }
        let element = ReplyScanner::default().scan(rest, 1, Heed::Nothing);
        rest = &rest[element.used.max(1)..];
    }
    false
}

impl Encoder<BytesFrame> for Bounded {
    type Error = RedisProtocolError;

    fn encode(&mut self, frame: BytesFrame, target: &mut BytesMut) -> Result<(), RedisProtocolError> {
        self.inner.encode(frame, target)
    }
}

/// An array of bulk strings.
pub fn array(parts: &[&[u8]]) -> BytesFrame {
    let parts = parts
        .iter()
        .map(|part| BytesFrame::BulkString(Bytes::copy_from_slice(part)));
    BytesFrame::Array(parts.collect())
}

/// The parts of an array of bulk strings; none if it is anything else.
pub fn parts(frame: &BytesFrame) -> Option<Vec<&[u8]>> {
    let BytesFrame::Array(frames) = frame else { return None };
    let mut parts = Vec::with_capacity(frames.len());
    for frame in frames {
        let BytesFrame::BulkString(bytes) = frame else {
            return None;
        };
        parts.push(bytes.as_ref());
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Option<BytesFrame>, RedisProtocolError> {
        Bounded::default().decode(&mut BytesMut::from(bytes))
    }

    #[test]
    fn what_nobody_says_is_refused_before_it_is_decoded() {
        let deep = b"*1\r\n".repeat(FRAME_MAX / 4 - 1);
        assert!(
            decode(&[&deep[..], b":1\r\n"].concat()).is_err(),
            "it would take a stack of megabytes"
        );
        for bytes in [
            &b"*2\r\n:1\r\n*0\r\n"[..],
            b"%1\r\n+a\r\n+b\r\n",
            b">1\r\n+a\r\n",
            b"*1\n+a\r\n",
            b"+a\n",
            b"x",
        ] {
            assert!(decode(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn frames_are_taken_up_to_the_limit_and_no_further() {
        let text = vec![b'x'; FRAME_MAX - 3];
        let whole = [b"+", &text[..], b"\r\n"].concat();
        assert_eq!(
            decode(&whole).unwrap(),
            Some(BytesFrame::SimpleString(text.clone().into()))
        );
        assert_eq!(decode(&whole[..FRAME_MAX - 1]).unwrap(), None);
        assert!(decode(&[b"+x", &text[..], b"\r\n"].concat()).is_err());
        assert!(decode(&[b"+xxx", &text[..]].concat()).is_err());
    }

    #[test]
    fn frames_come_in_order_however_they_arrive() {
        let bytes = b"*2\r\n$5\r\nHELLO\r\n$0\r\n\r\n+OK\r\n-ERR no\r\n*0\r\n$-1\r\n";
        let (mut codec, mut source, mut found) = (Bounded::default(), BytesMut::new(), Vec::new());
        for byte in bytes {
            source.extend_from_slice(&[*byte]);
            found.extend(codec.decode(&mut source).unwrap());
        }
        let ok = BytesFrame::SimpleString(Bytes::from_static(b"OK"));
        let error = BytesFrame::Error("ERR no".into());
        let none = BytesFrame::Array(Vec::new());
        assert_eq!(found, [array(&[b"HELLO", b""]), ok, error, none, BytesFrame::Null]);
    }
}
