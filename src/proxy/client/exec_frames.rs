//! Where the elements of EXEC's reply begin and end, between which Redis puts what answers nothing or more than one frame.
//!
//! ```text
//! *3  +OK  >3 subscribe a 1  >3 subscribe b 2  >3 message a x  :1
//! head  element 0   confirmations of element 1   message   element 2
//! ```
//! Pure. A SUBSCRIBE inside a transaction is one element and has as many frames as channels (rule A1); a message that one
//! of the commands published stands between the elements.

use std::collections::VecDeque;

use super::feedline::words;
use super::subscriptions::Family;
use crate::resp::{Heed, ReplyScanner, Stop};

/// The longest head of an array that is waited for, and the longest beginning of a frame that says what it is.
const HEAD_BYTES_MAX: usize = 32;
const BEGINNING_BYTES_MAX: usize = 64;

/// What bytes of a reply to EXEC are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of it: no array.
    Whole,
    /// The line that says how many elements there are.
    Head(u32),
    /// The reply that is element number so.
    Element(u32),
    /// A frame of the element number so, which has several.
    Confirmation(u32),
    /// A frame that is none of any.
    Message,
}

/// Elements that have as many frames as this says, unless Redis refuses them.
pub(super) type Confirmations = VecDeque<(u32, u32)>;

/// See the file's note.
#[derive(Debug, Default)]
pub(super) struct ExecFrames {
    confirmations: Confirmations,
    /// Messages may be arrays, as they are to a subscriber in RESP2.
    plain_messages: bool,
    /// Before these elements there are none, because their commands publish nothing.
    quiet: VecDeque<u32>,
    count: Option<u32>,
    at: u32,
    /// The beginning of a frame that may be several things yet.
    beginning: Vec<u8>,
    frame: Option<Piece>,
    scanner: ReplyScanner,
}

impl ExecFrames {
    /// For a reply with these elements of several frames; `plain_messages`: the client may be a subscriber in RESP2, who is
    /// sent no message before the elements that are `quiet`.
    pub(super) fn of(confirmations: Confirmations, plain_messages: bool, quiet: VecDeque<u32>) -> Self {
        Self {
            confirmations,
            plain_messages,
            quiet,
            ..Self::default()
        }
    }

    /// Gives each piece of the reply, and whether it ends there; `None` once bytes come that are no RESP. How many of the
    /// bytes are the reply's, and whether it ends with them.
    pub(super) fn take(&mut self, bytes: &[u8], show: &mut dyn FnMut(Piece, &[u8], bool)) -> Option<(usize, bool)> {
        let mut at = 0;
        loop {
            if self.is_whole() {
                return Some((at, true));
            }
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.is_empty() {
                return Some((at, false));
            }
            if let Some(piece) = self.frame {
                let scanned = self.scanner.scan(rest, 1, Heed::Nothing);
                let ends = scanned.replies == 1;
                if scanned.stop == Stop::Malformed {
                    return None;
                }
                at += scanned.used;
                show(piece, &rest[..scanned.used], ends);
                if ends {
                    self.ends(piece);
                }
                continue;
            }
            // A byte at a time: beginnings are short.
            self.beginning.push(rest[0]);
            at += 1;
            let Some(piece) = self.piece() else { continue };
            let beginning = std::mem::take(&mut self.beginning);
            if let Piece::Head(count) = piece {
                show(piece, &beginning, true);
                self.count = Some(count);
                continue;
            }
            let pushed = beginning.first() == Some(&b'>');
            self.scanner = ReplyScanner::default();
            if pushed {
                // A frame of its own: it is scanned as the array that it is.
                self.scanner.scan(b"*", 1, Heed::Nothing);
            }
            let scanned = self.scanner.scan(&beginning[usize::from(pushed)..], 1, Heed::Nothing);
            if scanned.used + usize::from(pushed) < beginning.len() {
                return None;
            }
            let ends = scanned.replies == 1;
            show(piece, &beginning, ends);
            self.frame = Some(piece);
            if ends {
                self.ends(piece);
            }
        }
    }

    /// Whether the element whose turn it is may have several frames.
    fn confirms(&self) -> bool {
        self.confirmations.front().is_some_and(|(place, _)| *place == self.at)
    }

    fn is_whole(&self) -> bool {
        self.frame.is_none() && self.beginning.is_empty() && self.count.is_some_and(|count| self.at >= count)
    }

    fn ends(&mut self, piece: Piece) {
        self.frame = None;
        match piece {
            Piece::Whole => self.count = Some(0),
            Piece::Element(_) => {
                if self.confirms() {
                    self.confirmations.pop_front();
                }
                self.at += 1;
            }
            Piece::Confirmation(_) => {
                let Some((_, left)) = self.confirmations.front_mut() else {
                    return;
                };
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.confirmations.pop_front();
                    self.at += 1;
                }
            }
            Piece::Head(_) | Piece::Message => {}
        }
    }

    /// What begins with the bytes that there are, once they say so.
    fn piece(&self) -> Option<Piece> {
        let beginning = &self.beginning;
        let kind = *beginning.first()?;
        let ended = beginning.ends_with(b"\r\n");
        let too_long = beginning.len() >= BEGINNING_BYTES_MAX;
        if self.count.is_none() {
            if kind != b'*' || beginning.get(1) == Some(&b'-') || beginning.len() >= HEAD_BYTES_MAX {
                return Some(Piece::Whole);
            }
            let number = std::str::from_utf8(&beginning[1..]).ok().filter(|_| ended)?;
            return Some(number.trim_end().parse().map_or(Piece::Whole, Piece::Head));
        }
        let confirms = self.confirms();
        let quiet = self.quiet.binary_search(&self.at).is_ok();
        let may_be_message = kind == b'>' || (kind == b'*' && ((self.plain_messages && !quiet) || confirms));
        if !may_be_message {
            return Some(Piece::Element(self.at));
        }
        match words(beginning).next() {
            Some(word) if confirms && Family::of(word).is_some() => Some(Piece::Confirmation(self.at)),
            Some(b"message" | b"smessage") if kind == b'>' || beginning.starts_with(b"*3\r") => Some(Piece::Message),
            Some(b"pmessage") if kind == b'>' || beginning.starts_with(b"*4\r") => Some(Piece::Message),
            None if !too_long && may_be_word(beginning) => None,
            _ if kind == b'>' => Some(Piece::Message),
            _ => Some(Piece::Element(self.at)),
        }
    }
}

