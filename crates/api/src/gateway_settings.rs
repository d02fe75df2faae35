//! The annotations of a waypoint's Gateway that change how it answers.

use std::collections::BTreeMap;

use crate::text::quoted;

/// Applications are told who asks, in `x-forwarded-client-cert`.
pub const CLIENT_IDENTITY: &str = "ambient.istio.io/xfcc-include-client-identity";
/// Status of the answer to a denied request.
pub const DENIAL_STATUS: &str = "ambit.dev/denial-status";
/// Content type of that answer.
pub const DENIAL_CONTENT_TYPE: &str = "ambit.dev/denial-content-type";
/// Body of that answer.
pub const DENIAL_MESSAGE: &str = "ambit.dev/denial-message";

/// Longest content type, in bytes.
const MAX_CONTENT_TYPE_BYTES: usize = 128;
/// Longest message, in bytes.
const MAX_MESSAGE_BYTES: usize = 4096;

/// What the annotations ask for. The default is what Istio does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Status of the answer to a denied request.
    pub denial_status: u16,
    /// Its content type.
    pub denial_content_type: String,
    /// Its body, and the message of a gRPC status.
    pub denial_message: String,
    /// Applications are told who asks.
    pub client_identity: bool,
}

/// An annotation that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAnnotation {
    /// Its key.
    pub annotation: &'static str,
    /// What is wrong.
    pub fault: String,
    /// What to write.
    pub help: &'static str,
}

// === impl GatewaySettings ===

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            denial_status: 403,
            denial_content_type: "text/plain".to_owned(),
            denial_message: "RBAC: access denied".to_owned(),
            client_identity: false,
        }
    }
}

impl GatewaySettings {
    /// What these annotations ask for, and those that can't be used: they change nothing.
    #[must_use]
    pub fn of(annotations: &BTreeMap<String, String>) -> (Self, Vec<BadAnnotation>) {
        let (mut settings, mut bad) = (Self::default(), Vec::new());
        let mut refuse = |annotation, fault, help| bad.push(BadAnnotation { annotation, fault, help });
        if let Some(value) = annotations.get(DENIAL_STATUS) {
            match value.parse() {
                Ok(status @ 400..=599) => settings.denial_status = status,
                _ => refuse(DENIAL_STATUS, format!("`{}` is no status of a refusal", quoted(value)), "use 400 to 599"),
            }
        }
        if let Some(value) = annotations.get(DENIAL_CONTENT_TYPE) {
            let is_type = value.len() <= MAX_CONTENT_TYPE_BYTES
                && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
                && value.split_once('/').is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty())
                && value.trim() == value;
            if is_type {
                settings.denial_content_type.clone_from(value);
            } else {
                let fault = format!("`{}` is no content type", quoted(value));
                refuse(DENIAL_CONTENT_TYPE, fault, "write one like \"application/json\"");
            }
        }
        if let Some(value) = annotations.get(DENIAL_MESSAGE) {
            if value.len() <= MAX_MESSAGE_BYTES {
                settings.denial_message.clone_from(value);
            } else {
                refuse(DENIAL_MESSAGE, format!("{} bytes are too many", value.len()), "use at most 4096");
            }
        }
        match annotations.get(CLIENT_IDENTITY).map(String::as_str) {
            None | Some("false") => {}
            Some("true") => settings.client_identity = true,
            Some(value) => {
                refuse(CLIENT_IDENTITY, format!("`{}` is not a boolean", quoted(value)), "write \"true\" or \"false\"");
            }
        }
        (settings, bad)
    }
}

#[cfg(test)]
mod tests {
    use super::{CLIENT_IDENTITY, DENIAL_CONTENT_TYPE, DENIAL_MESSAGE, DENIAL_STATUS, GatewaySettings};

    #[test]
    fn annotations_that_cannot_be_used_are_named_and_change_nothing() {
        let long = "x".repeat(5000);
        for (annotation, value) in [
            (DENIAL_STATUS, "200"),
            (DENIAL_STATUS, "600"),
            (DENIAL_STATUS, "forbidden"),
            (DENIAL_CONTENT_TYPE, "json"),
            (DENIAL_CONTENT_TYPE, "text/plain\r\nset-cookie: a=b"),
            (DENIAL_MESSAGE, &long),
            (CLIENT_IDENTITY, "yes"),
        ] {
            let annotations = [(annotation.to_owned(), value.to_owned())].into();
            let (settings, bad) = GatewaySettings::of(&annotations);
            assert_eq!(settings, GatewaySettings::default(), "{annotation}: {value}");
            assert_eq!(bad.iter().map(|bad| bad.annotation).collect::<Vec<_>>(), [annotation], "{value}");
        }
    }
}
