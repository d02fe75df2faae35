//! Which waypoint fronts what: every row of `spec/control-plane.md` 1.4, and that nothing fails open.

mod support;

use ambit_api::authorization_policy::Action;
use ambit_mesh::{
    binding::{self, Problem},
    derive::derive,
    inputs::{AllowedNamespaces, Change, LabelSelector, TargetPort},
};
use ambit_xds::{
    ADDRESS_TYPE, WAYPOINT_TYPE,
    waypoint::Bundle,
    workload::{WaypointGuard, Workload, address::Type, gateway_address::Destination},
};
use prost::Message;
use support::{decode_address, gateway, inputs, labels, name, namespace, pod, policy, port, put, service, targeting};

const USE: &str = "istio.io/use-waypoint";
const USE_NS: &str = "istio.io/use-waypoint-namespace";
const FOR: &str = "istio.io/waypoint-for";

/// What is expected of a Service's binding.
type Expected = Option<(&'static str, Option<Problem>)>;
/// Labels.
type Pairs = &'static [(&'static str, &'static str)];

fn resolve(
    ns: Pairs,
    object: Pairs,
    waypoint_for: Option<&'static str>,
    allowed: AllowedNamespaces,
) -> Option<(String, Option<Problem>)> {
    let waypoint_labels: Vec<_> = waypoint_for.map(|value| (FOR, value)).into_iter().collect();
    let mut other = gateway(&[], AllowedNamespaces::Same);
    other.class = "istio".into();
    let inputs = inputs([
        namespace("a", ns),
        namespace("b", &[]),
        Change::Gateway(name("a/w"), Some(gateway(&waypoint_labels, AllowedNamespaces::Same))),
        Change::Gateway(name("b/shared"), Some(gateway(&[], allowed))),
        Change::Gateway(name("a/ingress"), Some(other)),
    ]);
    binding::of_service(&inputs, &name("a/s"), &service("x", object))
        .map(|binding| (binding.request.gateway.to_string(), binding.problem))
}

#[test]
fn a_service_is_bound_by_its_own_label_then_by_its_namespaces() {
    let rows: [(&str, Pairs, Pairs, Expected); 9] = [
        ("no label", &[], &[], None),
        ("object label", &[], &[(USE, "w")], Some(("a/w", None))),
        ("namespace label", &[(USE, "w")], &[], Some(("a/w", None))),
        ("object wins over namespace", &[(USE, "gone")], &[(USE, "w")], Some(("a/w", None))),
        ("object opts out", &[(USE, "w")], &[(USE, "none")], None),
        ("namespace says none", &[(USE, "none")], &[], None),
        (
            "no fallback from a broken object label",
            &[(USE, "w")],
            &[(USE, "gone")],
            Some(("a/gone", Some(Problem::Missing))),
        ),
        ("a Gateway of another class", &[], &[(USE, "ingress")], Some(("a/ingress", Some(Problem::NotAWaypoint)))),
        (
            "the object's namespace label doesn't combine with the namespace's",
            &[(USE, "w"), (USE_NS, "b")],
            &[(USE, "w")],
            Some(("a/w", None)),
        ),
    ];
    for (what, ns, object, expected) in rows {
        let expected = expected.map(|(gateway, problem)| (gateway.to_owned(), problem));
        assert_eq!(resolve(ns, object, None, AllowedNamespaces::Same), expected, "{what}");
    }
}

#[test]
fn a_waypoint_of_another_namespace_must_admit_the_services_namespace() {
    let selector = |key: &str| {
        AllowedNamespaces::Selector(LabelSelector { match_labels: labels(&[(key, "yes")]), ..LabelSelector::default() })
    };
    let rows = [
        ("default", AllowedNamespaces::Same, Some(Problem::NotPermitted)),
        ("all", AllowedNamespaces::All, None),
        ("none", AllowedNamespaces::None, Some(Problem::NotPermitted)),
        ("selector that fits", selector("team"), None),
        ("selector that doesn't", selector("other"), Some(Problem::NotPermitted)),
    ];
    for (what, allowed, problem) in rows {
        let own = resolve(&[("team", "yes")], &[(USE, "shared"), (USE_NS, "b")], None, allowed.clone());
        assert_eq!(own, Some(("b/shared".to_owned(), problem)), "{what}, object label");
        let inherited = resolve(&[("team", "yes"), (USE, "shared"), (USE_NS, "b")], &[], None, allowed);
        assert_eq!(inherited, Some(("b/shared".to_owned(), problem)), "{what}, namespace label");
    }
}

#[test]
fn the_traffic_type_decides_who_may_bind() {
    let by_object: [(Option<&'static str>, Option<Problem>); 6] = [
        (None, None),
        (Some("service"), None),
        (Some("all"), None),
        (Some("workload"), Some(Problem::TrafficType)),
        (Some("none"), Some(Problem::TrafficType)),
        (Some("nonsense"), Some(Problem::TrafficType)),
    ];
    for (value, problem) in by_object {
        let own = resolve(&[], &[(USE, "w")], value, AllowedNamespaces::Same);
        assert_eq!(own, Some(("a/w".to_owned(), problem)), "{value:?}");
    }
    // A namespace asks for all that is in it; a Gateway for workloads only leaves its services alone.
    assert_eq!(resolve(&[(USE, "w")], &[], Some("workload"), AllowedNamespaces::Same), None);
    let unknown = resolve(&[(USE, "w")], &[], Some("nonsense"), AllowedNamespaces::Same);
    assert_eq!(unknown, Some(("a/w".to_owned(), Some(Problem::TrafficType))));
}

#[test]
fn pods_bind_only_to_waypoints_for_workloads_and_waypoints_to_none() {
    for (value, bound) in [("service", false), ("workload", true), ("all", true), ("none", false)] {
        let mesh = inputs([
            namespace("a", &[(USE, "w")]),
            Change::Gateway(name("a/w"), Some(gateway(&[(FOR, value)], AllowedNamespaces::Same))),
        ]);
        let mut object = pod("u", "x", 2);
        assert_eq!(binding::of_pod(&mesh, &name("a/p"), &object).is_some(), bound, "{value}");
        object.waypoint = Some("w".into());
        assert_eq!(binding::of_pod(&mesh, &name("a/p"), &object), None, "{value}: its own pod");
    }
}

#[test]
fn managed_services_have_no_waypoint() {
    let labels = &[(USE, "w"), ("gateway.istio.io/managed", "istio.io-mesh-controller")];
    assert_eq!(resolve(&[], labels, None, AllowedNamespaces::Same), None);
}

/// The waypoint hostname of service `a/s`, the guarded ports of its pod, and the services of waypoint `a/w`.
fn published(
    with_gateway: bool,
    object: Pairs,
    target: TargetPort,
) -> (Option<String>, Vec<(u32, String)>, Vec<String>) {
    let mut bound = service("x", object);
    bound.ports = vec![port(80, target)];
    let mut changes = vec![
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Service(name("a/s"), Some(bound)),
        Change::Pod(name("a/p"), Some(pod("u", "x", 2))),
    ];
    if with_gateway {
        changes.push(Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))));
    }
    let resources = derive(&inputs(changes));
    let address = |name: &str| decode_address(&resources[&(ADDRESS_TYPE, name.to_owned())]);
    let Type::Service(service) = address("a/s.a.svc.cluster.local") else { panic!("a service") };
    let Type::Workload(workload) = address("u") else { panic!("a workload") };
    let hostname = service.waypoint.and_then(|waypoint| match waypoint.destination {
        Some(Destination::Hostname(name)) => Some(name.hostname),
        _ => None,
    });
    let guard = guard_of(&workload);
    let bundle = resources.get(&(WAYPOINT_TYPE, "a/w".to_owned())).map(|resource| {
        let bundle = Bundle::decode(resource.value.as_slice()).expect("a bundle");
        bundle.services.into_iter().map(|service| service.hostname).collect()
    });
    (hostname, guard, bundle.unwrap_or_default())
}

