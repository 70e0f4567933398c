//! Which commands there are: those of the data file, and what masters add to them at run time, modules and newer versions
//! (design §4).
//!
//! ```text
//! worker greets a master --Greeted--> Learner asks it COMMAND, merges --table--> every worker
//! client asks what no table has --Question--> Learner asks the last master COMMAND INFO, and COMMAND if it knows it
//! ```
//! Owns: asking each life of a master once, off the data path, and the newest table; asking once about a name that clients
//! use and no table has, since modules are loaded while a server runs. Refuses: judging commands, which the
//! table does: a new name never rides a lane, a known one only becomes stricter. Invariants: a table is immutable, and
//! kept for good, so that looking something up counts no references; there are at most [`TABLES_MAX`], and a server that
//! adds nothing makes none; what clients ask for that nobody knows costs no more than [`Strangers`] allow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::BytesFrame;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backend::{Target, ask_for, connect_mute, put_own};
use super::strangers::{Strangers, UNASKED_MS, UNKNOWN_MS};
use crate::clock;
use crate::command::Table;
use crate::topology::Addr;

/// Tables that a proxy makes in its life; the commands of later servers stay unknown.
const TABLES_MAX: usize = 32;
/// Greeted masters that nobody has looked at yet; one too many is looked at when it is greeted again.
const GREETED_MAX: usize = 64;
/// Names that clients wait to be told about; of one too many is said that nobody knows it.
const QUESTIONS_MAX: usize = 64;
/// Lives that are remembered as asked.
const ASKED_MAX: usize = 256;
/// How long a server may take to connect, and to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a reply to COMMAND may be, in bytes; that of Redis 8 has 200 KiB.
const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How often a server is asked that does not answer, and the pause between.
const ATTEMPTS: u32 = 3;
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Somebody asked for a command that no table has; `answered` is dropped or told once all is known that will be.
#[derive(Debug)]
struct Question {
    name: Box<[u8]>,
    answered: oneshot::Sender<()>,
}

/// A master that serves: where, in which life, and how to log in.
#[derive(Debug)]
struct Greeted {
    addr: Addr,
    life: String,
    login: Option<(String, String)>,
}

/// The newest table, and the way to make it newer; clones are the same one.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    tables: watch::Receiver<&'static Table>,
    greeted: mpsc::Sender<Greeted>,
    questions: mpsc::Sender<Question>,
    strangers: Arc<Mutex<Strangers>>,
}

/// The control thread's part.
#[derive(Debug)]
pub struct Learner {
    tables: watch::Sender<&'static Table>,
    greeted: mpsc::Receiver<Greeted>,
    questions: mpsc::Receiver<Question>,
    strangers: Arc<Mutex<Strangers>>,
    /// The master that was greeted last.
    last: Option<Greeted>,
    made: usize,
    /// The oldest first.
    asked: VecDeque<String>,
}

/// Begins with the commands of the data file.
pub fn start() -> (Vocabulary, Learner) {
    let (sender, tables) = watch::channel(Table::builtin());
    let (greeted, told) = mpsc::channel(GREETED_MAX);
    let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
    let strangers = Arc::<Mutex<Strangers>>::default();
    let learner = Learner {
        tables: sender,
        greeted: told,
        questions: asked,
        strangers: strangers.clone(),
        last: None,
        made: 0,
        asked: VecDeque::new(),
    };
    let vocabulary = Vocabulary {
        tables,
        greeted,
        questions,
        strangers,
    };
    (vocabulary, learner)
}

