//! The external authorizers that a waypoint's policies name, as it is told of them (`spec/authorization.md` 2.9).

use std::collections::BTreeSet;

use ambit_api::mesh_config::{
    DEFAULT_PROVIDER_TIMEOUT, DEFAULT_STATUS_ON_ERROR, ExtensionProvider, HttpAuthorizer, RequestBody, duration,
    status_on_error,
};
use ambit_xds::waypoint::{CheckedBody, HttpCheck, Protocol, Provider};

use crate::inputs::{Inputs, NamespacedName, Policy};

/// Those that these policies name and that are configured, in order of their names.
pub(crate) fn named<'a>(inputs: &Inputs, policies: impl Iterator<Item = &'a Policy>) -> Vec<Provider> {
    let names: BTreeSet<_> = policies
        .filter_map(|policy| policy.get().spec.provider.as_ref())
        .map(|provider| provider.name.as_str())
        .collect();
    let authorizers = names.into_iter().filter_map(|name| inputs.settings.authorizers.get(name));
    authorizers.map(|authorizer| provider(inputs, authorizer)).collect()
}

/// Why this one can't be asked, as far as the Services of the mesh tell.
pub(crate) fn problem(inputs: &Inputs, name: &str) -> Option<String> {
    let authorizer = inputs.settings.authorizers.get(name)?;
    let http = authorizer.envoy_ext_authz_http.as_ref().map(|http| (&http.service, http.port));
    let (written, port) = http.or(authorizer.envoy_ext_authz_grpc.as_ref().map(|grpc| (&grpc.service, grpc.port)))?;
    let (namespace, host) = address(written);
    let of_cluster = host.strip_suffix(&format!(".svc.{}", inputs.settings.cluster_domain));
    let service = of_cluster.and_then(|front| front.split_once('.')).map(|(name, of)| NamespacedName::new(of, name));
    match service {
        None if is_mesh_only(inputs, namespace, host) => Some(format!("`{written}` is no Service's name")),
        None => None,
        Some(service) if !namespace.is_empty() && *namespace != *service.namespace => {
            Some(format!("service `{service}` isn't in namespace `{namespace}`"))
        }
        Some(service) => match inputs.services.get(&service) {
            None => Some(format!("service `{service}` doesn't exist")),
            Some(object) if !object.ports.iter().any(|known| u32::from(known.port) == port) => {
                Some(format!("service `{service}` has no port {port}"))
            }
            Some(_) => None,
        },
    }
}

/// Namespace (empty for any) and host of `[namespace/]host`.
fn address(written: &str) -> (&str, &str) {
    written.split_once('/').unwrap_or(("", written))
}

fn provider(inputs: &Inputs, authorizer: &ExtensionProvider) -> Provider {
    let ExtensionProvider { name, envoy_ext_authz_http, envoy_ext_authz_grpc, .. } = authorizer;
    let unlike = Provider { name: name.clone(), ..Provider::default() };
    match (envoy_ext_authz_http, envoy_ext_authz_grpc) {
        (Some(http), None) => Provider {
            timeout_ms: timeout_ms(http.timeout.as_deref()),
            fail_open: http.fail_open,
            status_on_error: status(http.status_on_error.as_deref()),
            body: http.include_request_body_in_check.as_ref().map(body),
            protocol: Some(Protocol::Http(http_check(http))),
            ..at(inputs, unlike, &http.service, http.port)
        },
        (None, Some(grpc)) => Provider {
            timeout_ms: timeout_ms(grpc.timeout.as_deref()),
            fail_open: grpc.fail_open,
            status_on_error: status(grpc.status_on_error.as_deref()),
            body: grpc.include_request_body_in_check.as_ref().map(body),
            protocol: Some(Protocol::Grpc(true)),
            ..at(inputs, unlike, &grpc.service, grpc.port)
        },
        // Without a protocol: whoever reads it denies what it would be asked about.
        _ => unlike,
    }
}

/// A provider at this address.
pub(crate) fn at(inputs: &Inputs, provider: Provider, service: &str, port: u32) -> Provider {
    let (namespace, host) = address(service);
    let mesh_only = is_mesh_only(inputs, namespace, host);
    Provider { namespace: namespace.to_owned(), host: host.to_owned(), port, mesh_only, ..provider }
}

/// True for a name that only a Service of the mesh may answer for: it has a namespace, or the cluster's domain.
fn is_mesh_only(inputs: &Inputs, namespace: &str, host: &str) -> bool {
    let domain = &inputs.settings.cluster_domain;
    let of_cluster = host == domain || host.strip_suffix(domain.as_str()).is_some_and(|front| front.ends_with('.'));
    of_cluster || !namespace.is_empty()
}

/// 0 for one that can't be read, which whoever reads it refuses.
fn timeout_ms(written: Option<&str>) -> u64 {
    let timeout = written.map_or(Some(DEFAULT_PROVIDER_TIMEOUT), duration).unwrap_or_default();
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)
}

fn status(written: Option<&str>) -> u32 {
    written.map_or(DEFAULT_STATUS_ON_ERROR, |written| status_on_error(written).unwrap_or_default()).into()
}

fn body(body: &RequestBody) -> CheckedBody {
    CheckedBody {
        max_bytes: body.max_request_bytes,
        allow_partial: body.allow_partial_message,
        as_bytes: body.pack_as_bytes,
    }
}

fn http_check(http: &HttpAuthorizer) -> HttpCheck {
    let request_headers = if http.include_request_headers_in_check.is_empty() {
        &http.include_headers_in_check
    } else {
        &http.include_request_headers_in_check
    };
    HttpCheck {
        path_prefix: http.path_prefix.clone().unwrap_or_default(),
        request_headers: request_headers.clone(),
        additional_headers: http.include_additional_headers_in_check.clone(),
        to_upstream_on_allow: http.headers_to_upstream_on_allow.clone(),
        to_downstream_on_allow: http.headers_to_downstream_on_allow.clone(),
        to_downstream_on_deny: http.headers_to_downstream_on_deny.clone(),
    }
}
