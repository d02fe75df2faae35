//! A workload as `baggage` describes it, to peers and in their metrics (`spec/ztunnel.md` 2.5, 2.6).

use ambit_hbone::headers::{Baggage, ConnectHeaders, WorkloadKind};
use ambit_mesh::view::{Workload, WorkloadType};
use http::HeaderMap;

/// What is said of this workload.
pub(crate) fn of(workload: &Workload) -> Baggage {
    let canonical = &workload.canonical;
    // Who isn't said to have an owner is its own.
    let (kind, name) = match canonical.workload.is_empty() {
        true => (WorkloadType::Pod, &workload.name),
        false => (canonical.kind, &canonical.workload),
    };
    let kind = match kind {
        WorkloadType::Deployment => WorkloadKind::Deployment,
        WorkloadType::Cronjob => WorkloadKind::CronJob,
        WorkloadType::Pod => WorkloadKind::Pod,
        WorkloadType::Job => WorkloadKind::Job,
    };
    Baggage {
        cluster: workload.cluster.to_string(),
        namespace: workload.namespace.to_string(),
        workload: Some((kind, name.to_string())),
        service: canonical.name.to_string(),
        revision: canonical.revision.to_string(),
        region: workload.locality.region.to_string(),
        zone: workload.locality.zone.to_string(),
    }
}

/// The headers of an answer that tells who answers. What can't be said in a header isn't worth a connection.
pub(crate) fn answer(workload: &Workload) -> HeaderMap {
    let headers = ConnectHeaders { baggage: Some(of(workload)), ..ConnectHeaders::default() };
    headers.to_map().unwrap_or_else(|error| {
        tracing::debug!(workload = %workload.uid, %error, "the answer goes without baggage");
        HeaderMap::new()
    })
}
