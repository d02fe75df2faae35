//! Entry for the fuzzer: whatever arrives as an address, the store answers, and what it then shows holds together.

use ambit_policy::Options;
use ambit_xds::{
    ADDRESS_TYPE, DeltaResponse, Resource,
    workload::{Address, address::Type},
};
use prost::Message;

use super::Store;

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

fn check(store: &Store) {
    let view = store.load();
    for workload in view.workloads().filter(|workload| !workload.host_network && workload.network == *view.network()) {
        for ip in &workload.addresses {
            assert!(view.workload_by_ip(*ip).is_some(), "found by its address");
        }
        for key in workload.services.keys() {
            assert_eq!(view.endpoints(key).len(), 1, "an endpoint of its services");
            assert!(view.tiers(key, Some(workload), None).is_empty(), "of a service that isn't known");
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
