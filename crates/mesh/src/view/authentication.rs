//! The tokens that a waypoint believes, as it looks for them and verifies them (`spec/control-plane.md` 3.1).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ambit_api::{RequestAuthentication, jwks::KeySet, request_authentication::JwtRule};
use ambit_xds::waypoint::{BoundService, KeysOutcome, RequestAuthentication as Wire};

use super::{Authentications, ServiceKey, decode::MAX_LIST_ENTRIES};

/// The RequestAuthentications of one service, or of a waypoint's workloads.
#[derive(Debug)]
pub struct Authentication {
    /// No two have had the same one in this process: what was found out under one doesn't hold under another.
    pub generation: u64,
    /// In order of their issuers.
    pub rules: Box<[TokenRule]>,
    /// Every place where a token may stand, each once.
    pub locations: Box<[Location]>,
    /// Headers that only verified tokens may set, in lower case.
    pub outputs: Box<[Box<str>]>,
}

/// One issuer's tokens.
#[derive(Debug)]
pub struct TokenRule {
    /// `namespace/name` of the RequestAuthentication.
    pub policy: Arc<str>,
    /// What `iss` must be; nothing for any.
    pub issuer: Option<Box<str>>,
    /// One of these must be in `aud`; none for any. As [`bare_audience`] gives them.
    pub audiences: Box<[Box<str>]>,
    /// Indices of the [`Authentication::locations`] of its tokens, in the order in which they count.
    pub locations: Box<[usize]>,
    /// Its issuer's keys, or why there are none.
    pub keys: Result<KeySet, Arc<str>>,
    /// The token stays in the request.
    pub forward: bool,
    /// Header that gets the payload, in lower case.
    pub payload_header: Option<Box<str>>,
    /// Headers that get claims.
    pub claim_headers: Box<[ClaimHeader]>,
    /// Claims whose text is a list, besides `scope` and `permission`.
    pub space_delimited: Box<[Box<str>]>,
}

/// Places where the tokens of one service may stand: each request is searched at all of them.
const MAX_LOCATIONS: usize = 256;

/// A header made of a claim.
#[derive(Debug)]
pub struct ClaimHeader {
    /// Its name, in lower case.
    pub header: Box<str>,
    /// Names, outermost first.
    pub claim: Box<[Box<str>]>,
}

/// Where a token may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a header.
    Header {
        /// Its name, in lower case.
        name: Box<str>,
        /// What stands before the token.
        prefix: Box<str>,
    },
    /// In a parameter of the query.
    Parameter(Box<str>),
    /// In a cookie.
    Cookie(Box<str>),
}

