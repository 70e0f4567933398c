//! Waiting for a replica to get somewhere, at the least cost to it.
//!
//! Owns: the looks that follow each other while clients wait. Refuses: deciding what is enough. `ROLE` costs Redis some
//! microseconds, the whole INFO a hundred times that, on the very thread that has to make the link; so INFO is read only
//! when ROLE says that it may be good, and once more when the time is up.

use std::time::Duration;

use redis_protocol::resp2::types::BytesFrame;
use tokio::time::sleep;

use super::machine::facts::Facts;
use super::redis::{Connection, RedisError, text};
use crate::clock;

/// How long a replica is looked at.
const LIMIT: Duration = Duration::from_millis(100);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_millis(400);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// Looks that follow each other at once: what a timer takes at least is more than most replicas need.
const LOOKS_AT_ONCE: u32 = 20;

/// What ROLE says of a replica (<https://redis.io/docs/latest/commands/role/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Whether its link to its master is up.
    pub linked: bool,
    /// How much of the stream it has applied, in bytes; none while it has no link, where ROLE does not tell.
    pub offset: Option<i64>,
}

/// Reads until the facts are good, at most [`LIMIT`]; the last reading counts. While `hopeless` says so of a glance,
/// nothing else is read.
pub async fn look_until(
    connection: &mut Connection,
    hopeless: impl Fn(Glance) -> bool,
    good: impl Fn(&Facts) -> bool,
) -> Result<Facts, RedisError> {
    let end = clock::now() + LIMIT;
    for look in 1.. {
        let glance = glance(connection).await?;
        let over = clock::now() >= end;
        if over || !glance.is_some_and(&hopeless) {
            let facts = super::act::read(connection).await?;
            if over || good(&facts) {
                return Ok(facts);
            }
        }
        if look > LOOKS_AT_ONCE {
            sleep(PAUSE).await;
        }
    }
    unreachable!("the time is up before the numbers are");
}

/// None if it is no replica, or says something else.
async fn glance(connection: &mut Connection) -> Result<Option<Glance>, RedisError> {
    Ok(replica(&connection.ask(&["ROLE"], LOOK_LIMIT).await?))
}

fn replica(role: &BytesFrame) -> Option<Glance> {
    let BytesFrame::Array(parts) = role else { return None };
    let [role, _host, _port, link, BytesFrame::Integer(offset)] = parts.as_slice() else {
        return None;
    };
    (text(role)? == "slave").then_some(Glance {
        linked: text(link)? == "connected",
        offset: (*offset >= 0).then_some(*offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &'static str) -> BytesFrame {
        BytesFrame::BulkString(text.into())
    }

    fn of_replica(link: &'static str, offset: i64) -> BytesFrame {
        let parts = [bulk("slave"), bulk("h"), BytesFrame::Integer(1), bulk(link)];
        BytesFrame::Array(parts.into_iter().chain([BytesFrame::Integer(offset)]).collect())
    }

    #[test]
    fn a_replica_is_told_by_its_link_and_offset() {
        let linked = Glance {
            linked: true,
            offset: Some(42),
        };
        assert_eq!(replica(&of_replica("connected", 42)), Some(linked));
        let waiting = Glance {
            linked: false,
            offset: None,
        };
        assert_eq!(replica(&of_replica("connect", -1)), Some(waiting));
    }

    #[test]
    fn a_master_is_not_glanced_at() {
        let master = BytesFrame::Array(vec![
            bulk("master"),
            BytesFrame::Integer(9),
            BytesFrame::Array(Vec::new()),
        ]);
        assert_eq!(replica(&master), None);
        assert_eq!(replica(&BytesFrame::Error("LOADING".into())), None);
    }
}
