//! What a DNS name means to a pod (`spec/ztunnel.md` 12). Pure.

use std::{net::IpAddr, sync::Arc};

use ambit_mesh::{
    View,
    view::{Service, Workload},
};
use ipnet::IpNet;

use crate::limits::{DNS_ENDPOINT_TTL_SECONDS, DNS_TTL_SECONDS, MAX_DNS_ADDRESSES, MAX_DNS_SEARCH_DOMAINS};

/// What the mesh has to say about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The name exists.
    Known(Found),
    /// The name would belong to the mesh but doesn't exist. Nobody else is asked about it.
    Unknown,
    /// The name isn't the mesh's; resolvers may know it.
    Foreign,
}

/// A name that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its addresses of the family asked for, maybe none.
    pub(crate) addresses: Vec<IpAddr>,
    /// The name that has them, if it was found by leaving out a search domain.
    pub(crate) alias_of: Option<String>,
    /// Seconds the client may keep the answer.
    pub(crate) ttl: u32,
}

/// Address family of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `A`
    V4,
    /// `AAAA`
    V6,
}

/// How one pod sees names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The pod's namespace, which short names are relative to.
    pub(crate) namespace: &'a str,
    /// For example `cluster.local`.
    pub(crate) cluster_domain: &'a str,
    /// The cluster's names are all here: nobody else is asked about names below its domain, nor about these addresses.
    pub(crate) authoritative: Option<[IpNet; 2]>,
    /// Namespace that wins among services of one hostname, after the client's own and the canonical one.
    pub(crate) preferred_namespace: Option<&'a str>,
    /// Search domains in place of those of a pod in this namespace.
    pub(crate) search: Option<&'a [String]>,
    /// Names have IPv6 addresses.
    pub(crate) ipv6: bool,
}

/// A name to look for, and the name it stands for if a search domain was left out.
struct Candidate {
    name: String,
    stripped: Option<String>,
}

// === impl Names ===

