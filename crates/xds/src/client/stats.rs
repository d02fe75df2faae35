//! What happened so far, in numbers, for the metrics of `spec/ztunnel.md` 14 (`istio_xds_*`).

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counters of one client. They only grow.
#[derive(Debug)]
pub struct Stats {
    terminations: [AtomicU64; 4],
    /// By type URL; every watched type is there from the start.
    types: BTreeMap<String, TypeStats>,
}

/// Counters of one type.
#[derive(Debug, Default)]
pub struct TypeStats {
    messages: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
}

/// How a stream, or the attempt to open one, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Termination {
    /// No connection.
    ConnectionError = 0,
    /// An error on the stream.
    Error = 1,
    /// The server or something on the way asked to come again.
    Reconnect = 2,
    /// The server ended the stream in order.
    Complete = 3,
}

// === impl Stats ===

impl Stats {
    pub(super) fn new(types: impl IntoIterator<Item = String>) -> Self {
        let types = types.into_iter().map(|url| (url, TypeStats::default())).collect();
        Self { terminations: Default::default(), types }
    }

    /// Streams that ended so.
    #[must_use]
    pub fn terminations(&self, how: Termination) -> u64 {
        self.terminations[how as usize].load(Relaxed)
    }

    /// The watched types by URL.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TypeStats)> {
        self.types.iter().map(|(url, stats)| (url.as_str(), stats))
    }

    pub(super) fn terminated(&self, how: Termination) {
        self.terminations[how as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, type_url: &str, bytes: usize, refused: usize) {
        if let Some(stats) = self.types.get(type_url) {
            stats.messages.fetch_add(1, Relaxed);
            stats.bytes.fetch_add(bytes as u64, Relaxed);
            stats.refused.fetch_add(refused as u64, Relaxed);
        }
    }
}

// === impl TypeStats ===

impl TypeStats {
    /// Responses.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    /// Their size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Resources in them that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

// === impl Termination ===

impl Termination {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::ConnectionError, Self::Error, Self::Reconnect, Self::Complete];

    /// As in the metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}
