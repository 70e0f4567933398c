//! Classes: which of the few paths through pointsman a command takes. This is policy, written down by hand.
//!
//! A command that plainly reads or writes the keys it names is classed by its flags. Every other command of the data
//! file is named here, and a test says so; one that is not would be `Refused`. Commands that only a server told us
//! about (modules, newer versions) get the strictest class their flags allow.

use super::flags::Flags;

/// Which path a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Reads: a lane to a replica or to the master, as the read policy says.
    Read,
    /// Writes, and all that may make the server replicate something: the master.
    Write,
    /// One key after the other: may be split by shard and joined in order.
    ManyKey,
    /// Concerns the whole data set: the master of every shard, merged.
    Everywhere,
    /// MULTI and what belongs to it.
    Transaction,
    /// May block the connection: pinned while it does. See `Command::blocks` for the arguments' say.
    Blocking,
    /// Turns the connection into a stream of pushes, or back.
    Subscribe,
    /// State of the client's connection: kept, and mostly answered, by pointsman.
    Session,
    /// Answered by one node: the master of the shard in question, else of the first shard.
    Node,
    /// Not replicated by Redis: goes to every node of every shard, the masters' reply counts.
    EveryNode,
    /// Would work against pointsman: refused unless the configuration allows it.
    Refused,
}

/// The class of a command of the data file; `None` if nobody has decided.
pub(super) fn decided(name: &str, flags: Flags, has_keys: bool) -> Option<Class> {
    if let Some(class) = named(name).or_else(|| by_parent(name)) {
        return Some(class);
    }
    let odd = Flags::ADMIN
        .with(Flags::PUBSUB)
        .with(Flags::NOSCRIPT)
        .with(Flags::NO_AUTH)
        .with(Flags::MODULE);
    if !has_keys || flags.has_any(odd) {
        return None;
    }
    plain(flags)
}

/// The class of a command that only a server told us about. Its name says nothing: it may be a module's, or a renamed
/// SHUTDOWN, so an operator's flag is enough to refuse it.
pub(super) fn guessed(flags: Flags) -> Class {
    if flags.has_any(Flags::ADMIN.with(Flags::PUBSUB).with(Flags::NO_AUTH)) {
        return Class::Refused;
    }
    plain(flags).unwrap_or(Class::Write)
}

/// The class of a subcommand that only a server told us about, below a command of the data file.
pub(super) fn guessed_below(parent: Class, flags: Flags) -> Class {
    match (parent, guessed(flags)) {
        (_, Class::Refused) => Class::Refused,
        (Class::Read | Class::Write, guess) => guess,
        (parent, _) => parent,
    }
}

/// Commands that replicate something although they are no writes. Servers from 7.0 on do not report that flag, so it
/// is set here (rule B4: held, drained and routed like writes).
pub(super) fn may_replicate(name: &str) -> bool {
    matches!(name, "eval" | "evalsha" | "fcall" | "pfcount" | "publish" | "spublish")
}

/// Commands that may change any key, whatever keys they name (rule A10).
pub(super) fn may_change_any_key(name: &str) -> bool {
    matches!(
        name,
        "eval"
            | "evalsha"
            | "fcall"
            | "flushall"
            | "flushdb"
            | "swapdb"
            | "migrate"
            | "restore"
            | "restore-asking"
            | "debug"
    )
}

/// The class of a subcommand of DEBUG: how a server behaves is set on each, so that another master behaves no different,
/// and keys that are not replicated are made on each. All else looks at one server, or does something to it.
pub(super) fn of_debug(subcommand: &[u8]) -> Class {
    const EVERY_NODE: [&[u8]; 6] = [
        b"config-rewrite-force-all",
        b"dict-resizing",
        b"populate",
        b"quicklist-packed-threshold",
        b"set-active-expire",
        b"set-disable-deny-scripts",
    ];
    if EVERY_NODE.iter().any(|name| subcommand.eq_ignore_ascii_case(name)) {
        Class::EveryNode
    } else {
        Class::Node
    }
}

fn plain(flags: Flags) -> Option<Class> {
    if flags.has(Flags::BLOCKING) {
        return Some(Class::Blocking);
    }
    if flags.has(Flags::WRITE) {
        return Some(Class::Write);
    }
    flags.has(Flags::READONLY).then_some(Class::Read)
}

