//! Pod, Deployment and Service: what Kubernetes would refuse in the parts that the mesh uses.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, Pod, PodSpec, Probe, Service},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Check, names};
use crate::{codes, text::quoted};

/// Checks a Pod's containers.
pub(super) fn check_pod(check: &mut Check<'_>, pod: &Pod) {
    check_pod_spec(check, "spec", pod.spec.as_ref());
}

/// Checks a Deployment's selector, replicas and containers.
pub(super) fn check_deployment(check: &mut Check<'_>, deployment: &Deployment) {
    let Some(spec) = &deployment.spec else {
        check.error(codes::BAD_CONTAINER, "spec", "a Deployment needs a `spec`", "add `selector` and `template`");
        return;
    };
    let empty = BTreeMap::new();
    let labels = spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref()).unwrap_or(&empty);
    names::check_labels(check, "spec.template.metadata.labels", labels);
    let wanted = spec.selector.match_labels.as_ref().unwrap_or(&empty);
    if wanted.is_empty() && spec.selector.match_expressions.as_ref().is_none_or(Vec::is_empty) {
        let help = "give it the labels of `spec.template.metadata`";
        check.error(codes::BAD_DEPLOYMENT_SELECTOR, "spec.selector", "the selector is empty", help);
    }
    for (key, value) in wanted.iter().filter(|(key, value)| labels.get(*key) != Some(*value)) {
        check.error(
            codes::BAD_DEPLOYMENT_SELECTOR,
            &format!("spec.selector.matchLabels[{key}]"),
            format!("the pods of this Deployment don't have the label `{}: {}`", quoted(key), quoted(value)),
            "make `spec.template.metadata.labels` and the selector agree",
        );
    }
    if let Some(replicas) = spec.replicas.filter(|replicas| *replicas < 0) {
        let message = format!("{replicas} pods can't be");
        check.error(codes::BAD_CONTAINER, "spec.replicas", message, "use 0 or more");
    }
    check_pod_spec(check, "spec.template.spec", spec.template.spec.as_ref());
}

/// Checks a Service's ports.
pub(super) fn check_service(check: &mut Check<'_>, service: &Service) {
    let Some(spec) = &service.spec else {
        check.error(codes::BAD_SERVICE_PORT, "spec", "a Service needs a `spec`", "add `ports` and `selector`");
        return;
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !external && !headless {
        check.error(codes::BAD_SERVICE_PORT, "spec.ports", "a Service needs a port", "add `- port: 80`");
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        check_port_number(check, codes::BAD_SERVICE_PORT, &field("port"), port.port);
        check_port(check, codes::BAD_SERVICE_PORT, &field("targetPort"), port.target_port.as_ref());
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            let message = format!("`{}` is not a Service's protocol", quoted(protocol));
            let help = "use TCP, UDP or SCTP; what is spoken over TCP belongs in `appProtocol` or the port's name";
            check.error(codes::BAD_SERVICE_PORT, &field("protocol"), message, help);
        }
        if !numbers.insert((protocol, port.port)) {
            let message = format!("port {} is already in this Service", port.port);
            check.error(codes::BAD_SERVICE_PORT, &field("port"), message, "remove one of the two");
        }
        match port.name.as_deref().filter(|name| !name.is_empty()) {
            None if ports.len() > 1 => {
                let message = "one of several ports needs a name";
                check.error(codes::BAD_SERVICE_PORT, &field("name"), message, "add `name`");
            }
            Some(name) if names::dns_label(name).is_some() => {
                let message = format!("`{}` is not a port's name", quoted(name));
                check.error(codes::BAD_SERVICE_PORT, &field("name"), message, "use lower-case letters, digits and `-`");
            }
            Some(name) if !names.insert(name) => {
                let message = format!("a second port named `{name}`");
                check.error(codes::BAD_SERVICE_PORT, &field("name"), message, "give each port its own name");
            }
            _ => {}
        }
    }
    if let Some(selector) = &spec.selector {
        names::check_labels(check, "spec.selector", selector);
    }
}

