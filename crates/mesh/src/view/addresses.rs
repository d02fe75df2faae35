//! Whose an address is, in each network (`spec/ztunnel.md` 4).

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    claims::Claims,
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

/// Services by ranges of addresses.
#[derive(Clone, Debug, Default)]
struct Ranges {
    services: Shards<IpNet, Vec<Arc<Service>>>,
    /// Prefix lengths that occur, by family, with the ranges of each; there are few.
    lengths: BTreeMap<(bool, u8), usize>,
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

    /// True if a workload or service has exactly this address.
    pub(super) fn has(&self, network: &str, ip: IpAddr) -> bool {
        self.networks.get(network).is_some_and(|network| {
            network.workloads.get(&ip).is_some() || network.vips.get(&ip).is_some_and(|services| !services.is_empty())
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
            network.workloads.len() == 0 && network.vips.len() == 0 && network.ranges.is_empty()
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

// === impl Ranges ===

impl Ranges {
    fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    fn containing(&self, ip: IpAddr) -> impl Iterator<Item = (u8, &Arc<Service>)> {
        let lengths = self.lengths.range((ip.is_ipv4(), 0)..=(ip.is_ipv4(), u8::MAX));
        lengths.flat_map(move |((_, length), _)| {
            let range = IpNet::new(ip, *length).ok().map(|range| range.trunc());
            let services = range.and_then(|range| self.services.get(&range));
            services.into_iter().flatten().map(|service| (*length, service))
        })
    }

    fn put(&mut self, range: &IpNet, service: &Arc<Service>) {
        let range = range.trunc();
        if self.services.get(&range).is_none() {
            *self.lengths.entry(length(&range)).or_default() += 1;
        }
        put(self.services.entry(range, Vec::new), service);
    }

    fn remove(&mut self, range: &IpNet, service: &Service) {
        let range = range.trunc();
        let mut emptied = false;
        self.services.update(&range, |services| {
            services.retain(|known| known.key != service.key);
            emptied = services.is_empty();
            !emptied
        });
        if emptied && let Some(count) = self.lengths.get_mut(&length(&range)) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length(&range));
            }
        }
    }
}

fn length(range: &IpNet) -> (bool, u8) {
    (range.addr().is_ipv4(), range.prefix_len())
}
