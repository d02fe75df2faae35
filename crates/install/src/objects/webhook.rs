//! The admission webhook's registration. The API server can't reach it before the control plane has written its authority
//! into it, and then sets `failurePolicy` to Fail (`docs/kubernetes.md`).

use serde_json::{Value, json};

use super::wide;
use crate::settings::Words;

/// Where the control plane answers.
pub const WEBHOOK_PATH: &str = "/validate";
/// How long the API server waits for an answer, in seconds.
const TIMEOUT_SECONDS: u32 = 10;

/// Name of the registration, by the namespace of the installation.
#[must_use]
pub fn webhook_name(namespace: &str) -> String {
    format!("ambit-validator-{namespace}")
}

pub(super) fn object(words: &Words) -> Value {
    let rule = |group: &str, resources: &[&str]| {
        json!({
            "apiGroups": [group], "apiVersions": ["*"], "resources": resources, "operations": ["CREATE", "UPDATE"],
            "scope": "*",
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": wide(&webhook_name(&words.namespace)),
        "webhooks": [{
            "name": "validation.ambit.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "istiod", "namespace": words.namespace, "path": WEBHOOK_PATH, "port": 443}},
            "failurePolicy": "Ignore",
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECONDS,
            "rules": [
                rule(
                    "security.istio.io",
                    &["authorizationpolicies", "peerauthentications", "requestauthentications"],
                ),
                rule("networking.istio.io", &["destinationrules"]),
                rule("ambit.dev", &["meshconfigs", "trafficpolicies"]),
                rule(
                    "gateway.networking.k8s.io",
                    &["gateways", "grpcroutes", "httproutes", "tcproutes", "tlsroutes"],
                ),
                rule("gateway.networking.x-k8s.io", &["xbackendtrafficpolicies"]),
            ],
        }],
    })
}
