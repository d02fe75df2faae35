//! Which waypoint fronts what (`spec/control-plane.md` 1.4), with one difference from Istio on purpose: a waypoint that
//! is asked for and can't be had closes the way instead of opening it.

use std::fmt;

use ambit_api::mesh_config::{MissingWaypoint, WaypointGuard};

use crate::inputs::{AllowedNamespaces, Gateway, Inputs, Labels, NamespacedName, Pod, Service};

/// Label that asks for a waypoint.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label with the waypoint's namespace, if it isn't the object's own.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Value of [`USE_WAYPOINT`] that asks for none.
pub const NO_WAYPOINT: &str = "none";
/// Label of a Gateway that says what it fronts.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Label of a Service that opens its target ports to others than its waypoint, with [`GUARD_OFF`]; of a pod that has a
/// waypoint of its own, all its ports; of a Namespace, those of all that is in it and doesn't say otherwise.
pub const WAYPOINT_GUARD: &str = "ambit.dev/waypoint-guard";
/// Value of [`WAYPOINT_GUARD`] that switches the guard off.
pub const GUARD_OFF: &str = "off";
/// Label of a Namespace that says what becomes of traffic for waypoints which can't be had.
pub const MISSING_WAYPOINT: &str = "ambit.dev/missing-waypoint";
/// Value of [`MISSING_WAYPOINT`] that lets it go direct.
pub const BYPASS: &str = "bypass";
const MANAGED: &str = "gateway.istio.io/managed";
const MANAGED_WAYPOINTS: [&str; 2] = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];

/// An object's request for a waypoint, as its labels or its namespace's say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The Gateway that is asked for.
    pub gateway: NamespacedName,
    /// The namespace's labels ask, not the object's own.
    pub from_namespace: bool,
}

/// A request and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The request.
    pub request: Request,
    /// Why the waypoint can't be had; traffic then fails.
    pub problem: Option<Problem>,
}

/// Why a waypoint can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No such Gateway.
    Missing,
    /// The Gateway isn't of the waypoint class.
    NotAWaypoint,
    /// The Gateway doesn't admit objects of this namespace.
    NotPermitted,
    /// The Gateway's waypoint doesn't front this kind of traffic.
    TrafficType,
}

/// What kind of object binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    Service,
    Workload,
}

/// The waypoint of a Service. Where a waypoint that can't be had is to be bypassed, such a one is none.
#[must_use]
pub fn of_service(inputs: &Inputs, name: &NamespacedName, service: &Service) -> Option<Binding> {
    asked_by_service(inputs, name, service).filter(|binding| holds(inputs, binding, &name.namespace))
}

/// The waypoint that a Service asks for, whatever becomes of that.
#[must_use]
pub fn asked_by_service(inputs: &Inputs, name: &NamespacedName, service: &Service) -> Option<Binding> {
    if service.labels.get(MANAGED).is_some_and(|value| MANAGED_WAYPOINTS.contains(&value.as_str())) {
        return None;
    }
    resolve(inputs, request(inputs, &name.namespace, &service.labels)?, name, Traffic::Service)
}

/// The waypoint for traffic addressed to a pod itself. A waypoint's own pod has none. Where a waypoint that can't be had is
/// to be bypassed, such a one is none.
#[must_use]
pub fn of_pod(inputs: &Inputs, name: &NamespacedName, pod: &Pod) -> Option<Binding> {
    asked_by_pod(inputs, name, pod).filter(|binding| holds(inputs, binding, &name.namespace))
}

/// The waypoint that is asked for a pod, whatever becomes of that.
#[must_use]
pub fn asked_by_pod(inputs: &Inputs, name: &NamespacedName, pod: &Pod) -> Option<Binding> {
    if pod.waypoint.is_some() {
        return None;
    }
    resolve(inputs, request(inputs, &name.namespace, &pod.labels)?, name, Traffic::Workload)
}

/// True if traffic goes direct where the waypoint for an object of this namespace can't be had. Whatever means nothing is
/// read as a refusal.
#[must_use]
pub fn bypasses(inputs: &Inputs, namespace: &str) -> bool {
    let label = inputs.namespace_labels(namespace).and_then(|labels| labels.get(MISSING_WAYPOINT));
    label.map_or(inputs.settings.missing_waypoint == MissingWaypoint::Bypass, |value| value == BYPASS)
}

