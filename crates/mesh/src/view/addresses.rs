//! Whose an address is, in each network (`spec/ztunnel.md` 4).

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    model::{NetworkAddress, Service, Workload},
    shards::Shards,
};

/// Addresses by network.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    networks: HashMap<Arc<str>, Arc<Network>>,
}

#[derive(Clone, Debug, Default)]
struct Network {
    workloads: Shards<IpAddr, Claims>,
    vips: Shards<IpAddr, Vec<Arc<Service>>>,
    ranges: Arc<Ranges>,
}

/// Workloads that say an address is theirs; nearly always one. The first has it.
#[derive(Clone, Debug)]
enum Claims {
    One(Arc<Workload>),
    Several(Vec<Arc<Workload>>),
}

/// Services by ranges of addresses.
#[derive(Clone, Debug, Default)]
struct Ranges {
    services: HashMap<IpNet, Vec<Arc<Service>>>,
    /// Prefix lengths that occur, by family; there are few.
    lengths: Vec<(bool, u8)>,
}

// === impl Addresses ===

impl Addresses {
    pub(super) fn workload(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        Some(self.networks.get(network)?.workloads.get(&ip)?.owner())
    }

    /// The service that clients of this namespace mean by this address; without a namespace, whichever wins for most.
    pub(super) fn service(&self, network: &str, ip: IpAddr, client: Option<&str>) -> Option<&Arc<Service>> {
        let network = self.networks.get(network)?;
        let own = |service: &Service| client.is_some_and(|client| *service.key.namespace == *client);
        let known = |service: &&Arc<Service>| client.is_none_or(|client| service.is_visible_to(client));
        let exact = network.vips.get(&ip).into_iter().flatten().filter(known);
        first_max(exact, |service| (own(service), service.canonical)).or_else(|| {
            let within = network.ranges.containing(ip).filter(|(_, service)| known(service));
            first_max(within, |(length, service)| (own(service), *length, service.canonical)).map(|(_, found)| found)
        })
    }

    /// Enters a workload as it is now in place of what it was.
    pub(super) fn put_workload(&mut self, before: Option<&Workload>, now: Option<&Arc<Workload>>) {
        let claimed = |workload: &Workload| if workload.host_network { Vec::new() } else { workload.addresses.clone() };
        let stays = |old: &Workload, ip: &IpAddr| {
            now.is_some_and(|now| now.network == old.network && !now.host_network && now.addresses.contains(ip))
        };
        if let Some(old) = before {
            for ip in claimed(old).iter().filter(|ip| !stays(old, ip)) {
                self.network(&old.network).workloads.update(ip, |claims| claims.remove(&old.uid));
            }
            self.forget(&old.network);
        }
        let Some(now) = now else { return };
        for ip in claimed(now) {
            let claims = self.network(&now.network).workloads.entry(ip, || Claims::One(Arc::clone(now)));
            claims.put(now);
        }
    }

    /// Enters a service as it is now in place of what it was.
    pub(super) fn put_service(&mut self, own: &Arc<str>, before: Option<&Service>, now: Option<&Arc<Service>>) {
        if let Some(old) = before {
            for NetworkAddress { network, ip } in vips(own, old) {
                let stays = now.is_some_and(|now| vips(own, now).any(|vip| vip.network == network && vip.ip == ip));
                if !stays {
                    self.network(&network).vips.update(&ip, |services| {
                        services.retain(|service| service.key != old.key);
                        !services.is_empty()
                    });
                }
            }
            for (network, range) in &old.ranges {
                Arc::make_mut(&mut self.network(network).ranges).remove(range, old);
                self.forget(network);
            }
            vips(own, old).for_each(|vip| self.forget(&vip.network));
        }
        let Some(now) = now else { return };
        for NetworkAddress { network, ip } in vips(own, now) {
            put(self.network(&network).vips.entry(ip, Vec::new), now);
        }
        for (network, range) in &now.ranges {
            Arc::make_mut(&mut self.network(network).ranges).put(range, now);
        }
    }

