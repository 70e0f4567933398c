//! What of a command concerns pointsman beyond passing it on: a cursor, a script, or pointsman itself.
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
    /// The reply tells of pointsman, of which clients are to hear nothing or something else (design §10).
    Own(Own),
}

/// What of pointsman's own a reply tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// One user, named by the request.
    User,
    /// All users, or what they were refused.
    Users,
    /// Commands that took long.
    SlowLog,
    /// Settings.
    Settings,
    /// How many clients there are.
    Clients,
}

impl Concern {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "scan" => Self::Cursor(1),
            "hscan" | "sscan" | "zscan" => Self::Cursor(2),
            "eval" | "eval_ro" => Self::Body,
            // EVALSHA is the master's in any case.
            "evalsha_ro" => Self::Digest,
            "acl|getuser" => Self::Own(Own::User),
            "acl|list" | "acl|log" | "acl|users" => Self::Own(Own::Users),
            "slowlog|get" => Self::Own(Own::SlowLog),
            "config|get" => Self::Own(Own::Settings),
            "info" => Self::Own(Own::Clients),
            _ => Self::None,
        }
    }
}
