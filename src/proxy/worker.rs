//! A worker: one thread that owns its clients and its lanes. Nothing of it is shared; no lock, no channel and no
//! allocation per command on its path.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::backend::{ConnectError, Lane, LaneEnd, Login, ask, connect, put_request};
use super::client::{CloseReason, Session, sort_out};
use super::settings::Settings;
use crate::clock;
use crate::command::{Lookup, Table};
use crate::resp::{RequestLimits, RequestScanner, Span};
use crate::topology::Addr;

/// Bytes read at once; one buffer for all of a worker's sockets.
const SCRATCH_BYTES: usize = 64 * 1024;
/// How long a client may keep a shared lane from reading.
const SLOW_READER: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LAST: Duration = Duration::from_millis(50);

/// One worker's state.
pub struct Worker {
    settings: Arc<Settings>,
    commands: Arc<Table>,
    master_up: Cell<bool>,
    auth_required: Cell<bool>,
    redis_version: RefCell<String>,
    lanes: RefCell<HashMap<Login, Rc<Lane>>>,
    lane_number: Cell<u32>,
    dirty: RefCell<Vec<Rc<Session>>>,
    holding: RefCell<Vec<Rc<Session>>>,
    scratch: RefCell<Box<[u8]>>,
    spans: RefCell<Vec<Span>>,
}

impl Worker {
    /// A worker that looks for its master at once; call it on the thread that keeps it.
    pub fn new(settings: Arc<Settings>) -> Rc<Self> {
        let worker = Rc::new(Self {
            settings,
            commands: Table::builtin(),
            master_up: Cell::new(true),
            auth_required: Cell::new(false),
            redis_version: RefCell::new("7.0.0".to_owned()),
            lanes: RefCell::default(),
            lane_number: Cell::new(0),
            dirty: RefCell::default(),
            holding: RefCell::default(),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            spans: RefCell::default(),
        });
        worker.master_lost();
        worker
    }

    /// The command table.
    pub fn commands(&self) -> &Arc<Table> {
        &self.commands
    }

    /// What a client may send.
    pub fn request_limits(&self) -> RequestLimits {
        RequestLimits::default()
    }

