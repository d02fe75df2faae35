//! Addresses for pods and services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ambit_mesh::inputs::NamespacedName;
use ipnet::Ipv4Net;

/// Addresses at the start of the service range that are never handed out by hash: gateways, DNS and the like.
const RESERVED_AT_START: u32 = 16;

/// Pod addresses, in turn, so that one that was freed isn't soon another pod's.
#[derive(Clone, Debug)]
pub(super) struct PodAddresses {
    range: Ipv4Net,
    /// Offset of the last one given.
    last: u32,
    used: BTreeSet<Ipv4Addr>,
}

/// Service addresses, the same for a name on every start as long as nobody else took it.
#[derive(Clone, Debug)]
pub(super) struct ServiceAddresses {
    range: Ipv4Net,
    given: BTreeMap<NamespacedName, Ipv4Addr>,
}

/// No address is left in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address is left in {0}")]
pub(super) struct Exhausted(Ipv4Net);

// === impl PodAddresses ===

impl PodAddresses {
    /// Of this range; its first address is the gateway's.
    pub(super) fn new(range: Ipv4Net) -> Self {
        Self { range, last: 1, used: BTreeSet::new() }
    }

    pub(super) fn take(&mut self) -> Result<Ipv4Addr, Exhausted> {
        let size = size(self.range);
        // Offsets 0 and 1 are the network and the gateway, the last is the broadcast address.
        for _ in 0..size {
            self.last = if self.last + 2 >= size { 2 } else { self.last + 1 };
            let address = Ipv4Addr::from(u32::from(self.range.network()).wrapping_add(self.last));
            if size > 3 && self.used.insert(address) {
                return Ok(address);
            }
        }
        Err(Exhausted(self.range))
    }

    pub(super) fn free(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

// === impl ServiceAddresses ===

impl ServiceAddresses {
    pub(super) fn new(range: Ipv4Net) -> Self {
        Self { range, given: BTreeMap::new() }
    }

    /// True if a Service may ask for this address.
    pub(super) fn admits(&self, address: Ipv4Addr) -> bool {
        self.range.contains(&address) && address != self.range.network() && address != self.range.broadcast()
    }

    pub(super) fn range(&self) -> Ipv4Net {
        self.range
    }

    /// Gives each name its address: those that ask for one, which must be different from each other, that one; the
    /// others keep theirs or get one by their name.
    pub(super) fn assign(
        &mut self,
        wanted: &BTreeMap<NamespacedName, Option<Ipv4Addr>>,
    ) -> Result<&BTreeMap<NamespacedName, Ipv4Addr>, Exhausted> {
        let mut given: BTreeMap<_, _> = wanted.iter().filter_map(|(n, ip)| ip.map(|ip| (n.clone(), ip))).collect();
        let mut used: BTreeSet<_> = given.values().copied().collect();
        let open: Vec<_> = wanted.iter().filter(|(_, ip)| ip.is_none()).map(|(name, _)| name).collect();
        let (kept, new): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|name| self.given.get(*name).is_some_and(|ip| used.insert(*ip)));
        for name in kept {
            given.extend(self.given.get(name).map(|ip| (name.clone(), *ip)));
        }
        for name in new {
            let address = self.by_name(name, &used).ok_or(Exhausted(self.range))?;
            used.insert(address);
            given.insert(name.clone(), address);
        }
        self.given = given;
        Ok(&self.given)
    }

    fn by_name(&self, name: &NamespacedName, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let places = size(self.range).checked_sub(RESERVED_AT_START + 1).filter(|places| *places > 0)?;
        let start = stable_hash(name.to_string().as_bytes()) % u64::from(places);
        let start = u32::try_from(start).unwrap_or(0);
        (0..places)
            .map(|step| RESERVED_AT_START + (start + step) % places)
            .map(|offset| Ipv4Addr::from(u32::from(self.range.network()).wrapping_add(offset)))
            .find(|address| !used.contains(address))
    }
}

fn size(range: Ipv4Net) -> u32 {
    // A range of 2^32 doesn't occur; it would only be one short.
    u32::try_from(1u64 << (32 - range.prefix_len())).unwrap_or(u32::MAX)
}

/// FNV-1a: the same on every machine and in every version, which the standard library's hash doesn't promise.
pub(super) fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NamespacedName {
        NamespacedName::new("a", text)
    }

    #[test]
    fn pod_addresses_start_after_the_gateway_and_are_not_reused_at_once() {
        let mut pods = PodAddresses::new("10.244.0.0/29".parse().expect("a range"));
        let first = pods.take().expect("free");
        assert_eq!(first, Ipv4Addr::new(10, 244, 0, 2));
        pods.free(first);
        let rest: Vec<_> = (0..4).map(|_| pods.take().expect("free").octets()[3]).collect();
        assert_eq!(rest, [3, 4, 5, 6]);
        assert_eq!(pods.take(), Ok(first), "after all others");
        assert!(pods.take().is_err());
    }

    #[test]
    fn a_service_keeps_its_address_and_an_asked_for_one_wins() {
        let mut services = ServiceAddresses::new("10.96.0.0/16".parse().expect("a range"));
        let one = BTreeMap::from([(name("s"), None)]);
        let first = services.assign(&one).expect("free")[&name("s")];
        let mut again = ServiceAddresses::new("10.96.0.0/16".parse().expect("a range"));
        assert_eq!(again.assign(&one).expect("free")[&name("s")], first, "by its name");

        let two = BTreeMap::from([(name("s"), None), (name("t"), Some(first))]);
        let given = services.assign(&two).expect("free").clone();
        assert_eq!(given[&name("t")], first);
        assert_ne!(given[&name("s")], first);
        assert_eq!(services.assign(&one).expect("free")[&name("s")], given[&name("s")], "kept");
    }

    #[test]
    fn a_full_range_is_an_error() {
        let mut services = ServiceAddresses::new("10.96.0.0/27".parse().expect("a range"));
        let many = |count: usize| (0..count).map(|i| (name(&format!("s{i}")), None)).collect::<BTreeMap<_, _>>();
        assert_eq!(services.assign(&many(15)).expect("15 places").len(), 15);
        assert!(services.assign(&many(16)).is_err());
    }
}
