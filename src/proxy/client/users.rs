//! ACL LIST, USERS, GETUSER and LOG: what the master says, without the users that agents make (design §10).
//!
//! ```text
//! session --drain--> task --the session's own login--> master --reply--> without ours --> session goes on
//! ```
//! Invariant: a user of ours is to a client as one that does not exist. What cannot be read is not passed on.

use std::rc::Rc;

use super::dispatch::Outcome;
use super::everynode::{NO_MASTER, RETRY, is_ours};
use super::session::{Park, Session};
use crate::clock;
use crate::command::Command;
use crate::proxy::backend::{ConnectError, ask_for, connect_to, with_words};
use crate::resp::{Args, Heed, ReplyScanner, Stop, put_i64};
use crate::topology::ShardIndex;

/// The longest reply that is read, in bytes: some ten thousand users.
const REPLY_BYTES_MAX: usize = 4 << 20;
/// No user has such a name: Redis allows no spaces in them.
const NOBODY: &[u8] = b"no body";
const UNREADABLE: &[u8] = b"-ERR pointsman cannot read what redis says of its users\r\n";

impl Session {
    /// Asks the master about users.
    pub(super) fn acl_users(self: &Rc<Self>, command: &Command, args: &Args, frame: &[u8]) -> Outcome {
        if self.state().window.unanswered() > 0 {
            return Outcome::Park(Park::Drain);
        }
        if let Some(park) = self.hold_without_master() {
            return Outcome::Park(park);
        }
        let about_ours = &*command.name == "acl|getuser" && args.get(2).is_some_and(is_ours);
        let request = if about_ours {
            with_words(args, &[(2, NOBODY)])
        } else {
            frame.to_vec()
        };
        let (session, name) = (self.clone(), command.name.clone());
        tokio::task::spawn_local(async move {
            let reply = session.ask_master(&request).await;
            let reply = match &*name {
                "acl|getuser" => reply,
                _ => without_ours(&reply).unwrap_or_else(|| UNREADABLE.to_vec()),
            };
            session.refuse(|out| out.extend_from_slice(&reply));
            session.resume();
        });
        self.state().park = Park::Verify;
        Outcome::Done
    }

    /// Asks what changes nothing, until there is a master that answers or the time of a held command is up.
    async fn ask_master(&self, request: &[u8]) -> Vec<u8> {
        let since_ms = clock::monotonic_ms();
        let login = self.state().login.clone();
        let limit = self.worker.connect_timeout();
        loop {
            if let Some(master) = self.worker.shard(ShardIndex(0)).serving() {
                let asking = async {
                    let mut stream = connect_to(&master, &login, limit).await?;
                    ask_for(&mut stream, request, 1, &master.addr, REPLY_BYTES_MAX).await
                };
                match tokio::time::timeout(limit, asking).await {
                    Ok(Ok(reply)) => return reply,
                    Ok(Err(ConnectError::Refused(_, line))) => return [line.as_bytes(), b"\r\n"].concat(),
                    Ok(Err(_)) | Err(_) => self.worker.shard(ShardIndex(0)).suspect(&self.worker),
                }
            }
            if self.is_closed() || clock::monotonic_ms() > since_ms + self.worker.hold_max_ms() {
                return NO_MASTER.to_vec();
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// The reply without the elements that are about users of ours; `None` if it is not what Redis says.
fn without_ours(reply: &[u8]) -> Option<Vec<u8>> {
    let Some(rest) = reply.strip_prefix(b"*") else {
        // OK of LOG RESET, or a refusal.
        return matches!(reply.first(), Some(b'+' | b'-')).then(|| reply.to_vec());
    };
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let count: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    let mut left = &rest[end + 2..];
    let (mut kept, mut bytes) = (0, Vec::with_capacity(reply.len()));
    for _ in 0..count {
        let scanned = ReplyScanner::default().scan(left, 1, Heed::Nothing);
        if !matches!(scanned.stop, Stop::Counted) {
            return None;
        }
        let (element, more) = left.split_at(scanned.used);
        if !is_about_ours(element) {
            kept += 1;
            bytes.extend_from_slice(element);
        }
        left = more;
    }
    let mut out = vec![b'*'];
    put_i64(&mut out, kept);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&bytes);
    left.is_empty().then_some(out)
}

/// Whether an element is a name (USERS), a rule `user NAME ..` (LIST) or an entry with a `username` (LOG) of ours.
fn is_about_ours(element: &[u8]) -> bool {
    let texts = texts(element);
    match texts.as_slice() {
        [text] => {
            let mut words = text.split(|byte| *byte == b' ');
            match (words.next(), words.next()) {
                (Some(b"user"), Some(name)) => is_ours(name),
                (Some(name), None) => is_ours(name),
                _ => false,
            }
        }
        fields => {
            let mut pairs = fields.windows(2).filter(|pair| pair[0] == b"username");
            pairs.any(|pair| is_ours(pair[1]))
        }
    }
}

/// All bulk strings in a reply.
fn texts(mut reply: &[u8]) -> Vec<&[u8]> {
    let mut texts = Vec::new();
    while let Some(end) = reply.windows(2).position(|pair| pair == b"\r\n") {
        let (line, rest) = (&reply[..end], &reply[end + 2..]);
        reply = rest;
        if let [b'$', length @ ..] = line
            && let Some(length) = std::str::from_utf8(length)
                .ok()
                .and_then(|length| length.parse::<usize>().ok())
            && rest.len() >= length + 2
        {
            texts.push(&rest[..length]);
            reply = &rest[length + 2..];
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(reply: &str) -> Option<String> {
        without_ours(reply.as_bytes()).map(|reply| String::from_utf8(reply).unwrap())
    }

    #[test]
    fn users_and_rules_of_ours_are_left_out() {
        let names = "*4\r\n$5\r\nalice\r\n$7\r\ndefault\r\n$8\r\npm-agent\r\n$4\r\npx-3\r\n";
        assert_eq!(filtered(names).unwrap(), "*2\r\n$5\r\nalice\r\n$7\r\ndefault\r\n");
        let rules = "*3\r\n$13\r\nuser repl-2 on\r\n";
        assert_eq!(filtered(rules), None, "not what it says it is");
        let rules = "*3\r\n$14\r\nuser repl-2 on\r\n$16\r\nuser px-alice on\r\n$14\r\nuser default #\r\n";
        assert_eq!(
            filtered(rules).unwrap(),
            "*2\r\n$16\r\nuser px-alice on\r\n$14\r\nuser default #\r\n"
        );
        for same in ["*0\r\n", "+OK\r\n", "-NOPERM no\r\n"] {
            assert_eq!(filtered(same).unwrap(), same);
        }
        assert_eq!(filtered("$2\r\nhi\r\n"), None);
    }

    #[test]
    fn entries_of_a_log_are_left_out_in_both_protocols() {
        let entry = |head: &str, user: &str| {
            let length = user.len();
            format!("{head}\r\n$5\r\ncount\r\n:1\r\n$8\r\nusername\r\n${length}\r\n{user}\r\n$3\r\nage\r\n,1.5\r\n")
        };
        for head in ["*6", "%3"] {
            let log = format!("*2\r\n{}{}", entry(head, "px-1"), entry(head, "bob"));
            assert_eq!(filtered(&log).unwrap(), format!("*1\r\n{}", entry(head, "bob")));
        }
    }
}
