//! The reply to an EXEC in which some elements are listened to, or are not Redis' to say.
//!
//! ```text
//! reply --ExecFrames--> pieces --ears--> what the client sees
//!                          |
//!                          '--> kept, while an element waits for what others are asked
//! ```
//! Pure. Muting is looked after here, because CLIENT REPLY in a transaction changes it between two elements.

use std::collections::VecDeque;
use std::fmt;

use super::exec_frames::{Confirmations, ExecFrames, Piece};
use super::listener::{Act, Acts, Ear, Listener};
use super::mute::Mute;
use crate::topology::RunId;

/// Commands of one transaction whose replies are listened to.
const EARS_MAX: usize = 1024;

/// What a transaction on the session's own connection has queued, as the elements of the reply to its EXEC.
#[derive(Debug, Default)]
pub(super) struct Elements {
    count: u32,
    ears: VecDeque<(u32, Ear)>,
    confirmations: Confirmations,
    /// Whether the client may be a subscriber in RESP2 when EXEC runs.
    plain_messages: bool,
    /// Which of them publish nothing, since then.
    quiet: VecDeque<u32>,
}

impl Elements {
    /// Whether nothing more can be listened to.
    pub(super) fn is_full(&self) -> bool {
        self.ears.len() + self.confirmations.len() >= EARS_MAX
    }

    /// Whether one of them concerns the client itself.
    pub(super) fn act(&self) -> bool {
        self.ears.iter().any(|(_, ear)| matches!(ear, Ear::Own(_)))
    }

    /// Redis queues a command, of whose reply this is listened to.
    pub(super) fn queue(&mut self, name: &str, ear: Option<Ear>) {
        // It answers these at once.
        if matches!(name, "multi" | "watch") {
            return;
        }
        if let Some(ear) = ear.filter(|_| !self.is_full()) {
            self.ears.push_back((self.count, ear));
        }
        self.count += 1;
    }

    /// The place of what was queued last.
    pub(super) fn last(&self) -> Option<u32> {
        self.count.checked_sub(1)
    }

    /// What was queued last is confirmed by so many frames. `plain`: subscribers may be told of messages as in RESP2.
    pub(super) fn confirms(&mut self, frames: u32, plain: bool) {
        if let Some(last) = self.last() {
            self.confirmations.push_back((last, frames));
        }
        self.plain_messages |= plain;
    }

    /// What was queued last publishes nothing.
    pub(super) fn is_quiet(&mut self) {
        if let Some(last) = self.last().filter(|_| self.plain_messages) {
            self.quiet.push_back(last);
        }
    }

    /// How their frames are told apart.
    pub(super) fn frames(&self) -> ExecFrames {
        ExecFrames::of(self.confirmations.clone(), self.plain_messages, self.quiet.clone())
    }

    /// What is queued goes to a server in this life.
    pub(super) fn moves_to(&mut self, life: Option<&RunId>) {
        for (_, ear) in &mut self.ears {
            ear.moves_to(life);
        }
    }

    /// Who listens to the reply to EXEC.
    pub(super) fn listener(self) -> Option<Listener> {
        let frames = self.frames();
        let listens = !self.ears.is_empty() || !self.confirmations.is_empty();
        listens.then(|| Listener::Exec(Box::new(ExecReply::new(self.ears, frames))))
    }
}

/// See the file's note.
pub(super) struct ExecReply {
    /// By their place among the elements.
    ears: VecDeque<(u32, Ear)>,
    frames: ExecFrames,
    /// How many elements there are.
    count: u32,
    /// Which replies the client does not hear, once the first byte has come.
    muting: Option<Muting>,
    /// An element waits for an answer, and what came after it is kept.
    waits: bool,
    kept: VecDeque<(Piece, Vec<u8>, bool)>,
    /// The client is to see nothing more.
    ended: bool,
}

impl fmt::Debug for ExecReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecReply")
            .field("ears", &self.ears)
            .finish_non_exhaustive()
    }
}

