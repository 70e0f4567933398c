//! Finding the master among nodes by asking them for their ROLE.
//!
//! Owns: the question, and the judgement of the answers (pure). Refuses: electing: of several masters none is taken.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use redis_protocol::codec::Resp2;
use redis_protocol::resp2::types::BytesFrame;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use crate::proxy::shared::ControlLogin;
use crate::resp::marked;
use crate::topology::Addr;

/// How long a node may take to say its role.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// What a node says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Replica,
    /// Nothing, or an error, in its words.
    Unknown(String),
}

/// Who is the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// This one.
    Master(Addr),
    /// Nobody says so.
    Nobody,
    /// More than one says so.
    Several(Vec<Addr>),
}

/// One control connection, opened when needed.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) addr: Addr,
    login: ControlLogin,
    wire: Option<Framed<TcpStream, Resp2>>,
}

impl Asker {
    pub(super) fn new(addr: Addr, login: ControlLogin) -> Self {
        Self {
            addr,
            login,
            wire: None,
        }
    }

    pub(super) async fn ask(&mut self) -> Role {
        match timeout(ANSWER_LIMIT, self.exchange()).await {
            Ok(Ok(role)) => role,
            Ok(Err(why)) => Role::Unknown(why),
            Err(_) => Role::Unknown("no answer in time".to_owned()),
        }
    }

    /// Leaves the connection open only if the answer came, so that no late one answers a later question.
    async fn exchange(&mut self) -> Result<Role, String> {
        let fresh = self.wire.is_none();
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => self.connect().await?,
        };
        let mut answer = talk(&mut wire, &["ROLE"]).await;
        if answer.is_err() && !fresh {
            wire = self.connect().await?;
            answer = talk(&mut wire, &["ROLE"]).await;
        }
        let answer = answer?;
        self.wire = Some(wire);
        Ok(role(&answer))
    }

    async fn connect(&self) -> Result<Framed<TcpStream, Resp2>, String> {
        let stream = TcpStream::connect((self.addr.host(), self.addr.port())).await;
        let mut wire = Framed::new(stream.map_err(|error| error.to_string())?, Resp2::default());
        if let Some(password) = &self.login.password {
            let user = self.login.user.as_deref().unwrap_or("default");
            if let BytesFrame::Error(line) = talk(&mut wire, &["AUTH", user, password]).await? {
                return Err(line.to_string());
            }
        }
        Ok(wire)
    }
}

async fn talk(wire: &mut Framed<TcpStream, Resp2>, words: &[&str]) -> Result<BytesFrame, String> {
    let words = words.iter().enumerate().map(|(at, word)| match at {
        0 => marked(word.as_bytes()).into(),
        _ => Bytes::copy_from_slice(word.as_bytes()),
    });
    let words = words.map(BytesFrame::BulkString);
    wire.send(BytesFrame::Array(words.collect()))
        .await
        .map_err(|error| error.to_string())?;
    let answer = wire.next().await.ok_or("closed by redis")?;
    answer.map_err(|error| error.to_string())
}

fn role(answer: &BytesFrame) -> Role {
    match answer {
        BytesFrame::Error(line) => Role::Unknown(line.to_string()),
        BytesFrame::Array(parts) => match parts.first() {
            Some(BytesFrame::BulkString(name)) if name.as_ref() == b"master" => Role::Master,
            Some(BytesFrame::BulkString(name)) if name.as_ref() == b"slave" => Role::Replica,
            _ => Role::Unknown("it is no data node".to_owned()),
        },
        BytesFrame::SimpleString(_) | BytesFrame::BulkString(_) | BytesFrame::Integer(_) | BytesFrame::Null => {
            Role::Unknown("it does not answer like redis".to_owned())
        }
    }
}

/// Judges what was heard. `known` is the master so far: while it is silent and nobody else claims to be one, it stays.
pub(super) fn judge(known: Option<&Addr>, heard: &[(Addr, Role)]) -> Finding {
    let masters: Vec<Addr> = heard
        .iter()
        .filter(|(_, role)| *role == Role::Master)
        .map(|(addr, _)| addr.clone())
        .collect();
    match masters.as_slice() {
        [master] => Finding::Master(master.clone()),
        [] => {
            let silent = |addr: &&Addr| {
                let heard = heard.iter().find(|(heard, _)| heard == *addr);
                heard.is_some_and(|(_, role)| matches!(role, Role::Unknown(_)))
            };
            known
                .filter(silent)
                .map_or(Finding::Nobody, |addr| Finding::Master(addr.clone()))
        }
        _ => Finding::Several(masters),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_masters_none_is_taken_and_a_silent_one_stays() {
        let (a, b) = (Addr::new("a", 1), Addr::new("b", 1));
        let heard = |first: Role, second: Role| [(a.clone(), first), (b.clone(), second)];
        let silent = || Role::Unknown("no answer in time".to_owned());
        let master = |addr: &Addr| Finding::Master(addr.clone());
        assert_eq!(judge(None, &heard(Role::Master, Role::Replica)), master(&a));
        assert_eq!(judge(Some(&a), &heard(silent(), Role::Replica)), master(&a));
        assert_eq!(judge(Some(&a), &heard(silent(), Role::Master)), master(&b));
        assert_eq!(judge(Some(&a), &heard(Role::Replica, Role::Replica)), Finding::Nobody);
        assert_eq!(judge(None, &heard(silent(), silent())), Finding::Nobody);
        let both = Finding::Several(vec![a.clone(), b.clone()]);
        assert_eq!(judge(Some(&a), &heard(Role::Master, Role::Master)), both);
        let gone = Addr::new("c", 1);
        assert_eq!(judge(Some(&gone), &heard(Role::Replica, silent())), Finding::Nobody);
    }

    #[test]
    fn what_is_no_role_is_unknown() {
        for answer in [
            BytesFrame::Null,
            BytesFrame::Integer(1),
            BytesFrame::Array(Vec::new()),
            BytesFrame::Array(vec![BytesFrame::BulkString(Bytes::from_static(b"sentinel"))]),
            BytesFrame::Error("NOAUTH Authentication required.".into()),
        ] {
            assert!(matches!(role(&answer), Role::Unknown(_)), "{answer:?}");
        }
    }
}