/// An audience without its scheme and last slash, which don't count.
#[must_use]
pub fn bare_audience(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// Reads the RequestAuthentications of one service; nothing if there is nothing to look for.
///
/// # Errors
/// Why one of them can't be enforced, as the whole reason of the denials.
pub(super) fn authentication(messages: &[Wire]) -> Result<Option<Arc<Authentication>>, String> {
    let mut rules = Vec::new();
    let mut locations = Vec::new();
    for message in messages {
        let name = format!("{}/{}", message.namespace, message.name);
        let policy: Arc<str> = name.as_str().into();
        let rejected = |reason: String| format!("RequestAuthentication `{name}` was rejected: {reason}");
        let object = object(message).map_err(rejected)?;
        for (index, rule) in object.spec.jwt_rules.iter().enumerate() {
            rules.push(TokenRule::new(&policy, rule, fetched(message, index), &mut locations).map_err(rejected)?);
        }
        if rules.len() > MAX_LIST_ENTRIES {
            return Err(rejected(format!("there are more than {MAX_LIST_ENTRIES} rules for tokens")));
        }
    }
    if rules.is_empty() {
        return Ok(None);
    }
    if locations.len() > MAX_LOCATIONS {
        return Err(format!(
            "RequestAuthentications were rejected: tokens may stand in more than {MAX_LOCATIONS} places"
        ));
    }
    rules.sort_by(|one: &TokenRule, other| one.issuer.cmp(&other.issuer));
    let outputs = rules.iter().flat_map(|rule| {
        rule.payload_header.iter().chain(rule.claim_headers.iter().map(|output| &output.header)).cloned()
    });
    let mut outputs: Vec<_> = outputs.collect();
    outputs.sort();
    outputs.dedup();
    Ok(Some(Arc::new(Authentication {
        generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
        rules: rules.into(),
        locations: locations.into(),
        outputs: outputs.into(),
    })))
}

/// The same for each of these services; `kept` gives what is known of one already. One whose rules can't be read has none:
/// its policies deny everything instead.
pub(super) fn authentications(
    services: &[BoundService],
    kept: impl Fn(&ServiceKey, &BoundService) -> Option<Arc<Authentication>>,
) -> Authentications {
    let mut made: Vec<(&[Wire], Option<Arc<Authentication>>)> = Vec::new();
    let mut authentications = Authentications::new();
    for service in services.iter().filter(|service| !service.authentications.is_empty()) {
        let key =
            ServiceKey { namespace: service.namespace.as_str().into(), hostname: service.hostname.as_str().into() };
        // What is attached to the waypoint is the same for all of its services.
        let shared = || made.iter().find(|(messages, _)| *messages == service.authentications.as_slice());
        let read = match kept(&key, service).or_else(|| shared()?.1.clone()) {
            Some(kept) => Some(kept),
            None => authentication(&service.authentications).unwrap_or_default(),
        };
        made.push((&service.authentications, read.clone()));
        authentications.extend(read.map(|read| (key, read)));
    }
    authentications
}

static GENERATIONS: AtomicU64 = AtomicU64::new(0);

fn object(message: &Wire) -> Result<RequestAuthentication, String> {
    if !message.rejection.is_empty() {
        return Err(message.rejection.clone());
    }
    let object: RequestAuthentication =
        serde_json::from_slice(&message.json).map_err(|error| format!("it can't be read: {error}"))?;
    if object.namespace != message.namespace || object.name != message.name {
        return Err(format!("it carries another one, `{}/{}`", object.namespace, object.name));
    }
    Ok(object)
}

/// The keys that were fetched for a rule, or why there are none.
fn fetched(message: &Wire, rule: usize) -> Result<&[u8], &str> {
    let entry = message.keys.iter().find(|keys| usize::try_from(keys.rule).is_ok_and(|index| index == rule));
    match entry.and_then(|keys| keys.outcome.as_ref()) {
        Some(KeysOutcome::KeySet(set)) => Ok(set),
        Some(KeysOutcome::Failure(reason)) => Err(reason),
        None => Err("the control plane sent none"),
    }
}

// === impl TokenRule ===

impl TokenRule {
    fn new(
        policy: &Arc<str>,
        rule: &JwtRule,
        fetched: Result<&[u8], &str>,
        locations: &mut Vec<Location>,
    ) -> Result<Self, String> {
        let lower = |name: &str| -> Result<Box<str>, String> {
            let sound =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b));
            if sound { Ok(name.to_ascii_lowercase().into()) } else { Err(format!("`{name}` is no header")) }
        };
        let set = if rule.jwks.is_empty() { fetched } else { Ok(rule.jwks.as_bytes()) };
        let keys = set.map_err(Arc::from).and_then(|set| {
            KeySet::parse(set).map_err(|error| Arc::from(format!("the key set can't be used: {error}")))
        });
        let mut wanted = Vec::new();
        for header in &rule.from_headers {
            wanted.push(Location::Header { name: lower(&header.name)?, prefix: header.prefix.as_str().into() });
        }
        wanted.extend(rule.from_params.iter().map(|name| Location::Parameter(name.as_str().into())));
        wanted.extend(rule.from_cookies.iter().map(|name| Location::Cookie(name.as_str().into())));
        if wanted.is_empty() {
            wanted.push(Location::Header { name: "authorization".into(), prefix: "Bearer ".into() });
            wanted.push(Location::Parameter("access_token".into()));
        }
        let place = |location: Location| {
            locations.iter().position(|known| *known == location).unwrap_or_else(|| {
                locations.push(location);
                locations.len() - 1
            })
        };
        let output = |output: &ambit_api::request_authentication::ClaimToHeader| {
            let claim = output.claim.split('.').map(Into::into).collect();
            Ok(ClaimHeader { header: lower(&output.header)?, claim })
        };
        let payload = Some(rule.output_payload_to_header.as_str()).filter(|header| !header.is_empty());
        Ok(Self {
            policy: Arc::clone(policy),
            issuer: (!rule.issuer.is_empty()).then(|| rule.issuer.as_str().into()),
            audiences: rule.audiences.iter().map(|audience| bare_audience(audience).into()).collect(),
            locations: wanted.into_iter().map(place).collect(),
            keys,
            forward: rule.forward_original_token,
            payload_header: payload.map(lower).transpose()?,
            claim_headers: rule.output_claim_to_headers.iter().map(output).collect::<Result<_, String>>()?,
            space_delimited: rule.space_delimited_claims.iter().map(|name| name.as_str().into()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_are_compared_without_scheme_and_last_slash() {
        for (written, bare) in [
            ("https://mlflow.example/", "mlflow.example"),
            ("http://mlflow.example", "mlflow.example"),
            ("mlflow", "mlflow"),
            ("", ""),
        ] {
            assert_eq!(bare_audience(written), bare);
        }
    }
}
