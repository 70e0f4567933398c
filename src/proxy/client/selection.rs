//! Which clients a CLIENT LIST or CLIENT KILL means, from its arguments, in Redis' words. Pure.

use super::portrait::Portrait;
use crate::resp::{Args, parse_i64};

const SYNTAX: &[u8] = b"-ERR syntax error\r\n";

/// What kind of client, as Redis names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Pubsub,
    /// Who is given a copy of the data.
    Replica,
    /// Masters never come to a proxy: nobody is meant.
    Nobody,
}

/// The clients that are meant: those for which everything that was asked is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    ids: Option<Vec<u64>>,
    addr: Option<Vec<u8>>,
    laddr: Option<Vec<u8>>,
    user: Option<Vec<u8>>,
    kind: Option<Kind>,
    /// Who is not meant in any case.
    not: Option<u64>,
}

/// Why arguments name nobody: the line to say.
pub(super) type Refused = Vec<u8>;

impl Selection {
    /// Whom a CLIENT LIST means.
    pub(super) fn listed(args: &Args) -> Result<Self, Refused> {
        let option = args.get(2).unwrap_or_default();
        if args.len() == 4 && option.eq_ignore_ascii_case(b"type") {
            return Ok(Self {
                kind: Some(kind(args.get(3).unwrap_or_default())?),
                ..Self::default()
            });
        }
        if args.len() > 3 && option.eq_ignore_ascii_case(b"id") {
            let ids = args.iter().skip(3).map(|id| parse_i64(id).ok_or(()));
            let ids: Result<Vec<i64>, ()> = ids.collect();
            let ids = ids.map_err(|()| b"-ERR Invalid client ID\r\n".to_vec())?;
            return Ok(Self {
                ids: Some(ids.into_iter().filter_map(|id| u64::try_from(id).ok()).collect()),
                ..Self::default()
            });
        }
        if args.len() == 2 {
            Ok(Self::default())
        } else {
            Err(SYNTAX.to_vec())
        }
    }

    /// Whom a CLIENT KILL of the client `own` means.
    pub(super) fn killed(args: &Args, own: u64) -> Result<Self, Refused> {
        if args.len() == 3 {
            return Ok(Self {
                addr: args.get(2).map(Into::into),
                ..Self::default()
            });
        }
        let mut selection = Self {
            not: Some(own),
            ..Self::default()
        };
        let mut at = 2;
        while let Some(option) = args.get(at) {
            let Some(value) = args.get(at + 1) else {
                return Err(SYNTAX.to_vec());
            };
            selection.narrow(option, value, own)?;
            at += 2;
        }
        if at > 2 { Ok(selection) } else { Err(SYNTAX.to_vec()) }
    }

    fn narrow(&mut self, option: &[u8], value: &[u8], own: u64) -> Result<(), Refused> {
        match option.to_ascii_lowercase().as_slice() {
            b"id" => match parse_i64(value).and_then(|id| u64::try_from(id).ok()) {
                Some(id) if id > 0 => self.ids = Some(vec![id]),
                Some(_) | None => return Err(b"-ERR client-id should be greater than 0\r\n".to_vec()),
            },
            b"type" => self.kind = Some(kind(value)?),
            b"addr" => self.addr = Some(value.into()),
            b"laddr" => self.laddr = Some(value.into()),
            b"user" => self.user = Some(value.into()),
            b"skipme" if value.eq_ignore_ascii_case(b"yes") => self.not = Some(own),
            b"skipme" if value.eq_ignore_ascii_case(b"no") => self.not = None,
            _ => return Err(SYNTAX.to_vec()),
        }
        Ok(())
    }

    /// The user whose clients are meant, if it is one's.
    pub(super) fn user(&self) -> Option<&[u8]> {
        self.user.as_deref()
    }

    /// A client is not meant in any case.
    pub(super) fn spare(&mut self, id: u64) {
        self.not = Some(id);
    }

