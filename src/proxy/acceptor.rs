//! Listening, accepting, and dealing clients to workers.
//!
//! One listener and one acceptor: the kernel's own spreading over several listeners is lopsided for few clients and
//! loses connections when one of them closes (rule C3).
//!
//! Clients whose listeners ask for different numbers of acknowledgements have different workers, because lanes are shared by
//! all of a worker's clients: nobody waits for what only another one asked for.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::client::Session;
use super::handover::{Desk, Order, Teller, desk};
use super::liaison::{self, Heed, RELAYS_MAX};
use super::roll::{Question, Roll};
use super::scripts;
use super::settings::Settings;
use super::shared::{ControlLogin, Replicas, SamplerSettings, sample};
use super::source::{self, Earshot, SourceError};
use super::view::View;
use super::vocabulary;
use super::worker::Worker;
use crate::peer::Relayed;
use crate::route::{Fences, ReadPolicy};
use crate::topology::{Addr, Snapshot};

const BACKLOG: i32 = 1024;
/// How long an idle client's connection goes unchecked, as Redis' `tcp-keepalive`.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(300);
/// How long what was sent to a client may go without a sign from its host.
const CLIENT_SILENCE: Duration = Duration::from_secs(30);
/// Accepted clients that one worker has not taken yet.
const DEALT_MAX: usize = 1024;

