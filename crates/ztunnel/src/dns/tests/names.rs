//! What names mean, by tables (`spec/ztunnel.md` 12).

use std::{collections::BTreeSet, net::IpAddr};

use ambit_xds::workload::{
    IpFamilies, LoadBalancing, NetworkAddress, Service, Visibility, Workload, WorkloadStatus, load_balancing,
};

use super::super::resolve::{Family, Found, Lookup, Names};
use crate::{
    limits::{DNS_ENDPOINT_TTL_SECONDS, DNS_TTL_SECONDS, MAX_DNS_ADDRESSES},
    tests::fixture::{endpoint, ip, pod, push, service, store},
};

/// As a pod in a cluster, or in a mesh on one machine, sees names.
fn names(namespace: &str, authoritative: bool) -> Names<'_> {
    let ranges = ["10.244.0.0/16".parse().expect("a range"), "10.96.0.0/16".parse().expect("a range")];
    Names {
        namespace,
        cluster_domain: "cluster.local",
        authoritative: authoritative.then_some(ranges),
        preferred_namespace: None,
        search: None,
        ipv6: true,
    }
}

/// What a case expects.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Addresses(&'static [&'static str]),
    /// The same under another name.
    Alias(&'static str, &'static [&'static str]),
    Unknown,
    Foreign,
}

use Expected::{Addresses, Alias, Foreign, Unknown};

fn check(lookup: Lookup, expected: &Expected, what: &str) {
    let set = |ips: &[&str]| ips.iter().map(|text| ip(text)).collect::<BTreeSet<IpAddr>>();
    let found = |Found { addresses, alias_of, .. }: Found| (addresses.into_iter().collect::<BTreeSet<_>>(), alias_of);
    match (lookup, expected) {
        (Lookup::Known(known), Addresses(ips)) => assert_eq!(found(known), (set(ips), None), "{what}"),
        (Lookup::Known(known), Alias(name, ips)) => {
            assert_eq!(found(known), (set(ips), Some((*name).to_owned())), "{what}");
        }
        (Lookup::Unknown, Unknown) | (Lookup::Foreign, Foreign) => {}
        (other, expected) => panic!("{what}: {other:?}, not {expected:?}"),
    }
}

/// A ServiceEntry's host.
fn host(namespace: &str, hostname: &str, vips: &[&str]) -> Service {
    let own = service("entry", vips, 443, None);
    Service { namespace: namespace.to_owned(), hostname: hostname.to_owned(), ..own }
}

fn v6(text: &str) -> Vec<u8> {
    match ip(text) {
        IpAddr::V6(ip) => ip.octets().to_vec(),
        IpAddr::V4(_) => panic!("{text} is IPv4"),
    }
}

#[test]
fn names_in_all_their_forms() {
    let store = store();
    let one = endpoint(pod("one", "10.244.0.2"), "headless", 80, 8080);
    let unready = Workload {
        status: WorkloadStatus::Unhealthy.into(),
        ..endpoint(pod("two", "10.244.0.3"), "headless", 80, 8080)
    };
    let services = [
        service("app", &["10.96.0.2"], 80, None),
        service("headless", &[], 80, None),
        host("ns", "www.example.com", &["240.240.0.1"]),
        host("ns", "*.wild.example", &["240.240.0.2"]),
        host("ns", "*.deep.wild.example", &["240.240.0.3"]),
        host("ns", "novip.example", &[]),
        host("ns", "single", &["240.240.0.4"]),
    ];
    push(&store, &[&one, &unready], &services.iter().collect::<Vec<_>>());
    let view = store.load();
    // Name, in a cluster, on one machine.
    let cases = [
        ("app", Addresses(&["10.96.0.2"]), None),
        ("app.ns", Addresses(&["10.96.0.2"]), None),
        ("app.ns.svc", Addresses(&["10.96.0.2"]), None),
        ("app.ns.svc.cluster.local", Addresses(&["10.96.0.2"]), None),
        // With search domains, as resolvers try them.
        ("app.ns.ns.svc.cluster.local", Alias("app.ns", &["10.96.0.2"]), None),
        ("app.ns.svc.svc.cluster.local", Alias("app.ns.svc", &["10.96.0.2"]), None),
        ("app.ns.cluster.local", Alias("app.ns", &["10.96.0.2"]), None),
        ("app.ns.svc.cluster.local.ns.svc.cluster.local", Alias("app.ns.svc.cluster.local", &["10.96.0.2"]), None),
        ("app.cluster.local", Alias("app", &["10.96.0.2"]), None),
        // Headless: the endpoints that are ready, each also by itself.
        ("headless", Addresses(&["10.244.0.2"]), None),
        ("one.headless", Addresses(&["10.244.0.2"]), None),
        ("one.headless.ns", Addresses(&["10.244.0.2"]), None),
        ("one.headless.ns.svc", Addresses(&["10.244.0.2"]), None),
        ("one.headless.ns.svc.cluster.local", Addresses(&["10.244.0.2"]), None),
        ("two.headless.ns.svc.cluster.local", Foreign, Some(Unknown)),
        ("one.app.ns.svc.cluster.local", Foreign, Some(Unknown)),
        // Hosts of ServiceEntries.
        ("www.example.com", Addresses(&["240.240.0.1"]), None),
        ("www.example.com.ns.svc.cluster.local", Alias("www.example.com", &["240.240.0.1"]), None),
        ("www.example.com.svc.cluster.local", Alias("www.example.com", &["240.240.0.1"]), None),
        ("www.example.com.cluster.local", Alias("www.example.com", &["240.240.0.1"]), None),
        ("other.www.example.com", Foreign, None),
        ("a.wild.example", Addresses(&["240.240.0.2"]), None),
        ("a.b.wild.example", Addresses(&["240.240.0.2"]), None),
        ("a.deep.wild.example", Addresses(&["240.240.0.3"]), None),
        ("a.wild.example.ns.svc.cluster.local", Addresses(&["240.240.0.2"]), None),
        ("wild.example", Foreign, None),
        ("novip.example", Foreign, None),
        ("single", Addresses(&["240.240.0.4"]), None),
        // Nobody's.
        ("other.ns.svc.cluster.local", Foreign, Some(Unknown)),
        ("other.ns.svc", Foreign, Some(Unknown)),
        ("app.elsewhere.svc.cluster.local", Foreign, Some(Unknown)),
        ("example.com.ns.svc.cluster.local", Foreign, Some(Unknown)),
        ("nonsense.cluster.local", Foreign, Some(Unknown)),
        ("cluster.local", Foreign, Some(Addresses(&[]))),
        ("svc.cluster.local", Foreign, Some(Addresses(&[]))),
        ("other", Foreign, None),
        ("example.com", Foreign, None),
        ("notcluster.local", Foreign, None),
        ("", Foreign, None),
        (".", Foreign, None),
        ("..cluster.local", Foreign, Some(Unknown)),
    ];
    for (name, in_cluster, alone) in cases {
        check(names("ns", false).lookup(&view, name, Family::V4, 1), &in_cluster, &format!("in a cluster: {name}"));
        let alone = alone.unwrap_or(in_cluster);
        check(names("ns", true).lookup(&view, name, Family::V4, 1), &alone, &format!("alone: {name}"));
    }
    let elsewhere = names("elsewhere", false);
    check(elsewhere.lookup(&view, "app", Family::V4, 1), &Foreign, "short names are relative to the namespace");
    check(elsewhere.lookup(&view, "app.ns", Family::V4, 1), &Addresses(&["10.96.0.2"]), "app.ns elsewhere");
}

#[test]
fn services_of_one_hostname() {
    let vip = |namespace: &str, last: u8| host(namespace, "db.example", &[&format!("240.240.1.{last}")]);
    let canonical = |service: Service| Service { canonical: true, ..service };
    let private = |service: Service| Service { visibility: Visibility::Namespace.into(), ..service };
    // The services, the client's namespace, the preferred one, whose address is given.
    let cases = [
        ("its own first", vec![vip("a", 1), canonical(vip("b", 2)), vip("ns", 3)], "ns", None, Some("240.240.1.3")),
        ("then the canonical", vec![vip("a", 1), canonical(vip("b", 2))], "ns", Some("a"), Some("240.240.1.2")),
        ("then the preferred", vec![vip("a", 1), vip("b", 2)], "ns", Some("b"), Some("240.240.1.2")),
        ("then the first", vec![vip("a", 1), vip("b", 2)], "ns", Some("c"), Some("240.240.1.1")),
        (
            "not one that isn't visible",
            vec![private(canonical(vip("a", 1))), vip("b", 2)],
            "ns",
            None,
            Some("240.240.1.2"),
        ),
        ("its own, though private", vec![private(vip("ns", 1)), vip("b", 2)], "ns", None, Some("240.240.1.1")),
        ("none is visible", vec![private(vip("a", 1))], "ns", None, None),
        (
            "one without addresses isn't chosen",
            vec![host("ns", "db.example", &[]), vip("b", 2)],
            "ns",
            None,
            Some("240.240.1.2"),
        ),
    ];
    for (what, services, namespace, preferred, expected) in cases {
        let store = store();
        push(&store, &[], &services.iter().collect::<Vec<_>>());
        let names = Names { preferred_namespace: preferred, ..names(namespace, false) };
        match (names.lookup(&store.load(), "db.example", Family::V4, 1), expected) {
            (Lookup::Known(found), Some(address)) => assert_eq!(found.addresses, [ip(address)], "{what}"),
            (Lookup::Foreign, None) => {}
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn addresses_by_family() {
    let both = |families: IpFamilies| {
        let mut both = service("both", &["10.96.0.3"], 80, None);
        both.addresses.push(NetworkAddress { network: String::new(), address: v6("fd00::3"), length: None });
        Service { ip_families: families.into(), ..both }
    };
    // The service's families, whether the mesh has IPv6, the question, the answer.
    let cases = [
        (IpFamilies::Automatic, true, Family::V4, vec!["10.96.0.3"]),
        (IpFamilies::Automatic, true, Family::V6, vec!["fd00::3"]),
        (IpFamilies::Dual, true, Family::V6, vec!["fd00::3"]),
        (IpFamilies::Ipv4Only, true, Family::V4, vec!["10.96.0.3"]),
        (IpFamilies::Ipv4Only, true, Family::V6, vec![]),
        (IpFamilies::Ipv6Only, true, Family::V4, vec![]),
        (IpFamilies::Ipv6Only, true, Family::V6, vec!["fd00::3"]),
        (IpFamilies::Automatic, false, Family::V6, vec![]),
        (IpFamilies::Automatic, false, Family::V4, vec!["10.96.0.3"]),
    ];
    for (families, ipv6, family, expected) in cases {
        let store = store();
        push(&store, &[], &[&both(families)]);
        let names = Names { ipv6, ..names("ns", false) };
        let Lookup::Known(found) = names.lookup(&store.load(), "both", family, 1) else { panic!("it is known") };
        let expected: Vec<IpAddr> = expected.into_iter().map(ip).collect();
        assert_eq!(found.addresses, expected, "{families:?} {ipv6} {family:?}");
    }
}

#[test]
fn only_addresses_of_the_clients_own_network() {
    let store = store();
    let mut away = host("ns", "away.example", &[]);
    away.addresses = vec![NetworkAddress { network: "other".to_owned(), address: vec![10, 9, 9, 9], length: None }];
    let far = Workload { network: "other".to_owned(), ..endpoint(pod("far", "10.244.0.8"), "headless", 80, 8080) };
    let near = endpoint(pod("near", "10.244.0.9"), "headless", 80, 8080);
    push(&store, &[&far, &near], &[&away, &service("headless", &[], 80, None)]);
    let view = store.load();
    let names = names("ns", false);
    check(names.lookup(&view, "away.example", Family::V4, 1), &Addresses(&[]), "its address is in another network");
    check(names.lookup(&view, "headless", Family::V4, 1), &Addresses(&["10.244.0.9"]), "headless");
    check(names.lookup(&view, "far.headless", Family::V4, 1), &Foreign, "a pod of another network");
}

#[test]
fn endpoints_of_headless_services() {
    let store = store();
    let dual = |name: &str, v4: &str, six: &str| {
        let mut workload = endpoint(pod(name, v4), "headless", 80, 8080);
        workload.addresses.push(v6(six));
        workload
    };
    let unready = Workload { status: WorkloadStatus::Unhealthy.into(), ..dual("b", "10.244.0.5", "fd00::5") };
    let mut headless = service("headless", &[], 80, None);
    push(&store, &[&dual("a", "10.244.0.4", "fd00::4"), &unready], &[&headless]);
    let names = names("ns", false);
    let view = store.load();
    check(names.lookup(&view, "headless", Family::V4, 1), &Addresses(&["10.244.0.4"]), "ready ones");
    check(
        names.lookup(&view, "headless", Family::V6, 1),
        &Addresses(&["fd00::4"]),
        "each by its first fitting address",
    );
    headless.load_balancing = Some(LoadBalancing {
        routing_preference: Vec::new(),
        mode: load_balancing::Mode::Unspecified.into(),
        health_policy: load_balancing::HealthPolicy::AllowAll.into(),
    });
    push(&store, &[], &[&headless]);
    let view = store.load();
    let all = Addresses(&["10.244.0.4", "10.244.0.5"]);
    check(names.lookup(&view, "headless", Family::V4, 1), &all, "unready ones where the service publishes them");
    check(names.lookup(&view, "b.headless", Family::V4, 1), &Addresses(&["10.244.0.5"]), "and by name");
}

#[test]
fn answers_are_shuffled_bounded_and_short_lived_where_pods_are_behind_them() {
    let store = store();
    let pods: Vec<_> = (0..200)
        .map(|i| endpoint(pod(&format!("p{i}"), &format!("10.244.{}.{}", i / 100, 1 + i % 100)), "many", 80, 8080))
        .collect();
    push(
        &store,
        &pods.iter().collect::<Vec<_>>(),
        &[&service("many", &[], 80, None), &service("app", &["10.96.0.2"], 80, None)],
    );
    let view = store.load();
    let found = |name: &str, random: u64| match names("ns", false).lookup(&view, name, Family::V4, random) {
        Lookup::Known(found) => found,
        other => panic!("{other:?}"),
    };
    let answers: Vec<_> = (0..40_u64).map(|i| found("many", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    assert!(answers.iter().all(|answer| answer.addresses.len() == MAX_DNS_ADDRESSES));
    let firsts: BTreeSet<_> = answers.iter().map(|answer| answer.addresses[0]).collect();
    let seen: BTreeSet<_> = answers.iter().flat_map(|answer| &answer.addresses).collect();
    assert!(firsts.len() > 20, "the first is another one each time: {}", firsts.len());
    assert_eq!(seen.len(), 200, "all get their turn");
    assert_eq!((found("many", 1).ttl, found("app", 1).ttl), (DNS_ENDPOINT_TTL_SECONDS, DNS_TTL_SECONDS));
}

#[test]
fn other_search_domains_in_place_of_the_pods() {
    let store = store();
    push(&store, &[], &[&host("ns", "www.example.com", &["240.240.0.1"])]);
    let view = store.load();
    let search = ["corp.example".to_owned()];
    let names = Names { search: Some(&search), ..names("ns", false) };
    let expected = Alias("www.example.com", &["240.240.0.1"]);
    check(names.lookup(&view, "www.example.com.corp.example", Family::V4, 1), &expected, "the given one");
    check(names.lookup(&view, "www.example.com.ns.svc.cluster.local", Family::V4, 1), &Foreign, "only the given one");
}

#[test]
fn names_of_addresses() {
    for (address, authoritative, expected) in [
        ("10.244.0.2", true, Unknown),
        ("10.96.0.1", true, Unknown),
        ("1.1.1.1", true, Foreign),
        ("10.244.0.2", false, Foreign),
    ] {
        check(names("ns", authoritative).reverse(ip(address)), &expected, address);
    }
}
