//! Whose acknowledgements count: replicas at members' addresses, as a master lists them in its answer to ROLE.
//!
//! Redis counts every attached replica in WAIT, and whoever may log in may attach (rule R1: nothing outside the members is
//! ever counted). Owns: reading that answer, and telling members from strangers. Pure: names are resolved by others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::topology::Addr;

/// The addresses of a shard's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Host as it was registered, which is what a replica may announce itself by, and port.
    registered: BTreeSet<Addr>,
    /// What the host names among them stand for, as far as that is known.
    resolved: BTreeMap<Addr, Vec<IpAddr>>,
}

/// A master's answer to ROLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollCall<'a> {
    /// How far its stream goes, in bytes.
    pub offset: u64,
    /// The replicas that are attached and take its stream.
    pub replicas: Vec<Listed<'a>>,
}

/// A replica in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Its address as the master sees it, or as it announces itself.
    pub host: &'a str,
    /// The port on which it listens, or that it announces.
    pub port: u16,
    /// Up to where it has acknowledged.
    pub offset: u64,
}

impl Members {
    /// Those at these addresses. Host names count by their text until they are resolved.
    pub fn at(addrs: impl Iterator<Item = Addr>) -> Self {
        Self {
            registered: addrs.collect(),
            resolved: BTreeMap::new(),
        }
    }

    /// Whether they are the same, whatever is known of their names.
    pub fn are_at(&self, others: &Self) -> bool {
        self.registered == others.registered
    }

    /// Takes over what was known of names before.
    pub fn learn_from(&mut self, before: &Self) {
        let known = before
            .resolved
            .iter()
            .filter(|(name, _)| self.registered.contains(name));
        self.resolved = known.map(|(name, ips)| (name.clone(), ips.clone())).collect();
    }

    /// Those that are registered by a host name.
    pub fn names(&self) -> impl Iterator<Item = &Addr> {
        self.registered.iter().filter(|addr| ip(addr.host()).is_none())
    }

    /// A member's name stands for these addresses now.
    pub fn resolve(&mut self, name: &Addr, ips: impl Iterator<Item = IpAddr>) {
        let ips = ips.map(|ip| ip.to_canonical()).collect();
        self.resolved.insert(name.clone(), ips);
    }

    /// Whether a replica is one of them.
    pub fn include(&self, replica: &Listed) -> bool {
        let same_port = self.registered.iter().filter(|addr| addr.port() == replica.port);
        let seen = ip(replica.host);
        let mut same_host = same_port.filter(|addr| {
            let by_ip =
                |seen| ip(addr.host()) == Some(seen) || self.resolved.get(addr).is_some_and(|ips| ips.contains(&seen));
            addr.host().eq_ignore_ascii_case(replica.host) || seen.is_some_and(by_ip)
        });
        same_host.next().is_some()
    }
}

