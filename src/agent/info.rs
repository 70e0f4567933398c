//! Reading INFO into [`Facts`].
//!
//! Owns: the field names, which are Redis' own (6.2 to 8) and Valkey's. Refuses: guessing; a field that
//! every server has and this one lacks makes the whole reading void.

use std::collections::HashMap;

use crate::topology::{Addr, Epoch, RunId};

use super::machine::facts::{Facts, Role};

/// Facts from the text of INFO (all default sections) and the `masteruser` setting; none if it is not INFO.
pub fn facts(info: &str, masteruser: &str) -> Option<Facts> {
    let fields: HashMap<&str, &str> = info
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
    })
}

/// The pid and the uptime in seconds of the process that wrote this INFO.
pub fn process(info: &str) -> Option<(u32, u64)> {
    let field = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name));
    Some((
        field("process_id:")?.parse().ok()?,
        field("uptime_in_seconds:")?.parse().ok()?,
    ))
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

/// The epoch in a name like `repl-7` (rule R9); 0 for any other.
pub fn carried_epoch(masteruser: &str) -> Epoch {
    let number = masteruser.strip_prefix("repl-").and_then(|number| number.parse().ok());
    Epoch(number.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: &str = "# Server\r\nrun_id:abc\r\nprocess_id:42\r\nuptime_in_seconds:7\r\n# Persistence\r\nloading:0\r\n\
        # Replication\r\nrole:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:7001\r\nmaster_link_status:up\r\n\
        slave_repl_offset:77\r\nmaster_sync_in_progress:0\r\nmaster_replid:r1\r\nmaster_replid2:r0\r\n\
        master_repl_offset:78\r\nsecond_repl_offset:5\r\n# Keyspace\r\ndb0:keys=3,expires=0\r\ndb9:keys=4,expires=1\r\n";

    #[test]
    fn a_replica_is_read_with_its_applied_offset() {
        let facts = facts(REPLICA, "repl-7").unwrap();
        assert_eq!((facts.role, facts.offset, facts.keys), (Role::Replica, 77, 7));
        assert!(facts.follows_in(&"127.0.0.1:7001".parse().unwrap(), Epoch(7)));
        assert_eq!(process(REPLICA), Some((42, 7)));
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