fn known(strangers: &Mutex<Strangers>) -> MutexGuard<'_, Strangers> {
    strangers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vocabulary {
    /// The newest table, and each that comes.
    pub fn tables(&self) -> watch::Receiver<&'static Table> {
        self.tables.clone()
    }

    /// A master was greeted, in this life.
    pub fn greeted(&self, target: &Target, life: &str) {
        let greeted = Greeted {
            addr: target.addr.clone(),
            life: life.to_owned(),
            login: target.pass.as_ref().map(|pass| (pass.user.clone(), pass.token.clone())),
        };
        if self.greeted.try_send(greeted).is_err() {
            debug!(master = %target.addr, "too many masters at once to ask this one for its commands");
        }
    }

    /// Has the master asked for a command that no table has. `None`: it was asked before, or there are too many questions,
    /// and the name is to be refused; else what ends once the table has the command, if it ever will.
    pub fn ask_about(&self, name: &[u8]) -> Option<impl Future<Output = ()> + use<>> {
        if !known(&self.strangers).may_ask(name, clock::monotonic_ms()) {
            return None;
        }
        let (answered, answer) = oneshot::channel();
        let name = name.into();
        self.questions.try_send(Question { name, answered }).ok()?;
        Some(async move {
            // Nobody is left to answer if the proxy ends.
            let _ = answer.await;
        })
    }
}

impl Learner {
    /// Asks each life of a master once for its commands, and answers questions, until `stop`.
    pub async fn learn(mut self, stop: &CancellationToken) {
        loop {
            let work = tokio::select! {
                () = stop.cancelled() => return,
                Some(greeted) = self.greeted.recv() => Work::Greeted(greeted),
                Some(question) = self.questions.recv() => Work::Question(question),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.see_to(work) => {}
            }
        }
    }

    async fn see_to(&mut self, work: Work) {
        match work {
            Work::Greeted(greeted) => {
                let (greeted, asked) = (self.last.insert(greeted), &self.asked);
                if asked.contains(&greeted.life) {
                    return;
                }
                match ask_until_answered(greeted).await {
                    Ok(reply) => self.take(&reply),
                    Err(reason) => info!(master = %greeted.addr, "its commands are not known: {reason}"),
                }
            }
            Work::Question(question) => {
                self.find_out(&question.name).await;
                // Who asked may have left.
                let _ = question.answered.send(());
            }
        }
    }

