//! The agent's end.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::{Request, WorkloadInfo, decode_ack, encode_request, is_hello};
use super::seqpacket::{Connection, Listener};
use crate::limits::{ZDS_ACCEPT_INTERVAL, ZDS_CONNECTIONS, ZDS_PODS, ZDS_QUEUE, ZDS_TIMEOUT};

/// Tells every connected proxy which pods to serve. Dropping it closes all connections; proxies go on serving.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    synced: watch::Receiver<usize>,
    _stop: DropGuard,
}

/// Why a pod isn't served yet. The server keeps it, and tells every proxy that connects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Nobody is there to serve it.
    #[error("no node proxy is connected; the pod will be served when one is")]
    NoProxy,
    /// The proxy's reason. It tries on by itself.
    #[error("the node proxy can't serve the pod yet: {0}")]
    Refused(String),
    /// Not kept: the limit is reached.
    #[error("there are {ZDS_PODS} pods already; remove some first")]
    Full,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    synced: watch::Sender<usize>,
    /// The user that proxies have to be of, besides root.
    uid: u32,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<Box<str>, Option<Pod>>,
    /// In the order they connected.
    proxies: Vec<Proxy>,
    next: u64,
}

/// A pod whose network is known.
#[derive(Clone, Debug)]
struct Pod {
    info: WorkloadInfo,
    network: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Proxy {
    id: u64,
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
enum Command {
    /// Tell it one thing.
    Tell(Request<Arc<OwnedFd>>, oneshot::Sender<Result<(), String>>),
    /// It is the newest again: tell it the pods it missed.
    CatchUp,
}

/// One proxy's connection.
struct Session {
    connection: Connection,
    /// Pods it has been told to serve.
    told: HashSet<Box<str>>,
}

// === impl Server ===

impl Server {
    /// Listens at `path`, for this user and root only. Needs a tokio runtime, on which it then runs.
    ///
    /// # Errors
    /// When the socket can't be made, because another agent serves it for example.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = Listener::bind(path)?;
        let (send, synced) = watch::channel(0);
        let uid = rustix::process::geteuid().as_raw();
        let shared = Arc::new(Shared { state: Mutex::default(), synced: send, uid });
        let stop = CancellationToken::new();
        let accepting = accept(listener, Arc::clone(&shared), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { shared, synced, _stop: stop.drop_guard() })
    }

    /// How many proxies have been told all pods, as it changes.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<usize> {
        self.synced.clone()
    }

    /// Has a pod served by the proxy that connected last, and waits until its listeners are there. Repeating it is how to
    /// find out whether a pod that was refused is served by now.
    ///
    /// # Errors
    /// Why it isn't served yet.
    pub async fn add(&self, uid: &str, info: WorkloadInfo, network: OwnedFd) -> Result<(), AddError> {
        let pod = Pod { info, network: Arc::new(network) };
        {
            let mut state = self.shared.lock();
            if !state.pods.contains_key(uid) && state.pods.len() >= ZDS_PODS {
                return Err(AddError::Full);
            }
            state.pods.insert(uid.into(), Some(pod.clone()));
        }
        // One that goes away meanwhile leaves it to the one before.
        for _ in 0..ZDS_CONNECTIONS {
            let answer = {
                let mut state = self.shared.lock();
                let Some(newest) = state.proxies.last() else { break };
                let (reply, answer) = oneshot::channel();
                if newest.commands.try_send(Command::Tell(pod.request(uid), reply)).is_err() {
                    state.drop_newest();
                    continue;
                }
                answer
            };
            match answer.await {
                Ok(outcome) => return outcome.map_err(AddError::Refused),
                Err(_) => continue,
            }
        }
        Err(AddError::NoProxy)
    }

    /// Has proxies go on serving a pod whose network isn't known (yet): proxies that connect are told so. A pod that was
    /// added is left as it is.
    ///
    /// # Errors
    /// When there are too many pods.
    pub fn keep(&self, uid: &str) -> Result<(), AddError> {
        let mut state = self.shared.lock();
        if !state.pods.contains_key(uid) && state.pods.len() >= ZDS_PODS {
            return Err(AddError::Full);
        }
        state.pods.entry(uid.into()).or_insert(None);
        Ok(())
    }

    /// Tells every proxy that the pod is gone, and waits until they have let go of it.
    pub async fn remove(&self, uid: &str) {
        let answers: Vec<_> = {
            let mut state = self.shared.lock();
            state.pods.remove(uid);
            state.tell_all(uid)
        };
        for answer in answers {
            // A proxy that is gone starts anew from the pods that are left.
            let _ = answer.await;
        }
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(ZDS_CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok(connection) => match (shared.check(&connection), Arc::clone(&places).try_acquire_owned()) {
                (Ok(()), Ok(place)) => {
                    let serving = serve(connection, Arc::clone(&shared), place);
                    tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
                }
                (Err(reason), _) => tracing::warn!(reason, "refused a connection to the ZDS socket"),
                (_, Err(_)) => tracing::warn!("refused a node proxy: there are {ZDS_CONNECTIONS} already"),
            },
            Err(error) => tracing::warn!(%error, "accepting a node proxy failed"),
        }
        sleep(ZDS_ACCEPT_INTERVAL).await;
    }
}