/// Why a proxy cannot run.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// An address cannot be listened on.
    #[error("cannot listen on {0}: {1}; choose another address with --listen")]
    Listen(Addr, #[source] io::Error),
    /// Nothing is known of the topology, and nothing will be.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The admin port failed.
    #[error("the admin port failed: {0}")]
    Admin(#[source] io::Error),
    /// The system gives no thread or no event queue.
    #[error("cannot start a worker: {0}")]
    Worker(#[from] io::Error),
}

/// One worker as the acceptor sees it.
struct Dealt {
    /// How many replicas acknowledge what its clients write, at least.
    ack_replicas: u32,
    clients: Arc<AtomicUsize>,
    sender: mpsc::Sender<std::net::TcpStream>,
}

/// What one worker is given by others.
struct Inboxes {
    dealt: mpsc::Receiver<std::net::TcpStream>,
    questions: mpsc::Receiver<Question>,
    orders: mpsc::Receiver<Order>,
}

/// Runs a proxy until `shutdown`; blocks its thread. `admin` serves the admin port, on the control thread.
pub fn run<A>(settings: Settings, shutdown: &CancellationToken, admin: A) -> Result<(), ProxyError>
where
    A: AsyncFnOnce(TcpListener, View) -> io::Result<()>,
{
    let settings = Arc::new(settings);
    raise_descriptors(settings.clients_max);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut listeners = Vec::new();
    for (addr, ack_replicas) in settings.all_listeners() {
        let _guard = runtime.enter();
        let listener = listen(addr).map_err(|error| ProxyError::Listen(addr.clone(), error))?;
        info!(listen = %listener.local_addr()?, ack_replicas, "the proxy listens");
        listeners.push((listener, ack_replicas));
    }
    let grades: BTreeSet<u32> = listeners.iter().map(|(_, ack_replicas)| *ack_replicas).collect();
    let all_workers: Vec<u32> = grades
        .into_iter()
        .flat_map(|ack_replicas| std::iter::repeat_n(ack_replicas, settings.workers))
        .collect();
    let admin_listener = match &settings.admin {
        None => None,
        Some(addr) => {
            let _guard = runtime.enter();
            Some(listen(addr).map_err(|error| ProxyError::Listen(addr.clone(), error))?)
        }
    };
    let ids = Arc::new(AtomicU64::new(1));
    let (topology, snapshots) = watch::channel(Arc::new(Snapshot::empty()));
    let replicas = Arc::new(Replicas::new(Arc::new(Fences::new())));
    let (roll, questions) = Roll::of(all_workers.len());
    let (vocabulary, learner) = vocabulary::start();
    let view = View {
        snapshots: snapshots.clone(),
        unserved: Arc::default(),
        monitors: Arc::default(),
        roll,
        pause: Arc::default(),
        census: Arc::default(),
        scripts: Arc::default(),
        vocabulary,
    };
    let scripts = view.scripts.clone();
    let (desk, ends) = desk(all_workers.len());
    let (relays, relayed) = mpsc::channel(RELAYS_MAX);
    let (ear, listens) = source::ear(settings.suspicion / 4);
    let mut threads = Vec::new();
    let mut workers = Vec::new();
    let ends = all_workers.into_iter().zip(questions.into_iter().zip(ends));
    for (number, (ack_replicas, (questions, (teller, orders)))) in ends.enumerate() {
        let (sender, dealt) = mpsc::channel(DEALT_MAX);
        let inboxes = Inboxes {
            dealt,
            questions,
            orders,
        };
        let clients = Arc::new(AtomicUsize::new(0));
        workers.push(Dealt {
            ack_replicas,
            clients: clients.clone(),
            sender,
        });
        let (settings, ids, shutdown) = (settings.clone(), ids.clone(), shutdown.clone());
        let (view, replicas) = (view.clone(), replicas.clone());
        let work = move || {
            work(
                settings,
                ack_replicas,
                inboxes,
                teller,
                view,
                replicas,
                &clients,
                &ids,
                &shutdown,
            )
        };
        threads.push(thread::Builder::new().name(format!("worker-{number}")).spawn(work)?);
    }
    let served = runtime.block_on(async {
        let pages = async {
            match admin_listener {
                Some(listener) => admin(listener, view).await,
                None => std::future::pending().await,
            }
        };
        let source = source::run(
            settings.topology.clone(),
            settings.identity(),
            relayed,
            listens,
            topology,
            shutdown.clone(),
        );
        tokio::spawn(talk_to_agents(
            settings.clone(),
            snapshots.clone(),
            desk,
            relays,
            ear,
            shutdown.clone(),
        ));
        tokio::select! {
            Err(error) = source => Err(error.into()),
            () = scripts::load(scripts, snapshots.clone(), sampler_settings(&settings).login, shutdown.clone()) => Ok(()),
            () = learner.learn(shutdown) => Ok(()),
            () = sample_all(&settings, replicas, snapshots.clone(), shutdown) => Ok(()),
            () = accept_all(listeners, workers, settings.clone(), shutdown) => Ok(()),
            Err(error) = pages => Err(ProxyError::Admin(error)),
        }
    });
    shutdown.cancel();
    for thread in threads {
        if thread.join().is_err() {
            warn!("a worker panicked");
        }
    }
    served
}

/// Talks to the agents until `shutdown`, if there are any that would listen.
async fn talk_to_agents(
    settings: Arc<Settings>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    desk: Desk,
    relays: mpsc::Sender<Relayed>,
    ear: Earshot,
    shutdown: CancellationToken,
) {
    let me = liaison::Me {
        id: settings.id.clone(),
        secret: settings.agents_secret().cloned(),
        heed: settings.heed(),
        suspicion: settings.suspicion,
    };
    if me.secret.is_some() || me.heed != Heed::Nothing {
        liaison::keep(me, snapshots, desk, relays, ear, shutdown).await;
    }
}

/// Samples masters and replicas until `shutdown`, if reads are split.
async fn sample_all(
    settings: &Arc<Settings>,
    replicas: Arc<Replicas>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    shutdown: &CancellationToken,
) {
    match settings.reads {
        ReadPolicy::Causal => sample(replicas, snapshots, sampler_settings(settings), shutdown.clone()).await,
        ReadPolicy::Master => shutdown.cancelled().await,
    }
}

/// Takes as many descriptors as the system allows: each client needs one.
fn raise_descriptors(clients_max: usize) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) if limit < clients_max as u64 => {
            warn!(
                "{limit} descriptors are allowed, {clients_max} clients are: raise the limit (ulimit -n), or lower clients_max"
            );
        }
        Ok(_) => {}
        Err(error) => warn!("the limit of descriptors cannot be raised: {error}"),
    }
}