    /// Asks the last master about a name, unless that was done while the question waited. After it the name is in the table
    /// or among the strangers.
    async fn find_out(&mut self, name: &[u8]) {
        if self.has(name) || known(&self.strangers).has(name, clock::monotonic_ms()) {
            return;
        }
        let found = match &self.last {
            Some(master) => look_up(master, name).await,
            None => Err("there is no master".to_owned()),
        };
        let refused_ms = match found {
            Ok(Some(reply)) => {
                self.take(&reply);
                UNKNOWN_MS
            }
            Ok(None) => UNKNOWN_MS,
            Err(reason) => {
                debug!(name = %name.escape_ascii(), "no master can be asked about a command: {reason}");
                UNASKED_MS
            }
        };
        if !self.has(name) {
            known(&self.strangers).add(name, clock::monotonic_ms() + refused_ms);
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        let name = std::str::from_utf8(name).map(str::to_ascii_lowercase);
        name.is_ok_and(|name| self.tables.borrow().named(&name).is_some())
    }

    /// Takes in the commands of the last master.
    fn take(&mut self, reply: &BytesFrame) {
        let Some(from) = &self.last else { return };
        if !self.asked.contains(&from.life) {
            if self.asked.len() >= ASKED_MAX {
                self.asked.pop_front();
            }
            self.asked.push_back(from.life.clone());
        }
        let known = *self.tables.borrow();
        let merged = match known.merged_with(reply) {
            Ok(merged) => merged,
            Err(error) => return warn!(master = %from.addr, "its commands are not learnt: {error}"),
        };
        if merged.is_same(known) {
            return;
        }
        if self.made >= TABLES_MAX {
            return warn!(master = %from.addr, "its commands are not learnt: {TABLES_MAX} tables were made before");
        }
        self.made += 1;
        let new = merged.iter().len() - known.iter().len();
        info!(master = %from.addr, new, "commands are learnt");
        // Few, bounded, and shared by all workers for good.
        self.tables.send_replace(Box::leak(Box::new(merged)));
    }
}

/// What there is to do.
enum Work {
    Greeted(Greeted),
    Question(Question),
}

/// All commands of a server, if it knows this one: where one is new, there are others.
async fn look_up(server: &Greeted, name: &[u8]) -> Result<Option<BytesFrame>, String> {
    let ask = async |words: &[&[u8]]| {
        let reply = timeout(ANSWER_MAX, ask_once(server, words)).await;
        reply.map_err(|_| format!("no answer within {ANSWER_MAX:?}"))?
    };
    match ask(&[b"COMMAND", b"INFO", name]).await? {
        BytesFrame::Array(found) if matches!(found.as_slice(), [BytesFrame::Array(_)]) => {
            ask(&[b"COMMAND"]).await.map(Some)
        }
        _ => Ok(None),
    }
}

async fn ask_until_answered(server: &Greeted) -> Result<BytesFrame, String> {
    let mut attempt = 1;
    loop {
        match timeout(ANSWER_MAX, ask_once(server, &[b"COMMAND"])).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(reason)) if attempt == ATTEMPTS => return Err(reason),
            Err(_) if attempt == ATTEMPTS => return Err(format!("no answer within {ANSWER_MAX:?}")),
            Ok(Err(_)) | Err(_) => attempt += 1,
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn ask_once(server: &Greeted, words: &[&[u8]]) -> Result<BytesFrame, String> {
    let mut stream = connect_mute(&server.addr, ANSWER_MAX)
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Vec::new();
    if let Some((user, password)) = &server.login {
        put_own(&mut request, &[b"AUTH", user.as_bytes(), password.as_bytes()]);
    }
    put_own(&mut request, words);
    let count = 1 + u32::from(server.login.is_some());
    let replies = ask_for(&mut stream, &request, count, &server.addr, REPLY_BYTES_MAX)
        .await
        .map_err(|error| error.to_string())?;
    let mut replies = Bytes::from(replies);
    let mut last = Err("it answers nothing".to_owned());
    for _ in 0..count {
        let (frame, used) = decode_bytes(&replies)
            .map_err(|error| error.to_string())?
            .ok_or("its reply is not whole")?;
        replies = replies.slice(used..);
        last = Ok(frame);
    }
    last
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::command::Class;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A server that knows these commands, each a read of one key; returns how often it was asked.
    async fn serve(listener: TcpListener, names: &[&str], times: usize) {
        for _ in 0..times {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].ends_with(b"$7\r\ncOMMAND\r\n"));
            let mut reply = String::new();
            if request.starts_with(b"*3\r\n$4\r\naUTH") {
                reply += "+OK\r\n";
            }
            reply += &format!("*{}\r\n", names.len());
            for name in names {
                let len = name.len();
                reply += &format!("*6\r\n${len}\r\n{name}\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n");
            }
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    }

    fn greeted(addr: &Addr, life: &str) -> Greeted {
        Greeted {
            addr: addr.clone(),
            life: life.to_owned(),
            login: Some(("px-1".to_owned(), "token".to_owned())),
        }
    }

    #[tokio::test]
    async fn new_names_are_learnt_once_from_each_life_and_never_ride_lanes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
        let server = tokio::spawn(serve(listener, &["get", "mod.get"], 2));
        let (vocabulary, learner) = start();
        let stop = CancellationToken::new();
        let ends = stop.clone();
        let learning = tokio::spawn(async move { learner.learn(&ends).await });
        let mut tables = vocabulary.tables();
        for life in ["one", "one", "two"] {
            vocabulary.greeted.send(greeted(&addr, life)).await.unwrap();
        }
        let news = tables.wait_for(|table| table.named("mod.get").is_some());
        let table = *timeout(LIMIT, news).await.unwrap().unwrap();
        let learnt = table.named("mod.get").unwrap();
        assert_eq!((learnt.class, learnt.lane), (Class::Read, false));
        assert!(table.named("get").unwrap().lane);
        timeout(LIMIT, server).await.unwrap().unwrap();
        stop.cancel();
        learning.await.unwrap();
        assert!(std::ptr::eq(*tables.borrow(), table), "the second life adds nothing");
    }
}
