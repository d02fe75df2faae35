//! The service that a question is about.

use ambit_mesh::{
    attachment::{self, Target},
    inputs::{Inputs, NamespacedName, Policy},
};

/// Names of services that are told when the one asked for isn't there.
const MAX_NAMES: usize = 5;

/// A name that is misspelled would be a service without policies: everything would be allowed.
///
/// # Errors
/// The files have services, but not this one, and no policy is attached to it.
pub fn check(inputs: &Inputs, to: &NamespacedName) -> Result<(), String> {
    let is_target = |(name, policy): (&NamespacedName, &Policy)| {
        let mut references = attachment::references(policy.get());
        references
            .any(|(_, reference)| attachment::target(&name.namespace, reference) == Some(Target::Service(to.clone())))
    };
    if inputs.services.is_empty() || inputs.services.contains_key(to) || inputs.policies().any(is_target) {
        return Ok(());
    }
    let in_namespace = Inputs::in_namespace(&inputs.services, &to.namespace).map(|(name, _)| name);
    let others: Vec<_> = in_namespace.chain(inputs.services.keys().filter(|name| name.name == to.name)).collect();
    let known = if others.is_empty() { inputs.services.keys().collect() } else { others };
    let names: Vec<_> = known.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect();
    Err(format!("there is no service `{to}` in the files; there is {}", names.join(", ")))
}
