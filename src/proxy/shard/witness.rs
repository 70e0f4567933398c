//! The witness: one connection of each worker to a master that is logged in with the epoch's pass and nothing else
//! (rule A15). Lanes act for their sessions' users, so the fence of another epoch does not end them; it ends this one.

use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::Shard;
use crate::proxy::backend::{Target, put_request};
use crate::proxy::worker::Worker;

/// How often it asks something, so that nobody takes it for idle: the shortest `timeout` of Redis is a second, and may be
/// set at any time.
const ASK_EVERY: Duration = Duration::from_millis(400);

/// Ends with what holds it.
#[derive(Debug)]
pub(super) struct Witness {
    stream: Rc<TcpStream>,
    watching: AbortHandle,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Witness {
    /// Watches the connection on which `target` was greeted, and tells the shard when it testifies no more.
    pub fn keep(shard: &Rc<Shard>, worker: &Rc<Worker>, target: &Rc<Target>, stream: TcpStream) -> Self {
        let (shard, worker, target) = (shard.clone(), worker.clone(), target.clone());
        let stream = Rc::new(stream);
        let watched = stream.clone();
        let watching = tokio::task::spawn_local(async move {
            let why = watch(&watched).await;
            shard.witness_lost(&worker, &target, why);
        });
        Self {
            stream,
            watching: watching.abort_handle(),
        }
    }

    /// Whether its end has come already, although nobody has looked yet: that tells a fenced master from a silent one.
    pub fn has_ended(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&*self.stream).peek(&mut byte) {
            Ok(length) => length == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Lives until the connection says that the server is of the epoch no more, or ends.
async fn watch(stream: &TcpStream) -> &'static str {
    let mut request = Vec::new();
    put_request(&mut request, &[b"ROLE"]);
    let mut said = [0; 1024];
    loop {
        tokio::select! {
            _ = stream.readable() => match stream.try_read(&mut said) {
                Ok(0) => return "redis closed the connection",
                Ok(length) if testifies(&said[..length]) => {}
                Ok(_) => return "the server is of another epoch",
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return "the connection failed",
            },
            () = sleep(ASK_EVERY) => match stream.try_write(&request) {
                // One that takes nothing is silent, which is for others to judge.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return "the connection failed",
            }
        }
    }
}

/// Whether what a server says to ROLE speaks for it. One that is busy may say so.
fn testifies(said: &[u8]) -> bool {
    let against = [&b"-NOAUTH"[..], b"-NOPERM", b"*5\r\n$5\r\nslave\r\n"];
    !against.iter().any(|words| said.starts_with(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_testifies_and_a_replica_or_a_stranger_does_not() {
        assert!(testifies(b"*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n"));
        // Its replica announces itself by this name.
        assert!(testifies(
            b"*3\r\n$6\r\nmaster\r\n:1\r\n*1\r\n*3\r\n$5\r\nslave\r\n$4\r\n6379\r\n$1\r\n1\r\n"
        ));
        assert!(testifies(b"-BUSY Redis is busy\r\n"));
        assert!(!testifies(b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n"));
        assert!(!testifies(b"-NOAUTH Authentication required.\r\n"));
    }
}
