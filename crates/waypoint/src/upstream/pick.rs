//! Which endpoint a session's next request or connection goes to.

use std::net::SocketAddr;

use ambit_mesh::View;

use super::Error;
use crate::{
    balance::{self, Endpoint},
    destination::Aim,
    route::Way,
    session::{Addressee, Session},
};

// === impl Session ===

impl Session {
    /// An endpoint of the service, or the workload itself, or of what a route leads to; none of those tried.
    pub(super) fn pick(&self, view: &View, aim: &Aim<'_>, tried: &[SocketAddr]) -> Option<Endpoint> {
        let shared = &*self.shared;
        if let Some(active) = &aim.active {
            return aim.pick(active, self, view, tried);
        }
        match aim.way {
            Way::Target => {}
            Way::Service { key, port, .. } => return balance::pick(view, key, *port, tried, shared),
            Way::Waypoint { waypoint, port, beyond } => {
                let endpoint = balance::pick(view, waypoint, *port, tried, shared)?;
                return Some(Endpoint { beyond: Some(*beyond), ..endpoint });
            }
        }
        let address = self.target.address;
        match &self.target.addressee {
            Addressee::Service(key) => balance::pick(view, key, address.port(), tried, shared),
            Addressee::Workload(uid) => {
                Endpoint::at(view.workload(uid)?, address).filter(|endpoint| !tried.contains(&endpoint.address))
            }
        }
    }

    /// Whether it could still be picked.
    pub(crate) fn is_usable(&self, view: &View, way: &Way, endpoint: &Endpoint) -> bool {
        match way {
            Way::Target => {}
            Way::Service { key, port, subset: None } => return endpoint.is_usable(view, key, *port),
            Way::Service { subset: Some(_), .. } => return false,
            Way::Waypoint { .. } => return false,
        }
        let address = self.target.address;
        match &self.target.addressee {
            Addressee::Service(key) => endpoint.is_usable(view, key, address.port()),
            Addressee::Workload(uid) => {
                let now = view.workload(uid).and_then(|workload| Endpoint::at(workload, address));
                now.is_some_and(|now| now == *endpoint)
            }
        }
    }

    pub(super) fn no_endpoint(&self, way: &Way) -> Error {
        if let Way::Service { key, port, .. } | Way::Waypoint { waypoint: key, port, .. } = way {
            return Error::NoEndpoint { service: key.hostname.to_string(), port: *port };
        }
        let (name, port) = (self.target.name.to_string(), self.target.address.port());
        match &self.target.addressee {
            Addressee::Service(_) => Error::NoEndpoint { service: name, port },
            Addressee::Workload(_) => Error::Gone { workload: name, address: self.target.address.ip() },
        }
    }
}
