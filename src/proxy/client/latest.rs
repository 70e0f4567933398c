//! XREAD that blocks for what is newer than itself (`$`), when its connection is lost by a planned move.
//!
//! Asked again as it was, it would mean "newer than now", and pass over what was added meanwhile. While it blocked nothing
//! newer than its `$` was added, and at the fenced master nothing is: so the last id there is the one that it meant.
//! Where that cannot be learnt, `$` stays.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::session::{Held, Park, Session};
use crate::command::{Lookup, Table};
use crate::proxy::backend::{ConnectError, Lane, Login, Target, ask, connect_to, put_own, with_words};
use crate::resp::Args;

/// How long the fenced master may take to say what its last ids are.
const ASK_MAX: Duration = Duration::from_millis(200);

impl Session {
    /// Holds what a lost lane left, once it is known what it meant.
    pub(super) fn hold_lost(self: &Rc<Self>, lane: &Rc<Lane>, mut held: Vec<Held>) {
        let table = self.worker.commands();
        let wants_news = |held: &Held| held.private && !streams(&held.bytes, table).is_empty();
        let mut state = self.state();
        if !held.iter().any(wants_news) {
            state.held.extend(held);
            return;
        }
        state.park = Park::Verify;
        drop(state);
        let (session, target, login) = (self.clone(), lane.target.clone(), lane.login.clone());
        tokio::task::spawn_local(async move {
            for held in &mut held {
                let asking = settle(&target, &login, &held.bytes, table);
                match timeout(ASK_MAX, asking).await {
                    Ok(Some(settled)) => held.bytes = settled,
                    Ok(None) => {}
                    Err(_) => debug!(
                        client = session.id,
                        "the fenced master does not say what its last ids are"
                    ),
                }
            }
            {
                let mut state = session.state();
                state.held.extend(held);
                state.park = Park::Open;
            }
            session.wake();
        });
    }
}

/// The request with the ids that it means; `None` if it has none to learn, or they are not learnt.
async fn settle(target: &Target, login: &Login, request: &[u8], table: &Table) -> Option<Vec<u8>> {
    let mut ids = Vec::new();
    for (at, stream) in streams(request, table) {
        ids.push((at, last_id(target, login, &stream).await?));
    }
    if ids.is_empty() {
        return None;
    }
    let mut spans = Vec::new();
    let args = Args::read(request, &mut spans)?;
    let words: Vec<(usize, &[u8])> = ids.iter().map(|(at, id)| (*at, id.as_slice())).collect();
    Some(with_words(&args, &words))
}

/// The streams of which a request wants only news, each behind the place of its id.
fn streams(request: &[u8], table: &Table) -> Vec<(usize, Vec<u8>)> {
    let mut spans = Vec::new();
    let Some(args) = Args::read(request, &mut spans) else {
        return Vec::new();
    };
    let Lookup::Known(command) = table.lookup(&args) else {
        return Vec::new();
    };
    let latest = command.latest_at(&args).into_iter();
    latest
        .filter_map(|(key, id)| Some((id, args.get(key)?.to_vec())))
        .collect()
}

/// The last id that a stream has given; that of none, if there is no such stream.
async fn last_id(target: &Target, login: &Login, stream: &[u8]) -> Option<Vec<u8>> {
    // It knows no proxies any more.
    let fenced = Target {
        pass: None,
        ..target.clone()
    };
    let mut connection = connect_to(&fenced, login, ASK_MAX).await.ok()?;
    let mut request = Vec::new();
    put_own(&mut request, &[b"XINFO", b"STREAM", stream]);
    match ask(&mut connection, &request, 1, &target.addr).await {
        Ok(reply) => id_in(&reply),
        Err(ConnectError::Refused(_, line)) if line == "-ERR no such key" => Some(b"0-0".to_vec()),
        Err(_) => None,
    }
}

/// The last id in the answer to XINFO STREAM.
fn id_in(reply: &[u8]) -> Option<Vec<u8>> {
    const FIELD: &[u8] = b"$17\r\nlast-generated-id\r\n$";
    let at = memchr::memmem::find(reply, FIELD)? + FIELD.len();
    let mut lines = reply[at..].split(|byte| *byte == b'\n');
    let id = lines.nth(1)?.strip_suffix(b"\r")?;
    Some(id.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_id_is_found_in_both_protocols() {
        let found = |reply: &str| id_in(reply.as_bytes()).map(|id| String::from_utf8(id).unwrap());
        let two = "*4\r\n$6\r\nlength\r\n:1\r\n$17\r\nlast-generated-id\r\n$3\r\n5-1\r\n";
        assert_eq!(found(two), Some("5-1".to_owned()));
        assert_eq!(found(&two.replacen("*4", "%2", 1)), Some("5-1".to_owned()));
        assert_eq!(found("*2\r\n$6\r\nlength\r\n:1\r\n"), None);
        assert_eq!(found("*1\r\n$17\r\nlast-generated-id\r\n$"), None);
    }
}
