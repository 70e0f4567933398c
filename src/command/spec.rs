//! Key specifications: how to find one group of keys among a command's arguments.
//!
//! Redis documents them as "begin search" (where the group starts) and "find keys" (how far it goes); see the Redis
//! documentation, "Command key specifications". A specification that is nonsense here (a step below one, an unknown
//! kind) becomes `Unknown`, so a walk over the arguments always ends.

/// One group of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// Where the group begins.
    pub begin: Begin,
    /// How far it goes.
    pub find: Find,
    /// What is there.
    pub kind: KeyKind,
    /// Whether the server itself says that the group may miss keys.
    pub incomplete: bool,
}

/// Where a group of keys begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this argument, the command's name being 0.
    Index(u32),
    /// After this word, looked for from this argument on (negative: from the end, backwards).
    Keyword(Box<str>, i32),
    /// Nobody says.
    Unknown,
}

/// How far a group of keys goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Find {
    /// From the beginning to a last argument.
    Range {
        /// The last argument: relative to the first if >= 0, else relative to the end (-1 is the last argument).
        last: i32,
        /// Every how many arguments there is a key; at least 1.
        step: u32,
        /// If `last` is negative: only this fraction (2: half) of the arguments are keys; 0 and 1 mean all.
        limit: u32,
    },
    /// As many as an argument says.
    Count {
        /// Where the number is, relative to the beginning.
        number: u32,
        /// Where the first key is, relative to the beginning.
        first: u32,
        /// Every how many arguments there is a key; at least 1.
        step: u32,
    },
    /// Nobody says.
    Unknown,
}

/// What an argument is that a specification points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A key: routed by its slot and fenced.
    Key,
    /// A shard channel (SPUBLISH, SSUBSCRIBE): routed by its slot, never fenced.
    Channel,
}

impl KeySpec {
    /// The position of the key if the group is exactly one key at a fixed position.
    pub fn sole_key(&self) -> Option<u32> {
        match (&self.begin, &self.find, self.kind) {
            (Begin::Index(at), Find::Range { last: 0, .. }, KeyKind::Key) if !self.incomplete => Some(*at),
            _ => None,
        }
    }

    /// Whether where its keys are depends on other arguments.
    pub fn is_movable(&self) -> bool {
        matches!(self.begin, Begin::Keyword(..)) || matches!(self.find, Find::Count { .. })
    }

    /// Whether following the specification finds every key it stands for.
    pub fn is_complete(&self) -> bool {
        !self.incomplete && self.begin != Begin::Unknown && self.find != Find::Unknown
    }
}
