//! Greeting a master: is it the one that topology means, and what has to be known of it before it gets commands.
//!
//! One write, one answer: a shard waits for it. Where there is a pass, the connection that was greeted on is kept as the
//! witness of the epoch (rule A15).

use std::time::Duration;

use tokio::net::TcpStream;

use super::connect::{connect_mute, exchange_until, put_own};
use super::target::Target;
use crate::peer;

/// The answer to a password that is right.
const TAKEN: &[u8] = b"+OK\r\n";

/// What a master says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Whether it wants a password from everyone.
    pub auth_required: bool,
    /// Which life it is in, where it tells.
    pub run_id: Option<String>,
    /// Its version, where it tells.
    pub version: Option<String>,
    /// How many databases it has, where it tells.
    pub databases: Option<u32>,
    /// Seconds after which it closes idle connections, where it does.
    pub timeout_s: Option<u32>,
}

/// Asks `target` within `limit` whether it is a master, of the epoch, and in the life that topology means. An error says
/// why not. The connection has proven it.
pub async fn greet(target: &Target, limit: Duration) -> Result<(Greeting, TcpStream), String> {
    let greeting = async {
        let mut stream = connect_mute(&target.addr, limit)
            .await
            .map_err(|error| error.to_string())?;
        let greeting = ask_all(&mut stream, target).await?;
        Ok((greeting, stream))
    };
    within(target, limit, greeting).await
}

/// The same over a connection on which nothing was said yet.
pub async fn confirm(mut stream: TcpStream, target: &Target, limit: Duration) -> Result<(Greeting, TcpStream), String> {
    let greeting = async {
        let greeting = ask_all(&mut stream, target).await?;
        Ok((greeting, stream))
    };
    within(target, limit, greeting).await
}

async fn within<T>(
    target: &Target,
    limit: Duration,
    greeting: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::time::timeout(limit, greeting)
        .await
        .map_err(|_| format!("{} does not answer within {limit:?}", target.addr))?
}

async fn ask_all(stream: &mut TcpStream, target: &Target) -> Result<Greeting, String> {
    let mut request = Vec::new();
    // As whoever a client's connection is at first.
    put_own(&mut request, &[b"PING"]);
    if let Some(pass) = &target.pass {
        put_own(&mut request, &[b"AUTH", pass.user.as_bytes(), pass.token.as_bytes()]);
    }
    let questions: [&[&[u8]]; 5] = [
        &[b"ROLE"],
        &[b"INFO", b"server"],
        &[b"INFO", b"persistence"],
        &[b"CONFIG", b"GET", b"databases"],
        &[b"CONFIG", b"GET", b"timeout"],
    ];
    for question in questions {
        put_own(&mut request, question);
    }
    let count = questions.len() + 1 + usize::from(target.pass.is_some());
    // Where the refusal of the pass is swallowed (see `log_in`) there is something else in its place, and one reply less.
    let is_refusal = |at, reply: &[u8]| at == 1 && target.pass.is_some() && reply != TAKEN;
    let replies = exchange_until(stream, &request, count, &target.addr, is_refusal)
        .await
        .map_err(|error| error.to_string())?;
    let replies: Vec<_> = replies.iter().map(|reply| String::from_utf8_lossy(reply)).collect();
    let replies: Vec<&str> = replies.iter().map(|reply| &**reply).collect();
    judge(&replies, target)
}

/// What the replies mean: to PING, to the pass if there is one, and to the questions.
fn judge(replies: &[&str], target: &Target) -> Result<Greeting, String> {
    let addr = &target.addr;
    let unexpected = || format!("{addr} does not answer like redis");
    let (ping, rest) = replies.split_first().ok_or_else(unexpected)?;
    let rest = match (&target.pass, rest) {
        (None, rest) => rest,
        (Some(pass), [said, ..]) if said.as_bytes() != TAKEN => {
            let refused = said.starts_with('-') && !said.starts_with("-NOAUTH");
            let said = if refused { said.trim_end() } else { "-WRONGPASS" };
            return Err(if peer::role_of(&pass.user).is_some() {
                format!("{addr} does not know {}: it is of another epoch", pass.user)
            } else {
                format!("{addr} refuses {}, the proxy's own user: {said}", pass.user)
            });
        }
        (Some(_), [_, rest @ ..]) => rest,
        (Some(_), []) => return Err(unexpected()),
    };
    let [role, server, persistence, databases, timeout] = rest else {
        return Err(unexpected());
    };
    let auth_required = ping.starts_with("-NOAUTH");
    if let Some(refused) = [role, server, persistence]
        .into_iter()
        .find(|reply| reply.starts_with('-'))
    {
        return if auth_required && target.pass.is_none() {
            Ok(Greeting::locked())
        } else {
            Err(format!("{addr} refuses: {}", refused.trim_end()))
        };
    }
    if !role.starts_with("*3\r\n$6\r\nmaster\r\n") {
        return Err(format!("{addr} is no master"));
    }
    if persistence.contains("\r\nloading:1\r\n") {
        return Err(format!("{addr} is loading its data"));
    }
    let field = |name: &str| server.lines().find_map(|line| line.strip_prefix(name));
    if let (Some(wanted), Some(there)) = (&target.run_id, field("run_id:"))
        && wanted.as_str() != there
    {
        return Err(format!("{addr} was started anew since it became master"));
    }
    // A user without the right to ask is no reason to serve nobody.
    let number = |reply: &str| reply.lines().last().and_then(|line| line.parse().ok());
    Ok(Greeting {
        auth_required,
        run_id: field("run_id:").map(str::to_owned),
        version: field("redis_version:").map(str::to_owned),
        databases: number(databases),
        timeout_s: number(timeout).filter(|seconds| *seconds > 0),
    })
}

