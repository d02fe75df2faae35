//! How a waypoint differs from the usual one.

use std::sync::Arc;

use ambit_xds::waypoint::{self as wire, GatewaySettings};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, uri::PathAndQuery};

use super::{
    authorizers::{self, Authorizer},
    decode::MAX_LIST_ENTRIES,
};

/// How a waypoint differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The answer to a request that policies deny; nothing for Istio's.
    pub denial: Option<Arc<Denial>>,
    /// Applications are told who asks, in `x-forwarded-client-cert`.
    pub client_identity: bool,
    /// Whether and how requests are traced.
    pub tracing: Option<Arc<Tracing>>,
}

/// Where spans go, and of how many requests.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// The collector, which takes OTLP over HTTP/1.1.
    pub collector: Arc<Authorizer>,
    /// Its `Host`.
    pub authority: HeaderValue,
    /// Path of requests to it.
    pub path: Uri,
    /// Headers that each of them has.
    pub headers: HeaderMap,
    /// Traces begun here that are sampled, of 100,000.
    pub sampled: u32,
}

/// The answer to a request that policies deny.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Its status.
    pub status: StatusCode,
    /// Its content type.
    pub content_type: HeaderValue,
    /// Its body.
    pub message: Arc<str>,
    /// The same as a gRPC message.
    pub grpc_message: HeaderValue,
}

/// Reads what came over the wire.
pub(super) fn settings(wire: Option<&GatewaySettings>) -> Result<Settings, String> {
    let Some(wire) = wire else { return Ok(Settings::default()) };
    let denial = wire.denial.as_ref().map(|denial| {
        let status = u16::try_from(denial.status).ok().filter(|status| (400..=599).contains(status));
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.ok_or_else(|| format!("`{}` is no status of a refusal", denial.status))?;
        let content_type = HeaderValue::from_str(&denial.content_type).map_err(|_| "not a content type".to_owned())?;
        let grpc_message =
            HeaderValue::from_str(&percent_encoded(&denial.message)).map_err(|error| error.to_string())?;
        Ok::<_, String>(Arc::new(Denial {
            status,
            content_type,
            message: denial.message.as_str().into(),
            grpc_message,
        }))
    });
    let tracing = wire.tracing.as_ref().map(|wire| tracing(wire).map(Arc::new));
    let tracing = tracing.transpose().map_err(|reason| format!("spans can't be sent: {reason}"))?;
    Ok(Settings { denial: denial.transpose()?, client_identity: wire.client_identity, tracing })
}

fn tracing(wire: &wire::Tracing) -> Result<Tracing, String> {
    let collector = wire.collector.as_ref().ok_or("there is no collector")?;
    let collector = Arc::new(authorizers::authorizer(collector)?);
    let path = PathAndQuery::try_from(wire.path.as_str()).ok().filter(|_| wire.path.starts_with('/'));
    let path = path.and_then(|path| Uri::try_from(path.as_str()).ok()).ok_or("its path is none")?;
    let authority =
        HeaderValue::try_from(format!("{}:{}", collector.host, collector.port)).map_err(|e| e.to_string())?;
    let mut headers = HeaderMap::new();
    for (name, value) in wire.headers.iter().take(MAX_LIST_ENTRIES) {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
        let mut value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(Tracing { collector, authority, path, headers, sampled: wire.sampled })
}

// === impl Tracing ===

impl Tracing {
    /// Whether a trace that begins with this random number is sampled.
    #[must_use]
    pub fn draws(&self, random: u64) -> bool {
        random % 100_000 < u64::from(self.sampled)
    }
}

/// As gRPC writes messages: printable ASCII but `%` as it is, all other bytes escaped.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}