impl ExecReply {
    /// `ears` in the order of their places.
    pub(super) fn new(ears: VecDeque<(u32, Ear)>, frames: ExecFrames) -> Self {
        Self {
            ears,
            frames,
            count: 0,
            muting: None,
            waits: false,
            kept: VecDeque::new(),
            ended: false,
        }
    }

    /// The transaction is sent again, to a server in this life.
    pub(super) fn moves_to(&mut self, life: Option<&RunId>) {
        for (_, ear) in &mut self.ears {
            ear.moves_to(life);
        }
    }

    /// Whether an element waits for an answer.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Bytes that wait for that.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.iter().map(|(_, bytes, _)| bytes.len()).sum()
    }

    /// What the client hears once this is over, if that has changed.
    pub(super) fn mutes(&self) -> Option<Mute> {
        self.muting.filter(|muting| muting.changed).map(Muting::after)
    }

    /// Takes bytes of the reply and gives what the client is to see of them.
    pub(super) fn take(&mut self, bytes: &[u8], acts: &mut dyn Acts, out: &mut Vec<u8>) {
        self.muting.get_or_insert_with(|| Muting::begin(acts.mute()));
        let mut frames = std::mem::take(&mut self.frames);
        let taken = frames.take(bytes, &mut |piece, part, ends| self.piece(piece, part, ends, acts, out));
        self.frames = frames;
        // Its connection will be given up.
        self.ended |= taken.is_none();
    }

    /// The answer came that an element waited for.
    pub(super) fn go_on(&mut self, said: &[u8], ends: bool, acts: &mut dyn Acts, out: &mut Vec<u8>) {
        self.waits = false;
        self.say(said, out);
        self.ended |= ends;
        while !self.waits
            && let Some((piece, bytes, ends)) = self.kept.pop_front()
        {
            self.piece(piece, &bytes, ends, acts, out);
        }
    }

    fn piece(&mut self, piece: Piece, bytes: &[u8], ends: bool, acts: &mut dyn Acts, out: &mut Vec<u8>) {
        if self.waits {
            self.kept.push_back((piece, bytes.to_vec(), ends));
            return;
        }
        match piece {
            Piece::Head(count) => {
                self.count = count;
                self.say(bytes, out);
            }
            Piece::Whole => self.say(bytes, out),
            Piece::Element(at) => self.element(at, bytes, ends, acts, out),
            // What Redis says to subscribers is heard in any case.
            Piece::Confirmation(_) | Piece::Message if !self.ended => out.extend_from_slice(bytes),
            Piece::Confirmation(_) | Piece::Message => {}
        }
    }

    fn element(&mut self, at: u32, bytes: &[u8], ends: bool, acts: &mut dyn Acts, out: &mut Vec<u8>) {
        let Some((_, ear)) = self.ears.front_mut().filter(|(place, _)| *place == at) else {
            return self.say(bytes, out);
        };
        let mut seen = Vec::new();
        let act = ear.take(bytes, ends, Some(self.count), acts, &mut seen);
        if ends {
            self.ears.pop_front();
        }
        match act {
            Act::Done => {}
            Act::Tells if !self.ended => return out.append(&mut seen),
            Act::Tells => {}
            Act::Asks => self.waits = true,
            Act::Mutes(mute) => {
                if let Some(muting) = &mut self.muting {
                    muting.say(mute);
                }
            }
        }
        self.say(&seen, out);
    }

    fn say(&self, bytes: &[u8], out: &mut Vec<u8>) {
        if !self.ended && !self.muting.is_some_and(Muting::is_silent) {
            out.extend_from_slice(bytes);
        }
    }
}
/// CLIENT REPLY, as one of the elements: Redis' flags.
#[derive(Clone, Copy, Debug)]
struct Muting {
    off: bool,
    skips: bool,
    skips_next: bool,
    changed: bool,
}

impl Muting {
    fn begin(before: Mute) -> Self {
        Self {
            off: before == Mute::Off,
            skips: before == Mute::Skipping,
            skips_next: false,
            changed: false,
        }
    }

