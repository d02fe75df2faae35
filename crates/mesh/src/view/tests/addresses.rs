//! Whose an address is.

use ambit_xds::workload::{self as wire, NetworkMode, TunnelProtocol, Visibility, address::Type};

use super::{ip, push, remove, service, store, vip, workload};

const ADDRESS: &str = "10.0.0.1";

#[test]
fn of_several_workloads_with_one_address_the_likeliest_has_it() {
    let plain =
        |uid: &str| wire::Workload { tunnel_protocol: TunnelProtocol::None as i32, ..workload(uid, ADDRESS, &[]) };
    let tunnel = |uid: &str| workload(uid, ADDRESS, &[]);
    let host =
        |uid: &str| wire::Workload { network_mode: NetworkMode::HostNetwork as i32, ..workload(uid, ADDRESS, &[]) };
    let far = |uid: &str| wire::Workload { network: "far".to_owned(), ..workload(uid, ADDRESS, &[]) };
    let cases = [
        ("a pod before others", vec![tunnel("x/Entry/a"), plain("x//Pod/p")], Some("x//Pod/p")),
        ("a pod before others, sent first", vec![plain("x//Pod/p"), tunnel("x/Entry/a")], Some("x//Pod/p")),
        ("of pods one with HBONE", vec![tunnel("x//Pod/h"), plain("x//Pod/p")], Some("x//Pod/h")),
        ("of others one with HBONE", vec![plain("x/Entry/p"), tunnel("x/Entry/h")], Some("x/Entry/h")),
        (
            "of like pods the latest: the address was given away",
            vec![tunnel("x//Pod/a"), tunnel("x//Pod/b")],
            Some("x//Pod/b"),
        ),
        ("of others alike the first", vec![tunnel("x/Entry/b"), tunnel("x/Entry/a")], Some("x/Entry/b")),
        ("none of the host's network", vec![host("x//Pod/p")], None),
        ("none of another network", vec![far("x//Pod/p")], None),
    ];
    for (what, workloads, owner) in cases {
        let store = store();
        let uids: Vec<_> = workloads.iter().map(|workload| workload.uid.clone()).collect();
        // Each in a push of its own: the order matters.
        workloads.into_iter().for_each(|workload| push(&store, [Type::Workload(workload)]));
        let found = |store: &crate::Store| store.load().workload_by_ip(ip(ADDRESS)).map(|w| w.uid.to_string());
        assert_eq!(found(&store).as_deref(), owner, "{what}");
        // When the owner goes, the other has it.
        if let Some(owner) = owner {
            remove(&store, &[owner]);
            let other = uids.iter().find(|uid| *uid != owner).cloned();
            assert_eq!(found(&store), other, "{what}: gone");
        }
    }
}

#[test]
fn an_address_that_a_workload_gives_up_is_nobodys() {
    let store = store();
    push(&store, [Type::Workload(workload("w", ADDRESS, &[]))]);
    push(&store, [Type::Workload(workload("w", "10.0.0.2", &[]))]);
    let view = store.load();
    assert!(view.workload_by_ip(ip(ADDRESS)).is_none() && view.workload_by_ip(ip("10.0.0.2")).is_some());
    push(&store, [Type::Workload(wire::Workload { network: "far".into(), ..workload("w", "10.0.0.2", &[]) })]);
    assert!(store.load().workload_by_ip(ip("10.0.0.2")).is_none(), "it moved to another network");
}

#[test]
fn of_several_services_with_one_address_the_clients_own_comes_first() {
    let of = |namespace: &str, canonical: bool, private: bool, range: Option<u32>| wire::Service {
        namespace: namespace.to_owned(),
        canonical,
        visibility: if private { Visibility::Namespace } else { Visibility::Public } as i32,
        addresses: vec![vip("", if range.is_some() { "10.0.0.0" } else { ADDRESS }, range)],
        ..service("s")
    };
    let cases = [
        ("its own namespace's", vec![of("other", true, false, None), of("client", false, false, None)], Some("client")),
        ("the canonical one", vec![of("a", false, false, None), of("b", true, false, None)], Some("b")),
        ("the first", vec![of("b", false, false, None), of("a", false, false, None)], Some("b")),
        ("none that it can't see", vec![of("b", true, true, None), of("a", false, false, None)], Some("a")),
        ("nobody's, if it sees none", vec![of("a", true, true, None)], None),
        (
            "an address before a range",
            vec![of("client", true, false, Some(24)), of("a", false, false, None)],
            Some("a"),
        ),
        ("the narrower range", vec![of("a", true, false, Some(16)), of("b", false, false, Some(24))], Some("b")),
        (
            "its own range before a narrower",
            vec![of("client", false, false, Some(16)), of("b", true, false, Some(24))],
            Some("client"),
        ),
        ("the canonical range", vec![of("a", false, false, Some(24)), of("b", true, false, Some(24))], Some("b")),
        ("no range that it can't see", vec![of("a", true, true, Some(24)), of("b", true, false, Some(16))], Some("b")),
    ];
    for (what, services, owner) in cases {
        let store = store();
        let namespaces: Vec<_> = services.iter().map(|service| service.namespace.clone()).collect();
        services.into_iter().for_each(|service| push(&store, [Type::Service(service)]));
        let view = store.load();
        let found = view.service_for(ip(ADDRESS), "client").map(|service| &*service.key.namespace);
        assert_eq!(found, owner, "{what}");
        assert!(view.service_for(ip("11.0.0.1"), "client").is_none());
        let names: Vec<_> = namespaces.iter().map(|namespace| format!("{namespace}/s.example")).collect();
        remove(&store, &names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(store.load().service_by_vip(ip(ADDRESS)).is_none(), "{what}: gone");
    }
}
