//! The task that owns the state: one request, edit or readiness change at a time.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_api::{Diagnostic, Loaded, Severity, request_authentication::KeySource};
use ambit_mesh::{authentication::Fetched, inputs::NamespacedName};
use ambit_xds::{DeltaResponse, channel::Sender};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::{
    Event,
    cluster::{Cluster, Outcome},
    codes,
    plan::{PodCommand, PodPlan},
    session::{SessionError, SessionRequest},
    status::Status,
    watch::Watch,
};
use crate::keys::{Inside, Wanted};

/// How long after files couldn't be read they are read again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What the handle asks for.
pub(super) enum Request {
    AddSession(SessionRequest, oneshot::Sender<Result<Arc<PodPlan>, SessionError>>),
    RemoveSession(Arc<str>, oneshot::Sender<()>),
    Stop(Arc<str>, oneshot::Sender<Option<NamespacedName>>),
    Start(NamespacedName, oneshot::Sender<bool>),
    Status(oneshot::Sender<Status>),
    Reload(oneshot::Sender<Result<usize, Vec<Diagnostic>>>),
    /// The pods behind this name and port of the mesh; nothing if the name isn't the mesh's.
    Endpoints(String, u16, oneshot::Sender<Option<Vec<SocketAddr>>>),
}

/// Readiness that the node side reported and the state hasn't taken up; at most one entry per pod.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    reported: Mutex<BTreeMap<Arc<str>, bool>>,
    changed: Notify,
}

pub(super) struct Actor {
    pub(super) cluster: Cluster,
    pub(super) paths: Vec<PathBuf>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) xds: Sender,
    pub(super) pods: mpsc::Sender<PodCommand>,
    pub(super) events: broadcast::Sender<Event>,
    /// Commands that the node side hasn't taken yet.
    pub(super) outbox: VecDeque<PodCommand>,
    pub(super) watch: Option<Watch>,
    pub(super) retry: Option<Retry>,
    pub(super) keys: Keys,
}

/// The task that fetches the keys of tokens' issuers.
pub(super) struct Keys {
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) found: mpsc::Receiver<(KeySource, Fetched)>,
}

/// Finds pods for the task that fetches keys. It doesn't keep the cluster running.
pub(super) struct Endpoints(pub(super) mpsc::WeakSender<Request>);

/// Files that couldn't be read. What they hold may take a right away, so they are read again until it works.
pub(super) struct Retry {
    at: tokio::time::Instant,
    told: Vec<Diagnostic>,
}

/// What is there to do.
enum Next {
    Request(Request),
    Ready,
    Edited,
    /// The node side can take a command.
    Room,
    NoHandles,
    /// Keys were fetched, or couldn't be.
    Keys(KeySource, Fetched),
}

/// The proxies are gone; there is nobody to tell anything.
struct ProxiesGone;

// === impl Readiness ===