fn named(name: &str) -> Option<Class> {
    let class = match name {
        "mget" | "mset" | "del" | "unlink" | "exists" | "touch" => Class::ManyKey,

        // A server that is busy, out of disk or under MONITOR must be seen to be: forwarded, never answered by us (B3).
        "ping" | "echo" | "time" | "lolwut" => Class::Read,
        "eval_ro" | "evalsha_ro" | "fcall_ro" => Class::Read,
        "eval" | "evalsha" | "fcall" => Class::Write,
        // Replicated, so a demoted master must not run them (B4); PFCOUNT may rewrite the cached count of its key.
        "publish" | "spublish" | "pfcount" => Class::Write,
        "xgroup" => Class::Write,
        "xinfo" => Class::Read,

        "flushall" | "flushdb" | "swapdb" | "dbsize" | "keys" | "randomkey" | "scan" => Class::Everywhere,
        // Libraries replicate by themselves, but each shard needs its own.
        "function|load" | "function|delete" | "function|flush" | "function|restore" => Class::Everywhere,

        "multi" | "exec" | "discard" | "watch" | "unwatch" => Class::Transaction,
        "wait" | "waitaof" => Class::Blocking,

        "subscribe" | "psubscribe" | "ssubscribe" | "monitor" => Class::Subscribe,
        "unsubscribe" | "punsubscribe" | "sunsubscribe" => Class::Subscribe,
        "client|tracking" | "client|caching" => Class::Subscribe,

        "auth" | "hello" | "select" | "reset" | "quit" | "readonly" | "readwrite" => Class::Session,
        // A lane is some other user than the session: only we know who is asking.
        "acl|whoami" => Class::Session,

        "info" | "debug" | "role" | "lastsave" | "bgsave" | "save" | "bgrewriteaof" | "pfdebug" | "pfselftest" => {
            Class::Node
        }
        "config" | "config|get" | "acl" | "acl|cat" | "acl|dryrun" | "acl|genpass" => Class::Node,
        "acl|getuser" | "acl|list" | "acl|log" | "acl|users" => Class::Node,
        "module" | "module|list" => Class::Node,
        "function" | "function|dump" | "function|list" | "function|stats" => Class::Node,
        "script" | "script|exists" | "script|show" => Class::Node,

        // None of these replicates (A16).
        "acl|setuser" | "acl|deluser" | "acl|load" | "acl|save" => Class::EveryNode,
        "config|set" | "config|rewrite" | "config|resetstat" => Class::EveryNode,
        "script|load" | "script|flush" => Class::EveryNode,
        // A read-only script may run on any of them.
        "script|kill" | "function|kill" => Class::EveryNode,

        // Topology is ours.
        "replicaof" | "slaveof" | "failover" | "shutdown" | "migrate" => Class::Refused,
        // They speak as a replica or as a cluster node, and may never answer (A1): what copies goes to a replica, apart.
        "sync" | "psync" | "replconf" | "asking" | "restore-asking" => Class::Refused,
        // A replica without the module would stop at its first command.
        "module|load" | "module|loadex" | "module|unload" => Class::Refused,
        // Turns the connection into a debugger's.
        "script|debug" => Class::Refused,
        _ => return None,
    };
    Some(class)
}

/// Families that take one path whatever the subcommand. The server's own help text is the server's.
fn by_parent(name: &str) -> Option<Class> {
    let (parent, leaf) = name.split_once('|').unwrap_or((name, ""));
    let class = match parent {
        "cluster" => Class::Refused,
        _ if leaf == "help" => Class::Node,
        "client" => Class::Session,
        "command" | "commandlog" | "latency" | "memory" | "object" | "pubsub" | "slowlog" => Class::Node,
        _ => return None,
    };
    Some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_decided_is_not_a_class() {
        assert_eq!(decided("newthing", Flags::ADMIN.with(Flags::WRITE), true), None);
        assert_eq!(decided("newthing", Flags::READONLY, false), None);
        assert_eq!(decided("newget", Flags::READONLY, true), Some(Class::Read));
    }

    #[test]
    fn what_debug_sets_is_set_on_every_node() {
        for name in ["SET-ACTIVE-EXPIRE", "populate"] {
            assert_eq!(of_debug(name.as_bytes()), Class::EveryNode);
        }
        for name in ["SLEEP", "object", "reload", ""] {
            assert_eq!(of_debug(name.as_bytes()), Class::Node);
        }
    }

    #[test]
    fn a_strangers_class_is_the_strictest() {
        assert_eq!(guessed(Flags::ADMIN.with(Flags::READONLY)), Class::Refused);
        assert_eq!(guessed(Flags::NONE), Class::Write);
        assert_eq!(guessed(Flags::BLOCKING.with(Flags::READONLY)), Class::Blocking);
        assert_eq!(guessed_below(Class::Session, Flags::READONLY), Class::Session);
        assert_eq!(guessed_below(Class::Write, Flags::READONLY), Class::Read);
        assert_eq!(guessed_below(Class::Session, Flags::ADMIN), Class::Refused);
    }
}
