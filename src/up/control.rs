//! `DIR/up.sock`: what is asked of a running `up`. One line of JSON each way: `{"start":"s1-a"}`, then `{"ok":true}` or
//! `{"error":"why not"}`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::readiness;
use crate::clock;
use crate::operate::SOCKET_FILE;
use crate::topology::{Addr, NodeId};

/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
/// The longest line, in bytes.
const LINE_BYTES_MAX: u64 = 16 * 1024;
/// How long a client may take to say what it wants.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long a node may take until it is linked.
const LINKED_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether it is.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    start: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(bool),
    Error(String),
}

/// Somebody asks that a node be started.
#[derive(Debug)]
pub struct Request {
    /// Which node.
    pub node: String,
    reply: oneshot::Sender<Answer>,
}

impl Request {
    /// Answers that it cannot be done, and why.
    pub fn refuse(self, why: String) {
        // Who asked may have left.
        let _ = self.reply.send(Answer::Error(why));
    }
}

/// The socket of a running `up`.
#[derive(Debug)]
pub struct Control {
    /// What is asked.
    pub requests: mpsc::Receiver<Request>,
    /// Who waits for which node, to be told when a process of it ends.
    waiting: Vec<(usize, watch::Sender<Option<String>>)>,
}

impl Control {
    /// Listens in `dir`.
    pub fn listen(dir: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(dir.join(SOCKET_FILE))?;
        let (sender, requests) = mpsc::channel(CONNECTIONS_MAX);
        tokio::spawn(accept(listener, sender));
        Ok(Self {
            requests,
            waiting: Vec::new(),
        })
    }

    /// Answers `request` when the node's agent, which listens at `addr`, says that it is linked.
    pub fn wait_until_linked(&mut self, node: usize, request: Request, addr: Addr, secret: Arc<[u8]>) {
        let (tell, mut told) = watch::channel(None);
        self.waiting.retain(|(_, waiting)| !waiting.is_closed());
        self.waiting.push((node, tell));
        tokio::spawn(async move {
            let answer = tokio::select! {
                answer = linked(&addr, &secret) => answer,
                Ok(failed) = told.wait_for(Option::is_some) => Answer::Error(failed.clone().unwrap_or_default()),
            };
            // Who asked may have left.
            let _ = request.reply.send(answer);
        });
    }

    /// A process of `node` ended: whoever waits for it waits in vain.
    pub fn failed(&self, node: usize, why: &str) {
        for (_, waiting) in self.waiting.iter().filter(|(waited, _)| *waited == node) {
            waiting.send_replace(Some(why.to_owned()));
        }
    }
}

async fn linked(addr: &Addr, secret: &[u8]) -> Answer {
    let deadline = clock::now() + LINKED_LIMIT;
    loop {
        match readiness::one_linked(addr, secret).await {
            Ok(()) => return Answer::Ok(true),
            Err(what) if clock::now() >= deadline => {
                return Answer::Error(format!("not linked within {} s: {what}", LINKED_LIMIT.as_secs()));
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(POLL).await;
            continue;
        };
        let requests = requests.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &requests).await {
                tracing::debug!(%error, "a request to up was broken off");
            }
            drop(seat);
        });
    }
}

async fn serve(stream: UnixStream, requests: &mpsc::Sender<Request>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LINE_BYTES_MAX));
    timeout(ASK_LIMIT, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Line>(&line) {
        Err(error) => Answer::Error(format!("not understood: {error}")),
        Ok(Line { start: node }) => {
            let (reply, answer) = oneshot::channel();
            let taken = requests.send(Request { node, reply }).await.is_ok();
            match (taken, answer.await) {
                (true, Ok(answer)) => answer,
                _ => Answer::Error("'pointsman up' is ending".to_owned()),
            }
        }
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

/// Asks the `up` that runs in `dir` to start what does not run of `node`; returns when it is linked, or why it is not.
pub async fn up_node(dir: &Path, node: &NodeId) -> Result<(), String> {
    let path = dir.join(SOCKET_FILE);
    let absent = |error: io::Error| {
        let path = path.display();
        format!("no 'pointsman up' answers at {path} ({error}): start it, or name its folder with --dir")
    };
    let mut stream = UnixStream::connect(&path).await.map_err(absent)?;
    let lost = |error: io::Error| format!("'pointsman up' did not answer: {error}");
    let line = Line {
        start: node.to_string(),
    };
    let mut text = serde_json::to_vec(&line).map_err(|error| lost(error.into()))?;
    text.push(b'\n');
    stream.write_all(&text).await.map_err(lost)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(LINE_BYTES_MAX));
    let reading = timeout(LINKED_LIMIT + ASK_LIMIT, reader.read_line(&mut answer)).await;
    reading
        .map_err(|late| lost(late.into()))
        .and_then(|read| read.map_err(lost))?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(_)) => Ok(()),
        Ok(Answer::Error(why)) => Err(why),
        Err(_) => Err("'pointsman up' ended without an answer".to_owned()),
    }
}
