//! Reading what a Redis says about itself: INFO's sections `server`, `persistence` and `replication`, and TIME.
//!
//! Owns the field names, which are Redis' own (6.2 to 8) and Valkey's. Refuses guessing: a field that every server has
//! and this one lacks makes the whole reading void. Pure.

use thiserror::Error;

use crate::topology::{ReplOffset, RunId};

/// The process a connection leads to, and the replication stream it follows. Offsets are comparable only within one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The life of the process.
    pub run_id: RunId,
    /// The stream its data comes from.
    pub replid: Box<str>,
}

/// Why a node cannot serve causal reads now.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Unfit {
    /// It is not what INFO looks like.
    #[error("the answer is no INFO")]
    NoInfo,
    /// It is a master.
    #[error("it is no replica")]
    NotAReplica,
    /// It was to be the master.
    #[error("it is no master")]
    NotTheMaster,
    /// It does not hear its master.
    #[error("its link to the master is down")]
    LinkDown,
    /// Its data is being replaced.
    #[error("a full synchronisation is under way")]
    Syncing,
    /// Its data is being read from disk.
    #[error("it is loading its data")]
    Loading,
    /// It follows another stream than this epoch's master writes.
    #[error("it follows another replication stream")]
    OtherStream,
    /// Its clock is not the master's: keys would expire at another time (B12).
    #[error("its clock differs from the master's")]
    Clock,
}

/// What INFO says about replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    /// The stream.
    pub replid: Box<str>,
    /// What the node does with it.
    pub role: Role,
}

/// Either side of replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It writes the stream, and has written so far.
    Master(ReplOffset),
    /// It applies the stream.
    Replica {
        /// It has *applied* so far: not what it received, nor what the master knows of it (A11).
        applied: ReplOffset,
        /// It hears its master.
        link_up: bool,
        /// Its data is being replaced.
        syncing: bool,
    },
}

/// What a fresh connection to a replica is asked before its first command; servers before 7.0 take one section at a time.
pub const IDENTIFY: [[&str; 2]; 3] = [["INFO", "server"], ["INFO", "persistence"], ["INFO", "replication"]];

/// Whom a fresh connection to a replica leads to, from the replies to [`IDENTIFY`], one after the other, asked *on that
/// connection* (rule A11); RESP's framing between them does no harm. Refused unless the replica is fit
/// now; whether its stream is the epoch's is judged by whoever compares the identity.
pub fn identify(info: &str) -> Result<Identity, Unfit> {
    let replication = replication(info).ok_or(Unfit::NoInfo)?;
    let run_id = RunId::from(field(info, "run_id").ok_or(Unfit::NoInfo)?);
    if field(info, "loading").ok_or(Unfit::NoInfo)? != "0" || field(info, "async_loading") == Some("1") {
        return Err(Unfit::Loading);
    }
    match replication.role {
        Role::Master(_) => Err(Unfit::NotAReplica),
        Role::Replica { syncing: true, .. } => Err(Unfit::Syncing),
        Role::Replica { link_up: false, .. } => Err(Unfit::LinkDown),
        Role::Replica { .. } => Ok(Identity {
            run_id,
            replid: replication.replid,
        }),
    }
}

/// The run id in `INFO server`.
pub(super) fn run_id(info: &str) -> Option<RunId> {
    field(info, "run_id").map(RunId::from)
}

/// `INFO replication`, if it is that.
pub(super) fn replication(info: &str) -> Option<Replication> {
    let offset = |name: &str| field(info, name)?.parse().ok().map(ReplOffset);
    let role = match field(info, "role")? {
        "master" => Role::Master(offset("master_repl_offset")?),
        "slave" => Role::Replica {
            applied: offset("slave_repl_offset")?,
            link_up: field(info, "master_link_status")? == "up",
            syncing: field(info, "master_sync_in_progress")? != "0",
        },
        _ => return None,
    };
    Some(Replication {
        replid: field(info, "master_replid")?.into(),
        role,
    })
}

/// Looks for a whole field name at the start of a line. Texts are a few KiB, and read a hundred times a second.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    info.lines().find_map(value).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n# Persistence\r\nloading:0\r\n\
        async_loading:0\r\n# Replication\r\nrole:slave\r\nmaster_link_status:up\r\nmaster_last_io_seconds_ago:0\r\n\
        master_sync_in_progress:0\r\nslave_read_repl_offset:90\r\nslave_repl_offset:77\r\nmaster_replid:r1\r\n\
        master_replid2:r0\r\nmaster_repl_offset:78\r\nsecond_repl_offset:5\r\n";

    fn with(from: &str, to: &str) -> String {
        assert!(REPLICA.contains(from));
        REPLICA.replace(from, to)
    }

    #[test]
    fn a_fit_replica_is_identified() {
        let expected = Identity {
            run_id: "abc".into(),
            replid: "r1".into(),
        };
        assert_eq!(identify(REPLICA), Ok(expected.clone()));
        // Servers before 7.0 have no async_loading.
        assert_eq!(identify(&with("async_loading:0\r\n", "")), Ok(expected));
    }

    #[test]
    fn what_is_unfit_is_told_why() {
        let cases = [
            ("role:slave", "role:master", Unfit::NotAReplica),
            ("master_link_status:up", "master_link_status:down", Unfit::LinkDown),
            ("master_sync_in_progress:0", "master_sync_in_progress:1", Unfit::Syncing),
            ("\r\nloading:0", "\r\nloading:1", Unfit::Loading),
            ("async_loading:0", "async_loading:1", Unfit::Loading),
            ("run_id:abc\r\n", "", Unfit::NoInfo),
            ("\r\nloading:0", "", Unfit::NoInfo),
            ("slave_repl_offset:77\r\n", "", Unfit::NoInfo),
            ("master_replid:r1\r\n", "", Unfit::NoInfo),
            ("role:slave", "role:captain", Unfit::NoInfo),
            ("slave_repl_offset:77", "slave_repl_offset:many", Unfit::NoInfo),
        ];
        for (from, to, unfit) in cases {
            assert_eq!(identify(&with(from, to)), Err(unfit), "{from} -> {to}");
        }
        assert_eq!(identify(""), Err(Unfit::NoInfo));
    }

    #[test]
    fn a_replicas_offset_is_what_it_applied() {
        let Some(Role::Replica { applied, .. }) = replication(REPLICA).map(|read| read.role) else {
            panic!("a replica");
        };
        assert_eq!(applied, ReplOffset(77));
    }

    #[test]
    fn a_masters_offset_is_what_it_wrote() {
        let master = with("role:slave", "role:master");
        assert_eq!(
            replication(&master),
            Some(Replication {
                replid: "r1".into(),
                role: Role::Master(ReplOffset(78))
            })
        );
    }
}
