//! The policies that a proxy knows, for its operators.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use ambit_api::AuthorizationPolicy;
use ambit_xds::{
    security::{Policy, Scope},
    waypoint::{BoundService, Provider, RequestAuthentication, TrafficPolicy},
};

use super::{Settings, Store};

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

/// What a waypoint fronts, as it arrived.
#[derive(Clone, Debug)]
pub struct BundleRecord {
    /// The services, by namespace and name.
    pub services: Vec<BoundService>,
    /// Policies of every workload that it fronts.
    pub workload_policies: Vec<Policy>,
    /// The tokens believed for each of those workloads.
    pub workload_authentications: Vec<RequestAuthentication>,
    /// Rate limits and faults of those workloads.
    pub workload_traffic_policies: Vec<TrafficPolicy>,
    /// The external authorizers.
    pub providers: Vec<Provider>,
    /// How it differs from the usual waypoint.
    pub settings: Arc<Settings>,
    /// It couldn't be read, so everything is denied.
    pub closed: bool,
}

// === impl Store ===

impl Store {
    /// The bundle of this waypoint. Copies all of it: not for the path of a connection.
    #[must_use]
    pub fn bundle(&self, namespace: &str, name: &str) -> Option<BundleRecord> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).bundle(&format!("{namespace}/{name}"))
    }

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
