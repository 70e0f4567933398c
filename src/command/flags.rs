//! Command flags as `COMMAND` reports them, as one word of bits.
//!
//! Owns the names; refuses none: a flag this file does not know is dropped, because only the ones below decide anything.

/// A set of command flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// May change the data set.
    pub const WRITE: Self = Self(1);
    /// Only reads the data set.
    pub const READONLY: Self = Self(1 << 1);
    /// Refused when memory is full.
    pub const DENYOOM: Self = Self(1 << 2);
    /// Belongs to a module.
    pub const MODULE: Self = Self(1 << 3);
    /// An operator's command.
    pub const ADMIN: Self = Self(1 << 4);
    /// Concerns publish and subscribe.
    pub const PUBSUB: Self = Self(1 << 5);
    /// Not allowed in scripts.
    pub const NOSCRIPT: Self = Self(1 << 6);
    /// May block the connection.
    pub const BLOCKING: Self = Self(1 << 7);
    /// Allowed while the server loads its data.
    pub const LOADING: Self = Self(1 << 8);
    /// Allowed on a replica that lost its master.
    pub const STALE: Self = Self(1 << 9);
    /// Constant or logarithmic time.
    pub const FAST: Self = Self(1 << 10);
    /// Allowed before authentication.
    pub const NO_AUTH: Self = Self(1 << 11);
    /// Not flagged as a write, yet sends something to the replicas (EVAL, PUBLISH, PFCOUNT).
    pub const MAY_REPLICATE: Self = Self(1 << 12);
    /// Not allowed inside MULTI.
    pub const NO_MULTI: Self = Self(1 << 13);
    /// Its keys are not at fixed positions.
    pub const MOVABLEKEYS: Self = Self(1 << 14);
    /// Allowed while a script runs too long.
    pub const ALLOW_BUSY: Self = Self(1 << 15);
    /// Its keys may be none although it has a key specification (EVAL).
    pub const NO_MANDATORY_KEYS: Self = Self(1 << 16);
    /// Not shown to MONITOR.
    pub const SKIP_MONITOR: Self = Self(1 << 17);

    /// The empty set.
    pub const NONE: Self = Self(0);

    /// The flag of a name as `COMMAND` writes it; the empty set for names that decide nothing here.
    pub fn named(name: &str) -> Self {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map_or(Self::NONE, |(_, flag)| *flag)
    }

    /// Whether all of these flags are set.
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any of these flags is set.
    pub const fn has_any(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Both sets together.
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

impl FromIterator<Flags> for Flags {
    fn from_iter<I: IntoIterator<Item = Flags>>(flags: I) -> Self {
        flags.into_iter().fold(Self::NONE, Self::with)
    }
}

const NAMES: [(&str, Flags); 18] = [
    ("admin", Flags::ADMIN),
    ("allow_busy", Flags::ALLOW_BUSY),
    ("blocking", Flags::BLOCKING),
    ("denyoom", Flags::DENYOOM),
    ("fast", Flags::FAST),
    ("loading", Flags::LOADING),
    ("may_replicate", Flags::MAY_REPLICATE),
    ("module", Flags::MODULE),
    ("movablekeys", Flags::MOVABLEKEYS),
    ("no_auth", Flags::NO_AUTH),
    ("no_mandatory_keys", Flags::NO_MANDATORY_KEYS),
    ("no_multi", Flags::NO_MULTI),
    ("noscript", Flags::NOSCRIPT),
    ("pubsub", Flags::PUBSUB),
    ("readonly", Flags::READONLY),
    ("skip_monitor", Flags::SKIP_MONITOR),
    ("stale", Flags::STALE),
    ("write", Flags::WRITE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_its_own_bit() {
        let all: Flags = NAMES.iter().map(|(_, flag)| *flag).collect();
        assert_eq!(all.0.count_ones() as usize, NAMES.len());
    }

    #[test]
    fn a_strange_flag_says_nothing() {
        assert_eq!(Flags::named("sort_for_script"), Flags::NONE);
        assert!(Flags::named("write").has(Flags::WRITE));
    }
}
