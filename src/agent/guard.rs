//! No foreign replica at a master whose replicas acknowledge.
//!
//! Redis counts every attached replica in WAIT, and whoever may log in may attach. Owns: closing replica connections that did
//! not log in as the epoch's replicas do. Refuses: deciding who is a member: whoever shows the epoch's credential is. This is a
//! second belt: an acknowledgement is sound because proxies look whom it counts, however short such a link lives.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep_until;

use super::beat::Beat;
use super::info::carried_epoch;
use super::redis::{Connection, Login, RedisError, text};
use crate::clock;
use crate::topology::{Addr, Epoch};

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_millis(500);

/// Looks at each `beat` while our Redis is the master of the watched epoch.
pub(super) async fn guard(addr: Addr, login: Login, beat: Beat, mut reign: watch::Receiver<Option<Epoch>>) {
    let mut connection = None;
    loop {
        let Some(epoch) = *reign.borrow_and_update() else {
            connection = None;
            if reign.changed().await.is_err() {
                return;
            }
            continue;
        };
        match expel(&addr, &login, connection.take(), epoch).await {
            Ok(kept) => connection = Some(kept),
            // The probe tells what there is to know.
            Err(error) => tracing::debug!(%error, "replicas cannot be looked at"),
        }
        sleep_until(beat.after(clock::now()).into()).await;
    }
}

async fn expel(addr: &Addr, login: &Login, kept: Option<Connection>, epoch: Epoch) -> Result<Connection, RedisError> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(addr, login, LIMIT).await?,
    };
    let list = connection.ask(&["CLIENT", "LIST", "TYPE", "replica"], LIMIT).await?;
    for stranger in strangers(text(&list).unwrap_or_default(), epoch) {
        let Stranger { id, addr, user } = stranger;
        tracing::warn!(
            "closing the replica at {addr}, logged in as '{user}': at W >= 1 only members may follow the master (it would \
             count as an acknowledgement)"
        );
        connection.ask(&["CLIENT", "KILL", "ID", id], LIMIT).await?;
    }
    Ok(connection)
}

/// A replica that is none of ours.
#[derive(Debug, PartialEq, Eq)]
struct Stranger<'a> {
    id: &'a str,
    addr: &'a str,
    user: &'a str,
}

/// Those in a reply to `CLIENT LIST TYPE replica` whose user is not that of this epoch's replicas. One of a later epoch
/// may be newer than what we know.
fn strangers(list: &str, epoch: Epoch) -> Vec<Stranger<'_>> {
    let lines = list.lines().filter_map(|line| {
        let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
        Some(Stranger {
            id: field("id=")?,
            addr: field("addr=").unwrap_or("?"),
            user: field("user=")?,
        })
    });
    lines.filter(|replica| carried_epoch(replica.user) < epoch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_without_the_epochs_user_are_strangers() {
        let list = "id=3 addr=127.0.0.1:50 laddr=x flags=S user=repl-4 resp=2\n\
            id=4 addr=127.0.0.1:51 flags=S user=default resp=2\n\
            id=5 addr=127.0.0.1:52 flags=S user=repl-3\n\
            id=6 addr=127.0.0.1:53 flags=S user=repl-5\n\n";
        let found: Vec<&str> = strangers(list, Epoch(4)).iter().map(|stranger| stranger.id).collect();
        assert_eq!(found, ["4", "5"]);
        assert!(strangers("", Epoch(4)).is_empty());
    }
}
