//! The witness: one connection of each worker to a master that is logged in with the epoch's pass and nothing else
//! (rule A15). Lanes act for their sessions' users, so the fence of another epoch does not end them; it ends this one.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::Shard;
use crate::proxy::backend::{Target, put_request};
use crate::proxy::worker::Worker;

/// How often it asks something, so that nobody takes it for idle.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Ends with what holds it.
#[derive(Debug)]
pub(super) struct Witness(AbortHandle);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Witness {
    /// Watches the connection on which `target` was greeted, and tells the shard when it testifies no more. `timeout_s` is
    /// after how long the server closes idle connections.
    pub fn keep(
        shard: &Rc<Shard>,
        worker: &Rc<Worker>,
        target: &Rc<Target>,
        stream: TcpStream,
        timeout_s: Option<u32>,
    ) -> Self {
        let every = timeout_s.map_or(ASK_EVERY, |seconds| {
            ASK_EVERY.min(Duration::from_millis(u64::from(seconds) * 500))
        });
        let (shard, worker, target) = (shard.clone(), worker.clone(), target.clone());
        let watching = tokio::task::spawn_local(async move {
            let why = watch(stream, every).await;
            shard.witness_lost(&worker, &target, why);
        });
        Self(watching.abort_handle())
    }
}

/// Lives until the connection says that the server is of the epoch no more, or ends.
async fn watch(mut stream: TcpStream, every: Duration) -> &'static str {
    let mut request = Vec::new();
    put_request(&mut request, &[b"ROLE"]);
    let mut said = [0; 1024];
    loop {
        tokio::select! {
            read = stream.read(&mut said) => match read {
                Ok(0) => return "redis closed the connection",
                Err(_) => return "the connection failed",
                Ok(length) if testifies(&said[..length]) => {}
                Ok(_) => return "the server is of another epoch",
            },
            () = sleep(every) => {
                if stream.write_all(&request).await.is_err() {
                    return "the connection failed";
                }
            }
        }
    }
}

/// Whether what a server says to ROLE speaks for it. One that is busy may say so.
fn testifies(said: &[u8]) -> bool {
    let demoted = b"\r\n$5\r\nslave\r\n";
    !said.starts_with(b"-NOAUTH")
        && !said.starts_with(b"-NOPERM")
        && !said.windows(demoted.len()).any(|part| part == demoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_testifies_and_a_replica_or_a_stranger_does_not() {
        assert!(testifies(b"*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n"));
        assert!(testifies(b"-BUSY Redis is busy\r\n"));
        assert!(!testifies(b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n"));
        assert!(!testifies(b"-NOAUTH Authentication required.\r\n"));
    }
}
