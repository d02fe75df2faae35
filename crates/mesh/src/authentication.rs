//! Which RequestAuthentications are enforced where, with the keys of their issuers (`spec/control-plane.md` 3.1).

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use ambit_api::{
    RequestAuthentication,
    authorization_policy::PolicyTargetReference,
    request_authentication::{JwtRule, KeySource},
};
use ambit_xds::waypoint::{FetchedKeys, KeysOutcome, RequestAuthentication as Wire};

use crate::{
    attachment::{self, EnforcementPoint, Target},
    inputs::Inputs,
};

/// A RequestAuthentication, with its text for the wire.
#[derive(Clone, Debug)]
pub struct TokenRules {
    object: Arc<RequestAuthentication>,
    rejection: Option<Arc<str>>,
    json: OnceLock<Arc<[u8]>>,
}

/// What came of fetching keys: a key set in JSON, or why there is none.
pub type Fetched = Result<Arc<str>, Arc<str>>;

/// What is said of keys that nobody has fetched yet.
const NOT_FETCHED: &str = "the keys haven't been fetched yet";

/// Those that are enforced at a point, in order of namespace and name.
pub(crate) fn enforced_at(inputs: &Inputs, point: &EnforcementPoint<'_>) -> Vec<Wire> {
    if inputs.request_authentications.is_empty() {
        return Vec::new();
    }
    let here = point.targets(&inputs.settings.root_namespace);
    let enforced = inputs
        .request_authentications
        .values()
        .filter(|rules| rules.targets().iter().any(|target| here.contains(target)));
    enforced.map(|rules| on_the_wire(inputs, rules)).collect()
}

/// Where keys must be fetched from for what is enforced at waypoints.
#[must_use]
pub fn key_sources(inputs: &Inputs) -> BTreeSet<KeySource> {
    enforceable_rules(inputs).filter_map(JwtRule::key_source).collect()
}

/// How long fetching keys from there may take: as long as the most patient rule says.
#[must_use]
pub fn timeout(inputs: &Inputs, source: &KeySource) -> std::time::Duration {
    let asking = enforceable_rules(inputs).filter(|rule| rule.key_source().as_ref() == Some(source));
    asking.filter_map(JwtRule::timeout).max().unwrap_or(ambit_api::request_authentication::DEFAULT_TIMEOUT)
}

fn enforceable_rules(inputs: &Inputs) -> impl Iterator<Item = &JwtRule> {
    let attached = inputs.request_authentications.values();
    let attached = attached.filter(|rules| rules.rejection.is_none() && !rules.targets().is_empty());
    attached.flat_map(|rules| &rules.object.spec.jwt_rules)
}

fn on_the_wire(inputs: &Inputs, rules: &TokenRules) -> Wire {
    let RequestAuthentication { namespace, name, spec } = &*rules.object;
    let keys = spec.jwt_rules.iter().zip(0..).filter_map(|(rule, index)| {
        let outcome = match inputs.key_sets.get(&rule.key_source()?) {
            Some(Ok(keys)) => KeysOutcome::KeySet(keys.as_bytes().to_vec()),
            Some(Err(reason)) => KeysOutcome::Failure(reason.to_string()),
            None => KeysOutcome::Failure(NOT_FETCHED.to_owned()),
        };
        Some(FetchedKeys { rule: index, outcome: Some(outcome) })
    });
    Wire {
        namespace: namespace.clone(),
        name: name.clone(),
        json: rules.json().to_vec(),
        rejection: rules.rejection.as_deref().unwrap_or_default().to_owned(),
        keys: keys.collect(),
    }
}

// === impl TokenRules ===

/// Whether the text has been written yet is no difference.
impl PartialEq for TokenRules {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object && self.rejection == other.rejection
    }
}

impl Eq for TokenRules {}

impl TokenRules {
    /// Takes an object in.
    #[must_use]
    pub fn new(object: RequestAuthentication) -> Self {
        Self { object: Arc::new(object), rejection: None, json: OnceLock::new() }
    }

    /// Takes in one that can't be enforced: what it targets is denied with this reason.
    #[must_use]
    pub fn rejected(object: RequestAuthentication, reason: &str) -> Self {
        Self { rejection: Some(reason.into()), ..Self::new(object) }
    }

    /// The object.
    #[must_use]
    pub fn get(&self) -> &RequestAuthentication {
        &self.object
    }

    /// Why it can't be enforced, if it can't.
    #[must_use]
    pub fn rejection(&self) -> Option<&str> {
        self.rejection.as_deref()
    }

    /// Its references, with the field of each. The older single form counts only when the list is empty.
    pub fn references(&self) -> impl Iterator<Item = (String, &PolicyTargetReference)> {
        let spec = &self.object.spec;
        let list = spec.target_refs.iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
        let single = spec.target_ref.iter().filter(|_| spec.target_refs.is_empty());
        list.chain(single.map(|target| ("spec.targetRef".to_owned(), target)))
    }

    /// What its references name.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let namespace = &self.object.namespace;
        self.references().filter_map(|(_, reference)| attachment::target(namespace, reference)).collect()
    }

    fn json(&self) -> &[u8] {
        // Writing a struct of strings as JSON into memory can't fail; were it to, the empty text is refused by every
        // reader, and what it targets denied.
        self.json.get_or_init(|| serde_json::to_vec(&*self.object).unwrap_or_default().into())
    }
}
