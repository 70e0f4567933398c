//! What anybody can send to the port of an agent or, as an agent, to its clients: any bytes give an error or frames, the
//! same however they arrive; what is understood of a frame is written as a frame that means the same.

use bytes::BytesMut;
use pointsman::peer::{Bounded, FRAME_MAX, News, Request, Version};
use redis_protocol::resp2::types::BytesFrame;
use tokio_util::codec::Decoder as _;

/// What came of the bytes.
#[derive(Debug, Default, PartialEq)]
struct Frames {
    found: Vec<BytesFrame>,
    broken: bool,
}

/// The target.
pub fn run(bytes: &[u8]) {
    let whole = read(bytes, []);
    assert_eq!(read(bytes, super::cuts(bytes)), whole, "cut anywhere");
    assert_eq!(read(bytes, 0..bytes.len()), whole, "byte by byte");
    for frame in &whole.found {
        if let Some(request) = Request::parse(frame) {
            assert_eq!(Request::parse(&request.frame(Version::OURS)).as_ref(), Some(&request));
        }
        if let Some(news) = News::parse(frame) {
            assert_eq!(News::parse(&news.frame(Version::OURS)).as_ref(), Some(&news));
        }
    }
}

fn read(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> Frames {
    let (mut codec, mut source, mut at) = (Bounded::default(), BytesMut::new(), 0);
    let mut frames = Frames::default();
    for cut in cuts.into_iter().chain([bytes.len()]) {
        source.extend_from_slice(&bytes[at..cut]);
        at = cut;
        loop {
            match codec.decode(&mut source) {
                Ok(Some(frame)) => frames.found.push(frame),
                Ok(None) => break,
                Err(_) => {
                    frames.broken = true;
                    return frames;
                }
            }
        }
        assert!(source.len() <= FRAME_MAX, "gathers more than it may");
    }
    frames
}
