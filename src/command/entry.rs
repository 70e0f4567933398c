//! One command as the data path sees it: flags, class, lane, keys, fences.

use std::fmt;

use crate::resp::Args;

use super::blocking::Patience;
use super::class::{self, Class};
use super::concern::Concern;
use super::flags::Flags;
use super::lane;
use super::options;
use super::row::Row;
use super::spec::{Begin, Find, KeySpec};

/// A command's place in its table, for compact storage. It means nothing in another table, save that a merged table
/// keeps the places of the one it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u16);

/// One command or subcommand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its place in the table.
    pub id: CommandId,
    /// Its full name, lower case; a subcommand's as `config|get`.
    pub name: Box<str>,
    /// How many arguments it takes, its name included; negative: at least so many.
    pub arity: i32,
    /// Its flags; `MAY_REPLICATE` is set here also where servers no longer report it.
    pub flags: Flags,
    /// Which path it takes whatever its arguments; see `class_for`.
    pub class: Class,
    /// Whether it may share a connection whatever its arguments (rule A1); see `rides_lane`.
    pub lane: bool,
    /// Whether it moves its shard's fence against all keys (rule A10).
    pub fences_all: bool,
    /// What of it concerns us beyond passing it on.
    pub concern: Concern,
    pub(super) specs: Box<[KeySpec]>,
    pub(super) finder: Finder,
    pub(super) patience: Patience,
    /// The command it is a subcommand of.
    pub(super) parent: Option<CommandId>,
    /// Whether it has subcommands.
    pub(super) is_container: bool,
    /// Where in its name the part begins that is looked up.
    leaf_at: usize,
    pub(super) names_all_keys: bool,
    sole_key: Option<u32>,
}

/// How a command's keys are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finder {
    /// As its key specifications say.
    Specs,
    /// XREAD, XREADGROUP: a stream, a group or an option's value may be called STREAMS.
    Streams,
    /// SORT, SORT_RO: the server gives no specification for STORE.
    Sort,
    /// GEORADIUS, GEORADIUSBYMEMBER: of several destinations the last counts.
    Radius,
    /// MIGRATE: its keys are elsewhere if its third argument is empty.
    Migrate,
}

/// Which fence a read must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceScope {
    /// Those of the keys it names; none if it names none.
    Keys,
    /// That of the whole shard: it may see keys that it does not name.
    Shard,
}

impl Command {
    /// A command of the data file.
    pub(super) fn decided(id: CommandId, row: &Row) -> Self {
        let flags = row.flag_bits();
        let class = class::decided(&row.name, flags, !row.keys.is_empty()).unwrap_or(Class::Refused);
        let mut command = Self::new(id, row, flags, class);
        command.lane = lane::is_listed(&command.name);
        if class::may_replicate(&command.name) {
            command.flags = command.flags.with(Flags::MAY_REPLICATE);
        }
        command.fences_all = class::may_change_any_key(&command.name);
        command.concern = Concern::named(&command.name);
        command
    }

    /// A command that only a server told us about, below `parent` if that is one of the data file. It never rides a
    /// lane, and unless it is declared a read it is taken for a write to any key.
    pub(super) fn guessed(id: CommandId, row: &Row, parent: Option<&Command>) -> Self {
        let mut flags = row.flag_bits();
        if !flags.has(Flags::READONLY) {
            flags = flags.with(Flags::MAY_REPLICATE);
        }
        let class = parent.map_or_else(
            || class::guessed(flags),
            |parent| class::guessed_below(parent.class, flags),
        );
        let mut command = Self::new(id, row, flags, class);
        command.fences_all = command.is_write();
        // A module need not declare its keys.
        command.names_all_keys &= !command.specs.is_empty();
        command
    }

    fn new(id: CommandId, row: &Row, flags: Flags, class: Class) -> Self {
        let specs = row.specs();
        let finder = Finder::named(&row.name);
        // Keys that move need a specification that moves with them; a fixed position is then only part of the truth.
        let moved = flags.has(Flags::MOVABLEKEYS) && !specs.iter().any(KeySpec::is_movable);
        let complete = !moved && specs.iter().all(KeySpec::is_complete);
        let sole_key = match &*specs {
            [only] if finder == Finder::Specs && complete => only.sole_key(),
            _ => None,
        };
        Self {
            id,
            name: row.name.as_str().into(),
            arity: row.arity,
            flags,
            class,
            lane: false,
            fences_all: false,
            concern: Concern::None,
            names_all_keys: complete || finder != Finder::Specs,
            specs,
            finder,
            patience: Patience::named(&row.name),
            parent: None,
            is_container: false,
            leaf_at: row.name.find('|').map_or(0, |bar| bar + 1),
            sole_key,
        }
    }

