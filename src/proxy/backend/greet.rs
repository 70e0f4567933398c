//! Greeting a master: is it the one that topology means, and what has to be known of it before it gets commands.

use std::time::Duration;

use super::connect::{ConnectError, Login, ask, connect, put_request};
use super::target::Target;

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

/// Asks `target` within `limit` whether it is a master, and the life that topology means. An error says why not.
pub async fn greet(target: &Target, limit: Duration) -> Result<Greeting, String> {
    let silent = || format!("{} does not answer within {limit:?}", target.addr);
    tokio::time::timeout(limit, ask_all(target, limit))
        .await
        .map_err(|_| silent())?
}

async fn ask_all(target: &Target, limit: Duration) -> Result<Greeting, String> {
    let addr = &target.addr;
    let mut stream = connect(addr, &Login::default(), limit)
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Vec::new();
    put_request(&mut request, &[b"ROLE"]);
    put_request(&mut request, &[b"INFO", b"server"]);
    put_request(&mut request, &[b"INFO", b"persistence"]);
    let reply = match ask(&mut stream, &request, 3, addr).await {
        Ok(reply) => String::from_utf8_lossy(&reply).into_owned(),
        Err(ConnectError::Refused(_, line)) if line.starts_with("-NOAUTH") => return Ok(Greeting::locked()),
        Err(error) => return Err(error.to_string()),
    };
    if !reply.contains("\r\n$6\r\nmaster\r\n") {
        return Err(format!("{addr} is no master"));
    }
    if reply.contains("\r\nloading:1\r\n") {
        return Err(format!("{addr} is loading its data"));
    }
    let field = |name: &str| reply.lines().find_map(|line| line.strip_prefix(name));
    if let (Some(wanted), Some(there)) = (&target.run_id, field("run_id:"))
        && wanted.as_str() != there
    {
        return Err(format!("{addr} was started anew since it became master"));
    }
    let mut numbers = [None, None];
    for (number, name) in numbers.iter_mut().zip([&b"databases"[..], b"timeout"]) {
        let mut request = Vec::new();
        put_request(&mut request, &[b"CONFIG", b"GET", name]);
        // A user without the right to ask is no reason to serve nobody.
        if let Ok(reply) = ask(&mut stream, &request, 1, addr).await {
            let text = String::from_utf8_lossy(&reply);
            *number = text.lines().last().and_then(|line| line.parse().ok());
        }
    }
    Ok(Greeting {
        auth_required: false,
        run_id: field("run_id:").map(str::to_owned),
        version: field("redis_version:").map(str::to_owned),
        databases: numbers[0],
        timeout_s: numbers[1].filter(|seconds| *seconds > 0),
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
