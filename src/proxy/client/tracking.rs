//! What a client has asked Redis to tell it of keys that change (CLIENT TRACKING), for its own cache: enough to ask
//! the next server for the same.
//!
//! ```text
//! ON, OFF, CACHING --> redis --+OK--> kept --lost--> the client forgets all keys --> asked for again
//! ```
//! Pure. Invariant: what is kept changes only with Redis' `+OK`. Where it may differ from what Redis would remember, it
//! makes Redis tell of more keys, never of fewer: nothing stale stays in a cache.

use std::collections::BTreeSet;

use super::subscriptions::Name;
use crate::proxy::backend::put_request;
use crate::resp::{Args, parse_i64};

/// Prefixes of one client.
const PREFIXES_MAX: usize = 1000;
/// Their bytes together.
const PREFIX_BYTES_MAX: usize = 64 * 1024;
/// Arguments of one request, options said more than once included.
const ARGUMENTS_MAX: usize = 2 * PREFIXES_MAX + 16;

/// What Redis itself says when all keys are gone: a client forgets everything it has.
pub(super) const INVALIDATE_ALL: &[u8] = b">2\r\n$10\r\ninvalidate\r\n_\r\n";

/// Which keys Redis remembers for the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// All that it reads.
    #[default]
    Read,
    /// Those read right after CLIENT CACHING YES.
    OptIn,
    /// All but those read right after CLIENT CACHING NO.
    OptOut,
    /// None: it is told of every key with one of its prefixes.
    Broadcast,
}

/// What a CLIENT TRACKING ON asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    mode: Mode,
    /// Not of what the client changes itself.
    no_loop: bool,
    prefixes: Vec<Name>,
    /// To which client what changes is told, if not to this one.
    redirect: Option<u64>,
}

/// A request about tracking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    On(Wanted),
    Off(Option<u64>),
    /// CLIENT CACHING YES or NO.
    Caching(bool),
    /// It changes nothing.
    Asks,
}

/// Why a CLIENT TRACKING is not for Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Redis would not understand it, nor do we.
    Syntax,
    /// It redirects to what is no client's id.
    NoClient,
    /// It redirects more than once.
    Redirects,
    /// It has more prefixes than are kept.
    TooMany,
}

impl Unfit {
    /// What is said to it.
    pub(super) fn line(self) -> &'static [u8] {
        match self {
            Self::Syntax => b"-ERR syntax error\r\n",
            Self::NoClient => b"-ERR value is not an integer or out of range\r\n",
            Self::Redirects => b"-ERR A client can only redirect to a single other client\r\n",
            Self::TooMany => b"-OOM pointsman keeps at most 1000 prefixes and 65536 bytes of them for one client\r\n",
        }
    }
}

impl Word {
    /// Reads a CLIENT TRACKING. Options that contradict each other are for Redis to refuse.
    pub(super) fn tracking(args: &Args) -> Result<Self, Unfit> {
        if args.len() > ARGUMENTS_MAX {
            return Err(Unfit::TooMany);
        }
        let mut wanted = Wanted::default();
        let mut at = 3;
        while let Some(option) = args.get(at) {
            let value = args.get(at + 1);
            match (option.to_ascii_lowercase().as_slice(), value) {
                (b"bcast", _) => wanted.mode = Mode::Broadcast,
                (b"optin", _) => wanted.mode = Mode::OptIn,
                (b"optout", _) => wanted.mode = Mode::OptOut,
                (b"noloop", _) => wanted.no_loop = true,
                (b"prefix", Some(prefix)) => {
                    wanted.prefixes.push(prefix.into());
                    at += 1;
                }
                (b"redirect", Some(_)) if wanted.redirect.is_some() => return Err(Unfit::Redirects),
                (b"redirect", Some(id)) => {
                    let id = parse_i64(id).ok_or(Unfit::NoClient)?;
                    // No client has a negative one, which Redis says once it looks.
                    wanted.redirect = Some(u64::try_from(id).unwrap_or(u64::MAX));
                    at += 1;
                }
                _ => return Err(Unfit::Syntax),
            }
            at += 1;
        }
        match args.get(2).unwrap_or_default().to_ascii_lowercase().as_slice() {
            b"on" => Ok(Self::On(wanted)),
            b"off" => Ok(Self::Off(wanted.redirect)),
            _ => Err(Unfit::Syntax),
        }
    }

