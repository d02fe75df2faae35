//! One review: what the API server asks, and what it is told.

use ambit_api::{Diagnostic, Loaded, Severity, load_text};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::limits::{MAX_REVIEW_ERRORS, MAX_REVIEW_WARNINGS};

/// What the API server asks (`admission.k8s.io/v1 AdmissionReview`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    operation: String,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

/// Why something isn't a review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or fields are missing.
    #[error("this isn't an AdmissionReview: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A version that isn't known.
    #[error("`{0}` isn't known; send an AdmissionReview of admission.k8s.io/v1")]
    Version(String),
}

/// Fields of `spec` and annotations that decide what an object means; the rest is the API server's business.
const MEANING: [&str; 3] = ["apiVersion", "kind", "spec"];

// === impl Review ===

impl Review {
    /// Reads one.
    ///
    /// # Errors
    /// It isn't one.
    pub fn parse(text: &[u8]) -> Result<Self, ReviewError> {
        let review: Self = serde_json::from_slice(text)?;
        let is_known = review.api_version == "admission.k8s.io/v1" && review.kind == "AdmissionReview";
        if is_known { Ok(review) } else { Err(ReviewError::Version(format!("{} {}", review.api_version, review.kind))) }
    }
}

/// The answer: allowed unless the command line would find an error in the object.
///
/// An object that goes, and one whose meaning stays as it is, are allowed whatever they say: what is there already must stay
/// possible to label and to delete.
#[must_use]
pub fn answer(review: &Review) -> Value {
    let request = &review.request;
    let judged = matches!(request.operation.as_str(), "CREATE" | "UPDATE")
        && request.sub_resource.as_deref().unwrap_or_default().is_empty()
        && concerns_mesh(&request.object);
    if !judged {
        return verdict(&request.uid, None, Vec::new());
    }
    let Loaded { diagnostics, .. } = load_text("", &text(request));
    let (errors, others): (Vec<_>, Vec<_>) = diagnostics.iter().partition(|diagnostic| diagnostic.is_error());
    let mut warnings: Vec<_> =
        others.iter().filter(|diagnostic| diagnostic.severity == Severity::Warning).map(|found| said(found)).collect();
    let goes = !request.object["metadata"]["deletionTimestamp"].is_null();
    if goes || (request.operation == "UPDATE" && same_meaning(&request.object, &request.old_object)) {
        warnings.splice(0..0, errors.iter().map(|found| said(found)));
        return verdict(&request.uid, None, warnings);
    }
    verdict(&request.uid, refusal(&errors), warnings)
}

/// Objects of other implementations aren't ours to judge: a Gateway of another class, and a route without a Service that it is
/// attached to.
fn concerns_mesh(object: &Value) -> bool {
    let group = object["apiVersion"].as_str().unwrap_or_default().split('/').next().unwrap_or_default();
    match (group, object["kind"].as_str().unwrap_or_default()) {
        ("gateway.networking.k8s.io", "Gateway") => object["spec"]["gatewayClassName"] == "istio-waypoint",
        ("gateway.networking.k8s.io", _) => {
            let parents = object["spec"]["parentRefs"].as_array();
            parents.is_some_and(|parents| parents.iter().any(|parent| parent["kind"] == "Service"))
        }
        _ => true,
    }
}

/// The object as a user would have written it: JSON is YAML.
fn text(request: &Request) -> String {
    let mut written = Map::new();
    for field in MEANING {
        if let Some(value) = request.object.get(field) {
            written.insert(field.to_owned(), value.clone());
        }
    }
    let metadata = &request.object["metadata"];
    let own = |field: &str| metadata[field].as_str().filter(|text| !text.is_empty());
    let mut kept = Map::new();
    kept.insert("name".to_owned(), json!(own("name").or(request.name.as_deref()).unwrap_or("unnamed")));
    if let Some(namespace) = own("namespace").or(request.namespace.as_deref()).filter(|text| !text.is_empty()) {
        kept.insert("namespace".to_owned(), json!(namespace));
    }
    for field in ["annotations", "labels"] {
        if metadata[field].is_object() {
            kept.insert(field.to_owned(), metadata[field].clone());
        }
    }
    written.insert("metadata".to_owned(), Value::Object(kept));
    Value::Object(written).to_string()
}

fn same_meaning(object: &Value, old: &Value) -> bool {
    object["spec"] == old["spec"] && object["metadata"]["annotations"] == old["metadata"]["annotations"]
}

