//! The keys of tokens' issuers: fetched where RequestAuthentications say, kept fresh, and handed to whoever tells the
//! proxies. The proxies themselves never fetch any.

mod fetch;
mod mesh;
mod ranges;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use ambit_api::request_authentication::KeySource;
use ambit_mesh::authentication::Fetched;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

pub(crate) use self::{
    fetch::Trust,
    mesh::{changes, endpoints, note, wanted},
    ranges::Ranges,
};
use crate::limits::{KEY_REFRESH, MAX_KEY_BACKOFF, MAX_KEY_FETCHES, MIN_KEY_BACKOFF, MIN_KEY_PAUSE};

/// A future that is asked for through a trait object.
pub type Asked<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// The way out to key servers. Which of their addresses may be used is decided before [`Outside::connect`].
pub trait Outside: fmt::Debug + Send + Sync + 'static {
    /// The addresses of a name, or of an address in text.
    fn resolve(&self, host: String) -> Asked<Vec<IpAddr>>;

    /// A connection. `inside` says that the address is that of a pod of the mesh.
    fn connect(&self, address: SocketAddr, inside: bool) -> Asked<TcpStream>;
}

/// Key servers as this process reaches them.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnNetwork;

/// What is to be fetched.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    /// With how long each may take.
    pub(crate) sources: BTreeMap<KeySource, Duration>,
    /// Where they may be, besides public addresses.
    pub(crate) ranges: Ranges,
    /// Moves when pods have come or gone: one of them may be a key server.
    pub(crate) moved: u64,
}

/// Finds the pods behind a name and port of the mesh; nothing for a name that isn't the mesh's.
pub(crate) trait Inside: Send + Sync + 'static {
    /// Their addresses.
    fn endpoints(&self, host: String, port: u16) -> Pin<Box<dyn Future<Output = Option<Vec<SocketAddr>>> + Send>>;
}

/// How to fetch.
#[derive(Clone)]
pub(crate) struct Ways {
    pub(crate) outside: Arc<dyn Outside>,
    pub(crate) inside: Arc<dyn Inside>,
    pub(crate) trust: Trust,
}

/// One source's state.
struct Entry {
    next: Instant,
    last: Option<Instant>,
    failures: u32,
    running: bool,
    /// There are keys in force; they stay so when they can't be fetched again.
    good: bool,
}

/// Fetches what is wanted, again and again, until nobody wants anything any more.
pub(crate) async fn keep(ways: Ways, mut wanted: watch::Receiver<Wanted>, found: mpsc::Sender<(KeySource, Fetched)>) {
    let mut entries: HashMap<KeySource, Entry> = HashMap::new();
    let mut fetches = JoinSet::new();
    let mut before = Wanted::default();
    wanted.mark_changed();
    loop {
        let next = entries.values().filter(|entry| !entry.running).map(|entry| entry.next).min();
        let room = fetches.len() < MAX_KEY_FETCHES;
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = wanted.borrow_and_update().clone();
                follow(&mut entries, &before, &now);
                before = now;
            }
            Some(done) = fetches.join_next(), if !fetches.is_empty() => {
                // A fetch that panicked is tried again after the others' pause.
                let Ok((source, outcome)) = done else { continue };
                let Some(entry) = entries.get_mut(&source) else { continue };
                if let Some(news) = entry.done(&source, outcome) && found.send((source, news)).await.is_err() {
                    return;
                }
            }
            () = due(next), if room => {
                let now = Instant::now();
                let due = entries.iter_mut().filter(|(_, entry)| !entry.running && entry.next <= now);
                for (source, entry) in due.take(MAX_KEY_FETCHES - fetches.len()) {
                    (entry.running, entry.last) = (true, Some(now));
                    let (ways, source, ranges) = (ways.clone(), source.clone(), before.ranges.clone());
                    let timeout = before.sources.get(&source).copied().unwrap_or_default();
                    fetches.spawn(async move {
                        let outcome = fetch::fetch(&ways, &source, &ranges, timeout).await;
                        (source, outcome)
                    });
                }
            }
        }
    }
}

async fn due(next: Option<Instant>) {
    match next {
        Some(next) => sleep_until(next).await,
        None => std::future::pending().await,
    }
}

/// Brings the entries in line with what is wanted.
fn follow(entries: &mut HashMap<KeySource, Entry>, before: &Wanted, wanted: &Wanted) {
    entries.retain(|source, _| wanted.sources.contains_key(source));
    let now = Instant::now();
    for source in wanted.sources.keys() {
        let entry = entries.entry(source.clone()).or_insert(Entry {
            next: now,
            last: None,
            failures: 0,
            running: false,
            good: false,
        });
        // Whoever edits, or starts a key server, waits for what comes of it.
        let hopeful = entry.failures > 0 && before.moved != wanted.moved;
        if before.ranges != wanted.ranges || hopeful {
            let soon = entry.last.map_or(now, |last| last + MIN_KEY_PAUSE);
            entry.next = entry.next.min(soon);
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Takes in what came of a fetch, and gives what there is to tell of it.
    fn done(&mut self, source: &KeySource, outcome: Result<String, String>) -> Option<Fetched> {
        self.running = false;
        let now = Instant::now();
        match outcome {
            Ok(keys) => {
                (self.failures, self.good) = (0, true);
                self.next = now + spread(KEY_REFRESH, source);
                Some(Ok(keys.into()))
            }
            Err(reason) => {
                let pause = MIN_KEY_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(MAX_KEY_BACKOFF);
                self.failures = self.failures.saturating_add(1);
                self.next = now + spread(pause, source);
                (!self.good).then(|| Err(reason.into()))
            }
        }
    }
}

/// Up to a tenth less, so that not all are fetched at once.
fn spread(pause: Duration, source: &KeySource) -> Duration {
    let tenths = u32::try_from(RandomState::new().hash_one(source) % 100).unwrap_or_default();
    pause - pause / 1000 * tenths
}

// === impl OwnNetwork ===

impl Outside for OwnNetwork {
    fn resolve(&self, host: String) -> Asked<Vec<IpAddr>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }

    fn connect(&self, address: SocketAddr, _inside: bool) -> Asked<TcpStream> {
        Box::pin(TcpStream::connect(address))
    }
}

#[cfg(test)]
mod tests;
