//! The file as it is written.

use serde::Deserialize;

use super::{policy::Policy, service::Service, workload::Workload};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    #[serde(default)]
    pub(super) workloads: Vec<Workload>,
    #[serde(default)]
    pub(super) services: Vec<Service>,
    #[serde(default)]
    pub(super) policies: Vec<Policy>,
}