impl Readiness {
    pub(super) fn report(&self, uid: &str, ready: bool) {
        // A poisoned lock means a panic while inserting; the map is then still whole.
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.into(), ready);
        self.changed.notify_one();
    }

    fn take(&self) -> BTreeMap<Arc<str>, bool> {
        std::mem::take(&mut self.reported.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Actor ===

impl Actor {
    /// Runs until every handle is dropped or the proxies are gone.
    pub(super) async fn run(mut self, first: Outcome) {
        let mut outcome = self.carry_out(first).await;
        self.want_keys();
        while outcome.is_ok() {
            outcome = match self.next().await {
                Next::Request(request) => self.answer(request).await,
                Next::Ready => {
                    let reported = self.readiness.take();
                    let responses = self.cluster.set_ready(&reported);
                    self.push(responses).await
                }
                Next::Edited => self.reload().await.map(|_| ()),
                Next::Room => {
                    self.hand_over();
                    Ok(())
                }
                Next::NoHandles => break,
                Next::Keys(source, fetched) => self.take_keys(source, fetched).await,
            };
            self.want_keys();
        }
    }

    /// What is there to do. Dropping any of these futures loses nothing.
    async fn next(&mut self) -> Next {
        let retry = self.retry.as_ref().map(|retry| retry.at);
        tokio::select! {
            request = self.requests.recv() => request.map_or(Next::NoHandles, Next::Request),
            () = self.readiness.changed.notified() => Next::Ready,
            () = edited(self.watch.as_ref()) => Next::Edited,
            () = until(retry) => Next::Edited,
            Some((source, fetched)) = self.keys.found.recv() => Next::Keys(source, fetched),
            _ = self.pods.reserve(), if !self.outbox.is_empty() => Next::Room,
        }
    }

    /// Gives the node side as many commands as it has room for.
    fn hand_over(&mut self) {
        while let Some(command) = self.outbox.pop_front() {
            match self.pods.try_send(command) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(command)) => return self.outbox.push_front(command),
                // Nobody makes pods: only the mesh is wanted.
                Err(mpsc::error::TrySendError::Closed(_)) => self.outbox.clear(),
            }
        }
    }

    async fn answer(&mut self, request: Request) -> Result<(), ProxiesGone> {
        // Whoever asked may have gone; then nobody needs the answer.
        match request {
            Request::AddSession(request, answer) => {
                let (plan, responses) = match self.cluster.add_session(&request) {
                    Ok(added) => added,
                    Err(error) => {
                        let _ = answer.send(Err(error));
                        return Ok(());
                    }
                };
                self.push(responses).await?;
                if answer.send(Ok(Arc::clone(&plan))).is_err() {
                    let undone = self.cluster.remove_session(&plan.uid).unwrap_or_default();
                    return self.carry_out(undone).await;
                }
                Ok(())
            }
            Request::RemoveSession(uid, answer) => {
                let outcome = self.cluster.remove_session(&uid).unwrap_or_default();
                self.carry_out(outcome).await?;
                let _ = answer.send(());
                Ok(())
            }
            Request::Stop(uid, answer) => {
                let name = self.cluster.find(&uid);
                let stopped = name.and_then(|name| Some((self.cluster.stop(&name)?, name)));
                let name = match stopped {
                    Some((outcome, name)) => {
                        self.carry_out(outcome).await?;
                        Some(name)
                    }
                    None => None,
                };
                let _ = answer.send(name);
                Ok(())
            }
            Request::Start(name, answer) => {
                let started = match self.cluster.start(&name) {
                    Some(Ok(outcome)) => {
                        self.carry_out(outcome).await?;
                        true
                    }
                    Some(Err(_)) | None => false,
                };
                let _ = answer.send(started);
                Ok(())
            }
            Request::Status(answer) => {
                let _ = answer.send(self.cluster.status());
                Ok(())
            }
            Request::Reload(answer) => {
                let result = self.reload().await?;
                let _ = answer.send(result);
                Ok(())
            }
            Request::Endpoints(host, port, answer) => {
                let _ = answer.send(self.cluster.endpoints(&host, port));
                Ok(())
            }
        }
    }

    async fn reload(&mut self) -> Result<Result<usize, Vec<Diagnostic>>, ProxiesGone> {
        let paths = self.paths.clone();
        let loaded = tokio::task::spawn_blocking(move || ambit_api::load(&paths)).await;
        let loaded = loaded.unwrap_or_else(|_| Loaded {
            diagnostics: vec![Diagnostic::new(
                Severity::Error,
                ambit_api::codes::UNREADABLE_FILE,
                "reading the files failed",
                "this is a defect of ambit; the last good state stays in force",
            )],
            ..Loaded::default()
        });
        match take_over(&mut self.cluster, loaded) {
            Ok((outcome, news)) => {
                self.retry = None;
                let changed = outcome.changed;
                self.carry_out(outcome).await?;
                if changed > 0 || !news.is_empty() {
                    self.tell(Event::Reloaded { changed, diagnostics: news });
                }
                Ok(Ok(changed))
            }
            Err(diagnostics) => {
                let unreadable = diagnostics.iter().any(|found| found.code == ambit_api::codes::UNREADABLE_FILE);
                let retry = unreadable
                    .then(|| Retry { at: tokio::time::Instant::now() + READ_AGAIN, told: diagnostics.clone() });
                let before = std::mem::replace(&mut self.retry, retry);
                if before.is_none_or(|before| before.told != diagnostics) {
                    self.tell(Event::Rejected(diagnostics.clone()));
                }
                Ok(Err(diagnostics))
            }
        }
    }

    /// First the proxies, so that a pod's processes never run before the proxies know it; then the pods.
    async fn carry_out(&mut self, outcome: Outcome) -> Result<(), ProxiesGone> {
        self.push(outcome.responses).await?;
        self.outbox.extend(outcome.commands);
        Ok(())
    }

    /// Says which keys are wanted now.
    fn want_keys(&mut self) {
        let wanted = self.cluster.wanted_keys();
        self.keys.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    async fn take_keys(&mut self, source: KeySource, fetched: Fetched) -> Result<(), ProxiesGone> {
        if let Some(note) = self.cluster.note_of_keys(&source, &fetched) {
            self.tell(Event::Note(note));
        }
        let responses = self.cluster.set_keys(source, fetched);
        self.push(responses).await
    }

    async fn push(&mut self, responses: Vec<DeltaResponse>) -> Result<(), ProxiesGone> {
        if responses.is_empty() {
            return Ok(());
        }
        match self.xds.push(responses).await {
            Ok(Ok(())) => {}
            Ok(Err(nack)) => self.tell(Event::Note(nack.to_string())),
            Err(_) => return Err(ProxiesGone),
        }
        self.tell(Event::Applied { at: std::time::Instant::now() });
        Ok(())
    }

    fn tell(&self, event: Event) {
        // Without a listener there is nobody to tell.
        let _ = self.events.send(event);
    }
}

// === impl Endpoints ===

impl Inside for Endpoints {
    fn endpoints(&self, host: String, port: u16) -> Pin<Box<dyn Future<Output = Option<Vec<SocketAddr>>> + Send>> {
        let requests = self.0.upgrade();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            requests?.send(Request::Endpoints(host, port, answer)).await.ok()?;
            answered.await.ok().flatten()
        })
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn edited(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.edited().await,
        None => std::future::pending().await,
    }
}