fn check_pod_spec(check: &mut Check<'_>, field: &str, spec: Option<&PodSpec>) {
    let Some(spec) = spec else {
        check.error(codes::BAD_CONTAINER, field, "a pod needs a `spec`", "add `containers`");
        return;
    };
    if let Some(account) = spec.service_account_name.as_deref().filter(|account| !account.is_empty())
        && let Some(fault) = names::dns_subdomain(account)
    {
        let message = format!("`{}` is not the name of a service account: {fault}", quoted(account));
        check.error(codes::BAD_NAME, &format!("{field}.serviceAccountName"), message, "use the ServiceAccount's name");
    }
    if spec.containers.is_empty() {
        let message = "a pod needs a container";
        check.error(codes::BAD_CONTAINER, &format!("{field}.containers"), message, "add one with `name` and `image`");
    }
    let mut seen = HashSet::new();
    let lists =
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            if let Some(fault) = names::dns_label(&container.name) {
                let message = format!("`{}` is not a container's name: {fault}", quoted(&container.name));
                check.error(codes::BAD_CONTAINER, &format!("{field}.name"), message, "use a name like `app`");
            } else if !seen.insert(container.name.as_str()) {
                let message = format!("a second container named `{}`", container.name);
                check.error(codes::BAD_CONTAINER, &format!("{field}.name"), message, "give each its own name");
            }
            check_container(check, &field, container);
        }
    }
}

fn check_container(check: &mut Check<'_>, field: &str, container: &Container) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let field = format!("{field}.ports[{index}].containerPort");
        check_port_number(check, codes::BAD_CONTAINER, &field, port.container_port);
    }
    let probes = [
        ("readinessProbe", &container.readiness_probe),
        ("livenessProbe", &container.liveness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        if let Some(probe) = probe {
            check_probe(check, &format!("{field}.{name}"), probe);
        }
    }
}

fn check_probe(check: &mut Check<'_>, field: &str, probe: &Probe) {
    let handlers = [probe.exec.is_some(), probe.grpc.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some()];
    if handlers.iter().filter(|set| **set).count() != 1 {
        let message = "a probe does exactly one thing";
        check.error(codes::BAD_CONTAINER, field, message, "set one of `httpGet`, `tcpSocket`, `exec` and `grpc`");
    }
    if let Some(http) = &probe.http_get {
        check_port(check, codes::BAD_CONTAINER, &format!("{field}.httpGet.port"), Some(&http.port));
    }
    if let Some(tcp) = &probe.tcp_socket {
        check_port(check, codes::BAD_CONTAINER, &format!("{field}.tcpSocket.port"), Some(&tcp.port));
    }
    let counts = [
        ("periodSeconds", probe.period_seconds, 1),
        ("timeoutSeconds", probe.timeout_seconds, 1),
        ("initialDelaySeconds", probe.initial_delay_seconds, 0),
        ("failureThreshold", probe.failure_threshold, 1),
        ("successThreshold", probe.success_threshold, 1),
    ];
    for (name, value, least) in counts {
        if let Some(value) = value.filter(|value| *value < least) {
            let message = format!("{value} is too small");
            check.error(codes::BAD_CONTAINER, &format!("{field}.{name}"), message, format!("use {least} or more"));
        }
    }
}

fn check_port(check: &mut Check<'_>, code: codes::Code, field: &str, port: Option<&IntOrString>) {
    match port {
        Some(IntOrString::Int(number)) => check_port_number(check, code, field, *number),
        Some(IntOrString::String(name)) if !is_port_name(name) => {
            let message = format!("`{}` is not a port's name", quoted(name));
            check.error(code, field, message, "write a number without quotes, or the name of a container's port");
        }
        _ => {}
    }
}

fn check_port_number(check: &mut Check<'_>, code: codes::Code, field: &str, number: i32) {
    if !(1..=65535).contains(&number) {
        check.error(code, field, format!("{number} is not a port"), "use 1 to 65535");
    }
}

/// The name of a container's port: a DNS label of up to 15 characters with a letter in it.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && names::dns_label(name).is_none() && name.bytes().any(|b| b.is_ascii_lowercase())
}