async fn serve(connection: Connection, shared: Arc<Shared>, _place: OwnedSemaphorePermit) {
    match timeout(ZDS_TIMEOUT, connection.receive()).await {
        Ok(Ok(Some((hello, _)))) if is_hello(&hello) => {}
        _ => {
            tracing::warn!("refused a node proxy that sent no `ZdsHello` of version 1");
            return;
        }
    }
    let (id, snapshot, commands) = shared.register();
    tracing::info!(proxy = id, pods = snapshot.len(), "a node proxy is connected");
    let mut session = Session { connection, told: HashSet::new() };
    let ended = match session.snapshot(snapshot).await {
        Ok(()) => {
            shared.synced.send_modify(|synced| *synced += 1);
            let ended = session.run(commands, &shared).await;
            shared.synced.send_modify(|synced| *synced -= 1);
            ended
        }
        Err(error) => error,
    };
    shared.lock().forget(id);
    tracing::info!(proxy = id, reason = %ended, "a node proxy is gone");
}

// === impl Session ===

impl Session {
    /// Tells all pods there are.
    async fn snapshot(&mut self, pods: BTreeMap<Box<str>, Option<Pod>>) -> io::Result<()> {
        for (uid, pod) in pods {
            let request = match pod {
                Some(pod) => pod.request(&uid),
                None => Request::Keep { uid },
            };
            // A refusal is the proxy's to mend; it goes on trying.
            self.tell(request).await?.unwrap_or_else(|reason| tracing::warn!(reason, "a pod isn't served yet"));
        }
        let answer = self.tell(Request::SnapshotSent).await?;
        answer.map_err(|reason| io::Error::other(format!("it refused the snapshot: {reason}")))
    }

    /// Carries out commands until the connection ends.
    async fn run(&mut self, mut commands: mpsc::Receiver<Command>, shared: &Shared) -> io::Error {
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                received = self.connection.receive() => return match received {
                    Ok(None) => io::ErrorKind::ConnectionReset.into(),
                    Ok(Some(_)) => io::Error::other("it spoke without being asked"),
                    Err(error) => error,
                },
            };
            let done = match command {
                Some(Command::Tell(request, reply)) => match self.tell(request).await {
                    Ok(answer) => {
                        // Whoever asked may have gone.
                        let _ = reply.send(answer);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Some(Command::CatchUp) => self.catch_up(shared).await,
                None => return io::Error::other("the agent let go of it"),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn catch_up(&mut self, shared: &Shared) -> io::Result<()> {
        let missed: Vec<_> = {
            let state = shared.lock();
            let unknown = state.pods.iter().filter(|(uid, _)| !self.told.contains(*uid));
            unknown.filter_map(|(uid, pod)| Some(pod.as_ref()?.request(uid))).collect()
        };
        for request in missed {
            self.tell(request).await?.unwrap_or_else(|reason| tracing::warn!(reason, "a pod isn't served yet"));
        }
        Ok(())
    }

    /// Sends one request and waits for its answer.
    async fn tell(&mut self, request: Request<Arc<OwnedFd>>) -> io::Result<Result<(), String>> {
        let file = match &request {
            Request::Add { uid, network, .. } => {
                self.told.insert(uid.clone());
                Some(network.as_fd())
            }
            Request::Del { uid } => {
                self.told.remove(uid);
                None
            }
            Request::Keep { .. } | Request::SnapshotSent => None,
        };
        let exchange = async {
            self.connection.send(&encode_request(&request), file).await?;
            self.connection.receive().await
        };
        match timeout(ZDS_TIMEOUT, exchange).await {
            Ok(Ok(Some((answer, _)))) => decode_ack(&answer).map_err(io::Error::other),
            Ok(Ok(None)) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it doesn't answer")),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, connection: &Connection) -> Result<(), String> {
        match connection.peer_uid() {
            Ok(uid) if uid == self.uid || uid == 0 => Ok(()),
            Ok(uid) => Err(format!("it is of user {uid}")),
            Err(error) => Err(format!("its user can't be told: {error}")),
        }
    }

    /// A new proxy, the newest. INVARIANT: what is added from here on is in its queue, all else in its snapshot.
    fn register(&self) -> (u64, BTreeMap<Box<str>, Option<Pod>>, mpsc::Receiver<Command>) {
        let (send, commands) = mpsc::channel(ZDS_QUEUE);
        let mut state = self.lock();
        state.next += 1;
        let id = state.next;
        state.proxies.push(Proxy { id, commands: send });
        (id, state.pods.clone(), commands)
    }
}

// === impl State ===

impl State {
    fn forget(&mut self, id: u64) {
        let newest = self.proxies.last().map(|proxy| proxy.id);
        self.proxies.retain(|proxy| proxy.id != id);
        if newest == Some(id) {
            self.promote();
        }
    }

    /// Lets go of a proxy that is gone already or doesn't keep up: its connection ends.
    fn drop_newest(&mut self) {
        self.proxies.pop();
        self.promote();
    }

    /// Has every proxy let go of a pod. One that can't be told is cut off: it would go on serving it.
    fn tell_all(&mut self, gone: &str) -> Vec<oneshot::Receiver<Result<(), String>>> {
        let mut answers = Vec::with_capacity(self.proxies.len());
        let newest = self.proxies.last().map(|proxy| proxy.id);
        self.proxies.retain(|proxy| {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            proxy.commands.try_send(Command::Tell(Request::Del { uid: gone.into() }, reply)).is_ok()
        });
        if newest != self.proxies.last().map(|proxy| proxy.id) {
            self.promote();
        }
        answers
    }

    fn promote(&mut self) {
        if let Some(newest) = self.proxies.last() {
            // With a full queue it is cut off at the next add.
            let _ = newest.commands.try_send(Command::CatchUp);
        }
    }
}

// === impl Pod ===

impl Pod {
    fn request(&self, uid: &str) -> Request<Arc<OwnedFd>> {
        Request::Add { uid: uid.into(), info: self.info.clone(), network: Arc::clone(&self.network) }
    }
}
