//! From a Pod's specification to what runs on this machine.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use ambit_api::{Diagnostic, Origin, Severity};
use ambit_mesh::inputs::{DEFAULT_SERVICE_ACCOUNT, Labels, NamespacedName};
use k8s_openapi::{
    api::core::v1::{Container, EnvVar, PodSpec, Probe as KubeProbe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    codes,
    plan::{ContainerPlan, ContainerPort, Probe, ProbeKind, RestartPolicy},
};
use crate::limits::MAX_CONTAINERS;

/// A pod as declared, before it has an address.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Declared {
    pub(super) labels: Labels,
    pub(super) service_account: String,
    pub(super) containers: Vec<DeclaredContainer>,
    pub(super) restart_policy: RestartPolicy,
    /// Name of the Deployment.
    pub(super) owner: Option<String>,
    /// Name of the Gateway whose waypoint it is.
    pub(super) waypoint: Option<String>,
}

/// A container, with the parts of its environment that depend on the pod still open.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DeclaredContainer {
    plan: ContainerPlan,
    env: Vec<(String, Value)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Name,
    Namespace,
    Address,
    ServiceAccount,
}

/// Where diagnostics about a pod go.
pub(super) struct Notes<'a> {
    pub(super) origin: &'a Origin,
    /// Path of the pod's specification in its object.
    pub(super) path: &'a str,
    pub(super) diagnostics: &'a mut Vec<Diagnostic>,
}

// === impl Notes ===

impl Notes<'_> {
    fn add(&mut self, severity: Severity, code: &'static str, field: &str, message: String, help: &str) {
        let field = format!("{}.{field}", self.path);
        self.diagnostics.push(self.origin.diagnostic(severity, code, &field, message, help));
    }

    fn unsupported(&mut self, field: &str, what: &str) {
        let message = format!("{what} on this machine, unlike on Kubernetes");
        self.add(Severity::Warning, codes::UNSUPPORTED_POD_FEATURE, field, message, "");
    }
}

/// Reads a pod's specification.
pub(super) fn declare(labels: Labels, owner: Option<String>, spec: &PodSpec, notes: &mut Notes<'_>) -> Declared {
    if spec.host_network == Some(true) {
        notes.unsupported("hostNetwork", "`hostNetwork` is ignored, the pod gets a network of its own,");
    }
    if spec.init_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        notes.unsupported("initContainers", "init containers don't run");
    }
    if spec.containers.len() > MAX_CONTAINERS {
        let message = format!("{} containers, at most {MAX_CONTAINERS} are run", spec.containers.len());
        notes.add(Severity::Error, codes::TOO_MANY, "containers", message, "split the pod");
    }
    let account = spec.service_account_name.as_ref().or(spec.service_account.as_ref());
    let ports = named_ports(spec);
    let containers = spec.containers.iter().take(MAX_CONTAINERS).enumerate();
    Declared {
        labels,
        service_account: account.filter(|name| !name.is_empty()).map_or(DEFAULT_SERVICE_ACCOUNT, String::as_str).into(),
        containers: containers.map(|(i, container)| self::container(container, i, &ports, notes)).collect(),
        restart_policy: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        owner,
        waypoint: None,
    }
}

fn named_ports(spec: &PodSpec) -> BTreeMap<String, u16> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))).collect()
}

fn container(object: &Container, i: usize, ports: &BTreeMap<String, u16>, notes: &mut Notes<'_>) -> DeclaredContainer {
    let at = |field: &str| format!("containers[{i}].{field}");
    if object.env_from.as_ref().is_some_and(|list| !list.is_empty()) {
        notes.unsupported(&at("envFrom"), "`envFrom` is ignored");
    }
    for (field, probe) in [("livenessProbe", &object.liveness_probe), ("startupProbe", &object.startup_probe)] {
        if probe.is_some() {
            notes.unsupported(&at(field), &format!("`{field}` is ignored"));
        }
    }
    let env = object.env.iter().flatten().enumerate();
    let env = env.filter_map(|(e, var)| Some((var.name.clone(), value(var, &at(&format!("env[{e}]")), notes)?)));
    let command = object.command.clone().filter(|command| !command.is_empty()).map(|mut command| {
        command.extend(object.args.iter().flatten().cloned());
        command
    });
    let port = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        Some(ContainerPort { name: port.name.clone(), port: u16::try_from(port.container_port).ok()? })
    };
    DeclaredContainer {
        env: env.collect(),
        plan: ContainerPlan {
            name: object.name.clone(),
            command,
            env: Vec::new(),
            working_dir: object.working_dir.as_ref().map(Into::into),
            readiness: object.readiness_probe.as_ref().and_then(|p| probe(p, &at("readinessProbe"), ports, notes)),
            ports: object.ports.iter().flatten().filter_map(port).collect(),
        },
    }
}

