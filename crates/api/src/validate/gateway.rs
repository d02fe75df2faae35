//! Gateway: the waypoint's listener, and listeners that Kubernetes would refuse.

use std::collections::HashSet;

use gateway_api::gateways::Gateway;

use super::{Check, names};
use crate::{GatewaySettings, codes, text::quoted};

/// The class of a Gateway that is a waypoint.
const WAYPOINT_CLASS: &str = "istio-waypoint";

/// The port a waypoint listens on.
const HBONE_PORT: i32 = 15008;

/// The protocol a waypoint speaks.
const HBONE_PROTOCOL: &str = "HBONE";

/// Checks the listeners of a Gateway.
pub(super) fn check(check: &mut Check<'_>, gateway: &Gateway) {
    let listeners = &gateway.spec.listeners;
    if listeners.is_empty() {
        let help = "add one; a waypoint's is `name: mesh`, `port: 15008`, `protocol: HBONE`";
        check.error(codes::BAD_LISTENER, "spec.listeners", "a Gateway needs a listener", help);
    }
    let waypoint = gateway.spec.gateway_class_name == WAYPOINT_CLASS;
    let mut names = HashSet::new();
    for (index, listener) in listeners.iter().enumerate() {
        let field = |name: &str| format!("spec.listeners[{index}].{name}");
        if let Some(fault) = names::dns_subdomain(&listener.name) {
            let message = format!("`{}` is not a listener's name: {fault}", quoted(&listener.name));
            check.error(codes::BAD_LISTENER, &field("name"), message, "use a name like `mesh`");
        } else if !names.insert(listener.name.as_str()) {
            let message = format!("a second listener named `{}`", quoted(&listener.name));
            check.error(codes::BAD_LISTENER, &field("name"), message, "give each listener its own name");
        }
        if waypoint && listener.port != HBONE_PORT {
            let message = format!("a waypoint listens on port {HBONE_PORT}, not {}", listener.port);
            check.error(codes::WAYPOINT_PORT, &field("port"), message, format!("write `port: {HBONE_PORT}`"));
        } else if !(1..=65535).contains(&listener.port) {
            let message = format!("{} is not a port", listener.port);
            check.error(codes::BAD_LISTENER, &field("port"), message, "use 1 to 65535");
        }
        if waypoint && listener.protocol != HBONE_PROTOCOL {
            let message = format!("a waypoint speaks {HBONE_PROTOCOL}, not `{}`", quoted(&listener.protocol));
            check.error(codes::WAYPOINT_PROTOCOL, &field("protocol"), message, "write `protocol: HBONE`");
        }
    }
    if waypoint && let Some(annotations) = &gateway.metadata.annotations {
        for bad in GatewaySettings::of(annotations).1 {
            let field = format!("metadata.annotations[{}]", bad.annotation);
            check.error(codes::BAD_GATEWAY_ANNOTATION, &field, bad.fault, bad.help);
        }
    }
}
