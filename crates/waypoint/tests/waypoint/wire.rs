//! Configuration as a waypoint is sent it.

use ambit_xds::{
    DeltaResponse, Resource, WAYPOINT_TYPE,
    security::Policy,
    waypoint::{BoundService, Bundle},
};
use prost::Message;
use serde_json::Value;

use crate::mesh::{HOSTNAME, NAMESPACE};

/// A policy of the service's namespace.
pub fn policy(policy: &Value) -> Policy {
    Policy {
        namespace: NAMESPACE.to_owned(),
        name: policy["name"].as_str().expect("named").to_owned(),
        json: policy.to_string().into_bytes(),
        ..Policy::default()
    }
}

/// The service, with these policies and nothing else.
pub fn service(policies: &[Value]) -> BoundService {
    BoundService {
        namespace: NAMESPACE.to_owned(),
        hostname: HOSTNAME.to_owned(),
        policies: policies.iter().map(policy).collect(),
        ..BoundService::default()
    }
}

/// What the waypoint serves.
pub fn bundle(services: Vec<BoundService>) -> Bundle {
    Bundle { namespace: NAMESPACE.to_owned(), name: "waypoint".to_owned(), services, ..Bundle::default() }
}

/// The same on its way.
pub fn response(bundle: &Bundle) -> DeltaResponse {
    let (name, version) = (format!("{NAMESPACE}/waypoint"), String::new());
    let resource = Resource { name, version, value: bundle.encode_to_vec() };
    DeltaResponse { type_url: WAYPOINT_TYPE.to_owned(), resources: vec![resource], removed: Vec::new() }
}