/// True if others than its waypoint may reach an object with these labels: by its own word, its namespace's or the mesh's.
#[must_use]
pub fn is_guard_off(inputs: &Inputs, namespace: &str, labels: &Labels) -> bool {
    let of_namespace = || inputs.namespace_labels(namespace).and_then(|labels| labels.get(WAYPOINT_GUARD));
    let label = labels.get(WAYPOINT_GUARD).or_else(of_namespace);
    label.map_or(inputs.settings.waypoint_guard == WaypointGuard::Off, |value| value == GUARD_OFF)
}

fn holds(inputs: &Inputs, binding: &Binding, namespace: &str) -> bool {
    binding.problem.is_none() || !bypasses(inputs, namespace)
}

/// What an object with these labels asks for.
#[must_use]
pub fn request(inputs: &Inputs, namespace: &str, labels: &Labels) -> Option<Request> {
    let (labels, from_namespace) =
        if labels.contains_key(USE_WAYPOINT) { (labels, false) } else { (inputs.namespace_labels(namespace)?, true) };
    let name = labels.get(USE_WAYPOINT).filter(|value| *value != NO_WAYPOINT)?;
    let namespace = labels.get(USE_WAYPOINT_NAMESPACE).map_or(namespace, String::as_str);
    Some(Request { gateway: NamespacedName::new(namespace, name), from_namespace })
}

fn resolve(inputs: &Inputs, request: Request, object: &NamespacedName, traffic: Traffic) -> Option<Binding> {
    let problem = match inputs.gateways.get(&request.gateway) {
        None => Some(Problem::Missing),
        Some(gateway) if !gateway.is_waypoint() => Some(Problem::NotAWaypoint),
        Some(gateway) if !permits(inputs, gateway, &request.gateway.namespace, &object.namespace) => {
            Some(Problem::NotPermitted)
        }
        Some(gateway) => match fronts(gateway, traffic) {
            Some(true) => None,
            // A namespace asks for all that is in it; the Gateway says which part of that it means.
            Some(false) if request.from_namespace => return None,
            Some(false) | None => Some(Problem::TrafficType),
        },
    };
    // Without the Gateway nobody knows whether it would front pods; by default it would not.
    if traffic == Traffic::Workload && request.from_namespace && problem.is_some() {
        return None;
    }
    Some(Binding { request, problem })
}

fn permits(inputs: &Inputs, gateway: &Gateway, gateway_namespace: &str, namespace: &str) -> bool {
    match gateway.allowed() {
        AllowedNamespaces::Same => gateway_namespace == namespace,
        AllowedNamespaces::All => true,
        AllowedNamespaces::None => false,
        AllowedNamespaces::Selector(selector) => {
            selector.selects(inputs.namespace_labels(namespace).unwrap_or(&Labels::new()))
        }
    }
}

/// Whether the Gateway is a waypoint for traffic addressed to workloads.
pub(crate) fn fronts_workloads(gateway: &Gateway) -> bool {
    fronts(gateway, Traffic::Workload) == Some(true)
}

/// Whether the Gateway fronts this kind of traffic; nothing if its label has no known value.
fn fronts(gateway: &Gateway, traffic: Traffic) -> Option<bool> {
    match gateway.labels.get(WAYPOINT_FOR).map_or("service", String::as_str) {
        "service" => Some(traffic == Traffic::Service),
        "workload" => Some(traffic == Traffic::Workload),
        "all" => Some(true),
        "none" => Some(false),
        _ => None,
    }
}

// === impl Binding ===

impl Binding {
    /// Hostname under which proxies look the waypoint up. That of a waypoint that can't be had resolves to nothing,
    /// whatever services there are, and says why.
    #[must_use]
    pub fn hostname(&self, inputs: &Inputs) -> String {
        match self.problem {
            None => inputs.hostname(&self.request.gateway),
            Some(problem) => {
                format!("{}.{}.waypoint-{problem}.invalid", self.request.gateway.name, self.request.gateway.namespace)
            }
        }
    }
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::NotAWaypoint => "of-another-class",
            Self::NotPermitted => "not-permitted",
            Self::TrafficType => "for-other-traffic",
        })
    }
}
