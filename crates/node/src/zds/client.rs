//! The proxy's end.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::Proxies;
use super::message::{DecodeError, WorkloadInfo, decode_request, encode_ack, encode_hello};
use super::netns::{self, NetworkNamespace};
use super::seqpacket::Connection;
use super::table::{OrderError, Serve, Table};
use crate::limits::{ZDS_CONNECT_BACKOFF, ZDS_RETRY, ZDS_SESSION_BACKOFF, ZDS_TIMEOUT};

/// Keeps a connection to the node agent and does what it asks.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    told: Told,
}

/// A pod that couldn't be started yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingPod {
    /// Its uid, as the agent names it.
    pub uid: Box<str>,
    /// Who it is.
    pub info: WorkloadInfo,
}

/// How serving pods goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The agent is connected.
    pub connected: bool,
    /// It has named every pod since it was connected.
    pub synced: bool,
    /// Pods being served.
    pub running: usize,
    /// Pods that couldn't be started yet.
    pub pending: usize,
    /// Pods started so far.
    pub started: u64,
    /// Pods stopped so far.
    pub stopped: u64,
}

/// The agent breaks the protocol; the process has to end, since a new connection would go no better.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A message at the wrong time, or without what it needs.
    #[error("the node agent at `{}` breaks the protocol: {reason}; is it of a version that fits?", path.display())]
    Agent {
        /// Its socket.
        path: PathBuf,
        /// What it did.
        reason: String,
    },
    /// This process's own namespace can't be opened, so no other may be entered.
    #[error("can't open this process's network namespace: {0}")]
    Home(#[source] io::Error),
}

/// How a connection ended.
enum Ended {
    /// The agent is gone, or speaks nonsense that a new connection may mend.
    Reconnect(String),
    Protocol(String),
}

/// What can be seen of a client.
#[derive(Debug)]
struct Told {
    status: watch::Sender<Status>,
    pending: watch::Sender<Vec<PendingPod>>,
}

struct Session<P> {
    home: Arc<OwnedFd>,
    table: Table<Arc<NetworkNamespace>>,
    proxies: Served<P>,
}

/// [`Proxies`] as the table wants them.
struct Served<P>(P);

// === impl Status ===

impl Status {
    /// Every pod of the node is served, as far as the agent tells.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connected && self.synced && self.pending == 0
    }
}

// === impl Client ===

impl Client {
    /// A client of the agent at `path`, and what can be seen of it.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> (Self, watch::Receiver<Status>) {
        let (status, watched) = watch::channel(Status::default());
        (Self { path: path.into(), told: Told { status, pending: watch::Sender::default() } }, watched)
    }

    /// The pods that couldn't be started yet, by uid.
    #[must_use]
    pub fn pending(&self) -> watch::Receiver<Vec<PendingPod>> {
        self.told.pending.subscribe()
    }

    /// Serves the agent, over as many connections as it takes. Pods go on being served while there's none. Dropping this
    /// closes the connection and stops nothing.
    ///
    /// # Errors
    /// When the agent breaks the protocol. It never returns otherwise.
    pub async fn run(self, proxies: impl Proxies) -> Result<Infallible, ProtocolError> {
        let home = netns::home().map_err(ProtocolError::Home)?;
        let mut session = Session { home, table: Table::new(), proxies: Served(proxies) };
        let mut pause = Backoff::new(ZDS_SESSION_BACKOFF);
        loop {
            let connection = self.connect(&mut session).await;
            session.table.connected();
            match session.serve(&connection, &self.told, &mut pause).await {
                Ended::Reconnect(reason) => {
                    drop(connection);
                    self.told.status.send_modify(|status| {
                        status.connected = false;
                        status.synced = false;
                    });
                    tracing::info!(agent = %self.path.display(), reason, "the connection to the node agent ended");
                    session.retry_for(pause.next(), &self.told).await;
                }
                Ended::Protocol(reason) => return Err(ProtocolError::Agent { path: self.path, reason }),
            }
        }
    }

    async fn connect<P: Proxies>(&self, session: &mut Session<P>) -> Connection {
        let mut pause = Backoff::new(ZDS_CONNECT_BACKOFF);
        let mut told = false;
        loop {
            match Connection::connect(&self.path) {
                Ok(connection) => return connection,
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(agent = %self.path.display(), %error, "can't connect to the node agent; trying on");
                }
                Err(_) => {}
            }
            session.retry_for(pause.next(), &self.told).await;
        }
    }
}

// === impl Session ===

