//! What a client is subscribed to: enough to subscribe again on another connection.
//!
//! Pure. Invariant: the sets hold exactly what Redis has confirmed to the client; names asked for and not confirmed yet
//! count against the bounds, too, so that no client makes us remember more than they say.

use std::collections::HashSet;

use crate::proxy::backend::put_request;

/// Names of one client, confirmed and asked for.
pub(super) const NAMES_MAX: usize = 100_000;
/// Their bytes together.
pub(super) const NAMES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of one name.
pub(super) const NAME_BYTES_MAX: usize = 64 * 1024;
/// Names of one request when subscribing again: Redis serves others between two of them.
const AGAIN_NAMES_MAX: usize = 1000;

/// A channel's name, or a pattern.
pub(super) type Name = Box<[u8]>;

/// Which of Redis' three lists of subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// SUBSCRIBE
    Channel,
    /// PSUBSCRIBE
    Pattern,
    /// SSUBSCRIBE
    Shard,
}

/// Whether names are added or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// They are added.
    Subscribe,
    /// They are taken away.
    Unsubscribe,
}

/// One of the six commands; its name is also the first word of each of its confirmations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub verb: Verb,
    pub kind: Kind,
}

impl Family {
    /// The command of a name in lower case.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        let (verb, kind) = match name {
            b"subscribe" => (Verb::Subscribe, Kind::Channel),
            b"psubscribe" => (Verb::Subscribe, Kind::Pattern),
            b"ssubscribe" => (Verb::Subscribe, Kind::Shard),
            b"unsubscribe" => (Verb::Unsubscribe, Kind::Channel),
            b"punsubscribe" => (Verb::Unsubscribe, Kind::Pattern),
            b"sunsubscribe" => (Verb::Unsubscribe, Kind::Shard),
            _ => return None,
        };
        Some(Self { verb, kind })
    }

    /// Its name in lower case.
    pub(super) fn name(self) -> &'static [u8] {
        match (self.verb, self.kind) {
            (Verb::Subscribe, Kind::Channel) => b"subscribe",
            (Verb::Subscribe, Kind::Pattern) => b"psubscribe",
            (Verb::Subscribe, Kind::Shard) => b"ssubscribe",
            (Verb::Unsubscribe, Kind::Channel) => b"unsubscribe",
            (Verb::Unsubscribe, Kind::Pattern) => b"punsubscribe",
            (Verb::Unsubscribe, Kind::Shard) => b"sunsubscribe",
        }
    }
}

/// More names than one client may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// The subscriptions of one client.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: HashSet<Name, foldhash::fast::FixedState>,
    patterns: HashSet<Name, foldhash::fast::FixedState>,
    shards: HashSet<Name, foldhash::fast::FixedState>,
    kept_bytes: usize,
    asked: usize,
    asked_bytes: usize,
}

impl Subscriptions {
    /// Whether nothing is confirmed.
    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Whether nothing of a kind is confirmed.
    pub(super) fn has_none(&self, kind: Kind) -> bool {
        self.count_of(kind) == 0
    }