    /// Whether a client is meant.
    pub(super) fn means(&self, client: &Portrait) -> bool {
        let is = |wanted: &Option<Vec<u8>>, given: &[u8]| wanted.as_deref().is_none_or(|wanted| wanted == given);
        self.ids.as_ref().is_none_or(|ids| ids.contains(&client.id))
            && is(&self.addr, client.addr.as_bytes())
            && is(&self.laddr, client.laddr.as_bytes())
            && is(&self.user, &client.user)
            && self.not != Some(client.id)
            && match self.kind {
                None => true,
                Some(Kind::Normal) => !client.is_subscribed() && !client.copies,
                Some(Kind::Pubsub) => client.is_subscribed(),
                Some(Kind::Replica) => client.copies,
                Some(Kind::Nobody) => false,
            }
    }
}

fn kind(name: &[u8]) -> Result<Kind, Refused> {
    match name.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(Kind::Normal),
        b"pubsub" => Ok(Kind::Pubsub),
        b"replica" | b"slave" => Ok(Kind::Replica),
        b"master" => Ok(Kind::Nobody),
        _ => {
            // As all of Redis' errors, it stays one line and ends at a NUL.
            let shown = name.iter().take_while(|byte| **byte != 0);
            let shown = shown.map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte });
            let mut line = b"-ERR Unknown client type '".to_vec();
            line.extend(shown);
            line.extend_from_slice(b"'\r\n");
            Err(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::backend::put_request;
    use crate::resp::{RequestLimits, RequestScanner};

    fn read<T>(line: &str, read: impl FnOnce(&Args) -> T) -> T {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut frame, mut spans) = (Vec::new(), Vec::new());
        put_request(&mut frame, &words);
        let scanned = RequestScanner::default().scan(&frame, &mut spans, &RequestLimits::default());
        assert!(scanned.is_ok());
        read(&Args::new(&frame, &spans))
    }

    fn killed(line: &str) -> Result<Selection, String> {
        read(line, |args| Selection::killed(args, 7)).map_err(|line| String::from_utf8(line).unwrap())
    }

    #[test]
    fn who_kills_spares_itself_unless_it_says_otherwise() {
        let own = Portrait {
            id: 7,
            addr: "10.0.0.1:5".into(),
            ..Portrait::default()
        };
        let other = Portrait {
            id: 8,
            ..Portrait::default()
        };
        let means = |line: &str, client: &Portrait| killed(line).unwrap().means(client);
        assert!(means("CLIENT KILL 10.0.0.1:5", &own));
        assert!(!means("CLIENT KILL ADDR 10.0.0.1:5", &own));
        assert!(means("CLIENT KILL addr 10.0.0.1:5 skipme NO", &own));
        assert!(!means("CLIENT KILL ADDR 10.0.0.1:5 ID 8", &other));
        assert!(means("CLIENT KILL TYPE normal", &other));
        assert!(!means("CLIENT KILL TYPE pubsub", &other));
        assert!(!means("CLIENT KILL TYPE replica", &other));
        let copy = Portrait {
            copies: true,
            ..Portrait::default()
        };
        assert!(means("CLIENT KILL TYPE slave", &copy) && !means("CLIENT KILL TYPE normal", &copy));
    }

    #[test]
    fn arguments_that_name_nobody_are_refused_in_the_words_of_redis() {
        for (line, said) in [
            ("CLIENT KILL", "-ERR syntax error\r\n"),
            ("CLIENT KILL ID 3 ADDR", "-ERR syntax error\r\n"),
            ("CLIENT KILL NOSUCH 3", "-ERR syntax error\r\n"),
            ("CLIENT KILL SKIPME maybe", "-ERR syntax error\r\n"),
            ("CLIENT KILL ID 0", "-ERR client-id should be greater than 0\r\n"),
            ("CLIENT KILL TYPE what", "-ERR Unknown client type 'what'\r\n"),
        ] {
            assert_eq!(killed(line), Err(said.to_owned()), "{line}");
        }
        let listed = |line: &str| read(line, Selection::listed);
        assert_eq!(
            listed("CLIENT LIST ID 3 x"),
            Err(b"-ERR Invalid client ID\r\n".to_vec())
        );
        assert_eq!(listed("CLIENT LIST TYPE"), Err(SYNTAX.to_vec()));
        assert!(listed("CLIENT LIST ID 3 -4 4").unwrap().ids == Some(vec![3, 4]));
    }
}