/// The guarded ports of a pod, and for which waypoint.
fn guard_of(workload: &Workload) -> Vec<(u32, String)> {
    let config = workload.extensions.first().and_then(|extension| extension.config.clone());
    let guard = config.map(|any| WaypointGuard::decode(any.value.as_slice()).expect("a guard"));
    guard.into_iter().flat_map(|guard| guard.ports).map(|port| (port.target_port, port.waypoint_name)).collect()
}

/// A waypoint `a/w` with this `waypoint-for`, a pod with these labels, and policies for everything that there is: the
/// waypoint hostname of the pod, its guard, and what the waypoint is told of workloads.
fn fronted(waypoint_for: &'static str, pod_labels: Pairs) -> (Option<String>, Vec<(u32, String)>, Bundle) {
    const GROUP: &str = "gateway.networking.k8s.io";
    let mut object = pod("u", "x", 2);
    object.labels.extend(labels(pod_labels));
    let one = |name: &str| policy(name, Action::Deny, Some("cluster.local/ns/a/sa/c"), None);
    let resources = derive(&inputs([
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[(FOR, waypoint_for)], AllowedNamespaces::Same))),
        Change::Service(name("a/s"), Some(service("x", &[(USE, "w")]))),
        Change::Pod(name("a/p"), Some(object)),
        put(targeting(one("a/gateway"), GROUP, "Gateway", "w")),
        put(targeting(one("a/other-gateway"), GROUP, "Gateway", "v")),
        put(targeting(one("istio-system/class"), GROUP, "GatewayClass", "istio-waypoint")),
        put(targeting(one("a/service"), "", "Service", "s")),
        put(one("a/namespace")),
    ]));
    let Type::Workload(workload) = decode_address(&resources[&(ADDRESS_TYPE, "u".to_owned())]) else {
        panic!("a workload")
    };
    let guard = guard_of(&workload);
    let hostname = workload.waypoint.and_then(|waypoint| match waypoint.destination {
        Some(Destination::Hostname(name)) => Some(name.hostname),
        _ => None,
    });
    let bundle = &resources[&(WAYPOINT_TYPE, "a/w".to_owned())];
    (hostname, guard, Bundle::decode(bundle.value.as_slice()).expect("a bundle"))
}

