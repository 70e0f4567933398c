//! The table of all commands: from the data file, and from what the servers themselves say.
//!
//! Immutable once built; a merged table is a new one, in which commands of the old keep their ids. Commands from the
//! data file never become more permissive by a merge.

use std::collections::HashMap;
use std::sync::LazyLock;

use redis_protocol::resp2::types::BytesFrame;

use crate::resp::Args;

use super::entry::{Command, CommandId};
use super::index::Index;
use super::refusal::is_cross_protocol;
use super::reply::{self, COMMANDS_MAX, ReplyError};
use super::row::Row;

/// Every command that is known.
#[derive(Clone, Debug)]
pub struct Table {
    commands: Vec<Command>,
    index: Index,
}

/// What a request's first words name.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'t> {
    /// A command, or a subcommand of one.
    Known(&'t Command),
    /// This command is known, its subcommand is not.
    UnknownSubcommand(&'t Command),
    /// Nothing.
    Unknown,
}

#[allow(clippy::expect_used, reason = "the data is compiled in, and a test reads it")]
static BUILTIN: LazyLock<Table> = LazyLock::new(|| {
    let rows: Vec<Row> = serde_json::from_str(include_str!("commands.json")).expect("the embedded data is valid");
    let commands = (0..).map(CommandId).zip(&rows);
    Table::of(commands.map(|(id, row)| Command::decided(id, row)).collect())
});

impl Table {
    /// The commands of the data file.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// Whether a command is one of the data file's, and not learnt from a server.
    pub fn knows(command: &Command) -> bool {
        usize::from(command.id.0) < BUILTIN.commands.len()
    }

    /// Whether every command is the same in both.
    pub fn is_same(&self, other: &Self) -> bool {
        self.commands == other.commands
    }

    /// Files the commands under their names. A subcommand whose parent is missing can be named by nobody.
    fn of(mut commands: Vec<Command>) -> Self {
        let ids: HashMap<Box<str>, CommandId> = commands.iter().map(|known| (known.name.clone(), known.id)).collect();
        for place in 0..commands.len() {
            let parent = commands[place].parent_name().and_then(|name| ids.get(name)).copied();
            commands[place].parent = parent;
            if let Some(parent) = parent {
                commands[usize::from(parent.0)].is_container = true;
            }
        }
        let named = commands
            .iter()
            .filter(|known| known.parent.is_some() == known.parent_name().is_some());
        let names: Vec<_> = named
            .map(|known| (known.parent, known.leaf().as_bytes(), known.id))
            .collect();
        let index = Index::build(&names);
        Self { commands, index }
    }

    /// The command that a request names.
    #[inline]
    pub fn lookup(&self, args: &Args) -> Lookup<'_> {
        let Some(command) = self.find(None, args.name()) else {
            return Lookup::Unknown;
        };
        let (true, Some(subcommand)) = (command.is_container, args.get(1)) else {
            return Lookup::Known(command);
        };
        match self.find(Some(command.id), subcommand) {
            Some(found) => Lookup::Known(found),
            None => Lookup::UnknownSubcommand(command),
        }
    }

    /// The command of a full name, lower case, a subcommand as `config|get`.
    pub fn named(&self, name: &str) -> Option<&Command> {
        let Some((parent, leaf)) = name.split_once('|') else {
            return self.find(None, name.as_bytes());
        };
        let parent = self.find(None, parent.as_bytes())?;
        self.find(Some(parent.id), leaf.as_bytes())
    }

    /// The command at a place.
    #[inline]
    pub fn get(&self, id: CommandId) -> Option<&Command> {
        self.commands.get(usize::from(id.0))
    }

    /// All commands, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Command> {
        self.commands.iter()
    }

    /// This table and what a server's reply to `COMMAND` (RESP2) adds: modules, commands of newer versions. New names
    /// never ride a lane; known ones may only become stricter. Refuses a reply that is not one, or one that would make
    /// the table larger than `COMMANDS_MAX`.
    pub fn merged_with(&self, reply: &BytesFrame) -> Result<Self, ReplyError> {
        let mut commands = self.commands.clone();
        let mut added = HashMap::new();
        for row in reply::rows(reply)? {
            // Servers before 7.0 list the words they close a connection for as commands.
            if is_cross_protocol(row.name.as_bytes()) {
                continue;
            }
            let known = self.named(&row.name).map(|known| usize::from(known.id.0));
            if let Some(place) = known.or_else(|| added.get(&row.name).copied()) {
                commands[place].tighten(&row);
            } else if self.can_be_named(&row.name, &added) {
                let place = commands.len();
                commands.push(self.stranger(place, &row)?);
                added.insert(row.name, place);
            }
        }
        Ok(Self::of(commands))
    }

    /// Whether a request can name a new command. A subcommand needs a parent, which must not be a command that clients
    /// use without subcommands: that would be in the way of its arguments.
    fn can_be_named(&self, name: &str, added: &HashMap<String, usize>) -> bool {
        let Some((parent, _)) = name.split_once('|') else {
            return true;
        };
        match self.named(parent) {
            Some(parent) => parent.is_container || !parent.lane,
            None => added.contains_key(parent),
        }
    }

    fn stranger(&self, place: usize, row: &Row) -> Result<Command, ReplyError> {
        let id = u16::try_from(place).ok().filter(|_| place < COMMANDS_MAX);
        let id = CommandId(id.ok_or(ReplyError::TooMany)?);
        let parent = row.name.split_once('|').and_then(|(parent, _)| self.named(parent));
        Ok(Command::guessed(id, row, parent))
    }

    #[inline]
    fn find(&self, parent: Option<CommandId>, name: &[u8]) -> Option<&Command> {
        let is_named = |id: CommandId| {
            let found = self.get(id);
            found.is_some_and(|found| found.leaf().as_bytes().eq_ignore_ascii_case(name))
        };
        self.get(self.index.find(parent, name, is_named)?)
    }
}

