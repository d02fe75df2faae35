//! Entries for the fuzzer: whatever arrives as an address, the store answers, and what it then shows holds together; and
//! what it shows after many changes is what a new one shows that is told of the last ones alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ambit_policy::{ConnectionFacts, Options};
use ambit_xds::{
    ADDRESS_TYPE, DeltaResponse, Resource,
    workload::{Address, address::Type},
};
use prost::Message;

use super::{ServiceKey, Store, View, Workload};

/// Namespaces that are asked as clients.
const NAMESPACES: [&str; 3] = ["ns", "other", ""];

/// Takes the bytes for an address resource of the name that they say, then for its replacement, then removes it.
///
/// # Panics
/// When a rule of the view is broken.
pub fn address(bytes: &[u8]) {
    let name = match Address::decode(bytes).ok().and_then(|message| message.r#type) {
        Some(Type::Workload(workload)) => workload.uid,
        Some(Type::Service(service)) => format!("{}/{}", service.namespace, service.hostname),
        None => "fuzzed/name".to_owned(),
    };
    let response = |value: &[u8]| {
        let resource = Resource { name: name.clone(), version: "1".to_owned(), value: value.to_vec() };
        DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: vec![resource], removed: Vec::new() }
    };
    let store = Store::new(Options::default());
    let outcome = store.apply(&[response(bytes)]);
    check(&store);
    let known = store.load().workloads().count() + store.load().services().count();
    assert_eq!(known, usize::from(outcome.is_ok()), "known exactly if it could be read");
    // What can't be read any more stays known, and closed.
    let broken = store.apply(&[response(&[0xff])]);
    assert!(broken.is_err(), "no message");
    check(&store);
    assert!(store.load().workloads().all(|workload| workload.rejected.is_some() && !workload.healthy));
    assert!(store.load().services().all(|service| service.rejected.is_some() && service.waypoint.is_some()));
    let removal =
        DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: Vec::new(), removed: vec![name.clone()] };
    assert!(store.apply(&[removal]).is_ok(), "a removal can't be refused");
    let view = store.load();
    assert_eq!(view.workloads().count() + view.services().count(), 0, "gone");
}

/// Applies responses, each some names with their content or with nothing for those that go, to one store; then the last
/// content of each name to a new one.
///
/// # Panics
/// When the two show different things.
pub fn changes(responses: impl IntoIterator<Item = Vec<(String, Option<Vec<u8>>)>>) {
    let store = Store::new(Options::default());
    let mut last: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for changes in responses {
        let mut response = DeltaResponse { type_url: ADDRESS_TYPE.into(), resources: Vec::new(), removed: Vec::new() };
        for (name, _) in changes.iter().filter(|(_, value)| value.is_none()) {
            last.remove(name);
            response.removed.push(name.clone());
        }
        for (name, value) in changes {
            let Some(value) = value else { continue };
            last.insert(name.clone(), value.clone());
            response.resources.push(Resource { name, version: String::new(), value });
        }
        let nack = store.apply(&[response]).err();
        check(&store);
        // What is refused may be known from before, closed, or not at all; here it goes.
        let refused: BTreeSet<String> = nack.into_iter().flat_map(|nack| nack.rejected).map(|(name, _)| name).collect();
        if !refused.is_empty() {
            last.retain(|name, _| !refused.contains(name));
            let removed = refused.into_iter().collect();
            let response = DeltaResponse { type_url: ADDRESS_TYPE.into(), resources: Vec::new(), removed };
            assert!(store.apply(&[response]).is_ok(), "a removal can't be refused");
            check(&store);
        }
    }
    let fresh = Store::new(Options::default());
    let resources = last.into_iter().rev().map(|(name, value)| Resource { name, version: String::new(), value });
    let resources: Vec<Resource> = resources.collect();
    let names: Vec<String> = resources.iter().map(|resource| resource.name.clone()).collect();
    let response = DeltaResponse { type_url: ADDRESS_TYPE.into(), resources, removed: Vec::new() };
    assert!(fresh.apply(&[response]).is_ok(), "what was taken before is refused");
    compare(&store.load(), &fresh.load());
    let response = DeltaResponse { type_url: ADDRESS_TYPE.into(), resources: Vec::new(), removed: names };
    assert!(store.apply(&[response]).is_ok(), "a removal can't be refused");
    compare(&store.load(), &Store::new(Options::default()).load());
}