fn sampler_settings(settings: &Arc<Settings>) -> SamplerSettings {
    let known = settings.clone();
    SamplerSettings {
        max_lag_ms: settings.max_lag_ms,
        login: Arc::new(move |shard, epoch, master| {
            let (user, password) = known.pass(shard, epoch, master.run_id.as_ref()).unzip();
            ControlLogin { user, password }
        }),
    }
}

fn listen(addr: &Addr) -> io::Result<TcpListener> {
    let resolved = (addr.host(), addr.port()).to_socket_addrs()?.next();
    let address: SocketAddr = resolved.ok_or_else(|| io::Error::other("the name has no address"))?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept_all(
    listeners: Vec<(TcpListener, u32)>,
    workers: Vec<Dealt>,
    settings: Arc<Settings>,
    shutdown: &CancellationToken,
) {
    let workers = Arc::new(workers);
    let tasks: Vec<_> = listeners
        .into_iter()
        .map(|(listener, ack_replicas)| tokio::spawn(accept(listener, ack_replicas, workers.clone(), settings.clone())))
        .collect();
    shutdown.cancelled().await;
    for task in tasks {
        task.abort();
    }
}

async fn accept(listener: TcpListener, ack_replicas: u32, workers: Arc<Vec<Dealt>>, settings: Arc<Settings>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: trying at once again would spin.
                warn!("cannot accept a client: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = deal(stream, ack_replicas, &workers, &settings) {
            debug!("client not served: {error}");
        }
    }
}

fn deal(stream: TcpStream, ack_replicas: u32, workers: &[Dealt], settings: &Settings) -> io::Result<()> {
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(CLIENT_KEEPALIVE))?;
    socket.set_tcp_user_timeout(Some(CLIENT_SILENCE))?;
    let all: usize = workers
        .iter()
        .map(|worker| worker.clients.load(Ordering::Relaxed))
        .sum();
    let mut stream = stream.into_std()?;
    if all >= settings.clients_max {
        return stream.write_all(b"-ERR max number of clients reached\r\n");
    }
    let Some(worker) = workers
        .iter()
        .filter(|worker| worker.ack_replicas == ack_replicas)
        .min_by_key(|worker| worker.clients.load(Ordering::Relaxed))
    else {
        return Ok(());
    };
    worker.clients.fetch_add(1, Ordering::Relaxed);
    worker.sender.try_send(stream).map_err(|_| {
        worker.clients.fetch_sub(1, Ordering::Relaxed);
        io::Error::other("the worker is not keeping up")
    })
}

#[expect(clippy::too_many_arguments, reason = "what a thread is started with")]
fn work(
    settings: Arc<Settings>,
    ack_replicas: u32,
    mut inboxes: Inboxes,
    teller: Teller,
    view: View,
    replicas: Arc<Replicas>,
    clients: &Arc<AtomicUsize>,
    ids: &Arc<AtomicU64>,
    shutdown: &CancellationToken,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            warn!("cannot start a worker: {error}");
            return;
        }
    };
    runtime.block_on(async {
        let worker = Worker::new(settings, ack_replicas, replicas, teller, &view);
        let mut snapshots = view.snapshots;
        let serving = async {
            while let Some(stream) = inboxes.dealt.recv().await {
                let Ok(stream) = TcpStream::from_std(stream) else {
                    continue;
                };
                let (id, worker, clients) = (ids.fetch_add(1, Ordering::Relaxed), worker.clone(), clients.clone());
                tokio::task::spawn_local(async move {
                    let reason = Session::serve(id, stream, worker).await;
                    clients.fetch_sub(1, Ordering::Relaxed);
                    debug!(client = id, "client closed: {reason}");
                });
            }
        };
        let following = async {
            loop {
                let snapshot = snapshots.borrow_and_update().clone();
                worker.follow(snapshot);
                if snapshots.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = following => {}
            () = worker.clone().close_idle_lanes() => {}
            () = worker.clone().answer_questions(inboxes.questions) => {}
            () = worker.clone().take_orders(inboxes.orders) => {}
            () = worker.clone().follow_vocabulary() => {}
            () = shutdown.cancelled() => {}
        }
    });
}
