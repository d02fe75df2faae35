//! Each field of a workload and of a service, and what isn't accepted in it.

use ambit_xds::workload::{
    self as wire, GatewayAddress, LoadBalancing, NamespacedHostname, WeightedWaypoint,
    address::Type,
    application_tunnel::Protocol,
    gateway_address::Destination,
    load_balancing::{HealthPolicy, Mode, Scope},
};

use super::{ip, key, octets, push, service, store, vip, workload};
use crate::view::{ApplicationTunnel, Families, Gateway, NetworkAddress, WorkloadType};

fn named(hostname: &str, port: u32) -> GatewayAddress {
    let name = NamespacedHostname { namespace: "ns".to_owned(), hostname: hostname.to_owned() };
    GatewayAddress { destination: Some(Destination::Hostname(name)), hbone_mtls_port: port }
}

fn at(network: &str, address: &str, port: u32) -> GatewayAddress {
    GatewayAddress { destination: Some(Destination::Address(vip(network, address, None))), hbone_mtls_port: port }
}

#[test]
fn a_workload_is_read_whole() {
    let store = store();
    let message = wire::Workload {
        trust_domain: "td".to_owned(),
        service_account: "sa".to_owned(),
        addresses: vec![octets("10.0.0.1"), octets("fd00::1"), octets("::ffff:10.0.0.2")],
        hostname: "Db.Example.com".to_owned(),
        network: "far".to_owned(),
        node: "node".to_owned(),
        cluster_id: "cluster".to_owned(),
        canonical_name: "canonical".to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_name: "owner".to_owned(),
        workload_type: wire::WorkloadType::Job as i32,
        native_tunnel: true,
        waypoint: Some(named("w.example", 15008)),
        network_gateway: Some(at("", "192.0.2.1", 15009)),
        application_tunnel: Some(wire::ApplicationTunnel { protocol: Protocol::Proxy as i32, port: 15088 }),
        locality: Some(wire::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        capacity: Some(wire::UInt32Value { value: 7 }),
        ..workload("w", "10.0.0.1", &["s"])
    };
    push(&store, [Type::Workload(message)]);
    let view = store.load();
    let read = view.workload("w").expect("known");
    assert_eq!(read.identity.to_string(), "spiffe://td/ns/ns/sa/sa");
    assert_eq!(read.addresses, [ip("10.0.0.1"), ip("fd00::1"), ip("10.0.0.2")]);
    assert_eq!(read.hostname.as_deref(), Some("db.example.com"));
    assert_eq!(view.workloads_by_hostname("db.example.com").count(), 1);
    assert_eq!((&*read.network, &*read.node, &*read.cluster), ("far", "node", "cluster"));
    assert_eq!((&*read.canonical.name, &*read.canonical.revision), ("canonical", "v1"));
    assert_eq!((&*read.canonical.workload, read.canonical.kind), ("owner", WorkloadType::Job));
    assert_eq!((&*read.locality.region, &*read.locality.zone, &*read.locality.subzone), ("r", "z", "s"));
    assert!(read.native_tunnel && read.hbone && read.healthy && !read.host_network && read.rejected.is_none());
    let waypoint = read.waypoint.as_ref().expect("a waypoint");
    assert_eq!((&waypoint.destination, waypoint.hbone_port), (&Gateway::Service(key("w")), 15008));
    let gateway = read.network_gateway.as_ref().expect("a gateway");
    let address = NetworkAddress { network: "".into(), ip: ip("192.0.2.1") };
    assert_eq!((&gateway.destination, gateway.hbone_port), (&Gateway::Address(address), 15009));
    assert_eq!(read.application_tunnel, Some(ApplicationTunnel { proxy: true, port: Some(15088) }));
    assert_eq!((read.capacity, read.services[&key("s")][&80]), (7, 8080));
    let found = view.workload_by_address(&NetworkAddress { network: "far".into(), ip: ip("10.0.0.1") });
    assert_eq!(found.map(|found| &found.uid), Some(&read.uid));
    assert!(view.workload_by_ip(ip("10.0.0.1")).is_none(), "another network's address");
}

#[test]
fn what_the_wire_leaves_out_has_its_default() {
    let store = store();
    push(&store, [Type::Workload(workload("w", "10.0.0.1", &[])), Type::Service(service("s"))]);
    let view = store.load();
    let read = view.workload("w").expect("known");
    assert_eq!(read.identity.to_string(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!((&*read.cluster, read.capacity, read.hostname.as_deref()), ("Kubernetes", 1, None));
    let read = view.service(&key("s")).expect("known");
    assert!(!read.canonical && !read.private && read.families == Families::Any && read.identities.is_empty());
    assert!(read.balancing.preferences.is_empty() && !read.balancing.unhealthy_too);
    assert!(read.waypoint_for(5).is_none() && read.ports[&80].target.is_none());
}

#[test]
fn a_service_is_read_whole() {
    let store = store();
    let message = wire::Service {
        addresses: vec![
            vip("", "10.1.0.1", None),
            vip("", "10.1.0.2", Some(32)),
            vip("far", "10.1.0.3", None),
            vip("", "10.2.3.4", Some(16)),
        ],
        ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 1 }],
        subject_alt_names: vec!["spiffe://td/ns/ns/sa/a".to_owned(), "not an identity".to_owned()],
        waypoint: Some(named("w.example", 15008)),
        weighted_waypoints: vec![WeightedWaypoint { destination: Some(at("", "10.9.9.9", 15008)), weight: 1 }],
        load_balancing: Some(LoadBalancing {
            routing_preference: vec![Scope::Zone as i32, Scope::Zone as i32, Scope::Node as i32],
            mode: Mode::Strict as i32,
            health_policy: HealthPolicy::AllowAll as i32,
        }),
        ip_families: wire::IpFamilies::Ipv6Only as i32,
        canonical: true,
        visibility: wire::Visibility::Namespace as i32,
        ..service("s")
    };
    push(&store, [Type::Service(message)]);
    let view = store.load();
    let read = view.service(&key("s")).expect("known");
    assert_eq!(read.vips, [ip("10.1.0.1"), ip("10.1.0.2")]);
    assert_eq!(read.remote_vips, [NetworkAddress { network: "far".into(), ip: ip("10.1.0.3") }]);
    assert_eq!(read.ranges, [("".into(), "10.2.0.0/16".parse().expect("a range"))]);
    assert_eq!(read.ports[&80].target, Some(8080));
    assert_eq!(read.identities.iter().map(ToString::to_string).collect::<Vec<_>>(), ["spiffe://td/ns/ns/sa/a"]);
    assert_eq!(read.balancing.preferences, [Scope::Zone, Scope::Node]);
    assert!(read.balancing.unhealthy_too && read.balancing.mode == Mode::Strict);
    assert!(read.families == Families::V6 && read.canonical && read.private);
    assert!(view.service_for(ip("10.1.0.1"), "ns").is_some() && view.service_for(ip("10.1.0.1"), "other").is_none());
    assert_eq!(read.waypoints().count(), 2);
}

#[test]
fn weights_of_waypoints_are_kept_and_none_of_weight_0_is_drawn() {
    let store = store();
    let share = |name: &str, weight| WeightedWaypoint { destination: Some(named(name, 15008)), weight };
    let drawn = |weighted: Vec<WeightedWaypoint>, random: u64| {
        let message = wire::Service {
            waypoint: Some(named("main.example", 15008)),
            weighted_waypoints: weighted,
            ..service("s")
        };
        push(&store, [Type::Service(message)]);
        let view = store.load();
        let waypoint = view.service(&key("s")).expect("known").waypoint_for(random).expect("one");
        match &waypoint.destination {
            Gateway::Service(key) => key.hostname.to_string(),
            Gateway::Address(address) => address.ip.to_string(),
        }
    };
    let shares = || vec![share("none.example", 0), share("old.example", 90), share("new.example", 10)];
    // Of 1000 evenly spread numbers.
    let spread = (0..1000).map(|number| drawn(shares(), number * (u64::MAX / 1000)));
    let new = spread.filter(|name| name == "new.example").count();
    assert!((99..=101).contains(&new), "{new} of 1000 for a tenth");
    assert_eq!(drawn(shares(), 0), "old.example");
    assert_eq!(drawn(shares(), u64::MAX), "new.example");
    assert_eq!(drawn(vec![share("a.example", 0), share("b.example", 0)], 7), "main.example", "without weights");
    assert_eq!(drawn(Vec::new(), 7), "main.example");
}

#[test]
fn what_cannot_be_read_is_refused_with_its_reason() {
    let broken_workload = |change: &dyn Fn(&mut wire::Workload)| {
        let mut message = workload("w", "10.0.0.1", &[]);
        change(&mut message);
        Type::Workload(message)
    };
    let broken_service = |change: &dyn Fn(&mut wire::Service)| {
        let mut message = service("s");
        change(&mut message);
        Type::Service(message)
    };
    let balancing =
        |scope, mode, health_policy| Some(LoadBalancing { routing_preference: vec![scope], mode, health_policy });
    let nowhere = || Some(GatewayAddress { destination: None, hbone_mtls_port: 15008 });
    let cases = [
        (broken_workload(&|w| w.tunnel_protocol = 2), "unknown tunnel protocol 2"),
        (broken_workload(&|w| w.network_mode = 9), "unknown network mode 9"),
        (broken_workload(&|w| w.addresses.push(vec![1, 2, 3])), "an address of 3 bytes"),
        (broken_workload(&|w| w.waypoint = nowhere()), "its waypoint has no destination"),
        (broken_workload(&|w| w.waypoint = Some(named("w", 0))), "HBONE port of its waypoint: 0 is not a port"),
        (broken_workload(&|w| w.network_gateway = nowhere()), "its network gateway has no destination"),
        (
            broken_workload(&|w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 5, port: 0 })),
            "unknown application tunnel protocol 5",
        ),
        (
            broken_workload(&|w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 0, port: 70_000 })),
            "70000 is not a port",
        ),
        (
            broken_workload(&|w| drop(w.services.insert("x".into(), wire::PortList::default()))),
            "not `namespace/hostname`",
        ),
        (broken_workload(&|w| w.addresses = vec![octets("10.0.0.1"); 4097]), "4097 addresses, at most 4096"),
        (broken_service(&|s| s.load_balancing = balancing(0, 2, 0)), "unknown load balancing scope 0"),
        (broken_service(&|s| s.load_balancing = balancing(7, 2, 0)), "unknown load balancing scope 7"),
        (broken_service(&|s| s.load_balancing = balancing(1, 4, 0)), "unknown load balancing mode 4"),
        (broken_service(&|s| s.load_balancing = balancing(1, 2, 2)), "unknown health policy 2"),
        (broken_service(&|s| s.ip_families = 4), "unknown address families 4"),
        (broken_service(&|s| s.addresses = vec![vip("", "10.0.0.0", Some(33))]), "10.0.0.0/33 is not a range"),
        (broken_service(&|s| s.addresses = vec![vip("", "10.0.0.0", Some(256))]), "is not a range"),
        (broken_service(&|s| s.ports[0].service_port = 0), "0 is not a port"),
        (
            broken_service(&|s| s.weighted_waypoints = vec![WeightedWaypoint { destination: None, weight: 1 }]),
            "no destination",
        ),
    ];
    for (content, reason) in cases {
        let store = store();
        let nack = store.apply(&[super::response([content])]).expect_err(reason);
        assert!(nack.rejected[0].1.contains(reason), "{}: {reason}", nack.rejected[0].1);
        let view = store.load();
        assert_eq!(view.workloads().count() + view.services().count(), 0, "{reason}");
    }
}