#[cfg(test)]
mod tests {
    use redis_protocol::resp2::decode::decode_bytes;

    use crate::command::class::{self, Class};
    use crate::command::flags::Flags;
    use crate::command::lane;
    use crate::command::testing::{with_args, with_words};

    use super::*;

    fn rows() -> Vec<Row> {
        serde_json::from_str(include_str!("commands.json")).unwrap()
    }

    fn named(line: &str) -> Option<String> {
        with_args(line, |args| match Table::builtin().lookup(args) {
            Lookup::Known(command) => Some(command.name.to_string()),
            Lookup::UnknownSubcommand(parent) => Some(format!("{parent}|?")),
            Lookup::Unknown => None,
        })
    }

    /// A reply to `COMMAND` in the form of servers before 7.0, from (name, arity, flags, first key, last key).
    fn reply(commands: &[(&str, i64, &str, i64, i64)]) -> BytesFrame {
        let mut text = format!("*{}\r\n", commands.len());
        for (name, arity, flags, first, last) in commands {
            let flags: Vec<_> = flags.split_whitespace().map(|flag| format!("+{flag}\r\n")).collect();
            text += &format!("*6\r\n${}\r\n{name}\r\n:{arity}\r\n*{}\r\n", name.len(), flags.len());
            text += &format!("{}:{first}\r\n:{last}\r\n:1\r\n", flags.concat());
        }
        decode_bytes(&text.into()).unwrap().unwrap().0
    }

