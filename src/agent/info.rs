//! Reading INFO into [`Facts`].
//!
//! Owns: the field names, which are Redis' own (6.2 to 8) and Valkey's. Refuses: guessing; a field that
//! every server has and this one lacks makes the whole reading void.

use std::collections::HashMap;

use crate::topology::{Addr, Epoch, RunId};

use super::machine::facts::{Facts, Role};

/// Facts from the text of INFO (all default sections) and the `masteruser` setting; none if it is not INFO.
pub fn facts(info: &str, masteruser: &str) -> Option<Facts> {
    let fields: HashMap<&str, &str, foldhash::fast::RandomState> = info
        .lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .collect();
    let text = |name: &str| fields.get(name).copied();
    let number = |name: &str| text(name).and_then(|value| value.parse::<i64>().ok());
    let flag = |name: &str| text(name) == Some("1");
    let role = match text("role")? {
        "master" => Role::Master,
        "slave" => Role::Replica,
        _ => return None,
    };
    let follows = match role {
        Role::Master => None,
        Role::Replica => Some(Addr::new(text("master_host")?, text("master_port")?.parse().ok()?)),
    };
    let offset = match role {
        Role::Master => number("master_repl_offset")?,
        Role::Replica => number("slave_repl_offset")?,
    };
    Some(Facts {
        run_id: RunId::from(text("run_id")?),
        role,
        replid: text("master_replid")?.to_owned(),
        replid2: text("master_replid2")?.to_owned(),
        second_offset: number("second_repl_offset")?,
        offset,
        follows,
        link_up: text("master_link_status") == Some("up"),
        syncing: flag("master_sync_in_progress"),
        loading: flag("loading"),
        keys: keys(info),
        epoch: carried_epoch(masteruser),
        dirty: false,
        priority: 0,
        replicas: replicas(info),
    })
}

/// The pid and the uptime in seconds of the process that wrote this INFO.
pub fn process(info: &str) -> Option<(u32, u64)> {
    Some((
        field(info, "process_id:")?.parse().ok()?,
        field(info, "uptime_in_seconds:")?.parse().ok()?,
    ))
}

/// How much memory it holds, in bytes, if it says so.
pub fn resident_bytes(info: &str) -> Option<u64> {
    field(info, "used_memory_rss:")?.parse().ok()
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name))
}

/// `dbN:keys=K,...` over all databases.
fn keys(info: &str) -> u64 {
    let counts = info.lines().filter_map(|line| {
        let (name, rest) = line.split_once(":keys=")?;
        name.strip_prefix("db")?.parse::<u32>().ok()?;
        rest.split(',').next()?.parse::<u64>().ok()
    });
    counts.sum()
}

/// A replica that said nothing for longer is there in name only; those that work say something each second.
const REPLICA_SILENCE_MAX_S: i64 = 2;

/// `slaveN:...,state=online,...,lag=L` of those that work.
fn replicas(info: &str) -> u32 {
    let works = info.lines().filter(|line| {
        let Some((name, rest)) = line.trim_end().split_once(':') else {
            return false;
        };
        let numbered = name
            .strip_prefix("slave")
            .is_some_and(|number| number.parse::<u32>().is_ok());
        let part = |key: &str| rest.split(',').find_map(|part| part.strip_prefix(key));
        let heard = part("lag=").and_then(|lag| lag.parse::<i64>().ok());
        numbered
            && part("state=") == Some("online")
            && heard.is_some_and(|lag| (0..=REPLICA_SILENCE_MAX_S).contains(&lag))
    });
    u32::try_from(works.count()).unwrap_or(u32::MAX)
}

/// The epoch in a name like `repl-7` (rule R9); 0 for any other.
pub fn carried_epoch(masteruser: &str) -> Epoch {
    let number = masteruser.strip_prefix("repl-").and_then(|number| number.parse().ok());
    Epoch(number.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: &str = "# Server\r\nrun_id:abc\r\nprocess_id:42\r\nuptime_in_seconds:7\r\nused_memory_rss:9000\r\n# Persistence\r\nloading:0\r\n\
        # Replication\r\nrole:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:7001\r\nmaster_link_status:up\r\n\
        slave_repl_offset:77\r\nmaster_sync_in_progress:0\r\nmaster_replid:r1\r\nmaster_replid2:r0\r\n\
        master_repl_offset:78\r\nsecond_repl_offset:5\r\n# Keyspace\r\ndb0:keys=3,expires=0\r\ndb9:keys=4,expires=1\r\n";

    #[test]
    fn a_replica_is_read_with_its_applied_offset() {
        let facts = facts(REPLICA, "repl-7").unwrap();
        assert_eq!((facts.role, facts.offset, facts.keys), (Role::Replica, 77, 7));
        assert!(facts.follows_in(&"127.0.0.1:7001".parse().unwrap(), Epoch(7)));
        assert_eq!(process(REPLICA), Some((42, 7)));
        assert_eq!((resident_bytes(REPLICA), resident_bytes("")), (Some(9000), None));
    }

    #[test]
    fn replicas_count_that_are_online_and_not_silent() {
        let info = "slave0:ip=127.0.0.1,port=1,state=online,offset=5,lag=0\r\nslave1:ip=::1,port=2,state=online,offset=5,lag=9\r\n\
            slave2:ip=h,port=3,state=wait_bgsave,offset=0,lag=0\r\nslave_repl_offset:7\r\nslave3:ip=h,port=4,state=online,offset=1,lag=1";
        assert_eq!(replicas(info), 2);
        assert_eq!(replicas(REPLICA), 0);
    }

    #[test]
    fn what_is_not_info_gives_nothing() {
        for text in [
            "",
            "role:master",
            "role:captain\r\nrun_id:x",
            &REPLICA.replace("slave_repl_offset:77", ""),
        ] {
            assert_eq!(facts(text, ""), None, "{text}");
        }
    }

    #[test]
    fn other_names_carry_no_epoch() {
        for name in ["", "repl-", "repl-x", "alice", "repl--1"] {
            assert_eq!(carried_epoch(name), Epoch(0), "{name}");
        }
    }
}
