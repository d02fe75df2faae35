//! Routes: what they are attached to, who follows them, and where they lead.

use ambit_api::{
    Route, Severity,
    routes::{BackendReference, Filter, RouteSpec, WeightedBackend},
};

use super::{Found, at, codes, policies::similar};
use crate::{
    binding::{self, USE_WAYPOINT},
    inputs::{Inputs, NamespacedName, WAYPOINT_CLASS},
    routes,
};

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    for ((kind, name), route) in &inputs.routes {
        let route = route.get();
        for (index, _) in route.parents().iter().enumerate() {
            parent(inputs, (kind, name), route, index, found);
        }
        backends(inputs, (kind, name), route, found);
    }
}

/// Kind and name of the route.
type Name<'a> = (&'a str, &'a NamespacedName);

fn parent(inputs: &Inputs, (kind, name): Name<'_>, route: &Route, index: usize, found: &mut Found) {
    let parent = &route.parents()[index];
    let field = format!("spec.parentRefs[{index}]");
    let Some((namespace, service)) = parent.service(&route.namespace) else {
        let what = parent.kind.as_deref().unwrap_or("Gateway");
        return found.add(
            Severity::Warning,
            codes::ROUTE_NOT_APPLIED,
            at(kind, name, field),
            format!("the route isn't applied here: its parent is a {what}, and waypoints route for Services"),
            "name a Service: `{group: \"\", kind: Service, name: <Service>}`",
        );
    };
    let service = NamespacedName::new(namespace, service);
    let at_name = || at(kind, name, format!("{field}.name"));
    let Some(object) = inputs.services.get(&service) else {
        return found.add(
            Severity::Error,
            codes::TARGET_NOT_FOUND,
            at_name(),
            format!("service `{}` doesn't exist in namespace `{}`", service.name, service.namespace),
            similar(&service.name, Inputs::in_namespace(&inputs.services, &service.namespace).map(|(n, _)| n)),
        );
    };
    let names_port = parent.port.is_some() || parent.section_name.is_some();
    if names_port && !object.ports.iter().any(|port| routes::is_meant(parent, port)) {
        let which = if parent.section_name.is_some() { "sectionName" } else { "port" };
        let ports: Vec<_> = object.ports.iter().map(|port| format!("`{} {}`", port.port, port.name)).collect();
        found.add(
            Severity::Error,
            codes::TARGET_NOT_FOUND,
            at(kind, name, format!("{field}.{which}")),
            format!("service `{service}` has no such port"),
            format!("its ports are {}", ports.join(", ")),
        );
    }
    // A waypoint that can't be had is the Service's finding.
    if binding::of_service(inputs, &service, object).is_none() {
        found.add(
            Severity::Warning,
            codes::ROUTE_NOT_APPLIED,
            at_name(),
            format!("the route isn't applied: service `{service}` has no waypoint"),
            format!("label the Service `{USE_WAYPOINT}: <name of a Gateway of class {WAYPOINT_CLASS}>`"),
        );
    }
}

fn backends(inputs: &Inputs, (kind, name): Name<'_>, route: &Route, found: &mut Found) {
    let mut check = |field: String, backend: &BackendReference| {
        let Some((namespace, service)) = backend.service(&route.namespace) else {
            return found.add(
                Severity::Error,
                codes::TARGET_NOT_FOUND,
                at(kind, name, format!("{field}.kind")),
                format!("`{}` isn't a Service, so its share of requests is answered 500", backend.name),
                "name a Service",
            );
        };
        let service = NamespacedName::new(namespace, service);
        let Some(object) = inputs.services.get(&service) else {
            return found.add(
                Severity::Error,
                codes::TARGET_NOT_FOUND,
                at(kind, name, format!("{field}.name")),
                format!("service `{service}` doesn't exist, so its share of requests is answered 500"),
                similar(&service.name, Inputs::in_namespace(&inputs.services, &service.namespace).map(|(n, _)| n)),
            );
        };
        if let Some(port) = backend.port.filter(|port| !object.ports.iter().any(|known| known.port == *port)) {
            let ports: Vec<_> = object.ports.iter().map(|port| format!("`{}`", port.port)).collect();
            found.add(
                Severity::Error,
                codes::TARGET_NOT_FOUND,
                at(kind, name, format!("{field}.port")),
                format!("service `{service}` has no port {port}, so its share of requests is answered 500"),
                format!("its ports are {}", ports.join(", ")),
            );
        }
    };
    let mut rule = |index: usize, filters: &[Filter], backends: &[WeightedBackend]| {
        let mirrors = |place: &str, filters: &[Filter], check: &mut dyn FnMut(String, &BackendReference)| {
            for (index, filter) in filters.iter().enumerate() {
                if let Some(mirror) = &filter.request_mirror {
                    check(format!("{place}.filters[{index}].requestMirror.backendRef"), &mirror.backend_ref);
                }
            }
        };
        mirrors(&format!("spec.rules[{index}]"), filters, &mut check);
        for (backend, written) in backends.iter().enumerate() {
            let place = format!("spec.rules[{index}].backendRefs[{backend}]");
            mirrors(&place, &written.filters, &mut check);
            check(place, &written.reference());
        }
    };
    match &route.spec {
        RouteSpec::Http(spec) => {
            let rules = spec.rules.iter().flatten().enumerate();
            rules.for_each(|(index, written)| rule(index, &written.filters, &written.backend_refs));
        }
        RouteSpec::Grpc(spec) => {
            let rules = spec.rules.iter().enumerate();
            rules.for_each(|(index, written)| rule(index, &written.filters, &written.backend_refs));
        }
        RouteSpec::Tls(spec) => {
            spec.rules.iter().enumerate().for_each(|(index, written)| rule(index, &[], &written.backend_refs));
        }
        RouteSpec::Tcp(spec) => {
            spec.rules.iter().enumerate().for_each(|(index, written)| rule(index, &[], &written.backend_refs));
        }
    }
}
