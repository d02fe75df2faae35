//! The policies that a proxy knows, for its operators.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use ambit_api::AuthorizationPolicy;
use ambit_xds::security::Scope;

use super::Store;

/// A policy as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// `namespace/name`
    pub name: Arc<str>,
    /// What it applies to.
    pub scope: Scope,
    /// What it says; nothing of a dry run, which takes part in no verdict. An error is why what it applies to is denied.
    pub policy: Result<Option<AuthorizationPolicy>, String>,
}

// === impl Store ===

impl Store {
    /// Every policy, by name. Copies them all: not for the path of a connection.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyRecord> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).policies().list().collect()
    }

    /// The selector policies that workloads name, by uid. Copies them all: not for the path of a connection.
    #[must_use]
    pub fn named_policies(&self) -> HashMap<Arc<str>, Vec<Arc<str>>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.named_policies().map(|(uid, names)| (Arc::clone(uid), names)).collect()
    }
}