    /// To which client it redirects; OFF may say so, too.
    pub(super) fn redirect(&self) -> Option<u64> {
        match self {
            Self::On(wanted) => wanted.redirect,
            Self::Off(redirect) => *redirect,
            Self::Caching(_) | Self::Asks => None,
        }
    }

    /// Reads a CLIENT CACHING.
    pub(super) fn caching(args: &Args) -> Result<Self, Unfit> {
        match args.get(2).unwrap_or_default().to_ascii_lowercase().as_slice() {
            b"yes" => Ok(Self::Caching(true)),
            b"no" => Ok(Self::Caching(false)),
            _ => Err(Unfit::Syntax),
        }
    }
}

/// What Redis has confirmed.
#[derive(Debug, Default)]
struct On {
    mode: Mode,
    no_loop: bool,
    prefixes: BTreeSet<Name>,
    redirects: bool,
    /// A broadcast without prefixes was asked for: Redis takes that beside others, and nothing beside it.
    every_key: bool,
}

/// The tracking of one client.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    on: Option<Box<On>>,
    /// What CLIENT CACHING said of the request that comes next.
    caching: Option<bool>,
    /// CLIENT CACHING was asked for, and nothing that it would be said of.
    spoken: bool,
    /// The server at the other end tells the client what changes: it may have something in its cache.
    live: bool,
    /// The client must be told to forget everything before it is told anything else.
    owed: bool,
}

impl Tracking {
    /// Whether it was switched on.
    pub(super) fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Whether the client is told of all keys with its prefixes.
    pub(super) fn broadcasts(&self) -> bool {
        self.on.as_ref().is_some_and(|on| on.mode == Mode::Broadcast)
    }

    /// Whether another client is told.
    pub(super) fn redirects(&self) -> bool {
        self.on.as_ref().is_some_and(|on| on.redirects)
    }

    /// Whether what is wanted can be kept beside what there is.
    pub(super) fn has_room(&self, word: &Word) -> bool {
        let Word::On(wanted) = word else { return true };
        let kept = || self.on.iter().flat_map(|on| &on.prefixes);
        let bytes: usize = kept().chain(&wanted.prefixes).map(|prefix| prefix.len()).sum();
        kept().count() + wanted.prefixes.len() <= PREFIXES_MAX && bytes <= PREFIX_BYTES_MAX
    }

    /// Redis said `+OK`.
    pub(super) fn confirmed(&mut self, word: Word) {
        match word {
            Word::On(wanted) => {
                self.live = true;
                if wanted.mode != Mode::OptIn {
                    self.caching = None;
                }
                let on = self.on.get_or_insert_default();
                (on.mode, on.no_loop, on.redirects) = (wanted.mode, wanted.no_loop, wanted.redirect.is_some());
                on.every_key |= wanted.mode == Mode::Broadcast && wanted.prefixes.is_empty();
                on.prefixes.extend(wanted.prefixes);
            }
            Word::Off(_) => (self.on, self.caching, self.live) = (None, None, false),
            Word::Caching(yes) => self.caching = Some(yes),
            Word::Asks => {}
        }
    }

    /// CLIENT CACHING is about to be asked (`speaks`), or what it may speak of.
    pub(super) fn asked(&mut self, speaks: bool) {
        self.spoken = speaks;
    }

    /// Whether CLIENT CACHING would be said of a request that comes now.
    pub(super) fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// A request was answered, or given up, that CLIENT CACHING may have spoken of.
    pub(super) fn consumed(&mut self) {
        self.caching = None;
    }

    /// The connection is gone, on which the client could be told (`resp3`) or not.
    pub(super) fn lost(&mut self, resp3: bool) {
        self.owed |= std::mem::take(&mut self.live) && resp3;
    }

