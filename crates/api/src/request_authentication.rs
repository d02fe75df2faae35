//! `security.istio.io/v1 RequestAuthentication` (`spec/control-plane.md` 3.1): whose tokens are believed.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    authorization_policy::{PolicyTargetReference, WorkloadSelector, null_as_default},
    schema::rules,
};

/// A RequestAuthentication with the metadata that gives it its meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestAuthentication {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// What it says.
    #[serde(default)]
    pub spec: RequestAuthenticationSpec,
}

/// The `spec` of a RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::ONE_ATTACHMENT))]
pub struct RequestAuthenticationSpec {
    /// Pods it applies to, at a sidecar. Nobody looks at tokens for it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Objects it is attached to, at their waypoint. At most 16.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// The older, single form of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTargetReference>,
    /// The tokens that are believed. At most 4096.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer's tokens: where they stand in a request, how they are verified, and what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::ONE_KEY_SOURCE), transform = with_old_name)]
pub struct JwtRule {
    /// What `iss` must be; any if empty.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1))]
    pub issuer: String,
    /// One of these must be in `aud`; any will do if there are none.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1)))]
    pub audiences: Vec<String>,
    /// Where the issuer's keys are.
    #[serde(
        default,
        alias = "jwks_uri",
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    #[schemars(length(min = 1, max = 2048), extend("x-kubernetes-validations" = rules::HTTP_URL))]
    pub jwks_uri: String,
    /// The issuer's keys themselves, a JSON Web Key Set (RFC 7517).
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    /// Headers that may hold the token.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that may hold the token.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1)))]
    pub from_params: Vec<String>,
    /// Cookies that may hold the token.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1)))]
    pub from_cookies: Vec<String>,
    /// A header that the application gets with the token's payload, in base64url.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub output_payload_to_header: String,
    /// Headers that the application gets with single claims.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Leave the token in the request.
    #[serde(default, deserialize_with = "null_as_default")]
    pub forward_original_token: bool,
    /// How long fetching the keys may take, for example `5s`, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = rules::DURATION))]
    pub timeout: Option<String>,
    /// Claims whose text is a list, its entries parted by spaces, besides `scope` and `permission`.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1)))]
    pub space_delimited_claims: Vec<String>,
}

/// A header that may hold a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub struct JwtHeader {
    /// Name of the header.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(length(min = 1))]
    pub name: String,
    /// What stands before the token, the space included: `Bearer `.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// A header made of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["header", "claim"]))]
pub struct ClaimToHeader {
    /// Name of the header.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(length(min = 1), regex(pattern = "^[-_A-Za-z0-9]+$"))]
    pub header: String,
    /// Name of the claim; `a.b` is `b` inside of `a`.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(length(min = 1))]
    pub claim: String,
}

/// Where keys are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// This address has the key set.
    Uri(String),
    /// This issuer's OpenID configuration says which address has it.
    Issuer(String),
}

/// How long fetching keys may take unless a rule says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The schema knows `jwks_uri`, too, as Istio's does: a field that it doesn't know would be dropped.
fn with_old_name(schema: &mut schemars::Schema) {
    if let Some(serde_json::Value::Object(properties)) = schema.get_mut("properties")
        && let Some(address) = properties.get("jwksUri").cloned()
    {
        properties.insert("jwks_uri".to_owned(), address);
    }
}

// === impl JwtRule ===

impl JwtRule {
    /// Where its keys are fetched from; nothing if it holds them itself.
    #[must_use]
    pub fn key_source(&self) -> Option<KeySource> {
        match (self.jwks.is_empty(), self.jwks_uri.is_empty()) {
            (false, _) => None,
            (true, false) => Some(KeySource::Uri(self.jwks_uri.clone())),
            (true, true) => Some(KeySource::Issuer(self.issuer.clone())),
        }
    }

    /// How long fetching its keys may take; nothing if what is written isn't a duration.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout.as_deref().map_or(Some(DEFAULT_TIMEOUT), go_duration)
    }
}

/// `1h2m3.5s`, `500ms`: numbers with a unit each, as Go writes durations. More than nothing.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!total.is_zero()).then_some(total)
}

// === impl KeySource ===

impl std::fmt::Display for KeySource {
    /// What a person would call it; never the query, which may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Uri(address) | Self::Issuer(address)) = self;
        let shown = address.split(['?', '#']).next().unwrap_or_default();
        match self {
            Self::Uri(_) => f.write_str(shown),
            Self::Issuer(_) => write!(f, "the OpenID configuration of {shown}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [("5s", 5_000), ("500ms", 500), ("1m0.5s", 60_500), ("1h", 3_600_000), ("1.5s", 1_500)] {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "0s", "5", "s", "-1s", "5 s", "1d", "..s", "1e9s", "99999999999999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_come_from_the_rule_before_the_address_before_the_issuer() {
        let rule = |jwks: &str, jwks_uri: &str| JwtRule {
            issuer: "https://issuer".into(),
            jwks: jwks.into(),
            jwks_uri: jwks_uri.into(),
            ..JwtRule::default()
        };
        assert_eq!(rule("{}", "https://a").key_source(), None);
        assert_eq!(rule("", "https://a").key_source(), Some(KeySource::Uri("https://a".into())));
        assert_eq!(rule("", "").key_source(), Some(KeySource::Issuer("https://issuer".into())));
        assert_eq!(KeySource::Uri("https://a/b?secret=1".into()).to_string(), "https://a/b");
    }
}
