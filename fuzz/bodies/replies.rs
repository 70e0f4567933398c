//! Framing of replies: however the bytes arrive, and whatever is looked at on the way, the same replies come of them.

use pointsman::resp::{Heed, ReplyScanner, Stop};

/// What a lane makes of a stream of replies.
#[derive(Debug, Default, PartialEq)]
pub struct Replies {
    /// How many are whole; pushes are none.
    pub count: u32,
    /// Bytes understood.
    pub used: usize,
    /// The next byte is no RESP.
    pub malformed: bool,
}

/// Reads `bytes` as they arrive in pieces that end at `cuts`. What a scan stops before, to be looked at, is passed over.
pub fn read(bytes: &[u8], cuts: impl IntoIterator<Item = usize>, heed: Heed) -> Replies {
    let (mut scanner, mut replies) = (ReplyScanner::default(), Replies::default());
    for cut in cuts.into_iter().chain([bytes.len()]) {
        let mut now = (u32::MAX, heed);
        loop {
            let scanned = scanner.scan(&bytes[replies.used..cut], now.0, now.1);
            replies.used += scanned.used;
            replies.count += scanned.replies;
            assert!(replies.used <= cut, "understands bytes that are not there");
            now = (u32::MAX, heed);
            match scanned.stop {
                Stop::Push => scanner.begin_push(),
                Stop::Malformed => {
                    replies.malformed = true;
                    return replies;
                }
                Stop::Starved => break,
                Stop::Noted => now = (1, Heed::Nothing),
                Stop::Counted => {}
            }
        }
    }
    replies
}

/// The target.
pub fn run(bytes: &[u8]) {
    let whole = read(bytes, [], Heed::Nothing);
    assert!(whole.malformed || whole.used == bytes.len(), "leaves bytes behind");
    for heed in [Heed::Nothing, Heed::Errors, Heed::Refusals] {
        assert_eq!(read(bytes, [], heed), whole, "{heed:?}");
        assert_eq!(read(bytes, super::cuts(bytes), heed), whole, "cut anywhere, {heed:?}");
        assert_eq!(read(bytes, 0..bytes.len(), heed), whole, "byte by byte, {heed:?}");
    }
}
