//! Where waypoints send their spans: a provider of the MeshConfig, as they are told of it.

use ambit_api::mesh_config::{DEFAULT_COLLECTOR_TIMEOUT, OpenTelemetry, duration};
use ambit_xds::waypoint::{HttpCheck, Protocol, Provider, Tracing};

use crate::{authorizers, inputs::Inputs};

/// Nothing if requests aren't traced.
pub(crate) fn settings(inputs: &Inputs) -> Option<Tracing> {
    let (name, collector) = collector(inputs)?;
    let http = collector.http.as_ref()?;
    let timeout = http.timeout.as_deref().map_or(Some(DEFAULT_COLLECTOR_TIMEOUT), duration).unwrap_or_default();
    let unlike = Provider {
        name: name.to_owned(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        status_on_error: 403,
        protocol: Some(Protocol::Http(HttpCheck::default())),
        ..Provider::default()
    };
    Some(Tracing {
        collector: Some(authorizers::at(inputs, unlike, &collector.service, collector.port)),
        path: http.path.clone(),
        headers: http.headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect(),
        sampled: inputs.settings.sampled,
    })
}

fn collector(inputs: &Inputs) -> Option<(&str, &OpenTelemetry)> {
    let name = inputs.settings.tracing_provider.as_ref()?;
    let provider = inputs.settings.authorizers.get(name)?;
    Some((name, provider.opentelemetry.as_ref()?))
}
