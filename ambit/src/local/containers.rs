//! From the control plane's plan of a container to the node's.

use ambit_control_plane::local::{self as plan, PodKind, PodPlan};
use ambit_node::{ContainerSpec, Probe, ProbeAction, RestartPolicy};

/// The containers that are started as processes. A session's program is started by `ambit run` itself.
pub fn specs(pod: &PodPlan) -> Vec<ContainerSpec> {
    if !matches!(pod.kind, PodKind::App) {
        return Vec::new();
    }
    pod.containers
        .iter()
        .filter_map(|container| {
            Some(ContainerSpec {
                name: container.name.clone(),
                command: container.command.clone()?,
                env: container.env.clone(),
                working_dir: container.working_dir.clone(),
                readiness: container.readiness.as_ref().map(probe),
            })
        })
        .collect()
}

/// The node's word for a restart policy.
pub fn restart_policy(policy: plan::RestartPolicy) -> RestartPolicy {
    match policy {
        plan::RestartPolicy::Always => RestartPolicy::Always,
        plan::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        plan::RestartPolicy::Never => RestartPolicy::Never,
    }
}

fn probe(probe: &plan::Probe) -> Probe {
    Probe {
        action: match &probe.kind {
            plan::ProbeKind::Http { path, port, headers } => {
                ProbeAction::HttpGet { path: path.clone(), port: *port, host: None, headers: headers.clone() }
            }
            plan::ProbeKind::Tcp { port } => ProbeAction::TcpSocket { port: *port },
            plan::ProbeKind::Exec { command } => ProbeAction::Exec { command: command.clone() },
        },
        initial_delay: probe.initial_delay,
        period: probe.period,
        timeout: probe.timeout,
        success_threshold: probe.success_threshold,
        failure_threshold: probe.failure_threshold,
    }
}