impl<P: Proxies> Session<P> {
    /// Serves one connection to its end.
    async fn serve(&mut self, connection: &Connection, told: &Told, pause: &mut Backoff) -> Ended {
        let lost = |error: io::Error| Ended::Reconnect(error.to_string());
        match timeout(ZDS_TIMEOUT, connection.send(&encode_hello(), None)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return lost(error),
            Err(_) => return Ended::Reconnect("the agent doesn't read".to_owned()),
        }
        self.publish(true, told);
        let mut retry = interval_at(Instant::now() + ZDS_RETRY, ZDS_RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let received = tokio::select! {
                received = connection.receive() => received,
                _ = retry.tick() => {
                    self.table.retry(&mut self.proxies);
                    self.publish(true, told);
                    continue;
                }
            };
            let (bytes, files) = match received {
                Ok(Some(message)) => message,
                Ok(None) => return Ended::Reconnect("the agent closed it".to_owned()),
                // Too long, or with too many files.
                Err(error) => return self.refuse(connection, lost(error)).await,
            };
            let answer = match self.handle(&bytes, files) {
                Ok(answer) => answer,
                Err(ended) => return self.refuse(connection, ended).await,
            };
            self.publish(true, told);
            if self.table.is_synced() {
                // The agent is a sound one: the next time is a first time.
                *pause = Backoff::new(ZDS_SESSION_BACKOFF);
            }
            match timeout(ZDS_TIMEOUT, connection.send(&encode_ack(&answer), None)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return lost(error),
                Err(_) => return Ended::Reconnect("the agent doesn't read".to_owned()),
            }
        }
    }

    fn handle(&mut self, bytes: &[u8], files: Vec<OwnedFd>) -> Result<Result<(), String>, Ended> {
        let request = decode_request(bytes, files).map_err(|error| match error {
            DecodeError::Info(_) => Ended::Protocol(error.to_string()),
            error => Ended::Reconnect(format!("a message can't be read: {error}")),
        })?;
        let request = match request.try_map_network(|namespace| self.open(namespace)) {
            Ok(request) => request,
            Err(reason) => return Err(Ended::Reconnect(reason)),
        };
        self.table.handle(request, &mut self.proxies).map_err(|error: OrderError| Ended::Protocol(error.to_string()))
    }

    fn open(&self, namespace: OwnedFd) -> Result<Arc<NetworkNamespace>, String> {
        NetworkNamespace::new(namespace, Arc::clone(&self.home))
            .map(Arc::new)
            .map_err(|error| format!("what came with `AddWorkload` is no network namespace to enter: {error}"))
    }

    /// Tells the agent why the connection ends. Best effort: it ends either way.
    async fn refuse(&self, connection: &Connection, ended: Ended) -> Ended {
        let (Ended::Reconnect(reason) | Ended::Protocol(reason)) = &ended;
        let _ = timeout(ZDS_TIMEOUT, connection.send(&encode_ack(&Err(reason.clone())), None)).await;
        ended
    }

    /// Waits, trying pending pods at their times.
    async fn retry_for(&mut self, pause: Duration, told: &Told) {
        sleep(pause).await;
        if pause >= ZDS_RETRY {
            self.table.retry(&mut self.proxies);
            self.publish(false, told);
        }
    }

    fn publish(&self, connected: bool, told: &Told) {
        let now = Status {
            connected,
            synced: connected && self.table.is_synced(),
            running: self.table.running(),
            pending: self.table.pending(),
            started: self.table.started,
            stopped: self.table.stopped,
        };
        told.status.send_if_modified(|status| std::mem::replace(status, now) != now);
        let pending = self.table.pending_pods();
        let mut pending: Vec<_> =
            pending.map(|(uid, info)| PendingPod { uid: uid.into(), info: info.clone() }).collect();
        pending.sort_unstable_by(|one, other| one.uid.cmp(&other.uid));
        told.pending.send_if_modified(|known| {
            let changed = *known != pending;
            *known = pending;
            changed
        });
    }
}

// === impl Served ===

impl<P: Proxies> Serve<Arc<NetworkNamespace>> for Served<P> {
    fn start(&mut self, uid: &str, info: &WorkloadInfo, network: &Arc<NetworkNamespace>) -> Result<(), String> {
        self.0.start(uid, info, network).inspect_err(|reason| {
            tracing::warn!(uid, namespace = info.namespace, pod = info.name, reason, "a pod can't be served yet");
        })
    }

    fn stop(&mut self, uid: &str) {
        self.0.stop(uid);
    }
}

/// Waits that double.
#[derive(Debug)]
struct Backoff {
    next: Duration,
    longest: Duration,
}

// === impl Backoff ===

impl Backoff {
    fn new((first, longest): (Duration, Duration)) -> Self {
        Self { next: first, longest }
    }

    fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }
}
