//! What a Gateway is told of its waypoint.

use ambit_api::Gateway;
use ambit_mesh::inputs::{HBONE_PORT, HBONE_PROTOCOL};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service},
    jiff::Timestamp,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{
    Settings,
    render::{self, NAME_LABEL},
};

/// What there is of a waypoint.
#[derive(Debug, Default)]
pub(super) struct Children {
    pub(super) deployment: Option<Deployment>,
    pub(super) service: Option<Service>,
    /// Objects under its names that somebody else made.
    pub(super) others: Vec<String>,
}

/// A condition as it should be.
struct Condition {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// The status to write; nothing if it stands there already. Conditions that stay as they were keep their time.
pub(super) fn status(
    gateway: &Gateway,
    children: &Children,
    before: &Value,
    settings: &Settings,
    now: Timestamp,
) -> Option<Value> {
    let generation = gateway.metadata.generation;
    let write = |conditions: Vec<Condition>, before: &Value| -> Vec<Value> {
        let known = before.as_array().map_or(&[][..], Vec::as_slice);
        conditions.into_iter().map(|condition| condition.write(known, generation, now)).collect()
    };
    let valid = gateway.spec.listeners.iter().filter(|listener| is_hbone(listener.port, &listener.protocol)).count();
    let addresses = addresses(gateway, children, before, settings);
    let listeners: Vec<_> = gateway
        .spec
        .listeners
        .iter()
        .map(|listener| {
            let all = before["listeners"].as_array().into_iter().flatten();
            let mut own =
                all.filter(|known| known["name"] == listener.name.as_str()).map(|known| known["conditions"].clone());
            let own = own.next_back().unwrap_or_default();
            let is_valid = is_hbone(listener.port, &listener.protocol);
            json!({
                "name": listener.name,
                "attachedRoutes": 0,
                "supportedKinds": [],
                "conditions": write(listener_conditions(is_valid, !addresses.is_empty()), &own),
            })
        })
        .collect();
    let conditions = vec![
        accepted(valid, gateway.spec.listeners.len()),
        programmed(gateway, children, &addresses),
        condition("ResolvedRefs", true, "ResolvedRefs", "All references resolved"),
    ];
    let wanted = json!({
        "addresses": addresses,
        "conditions": write(conditions, &before["conditions"]),
        "listeners": listeners,
    });
    let stands = |field: &str| match &before[field] {
        Value::Null => wanted[field].as_array().is_some_and(Vec::is_empty),
        known => *known == wanted[field],
    };
    let is_there = ["addresses", "conditions", "listeners"].into_iter().all(stands);
    (!is_there).then_some(wanted)
}

fn is_hbone(port: i32, protocol: &str) -> bool {
    port == i32::from(HBONE_PORT) && protocol == HBONE_PROTOCOL
}

fn condition(kind: &'static str, status: bool, reason: &'static str, message: impl Into<String>) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

fn accepted(valid: usize, all: usize) -> Condition {
    let some = "One or more of the Gateway's listeners are invalid";
    match valid {
        _ if valid == all && all > 0 => condition("Accepted", true, "Accepted", "Resource accepted"),
        0 => condition("Accepted", false, "ListenersNotValid", some),
        _ => condition("Accepted", true, "ListenersNotValid", some),
    }
}

/// Programmed is what once had an address: pods that aren't ready for a while don't take it back.
fn programmed(gateway: &Gateway, children: &Children, addresses: &[Value]) -> Condition {
    let name = gateway.name_any();
    if !children.others.is_empty() {
        let others = children.others.join(", ");
        let message = format!(
            "{others} has this waypoint's name and was made by somebody else; rename it or the Gateway, or give it the label \
             `{}` to hand it over",
            render::MANAGED
        );
        return condition("Programmed", false, "Invalid", message);
    }
    if !render::is_managed(gateway) && addresses.is_empty() {
        return condition(
            "Programmed",
            false,
            "AddressNotAssigned",
            "its waypoint is not made here, and has no address",
        );
    }
    if addresses.is_empty() {
        let message = format!("no pod with the label `{NAME_LABEL}: {name}` is ready yet");
        return condition("Programmed", false, "AddressNotAssigned", message);
    }
    let host = addresses.iter().find(|address| address["type"] == "Hostname").and_then(|host| host["value"].as_str());
    let message = format!("Resource programmed, assigned to service(s) {}:{HBONE_PORT}", host.unwrap_or(&name));
    condition("Programmed", true, "Programmed", message)
}

fn listener_conditions(is_valid: bool, has_address: bool) -> Vec<Condition> {
    let fine = "No errors found";
    let accepted = if is_valid {
        condition("Accepted", true, "Accepted", fine)
    } else {
        let message = format!("Expected a single listener on port {HBONE_PORT} with protocol \"{HBONE_PROTOCOL}\"");
        condition("Accepted", false, "UnsupportedProtocol", message)
    };
    let programmed = match (is_valid, has_address) {
        (true, true) => condition("Programmed", true, "Programmed", fine),
        (true, false) => condition("Programmed", false, "Pending", "the waypoint isn't ready yet"),
        (false, _) => condition("Programmed", false, "Invalid", "the listener isn't accepted"),
    };
    vec![
        accepted,
        condition("Conflicted", false, "NoConflicts", fine),
        programmed,
        condition("ResolvedRefs", true, "ResolvedRefs", fine),
    ]
}

/// Once given they stay, whatever becomes of pods; they change only with the Service's.
fn addresses(gateway: &Gateway, children: &Children, before: &Value, settings: &Settings) -> Vec<Value> {
    if !render::is_managed(gateway) {
        let given = gateway.spec.addresses.iter().flatten();
        let written = given.filter_map(|address| {
            let value = address.value.as_deref()?;
            Some(json!({"type": address.r#type.as_deref().unwrap_or("IPAddress"), "value": value}))
        });
        return written.collect();
    }
    let known = before["addresses"].as_array().cloned().unwrap_or_default();
    let ready = children.deployment.as_ref().and_then(|deployment| deployment.status.as_ref()?.ready_replicas);
    let Some(spec) = children.service.as_ref().and_then(|service| service.spec.as_ref()) else { return known };
    if known.is_empty() && ready.unwrap_or_default() < 1 {
        return known;
    }
    let first = spec.cluster_ip.iter();
    let all = spec.cluster_ips.as_ref().filter(|all| !all.is_empty());
    let ips: Vec<_> = all.map_or_else(|| first.collect(), |all| all.iter().collect());
    let ips = ips.into_iter().filter(|ip| !ip.is_empty() && *ip != "None");
    let mut addresses: Vec<_> = ips.map(|ip| json!({"type": "IPAddress", "value": ip})).collect();
    let (name, namespace) = (gateway.name_any(), gateway.namespace().unwrap_or_default());
    let host = format!("{name}.{namespace}.svc.{}", settings.cluster_domain);
    addresses.push(json!({"type": "Hostname", "value": host}));
    addresses
}

// === impl Condition ===

impl Condition {
    fn write(self, known: &[Value], generation: Option<i64>, now: Timestamp) -> Value {
        let status = if self.status { "True" } else { "False" };
        let stood = known.iter().find(|known| known["type"] == self.kind && known["status"] == status);
        let since = stood.and_then(|known| known["lastTransitionTime"].as_str()).map(str::to_owned);
        let mut written = json!({
            "type": self.kind,
            "status": status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since.unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        });
        if let Some(generation) = generation {
            written["observedGeneration"] = json!(generation);
        }
        written
    }
}