    #[test]
    fn the_data_file_is_sorted_and_has_one_command_a_line() {
        let rows = rows();
        assert!(rows.is_sorted_by(|one, next| one.name < next.name));
        assert_eq!(include_str!("commands.json").lines().count(), rows.len() + 2);
        assert_eq!(Table::builtin().iter().len(), rows.len());
    }

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        let table = Table::builtin();
        for command in table.iter() {
            assert_eq!(table.named(&command.name).map(|found| found.id), Some(command.id));
            let words = command.name.to_uppercase().replace('|', " ");
            let found = named(&words).unwrap();
            assert_eq!(*found, *command.name);
        }
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(named("gEt k").as_deref(), Some("get"));
        assert_eq!(named("config"), Some("config".into()));
        assert_eq!(named("COMMAND"), Some("command".into()));
        assert_eq!(named("Config nonsense"), Some("config|?".into()));
        for strange in [
            "config|get x",
            "config\u{5c}get",
            "ge",
            "gett",
            "\u{7}et k",
            "post",
            "host:",
            "\"\"",
            "vadd",
        ] {
            assert_eq!(named(strange), None, "{strange}");
        }
        // Bit 5 is the case bit of letters only.
        assert_eq!(
            with_words(&[b"restore\rasking"], |args| named(&String::from_utf8_lossy(
                args.name()
            ))),
            None
        );
        assert!(matches!(
            with_words(&[], |args| format!("{:?}", Table::builtin().lookup(args))).as_str(),
            "Unknown"
        ));
    }

    #[test]
    fn every_class_is_decided_deliberately() {
        for row in rows() {
            let class = class::decided(&row.name, row.flag_bits(), !row.keys.is_empty());
            assert!(class.is_some(), "nobody has classed {}", row.name);
        }
    }

    #[test]
    fn only_the_white_list_rides_lanes() {
        let table = Table::builtin();
        let never = [
            Flags::ADMIN,
            Flags::BLOCKING,
            Flags::NO_AUTH,
            Flags::MODULE,
            Flags::NO_MULTI,
        ];
        for command in table.iter().filter(|command| command.lane) {
            assert!(!never.iter().any(|flag| command.flags.has(*flag)), "{command}");
            let noscript = command.flags.has(Flags::NOSCRIPT);
            let script = ["eval", "fcall", "script|", "function|", "role"]
                .iter()
                .any(|word| command.name.starts_with(word));
            assert!(!noscript || script, "{command}");
            let wrong = [
                Class::Session,
                Class::Transaction,
                Class::Subscribe,
                Class::Blocking,
                Class::Refused,
            ];
            assert!(!wrong.contains(&command.class), "{command}");
            assert!(!command.is_container || &*command.name == "command", "{command}");
        }
        let listed = table.iter().filter(|command| command.lane).count();
        assert_eq!(listed, lane::count(), "a name of the white list is no command");
    }

    #[test]
    fn plain_reads_and_writes_of_keys_ride_lanes() {
        let plain = [Class::Read, Class::Write, Class::ManyKey];
        let off = Table::builtin();
        let off = off
            .iter()
            .filter(|command| plain.contains(&command.class) && !command.lane);
        let off: Vec<_> = off.map(|command| &*command.name).collect();
        assert_eq!(off, ["xgroup", "xinfo"], "decide whether these may share a connection");
    }

    #[test]
    fn writes_are_what_may_replicate() {
        let table = Table::builtin();
        let is_write = |name: &str| table.named(name).unwrap().is_write();
        for name in [
            "set",
            "eval",
            "evalsha",
            "fcall",
            "publish",
            "spublish",
            "pfcount",
            "flushall",
            "function|load",
        ] {
            assert!(is_write(name), "{name}");
        }
        for name in [
            "get",
            "eval_ro",
            "evalsha_ro",
            "fcall_ro",
            "xread",
            "ping",
            "config|set",
            "subscribe",
        ] {
            assert!(!is_write(name), "{name}");
        }
        for command in table.iter().filter(|command| command.class == Class::Read) {
            assert!(!command.is_write(), "{command}");
        }
    }

    #[test]
    fn arguments_decide_about_reads_of_streams() {
        let asked = |line: &str| {
            with_args(line, |args| {
                let command = crate::command::testing::command(args);
                (command.class_for(args), command.rides_lane(args))
            })
        };
        assert_eq!(asked("XREAD STREAMS s 0"), (Class::Read, true));
        assert_eq!(asked("XREADGROUP GROUP g c STREAMS s >"), (Class::Write, true));
        assert_eq!(asked("XREAD BLOCK 0 STREAMS s 0"), (Class::Blocking, false));
        assert_eq!(asked("BLPOP a 0"), (Class::Blocking, false));
        assert_eq!(asked("GET a"), (Class::Read, true));
        assert_eq!(asked("CONFIG GET a"), (Class::Node, false));
    }

    #[test]
    fn a_strangers_name_never_rides_a_lane() {
        let table = Table::builtin();
        let said = [
            ("mod.get", 2, "readonly module", 1, 1),
            ("mod.set", -3, "write module", 1, -1),
            ("mod.odd", -1, "", 0, 0),
            ("mod.admin", 1, "admin", 0, 0),
            ("HOST:", -1, "readonly", 0, 0),
        ];
        let merged = table.merged_with(&reply(&said)).unwrap();
        let get = |name: &str| merged.named(name).unwrap();
        assert_eq!(merged.iter().len(), table.iter().len() + 4);
        assert!(merged.iter().skip(table.iter().len()).all(|command| !command.lane));
        assert_eq!((get("mod.get").class, get("mod.get").fences_all), (Class::Read, false));
        assert_eq!(get("mod.get").sole_key(), Some(1));
        assert_eq!((get("mod.set").class, get("mod.set").fences_all), (Class::Write, true));
        assert_eq!((get("mod.odd").class, get("mod.odd").is_write()), (Class::Write, true));
        assert_eq!(get("mod.admin").class, Class::Refused);
        assert_eq!(
            merged.get(get("get").id).unwrap().name,
            table.named("get").unwrap().name
        );
    }

    #[test]
    fn a_server_may_make_a_command_stricter_only() {
        let table = Table::builtin();
        let said = [
            ("get", -2, "write blocking", 1, 1),
            ("shutdown", -1, "readonly fast", 1, 1),
            ("strlen", 2, "write", 1, 1),
            ("set", 5, "readonly", 1, 1),
        ];
        let merged = table.merged_with(&reply(&said)).unwrap();
        let get = |name: &str| merged.named(name).unwrap();
        assert_eq!(
            (get("get").class, get("get").lane, get("get").arity),
            (Class::Blocking, false, -2)
        );
        assert_eq!((get("shutdown").class, get("shutdown").lane), (Class::Refused, false));
        assert_eq!((get("strlen").class, get("strlen").lane), (Class::Write, true));
        assert_eq!(
            (get("set").class, get("set").is_write(), get("set").arity),
            (Class::Write, true, -3)
        );
        assert_eq!(merged.iter().len(), table.iter().len());
    }

    #[test]
    fn a_table_does_not_grow_past_its_bound() {
        let table = Table::builtin();
        let names: Vec<String> = (0..COMMANDS_MAX).map(|number| format!("m.{number}")).collect();
        let said: Vec<_> = names.iter().map(|name| (name.as_str(), 1, "readonly", 0, 0)).collect();
        let room = COMMANDS_MAX - table.iter().len();
        let merged = table.merged_with(&reply(&said[..room])).unwrap();
        assert_eq!(merged.iter().len(), COMMANDS_MAX);
        assert!(merged.named(&names[room - 1]).is_some());
        assert_eq!(
            table.merged_with(&reply(&said[..=room])).unwrap_err(),
            ReplyError::TooMany
        );
    }

    #[test]
    fn the_same_reply_adds_nothing_the_second_time() {
        let said = [
            ("mod.get", 2, "readonly", 1, 1),
            ("mod.get", -2, "write", 1, 1),
            ("mod.box", -2, "", 0, 0),
            ("mod.box|open", 3, "write", 2, 2),
            ("nobody|home", 2, "readonly", 1, 1),
            ("get|first", 3, "readonly", 2, 2),
        ];
        let merged = Table::builtin().merged_with(&reply(&said)).unwrap();
        assert_eq!(merged.iter().len(), Table::builtin().iter().len() + 3);
        assert!(merged.named("mod.get").unwrap().is_write());
        assert!(merged.named("mod.box|open").is_some());
        assert!(
            !merged.named("get").unwrap().is_container,
            "GET first is a request for a key"
        );
        assert!(merged.merged_with(&reply(&said)).unwrap().is_same(&merged));
    }
}
