//! What a DNS name means to a pod (`spec/ztunnel.md` 12). Pure.

use std::{net::IpAddr, sync::Arc};

use ambit_mesh::{
    View,
    view::{Service, ServiceKey, Workload},
};
use ipnet::IpNet;

use crate::limits::MAX_DNS_ADDRESSES;

/// What the mesh has to say about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The name exists and has these addresses, maybe none.
    Known(Vec<IpAddr>),
    /// The name would belong to the mesh but doesn't exist. Nobody else is asked about it.
    Unknown,
    /// The name isn't the mesh's; the host's resolvers may know it.
    Foreign,
}

/// The names of one pod's mesh.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The pod's namespace, which short names are relative to.
    pub(crate) namespace: &'a str,
    /// For example `cluster.local`.
    pub(crate) cluster_domain: &'a str,
    /// Addresses whose names nobody outside is asked for.
    pub(crate) ranges: [IpNet; 2],
}

impl Names<'_> {
    /// Looks up a name, in lower case and without the final dot.
    pub(crate) fn lookup(&self, view: &View, name: &str) -> Lookup {
        let labels: Vec<&str> = name.split('.').collect();
        let relative = match name.strip_suffix(self.cluster_domain).map(|rest| rest.strip_suffix('.')) {
            Some(Some(rest)) => Some(rest),
            Some(None) if name.len() == self.cluster_domain.len() => return Lookup::Known(Vec::new()),
            _ => None,
        };
        if let Some(relative) = relative {
            let labels: Vec<&str> = relative.split('.').collect();
            return self.qualified(view, &labels).unwrap_or(Lookup::Unknown);
        }
        match labels.as_slice() {
            [service] => self.service(view, service, self.namespace).map_or(Lookup::Foreign, |s| known(view, &s)),
            [service, namespace] => self.service(view, service, namespace).map_or(Lookup::Foreign, |s| known(view, &s)),
            // No public name ends in `svc`, so such a name is only ever meant for the mesh.
            [.., "svc"] => self.qualified(view, &labels).unwrap_or(Lookup::Unknown),
            // A service may have a name outside the cluster's domain.
            _ => view.services_by_hostname(name).next().map_or(Lookup::Foreign, |s| known(view, s)),
        }
    }

    /// Looks up the name of an address: the mesh has none to give, and doesn't ask others about its own addresses.
    pub(crate) fn reverse(&self, ip: IpAddr) -> Lookup {
        match self.ranges.iter().any(|range| range.contains(&ip)) {
            true => Lookup::Unknown,
            false => Lookup::Foreign,
        }
    }

    /// A name of the form `[pod.]service.namespace.svc`.
    fn qualified(&self, view: &View, labels: &[&str]) -> Option<Lookup> {
        match labels {
            ["svc"] => Some(Lookup::Known(Vec::new())),
            [service, namespace, "svc"] => self.service(view, service, namespace).map(|s| known(view, &s)),
            [pod, service, namespace, "svc"] => {
                let service = self.service(view, service, namespace).filter(|service| service.vips.is_empty())?;
                let addresses = addresses(ready(view, &service).filter(|workload| &*workload.name == *pod));
                (!addresses.is_empty()).then_some(Lookup::Known(addresses))
            }
            _ => None,
        }
    }

    fn service(&self, view: &View, name: &str, namespace: &str) -> Option<Arc<Service>> {
        let hostname = format!("{name}.{namespace}.svc.{}", self.cluster_domain);
        let key = ServiceKey { namespace: namespace.into(), hostname: hostname.into() };
        view.service(&key).cloned()
    }
}

/// The virtual addresses of a service, or the addresses of its ready endpoints if it is headless.
fn known(view: &View, service: &Service) -> Lookup {
    Lookup::Known(match service.vips.is_empty() {
        true => addresses(ready(view, service)),
        false => service.vips.iter().copied().take(MAX_DNS_ADDRESSES).collect(),
    })
}

fn ready<'v>(view: &'v View, service: &Service) -> impl Iterator<Item = &'v Arc<Workload>> {
    view.endpoints(&service.key).iter().filter(|workload| workload.healthy)
}

fn addresses<'v>(workloads: impl Iterator<Item = &'v Arc<Workload>>) -> Vec<IpAddr> {
    workloads.flat_map(|workload| workload.addresses.iter().copied()).take(MAX_DNS_ADDRESSES).collect()
}
