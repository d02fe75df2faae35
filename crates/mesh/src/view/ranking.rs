//! Which endpoints of a service are nearest to a client, worked out ahead: endpoints are kept in a tree by what they
//! have in common with clients, in the service's order of preference (`spec/ztunnel.md` 6). Looking up a client's best
//! ones walks down as many steps as there are preferences, however many endpoints there are.

use std::{collections::HashMap, sync::Arc};

use super::model::{Service, Workload};

/// The port under which every endpoint is found, whatever ports it has.
pub(super) const ANY_PORT: u16 = 0;

/// Endpoints that have the same values in the first preferences.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    /// By service port, sorted; those of the children included.
    buckets: Vec<(u16, Arc<Bucket>)>,
    /// By the value in the next preference.
    children: HashMap<Arc<str>, Arc<Self>>,
}

/// Endpoints with one port, by weight.
#[derive(Clone, Debug, Default)]
pub(super) struct Bucket {
    members: Vec<Entry>,
    /// Sums of the weights up to and with each member; empty if all weights are the same.
    sums: Vec<u64>,
}

/// What choosing between two endpoints takes, so that only the chosen one has to be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) slot: u32,
    /// Not 0.
    pub(super) weight: u32,
    pub(super) load_key: u32,
}

/// What the tree has to know of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    path: Vec<Arc<str>>,
    ports: Vec<u16>,
    weight: u32,
    load_key: u32,
}

/// An endpoint that enters or leaves the tree.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) slot: u32,
    pub(super) member: Member,
    pub(super) enters: bool,
}

/// A number below `bound` (0 if that is 0), evenly for an even `random`.
pub(super) fn below(random: u64, bound: u64) -> u64 {
    // INVARIANT: the high half of a product with a u64 is below that u64.
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

// === impl Member ===

impl Member {
    /// The place of a workload in a service's tree; none for one that gets no connections.
    pub(super) fn of(workload: &Workload, service: &Service, network: &str) -> Option<Self> {
        let ready = workload.healthy || service.balancing.unhealthy_too;
        let here = *workload.network == *network;
        let addressed = workload.addresses.iter().any(|ip| service.families.admit(*ip)) || workload.hostname.is_some();
        let reachable = if here { addressed } else { workload.network_gateway.is_some() };
        if !ready || !reachable || workload.capacity == 0 || workload.rejected.is_some() {
            return None;
        }
        let served = service.ports.keys().copied().filter(|port| workload.target_port(service, *port).is_some());
        Some(Self {
            path: service.balancing.preferences.iter().map(|scope| Arc::clone(workload.scope(*scope))).collect(),
            ports: std::iter::once(ANY_PORT).chain(served).collect(),
            weight: workload.capacity,
            load_key: workload.load_key,
        })
    }

    /// The same without the first preference.
    pub(super) fn anywhere(mut self) -> Self {
        self.path.drain(..self.path.len().min(1));
        self
    }
}

// === impl Node ===

impl Node {
    /// Applies changes; what they don't touch stays shared with other versions of the tree.
    pub(super) fn apply(self: &mut Arc<Self>, changes: &[Move]) {
        let changes: Vec<&Move> = changes.iter().collect();
        Self::apply_at(self, 0, &changes);
    }

    fn apply_at(node: &mut Arc<Self>, depth: usize, changes: &[&Move]) {
        if changes.is_empty() {
            return;
        }
        let node = Arc::make_mut(node);
        let mut by_port: HashMap<u16, Vec<&Move>> = HashMap::new();
        let mut by_child: HashMap<&Arc<str>, Vec<&Move>> = HashMap::new();
        for change in changes {
            for port in &change.member.ports {
                by_port.entry(*port).or_default().push(change);
            }
            if let Some(value) = change.member.path.get(depth) {
                by_child.entry(value).or_default().push(change);
            }
        }
        for (port, changes) in by_port {
            let found = node.buckets.binary_search_by_key(&port, |(port, _)| *port);
            let position = found.unwrap_or_else(|position| {
                node.buckets.insert(position, (port, Arc::default()));
                position
            });
            let bucket = Arc::make_mut(&mut node.buckets[position].1);
            bucket.apply(&changes);
            if bucket.members.is_empty() {
                node.buckets.remove(position);
            }
        }
        for (value, changes) in by_child {
            let child = node.children.entry(Arc::clone(value)).or_default();
            Self::apply_at(child, depth + 1, &changes);
            if child.buckets.is_empty() {
                node.children.remove(value);
            }
        }
    }

    /// The endpoints with this port, if there are any.
    pub(super) fn bucket(&self, port: u16) -> Option<&Bucket> {
        let position = self.buckets.binary_search_by_key(&port, |(port, _)| *port).ok()?;
        Some(&self.buckets[position].1)
    }

    /// Those that have this value in the next preference.
    pub(super) fn child(&self, value: &str) -> Option<&Self> {
        self.children.get(value).map(|child| &**child)
    }
}

// === impl Bucket ===

impl Bucket {
    fn apply(&mut self, changes: &[&Move]) {
        let mut leaving: Vec<u32> = changes.iter().filter(|change| !change.enters).map(|change| change.slot).collect();
        leaving.sort_unstable();
        work::visit(self.members.len());
        self.members.retain(|entry| leaving.binary_search(&entry.slot).is_err());
        let entering = changes.iter().filter(|change| change.enters);
        self.members.extend(entering.map(|change| {
            let Member { weight, load_key, .. } = change.member;
            Entry { slot: change.slot, weight, load_key }
        }));
        self.sums.clear();
        let first = self.members.first().map(|entry| entry.weight);
        if self.members.iter().any(|entry| Some(entry.weight) != first) {
            let mut sum = 0;
            self.sums.extend(self.members.iter().map(|entry| {
                sum += u64::from(entry.weight);
                sum
            }));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// A member, each as likely as its weight says. There is one: empty buckets aren't kept.
    pub(super) fn draw(&self, random: u64) -> Option<Entry> {
        let position = match self.sums.last() {
            None => below(random, self.members.len() as u64),
            Some(total) => {
                let drawn = below(random, *total);
                self.sums.partition_point(|sum| {
                    work::visit(1);
                    *sum <= drawn
                }) as u64
            }
        };
        work::visit(1);
        self.members.get(usize::try_from(position).ok()?).copied()
    }

    /// All members, from a random one on.
    pub(super) fn all_from(&self, random: u64) -> impl Iterator<Item = Entry> {
        let start = usize::try_from(below(random, self.members.len() as u64)).unwrap_or_default();
        let (before, after) = self.members.split_at(start);
        after.iter().chain(before).copied()
    }
}

/// Counts what is looked at, for the test that it isn't more with more endpoints.
pub(super) mod work {
    #[cfg(test)]
    thread_local! {
        static VISITED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    /// Counts this many.
    pub(in crate::view) fn visit(count: usize) {
        #[cfg(test)]
        VISITED.with(|visited| visited.set(visited.get() + count));
        #[cfg(not(test))]
        let _ = count;
    }

    /// What was counted on this thread since the last call.
    #[cfg(test)]
    pub(in crate::view) fn take() -> usize {
        VISITED.with(std::cell::Cell::take)
    }
}