    /// Takes in what a server says about a command we know: it may only become stricter, except that it may take more
    /// arguments than we knew, which the server judges anyway.
    pub(super) fn tighten(&mut self, row: &Row) {
        self.arity = looser_arity(self.arity, row.arity);
        // A server before 7.0 has one description for all subcommands; ours are judged one by one.
        if self.is_container {
            return;
        }
        let said = row.flag_bits();
        let more = [Flags::WRITE, Flags::MAY_REPLICATE, Flags::BLOCKING];
        let before = self.flags;
        self.flags = more
            .into_iter()
            .filter(|flag| said.has(*flag))
            .fold(before, Flags::with);
        if !before.has_any(Flags::WRITE.with(Flags::MAY_REPLICATE)) && self.is_write() {
            // Somebody is wrong about it: what it changes may be wrong as well.
            self.fences_all = true;
            self.class = if self.class == Class::Read {
                Class::Write
            } else {
                self.class
            };
        }
        if self.is_blocking() && matches!(self.class, Class::Read | Class::Write | Class::ManyKey) {
            (self.class, self.lane) = (Class::Blocking, false);
        }
    }

    /// Whether a request of `argc` arguments, the name included, has an allowed number of them.
    #[inline]
    pub fn arity_ok(&self, argc: usize) -> bool {
        let wanted = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { argc >= wanted } else { argc == wanted }
    }

    /// Whether it counts as a write for holding, draining and routing: it writes, or may replicate (rule B4).
    #[inline]
    pub fn is_write(&self) -> bool {
        self.flags.has_any(Flags::WRITE.with(Flags::MAY_REPLICATE))
    }

    /// Whether only the master's answer will do. A cursor means something to the server that gave it only, and is a
    /// bucket of a table whose order no other server has (rule A12). TOUCH is for the sake of the master's eviction (C1).
    #[inline]
    pub fn is_masters(&self) -> bool {
        let own = matches!(self.class, Class::Node | Class::EveryNode);
        own || self.name.ends_with("scan") || &*self.name == "touch"
    }

    /// Whether it runs a script or a function, which may take for ever. Servers mark those, and nothing else, as having
    /// keys only if they are given some.
    #[inline]
    pub fn is_script(&self) -> bool {
        self.flags.has(Flags::NO_MANDATORY_KEYS)
    }

    /// Whether it is one of the commands that may block.
    pub fn is_blocking(&self) -> bool {
        self.flags.has(Flags::BLOCKING) || self.patience != Patience::Unsaid
    }

    /// The class with these arguments: XREAD and XREADGROUP without BLOCK are a plain read and a plain write, and some
    /// of DEBUG's subcommands, which servers do not list, are for every node.
    #[inline]
    pub fn class_for(&self, args: &Args) -> Class {
        match self.class {
            Class::Blocking if !self.blocks(args) && self.is_write() => Class::Write,
            Class::Blocking if !self.blocks(args) => Class::Read,
            Class::Node if &*self.name == "debug" => class::of_debug(args.get(1).unwrap_or_default()),
            class => class,
        }
    }

    /// Whether it may share a connection with these arguments (rule A1).
    #[inline]
    pub fn rides_lane(&self, args: &Args) -> bool {
        self.lane || (self.patience == Patience::Option && !self.blocks(args))
    }

    /// Which fence a read with these arguments must pass (rule A10).
    pub fn fence_scope(&self, args: &Args) -> FenceScope {
        if self.sole_key.is_some() {
            return FenceScope::Keys;
        }
        let sees_all = match self.finder {
            Finder::Sort => options::of_sort(args).patterns,
            Finder::Streams => options::of_streams(args).strange,
            Finder::Specs | Finder::Radius | Finder::Migrate => false,
        };
        let data_without_keys = self.specs.is_empty() && !self.reads_no_data();
        if sees_all || self.is_script() || data_without_keys || !self.names_all_keys {
            return FenceScope::Shard;
        }
        FenceScope::Keys
    }

    /// The position of its key if it has exactly one, always at the same place: the common case, without a search.
    #[inline]
    pub fn sole_key(&self) -> Option<u32> {
        self.sole_key
    }

    /// How many arguments go together, a key first: 1 for MGET, 2 for MSET; `None` if its arguments are not just keys
    /// from the first to the last with what belongs to them.
    pub fn args_per_key(&self) -> Option<u32> {
        match &*self.specs {
            [spec] if spec.begin == Begin::Index(1) => match spec.find {
                Find::Range { last: -1, step, limit } if limit < 2 => Some(step),
                _ => None,
            },
            _ => None,
        }
    }

    /// The part of the name that is looked up: the subcommand's, or the whole name.
    pub(super) fn leaf(&self) -> &str {
        self.name.get(self.leaf_at..).unwrap_or_default()
    }

    /// The name of the command it is a subcommand of.
    pub(super) fn parent_name(&self) -> Option<&str> {
        self.name.get(..self.leaf_at.checked_sub(1)?)
    }

    fn reads_no_data(&self) -> bool {
        matches!(&*self.name, "ping" | "echo" | "time")
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Finder {
    fn named(name: &str) -> Self {
        match name {
            "xread" | "xreadgroup" => Self::Streams,
            "sort" | "sort_ro" => Self::Sort,
            "georadius" | "georadiusbymember" => Self::Radius,
            "migrate" => Self::Migrate,
            _ => Self::Specs,
        }
    }
}

/// The number of arguments that satisfies both: servers differ by version, and only the one that gets the request may
/// refuse it.
pub fn looser_arity(one: i32, other: i32) -> i32 {
    if one == other {
        return one;
    }
    let fewest = one.unsigned_abs().min(other.unsigned_abs());
    -i32::try_from(fewest).unwrap_or(i32::MAX)
}
