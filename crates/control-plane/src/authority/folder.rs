//! A CA that an operator plugs in: files in a folder, as a mounted Secret `cacerts` gives them (`spec/control-plane.md` 6.4).

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use ambit_identity::{Crls, Signer, SignerError, SignerFiles};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::limits::{CA_FOLDER_AT_MOST, CA_FOLDER_QUIET, MAX_CA_FILE_BYTES};

/// Names of files in one of the two layouts.
struct Layout {
    certificate: &'static str,
    key: &'static str,
    chain: Option<&'static str>,
    roots: &'static str,
}

/// Istio's own.
const ISTIO: Layout =
    Layout { certificate: "ca-cert.pem", key: "ca-key.pem", chain: Some("cert-chain.pem"), roots: "root-cert.pem" };
/// That of Secrets of type `kubernetes.io/tls`, as cert-manager writes them. What leads to the root follows in `tls.crt`.
const KUBERNETES: Layout = Layout { certificate: "tls.crt", key: "tls.key", chain: None, roots: "ca.crt" };
const CRL: &str = "ca-crl.pem";

/// A folder with a CA's files.
#[derive(Clone, Debug)]
pub struct CaFolder {
    path: PathBuf,
}

/// Why the folder holds no CA. Never quotes a file.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FolderError {
    /// A file can't be read.
    #[error("`{}`: {reason}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The files can't be signed with.
    #[error("the CA in `{}` can't be used: {error}", path.display())]
    Signer {
        /// The folder.
        path: PathBuf,
        /// Why not.
        error: SignerError,
    },
}

/// Tells when something changes in the folder; ends when dropped.
pub(super) struct FolderWatch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

// === impl CaFolder ===

impl CaFolder {
    /// The folder at `path`, which needn't exist.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Whether a CA is plugged in: any of the files is there. One that isn't whole counts, so that a forgotten file doesn't end
    /// in another root than the operator's. Blocks on files.
    #[must_use]
    pub fn is_plugged_in(&self) -> bool {
        let names = [ISTIO.certificate, ISTIO.key, KUBERNETES.certificate, KUBERNETES.key];
        names.iter().any(|name| self.path.join(name).exists())
    }

    /// Reads the CA. Blocks on files.
    pub(super) fn signer(&self, trust_domain: &str, now: SystemTime) -> Result<Signer, FolderError> {
        let istio = [ISTIO.certificate, ISTIO.key].iter().any(|name| self.path.join(name).exists());
        let layout = if istio { ISTIO } else { KUBERNETES };
        let (certificate, key) = (self.needed(layout.certificate)?, self.needed(layout.key)?);
        let chain = layout.chain.map(|name| self.text(name)).transpose()?.flatten().unwrap_or_default();
        let roots = self.needed(layout.roots)?;
        let files = SignerFiles { certificate: &certificate, key: &key, chain: &chain, roots: &roots };
        Signer::read(files, trust_domain, now).map_err(|error| FolderError::Signer { path: self.path.clone(), error })
    }

    /// Reads the revocation lists beside it, PEM; nothing if there are none. Blocks on the file.
    pub(super) fn crl(&self) -> Result<Option<Arc<str>>, FolderError> {
        let Some(text) = self.text(CRL)?.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
        match Crls::parse(text.as_bytes()) {
            Ok(_) => Ok(Some(text.into())),
            Err(error) => Err(self.file(CRL, error.to_string())),
        }
    }

    fn needed(&self, name: &str) -> Result<String, FolderError> {
        match self.text(name)? {
            Some(text) if !text.trim().is_empty() => Ok(text),
            _ => Err(self.file(name, "it is missing or empty; all files of the CA must be there".to_owned())),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, FolderError> {
        let file = match File::open(self.path.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.file(name, error.to_string())),
        };
        let mut text = String::new();
        // One byte more than allowed, so that a longer file is refused and not cut.
        let read = file.take(MAX_CA_FILE_BYTES as u64 + 1).read_to_string(&mut text);
        match read {
            Ok(length) if length > MAX_CA_FILE_BYTES => {
                Err(self.file(name, format!("it has more than {MAX_CA_FILE_BYTES} bytes")))
            }
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(self.file(name, error.to_string())),
        }
    }

    fn file(&self, name: &str, reason: String) -> FolderError {
        FolderError::File { path: self.path.join(name), reason }
    }

    /// That reading it was cut off.
    pub(super) fn unread(&self, error: &tokio::task::JoinError) -> FolderError {
        FolderError::File { path: self.path.clone(), reason: error.to_string() }
    }

    /// Watches the folder from now on.
    pub(super) fn watch(&self) -> notify::Result<FolderWatch> {
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is access; it must not make them be read again. A missed event counts as one.
            if event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_))) {
                told.notify_one();
            }
        })?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(FolderWatch { changed, _watcher: watcher })
    }
}

// === impl FolderWatch ===

impl FolderWatch {
    /// Waits for a change and its end.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
        let started = Instant::now();
        while started.elapsed() < CA_FOLDER_AT_MOST {
            if timeout(CA_FOLDER_QUIET, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }
}
