//! What both ends of a connection understand.

use std::fmt;

/// A version of the protocol; each understands what the ones before it say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// The first one, whose ends take nothing that they do not know.
    pub const FIRST: Self = Self(1);
    /// The first one in which moves have names.
    pub const COURSES: Self = Self(2);
    /// The one that this program speaks.
    pub const OURS: Self = Self::COURSES;

    /// What an end says that it speaks; none if it is no version.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (number >= Self::FIRST.0).then_some(Self(number))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