fn value(var: &EnvVar, field: &str, notes: &mut Notes<'_>) -> Option<Value> {
    let Some(source) = &var.value_from else {
        return Some(Value::Text(var.value.clone().unwrap_or_default()));
    };
    match source.field_ref.as_ref().map(|reference| reference.field_path.as_str()) {
        Some("metadata.name") => Some(Value::Name),
        Some("metadata.namespace") => Some(Value::Namespace),
        Some("status.podIP") => Some(Value::Address),
        Some("spec.serviceAccountName") => Some(Value::ServiceAccount),
        _ => {
            notes.unsupported(&format!("{field}.valueFrom"), &format!("variable `{}` isn't set", var.name));
            None
        }
    }
}

fn probe(object: &KubeProbe, field: &str, ports: &BTreeMap<String, u16>, notes: &mut Notes<'_>) -> Option<Probe> {
    let number = |port: &IntOrString| match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|number| *number != 0),
        IntOrString::String(name) => ports.get(name).copied().or_else(|| name.parse().ok()),
    };
    let kind = if let Some(http) = &object.http_get {
        number(&http.port).map(|port| ProbeKind::Http {
            path: http.path.clone().unwrap_or_else(|| "/".into()),
            port,
            headers: http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        })
    } else if let Some(tcp) = &object.tcp_socket {
        number(&tcp.port).map(|port| ProbeKind::Tcp { port })
    } else if let Some(exec) = &object.exec {
        exec.command.clone().filter(|command| !command.is_empty()).map(|command| ProbeKind::Exec { command })
    } else {
        None
    };
    let Some(kind) = kind else {
        // Without it the pod would count as ready at once.
        let message = "this probe can't be run: it needs `httpGet` or `tcpSocket` with a port, or `exec`".into();
        notes.add(
            Severity::Error,
            codes::BAD_PROBE,
            field,
            message,
            "a port by name must be a container port of the pod",
        );
        return None;
    };
    let at_least = |value: Option<i32>, least: u32, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).map_or(default, |value| value.max(least))
    };
    let seconds = |value, least, default| Duration::from_secs(at_least(value, least, default).into());
    Some(Probe {
        kind,
        initial_delay: seconds(object.initial_delay_seconds, 0, 0),
        period: seconds(object.period_seconds, 1, 10),
        timeout: seconds(object.timeout_seconds, 1, 1),
        success_threshold: at_least(object.success_threshold, 1, 1),
        failure_threshold: at_least(object.failure_threshold, 1, 3),
    })
}

// === impl Declared ===

impl Declared {
    /// The pod of a waypoint.
    pub(super) fn waypoint(gateway: &str) -> Self {
        let label = ("gateway.networking.k8s.io/gateway-name".to_owned(), gateway.to_owned());
        Self {
            labels: Labels::from([label]),
            service_account: gateway.into(),
            containers: Vec::new(),
            restart_policy: RestartPolicy::Always,
            owner: None,
            waypoint: Some(gateway.into()),
        }
    }

    /// True if there is nothing to start until an `ambit run` takes its place.
    pub(super) fn waits(&self) -> bool {
        self.waypoint.is_none() && self.containers.iter().all(|container| container.plan.command.is_none())
    }

    /// True if the same processes would run.
    pub(super) fn runs_like(&self, other: &Self) -> bool {
        let Self { labels: _, service_account, containers, restart_policy, owner, waypoint } = self;
        *service_account == other.service_account
            && *containers == other.containers
            && *restart_policy == other.restart_policy
            && *owner == other.owner
            && *waypoint == other.waypoint
    }

    /// Container ports by name.
    pub(super) fn named_ports(&self) -> BTreeMap<String, u16> {
        let ports = self.containers.iter().flat_map(|container| &container.plan.ports);
        ports.filter_map(|port| Some((port.name.clone()?, port.port))).collect()
    }

    /// The containers, for a pod of this name and address.
    pub(super) fn containers(&self, name: &NamespacedName, ip: Ipv4Addr) -> Vec<ContainerPlan> {
        let resolve = |value: &Value| match value {
            Value::Text(text) => text.clone(),
            Value::Name => name.name.to_string(),
            Value::Namespace => name.namespace.to_string(),
            Value::Address => ip.to_string(),
            Value::ServiceAccount => self.service_account.clone(),
        };
        let plan = |container: &DeclaredContainer| {
            let mut env: Vec<(String, String)> = Vec::new();
            for (name, value) in &container.env {
                // As on Kubernetes, only plain values may refer to the variables before them.
                let text = resolve(value);
                let text = if matches!(value, Value::Text(_)) { expand(&text, &env) } else { text };
                env.push((name.clone(), text));
            }
            let mut plan = container.plan.clone();
            for argument in plan.command.iter_mut().flatten() {
                *argument = expand(argument, &env);
            }
            plan.env = env;
            plan
        };
        self.containers.iter().map(plan).collect()
    }
}

/// Replaces `$(NAME)` by the variable of that name, and `$$` by `$`, as Kubernetes does; an unknown name stays.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_on_kubernetes() {
        let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$A $( $", "$A $( $"),
            ("$(B)", "$(A)"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }
}