fn ip(host: &str) -> Option<IpAddr> {
    host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

impl<'a> RollCall<'a> {
    /// Reads an answer to ROLE; `None` if it is no master's.
    pub fn read(reply: &'a [u8]) -> Option<Self> {
        let mut rest = reply.strip_prefix(b"*3\r\n$6\r\nmaster\r\n:")?;
        let offset = number(line(&mut rest)?)?;
        let count = number(line(&mut rest)?.strip_prefix(b"*")?)?;
        let mut replicas = Vec::new();
        for _ in 0..count {
            rest = rest.strip_prefix(b"*3\r\n")?;
            replicas.push(Listed {
                host: std::str::from_utf8(bulk(&mut rest)?).ok()?,
                port: u16::try_from(number(bulk(&mut rest)?)?).ok()?,
                offset: number(bulk(&mut rest)?)?,
            });
        }
        Some(Self { offset, replicas })
    }

    /// How many different members have acknowledged up to `offset`. Two that show one address are one at most, as the one
    /// that has less: a stranger may announce itself by a member's.
    pub fn members_at(&self, offset: u64, members: &Members) -> u32 {
        let mut reached: BTreeMap<(&str, u16), bool> = BTreeMap::new();
        for replica in self.replicas.iter().filter(|replica| members.include(replica)) {
            let has = reached.entry((replica.host, replica.port)).or_insert(true);
            *has &= replica.offset >= offset;
        }
        let count = reached.values().filter(|has| **has).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Those that are none.
    pub fn strangers(&self, members: &Members) -> impl Iterator<Item = &Listed<'a>> {
        self.replicas.iter().filter(|replica| !members.include(replica))
    }
}

fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

fn bulk<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(line(rest)?.strip_prefix(b"$")?)?).ok()?;
    let (word, after) = rest.split_at_checked(length)?;
    *rest = after.strip_prefix(b"\r\n")?;
    Some(word)
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(addrs: &[&str]) -> Members {
        Members::at(addrs.iter().map(|addr| addr.parse().unwrap()))
    }

    fn listed(host: &str, port: u16) -> Listed<'_> {
        Listed { host, port, offset: 0 }
    }

    #[test]
    fn a_master_lists_its_replicas_and_whatever_is_no_such_answer_is_none() {
        let reply = b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*2\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n$7\r\n3129242\r\n\
            *3\r\n$3\r\n::1\r\n$4\r\n9002\r\n$1\r\n0\r\n";
        let call = RollCall::read(reply).unwrap();
        assert_eq!((call.offset, call.replicas.len()), (3_129_659, 2));
        let first = Listed {
            offset: 3_129_242,
            ..listed("127.0.0.1", 9001)
        };
        assert_eq!(call.replicas, [first, listed("::1", 9002)]);
        assert!(
            RollCall::read(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
                .unwrap()
                .replicas
                .is_empty()
        );
        for end in 0..reply.len() {
            assert_eq!(RollCall::read(&reply[..end]), None, "{end}");
        }
        for other in [
            &b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$4\r\nsync\r\n:1\r\n"[..],
            b"-BUSY x\r\n",
            b"*3\r\n$6\r\nmaster\r\n:1\r\n*1\r\n*3\r\n$1\r\nh\r\n$5\r\n99999\r\n$1\r\n0\r\n",
            b"*3\r\n$6\r\nmaster\r\n:1\r\n*1\r\n*3\r\n$99999999999999999999\r\nh\r\n",
        ] {
            assert_eq!(RollCall::read(other), None);
        }
    }

    #[test]
    fn members_are_known_by_any_of_their_addresses_and_strangers_by_none() {
        let mut known = members(&["10.0.0.1:1", "[::1]:2", "redis-0.svc:3"]);
        assert!(known.include(&listed("10.0.0.1", 1)) && known.include(&listed("::ffff:10.0.0.1", 1)));
        assert!(known.include(&listed("0:0:0:0:0:0:0:1", 2)));
        assert!(!known.include(&listed("10.0.0.1", 2)) && !known.include(&listed("10.0.0.2", 1)));
        // By name: as it announces itself, or once it is known what that stands for.
        assert!(known.include(&listed("Redis-0.svc", 3)));
        assert!(!known.include(&listed("10.0.0.7", 3)));
        let name: Addr = "redis-0.svc:3".parse().unwrap();
        assert_eq!(known.names().collect::<Vec<_>>(), [&name]);
        known.resolve(&name, ["10.0.0.7".parse().unwrap()].into_iter());
        assert!(known.include(&listed("10.0.0.7", 3)) && !known.include(&listed("10.0.0.7", 1)));
        assert!(known.are_at(&members(&["redis-0.svc:3", "10.0.0.1:1", "[::1]:2"])));
        assert!(!known.are_at(&members(&["10.0.0.1:1"])));
    }

    #[test]
    fn each_member_counts_once_and_only_for_what_it_has() {
        let known = members(&["h:1", "h:2", "h:3"]);
        let of = |replicas: &[(u16, u64)]| {
            let replicas = replicas.iter().map(|(port, offset)| Listed {
                offset: *offset,
                ..listed("h", *port)
            });
            let call = RollCall {
                offset: 10,
                replicas: replicas.collect(),
            };
            (call.members_at(10, &known), call.strangers(&known).count())
        };
        assert_eq!(of(&[(1, 10), (2, 9), (3, 11), (4, 99)]), (2, 1));
        assert_eq!(of(&[(1, 10), (1, 12)]), (1, 0));
        assert_eq!(of(&[(1, 9), (1, 12)]), (0, 0), "one of them lies");
        assert_eq!(of(&[]), (0, 0));
    }
}