/// Whether the first element of an array may still turn out to be a short string.
fn may_be_word(beginning: &[u8]) -> bool {
    let Some(end) = beginning.iter().position(|byte| *byte == b'\n') else {
        return true;
    };
    let empty = beginning
        .get(1..end)
        .is_some_and(|count| count.starts_with(b"0") || count.starts_with(b"-"));
    !empty && beginning.get(end + 1).is_none_or(|kind| *kind == b'$')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(frames: &mut ExecFrames, parts: &[&[u8]]) -> (Vec<(Piece, String)>, usize) {
        let mut all: Vec<(Piece, String)> = Vec::new();
        let (mut open, mut used) = (false, 0);
        for part in parts {
            let (taken, _) = frames
                .take(part, &mut |piece, bytes, ends| {
                    let text = String::from_utf8_lossy(bytes);
                    match all.last_mut().filter(|_| open) {
                        Some((_, before)) => before.push_str(&text),
                        None => all.push((piece, text.into_owned())),
                    }
                    open = !ends;
                })
                .unwrap();
            used += taken;
        }
        all.iter_mut().for_each(|(_, text)| *text = text.replace("\r\n", " "));
        (all, used)
    }

    const RESP2: &str = "*4\r\n+OK\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n\
                         *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n:1\r\n*2\r\n$1\r\nm\r\n*-1\r\n+next\r\n";

    fn expected() -> Vec<(Piece, String)> {
        [
            (Piece::Head(4), "*4 "),
            (Piece::Element(0), "+OK "),
            (Piece::Confirmation(1), "*3 $9 subscribe $1 a :1 "),
            (Piece::Confirmation(1), "*3 $9 subscribe $1 b :2 "),
            (Piece::Message, "*3 $7 message $1 a $1 x "),
            (Piece::Element(2), ":1 "),
            (Piece::Element(3), "*2 $1 m *-1 "),
        ]
        .map(|(piece, text)| (piece, text.to_owned()))
        .to_vec()
    }

    fn frames() -> ExecFrames {
        ExecFrames::of([(1, 2)].into(), true, VecDeque::new())
    }

    #[test]
    fn confirmations_and_messages_are_no_elements() {
        let (all, used) = pieces(&mut frames(), &[RESP2.as_bytes()]);
        assert_eq!((all, used), (expected(), RESP2.len() - "+next\r\n".len()));
        let resp3 = RESP2.replace("*3", ">3");
        let (all, used) = pieces(&mut frames(), &[resp3.as_bytes()]);
        let pushes = expected()
            .into_iter()
            .map(|(piece, text)| (piece, text.replace("*3", ">3")));
        assert_eq!((all, used), (pushes.collect(), RESP2.len() - "+next\r\n".len()));
    }

    #[test]
    fn a_refused_subscription_is_one_element() {
        let reply = "*2\r\n-NOPERM no\r\n:1\r\n";
        let (all, _) = pieces(
            &mut ExecFrames::of([(0, 2)].into(), true, VecDeque::new()),
            &[reply.as_bytes()],
        );
        let places: Vec<Piece> = all.iter().map(|(piece, _)| *piece).collect();
        assert_eq!(places, [Piece::Head(2), Piece::Element(0), Piece::Element(1)]);
    }

    #[test]
    fn a_list_that_looks_like_a_message_is_none_where_nobody_publishes() {
        let reply = "*3\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n*1\r\n$7\r\nmessage\r\n";
        let mut frames = ExecFrames::of([(0, 1)].into(), true, [1].into());
        let (all, used) = pieces(&mut frames, &[reply.as_bytes()]);
        let places: Vec<Piece> = all.iter().map(|(piece, _)| *piece).collect();
        let expected = [
            Piece::Head(3),
            Piece::Confirmation(0),
            Piece::Element(1),
            Piece::Element(2),
        ];
        assert_eq!((places.as_slice(), used), (&expected[..], reply.len()));
    }

    #[test]
    fn what_is_no_array_is_one_piece() {
        for whole in ["*-1\r\n", "_\r\n", "-EXECABORT no\r\n", "*0\r\n"] {
            let (all, used) = pieces(&mut ExecFrames::default(), &[whole.as_bytes(), b"+next\r\n"]);
            assert_eq!(used, whole.len(), "{all:?}");
            assert_eq!(all.len(), 1);
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_pieces(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            let whole = RESP2.as_bytes();
            let whole = &whole[..whole.len() - "+next\r\n".len()];
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut parts, mut at) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([whole.len()]) {
                parts.push(&whole[at..cut]);
                at = cut;
            }
            prop_assert_eq!(pieces(&mut frames(), &parts).0, expected());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _any = frames().take(&bytes, &mut |_, _, _| {});
        }
    }
}
