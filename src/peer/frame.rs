//! RESP2 frames with a bound.
//!
//! Owns: [`Bounded`], redis-protocol's codec that refuses to gather more than [`FRAME_MAX`] bytes for one frame.

use bytes::{Bytes, BytesMut};
use redis_protocol::codec::Resp2;
use redis_protocol::error::{RedisProtocolError, RedisProtocolErrorKind};
use redis_protocol::resp2::types::BytesFrame;
use tokio_util::codec::{Decoder, Encoder};

use super::FRAME_MAX;

/// The codec of a peer connection.
#[derive(Debug, Default)]
pub struct Bounded {
    inner: Resp2,
}

impl Decoder for Bounded {
    type Item = BytesFrame;
    type Error = RedisProtocolError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<BytesFrame>, RedisProtocolError> {
        let frame = self.inner.decode(source)?;
        if frame.is_none() && source.len() > FRAME_MAX {
            let kind = RedisProtocolErrorKind::DecodeError;
            return Err(RedisProtocolError::new(kind, "frame too long"));
        }
        Ok(frame)
    }
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