    /// How many of a kind are confirmed.
    pub(super) fn count_of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Channel => self.channels.len(),
            Kind::Pattern => self.patterns.len(),
            Kind::Shard => self.shards.len(),
        }
    }

    /// All of a kind.
    pub(super) fn names(&self, kind: Kind) -> impl Iterator<Item = &Name> {
        match kind {
            Kind::Channel => self.channels.iter(),
            Kind::Pattern => self.patterns.iter(),
            Kind::Shard => self.shards.iter(),
        }
    }

    /// Makes room for names that are about to be asked for.
    pub(super) fn ask<'a>(&mut self, names: impl Iterator<Item = &'a [u8]>) -> Result<(), TooMany> {
        let (mut count, mut bytes) = (self.asked, self.asked_bytes);
        for name in names {
            if name.len() > NAME_BYTES_MAX {
                return Err(TooMany);
            }
            count += 1;
            bytes += name.len();
        }
        if self.count() + count > NAMES_MAX || self.kept_bytes + bytes > NAMES_BYTES_MAX {
            return Err(TooMany);
        }
        (self.asked, self.asked_bytes) = (count, bytes);
        Ok(())
    }

    /// Redis confirmed a name that was asked for.
    pub(super) fn add(&mut self, kind: Kind, name: Name) {
        self.forget(&name);
        let bytes = name.len();
        if self.set(kind).insert(name) {
            self.kept_bytes += bytes;
        }
    }

    /// A name that was asked for will not be confirmed.
    pub(super) fn forget(&mut self, name: &[u8]) {
        self.asked = self.asked.saturating_sub(1);
        self.asked_bytes = self.asked_bytes.saturating_sub(name.len());
    }

    /// Redis confirmed that a name is gone.
    pub(super) fn remove(&mut self, kind: Kind, name: &[u8]) {
        if self.set(kind).remove(name) {
            self.kept_bytes -= name.len();
        }
    }

    /// Appends requests that subscribe to everything, and says what each of them is and how many confirmations it gets.
    pub(super) fn put_again(&self, out: &mut Vec<u8>) -> Vec<(Kind, u32)> {
        let mut requests = Vec::new();
        for (kind, set) in [
            (Kind::Channel, &self.channels),
            (Kind::Pattern, &self.patterns),
            (Kind::Shard, &self.shards),
        ] {
            let family = Family {
                verb: Verb::Subscribe,
                kind,
            };
            let names: Vec<&[u8]> = set.iter().map(|name| &**name).collect();
            for part in names.chunks(AGAIN_NAMES_MAX) {
                put_family(family, part, out);
                requests.push((kind, u32::try_from(part.len()).unwrap_or(u32::MAX)));
            }
        }
        requests
    }

    fn count(&self) -> usize {
        self.channels.len() + self.patterns.len() + self.shards.len()
    }

    fn set(&mut self, kind: Kind) -> &mut HashSet<Name, foldhash::fast::FixedState> {
        match kind {
            Kind::Channel => &mut self.channels,
            Kind::Pattern => &mut self.patterns,
            Kind::Shard => &mut self.shards,
        }
    }
}

/// Appends one request of the family.
pub(super) fn put_family(family: Family, names: &[&[u8]], out: &mut Vec<u8>) {
    let args: Vec<&[u8]> = std::iter::once(family.name()).chain(names.iter().copied()).collect();
    put_request(out, &args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_confirmed_is_asked_for_again() {
        let mut subscriptions = Subscriptions::default();
        for (kind, name) in [
            (Kind::Channel, "a"),
            (Kind::Channel, "a"),
            (Kind::Pattern, "p*"),
            (Kind::Shard, "s"),
            (Kind::Channel, "gone"),
        ] {
            subscriptions.ask([name.as_bytes()].into_iter()).unwrap();
            subscriptions.add(kind, name.as_bytes().into());
        }
        subscriptions.remove(Kind::Channel, b"gone");
        subscriptions.remove(Kind::Channel, b"never");
        let mut out = Vec::new();
        let requests = subscriptions.put_again(&mut out);
        assert_eq!(requests, [(Kind::Channel, 1), (Kind::Pattern, 1), (Kind::Shard, 1)]);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "*2\r\n$9\r\nsubscribe\r\n$1\r\na\r\n*2\r\n$10\r\npsubscribe\r\n$2\r\np*\r\n*2\r\n$10\r\nssubscribe\r\n$1\r\ns\r\n"
        );
        assert_eq!((subscriptions.asked, subscriptions.asked_bytes), (0, 0));
    }

    #[test]
    fn names_and_their_bytes_have_a_limit() {
        let mut subscriptions = Subscriptions::default();
        let name = [b'x'; 4];
        assert_eq!(subscriptions.ask((0..NAMES_MAX).map(|_| &name[..])), Ok(()));
        assert_eq!(subscriptions.ask([&name[..]].into_iter()), Err(TooMany));
        subscriptions.forget(&name);
        assert_eq!(subscriptions.ask([&name[..]].into_iter()), Ok(()));

        let mut subscriptions = Subscriptions::default();
        let long = vec![b'x'; NAME_BYTES_MAX];
        let fitting = NAMES_BYTES_MAX / NAME_BYTES_MAX;
        assert_eq!(subscriptions.ask((0..fitting).map(|_| &long[..])), Ok(()));
        assert_eq!(subscriptions.ask([&name[..]].into_iter()), Err(TooMany));
        let longer = vec![b'x'; NAME_BYTES_MAX + 1];
        assert_eq!(Subscriptions::default().ask([&longer[..]].into_iter()), Err(TooMany));
    }

    #[test]
    fn many_names_are_subscribed_again_in_parts() {
        let mut subscriptions = Subscriptions::default();
        for number in 0..=AGAIN_NAMES_MAX {
            subscriptions.add(Kind::Channel, number.to_string().into_bytes().into());
        }
        let requests = subscriptions.put_again(&mut Vec::new());
        assert_eq!(requests, [(Kind::Channel, 1000), (Kind::Channel, 1)]);
    }
}
