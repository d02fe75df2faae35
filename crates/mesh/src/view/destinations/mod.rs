//! How the endpoints of a waypoint's services are treated, compiled from DestinationRules: what a request looks up is a
//! table by port, and nothing of it is parsed again.

mod compile;
mod locality;
mod model;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::ServiceKey;

pub(super) use self::compile::compile;
pub use self::{
    locality::{LocalityPattern, Nearness, Share},
    model::{Balancer, HashBy, Limits, Outliers, Treatment, UpstreamHttp},
};

/// Treatments by the service that they are for. A service without any isn't here.
pub type Destinations = HashMap<ServiceKey, Arc<Destination>>;

/// Uids of workloads.
pub type Members = HashSet<Arc<str>>;

/// How the endpoints of one service are treated.
#[derive(Debug, Default)]
pub struct Destination {
    /// Why nothing may reach it.
    pub closed: Option<Arc<str>>,
    whole: Ports,
    subsets: HashMap<Arc<str>, Subset>,
}

/// A named part of the endpoints.
#[derive(Debug)]
pub struct Subset {
    /// Who belongs to it.
    pub members: Arc<Members>,
    ports: Ports,
}

/// Treatments by port.
#[derive(Debug, Default)]
struct Ports {
    others: Arc<Treatment>,
    by_port: HashMap<u16, Arc<Treatment>>,
}

// === impl Destination ===

impl Destination {
    /// How all endpoints are treated on a port.
    #[must_use]
    pub fn treatment(&self, port: u16) -> &Arc<Treatment> {
        self.whole.of(port)
    }

    /// The subset of this name.
    #[must_use]
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.get(name)
    }
}

// === impl Subset ===

impl Subset {
    /// How its endpoints are treated on a port.
    #[must_use]
    pub fn treatment(&self, port: u16) -> &Arc<Treatment> {
        self.ports.of(port)
    }
}

// === impl Ports ===

impl Ports {
    fn of(&self, port: u16) -> &Arc<Treatment> {
        self.by_port.get(&port).unwrap_or(&self.others)
    }
}
