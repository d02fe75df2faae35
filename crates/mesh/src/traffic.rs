//! Which TrafficPolicies are enforced where (docs/traffic-policy.md).

use std::sync::{Arc, OnceLock};

use ambit_api::{TrafficPolicy, authorization_policy::PolicyTargetReference};
use ambit_xds::waypoint::TrafficPolicy as Wire;

use crate::{
    attachment::{self, EnforcementPoint, Target},
    inputs::Inputs,
};

/// A TrafficPolicy, with its text for the wire.
#[derive(Clone, Debug)]
pub struct TrafficRules {
    object: Arc<TrafficPolicy>,
    rejection: Option<Arc<str>>,
    json: OnceLock<Arc<[u8]>>,
}

/// Those that are enforced at a point, in order of namespace and name.
pub(crate) fn enforced_at(inputs: &Inputs, point: &EnforcementPoint<'_>) -> Vec<Wire> {
    if inputs.traffic_policies.is_empty() {
        return Vec::new();
    }
    let here = point.targets(&inputs.settings.root_namespace);
    let enforced =
        inputs.traffic_policies.values().filter(|rules| rules.targets().iter().any(|target| here.contains(target)));
    enforced.map(TrafficRules::on_the_wire).collect()
}

// === impl TrafficRules ===

/// Whether the text has been written yet is no difference.
impl PartialEq for TrafficRules {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object && self.rejection == other.rejection
    }
}

impl Eq for TrafficRules {}

impl TrafficRules {
    /// Takes an object in.
    #[must_use]
    pub fn new(object: TrafficPolicy) -> Self {
        Self { object: Arc::new(object), rejection: None, json: OnceLock::new() }
    }

    /// Takes in one that can't be enforced: what it targets is denied with this reason.
    #[must_use]
    pub fn rejected(object: TrafficPolicy, reason: &str) -> Self {
        Self { rejection: Some(reason.into()), ..Self::new(object) }
    }

    /// The object.
    #[must_use]
    pub fn get(&self) -> &TrafficPolicy {
        &self.object
    }

    /// Its references, with the field of each.
    pub fn references(&self) -> impl Iterator<Item = (String, &PolicyTargetReference)> {
        let list = self.object.spec.target_refs.iter().enumerate();
        list.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target))
    }

    /// What its references name.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let namespace = &self.object.namespace;
        let references = self.object.spec.target_refs.iter();
        references.filter_map(|reference| attachment::target(namespace, reference)).collect()
    }

    fn on_the_wire(&self) -> Wire {
        // Writing plain data as JSON into memory can't fail; were it to, the empty text is refused by every reader, and
        // what it targets denied.
        let json = self.json.get_or_init(|| serde_json::to_vec(&*self.object).unwrap_or_default().into());
        Wire {
            namespace: self.object.namespace.clone(),
            name: self.object.name.clone(),
            json: json.to_vec(),
            rejection: self.rejection.as_deref().unwrap_or_default().to_owned(),
        }
    }
}
