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

/// What one address's claims should come to, told simply: pods before others, HBONE before plain, the newest pod, else the
/// oldest.
fn likeliest(claims: &[(usize, wire::Workload)]) -> Option<String> {
    let rank = |(turn, workload): &&(usize, wire::Workload)| {
        let pod = workload.uid.contains("//Pod/");
        let turn = i64::try_from(*turn).expect("small");
        (pod, workload.tunnel_protocol == TunnelProtocol::Hbone as i32, if pod { turn } else { -turn })
    };
    claims.iter().max_by_key(rank).map(|(_, workload)| workload.uid.clone())
}

#[test]
fn however_many_have_one_address_the_likeliest_has_it() {
    let store = store();
    let mut claims: Vec<(usize, wire::Workload)> = Vec::new();
    // Fixed, so that a failure can be repeated.
    let mut state = 7_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("small") % below
    };
    for turn in 0..3_000 {
        // It grows to some hundreds, then shrinks to nothing, and again.
        let grows = (turn / 500) % 2 == 0;
        if claims.is_empty() || random(10) < if grows { 8 } else { 1 } {
            let uid = format!("x/{}/{turn}", if random(2) == 0 { "/Pod" } else { "Entry" });
            let protocol = if random(2) == 0 { TunnelProtocol::None } else { TunnelProtocol::Hbone };
            claims.push((turn, wire::Workload { tunnel_protocol: protocol as i32, ..workload(&uid, ADDRESS, &[]) }));
            push(&store, [Type::Workload(claims[claims.len() - 1].1.clone())]);
        } else {
            let chosen = random(claims.len());
            // Now and then one says the same again, which changes nothing.
            if random(4) == 0 {
                push(&store, [Type::Workload(claims[chosen].1.clone())]);
            } else {
                remove(&store, &[&claims.remove(chosen).1.uid]);
            }
        }
        let found = store.load().workload_by_ip(ip(ADDRESS)).map(|owner| owner.uid.to_string());
        assert_eq!(found, likeliest(&claims), "turn {turn}, {} claims", claims.len());
        assert_eq!(store.load().has_address("", ip(ADDRESS)), !claims.is_empty());
    }
}

#[test]
fn ten_thousand_workloads_with_one_address_cost_about_ten_times_what_a_thousand_cost() {
    /// In one push, then a quarter of them more one by one, then those gone.
    fn measured(count: usize) -> [std::time::Duration; 3] {
        let store = store();
        let entry = |number: usize| Type::Workload(workload(&format!("x/Entry/{number}"), ADDRESS, &[]));
        let pod = |number: usize| Type::Workload(workload(&format!("x//Pod/{number}"), ADDRESS, &[]));
        let timed = |work: &dyn Fn()| {
            let started = std::time::Instant::now();
            work();
            started.elapsed()
        };
        let pods = count / 4;
        let names: Vec<String> = (0..pods).rev().map(|number| format!("x//Pod/{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let times = [
            timed(&|| push(&store, (0..count).map(entry))),
            timed(&|| (0..pods).for_each(|number| push(&store, [pod(number)]))),
            // The owner first, each time.
            timed(&|| remove(&store, &names)),
        ];
        assert_eq!(&*store.load().workload_by_ip(ip(ADDRESS)).expect("an owner").uid, "x/Entry/0");
        times
    }
    let (thousand, ten_thousand) = (measured(1_000), measured(10_000));
    for (what, less, more) in [("one push", 0, 0), ("one by one", 1, 1), ("gone", 2, 2)]
        .map(|(what, a, b)| (what, thousand[a], ten_thousand[b]))
    {
        println!("{what}: {less:?} for 1000, {more:?} for 10000");
        // Ten times as many; a hundred times as long would be quadratic.
        assert!(more < less.max(std::time::Duration::from_millis(5)) * 50, "{what}: {less:?}, then {more:?}");
    }
}

#[test]
fn ten_thousand_ranges_are_found_and_forgotten() {
    let store = store();
    let of = |number: u32| {
        let range = format!("10.{}.{}.0", number / 200, number % 200);
        Type::Service(wire::Service { addresses: vec![vip("", &range, Some(24))], ..service(&format!("s{number}")) })
    };
    let started = std::time::Instant::now();
    push(&store, (0..10_000).map(of));
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "it took {:?}", started.elapsed());
    let view = store.load();
    let found = |address: &str| view.service_for(ip(address), "ns").map(|service| service.name.to_string());
    assert_eq!(
        (found("10.0.7.9"), found("10.49.199.1"), found("10.50.0.1")),
        (Some("s7".into()), Some("s9999".into()), None)
    );
    let names: Vec<String> = (0..10_000).map(|number| format!("ns/s{number}.example")).collect();
    remove(&store, &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(store.load().service_for(ip("10.0.7.9"), "ns").is_none());
}

/// Found by fuzzing: a name that was a service's stayed one when it became a workload's.
#[test]
fn a_resource_that_becomes_another_kind_is_no_longer_the_first() {
    let store = store();
    let (same, other) = (service("same"), workload("ns/same.example", "10.0.0.1", &[]));
    push(&store, [Type::Service(same.clone())]);
    push(&store, [Type::Workload(other.clone())]);
    assert_eq!((store.load().services().count(), store.load().workloads().count()), (0, 1));
    push(&store, [Type::Service(same)]);
    assert_eq!((store.load().services().count(), store.load().workloads().count()), (1, 0));
    assert!(store.load().workload_by_ip(ip("10.0.0.1")).is_none(), "its address is nobody's");
}
