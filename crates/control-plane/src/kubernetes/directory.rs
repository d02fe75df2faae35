//! The pods, for whoever asks for identities.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use ambit_mesh::inputs::NamespacedName;

use crate::authority::{PodDirectory, PodFacts};

/// The pods as the API has told of them.
#[derive(Debug, Default)]
pub struct Directory {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    pods: HashMap<NamespacedName, PodFacts>,
    /// How many running, enrolled pods there are of a node, namespace and service account.
    accounts: HashMap<(String, String, String), usize>,
}

// === impl Directory ===

impl Directory {
    /// A pod is there, with these facts, or gone.
    pub(super) fn put(&self, name: &NamespacedName, facts: Option<PodFacts>) {
        // A panic while changing leaves the maps usable: the next word on the pod puts them right.
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = known.pods.remove(name).and_then(|old| place(name, &old))
            && let Some(count) = known.accounts.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                known.accounts.remove(&key);
            }
        }
        let Some(facts) = facts else { return };
        if let Some(key) = place(name, &facts) {
            *known.accounts.entry(key).or_default() += 1;
        }
        known.pods.insert(name.clone(), facts);
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<NamespacedName> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).pods.keys().cloned().collect()
    }
}

impl PodDirectory for Directory {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.pods.get(&NamespacedName::new(namespace, name)).cloned()
    }

    fn runs_on_node(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let key = (node.to_owned(), namespace.to_owned(), service_account.to_owned());
        self.known.read().unwrap_or_else(PoisonError::into_inner).accounts.contains_key(&key)
    }
}

/// Where a pod counts; nothing if a node proxy has no business with it.
fn place(name: &NamespacedName, facts: &PodFacts) -> Option<(String, String, String)> {
    let counts = facts.runs && facts.enrolled && !facts.node.is_empty();
    counts.then(|| (facts.node.clone(), name.namespace.to_string(), facts.service_account.clone()))
}
