//! Notices edits of the user's files.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::Notify;

/// Time without an event after which an edit counts as finished.
const QUIET: Duration = Duration::from_millis(10);
/// Time after which edits are taken up even while more come.
const AT_MOST: Duration = Duration::from_millis(50);
/// Time a writer may take from its first write to closing the file. Until then the file may be empty or half there, and
/// policies missing from it would be taken for deleted.
const WRITING_AT_MOST: Duration = Duration::from_secs(5);

/// A watch on files and folders; ends when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    edited: Arc<Notify>,
    settling: tokio::task::JoinHandle<()>,
    _watcher: RecommendedWatcher,
}

#[derive(Debug, Default)]
struct State {
    changed: Notify,
    /// Files between their first write and their closing. Only those that are watched for; emptied with every edit.
    writing: Mutex<BTreeSet<PathBuf>>,
}

/// What is watched.
#[derive(Debug, Default)]
struct Targets {
    /// Files by folder and name, so that an editor may replace them.
    files: BTreeSet<(PathBuf, OsString)>,
    folders: Vec<PathBuf>,
}

// === impl Watch ===

impl Watch {
    /// Watches the paths as they are now; a folder with all that is and will be in it.
    ///
    /// # Errors
    /// When the kernel refuses, usually for `fs.inotify.max_user_watches` or `max_user_instances`.
    pub(super) fn new(paths: &[PathBuf]) -> notify::Result<Self> {
        let targets = Targets::of(paths);
        let state = Arc::new(State::default());
        let folders: BTreeSet<_> = targets.files.iter().map(|(folder, _)| folder.clone()).collect();
        let recursive = targets.folders.clone();
        let of_events = Arc::clone(&state);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => of_events.take(&event, &targets),
            // What was missed isn't known; reading again finds out.
            Err(_) => of_events.changed.notify_one(),
        })?;
        for folder in folders {
            watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        }
        for folder in recursive {
            watcher.watch(&folder, RecursiveMode::Recursive)?;
        }
        let edited = Arc::new(Notify::new());
        let told = Arc::clone(&edited);
        let settling = tokio::spawn(async move {
            loop {
                state.settled().await;
                told.notify_one();
            }
        });
        Ok(Self { edited, settling, _watcher: watcher })
    }

    /// Waits for the end of an edit. Edits that end while nobody waits are told to the next who does, as one.
    pub(super) async fn edited(&self) {
        self.edited.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.settling.abort();
    }
}

// === impl State ===

impl State {
    /// Waits for an edit and its end.
    async fn settled(&self) {
        self.changed.notified().await;
        let started = tokio::time::Instant::now();
        loop {
            let more = tokio::time::timeout(QUIET, self.changed.notified()).await.is_ok();
            let at_most = if self.writing().is_empty() { AT_MOST } else { WRITING_AT_MOST };
            if (!more && at_most == AT_MOST) || started.elapsed() >= at_most {
                break;
            }
        }
        self.writing().clear();
    }

    fn writing(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // A set of paths has no half-done state.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: &Event, targets: &Targets) {
        if event.need_rescan() {
            return self.changed.notify_one();
        }
        let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        // Reading the files is access too; it must not make them be read again.
        if (matches!(event.kind, EventKind::Access(_)) && !closed) || !targets.concern(event) {
            return;
        }
        let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        let ended = closed || matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        for path in &event.paths {
            if written {
                self.writing().insert(path.clone());
            } else if ended {
                self.writing().remove(path);
            }
        }
        self.changed.notify_one();
    }
}

// === impl Targets ===

impl Targets {
    fn of(paths: &[PathBuf]) -> Self {
        let mut targets = Self::default();
        for path in paths {
            // A link is watched at both ends.
            for path in [Some(path.clone()), path.canonicalize().ok()].into_iter().flatten() {
                if path.is_dir() {
                    targets.folders.push(path);
                } else if let Some(name) = path.file_name() {
                    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                    targets.files.insert((folder.unwrap_or(Path::new(".")).to_owned(), name.to_owned()));
                }
            }
        }
        targets.folders.sort();
        targets.folders.dedup();
        targets
    }

    fn concern(&self, event: &Event) -> bool {
        event.paths.iter().any(|path| self.is_file(path) || self.is_in_folder(path, event.kind))
    }

    fn is_file(&self, path: &Path) -> bool {
        let name = path.file_name();
        self.files.iter().any(|(folder, file)| {
            name == Some(file) && path.parent().is_some_and(|parent| parent == folder || parent.as_os_str().is_empty())
        })
    }

    fn is_in_folder(&self, path: &Path, kind: EventKind) -> bool {
        if !self.folders.iter().any(|folder| path.starts_with(folder)) {
            return false;
        }
        let manifest = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // A folder may come, go or be renamed with manifests in it. Logs and the like in the same place are no edit.
        let moved =
            matches!(kind, EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        manifest || (moved && path.extension().is_none())
    }
}
