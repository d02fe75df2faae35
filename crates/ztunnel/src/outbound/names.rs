//! Addresses of workloads of which only a name is known, asked of the resolvers outside the mesh when somebody connects
//! (`spec/ztunnel.md` 4, 12). What was learned is kept for a while, and only so much of it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::rr::RecordType;
use tokio::time::{Instant, timeout};

use crate::{
    balance::random,
    dns::lookup,
    labels::party,
    limits::{MAX_NAME_AGE, MAX_NAMES, MIN_NAME_AGE, NAME_TIMEOUT},
    pod::PodProxy,
};

/// What was learned.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: Mutex<HashMap<Arc<str>, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

// === impl Names ===

impl Names {
    /// One of the name's addresses, at random, of the preferred family if it has any.
    pub(crate) async fn resolve(&self, pod: &PodProxy, name: &Arc<str>, ipv4: bool) -> Result<IpAddr, String> {
        let addresses = match self.get(name) {
            Some(addresses) => addresses,
            None => self.ask(pod, name).await?,
        };
        let preferred: Vec<&IpAddr> = addresses.iter().filter(|ip| ip.is_ipv4() == ipv4).collect();
        let any = || addresses.iter().collect::<Vec<_>>();
        let candidates = if preferred.is_empty() { any() } else { preferred };
        // INVARIANT: the remainder is below the length.
        let drawn = candidates.get((random() % candidates.len().max(1) as u64) as usize);
        drawn.map(|ip| **ip).ok_or_else(|| format!("`{name}` has no address"))
    }

    fn get(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|known| known.until > Instant::now()).map(|known| Arc::clone(&known.addresses))
    }

    async fn ask(&self, pod: &PodProxy, name: &Arc<str>) -> Result<Arc<[IpAddr]>, String> {
        let Some(_slot) = pod.dns_slot() else {
            return Err(format!("the node proxy is at its limit of DNS queries; `{name}` isn't asked for"));
        };
        let workload = pod.current(&pod.shared.store.load()).map(|workload| party(workload)).unwrap_or_default();
        pod.shared.config.metrics.traffic.on_demand_dns(&workload, name);
        let both = async {
            tokio::join!(lookup::upstream(pod, name, RecordType::A), lookup::upstream(pod, name, RecordType::AAAA),)
        };
        let answers = timeout(NAME_TIMEOUT, both).await;
        let (v4, v6) = answers.map_err(|_| format!("no resolver knew `{name}` within {NAME_TIMEOUT:?}"))?;
        if v4.is_none() && v6.is_none() {
            return Err(format!("no resolver answered for `{name}`"));
        }
        let found: Vec<(IpAddr, Duration)> = [v4, v6].into_iter().flatten().flatten().collect();
        let age = found.iter().map(|(_, age)| *age).min().unwrap_or_default().clamp(MIN_NAME_AGE, MAX_NAME_AGE);
        let addresses: Arc<[IpAddr]> = found.into_iter().map(|(ip, _)| ip.to_canonical()).collect();
        if !addresses.is_empty() {
            self.put(name, Known { addresses: Arc::clone(&addresses), until: Instant::now() + age });
        }
        Ok(addresses)
    }

    /// Keeps an answer. Without room the old ones go, and if there are none, this one isn't kept.
    fn put(&self, name: &Arc<str>, answer: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NAMES && !known.contains_key(name) {
            let now = Instant::now();
            known.retain(|_, known| known.until > now);
        }
        if known.len() < MAX_NAMES || known.contains_key(name) {
            known.insert(Arc::clone(name), answer);
        }
    }
}
