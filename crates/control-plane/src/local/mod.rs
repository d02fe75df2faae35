//! The resource source for files, with the part of a scheduler and kubelet that a laptop needs.

mod plan;

pub use plan::{ContainerPlan, ContainerPort, PodCommand, PodKind, PodPlan, Probe, ProbeKind, RestartPolicy};
