//! `ambit.dev/v1alpha1 MeshConfig`: what holds for the whole mesh. Field names are those of Istio's own mesh
//! configuration (`spec/authorization.md` 2.6, 2.9, 2.12).

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::authorization_policy::null_as_default;

/// How long a provider may take to answer unless its `timeout` says otherwise.
pub const DEFAULT_PROVIDER_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a collector may take to answer unless its `timeout` says otherwise.
pub const DEFAULT_COLLECTOR_TIMEOUT: Duration = Duration::from_secs(10);
/// Status of a request that is refused for want of an answer, unless `statusOnError` says otherwise.
pub const DEFAULT_STATUS_ON_ERROR: u16 = 403;

/// The mesh's configuration. There is at most one; it lives in no namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshConfig {
    /// Name of the object.
    pub name: String,
    /// What it says.
    #[serde(default)]
    pub spec: MeshConfigSpec,
}

/// The `spec` of a MeshConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// Other names of the mesh's own trust domain.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub trust_domain_aliases: Vec<String>,
    /// How paths are read before they are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_normalization: Option<PathNormalization>,
    /// The external authorizers that CUSTOM policies may name, and collectors of traces.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub extension_providers: Vec<ExtensionProvider>,
    /// Providers that are used where nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_providers: Option<DefaultProviders>,
    /// How proxies are set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_config: Option<ProxyConfig>,
    /// CUSTOM policies of one target may name different providers. Without it, all that they match is denied then.
    #[serde(default, deserialize_with = "null_as_default")]
    pub multiple_custom_providers: bool,
    /// Ranges that a RequestAuthentication's keys may be fetched from although they aren't public: loopback, private and
    /// link-local addresses are refused otherwise.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub jwks_allowed_ranges: Vec<String>,
    /// What becomes of traffic for a waypoint that can't be had; a Namespace's label `ambit.dev/missing-waypoint` says
    /// otherwise for what is in it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub missing_waypoint: MissingWaypoint,
    /// Whether what is bound to a waypoint is reachable only through it; labels `ambit.dev/waypoint-guard` of Namespaces,
    /// Services and pods say otherwise.
    #[serde(default, deserialize_with = "null_as_default")]
    pub waypoint_guard: WaypointGuard,
}

/// What becomes of traffic for a waypoint that can't be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MissingWaypoint {
    /// It is refused.
    #[default]
    Deny,
    /// It goes direct, as in Istio: past all policy that the waypoint would have enforced.
    Bypass,
}

/// Whether what is bound to a waypoint is reachable only through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WaypointGuard {
    /// Only through it.
    #[default]
    Enforce,
    /// Anyone may go around it, as in Istio.
    Off,
}

/// How paths are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathNormalization {
    /// The mode; absent means that a path is allowed only if it is under every reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalization: Option<Normalization>,
}

/// A way to read paths, as in Istio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Normalization {
    /// As sent.
    None,
    /// Unreserved characters unescaped, dot segments resolved.
    Base,
    /// [`Normalization::Base`], and repeated slashes merged.
    MergeSlashes,
    /// [`Normalization::MergeSlashes`], with escaped slashes taken as slashes first.
    DecodeAndMergeSlashes,
}

/// An external authorizer or a collector: a name, and what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtensionProvider {
    /// Name, as policies write it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// One that is asked over plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_http: Option<HttpAuthorizer>,
    /// One that is asked over gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_grpc: Option<GrpcAuthorizer>,
    /// No authorizer, but a collector of traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opentelemetry: Option<OpenTelemetry>,
}

/// Providers that are used where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultProviders {
    /// The provider that waypoints send their spans to; at most one.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub tracing: Vec<String>,
}

/// How proxies are set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyConfig {
    /// Tracing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<ProxyTracing>,
}

/// How proxies trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyTracing {
    /// Requests that begin a trace which is sampled, in per cent; 1 if absent. A request that comes with a trace keeps it,
    /// sampled or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Percentage>,
}

