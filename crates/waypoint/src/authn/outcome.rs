//! What becomes of a request by its token: headers made of claims, or a 401.

use std::sync::Arc;

use ambit_mesh::view::{Authentication, Location, TokenRule};
use ambit_policy::{Claims, Decision};
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use super::{locate, token::Failure};
use crate::{
    limits::MAX_REALM_PATH_BYTES,
    record::refusal,
    request::Checked,
    respond::{self, Style},
    upstream::Body,
};

/// A request that is refused for its token.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(super) failure: Failure,
    /// `namespace/name` of the RequestAuthentication.
    policy: Arc<str>,
    /// Why the issuer's keys couldn't be had.
    why: Option<Arc<str>>,
    realm: Option<HeaderValue>,
}

/// Takes out what only a verified token may put in, and what would have it taken out again on the way.
pub(super) fn drop_outputs(authentication: &Authentication, headers: &mut HeaderMap, checked: &mut Checked) {
    for name in &authentication.outputs {
        headers.remove(&**name);
        checked.headers.remove(&**name);
    }
    if !authentication.outputs.is_empty() && headers.contains_key(header::CONNECTION) {
        keep_from_connection(&authentication.outputs, headers);
    }
}

/// Makes the request what it is to the policies and to the application: the token is gone unless it is to be forwarded.
pub(super) fn apply(
    rule: &TokenRule,
    location: &Location,
    claims: &Arc<Claims>,
    payload: &str,
    headers: &mut HeaderMap,
    checked: &mut Checked,
) {
    if !rule.forward {
        locate::remove(location, headers, checked);
    }
    let mut set = |name: &str, value: &str| {
        // A claim that can't stand in a header doesn't.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name.clone(), value.clone());
            checked.headers.append(name, value);
        }
    };
    if let Some(name) = &rule.payload_header {
        set(name, payload);
    }
    for output in &rule.claim_headers {
        if let Some(value) = claim(claims, &output.claim).and_then(shown) {
            set(&output.header, &value);
        }
    }
    checked.claims = Some(Arc::clone(claims));
}

/// A request's `Connection` names what concerns only this hop; what a token put in doesn't.
fn keep_from_connection(outputs: &[Box<str>], headers: &mut HeaderMap) {
    let is_output = |option: &str| outputs.iter().any(|output| output.eq_ignore_ascii_case(option));
    let options = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let options: Vec<_> = options.flat_map(|value| value.split(',')).map(str::trim).collect();
    if options.iter().any(|option| is_output(option)) {
        let kept = options.into_iter().filter(|option| !is_output(option)).collect::<Vec<_>>().join(", ");
        headers.remove(header::CONNECTION);
        if let Ok(kept) = HeaderValue::from_str(&kept) {
            headers.insert(header::CONNECTION, kept);
        }
    }
}

fn claim<'a>(claims: &'a Claims, names: &[Box<str>]) -> Option<&'a Value> {
    let (last, outer) = names.split_last()?;
    let inner = outer.iter().try_fold(claims, |object, name| object.get(&**name)?.as_object())?;
    inner.get(&**last)
}

/// A claim as a header's value: lists and objects as base64 of their JSON.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => Some(BASE64.encode(value.to_string().as_bytes())),
    }
}

// === impl Refused ===

impl Refused {
    pub(super) fn new(failure: Failure, rule: &TokenRule, checked: &Checked) -> Self {
        let why = rule.keys.as_ref().err().filter(|_| failure == Failure::NoKeys).cloned();
        Self { failure, policy: Arc::clone(&rule.policy), why, realm: realm(checked) }
    }

    /// What is recorded. Nothing of the token is.
    pub(crate) fn decision(&self) -> Decision {
        let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        refusal(&format!("RequestAuthentication `{}`: {}{why}", self.policy, self.failure.text()))
    }

    /// What the client is told.
    pub(crate) fn response(self, style: Style) -> Response<Body> {
        let status = match self.failure {
            Failure::AudienceNotAllowed => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let mut response = respond::text(status, self.failure.text(), style);
        if let Some(realm) = self.realm {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
        }
        response
    }
}

/// `Bearer realm="http://host/path", error="invalid_token"`. Without the query, which may hold secrets.
fn realm(checked: &Checked) -> Option<HeaderValue> {
    let path = checked.path();
    let path = path.get(..MAX_REALM_PATH_BYTES).unwrap_or(path);
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    let address = if plain(path) {
        format!("http://{}{path}", checked.authority)
    } else {
        format!("http://{}", checked.authority)
    };
    HeaderValue::from_str(&format!("Bearer realm=\"{address}\", error=\"invalid_token\"")).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_become_headers() {
        let claims: Claims = serde_json::from_value(json!({
            "s": "text", "n": 7, "b": true, "l": ["a"], "o": {"p": {"q": "deep"}}, "e": "", "z": null,
        }))
        .expect("a map");
        let header = |path: &str| {
            let names: Vec<Box<str>> = path.split('.').map(Into::into).collect();
            claim(&claims, &names).and_then(shown)
        };
        for (path, expected) in [
            ("s", Some("text")),
            ("n", Some("7")),
            ("b", Some("true")),
            ("l", Some("WyJhIl0=")),
            ("o.p.q", Some("deep")),
            ("o.p", Some("eyJxIjoiZGVlcCJ9")),
            ("s.x", None),
            ("e", None),
            ("z", None),
            ("missing", None),
        ] {
            assert_eq!(header(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_client_cannot_have_an_output_taken_out() {
        let mut headers = HeaderMap::new();
        headers.append("connection", HeaderValue::from_static("Upgrade, X-Payload"));
        headers.append("connection", HeaderValue::from_static("x-other"));
        keep_from_connection(&["x-payload".into()], &mut headers);
        let values: Vec<_> = headers.get_all("connection").iter().collect();
        assert_eq!(values, ["Upgrade, x-other"]);
    }
}