#[test]
fn a_waypoint_for_workloads_is_told_the_policies_of_the_gateway_for_them() {
    let own = "w.a.svc.cluster.local";
    let names = |bundle: &Bundle| -> Vec<String> {
        bundle.workload_policies.iter().map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect()
    };
    for waypoint_for in ["workload", "all"] {
        let (hostname, guard, bundle) = fronted(waypoint_for, &[(USE, "w")]);
        assert_eq!(hostname.as_deref(), Some(own));
        assert_eq!(
            (bundle.hostname.as_str(), names(&bundle)),
            (own, vec!["a/gateway".to_owned(), "istio-system/class".to_owned()])
        );
        assert!(guard.contains(&(0, "w".to_owned())), "every port of the pod is its waypoint's: {guard:?}");
    }
    for waypoint_for in ["service", "none", "odd"] {
        let (_, _, bundle) = fronted(waypoint_for, &[]);
        assert_eq!((bundle.hostname.as_str(), names(&bundle).len()), ("", 0), "{waypoint_for}");
    }
}

#[test]
fn the_word_off_opens_a_pods_own_guard_and_leaves_its_waypoint() {
    let (hostname, guard, _) = fronted("all", &[(USE, "w"), ("ambit.dev/waypoint-guard", "off")]);
    assert_eq!(hostname.as_deref(), Some("w.a.svc.cluster.local"));
    assert_eq!(guard, [(8080, "w".to_owned())], "what its service asks for stays");
}

#[test]
fn a_bound_service_guards_its_target_ports_and_is_in_the_bundle() {
    let (hostname, guard, bundle) = published(true, &[(USE, "w")], TargetPort::Number(8080));
    assert_eq!(hostname.as_deref(), Some("w.a.svc.cluster.local"));
    assert_eq!(guard, [(8080, "w".to_owned())]);
    assert_eq!(bundle, ["s.a.svc.cluster.local"]);
}

#[test]
fn a_missing_waypoint_closes_the_way() {
    let (hostname, guard, bundle) = published(false, &[(USE, "w")], TargetPort::Number(8080));
    assert_eq!(hostname.as_deref(), Some("w.a.waypoint-missing.invalid"), "resolves to nothing, and says why");
    assert_eq!(guard, [(8080, "w".to_owned())], "the guard still guards");
    assert!(bundle.is_empty());
}

#[test]
fn a_target_port_that_nothing_resolves_guards_every_port() {
    let (_, guard, _) = published(true, &[(USE, "w")], TargetPort::Name("http".into()));
    assert_eq!(guard, [(0, "w".to_owned())]);
}

#[test]
fn only_the_word_off_opens_the_guard() {
    let (hostname, guard, _) =
        published(true, &[(USE, "w"), ("ambit.dev/waypoint-guard", "off")], TargetPort::Number(8080));
    assert_eq!((hostname.as_deref(), guard.len()), (Some("w.a.svc.cluster.local"), 0));
    let (_, guard, _) = published(true, &[(USE, "w"), ("ambit.dev/waypoint-guard", "false")], TargetPort::Number(8080));
    assert_eq!(guard.len(), 1);
}

