//! Ambit's own metrics: what was refused and why, and how much of each budget is used.

use std::{
    fmt,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Reporter,
    encode::{counter, gauge},
};
use crate::limits::MAX_BUDGETS;

/// Why a connection, stream or query was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A policy denies it.
    Policy,
    /// Only a waypoint may reach the port.
    Guard,
    /// A policy that changed closed it after it was let in.
    PolicyChange,
    /// The request isn't one: malformed, or to an address this pod doesn't have.
    BadRequest,
    /// It would lead the proxy to itself.
    Loop,
    /// The control plane doesn't know the pod.
    UnknownWorkload,
    /// There is no safe way to the destination.
    NoRoute,
    /// No endpoint is healthy.
    NoEndpoint,
    /// The next hop or application can't be reached.
    Unreachable,
    /// The handshake failed, or took too long.
    Handshake,
    /// A peer isn't who it should be, or there is no certificate.
    Identity,
    /// The pod has as many connections as it may have.
    PodConnections,
    /// All pods together have as many connections as they may have.
    Connections,
    /// As many handshakes are under way as may be.
    Handshakes,
    /// The pod, or all pods, use as much memory as they may.
    Memory,
    /// As many DNS queries are under way as may be.
    DnsQueries,
    /// The client isn't one that the DNS proxy serves.
    DnsClient,
    /// The proxy or the pod is going.
    Draining,
}

/// How much of something bounded is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use now.
    pub used: usize,
    /// At most.
    pub limit: usize,
    /// Refusals because a workload has used up its share.
    pub refused_by_workload: u64,
    /// Refusals because all have used up the whole.
    pub refused_by_node: u64,
}

/// Counts refusals, and reads budgets.
pub struct Refusals {
    counts: [[AtomicU64; REFUSALS.len()]; 2],
    budgets: RwLock<Vec<(&'static str, Reader)>>,
}

type Reader = Box<dyn Fn() -> Usage + Send + Sync>;

const REFUSALS: [(Refusal, &str); 18] = [
    (Refusal::Policy, "policy"),
    (Refusal::Guard, "guard"),
    (Refusal::PolicyChange, "policy_change"),
    (Refusal::BadRequest, "bad_request"),
    (Refusal::Loop, "loop"),
    (Refusal::UnknownWorkload, "unknown_workload"),
    (Refusal::NoRoute, "no_route"),
    (Refusal::NoEndpoint, "no_endpoint"),
    (Refusal::Unreachable, "unreachable"),
    (Refusal::Handshake, "handshake"),
    (Refusal::Identity, "identity"),
    (Refusal::PodConnections, "pod_connections"),
    (Refusal::Connections, "connections"),
    (Refusal::Handshakes, "handshakes"),
    (Refusal::Memory, "memory"),
    (Refusal::DnsQueries, "dns_queries"),
    (Refusal::DnsClient, "dns_client"),
    (Refusal::Draining, "draining"),
];

// === impl Refusal ===

impl Refusal {
    /// As in the label `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        REFUSALS[self as usize].1
    }
}

// === impl Refusals ===

impl Refusals {
    pub(super) fn new() -> Self {
        Self { counts: Default::default(), budgets: RwLock::default() }
    }

    /// Counts a refusal (`ambit_refused_total`).
    pub fn refused(&self, reporter: Reporter, refusal: Refusal) {
        self.counts[reporter as usize][refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Shows a budget under this name from now on; read at each scrape, so the reader must be quick. A second reader of
    /// the same name replaces the first.
    pub fn watch_budget(&self, name: &'static str, read: impl Fn() -> Usage + Send + Sync + 'static) {
        let mut budgets = self.budgets.write().unwrap_or_else(PoisonError::into_inner);
        budgets.retain(|(known, _)| *known != name);
        if budgets.len() < MAX_BUDGETS {
            budgets.push((name, Box::new(read)));
        }
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let refused = [Reporter::Source, Reporter::Destination].into_iter().flat_map(|reporter| {
            let counts = REFUSALS.iter().zip(&self.counts[reporter as usize]);
            counts.map(move |((_, reason), count)| {
                ([("reporter", reporter.as_str()), ("reason", *reason)], count.load(Ordering::Relaxed))
            })
        });
        let help = "Connections, streams and queries that were refused";
        counter(encoder, "ambit_refused", help, refused.filter(|(_, count)| *count > 0))?;
        let budgets: Vec<_> = {
            let budgets = self.budgets.read().unwrap_or_else(PoisonError::into_inner);
            budgets.iter().map(|(name, read)| (*name, read())).collect()
        };
        let value = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let used = budgets.iter().map(|(name, usage)| ([("budget", *name)], value(usage.used)));
        gauge(encoder, "ambit_budget_used", "How much of a budget is in use", used)?;
        let limit = budgets.iter().map(|(name, usage)| ([("budget", *name)], value(usage.limit)));
        gauge(encoder, "ambit_budget_limit", "How much of a budget there is", limit)?;
        let refused = budgets.iter().flat_map(|(name, usage)| {
            let labels = |scope| [("budget", *name), ("scope", scope)];
            [(labels("workload"), usage.refused_by_workload), (labels("node"), usage.refused_by_node)]
        });
        let help = "What was refused because a workload's share of a budget, or all of it, was used up";
        counter(encoder, "ambit_budget_refused", help, refused.filter(|(_, count)| *count > 0))
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::REFUSALS;

    #[test]
    fn each_reason_stands_at_its_own_place() {
        for (place, (refusal, name)) in REFUSALS.iter().enumerate() {
            assert_eq!((*refusal as usize, refusal.as_str()), (place, *name));
        }
    }
}
