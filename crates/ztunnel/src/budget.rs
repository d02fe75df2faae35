//! What one pod and all pods together may take: connections, handshakes, tunnels being made, memory, DNS queries. Past a
//! bound the newest is refused, which is counted always and recorded as far as records are worth their cost.

mod metered;
mod records;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(crate) use ambit_hbone::budget::{OverBudget, Permit};
use ambit_hbone::{
    budget::{self, Bound, Resource, Scope, Turns},
    limits::TUNNEL_BYTES,
};
use ambit_telemetry::metrics::{Refusal, Usage};

pub(crate) use self::metered::Metered;
use self::records::Records;
use crate::{
    Config, Limits,
    limits::{STREAM_BYTES, TURNS_PER_POD},
};

/// What all pods share.
pub(crate) struct Budgets {
    limits: Limits,
    connections: Arc<Bound>,
    handshakes: Arc<Bound>,
    tunnels: Arc<Bound>,
    memory: Arc<Bound>,
    dns_queries: Arc<Bound>,
}

/// One pod's share.
pub(crate) struct PodBudget {
    connections: Arc<Bound>,
    handshakes: Arc<Bound>,
    memory: Arc<Bound>,
    dns_queries: Arc<Bound>,
    /// The transport's limits for tunnels to the pod; those of its own have turns of their own.
    inbound: ambit_hbone::Limits,
    outbound: ambit_hbone::Limits,
    records: Records,
}

/// The place of one connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    _connection: Permit,
    _memory: Permit,
}

// === impl Budgets ===

impl Budgets {
    /// All unused, and shown by the metrics.
    pub(crate) fn new(config: &Config) -> Self {
        let limits = config.limits;
        let budgets = Self {
            limits,
            connections: Bound::new(limits.connections),
            handshakes: Bound::new(limits.handshakes),
            tunnels: Bound::new(limits.tunnels),
            memory: Bound::new(limits.memory_bytes),
            dns_queries: Bound::new(limits.dns_queries),
        };
        for (name, bound) in [
            ("connections", &budgets.connections),
            ("handshakes", &budgets.handshakes),
            ("tunnels", &budgets.tunnels),
            ("memory", &budgets.memory),
            ("dns_queries", &budgets.dns_queries),
        ] {
            let bound = Arc::clone(bound);
            config.metrics.refusals.watch_budget(name, move || {
                let (refused_by_workload, refused_by_node) = bound.refused();
                Usage { used: bound.used(), limit: bound.limit(), refused_by_workload, refused_by_node }
            });
        }
        budgets
    }

    /// The share of one more pod.
    pub(crate) fn pod(&self, config: &Config) -> PodBudget {
        let limits = &self.limits;
        let connections = share(&self.connections, limits.connections_per_pod);
        let memory = share(&self.memory, limits.memory_bytes_per_pod);
        let transport = |tunnels| ambit_hbone::Limits {
            budget: budget::Budget {
                connections: Some(Arc::clone(&connections)),
                tunnels,
                memory: Some(Arc::clone(&memory)),
                turns: Turns::on(Arc::clone(&config.handshakes), TURNS_PER_POD),
            },
            ..config.transport.clone()
        };
        PodBudget {
            inbound: transport(None),
            outbound: transport(Some(share(&self.tunnels, limits.tunnels_per_pod))),
            handshakes: share(&self.handshakes, limits.handshakes_per_pod),
            dns_queries: share(&self.dns_queries, limits.dns_queries_per_pod),
            connections,
            memory,
            records: Records::default(),
        }
    }
}

/// A share of at most half: no pod alone may take what all need.
fn share(whole: &Arc<Bound>, limit: usize) -> Arc<Bound> {
    whole.share(limit.min((whole.limit() / 2).max(1)))
}

// === impl PodBudget ===

impl PodBudget {
    /// A place for one more connection, or stream of a tunnel.
    pub(crate) fn connection(&self) -> Result<Slot, OverBudget> {
        self.slot(STREAM_BYTES)
    }

    /// A place for one more tunnel to the pod.
    pub(crate) fn tunnel(&self) -> Result<Slot, OverBudget> {
        self.slot(TUNNEL_BYTES)
    }

    /// A place for one more handshake of such a tunnel.
    pub(crate) fn handshake(&self) -> Result<Permit, OverBudget> {
        take(&self.handshakes, 1, Resource::Handshakes)
    }

    /// A place for one more DNS query.
    pub(crate) fn dns_query(&self) -> Result<Permit, OverBudget> {
        take(&self.dns_queries, 1, Resource::DnsQueries)
    }

    /// What the pod's connections hold.
    pub(crate) fn memory(&self) -> &Arc<Bound> {
        &self.memory
    }

    /// Whether the next connection will be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.connections.is_used_up() || self.memory.is_used_up()
    }

    /// Whether the next tunnel to the pod will be.
    pub(crate) fn is_full_for_tunnels(&self) -> bool {
        self.is_full() || self.handshakes.is_used_up()
    }

    /// How tunnels to the pod are served.
    pub(crate) fn inbound(&self) -> &ambit_hbone::Limits {
        &self.inbound
    }

    /// How the pod's own tunnels are made.
    pub(crate) fn outbound(&self) -> &ambit_hbone::Limits {
        &self.outbound
    }

    /// The reason of something that happens all the time when somebody floods, if it is to be recorded.
    pub(crate) fn recordable(&self, reason: impl std::fmt::Display) -> Option<String> {
        self.records.reason(reason)
    }

    fn slot(&self, bytes: usize) -> Result<Slot, OverBudget> {
        let connection = take(&self.connections, 1, Resource::Connections)?;
        let memory = take(&self.memory, bytes, Resource::Memory)?;
        Ok(Slot { _connection: connection, _memory: memory })
    }
}

fn take(bound: &Arc<Bound>, amount: usize, resource: Resource) -> Result<Permit, OverBudget> {
    bound.take(amount).map_err(|scope| OverBudget { resource, scope })
}

/// What a refusal counts as.
pub(crate) fn refusal(over: OverBudget) -> Refusal {
    match (over.resource, over.scope) {
        (Resource::Connections, Scope::Share) => Refusal::PodConnections,
        (Resource::Connections, Scope::Whole) => Refusal::Connections,
        (Resource::Handshakes | Resource::Tunnels, _) => Refusal::Handshakes,
        (Resource::Memory, _) => Refusal::Memory,
        (Resource::DnsQueries, _) => Refusal::DnsQueries,
    }
}
