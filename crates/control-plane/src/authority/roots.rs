//! Keeps what the CA signs with: plugged in by an operator, or self-signed in a Secret that all replicas share.

use std::{fmt, future::pending, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use ambit_identity::{Ca, CaError, Clock, Signer, limits::ROOT_TTL};
use futures_util::StreamExt;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{CaFolder, FolderError, Leadership, RootSecret, RootSecretError, Step, folder::FolderWatch};
use crate::limits::{MAX_ROOT_TRIES, ROOT_CHECK_INTERVAL, ROOT_REQUEST_TIMEOUT, ROOT_RETRY};

/// The Secret with the self-signed root.
const SECRET: &str = "istio-ca-secret";

/// Where the CA's key comes from.
#[derive(Clone, Debug)]
pub struct RootSettings {
    /// The control plane's namespace.
    pub namespace: String,
    /// The trust domain signed for.
    pub trust_domain: String,
    /// Where an operator's CA is mounted (`ROOT_CA_DIR`, `/etc/cacerts`). Without files there the root is self-signed.
    pub folder: PathBuf,
    /// Pause between two looks at the root's age.
    pub check_interval: Duration,
}

/// The CA, and what keeps it.
pub struct Roots {
    client: Client,
    settings: RootSettings,
    clock: Arc<dyn Clock>,
    ca: Arc<Ca>,
    source: Source,
    crl: watch::Sender<Option<Arc<str>>>,
    problem: watch::Sender<Option<String>>,
}

enum Source {
    Folder(CaFolder, FolderWatch),
    /// As it was read last.
    Secret(Box<RootSecret>),
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The plugged-in CA can't be used. None is made instead.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The folder can't be watched.
    #[error("can't watch `{}`: {error}", path.display())]
    Watch {
        /// Which folder.
        path: PathBuf,
        /// What the system answered.
        error: notify::Error,
    },
    /// The Secret can't be read or written.
    #[error("secret `{namespace}/{SECRET}`: {reason}")]
    Api {
        /// The Secret's namespace.
        namespace: String,
        /// What went wrong.
        reason: String,
    },
    /// The Secret holds no root. None is made instead: everything signed so far would be worth nothing.
    #[error(
        "secret `{namespace}/{SECRET}`: {error}; put it right, or delete it and restart every replica for a new root"
    )]
    Secret {
        /// The Secret's namespace.
        namespace: String,
        /// What is wrong.
        error: RootSecretError,
    },
    /// The trust domain is none.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// The names of the control plane's own certificate: those of its Services, as Istio's clients and ours call them.