fn compare(one: &View, other: &View) {
    let uids = |view: &View| view.workloads().map(|workload| Arc::clone(&workload.uid)).collect::<BTreeSet<_>>();
    assert_eq!(uids(one), uids(other), "workloads");
    for workload in one.workloads() {
        let again = other.workload(&workload.uid).expect("the same workloads");
        assert_eq!(facts(workload), facts(again), "workload {}", workload.uid);
    }
    let services = |view: &View| view.services().map(|s| (s.key.clone(), format!("{s:?}"))).collect();
    let (known, again): (BTreeMap<_, _>, BTreeMap<_, _>) = (services(one), services(other));
    assert_eq!(known, again, "services");
    let joined = one.workloads().flat_map(|workload| workload.services.keys().cloned());
    let keys: BTreeSet<ServiceKey> = joined.chain(known.into_keys()).collect();
    for key in &keys {
        let uids = |view: &View| view.endpoints(key).iter().map(|w| Arc::clone(&w.uid)).collect::<Vec<_>>();
        assert_eq!(uids(one), uids(other), "endpoints of {key:?}");
        let clients = one.workloads().map(Some).chain([None]);
        for client in clients {
            for port in [None, Some(80), Some(443)] {
                assert_eq!(tiers(one, key, client, port), tiers(other, key, client, port), "{key:?}, {port:?}");
            }
        }
        let hostname = &*key.hostname;
        let named = |view: &View| view.services_by_hostname(hostname).map(|s| s.key.clone()).collect::<Vec<_>>();
        assert_eq!(named(one), named(other), "services named {hostname}");
    }
    for hostname in one.workloads().filter_map(|workload| workload.hostname.clone()) {
        let named =
            |view: &View| view.workloads_by_hostname(&hostname).map(|w| Arc::clone(&w.uid)).collect::<BTreeSet<_>>();
        assert_eq!(named(one), named(other), "workloads named {hostname}");
    }
    owners(one, other);
}

/// What is known of a workload; of its policies, whether they let one connection through.
fn facts(workload: &Workload) -> impl PartialEq + std::fmt::Debug {
    let w = workload.clone();
    let connection = ConnectionFacts::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 80);
    let open = w.policies.for_connection(&connection).decide_connection().is_allowed();
    (
        (w.name, w.namespace, w.identity, w.addresses, w.hostname, w.network, w.host_network, w.hbone),
        (w.native_tunnel, w.healthy, w.capacity, w.locality, w.node, w.cluster, w.canonical, w.services),
        (w.waypoint, w.network_gateway, w.application_tunnel, w.guard, w.rejected, open),
    )
}

fn tiers(view: &View, key: &ServiceKey, client: Option<&Arc<Workload>>, port: Option<u16>) -> Vec<BTreeSet<Arc<str>>> {
    let tiers = view.tiers(key, client.map(|client| &**client), port);
    let tiers = tiers.iter().map(|tier| {
        let all: Vec<_> = tier.shuffled(7).filter_map(|drawn| Some(Arc::clone(&drawn.workload()?.uid))).collect();
        let drawn = tier.draw(7).expect("there is one");
        let workload = drawn.workload().expect("an endpoint");
        assert_eq!((drawn.capacity(), drawn.load_key()), (workload.capacity, workload.load_key));
        assert!(all.len() == tier.len() && all.contains(&workload.uid), "one of the tier");
        all.into_iter().collect()
    });
    tiers.collect()
}

/// Where one workload or service alone has an address, it is found by it. Where several do, who came first matters.
fn owners(one: &View, other: &View) {
    let mut claims: BTreeMap<IpAddr, BTreeSet<Arc<str>>> = BTreeMap::new();
    for workload in one.workloads().filter(|w| !w.host_network && w.network == *one.network()) {
        for ip in &workload.addresses {
            claims.entry(*ip).or_default().insert(Arc::clone(&workload.uid));
        }
    }
    let vips = one.services().flat_map(|service| service.vips.clone());
    let ranges = one.services().flat_map(|service| service.ranges.clone()).map(|(_, range)| range.addr());
    let ips: BTreeSet<IpAddr> = claims.keys().copied().chain(vips).chain(ranges).collect();
    for ip in ips {
        let owner = |view: &View| view.workload_by_ip(ip).map(|workload| Arc::clone(&workload.uid));
        match claims.get(&ip) {
            None => assert_eq!((owner(one), owner(other)), (None, None), "nobody has {ip}"),
            Some(uids) if uids.len() == 1 => {
                assert_eq!((owner(one), owner(one)), (uids.first().cloned(), owner(other)))
            }
            Some(uids) => assert!(owner(one).is_some_and(|uid| uids.contains(&uid)), "{ip} is somebody else's"),
        }
        let exact = one.services().filter(|service| service.vips.contains(&ip)).count();
        let within =
            one.services().filter(|service| service.ranges.iter().any(|(_, range)| range.contains(&ip))).count();
        for namespace in NAMESPACES {
            let found = |view: &View| view.service_for(ip, namespace).map(|service| service.key.clone());
            if exact + within <= 1 {
                assert_eq!(found(one), found(other), "{ip} for `{namespace}`");
            }
        }
    }
}

fn check(store: &Store) {
    let view = store.load();
    for workload in view.workloads().filter(|workload| !workload.host_network && workload.network == *view.network()) {
        for ip in &workload.addresses {
            assert!(view.workload_by_ip(*ip).is_some(), "found by its address");
        }
        for key in workload.services.keys() {
            let is_one = view.endpoints(key).iter().any(|endpoint| endpoint.uid == workload.uid);
            assert!(is_one, "an endpoint of its services");
            let known = view.service(key).is_some();
            assert!(known || view.tiers(key, Some(workload), None).is_empty(), "of a service that isn't known");
        }
    }
    for service in view.services() {
        for ip in &service.vips {
            assert!(view.service_for(*ip, &service.key.namespace).is_some(), "found by its address");
        }
        for (network, range) in service.ranges.iter().filter(|(network, _)| network == view.network()) {
            assert!(view.service_for(range.addr(), &service.key.namespace).is_some(), "{network}: {range}");
        }
        assert!(service.waypoint_for(u64::MAX).is_some() || service.waypoints().next().is_none());
    }
}
