//! What is told of a client to those who list clients: a line of CLIENT LIST, in Redis' format.
//!
//! Sizes are this session's own buffers, since Redis' are not the client's. Servers from 7.2 on also tell the library.

use std::os::fd::AsRawFd;

use super::session::{Session, State};
use super::subscriptions::Kind;
use super::transaction::Transaction;
use crate::clock;
use crate::command::Class;

/// One client, described.
#[derive(Clone, Debug, Default)]
pub(super) struct Portrait {
    pub id: u64,
    pub addr: String,
    pub laddr: String,
    pub user: Vec<u8>,
    pub fd: i32,
    pub name: Vec<u8>,
    pub library: Option<(Vec<u8>, Vec<u8>)>,
    pub age_s: u64,
    pub idle_s: u64,
    pub flags: String,
    pub database: u32,
    /// Channels, patterns, shard channels.
    pub subscriptions: [usize; 3],
    pub tracks: bool,
    /// Whether it is given a copy, as a replica is.
    pub copies: bool,
    /// Which client is told what it tracks, if another one is.
    pub redirects_to: Option<u64>,
    /// Commands queued since MULTI.
    pub queued: Option<usize>,
    pub request_bytes: usize,
    pub request_room: usize,
    pub reply_room: usize,
    pub unwritten: usize,
    pub command: Option<String>,
    pub resp3: bool,
}

impl Portrait {
    /// Whether it is a subscriber to Redis' mind.
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscriptions.iter().sum::<usize>() > 0
    }

    /// The line, without its end.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = format!(
            "id={} addr={} laddr={} fd={} name=",
            self.id, self.addr, self.laddr, self.fd
        )
        .into_bytes();
        line.extend_from_slice(&self.name);
        let [channels, patterns, shards] = self.subscriptions;
        let queued = self.queued.and_then(|count| i64::try_from(count).ok()).unwrap_or(-1);
        line.extend_from_slice(
            format!(
                " age={} idle={} flags={} db={} sub={channels} psub={patterns} ssub={shards} multi={queued} qbuf={} \
                 qbuf-free={} argv-mem=0 multi-mem=0 rbs={} rbp=0 obl={} oll=0 omem=0 tot-mem={} events={} cmd={} user=",
                self.age_s,
                self.idle_s,
                self.flags,
                self.database,
                self.request_bytes,
                self.request_room,
                self.reply_room,
                self.unwritten,
                size_of::<Session>() + self.request_bytes + self.request_room + self.reply_room,
                if self.unwritten > 0 { "rw" } else { "r" },
                self.command.as_deref().unwrap_or("NULL"),
            )
            .as_bytes(),
        );
        line.extend_from_slice(&self.user);
        line.extend_from_slice(
            format!(
                " redir={} resp={}",
                match self.redirects_to.map(i64::try_from) {
                    Some(Ok(client)) if self.tracks => client,
                    _ if self.tracks => 0,
                    _ => -1,
                },
                if self.resp3 { 3 } else { 2 }
            )
            .as_bytes(),
        );
        if let Some((name, version)) = &self.library {
            line.extend_from_slice(b" lib-name=");
            line.extend_from_slice(name);
            line.extend_from_slice(b" lib-ver=");
            line.extend_from_slice(version);
        }
        line
    }
}

impl Session {
    /// Describes the client; `asks` is the length of the request that is just being answered, if it is this one's.
    pub(super) fn portrait(&self, asks: usize) -> Portrait {
        self.portrait_of(&self.state(), asks, None)
    }

