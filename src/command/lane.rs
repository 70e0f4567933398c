//! The white list of lanes (rule A1).
//!
//! A lane is shared by many sessions, so it takes only commands that answer exactly once, leave nothing behind on the
//! connection and never make the server close it. Names are listed one by one: what is not here never rides a lane,
//! neither a newer server's command nor a module's. XREAD and XREADGROUP answer once too, but may block; they are not
//! here, and `Command::rides_lane` looks at their arguments.

/// Whether a command may share a connection.
pub(super) fn is_listed(name: &str) -> bool {
    WHITE_LIST.iter().any(|family| family.contains(&name))
}

const WHITE_LIST: [&[&str]; 13] = [
    STRINGS,
    HASHES,
    LISTS,
    SETS,
    SORTED_SETS,
    STREAMS,
    BITS_AND_COUNTS,
    PLACES,
    KEYS,
    DATA_SET,
    SCRIPTS,
    CHANNELS,
    SERVER,
];

#[rustfmt::skip]
const STRINGS: &[&str] = &[
    "append", "decr", "decrby", "get", "getdel", "getex", "getrange", "getset", "incr", "incrby", "incrbyfloat", "lcs",
    "mget", "mset", "msetnx", "psetex", "set", "setex", "setnx", "setrange", "stralgo", "strlen", "substr",
];

#[rustfmt::skip]
const HASHES: &[&str] = &[
    "hdel", "hexists", "hexpire", "hexpireat", "hexpiretime", "hget", "hgetall", "hgetdel", "hgetex", "hincrby",
    "hincrbyfloat", "hkeys", "hlen", "hmget", "hmset", "hpersist", "hpexpire", "hpexpireat", "hpexpiretime", "hpttl",
    "hrandfield", "hscan", "hset", "hsetex", "hsetnx", "hstrlen", "httl", "hvals",
];

#[rustfmt::skip]
const LISTS: &[&str] = &[
    "lindex", "linsert", "llen", "lmove", "lmpop", "lpop", "lpos", "lpush", "lpushx", "lrange", "lrem", "lset", "ltrim",
    "rpop", "rpoplpush", "rpush", "rpushx",
];

#[rustfmt::skip]
const SETS: &[&str] = &[
    "sadd", "scard", "sdiff", "sdiffstore", "sinter", "sintercard", "sinterstore", "sismember", "smembers",
    "smismember", "smove", "spop", "srandmember", "srem", "sscan", "sunion", "sunionstore",
];

#[rustfmt::skip]
const SORTED_SETS: &[&str] = &[
    "zadd", "zcard", "zcount", "zdiff", "zdiffstore", "zincrby", "zinter", "zintercard", "zinterstore", "zlexcount",
    "zmpop", "zmscore", "zpopmax", "zpopmin", "zrandmember", "zrange", "zrangebylex", "zrangebyscore", "zrangestore",
    "zrank", "zrem", "zremrangebylex", "zremrangebyrank", "zremrangebyscore", "zrevrange", "zrevrangebylex",
    "zrevrangebyscore", "zrevrank", "zscan", "zscore", "zunion", "zunionstore",
];

#[rustfmt::skip]
const STREAMS: &[&str] = &[
    "xack", "xadd", "xautoclaim", "xclaim", "xdel", "xgroup|create", "xgroup|createconsumer", "xgroup|delconsumer",
    "xgroup|destroy", "xgroup|setid", "xinfo|consumers", "xinfo|groups", "xinfo|stream", "xlen", "xpending", "xrange",
    "xrevrange", "xsetid", "xtrim",
];

#[rustfmt::skip]
const BITS_AND_COUNTS: &[&str] = &[
    "bitcount", "bitfield", "bitfield_ro", "bitop", "bitpos", "getbit", "pfadd", "pfcount", "pfmerge", "setbit",
];

#[rustfmt::skip]
const PLACES: &[&str] = &[
    "geoadd", "geodist", "geohash", "geopos", "georadius", "georadius_ro", "georadiusbymember", "georadiusbymember_ro",
    "geosearch", "geosearchstore",
];

#[rustfmt::skip]
const KEYS: &[&str] = &[
    "copy", "del", "dump", "exists", "expire", "expireat", "expiretime", "move", "persist", "pexpire", "pexpireat",
    "pexpiretime", "pttl", "rename", "renamenx", "restore", "sort", "sort_ro", "touch", "ttl", "type", "unlink",
];

const DATA_SET: &[&str] = &["dbsize", "flushall", "flushdb", "keys", "randomkey", "scan", "swapdb"];

// SELECT inside a script does not outlive it.
#[rustfmt::skip]
const SCRIPTS: &[&str] = &[
    "eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro", "function|delete", "function|dump",
    "function|flush", "function|list", "function|load", "function|restore", "script|exists", "script|flush",
    "script|load", "script|show",
];

const CHANNELS: &[&str] = &["publish", "spublish"];

// Not here: what must get through when a lane stands still (rule B1): INFO, CONFIG, DEBUG, SCRIPT KILL, ...
#[rustfmt::skip]
const SERVER: &[&str] = &[
    "command", "command|count", "command|docs", "command|getkeys", "command|getkeysandflags", "command|info",
    "command|list", "echo", "lastsave", "lolwut", "memory|usage", "object|encoding", "object|freq", "object|idletime",
    "object|refcount", "ping", "pubsub|channels", "pubsub|numpat", "pubsub|numsub", "pubsub|shardchannels",
    "pubsub|shardnumsub", "role", "time",
];

#[cfg(test)]
pub(super) fn count() -> usize {
    WHITE_LIST.iter().map(|family| family.len()).sum()
}
