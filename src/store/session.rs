//! One session with ZooKeeper, kept through everything that does not end it.
//!
//! ```text
//!  connected <--> disconnected (the crate reconnects by itself)
//!      |               | the crate gives up: "expired", by its own clock
//!      v               v
//!   close()      re-attach to the same session, every 75 ms
//!                      |            \ a server says "expired"
//!                      v             v
//!                  connected      a new session
//! ```
//!
//! Owns: the crate's client and when it is replaced. Refuses: operations. Invariant: a session is given up only
//! when a server says that it expired; a session restored by an ensemble that was away still has its ephemerals.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Client, Connector, Error, SessionInfo, SessionState};

use super::{Connection, Settings, StoreError};

/// Between two attempts to re-attach.
const REATTACH: Duration = Duration::from_millis(75);
/// How long the end of a session is waited for.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// The client of the moment.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// None while away.
    pub(super) client: Option<Client>,
    /// For everybody else.
    pub(super) connection: Connection,
}

/// Keeps a session; ends with its token.
pub(super) struct Keeper {
    settings: Settings,
    link: watch::Sender<Link>,
    connection: watch::Sender<Connection>,
    stop: CancellationToken,
    session: u64,
    attachment: u64,
}

/// What a keeper tells; closed once the session has ended.
pub(super) struct Told {
    pub(super) link: watch::Receiver<Link>,
    pub(super) connection: watch::Receiver<Connection>,
    pub(super) session_timeout: Duration,
}

impl Keeper {
    /// Connects, and keeps the session from then on until `stop`.
    pub(super) async fn start(settings: &Settings, stop: CancellationToken) -> Result<Told, StoreError> {
        let client = connector(settings, None)
            .connect(&settings.connect)
            .await
            .map_err(|error| refusal(settings, &error))?;
        let session_timeout = client.session_timeout();
        let (connection, connections) = watch::channel(Connection::Away);
        let (link, links) = watch::channel(Link {
            client: None,
            connection: Connection::Away,
        });
        let mut keeper = Self {
            settings: settings.clone(),
            link,
            connection,
            stop,
            session: 1,
            attachment: 0,
        };
        keeper.up(&client);
        tokio::spawn(keeper.keep(client));
        Ok(Told {
            link: links,
            connection: connections,
            session_timeout,
        })
    }

    async fn keep(mut self, mut client: Client) {
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.close(client).await,
                () = self.attend(&client) => {}
            }
            let info = client.into_session();
            tokio::select! {
                () = stop.cancelled() => return,
                again = self.reattach(info) => client = again,
            }
            self.up(&client);
        }
    }

    /// Passes the state of `client` on until it is of no more use.
    async fn attend(&mut self, client: &Client) {
        let mut states = client.state_watcher();
        // The watcher counts the present state as seen, whatever it is by now.
        let mut state = states.peek_state();
        loop {
            match state {
                SessionState::SyncConnected => self.up(client),
                SessionState::Disconnected | SessionState::ConnectedReadOnly => self.away(),
                SessionState::AuthFailed | SessionState::Expired | SessionState::Closed => return self.away(),
            }
            state = states.changed().await;
        }
    }

    async fn reattach(&mut self, info: SessionInfo) -> Client {
        let mut info = Some(info);
        loop {
            let connecting = connector(&self.settings, info.clone()).connect(&self.settings.connect);
            match connecting.await {
                Ok(client) => return client,
                Err(Error::SessionExpired) if info.is_some() => {
                    tracing::warn!("the ZooKeeper session has expired; a new one follows");
                    info = None;
                    self.session += 1;
                }
                Err(error) => {
                    tracing::debug!(%error, "ZooKeeper does not answer yet");
                    sleep(REATTACH).await;
                }
            }
        }
    }

    fn up(&mut self, client: &Client) {
        if matches!(self.link.borrow().connection, Connection::Up { .. }) {
            return;
        }
        self.attachment += 1;
        let connection = Connection::Up {
            session: self.session,
            attachment: self.attachment,
        };
        tracing::info!(session = %client.session_id(), "connected to ZooKeeper");
        self.link.send_replace(Link {
            client: Some(client.clone()),
            connection,
        });
        self.connection.send_replace(connection);
    }

    fn away(&mut self) {
        if self.link.borrow().connection == Connection::Away {
            return;
        }
        tracing::warn!(connect = %self.settings.connect, "ZooKeeper is away; everything serves on as it is");
        self.link.send_replace(Link {
            client: None,
            connection: Connection::Away,
        });
        self.connection.send_replace(Connection::Away);
    }

    async fn close(self, client: Client) {
        self.link.send_replace(Link {
            client: None,
            connection: Connection::Away,
        });
        self.connection.send_replace(Connection::Away);
        let mut states = client.state_watcher();
        let open = !states.peek_state().is_terminated();
        drop(client);
        let closing = async { while open && !states.changed().await.is_terminated() {} };
        if timeout(CLOSE_LIMIT, closing).await.is_err() {
            tracing::debug!("ZooKeeper did not confirm the end of the session; it ends by its timeout");
        }
    }
}

fn connector(settings: &Settings, session: Option<SessionInfo>) -> Connector {
    let connector = Client::connector()
        .with_session_timeout(settings.session_timeout)
        .with_fail_eagerly();
    // Shown in each connection: a server knows who we are by connection.
    let connector = match &settings.credentials {
        Some(credentials) => connector.with_auth("digest", &credentials.digest()),
        None => connector,
    };
    match session {
        Some(session) => connector.with_session(session),
        None => connector,
    }
}

fn refusal(settings: &Settings, error: &Error) -> StoreError {
    let connect = settings.connect.clone();
    match error {
        Error::BadArguments(why) => StoreError::BadAddress {
            connect,
            why: (**why).to_owned(),
        },
        Error::NoHosts | Error::ConnectionLoss => StoreError::Unreachable {
            connect,
            why: "connection refused".to_owned(),
        },
        Error::AuthFailed => StoreError::Refused {
            path: "the connection".to_owned(),
            why: "our credentials are not accepted".to_owned(),
        },
        other => StoreError::Unreachable {
            connect,
            why: other.to_string(),
        },
    }
}
