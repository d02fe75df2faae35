//! The file that revocation lists come from (`CRL_PATH`, `spec/ztunnel.md` 20).

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::time::sleep;

use crate::{
    crl::{CrlError, Crls},
    limits::{CRL_CHECK_INTERVAL, MAX_CRL_BYTES},
    trust::Trust,
};

/// A file of revocation lists that is looked at again and again, by its path: so links that are swapped (as for a
/// mounted ConfigMap), files that come later and file systems that tell of no change are noticed alike.
///
/// A missing file means no lists at first. Once there were lists, they stay in force until others can be read: a file
/// that vanishes or is malformed sets nobody free.
#[derive(Debug)]
pub struct CrlFile {
    path: PathBuf,
    /// The file whose content is in force, or was refused.
    settled: Option<Stamp>,
    /// The file as it was at the last look.
    seen: Option<Stamp>,
    /// Whether it has been said that there is no file.
    missed: bool,
    /// What has been said last of a file that can't be read.
    complaint: Option<String>,
}

/// Why a file's lists are not in force.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CrlFileError {
    /// It can't be read.
    #[error("can't read the revocation lists in `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        reason: String,
    },
    /// Its content is no revocation list.
    #[error("the revocation lists in `{}` can't be used: {error}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: CrlError,
    },
}

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl CrlFile {
    /// The file at `path`; not read yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), settled: None, seen: None, missed: false, complaint: None }
    }

    /// Reads the file for the start and gives its lists to `trust`; a missing one has none. Blocks on the file.
    ///
    /// # Errors
    /// When it is there but can't be read or used. Whoever asked for revocation doesn't get to start without.
    pub fn load(&mut self, trust: &Trust) -> Result<(), CrlFileError> {
        let stamp = self.stamp()?;
        (self.settled, self.seen) = (stamp, stamp);
        if stamp.is_none() {
            self.missed = true;
            tracing::warn!(path = %self.path.display(), "there is no file of revocation lists yet; nothing is revoked");
            return Ok(());
        }
        trust.set_crls(Arc::new(self.read()?));
        Ok(())
    }

    /// Looks at the file again and again, for ever, and gives new lists to `trust` within two looks (about 2 s).
    pub async fn watch(mut self, trust: Arc<Trust>) {
        loop {
            sleep(CRL_CHECK_INTERVAL).await;
            // A file may be large, or on a slow disk.
            let look = tokio::task::spawn_blocking(move || {
                let outcome = self.look();
                (self, outcome)
            });
            let Ok((file, outcome)) = look.await else {
                tracing::error!("the watch over the revocation lists ended: its task was stopped");
                return;
            };
            self = file;
            match outcome {
                Ok(Some(crls)) => {
                    tracing::info!(path = %self.path.display(), lists = crls.len(), "revocation lists reloaded");
                    trust.set_crls(Arc::new(crls));
                }
                Ok(None) => {}
                Err(error) => self.complain(error.to_string()),
            }
        }
    }

    /// New lists, once the file has been the same for two looks: one that is being written is left alone.
    fn look(&mut self) -> Result<Option<Crls>, CrlFileError> {
        let stamp = self.stamp()?;
        let settled = std::mem::replace(&mut self.seen, stamp) == stamp;
        let missed = std::mem::replace(&mut self.missed, stamp.is_none());
        if stamp.is_none() && !missed {
            tracing::warn!(path = %self.path.display(), "the file of revocation lists is gone; its lists stay in force");
        }
        if stamp.is_none() || !settled || self.settled == stamp {
            return Ok(None);
        }
        let content = self.read();
        // What can't be read may be read at the next look; what is malformed stays so until the file changes.
        if !matches!(content, Err(CrlFileError::Read { .. })) {
            (self.settled, self.complaint) = (stamp, None);
        }
        content.map(Some)
    }

    /// Says so once, not at every look.
    fn complain(&mut self, complaint: String) {
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::error!("{complaint}; those read before stay in force");
            self.complaint = Some(complaint);
        }
    }

    fn read(&self) -> Result<Crls, CrlFileError> {
        use io::Read;
        let mut bytes = Vec::new();
        let file = fs::File::open(&self.path).map_err(|error| self.unreadable(&error))?;
        // One byte more than allowed, so that a longer file is refused and not cut.
        file.take(MAX_CRL_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| self.unreadable(&error))?;
        Crls::parse(&bytes).map_err(|error| CrlFileError::Content { path: self.path.clone(), error })
    }

    fn stamp(&self) -> Result<Option<Stamp>, CrlFileError> {
        match fs::metadata(&self.path) {
            Ok(file) if !file.is_file() => {
                Err(CrlFileError::Read { path: self.path.clone(), reason: "it is not a file".to_owned() })
            }
            Ok(file) => Ok(Some(Stamp {
                device: file.dev(),
                inode: file.ino(),
                size: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn unreadable(&self, error: &io::Error) -> CrlFileError {
        CrlFileError::Read { path: self.path.clone(), reason: error.to_string() }
    }
}