/// Why it is refused, if it is: every error, up to a bound.
fn refusal(errors: &[&Diagnostic]) -> Option<String> {
    let first = errors.first()?;
    let mut lines: Vec<_> = errors.iter().take(MAX_REVIEW_ERRORS).map(|found| said(found)).collect();
    if errors.len() > MAX_REVIEW_ERRORS {
        lines.push(format!("and {} more", errors.len() - MAX_REVIEW_ERRORS));
    }
    let object = first.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
    Some(format!("{object}{}", lines.join("; ")))
}

/// What is wrong, with its code, and what to do.
fn said(diagnostic: &Diagnostic) -> String {
    let help = diagnostic.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    format!("[{}] {}{help}", diagnostic.code, diagnostic.reason())
}

fn verdict(uid: &str, refusal: Option<String>, warnings: Vec<String>) -> Value {
    let mut response = json!({"uid": uid, "allowed": refusal.is_none()});
    if let Some(message) = refusal {
        response["status"] = json!({"code": 422, "reason": "Invalid", "message": message});
    }
    let warnings: Vec<_> = warnings.into_iter().take(MAX_REVIEW_WARNINGS).collect();
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(operation: &str, object: &Value, old: &Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "7", "operation": operation, "name": "p", "namespace": "a", "object": object, "oldObject": old},
        });
        let review = Review::parse(review.to_string().as_bytes()).expect("a review");
        let answer = answer(&review);
        assert_eq!(answer["response"]["uid"], "7");
        answer["response"].clone()
    }

    fn policy(spec: &Value) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "spec": spec,
            "metadata": {
                "name": "p", "namespace": "a", "uid": "u", "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
            },
            "status": {"conditions": [{"type": "WaypointAccepted"}]},
        })
    }

    #[test]
    fn it_says_what_the_command_line_says() {
        let good = policy(&json!({"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}));
        let bad = policy(&json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}));
        assert_eq!(ask("CREATE", &good, &Value::Null), json!({"uid": "7", "allowed": true}));
        let answer = ask("CREATE", &bad, &Value::Null);
        assert_eq!(answer["allowed"], false);
        let message = answer["status"]["message"].as_str().expect("a message");
        let loaded = load_text("", &bad.to_string());
        let found = loaded.diagnostics.iter().find(|found| found.field.as_deref().is_some_and(|f| f.contains("ports")));
        let found = found.expect("the command line finds it");
        for part in
            [found.code, found.message.as_str(), "spec.rules[0].to[0].operation.ports[0]", "AuthorizationPolicy a/p"]
        {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn warnings_come_with_the_permission() {
        let answer = ask("CREATE", &policy(&json!({"selector": {"matchLabels": {}}})), &Value::Null);
        assert_eq!(answer["allowed"], true);
        assert!(answer["warnings"][0].as_str().is_some_and(|text| text.contains("spec.selector")), "{answer}");
    }

    #[test]
    fn what_is_there_can_be_labelled_and_deleted_but_not_made_worse() {
        let bad = policy(&json!({"action": "DENY"}));
        let mut labelled = bad.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        let answer = ask("UPDATE", &labelled, &bad);
        assert_eq!(answer["allowed"], true);
        assert!(answer["warnings"][0].is_string(), "it still says what is wrong: {answer}");
        let good = policy(&json!({}));
        assert_eq!(ask("UPDATE", &bad, &good)["allowed"], false);
        let mut going = bad.clone();
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(ask("UPDATE", &going, &good)["allowed"], true);
        let mut annotated = bad.clone();
        annotated["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
        assert_eq!(ask("UPDATE", &annotated, &bad)["allowed"], false, "annotations have a meaning");
    }

    #[test]
    fn others_gateways_and_routes_are_not_judged() {
        let route = |parent: &Value| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "p", "namespace": "a"},
                "spec": {"parentRefs": [parent], "rules": [{"matches": [{"path": {"value": "no-slash"}}]}]},
            })
        };
        let foreign = route(&json!({"name": "ingress"}));
        assert_eq!(ask("CREATE", &foreign, &Value::Null)["allowed"], true);
        let ours = route(&json!({"group": "", "kind": "Service", "name": "web"}));
        assert_eq!(ask("CREATE", &ours, &Value::Null)["allowed"], false);
    }

    #[test]
    fn what_is_no_review_is_an_error() {
        for bad in [
            "",
            "{}",
            "[]",
            "{\"apiVersion\":\"admission.k8s.io/v1beta1\",\"kind\":\"AdmissionReview\",\"request\":{\"uid\":\"\",\"operation\":\"\"}}",
        ] {
            assert!(Review::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
