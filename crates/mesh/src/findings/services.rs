//! Services, their waypoints and their pods.

use ambit_api::{ObjectRef, Severity};

use super::{Found, at, at_namespace, at_pod, codes};
use crate::{
    binding::{self, Binding, Problem, USE_WAYPOINT, WAYPOINT_FOR, WAYPOINT_GUARD},
    derive,
    inputs::{Inputs, NamespacedName, Service, WAYPOINT_CLASS},
};

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    for (name, service) in &inputs.services {
        waypoint(inputs, name, service, found);
        pods(inputs, name, service, found);
        if derive::is_shadowed(inputs, name) {
            found.add(
                Severity::Error,
                codes::SERVICE_SHADOWED,
                at("Service", name, "metadata.name"),
                format!("waypoint `{name}` has its own service of this name"),
                "rename the Service or the Gateway",
            );
        }
    }
    namespaces(inputs, found);
    pod_waypoints(inputs, found);
}

fn label(key: &str) -> String {
    format!("metadata.labels[{key}]")
}

/// The object and label that asked for the waypoint.
fn asked_by(binding: &Binding, namespace: &str, own: (ObjectRef, String)) -> (ObjectRef, String) {
    if binding.request.from_namespace { at_namespace(namespace, label(USE_WAYPOINT)) } else { own }
}

fn waypoint(inputs: &Inputs, name: &NamespacedName, service: &Service, found: &mut Found) {
    let Some(binding) = binding::asked_by_service(inputs, name, service) else { return };
    let own = at("Service", name, label(USE_WAYPOINT));
    let what = format!("service `{name}`");
    problem(inputs, &binding, &what, asked_by(&binding, &name.namespace, own), &name.namespace, found);
    if binding::of_service(inputs, name, service).is_none() {
        return;
    }
    let is_open = binding::is_guard_off(inputs, &name.namespace, &service.labels);
    let selected = Inputs::in_namespace(&inputs.pods, &name.namespace).filter(|(_, pod)| service.selects(&pod.labels));
    // Nobody stands guard at a pod outside of the mesh: what its waypoint refuses could ask the pod itself.
    let severity = if is_open { Severity::Warning } else { Severity::Error };
    for (pod_name, pod) in selected {
        if !derive::in_mesh(inputs, pod_name, pod) && pod.waypoint.is_none() {
            found.add(
                severity,
                codes::GUARD_OFF,
                at("Service", name, label(USE_WAYPOINT)),
                format!("its pod `{pod_name}` isn't in the mesh, so its waypoint can be walked around"),
                format!(
                    "label namespace `{}` with `istio.io/dataplane-mode: ambient`, or say that the Service may be open: \
                     `{WAYPOINT_GUARD}: \"off\"`",
                    name.namespace
                ),
            );
        }
    }
    if is_open {
        let said = if service.labels.contains_key(WAYPOINT_GUARD) { WAYPOINT_GUARD } else { USE_WAYPOINT };
        found.add(
            Severity::Warning,
            codes::GUARD_OFF,
            at("Service", name, label(said)),
            format!(
                "service `{name}` is open: its pods answer anyone, not only waypoint `{}`",
                binding.request.gateway
            ),
            "remove `ambit.dev/waypoint-guard: \"off\"` (here or on its namespace, or `waypointGuard` from the MeshConfig) to let \
             only the waypoint reach its target ports",
        );
    }
}

fn problem(
    inputs: &Inputs,
    binding: &Binding,
    what: &str,
    place: (ObjectRef, String),
    namespace: &str,
    found: &mut Found,
) {
    let gateway = &binding.request.gateway;
    let (code, message, help) = match binding.problem {
        None => return,
        Some(Problem::Missing) => (
            codes::WAYPOINT_MISSING,
            format!(
                "{what} asks for waypoint `{}`, which doesn't exist in namespace `{}`",
                gateway.name, gateway.namespace
            ),
            missing_help(inputs, gateway),
        ),
        Some(Problem::NotAWaypoint) => (
            codes::NOT_A_WAYPOINT,
            format!("{what} asks for waypoint `{gateway}`, a Gateway of another class"),
            format!("name a Gateway with `gatewayClassName: {WAYPOINT_CLASS}`, or change the class of this one"),
        ),
        Some(Problem::NotPermitted) => (
            codes::WAYPOINT_NOT_PERMITTED,
            format!("{what} asks for waypoint `{gateway}`, which doesn't admit objects of namespace `{namespace}`"),
            "set `allowedRoutes.namespaces.from` on the Gateway's HBONE listener to `All`, or to a `Selector` that \
             includes the namespace"
                .into(),
        ),
        Some(Problem::TrafficType) => (
            codes::WAYPOINT_TRAFFIC,
            format!("{what} asks for waypoint `{gateway}`, which isn't for this kind of traffic"),
            format!("change the Gateway's label `{WAYPOINT_FOR}`, or name another waypoint"),
        ),
    };
    if binding::bypasses(inputs, namespace) {
        let message = format!("{message}; its traffic goes direct, past every policy at the waypoint");
        return found.add(Severity::Warning, code, place, message, help);
    }
    found.add(Severity::Error, code, place, message, help);
}