    fn say(&mut self, mute: Mute) {
        self.changed = true;
        match mute {
            Mute::No => (self.off, self.skips) = (false, false),
            Mute::Off => self.off = true,
            Mute::SkipsNext | Mute::Skipping => self.skips_next |= !self.off,
        }
    }

    fn is_silent(self) -> bool {
        self.off || self.skips
    }

    fn after(self) -> Mute {
        match (self.off, self.skips_next) {
            (true, _) => Mute::Off,
            (false, true) => Mute::SkipsNext,
            (false, false) => Mute::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cursor::CursorReply;
    use super::super::own::OwnReply;
    use super::*;

    /// Says what it is asked to, silences whom it is asked to.
    #[derive(Default)]
    struct Puppet {
        mute: Mute,
    }

    impl Acts for Puppet {
        fn mute(&self) -> Mute {
            self.mute
        }

        fn act(&mut self, request: &[u8], reply: &[u8], inside: Option<u32>, out: &mut Vec<u8>) -> Act {
            match request {
                _ if reply.starts_with(b"-") => out.extend_from_slice(reply),
                b"on" => {
                    out.extend_from_slice(b"+ON\r\n");
                    return Act::Mutes(Mute::No);
                }
                b"off" => return Act::Mutes(Mute::Off),
                b"skip" => return Act::Mutes(Mute::SkipsNext),
                b"ask" => return Act::Asks,
                _ => out.extend_from_slice(format!(":{}\r\n", inside.unwrap_or_default()).as_bytes()),
            }
            Act::Done
        }
    }

    fn life() -> RunId {
        RunId::from("life")
    }

    fn cursor() -> Ear {
        Ear::Cursor(CursorReply::new(crate::route::cursor::Scope::ONE, Some(&life())))
    }

    fn own(word: &str) -> Ear {
        Ear::Own(OwnReply::new(word.as_bytes()))
    }

    fn reply(ears: Vec<(u32, Ear)>) -> ExecReply {
        ExecReply::new(ears.into(), ExecFrames::default())
    }

    /// The cursor that a client sees for 5.
    fn seen() -> String {
        let mut out = Vec::new();
        cursor().take(b"*2\r\n$1\r\n5\r\n*0\r\n", true, None, &mut Puppet::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        text.lines().nth(2).unwrap().to_owned()
    }

    fn passed(places: &[u32], parts: &[&[u8]]) -> String {
        let mut reply = reply(places.iter().map(|place| (*place, cursor())).collect());
        let mut out = Vec::new();
        parts
            .iter()
            .for_each(|part| reply.take(part, &mut Puppet::default(), &mut out));
        String::from_utf8(out).unwrap()
    }

    const EXEC: &str =
        "*5\r\n+OK\r\n*2\r\n$1\r\n5\r\n*1\r\n$3\r\n*2\r\r\n*2\r\n$1\r\n5\r\n*0\r\n-ERR no\r\n*2\r\n$1\r\n0\r\n*0\r\n";

    fn expected() -> String {
        let seen = seen();
        EXEC.replacen("$1\r\n5\r\n", &format!("${}\r\n{seen}\r\n", seen.len()), 1)
    }

    #[test]
    fn only_the_elements_that_are_scans_are_changed() {
        assert_eq!(passed(&[1, 3, 4], &[EXEC.as_bytes()]), expected());
        let all = EXEC.replace("$1\r\n5\r\n", &format!("${}\r\n{}\r\n", seen().len(), seen()));
        assert_eq!(passed(&[1, 2], &[EXEC.as_bytes()]), all);
    }

    #[test]
    fn places_count_what_redis_queues() {
        let mut elements = Elements::default();
        for (name, ear) in [
            ("set", None),
            ("multi", None),
            ("watch", None),
            ("scan", Some(cursor())),
            ("get", None),
            ("hscan", Some(cursor())),
        ] {
            elements.queue(name, ear);
        }
        let places: Vec<u32> = elements.ears.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [1, 3]);
        assert!(Elements::default().listener().is_none());
        (0..EARS_MAX).for_each(|_| elements.queue("scan", Some(cursor())));
        assert!(elements.is_full() && elements.ears.len() == EARS_MAX);
    }

    #[test]
    fn what_is_no_array_passes() {
        for whole in ["*-1\r\n", "_\r\n", "-EXECABORT Transaction discarded\r\n", "*0\r\n"] {
            assert_eq!(passed(&[0], &[whole.as_bytes()]), whole);
            let bytes: Vec<&[u8]> = whole.as_bytes().chunks(1).collect();
            assert_eq!(passed(&[0], &bytes), whole);
        }
    }

    fn muted(before: Mute, words: &[&str]) -> (String, Option<Mute>) {
        let ears = words.iter().zip(0..).filter(|(word, _)| **word != "get");
        let mut reply = reply(ears.map(|(word, place)| (place, own(word))).collect());
        let bytes = format!("*{}\r\n{}", words.len(), "+PONG\r\n".repeat(words.len()));
        let (mut puppet, mut out) = (Puppet { mute: before }, Vec::new());
        reply.take(bytes.as_bytes(), &mut puppet, &mut out);
        (String::from_utf8(out).unwrap().replace("\r\n", " "), reply.mutes())
    }

    #[test]
    fn client_reply_mutes_between_two_elements() {
        for (before, words, expected, after) in [
            (Mute::No, &["get", "off", "get"][..], "*3 +PONG ", Some(Mute::Off)),
            (Mute::No, &["off", "get", "on", "get"], "*4 +ON +PONG ", Some(Mute::No)),
            (Mute::Off, &["get", "id", "on", "id"], "+ON :4 ", Some(Mute::No)),
            (Mute::No, &["skip", "get"], "*2 +PONG ", Some(Mute::SkipsNext)),
            (Mute::No, &["off", "skip", "get"], "*3 ", Some(Mute::Off)),
            (
                Mute::No,
                &["skip", "off", "on", "get"],
                "*4 +ON +PONG ",
                Some(Mute::SkipsNext),
            ),
            (Mute::Off, &["skip", "get"], "", Some(Mute::Off)),
            (Mute::Skipping, &["id", "get"], "", None),
            (Mute::Skipping, &["on", "get"], "+ON +PONG ", Some(Mute::No)),
        ] {
            assert_eq!(
                muted(before, words),
                (expected.to_owned(), after),
                "{before:?} {words:?}"
            );
        }
    }

    #[test]
    fn what_comes_after_an_element_that_asks_others_waits_for_the_answer() {
        let mut reply = reply(vec![(1, own("ask")), (2, own("ask")), (4, own("id"))]);
        let (mut puppet, mut out) = (Puppet::default(), Vec::new());
        reply.take(b"*5\r\n:1\r\n+PONG\r\n+PO", &mut puppet, &mut out);
        assert!(reply.waits());
        reply.take(b"NG\r\n:4\r\n-NOPERM no\r\n", &mut puppet, &mut out);
        assert_eq!((out.as_slice(), reply.kept_bytes() > 0), (&b"*5\r\n:1\r\n"[..], true));
        reply.go_on(b":22\r\n", false, &mut puppet, &mut out);
        assert!(reply.waits());
        reply.go_on(b":33\r\n", false, &mut puppet, &mut out);
        assert!(!reply.waits() && reply.kept_bytes() == 0);
        assert_eq!(out, b"*5\r\n:1\r\n:22\r\n:33\r\n:4\r\n-NOPERM no\r\n");
    }

    #[test]
    fn who_ends_itself_sees_nothing_after_that() {
        let mut reply = reply(vec![(0, own("ask"))]);
        let (mut puppet, mut out) = (Puppet::default(), Vec::new());
        reply.take(b"*2\r\n+PONG\r\n:1\r\n", &mut puppet, &mut out);
        reply.go_on(b":1\r\n", true, &mut puppet, &mut out);
        assert_eq!(out, b"*2\r\n:1\r\n");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_reply(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let whole = EXEC.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut parts, mut at) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([whole.len()]) {
                parts.push(&whole[at..cut]);
                at = cut;
            }
            prop_assert_eq!(passed(&[1, 4], &parts), expected());
        }
    }
}