#[must_use]
pub fn server_names(namespace: &str, revision: &str, more: &[String]) -> Vec<String> {
    let mut services = vec!["istiod".to_owned(), "istio-pilot".to_owned(), "ambit-control-plane".to_owned()];
    if !revision.is_empty() && revision != "default" {
        services.push(format!("istiod-{revision}"));
        services.push(format!("ambit-control-plane-{revision}"));
    }
    let of =
        |service: &String| [format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")];
    let mut names: Vec<_> = services.iter().flat_map(of).chain(more.iter().cloned()).collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

// === impl RootSettings ===

impl RootSettings {
    /// The usual place and times.
    #[must_use]
    pub fn new(namespace: &str, trust_domain: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            trust_domain: trust_domain.to_owned(),
            folder: "/etc/cacerts".into(),
            check_interval: ROOT_CHECK_INTERVAL,
        }
    }
}

// === impl Roots ===

impl Roots {
    /// Reads the CA. The first replica that finds no plugged-in CA and no Secret makes the Secret; the others read it.
    ///
    /// # Errors
    /// When there is a CA that can't be used, or the API server can't be asked.
    pub async fn open(client: Client, settings: RootSettings, clock: Arc<dyn Clock>) -> Result<Self, RootsError> {
        let folder = CaFolder::new(&settings.folder);
        let (source, signer, crl) = if folder.is_plugged_in() {
            // Watched before it is read, so that no change is missed.
            let watch = folder.watch().map_err(|error| RootsError::Watch { path: settings.folder.clone(), error })?;
            let (signer, crl) = read(&folder, &settings.trust_domain, &clock).await;
            (Source::Folder(folder, watch), signer?, crl?)
        } else {
            let root = open_secret(&client, &settings, &*clock).await?;
            let signer = root.signer(&settings.trust_domain, clock.now()).map_err(|error| wrong(&settings, error))?;
            (Source::Secret(Box::new(root)), signer, None)
        };
        let ca = Ca::new(&settings.trust_domain, signer)?.with_clock(Arc::clone(&clock));
        Ok(Self {
            client,
            settings,
            clock,
            ca: Arc::new(ca),
            source,
            crl: watch::Sender::new(crl),
            problem: watch::Sender::new(None),
        })
    }

    /// The CA; it follows what [`keep`](Self::keep) finds.
    #[must_use]
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// Revocation lists beside the plugged-in CA, PEM.
    #[must_use]
    pub fn crl(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.crl.subscribe()
    }

    /// Why the newest files, or the newest content of the Secret, aren't in force; nothing while they are.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// Follows the folder or the Secret for ever; the leader rotates the self-signed root.
    pub async fn keep(self, leadership: Leadership) {
        match &self.source {
            Source::Folder(folder, watch) => self.keep_folder(folder, watch).await,
            Source::Secret(root) => self.keep_secret((**root).clone(), &leadership).await,
        }
    }

    async fn keep_folder(&self, folder: &CaFolder, watch: &FolderWatch) {
        loop {
            watch.changed().await;
            let (signer, crl) = read(folder, &self.settings.trust_domain, &self.clock).await;
            match signer {
                Ok(signer) => {
                    self.take(signer, "the CA's files");
                }
                Err(error) => {
                    self.complain(&format!("the CA's new files can't be used; the old ones stay in force: {error}"));
                }
            }
            // Revocation doesn't wait for the rest to be right.
            match crl {
                Ok(Some(lists)) => {
                    self.crl.send_if_modified(|before| {
                        let changed = before.as_ref() != Some(&lists);
                        *before = Some(lists);
                        changed
                    });
                }
                // Lists that vanish set nobody free.
                Ok(None) => {}
                Err(error) => {
                    self.complain(&format!(
                        "the new revocation lists can't be used; the old ones stay in force: {error}"
                    ));
                }
            }
        }
    }

    async fn keep_secret(&self, mut root: RootSecret, leadership: &Leadership) {
        let mut secrets = pin!(watch_object(self.api(), SECRET).default_backoff());
        let mut leads = leadership.changed();
        // Time since boot up to which leading has been counted.
        let mut counted: Option<Duration> = None;
        let mut pause = Duration::ZERO;
        let mut gone = false;
        loop {
            tokio::select! {
                secret = secrets.next() => match secret {
                    Some(Ok(Some(secret))) => match RootSecret::read(&secret) {
                        Ok(read) => {
                            gone = false;
                            if self.follow(&read) {
                                root = read;
                            }
                        }
                        Err(error) => {
                            self.complain(&format!("the Secret of the root can't be read; the old root stays: {error}"));
                        }
                    },
                    Some(Ok(None)) => gone = true,
                    Some(Err(error)) => tracing::debug!(%error, "the Secret of the root can't be watched"),
                    // It doesn't end; if it did, age would still be looked at.
                    None => pending().await,
                },
                changed = leads.changed() => if changed.is_err() { sleep(ROOT_RETRY).await },
                () = sleep(pause), if leadership.is_leader() => {}
            }
            if !leadership.is_leader() {
                (counted, pause) = (None, Duration::ZERO);
                continue;
            }
            let now = self.clock.since_boot().unwrap_or_default();
            let due = counted.is_none_or(|since| now.saturating_sub(since) >= self.settings.check_interval);
            if !due && !gone {
                continue;
            }
            let lasted = counted.map(|since| now.saturating_sub(since)).unwrap_or_default();
            match self.lead(&root, lasted, leadership).await {
                Ok(read) => {
                    root = read;
                    (counted, pause, gone) = (Some(now), self.settings.check_interval, false);
                }
                Err(error) => {
                    tracing::warn!(%error, "the root can't be looked after");
                    pause = ROOT_RETRY;
                }
            }
        }
    }

    /// What a leader does with the root, as the Secret has it: makes the next step of a rotation, and puts back a Secret that
    /// somebody deleted.
    async fn lead(
        &self,
        last: &RootSecret,
        lasted: Duration,
        leadership: &Leadership,
    ) -> Result<RootSecret, RootsError> {
        for _ in 0..MAX_ROOT_TRIES {
            let found = bounded(&self.settings, self.api().get_opt(SECRET)).await?;
            let (mut secret, mut root) = match found {
                Some(secret) => {
                    let root = RootSecret::read(&secret).map_err(|error| wrong(&self.settings, error))?;
                    (secret, root)
                }
                None => {
                    tracing::warn!("the Secret of the root is gone; it is made again with the root in use");
                    (blank(&self.settings), last.clone())
                }
            };
            let step = root
                .step(&self.settings.trust_domain, lasted, self.clock.now())
                .map_err(|error| wrong(&self.settings, error))?;
            let exists = secret.metadata.resource_version.is_some();
            if (step.is_none() && exists) || !leadership.is_leader() {
                return Ok(root);
            }
            root.write(&mut secret);
            let parameters = PostParams::default();
            let written = if exists {
                timeout(ROOT_REQUEST_TIMEOUT, self.api().replace(SECRET, &parameters, &secret)).await
            } else {
                timeout(ROOT_REQUEST_TIMEOUT, self.api().create(&parameters, &secret)).await
            };
            match written {
                Ok(Ok(_)) => {
                    if let Some(step @ (Step::Announced | Step::Switched | Step::Retired)) = step {
                        tracing::info!(?step, "the root's rotation went on");
                    }
                    self.follow(&root);
                    return Ok(root);
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
                Ok(Err(error)) => return Err(failed(&self.settings, error)),
                Err(_) => return Err(failed(&self.settings, "no answer in time")),
            }
        }
        Err(failed(&self.settings, "others keep changing it"))
    }

    /// Signs with what the Secret says. False if that can't be.
    fn follow(&self, root: &RootSecret) -> bool {
        match root.signer(&self.settings.trust_domain, self.clock.now()) {
            Ok(signer) => self.take(signer, "the Secret of the root"),
            Err(error) => {
                self.complain(&format!("the Secret of the root can't be used; the old root stays in force: {error}"));
                false
            }
        }
    }

    /// Goes over to another signer if peers with the present bundle trust what it signs, and peers with its bundle what was
    /// signed so far. So a root is replaced in steps: add the new one to the bundle, sign with it, take out the old one.
    fn take(&self, signer: Signer, whence: &str) -> bool {
        let present = self.ca.signer();
        if present.is_same_as(&signer) {
            self.problem.send_replace(None);
            return true;
        }
        let (trust_domain, now) = (&self.settings.trust_domain, self.clock.now());
        let forward = signer.is_covered_by(present.roots(), trust_domain, now);
        let back = match present.is_covered_by(signer.roots(), trust_domain, now) {
            // What is over needs no trust.
            Err(_) if now >= present.not_after() => Ok(()),
            result => result,
        };
        if let Err(error) = forward.and(back) {
            self.complain(&format!(
                "{whence} hold another root, and whoever has only one of the two would trust nobody of the other; the old \
                 one stays in force. Put both roots into the bundle first, or restart every replica to force it: {error}"
            ));
            return false;
        }
        tracing::info!(roots = signer.roots().len(), "the CA signs with what {whence} hold now");
        self.ca.replace(signer);
        self.problem.send_replace(None);
        true
    }

    fn complain(&self, problem: &str) {
        tracing::error!("{problem}");
        self.problem.send_replace(Some(problem.to_owned()));
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }
}

/// What the CA signs with, and the revocation lists beside it.
async fn read(
    folder: &CaFolder,
    trust_domain: &str,
    clock: &Arc<dyn Clock>,
) -> (Result<Signer, FolderError>, Result<Option<Arc<str>>, FolderError>) {
    let (files, trust_domain, now) = (folder.clone(), trust_domain.to_owned(), clock.now());
    let read = tokio::task::spawn_blocking(move || (files.signer(&trust_domain, now), files.crl())).await;
    read.unwrap_or_else(|error| (Err(folder.unread(&error)), Err(folder.unread(&error))))
}

/// The Secret's root. If there is none, one is made; if another replica was faster, its root counts.
async fn open_secret(client: &Client, settings: &RootSettings, clock: &dyn Clock) -> Result<RootSecret, RootsError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    for _ in 0..MAX_ROOT_TRIES {
        if let Some(secret) = bounded(settings, api.get_opt(SECRET)).await? {
            return RootSecret::read(&secret).map_err(|error| wrong(settings, error));
        }
        let root =
            RootSecret::new(&settings.trust_domain, ROOT_TTL, clock.now()).map_err(|error| wrong(settings, error))?;
        let mut secret = blank(settings);
        root.write(&mut secret);
        match timeout(ROOT_REQUEST_TIMEOUT, api.create(&PostParams::default(), &secret)).await {
            Ok(Ok(_)) => {
                tracing::info!(namespace = %settings.namespace, "made the mesh's root");
                return Ok(root);
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => return Err(failed(settings, error)),
            Err(_) => return Err(failed(settings, "no answer in time")),
        }
    }
    Err(failed(settings, "it comes and goes"))
}

fn blank(settings: &RootSettings) -> Secret {
    let metadata = ObjectMeta {
        name: Some(SECRET.to_owned()),
        namespace: Some(settings.namespace.clone()),
        ..ObjectMeta::default()
    };
    Secret { metadata, ..Secret::default() }
}

async fn bounded<T>(settings: &RootSettings, asked: impl Future<Output = kube::Result<T>>) -> Result<T, RootsError> {
    match timeout(ROOT_REQUEST_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| failed(settings, error)),
        Err(_) => Err(failed(settings, "no answer in time")),
    }
}

fn failed(settings: &RootSettings, reason: impl fmt::Display) -> RootsError {
    RootsError::Api { namespace: settings.namespace.clone(), reason: reason.to_string() }
}

fn wrong(settings: &RootSettings, error: RootSecretError) -> RootsError {
    RootsError::Secret { namespace: settings.namespace.clone(), error }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("settings", &self.settings).finish_non_exhaustive()
    }
}