impl Names<'_> {
    /// Looks up a name, in lower case and without the final dot. `random` decides the order of the addresses.
    pub(crate) fn lookup(&self, view: &View, name: &str, family: Family, random: u64) -> Lookup {
        for candidate in self.candidates(name) {
            if let Some((service, is_wildcard)) = self.find(view, &candidate.name) {
                let alias_of = candidate.stripped.filter(|_| !is_wildcard);
                return Lookup::Known(Found { alias_of, ..self.found(view, service, family, random) });
            }
            if let Some(found) = self.pod(view, &candidate.name, family) {
                return Lookup::Known(Found { alias_of: candidate.stripped, ..found });
            }
        }
        self.nobody(name)
    }

    /// Looks up whether a name exists, for questions that don't ask for addresses.
    pub(crate) fn exists(&self, view: &View, name: &str) -> Lookup {
        match self.authoritative {
            Some(_) => self.lookup(view, name, Family::V4, 0),
            None => Lookup::Foreign,
        }
    }

    /// Looks up the name of an address: the mesh has none to give.
    pub(crate) fn reverse(&self, ip: IpAddr) -> Lookup {
        match self.authoritative {
            Some(ranges) if ranges.iter().any(|range| range.contains(&ip)) => Lookup::Unknown,
            _ => Lookup::Foreign,
        }
    }

    /// A name that no service has.
    fn nobody(&self, name: &str) -> Lookup {
        let is_below = |domain: &str| strip(name, domain).is_some();
        let svc = format!("svc.{}", self.cluster_domain);
        match self.authoritative {
            None => Lookup::Foreign,
            // These exist, because names below them do.
            Some(_) if name == self.cluster_domain || name == svc => Lookup::Known(Found::nothing()),
            // No public name ends in `svc`, so such a name is only ever meant for the mesh.
            Some(_) if is_below(self.cluster_domain) || is_below("svc") => Lookup::Unknown,
            Some(_) => Lookup::Foreign,
        }
    }

    /// The names to look for, in their order: the name itself, what Kubernetes would make of it, and the same again with
    /// each search domain left out that it ends in.
    fn candidates(&self, name: &str) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        let mut add = |name: &str, stripped: Option<&str>| {
            let names = [name.to_owned()].into_iter().chain(self.expansions(name));
            let stripped = stripped.map(str::to_owned);
            candidates.extend(names.map(|name| Candidate { name, stripped: stripped.clone() }));
        };
        add(name, None);
        let own = [format!("{}.svc.{}", self.namespace, self.cluster_domain), format!("svc.{}", self.cluster_domain)];
        let cluster = [self.cluster_domain.to_owned()];
        let search = self.search.map_or_else(|| [&own[..], &cluster].concat(), <[String]>::to_vec);
        for domain in search.iter().take(MAX_DNS_SEARCH_DOMAINS) {
            if let Some(stripped) = strip(name, domain) {
                add(stripped, Some(stripped));
            }
        }
        candidates
    }

    /// Full names that a short name may stand for.
    fn expansions(&self, name: &str) -> Vec<String> {
        let (namespace, domain) = (self.namespace, self.cluster_domain);
        let labels: Vec<&str> = name.split('.').collect();
        match labels.as_slice() {
            [""] => Vec::new(),
            [_] => vec![format!("{name}.{namespace}.svc.{domain}")],
            [_, _] => vec![format!("{name}.svc.{domain}"), format!("{name}.{namespace}.svc.{domain}")],
            [_, _, "svc"] | [_, _, _, "svc"] => vec![format!("{name}.{domain}")],
            [_, _, _] => vec![format!("{name}.svc.{domain}")],
            _ => Vec::new(),
        }
    }

    /// The service of exactly this name, else of the narrowest wildcard above it; true for a wildcard.
    fn find<'v>(&self, view: &'v View, name: &str) -> Option<(&'v Arc<Service>, bool)> {
        if let Some(service) = self.choose(view, name) {
            return Some((service, false));
        }
        let mut rest = name;
        while let Some((_, above)) = rest.split_once('.') {
            if let Some(service) = self.choose(view, &format!("*.{above}")) {
                return Some((service, true));
            }
            rest = above;
        }
        None
    }

    /// Of the services with this hostname, the one that this client means.
    fn choose<'v>(&self, view: &'v View, hostname: &str) -> Option<&'v Arc<Service>> {
        let is_cluster_name = self.is_cluster_name(hostname);
        let has_addresses = |service: &Service| !service.vips.is_empty() || !service.remote_vips.is_empty();
        let rank = |service: &Service| match &*service.key.namespace {
            namespace if namespace == self.namespace => 0,
            _ if service.canonical => 1,
            namespace if Some(namespace) == self.preferred_namespace => 2,
            _ => 3,
        };
        view.services_by_hostname(hostname)
            .filter(|service| service.is_visible_to(self.namespace) && (is_cluster_name || has_addresses(service)))
            .min_by_key(|service| rank(service))
    }

    fn is_cluster_name(&self, hostname: &str) -> bool {
        strip(hostname, self.cluster_domain).is_some_and(|rest| rest.ends_with(".svc"))
    }

    /// The addresses of a service: its virtual ones, or those of its endpoints if it is headless.
    fn found(&self, view: &View, service: &Service, family: Family, random: u64) -> Found {
        let is_headless = service.vips.is_empty() && service.remote_vips.is_empty();
        let admitted = |ip: &IpAddr| self.is_wanted(*ip, family) && service.families.admit(*ip);
        let mut addresses: Vec<IpAddr> = match is_headless {
            false => service.vips.iter().copied().filter(admitted).take(MAX_DNS_ADDRESSES).collect(),
            true => {
                let all = view.endpoints(&service.key);
                // A service may have more endpoints than an answer has room for: begin anywhere.
                let start = usize::try_from(random % all.len().max(1) as u64).unwrap_or(0);
                let endpoints = all[start..].iter().chain(&all[..start]);
                let usable = endpoints.filter(|workload| is_usable(view, service, workload));
                let addresses = usable.filter_map(|workload| workload.addresses.iter().copied().find(admitted));
                addresses.take(MAX_DNS_ADDRESSES).collect()
            }
        };
        shuffle(&mut addresses, random);
        let ttl = if is_headless { DNS_ENDPOINT_TTL_SECONDS } else { DNS_TTL_SECONDS };
        Found { addresses, alias_of: None, ttl }
    }

    /// One pod of a headless service: `pod.service.namespace.svc.<domain>`.
    fn pod(&self, view: &View, name: &str, family: Family) -> Option<Found> {
        let (pod, hostname) = name.split_once('.')?;
        let service = self.choose(view, hostname).filter(|_| self.is_cluster_name(hostname))?;
        if !service.vips.is_empty() || !service.remote_vips.is_empty() {
            return None;
        }
        let pods = view.endpoints(&service.key).iter();
        let pods: Vec<_> = pods.filter(|w| *w.name == *pod && is_usable(view, service, w)).collect();
        let addresses = pods.iter().flat_map(|workload| &workload.addresses).copied();
        let addresses = addresses.filter(|ip| self.is_wanted(*ip, family)).take(MAX_DNS_ADDRESSES).collect();
        (!pods.is_empty()).then_some(Found { addresses, alias_of: None, ttl: DNS_ENDPOINT_TTL_SECONDS })
    }

    fn is_wanted(&self, ip: IpAddr, family: Family) -> bool {
        match family {
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6() && self.ipv6,
        }
    }
}

// === impl Found ===

impl Found {
    /// A name without addresses.
    fn nothing() -> Self {
        Self { addresses: Vec::new(), alias_of: None, ttl: DNS_TTL_SECONDS }
    }
}

fn is_usable(view: &View, service: &Service, workload: &Workload) -> bool {
    (workload.healthy || service.balancing.unhealthy_too)
        && workload.rejected.is_none()
        && workload.network == *view.network()
}

/// The name without this domain, if it is below it.
fn strip<'n>(name: &'n str, domain: &str) -> Option<&'n str> {
    name.strip_suffix(domain)?.strip_suffix('.').filter(|rest| !rest.is_empty())
}

fn shuffle(addresses: &mut [IpAddr], random: u64) {
    let mut state = random | 1;
    for last in (1..addresses.len()).rev() {
        // xorshift: only the order of answers hangs on it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        addresses.swap(last, usize::try_from(state % (last as u64 + 1)).unwrap_or(0));
    }
}
