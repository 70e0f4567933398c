//! What of a command concerns pointsman beyond passing it on: a cursor, or a script.
//!
//! Named one by one, as the classes are. A command that only a server told us about concerns nobody: a module's cursor
//! is the module's affair.

/// What a command brings that a server may lack, or that means something to one server only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Concern {
    /// Nothing: nearly all of them.
    #[default]
    None,
    /// The cursor of a scan at this argument, and another in the reply (rule A12).
    Cursor(usize),
    /// The body of a script as its first argument (rule B5).
    Body,
    /// The digest of a script as its first argument, and any node that has the script may run it.
    Digest,
}

impl Concern {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "scan" => Self::Cursor(1),
            "hscan" | "sscan" | "zscan" => Self::Cursor(2),
            "eval" | "eval_ro" => Self::Body,
            // EVALSHA is the master's in any case.
            "evalsha_ro" => Self::Digest,
            _ => Self::None,
        }
    }
}
