//! Choosing among endpoints: shares, load, and what was tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::Arc,
    time::Instant,
};

use ambit_mesh::{
    Store,
    loads::{InFlight, Loads},
    view::ServiceKey,
};
use ambit_xds::workload::{LoadBalancing, UInt32Value, Workload, load_balancing::Scope};

use super::fixture::{endpoint, pod, push, service, store};
use crate::{balance::Choice, limits::LOAD_COUNTERS};

fn key() -> ServiceKey {
    ServiceKey { namespace: "ns".into(), hostname: "app.ns.svc.cluster.local".into() }
}

fn endpoints(store: &Store, endpoints: &[(&str, u32, &str)]) {
    let workloads: Vec<Workload> = endpoints
        .iter()
        .enumerate()
        .map(|(number, (name, capacity, node))| Workload {
            capacity: Some(UInt32Value { value: *capacity }),
            node: (*node).to_owned(),
            ..endpoint(pod(name, &format!("10.244.{}.{}", number / 250, number % 250 + 1)), "app", 80, 8080)
        })
        .collect();
    push(store, &workloads.iter().collect::<Vec<_>>(), &[&service("app", &["10.96.0.2"], 80, None)]);
}

fn pick(store: &Store, seed: u64, tried: &[Arc<str>], loads: &Loads) -> Option<(String, Arc<str>, bool)> {
    let view = store.load();
    let picked = Choice { seed, tried, loads }.pick(&view.tiers(&key(), None, Some(80)))?;
    Some((picked.workload.name.to_string(), Arc::clone(&picked.workload.uid), picked.others))
}

#[test]
fn every_endpoint_gets_its_share() {
    let store = store();
    endpoints(&store, &[("one", 1, ""), ("two", 2, ""), ("none", 0, "")]);
    let loads = Arc::new(Loads::new(LOAD_COUNTERS));
    let view = store.load();
    let mut busy: BTreeMap<String, Vec<InFlight>> = BTreeMap::new();
    for seed in 0..3000 {
        let (name, uid, _) = pick(&store, seed, &[], &loads).expect("an endpoint");
        busy.entry(name).or_default().push(loads.add(view.workload(&uid).expect("known").load_key));
    }
    let held = |name: &str| busy.get(name).map_or(0, Vec::len);
    assert!((950..1050).contains(&held("one")), "{}", held("one"));
    assert_eq!(held("one") + held("two"), 3000);
}

#[test]
fn the_less_busy_of_two_is_taken_and_counts_end_with_the_connection() {
    let store = store();
    endpoints(&store, &[("idle", 1, ""), ("busy", 1, "")]);
    let loads = Arc::new(Loads::new(LOAD_COUNTERS));
    let view = store.load();
    let busy = view.workload("Kubernetes//Pod/ns/busy").expect("known");
    let share =
        |loads: &Arc<Loads>| (0..1000).filter(|seed| pick(&store, *seed, &[], loads).expect("one").0 == "busy").count();
    let held: Vec<InFlight> = (0..50).map(|_| loads.add(busy.load_key)).collect();
    assert!((200..300).contains(&share(&loads)), "drawn twice in a quarter of cases: {}", share(&loads));
    drop(held);
    assert!((400..600).contains(&share(&loads)), "{}", share(&loads));
}

#[test]
fn all_are_tried_once_the_nearest_first_and_then_none() {
    let store = store();
    endpoints(&store, &[("near", 1, "n"), ("far-1", 1, "x"), ("far-2", 1, "y")]);
    let load_balancing = LoadBalancing { routing_preference: vec![Scope::Node.into()], mode: 2, health_policy: 0 };
    let mut failover = service("app", &["10.96.0.2"], 80, None);
    failover.load_balancing = Some(load_balancing);
    push(&store, &[&Workload { node: "n".into(), ..pod("me", "10.245.0.9") }], &[&failover]);
    let loads = Loads::new(LOAD_COUNTERS);
    let view = store.load();
    let me = view.workload("Kubernetes//Pod/ns/me").map(|me| &**me);
    for seed in 0..50 {
        let mut tried = Vec::new();
        let mut names = Vec::new();
        while let Some(picked) = (Choice { seed, tried: &tried, loads: &loads }).pick(&view.tiers(&key(), me, Some(80)))
        {
            assert_eq!(picked.others, tried.len() < 2);
            names.push(picked.workload.name.to_string());
            tried.push(Arc::clone(&picked.workload.uid));
        }
        assert_eq!(names[0], "near");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3, "{names:?}");
    }
}

#[test]
fn a_service_without_endpoints_has_none() {
    let store = store();
    push(&store, &[], &[&service("app", &["10.96.0.2"], 80, None)]);
    assert!(pick(&store, 1, &[], &Loads::new(LOAD_COUNTERS)).is_none());
}

/// Prints what one choice costs. `cargo test -p ambit-ztunnel --release -- --ignored --nocapture measured`
#[test]
#[ignore = "measures time; the test of the cost counts work (`mesh::view`)"]
fn measured() {
    for count in [10_usize, 100, 1000, 10_000] {
        let store = store();
        let names: Vec<(String, String)> =
            (0..count).map(|number| (format!("e{number}"), format!("n{}", number % 100))).collect();
        let list: Vec<_> = names.iter().map(|(name, node)| (name.as_str(), 1, node.as_str())).collect();
        endpoints(&store, &list);
        let loads = Arc::new(Loads::new(LOAD_COUNTERS));
        let view = store.load();
        let me = view.workload("Kubernetes//Pod/ns/e1").map(|me| &**me);
        let rounds = 200_000;
        let started = Instant::now();
        for seed in 0..rounds {
            let choice = Choice { seed, tried: &[], loads: &loads };
            black_box(choice.pick(&view.tiers(&key(), me, Some(80))).map(|picked| loads.add(picked.workload.load_key)));
        }
        let choice = started.elapsed().as_nanos() as f64 / rounds as f64;
        let changes = 200;
        let started = Instant::now();
        for number in 0..changes {
            let capacity = Some(UInt32Value { value: 1 + number % 2 });
            push(&store, &[&Workload { capacity, ..endpoint(pod("e0", "10.244.0.1"), "app", 80, 8080) }], &[]);
        }
        let change = started.elapsed().as_micros() / u128::from(changes);
        println!("{count:>6} endpoints: {choice:.0} ns per choice, {change} us per changed endpoint");
    }
}