fn missing_help(inputs: &Inputs, gateway: &NamespacedName) -> String {
    let elsewhere = inputs.gateways.iter().find(|(name, object)| name.name == gateway.name && object.is_waypoint());
    match elsewhere {
        Some((name, _)) => format!(
            "there is one in namespace `{}`: add the label `{}: {}`",
            name.namespace,
            binding::USE_WAYPOINT_NAMESPACE,
            name.namespace
        ),
        None => format!("create a Gateway `{gateway}` of class `{WAYPOINT_CLASS}`, or remove the label"),
    }
}

/// A Service without pods, and a port that one Service guards while another offers it openly.
fn pods(inputs: &Inputs, name: &NamespacedName, service: &Service, found: &mut Found) {
    if service.selector.is_empty() {
        return;
    }
    let selected: Vec<_> =
        Inputs::in_namespace(&inputs.pods, &name.namespace).filter(|(_, pod)| service.selects(&pod.labels)).collect();
    if selected.is_empty() {
        found.add(
            Severity::Warning,
            codes::SERVICE_SELECTS_NOTHING,
            at("Service", name, "spec.selector"),
            "its selector matches no pod".into(),
            "correct the selector or a pod's labels; a pod may also come with `ambit run`",
        );
    }
    let guards = |object: &Service, name| {
        binding::of_service(inputs, name, object)
            .filter(|_| !binding::is_guard_off(inputs, &name.namespace, &object.labels))
            .map(|b| b.request.gateway)
    };
    let own = guards(service, name);
    for (pod_name, pod) in selected {
        let ports: Vec<_> = service.ports.iter().filter_map(|port| derive::resolve(pod, &port.target)).collect();
        for guarded in derive::guard(inputs, pod_name, pod) {
            let waypoint = NamespacedName::new(&guarded.waypoint_namespace, &guarded.waypoint_name);
            let covered = ports.iter().any(|p| guarded.target_port == 0 || u32::from(*p) == guarded.target_port);
            if covered && guarded.service != name.to_string() && own.as_ref() != Some(&waypoint) {
                found.add(
                    Severity::Warning,
                    codes::GUARD_CONFLICT,
                    at("Service", name, "spec.ports"),
                    format!(
                        "its pods' ports are guarded for waypoint `{waypoint}` by `{}`, so connections to this service fail",
                        guarded.service
                    ),
                    format!("bind this Service to waypoint `{waypoint}` too, or give it other target ports"),
                );
            }
        }
    }
}

/// A namespace that asks for a waypoint that doesn't exist, even if nothing in it needs one yet.
fn namespaces(inputs: &Inputs, found: &mut Found) {
    for (name, namespace) in &inputs.namespaces {
        let request =
            namespace.labels.get(USE_WAYPOINT).and_then(|_| binding::request(inputs, name, &namespace.labels));
        let Some(mut request) = request else { continue };
        request.from_namespace = true;
        let problem = match inputs.gateways.get(&request.gateway) {
            None => Problem::Missing,
            Some(gateway) if !gateway.is_waypoint() => Problem::NotAWaypoint,
            Some(_) => continue,
        };
        let binding = Binding { request, problem: Some(problem) };
        let place = at_namespace(name, label(USE_WAYPOINT));
        self::problem(inputs, &binding, &format!("namespace `{name}`"), place, name, found);
    }
}

/// Pods that ask for a waypoint for traffic addressed to themselves, which isn't carried that way yet.
fn pod_waypoints(inputs: &Inputs, found: &mut Found) {
    for (name, pod) in &inputs.pods {
        let Some(binding) = binding::asked_by_pod(inputs, name, pod) else { continue };
        let own = at_pod(name, pod, &label(USE_WAYPOINT));
        let place = asked_by(&binding, &name.namespace, own);
        problem(inputs, &binding, &format!("pod `{name}`"), place, &name.namespace, found);
    }
}