impl Greeting {
    /// Of a server that says nothing without a password.
    fn locked() -> Self {
        Self {
            auth_required: true,
            run_id: None,
            version: None,
            databases: None,
            timeout_s: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::proxy::backend::Pass;
    use crate::topology::{Addr, Epoch, NodeId, RunId};

    const ROLE: &str = "*3\r\n$6\r\nmaster\r\n:9\r\n*0\r\n";
    const SERVER: &str = "$9\r\n# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\r\n";
    const IDLE: &str = "$9\r\n# Persistence\r\nloading:0\r\n\r\n";
    const NUMBER: &str = "*2\r\n$9\r\ndatabases\r\n$2\r\n16\r\n";
    const DENIED: &str = "-NOPERM no\r\n";

    fn target(with_pass: bool) -> Target {
        Target {
            node: NodeId::from("a"),
            addr: Addr::new("h", 1),
            epoch: Epoch(1),
            run_id: Some(RunId::from("abc")),
            acks: 0,
            pass: with_pass.then(|| {
                Rc::new(Pass {
                    user: "px-1".to_owned(),
                    token: String::new(),
                })
            }),
        }
    }

    #[test]
    fn a_master_of_the_epoch_in_the_right_life_is_greeted() {
        let greeting = judge(&["+PONG\r\n", ROLE, SERVER, IDLE, NUMBER, DENIED], &target(false)).unwrap();
        assert_eq!((greeting.databases, greeting.timeout_s), (Some(16), None));
        assert!(!greeting.auth_required);
        let locked = "-NOAUTH Authentication required.\r\n";
        let greeting = judge(&[locked, "+OK\r\n", ROLE, SERVER, IDLE, NUMBER, NUMBER], &target(true)).unwrap();
        assert!(greeting.auth_required && greeting.version.is_some());
        let all_locked = judge(&[locked; 6], &target(false)).unwrap();
        assert_eq!(all_locked, Greeting::locked());
    }

    #[test]
    fn who_is_something_else_is_not() {
        let refusal = |replies: &[&str], with_pass| judge(replies, &target(with_pass)).unwrap_err();
        let wrong = "-WRONGPASS invalid username-password pair\r\n";
        let strange = ["+PONG\r\n", wrong, ROLE, SERVER, IDLE, NUMBER, NUMBER];
        assert!(refusal(&strange, true).contains("another epoch"));
        let locked = "-NOAUTH Authentication required.\r\n";
        for next in [locked, ROLE] {
            let swallowed = [locked, next];
            assert!(refusal(&swallowed, true).contains("another epoch"));
        }
        let slave = "*5\r\n$5\r\nslave\r\n";
        assert!(refusal(&["+PONG\r\n", slave, SERVER, IDLE, NUMBER, NUMBER], false).contains("no master"));
        let loads = "$1\r\n#\r\nloading:1\r\n\r\n";
        assert!(refusal(&["+PONG\r\n", ROLE, SERVER, loads, NUMBER, NUMBER], false).contains("loading"));
        let other = "$1\r\n#\r\nrun_id:xyz\r\n\r\n";
        assert!(refusal(&["+PONG\r\n", ROLE, other, IDLE, NUMBER, NUMBER], false).contains("anew"));
        let busy = "-BUSY Redis is busy\r\n";
        assert!(refusal(&["+PONG\r\n", busy, busy, busy, busy, busy], false).contains("BUSY"));
        assert!(refusal(&["+PONG\r\n", ROLE], false).contains("like redis"));
    }
}