/// The hostname that clients of a Service are sent to, and whether its port is guarded, where its waypoint is missing (or not),
/// the mesh, the Namespace and the Service saying these.
fn said(
    there: bool,
    settings: impl FnOnce(&mut ambit_mesh::inputs::Settings),
    ns: &[(&str, &str)],
    own: &[(&str, &str)],
) -> (Option<String>, bool) {
    let mut mesh = ambit_mesh::inputs::Settings::default();
    settings(&mut mesh);
    let own: Vec<_> = [(USE, "w")].into_iter().chain(own.iter().copied()).collect();
    let mut inputs = inputs([
        Change::Settings(mesh),
        namespace("a", &[ns, &[("istio.io/dataplane-mode", "ambient")]].concat()),
        Change::Service(name("a/s"), Some(service("x", &own))),
        Change::Pod(name("a/p"), Some(pod("uid", "x", 2))),
    ]);
    if there {
        inputs.apply(Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))));
    }
    let resources = derive(&inputs);
    let (mut hostname, mut guarded) = (None, false);
    for ((kind, _), resource) in &resources {
        match (*kind == ADDRESS_TYPE).then(|| decode_address(resource)) {
            Some(Type::Service(service)) if service.name == "s" => {
                hostname = service.waypoint.and_then(|waypoint| match waypoint.destination {
                    Some(Destination::Hostname(to)) => Some(to.hostname),
                    _ => None,
                });
            }
            Some(Type::Workload(workload)) => guarded = !workload.extensions.is_empty(),
            _ => {}
        }
    }
    (hostname, guarded)
}

#[test]
fn a_missing_waypoint_is_bypassed_only_where_that_is_said() {
    use ambit_api::mesh_config::MissingWaypoint;
    let missing = "ambit.dev/missing-waypoint";
    let refused = |what: &str, (hostname, guarded): (Option<String>, bool)| {
        let hostname = hostname.unwrap_or_else(|| panic!("{what}: it goes direct"));
        assert!(hostname.ends_with(".invalid") && guarded, "{what}: {hostname}");
    };
    let bypass = |settings: &mut ambit_mesh::inputs::Settings| settings.missing_waypoint = MissingWaypoint::Bypass;
    refused("by default", said(false, |_| {}, &[], &[]));
    refused("by the namespace", said(false, bypass, &[(missing, "deny")], &[]));
    refused("a word that means nothing", said(false, bypass, &[(missing, "Bypass")], &[]));
    refused("a Service has no say in it", said(false, |_| {}, &[], &[(missing, "bypass")]));
    assert_eq!(said(false, bypass, &[], &[]), (None, false), "by the mesh");
    assert_eq!(said(false, |_| {}, &[(missing, "bypass")], &[]), (None, false), "by the namespace");
    // One that is there is never bypassed.
    let (hostname, guarded) = said(true, bypass, &[(missing, "bypass")], &[]);
    assert_eq!((hostname.as_deref(), guarded), (Some("w.a.svc.cluster.local"), true));
}

#[test]
fn the_guard_is_off_only_where_that_is_said() {
    use ambit_api::mesh_config::WaypointGuard;
    let guard = "ambit.dev/waypoint-guard";
    let off = |settings: &mut ambit_mesh::inputs::Settings| settings.waypoint_guard = WaypointGuard::Off;
    let guarded = |settings: bool, ns: &[(&str, &str)], own: &[(&str, &str)]| {
        let (hostname, guarded) = if settings { said(true, off, ns, own) } else { said(true, |_| {}, ns, own) };
        assert_eq!(hostname.as_deref(), Some("w.a.svc.cluster.local"), "the waypoint is asked for all the same");
        guarded
    };
    for (settings, ns, own, expected) in [
        (false, &[][..], &[][..], true),
        (true, &[], &[], false),
        (true, &[(guard, "enforce")], &[], true),
        (false, &[(guard, "off")], &[], false),
        (false, &[(guard, "off")], &[(guard, "on")], true),
        (true, &[], &[(guard, "on")], true),
        (true, &[(guard, "OFF")], &[], true),
        (false, &[], &[(guard, "off")], false),
    ] {
        assert_eq!(guarded(settings, ns, own), expected, "mesh off {settings}, namespace {ns:?}, Service {own:?}");
    }
}