    /// The same; `inside` a transaction that runs: of how many requests.
    pub(super) fn portrait_of(&self, state: &State, asks: usize, inside: Option<u32>) -> Portrait {
        let now_ms = clock::monotonic_ms();
        let socket = self.socket();
        let addr = |addr: std::io::Result<std::net::SocketAddr>| {
            addr.map_or_else(|_| "?:0".to_owned(), |addr| addr.to_string())
        };
        let last = self.last_command();
        let command = last.and_then(|id| self.worker.commands().get(id));
        let blocks = command.is_some_and(|command| command.class == Class::Blocking);
        let about = state.about.as_deref();
        let tells_library = self.worker.redis_is_at_least(7, 2);
        let subscriptions = |kind| {
            let feed = state.feed.as_ref();
            feed.map_or(0, |feed| feed.line.subscriptions.count_of(kind))
        };
        Portrait {
            id: self.id,
            addr: addr(socket.peer_addr()),
            laddr: addr(socket.local_addr()),
            fd: socket.as_raw_fd(),
            user: state.user().to_vec(),
            name: about.map(|about| about.name.to_vec()).unwrap_or_default(),
            library: tells_library.then(|| {
                about
                    .map(|about| (about.library.to_vec(), about.library_version.to_vec()))
                    .unwrap_or_default()
            }),
            age_s: now_ms.saturating_sub(self.since_ms) / 1000,
            idle_s: if asks > 0 {
                0
            } else {
                now_ms.saturating_sub(self.heard_ms()) / 1000
            },
            flags: flags(state, blocks, inside.is_some()),
            database: state.login.database,
            subscriptions: [Kind::Channel, Kind::Pattern, Kind::Shard].map(subscriptions),
            tracks: state.feed.as_ref().is_some_and(|feed| feed.line.tracking.is_on()),
            copies: about.is_some_and(|about| about.copies),
            redirects_to: {
                let redirects = state.feed.as_ref().is_some_and(|feed| feed.line.tracking.redirects());
                let redirection = state.redirection.as_ref().filter(|_| redirects);
                redirection.map(|redirection| redirection.to)
            },
            queued: match state.transaction {
                _ if inside.is_some() => inside.and_then(|count| usize::try_from(count).ok()),
                Transaction::None if state.feed.is_some() => state.feed.as_ref().and_then(|feed| feed.line.queued()),
                Transaction::Queueing => Some(state.queued().map_or(0, |queued| queued.queued_count)),
                Transaction::Doomed | Transaction::Lost | Transaction::Aborted | Transaction::Refused => Some(0),
                Transaction::None | Transaction::Watching | Transaction::Stale => None,
            },
            request_bytes: state.tail.as_ref().map_or(asks, |tail| tail.bytes.len()),
            request_room: state
                .tail
                .as_ref()
                .map_or(0, |tail| tail.bytes.capacity() - tail.bytes.len()),
            reply_room: state.out.capacity(),
            unwritten: state.out.len() - state.sent,
            command: command.map(|command| command.name.to_string()),
            resp3: state.login.resp3,
        }
    }
}

/// Redis' letters for what a client is doing, in its order.
fn flags(state: &State, blocks: bool, inside: bool) -> String {
    let feed = state.feed.as_ref();
    let letters = [
        (state.about.as_ref().is_some_and(|about| about.copies), 'S'),
        (feed.is_some_and(|feed| feed.line.is_monitoring()), 'O'),
        (feed.is_some_and(|feed| !feed.line.subscriptions.is_empty()), 'P'),
        (
            inside
                || state.transaction == Transaction::Queueing
                || state.transaction.is_ghost()
                || feed.is_some_and(|feed| feed.line.multi),
            'x',
        ),
        (blocks && state.window.unanswered() > 0, 'b'),
        (feed.is_some_and(|feed| feed.line.tracking.is_on()), 't'),
        (feed.is_some_and(|feed| feed.line.tracking.broadcasts()), 'B'),
        (state.closing.is_some(), 'c'),
        (state.about.as_ref().is_some_and(|about| about.no_evict), 'e'),
    ];
    let shown: String = letters.iter().filter(|(is, _)| *is).map(|(_, letter)| letter).collect();
    if shown.is_empty() { "N".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_fields_of_redis_in_its_order() {
        let portrait = Portrait {
            id: 3,
            addr: "127.0.0.1:5".into(),
            laddr: "127.0.0.1:6".into(),
            user: b"default".to_vec(),
            flags: "N".into(),
            command: Some("client|list".into()),
            ..Portrait::default()
        };
        let line = String::from_utf8(portrait.line()).unwrap();
        let names: Vec<&str> = line.split(' ').filter_map(|field| field.split('=').next()).collect();
        // The line of redis-server 7.0.
        let expected = "id addr laddr fd name age idle flags db sub psub ssub multi qbuf qbuf-free argv-mem multi-mem rbs \
                        rbp obl oll omem tot-mem events cmd user redir resp";
        assert_eq!(names.join(" "), expected);
        assert!(line.contains(" multi=-1 ") && line.contains(" cmd=client|list user=default redir=-1 resp=2"));
    }
}