/// Makes what was loaded the state, and returns what has to happen and what is new to tell the user.
pub(super) fn take_over(cluster: &mut Cluster, loaded: Loaded) -> Result<(Outcome, Vec<Diagnostic>), Vec<Diagnostic>> {
    let Loaded { objects, mut diagnostics, .. } = loaded;
    if diagnostics.iter().any(Diagnostic::is_error) {
        return Err(diagnostics);
    }
    let told: Vec<String> = cluster.diagnostics.iter().map(ToString::to_string).collect();
    let outcome = match cluster.reload(&objects) {
        Ok(outcome) => outcome,
        Err(more) => {
            diagnostics.extend(more);
            return Err(diagnostics);
        }
    };
    diagnostics.append(&mut cluster.diagnostics);
    cluster.diagnostics.clone_from(&diagnostics);
    let news = diagnostics.into_iter().filter(|diagnostic| !told.contains(&diagnostic.to_string()));
    Ok((outcome, news.collect()))
}

/// Watches the files, or says why edits won't be noticed.
pub(super) fn watch(paths: &[PathBuf]) -> Result<Watch, Box<Diagnostic>> {
    Watch::new(paths).map_err(|error| {
        Box::new(Diagnostic::new(
            Severity::Warning,
            codes::NOT_WATCHED,
            format!("edits won't be noticed: the files can't be watched: {error}"),
            "raise `fs.inotify.max_user_watches` and `fs.inotify.max_user_instances`",
        ))
    })
}