    /// Whether the client is to be told now to forget everything.
    pub(super) fn take_owed(&mut self) -> bool {
        std::mem::take(&mut self.owed)
    }

    /// The next server tells the client what changes.
    pub(super) fn lives_again(&mut self) {
        self.live = self.is_on();
    }

    /// Appends the requests that bring another connection there, and says how many they are.
    pub(super) fn put_again(&self, out: &mut Vec<u8>) -> usize {
        let Some(on) = &self.on else { return 0 };
        let mut words: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON"];
        match on.mode {
            Mode::Read => {}
            Mode::OptIn => words.push(b"OPTIN"),
            Mode::OptOut => words.push(b"OPTOUT"),
            Mode::Broadcast => words.push(b"BCAST"),
        }
        if on.no_loop {
            words.push(b"NOLOOP");
        }
        let bare = words.len();
        for prefix in &on.prefixes {
            words.extend([b"PREFIX", &**prefix]);
        }
        put_request(out, &words);
        // In one request they would overlap.
        if on.prefixes.is_empty() || !on.every_key {
            return 1;
        }
        put_request(out, &words[..bare]);
        2
    }

    /// Appends what CLIENT CACHING said of the request that comes next, if anything. A NO is repeated only if that
    /// request is known (`comes`): by the time it does, something else may have come between.
    pub(super) fn put_caching(&self, comes: bool, out: &mut Vec<u8>) -> bool {
        let Some(yes) = self.caching.filter(|yes| *yes || comes) else {
            return false;
        };
        put_request(out, &[b"CLIENT", b"CACHING", if yes { b"YES" } else { b"NO" }]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Word, Unfit> {
        let (mut frame, mut spans) = (Vec::new(), Vec::new());
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        put_request(&mut frame, &words);
        Word::tracking(&Args::read(&frame, &mut spans).unwrap())
    }

    fn confirmed(lines: &[&str]) -> Tracking {
        let mut tracking = Tracking::default();
        lines.iter().for_each(|line| tracking.confirmed(read(line).unwrap()));
        tracking
    }

    /// The requests as lines of words.
    fn again(tracking: &Tracking) -> Vec<String> {
        let mut out = Vec::new();
        let count = tracking.put_again(&mut out);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<String> = text
            .split('*')
            .skip(1)
            .map(|request| request.lines().skip(2).step_by(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines.len(), count);
        lines
    }

    #[test]
    fn what_was_confirmed_is_asked_for_again() {
        for (lines, expected) in [
            (&[][..], &[][..]),
            (&["CLIENT TRACKING ON"], &["CLIENT TRACKING ON"]),
            (
                &["CLIENT TRACKING on optin NOLOOP"],
                &["CLIENT TRACKING ON OPTIN NOLOOP"],
            ),
            (
                &["CLIENT TRACKING ON OPTIN NOLOOP", "CLIENT TRACKING ON"],
                &["CLIENT TRACKING ON"],
            ),
            (
                &[
                    "CLIENT TRACKING ON BCAST PREFIX b NOLOOP",
                    "CLIENT TRACKING ON BCAST PREFIX a",
                ],
                &["CLIENT TRACKING ON BCAST PREFIX a PREFIX b"],
            ),
            (
                &["CLIENT TRACKING ON BCAST PREFIX a", "CLIENT TRACKING ON BCAST NOLOOP"],
                &[
                    "CLIENT TRACKING ON BCAST NOLOOP PREFIX a",
                    "CLIENT TRACKING ON BCAST NOLOOP",
                ],
            ),
            (&["CLIENT TRACKING ON BCAST"], &["CLIENT TRACKING ON BCAST"]),
            (&["CLIENT TRACKING ON BCAST", "CLIENT TRACKING OFF BCAST"], &[]),
        ] {
            assert_eq!(again(&confirmed(lines)), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_nobody_understands_and_what_redirects_is_told_apart() {
        for (line, unfit) in [
            ("CLIENT TRACKING MAYBE", Unfit::Syntax),
            ("CLIENT TRACKING ON FOO", Unfit::Syntax),
            ("CLIENT TRACKING OFF FOO", Unfit::Syntax),
            ("CLIENT TRACKING ON PREFIX", Unfit::Syntax),
            ("CLIENT TRACKING ON REDIRECT", Unfit::Syntax),
            ("CLIENT TRACKING ON REDIRECT x", Unfit::NoClient),
            ("CLIENT TRACKING ON REDIRECT 3 REDIRECT 3", Unfit::Redirects),
        ] {
            assert_eq!(read(line), Err(unfit), "{line}");
        }
    }

    #[test]
    fn prefixes_and_their_bytes_have_a_limit() {
        let on = |count: usize, len: usize| {
            let zeros = "0".repeat(len.saturating_sub(4));
            let prefixes = (0..count).map(|number| format!("{number:04}{zeros}").into_bytes().into());
            Word::On(Wanted {
                mode: Mode::Broadcast,
                no_loop: false,
                redirect: None,
                prefixes: prefixes.collect(),
            })
        };
        let mut tracking = Tracking::default();
        assert!(tracking.has_room(&on(PREFIXES_MAX, 4)) && !tracking.has_room(&on(PREFIXES_MAX + 1, 4)));
        assert!(tracking.has_room(&on(1, PREFIX_BYTES_MAX)) && !tracking.has_room(&on(1, PREFIX_BYTES_MAX + 1)));
        tracking.confirmed(on(PREFIXES_MAX, 4));
        assert!(!tracking.has_room(&on(1, 5)) && tracking.has_room(&on(0, 0)));
        let many = format!("CLIENT TRACKING ON{}", " BCAST".repeat(ARGUMENTS_MAX - 3));
        assert!(read(&many).is_ok());
        assert_eq!(read(&format!("{many} BCAST")), Err(Unfit::TooMany));
    }

    #[test]
    fn the_client_forgets_everything_once_for_each_server_that_told_it() {
        let mut tracking = Tracking::default();
        tracking.lost(true);
        assert!(!tracking.take_owed(), "nothing is tracked");
        tracking.confirmed(read("CLIENT TRACKING ON").unwrap());
        tracking.lost(true);
        assert!(tracking.take_owed() && !tracking.take_owed());
        tracking.lost(true);
        assert!(!tracking.take_owed(), "the next one never told it anything");
        tracking.lives_again();
        tracking.lost(false);
        assert!(!tracking.take_owed(), "RESP2 has no word for it");
        tracking.lives_again();
        tracking.confirmed(Word::Off(None));
        tracking.lost(true);
        assert!(!tracking.take_owed());
    }

    #[test]
    fn what_caching_said_is_repeated_for_the_request_it_spoke_of() {
        let repeated = |tracking: &Tracking, comes: bool| {
            let mut out = Vec::new();
            tracking
                .put_caching(comes, &mut out)
                .then(|| String::from_utf8(out).unwrap())
        };
        let mut tracking = confirmed(&["CLIENT TRACKING ON OPTIN"]);
        tracking.confirmed(Word::Caching(true));
        assert!(repeated(&tracking, false).unwrap().ends_with("YES\r\n"));
        tracking.confirmed(Word::Asks);
        tracking.confirmed(read("CLIENT TRACKING ON OPTIN NOLOOP").unwrap());
        assert!(repeated(&tracking, true).unwrap().ends_with("YES\r\n"));
        tracking.consumed();
        assert_eq!(repeated(&tracking, true), None);
        let mut tracking = confirmed(&["CLIENT TRACKING ON OPTOUT"]);
        tracking.confirmed(Word::Caching(false));
        assert_eq!(repeated(&tracking, false), None, "the next request may not be the one");
        assert!(repeated(&tracking, true).unwrap().ends_with("NO\r\n"));
        tracking.confirmed(read("CLIENT TRACKING ON OPTOUT").unwrap());
        assert_eq!(repeated(&tracking, true), None);
    }
}
