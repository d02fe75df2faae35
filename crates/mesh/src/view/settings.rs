//! How a waypoint differs from the usual one.

use std::sync::Arc;

use ambit_xds::waypoint::GatewaySettings;
use http::{HeaderValue, StatusCode};

/// How a waypoint differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The answer to a request that policies deny; nothing for Istio's.
    pub denial: Option<Arc<Denial>>,
    /// Applications are told who asks, in `x-forwarded-client-cert`.
    pub client_identity: bool,
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
    Ok(Settings { denial: denial.transpose()?, client_identity: wire.client_identity })
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