    /// How long opening a backend connection may take.
    pub fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout
    }

    /// Whether Redis wants a password from everyone.
    pub fn auth_required(&self) -> bool {
        self.auth_required.get()
    }

    /// The version of the master's Redis.
    pub fn redis_version(&self) -> String {
        self.redis_version.borrow().clone()
    }

    /// The read buffer.
    pub fn scratch(&self) -> RefMut<'_, [u8]> {
        RefMut::map(self.scratch.borrow_mut(), |scratch| &mut scratch[..])
    }

    /// A scanner for bytes that follow nothing unfinished.
    pub fn scanner(&self) -> (RequestScanner, Vec<Span>) {
        (RequestScanner::default(), std::mem::take(&mut self.spans.borrow_mut()))
    }

    /// Takes the spans back for the next one.
    pub fn put_scanner(&self, spans: Vec<Span>) {
        // A request of many arguments leaves a buffer that nobody should keep.
        if spans.capacity() <= 4096 {
            *self.spans.borrow_mut() = spans;
        }
    }

    /// Remembers a session whose replies are to be written after this read pass.
    pub fn add_dirty(&self, session: Rc<Session>) {
        self.dirty.borrow_mut().push(session);
    }

    /// Gives each session with new replies one write.
    pub fn flush_dirty(&self) {
        let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for session in dirty.drain(..) {
            session.flush();
        }
        *self.dirty.borrow_mut() = dirty;
    }

    /// Wakes `session` when there is a master again, or its time is up.
    pub fn hold(&self, session: Rc<Session>) {
        self.holding.borrow_mut().push(session);
    }

    /// The shared lane of a login, opened if need be; `None` while there is no master.
    pub fn lane(self: &Rc<Self>, login: &Login) -> Option<Rc<Lane>> {
        if !self.master_up.get() {
            return None;
        }
        if let Some(lane) = self.lanes.borrow().get(login) {
            return Some(lane.clone());
        }
        let lane = self.open(login);
        self.lanes.borrow_mut().insert(login.clone(), lane.clone());
        Some(lane)
    }

    /// A connection for one session alone; `None` while there is no master.
    pub fn open_private(self: &Rc<Self>, login: &Login) -> Option<Rc<Lane>> {
        self.master_up.get().then(|| self.open(login))
    }

    /// Where the master is; `None` while there is none.
    pub fn master(&self) -> Option<Addr> {
        self.master_up.get().then(|| self.settings.master.clone())
    }

    /// How long a command waits for a master, in milliseconds.
    pub fn hold_max_ms(&self) -> u64 {
        self.settings.hold_max_ms
    }

    /// The master could not be reached: it is looked for, and who waits for it waits.
    pub fn suspect_master(self: &Rc<Self>) {
        self.master_lost();
    }

    /// Closes a client that does not read while others wait behind its reply (rule B2).
    pub fn watch_slow_reader(&self, session: &Rc<Session>) {
        let session = session.clone();
        let before = session.written();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(SLOW_READER).await;
            if session.written() == before && session.unwritten() > 0 {
                session.close(CloseReason::SlowReader);
            }
        });
    }

    /// Asks the master one thing on a connection of its own; an error is the line to show.
    pub async fn ask_master(&self, request: &[u8]) -> Result<(), String> {
        let asking = async {
            let mut stream = connect(&self.settings.master, &Login::default(), self.connect_timeout()).await?;
            ask(&mut stream, request, 1, &self.settings.master).await
        };
        match tokio::time::timeout(self.connect_timeout(), asking).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ConnectError::Refused(_, line))) => Err(line),
            Ok(Err(_)) | Err(_) => Err("-MASTERDOWN the master cannot be asked: not authenticated".to_owned()),
        }
    }

    fn open(self: &Rc<Self>, login: &Login) -> Rc<Lane> {
        self.lane_number.set(self.lane_number.get().wrapping_add(1));
        let lane = Lane::new(self.lane_number.get(), login.clone());
        let (worker, running) = (self.clone(), lane.clone());
        tokio::task::spawn_local(async move {
            let end = running.run(&worker, &worker.settings.master).await;
            worker.lane_ended(&running, &end);
        });
        lane
    }

    fn lane_ended(self: &Rc<Self>, lane: &Rc<Lane>, end: &LaneEnd) {
        self.lanes.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, lane));
        let wreck = lane.salvage();
        match end {
            LaneEnd::Released => debug!(lane = lane.number, "lane closed"),
            LaneEnd::Poisoned => warn!(lane = lane.number, "lane closed: {end}"),
            LaneEnd::Connect(_) | LaneEnd::Eof | LaneEnd::Network(_) => {
                info!(lane = lane.number, "lane lost: {end}");
                self.master_lost();
            }
        }
        if wreck.inside_reply
            && let Some(entry) = wreck.entries.front()
        {
            entry.session.close(CloseReason::ReplyCutOff);
        }
        let is_write = |args: &crate::resp::Args| match self.commands.lookup(args) {
            Lookup::Known(command) => command.is_write(),
            Lookup::Unknown | Lookup::UnknownSubcommand(_) => true,
        };
        for (session, lost) in sort_out(wreck, is_write) {
            session.lane_lost(lane, lost);
        }
        self.flush_dirty();
    }

    fn master_lost(self: &Rc<Self>) {
        if self.master_up.replace(false) {
            let worker = self.clone();
            tokio::task::spawn_local(async move { worker.find_master().await });
        }
    }

    async fn find_master(self: Rc<Self>) {
        let (since_ms, mut wait) = (clock::monotonic_ms(), RETRY_FIRST);
        let mut told = None;
        loop {
            match self.greet_master().await {
                Ok(()) => break,
                Err(reason) if told.as_ref() != Some(&reason) => {
                    warn!("no master: {reason}; trying again until there is one");
                    told = Some(reason);
                }
                Err(_) => {}
            }
            self.expire_holds();
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LAST);
        }
        info!(master = %self.settings.master, after_ms = clock::monotonic_ms() - since_ms, "the master serves");
        self.master_up.set(true);
        for session in std::mem::take(&mut *self.holding.borrow_mut()) {
            session.wake();
        }
    }

    fn expire_holds(&self) {
        let before_ms = clock::monotonic_ms().saturating_sub(self.settings.hold_max_ms);
        let mut holding = std::mem::take(&mut *self.holding.borrow_mut());
        holding.retain(|session| !session.is_closed() && !session.expire_hold(before_ms));
        self.holding.borrow_mut().extend(holding);
        self.flush_dirty();
    }

    /// Whether the master is there and is one.
    async fn greet_master(&self) -> Result<(), String> {
        let master = &self.settings.master;
        let mut request = Vec::new();
        put_request(&mut request, &[b"ROLE"]);
        put_request(&mut request, &[b"INFO", b"server"]);
        let limit = self.connect_timeout();
        let asking = async {
            let mut stream = connect(master, &Login::default(), limit).await?;
            ask(&mut stream, &request, 2, master).await
        };
        match tokio::time::timeout(limit, asking).await {
            Err(_) => Err(format!("{master} does not answer within {limit:?}")),
            Ok(Err(ConnectError::Refused(_, line))) if line.starts_with("-NOAUTH") => {
                self.auth_required.set(true);
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(reply)) => {
                let reply = String::from_utf8_lossy(&reply);
                if !reply.contains("\r\n$6\r\nmaster\r\n") {
                    return Err(format!("{master} is no master"));
                }
                if let Some(version) = reply.lines().find_map(|line| line.strip_prefix("redis_version:")) {
                    version.clone_into(&mut self.redis_version.borrow_mut());
                }
                self.auth_required.set(false);
                Ok(())
            }
        }
    }
}