/// A collector of traces, which takes OTLP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenTelemetry {
    /// `host` or `namespace/host`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub service: String,
    /// Its port.
    #[serde(default, deserialize_with = "null_as_default")]
    pub port: u32,
    /// How it is sent to, over HTTP; the only way there is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCollector>,
}

/// How a collector is sent to over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCollector {
    /// For example `/v1/traces`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub path: String,
    /// How long an answer may take; 10 s if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Headers of every request.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpHeader>,
}

/// A header of every request to a collector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeader {
    /// Name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// Value.
    #[serde(default, deserialize_with = "null_as_default")]
    pub value: String,
}

/// 0 to 100, to three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "f64", into = "f64")]
pub struct Percentage(u32);

/// An external authorizer that is asked over plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpAuthorizer {
    /// `host` or `namespace/host`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub service: String,
    /// Its port.
    #[serde(default, deserialize_with = "null_as_default")]
    pub port: u32,
    /// How long an answer may take, for example `2s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Put before the path of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Go on without an answer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub fail_open: bool,
    /// Status of a request that is refused for want of an answer; 403 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_on_error: Option<String>,
    /// Accepted as in Istio. Routes are chosen after providers have been asked in any case.
    #[serde(default, deserialize_with = "null_as_default")]
    pub clear_route_cache: bool,
    /// Headers of the request that go into the question.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub include_request_headers_in_check: Vec<String>,
    /// The old name of `includeRequestHeadersInCheck`, which counts if both are there.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub include_headers_in_check: Vec<String>,
    /// Headers that go into the question whatever the request has.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// Sends the request's body along; without it none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<RequestBody>,
    /// Headers of a positive answer that go to the application.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of a positive answer that go to the client.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream_on_allow: Vec<String>,
    /// Headers of a negative answer that go to the client.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream_on_deny: Vec<String>,
}

/// An external authorizer that is asked over gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcAuthorizer {
    /// `host` or `namespace/host`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub service: String,
    /// Its port.
    #[serde(default, deserialize_with = "null_as_default")]
    pub port: u32,
    /// How long an answer may take, for example `2s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Go on without an answer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub fail_open: bool,
    /// Accepted as in Istio. Routes are chosen after providers have been asked in any case.
    #[serde(default, deserialize_with = "null_as_default")]
    pub clear_route_cache: bool,
    /// Status of a request that is refused for want of an answer; 403 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_on_error: Option<String>,
    /// Sends the request's body along; without it none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<RequestBody>,
}

/// How much of a request's body a provider is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestBody {
    /// At most so many bytes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub max_request_bytes: u32,
    /// Of a longer body its beginning is sent; without it, such a request is refused.
    #[serde(default, deserialize_with = "null_as_default")]
    pub allow_partial_message: bool,
    /// Over gRPC it is sent as bytes, not as text.
    #[serde(default, deserialize_with = "null_as_default")]
    pub pack_as_bytes: bool,
}

/// `500ms`, `2s`, `1.5s`, `1m`: more than nothing.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let (number, factor) = [("ms", 0.001), ("s", 1.0), ("m", 60.0)]
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let duration = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()?;
    (!duration.is_zero()).then_some(duration)
}

// === impl Percentage ===

impl Percentage {
    /// The same as a share of 100,000.
    #[must_use]
    pub fn of_100_000(self) -> u32 {
        self.0
    }
}

impl Default for Percentage {
    /// One per cent, as in Istio.
    fn default() -> Self {
        Self(1_000)
    }
}

impl TryFrom<f64> for Percentage {
    type Error = String;

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 100,000")]
    fn try_from(percent: f64) -> Result<Self, String> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("`{percent}` is not a percentage; write 0 to 100"));
        }
        Ok(Self((percent * 1000.0).round() as u32))
    }
}

impl From<Percentage> for f64 {
    fn from(percentage: Percentage) -> Self {
        Self::from(percentage.0) / 1000.0
    }
}

/// The status that `statusOnError` stands for.
#[must_use]
pub fn status_on_error(text: &str) -> Option<u16> {
    text.parse().ok().filter(|status| (400..=599).contains(status))
}