    fn network(&mut self, name: &Arc<str>) -> &mut Network {
        Arc::make_mut(self.networks.entry(Arc::clone(name)).or_default())
    }

    /// Forgets a network that has nothing any more.
    fn forget(&mut self, name: &str) {
        let empty = |network: &Arc<Network>| {
            network.workloads.len() == 0 && network.vips.len() == 0 && network.ranges.services.is_empty()
        };
        if self.networks.get(name).is_some_and(empty) {
            self.networks.remove(name);
        }
    }
}

fn vips(own: &Arc<str>, service: &Service) -> impl Iterator<Item = NetworkAddress> {
    let here = service.vips.iter().map(|ip| NetworkAddress { network: Arc::clone(own), ip: *ip });
    here.chain(service.remote_vips.iter().cloned())
}

/// Whoever was first stays first.
fn put(services: &mut Vec<Arc<Service>>, now: &Arc<Service>) {
    match services.iter_mut().find(|service| service.key == now.key) {
        Some(place) => *place = Arc::clone(now),
        None => services.push(Arc::clone(now)),
    }
}

/// The first of those with the greatest key.
fn first_max<T, K: Ord>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Option<T> {
    items.reduce(|best, item| if key(&item) > key(&best) { item } else { best })
}

// === impl Claims ===

impl Claims {
    fn owner(&self) -> &Arc<Workload> {
        match self {
            Self::One(workload) => workload,
            // INVARIANT: never fewer than two.
            Self::Several(workloads) => &workloads[0],
        }
    }

    fn put(&mut self, now: &Arc<Workload>) {
        let mut all = self.take();
        match all.iter_mut().find(|workload| workload.uid == now.uid) {
            Some(place) => *place = Arc::clone(now),
            // A pod's address is given to another pod before the old one's object is gone. Others came first, or not.
            None if now.is_pod() => all.insert(0, Arc::clone(now)),
            None => all.push(Arc::clone(now)),
        }
        all.sort_by_key(|workload| std::cmp::Reverse((workload.is_pod(), workload.hbone)));
        *self = Self::of(all).unwrap_or_else(|| Self::One(Arc::clone(now)));
    }

    /// False if nobody is left.
    fn remove(&mut self, uid: &str) -> bool {
        let mut all = self.take();
        all.retain(|workload| *workload.uid != *uid);
        Self::of(all).map(|left| *self = left).is_some()
    }

    fn take(&self) -> Vec<Arc<Workload>> {
        match self {
            Self::One(workload) => vec![Arc::clone(workload)],
            Self::Several(workloads) => workloads.clone(),
        }
    }

    fn of(mut all: Vec<Arc<Workload>>) -> Option<Self> {
        if all.len() > 1 { Some(Self::Several(all)) } else { all.pop().map(Self::One) }
    }
}

// === impl Ranges ===

impl Ranges {
    fn containing(&self, ip: IpAddr) -> impl Iterator<Item = (u8, &Arc<Service>)> {
        let lengths = self.lengths.iter().filter(move |(v4, _)| *v4 == ip.is_ipv4());
        lengths.flat_map(move |(_, length)| {
            let range = IpNet::new(ip, *length).ok().map(|range| range.trunc());
            let services = range.and_then(|range| self.services.get(&range));
            services.into_iter().flatten().map(|service| (*length, service))
        })
    }

    fn put(&mut self, range: &IpNet, service: &Arc<Service>) {
        put(self.services.entry(range.trunc()).or_default(), service);
        self.index();
    }

    fn remove(&mut self, range: &IpNet, service: &Service) {
        if let Some(services) = self.services.get_mut(&range.trunc()) {
            services.retain(|known| known.key != service.key);
            if services.is_empty() {
                self.services.remove(&range.trunc());
            }
        }
        self.index();
    }

    fn index(&mut self) {
        self.lengths = self.services.keys().map(|range| (range.addr().is_ipv4(), range.prefix_len())).collect();
        self.lengths.sort_unstable();
        self.lengths.dedup();
    }
}
