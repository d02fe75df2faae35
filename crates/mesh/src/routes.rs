//! Which routes are attached to which Services.

use std::{collections::BTreeMap, sync::Arc};

use ambit_api::{Route as Object, routes::ParentReference};
use ambit_xds::waypoint::AttachedRoute;

use crate::inputs::{Inputs, NamespacedName, Service};

/// A route, with its text for the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    route: Arc<Object>,
    json: Arc<[u8]>,
    rejection: Option<Arc<str>>,
}

/// Kind, namespace and name.
pub type RouteKey = (&'static str, NamespacedName);

/// Ports of a Service that a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All of them.
    All,
    /// These, of which there may be none left.
    These(Vec<u16>),
}

/// The routes that are attached to each Service, by kind, namespace and name.
pub(crate) fn by_service(inputs: &Inputs) -> BTreeMap<NamespacedName, Vec<&Route>> {
    let mut services: BTreeMap<NamespacedName, Vec<&Route>> = BTreeMap::new();
    for route in inputs.routes.values() {
        for service in route.services() {
            let attached = services.entry(service).or_default();
            // Several references to one Service are one attachment.
            if !attached.last().is_some_and(|last| std::ptr::eq(*last, route)) {
                attached.push(route);
            }
        }
    }
    services
}

/// A route as a Service's waypoint gets it; nothing if no port is left that it is attached to.
pub(crate) fn attached(
    inputs: &Inputs,
    route: &Route,
    name: &NamespacedName,
    service: &Service,
) -> Option<AttachedRoute> {
    let ports = match ports(route.get(), name, service) {
        Ports::All => Vec::new(),
        Ports::These(ports) if ports.is_empty() => return None,
        Ports::These(ports) => ports.into_iter().map(u32::from).collect(),
    };
    let object = route.get();
    Some(AttachedRoute {
        kind: object.kind().to_owned(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        json: route.json.to_vec(),
        rejection: route.rejection().unwrap_or_default().to_owned(),
        ports,
        cluster_domain: inputs.settings.cluster_domain.clone(),
    })
}

/// Ports of this Service that a route is attached to.
#[must_use]
pub fn ports(route: &Object, name: &NamespacedName, service: &Service) -> Ports {
    let mut ports = Vec::new();
    for parent in route.parents() {
        if parent.service(&route.namespace) != Some((&name.namespace, &name.name)) {
            continue;
        }
        if parent.port.is_none() && parent.section_name.is_none() {
            return Ports::All;
        }
        ports.extend(service.ports.iter().filter(|port| is_meant(parent, port)).map(|port| port.port));
    }
    ports.sort_unstable();
    ports.dedup();
    Ports::These(ports)
}

/// True if a reference that says which port it means, means this one.
pub(crate) fn is_meant(parent: &ParentReference, port: &crate::inputs::ServicePort) -> bool {
    parent.port.is_none_or(|wanted| wanted == port.port)
        && parent.section_name.as_ref().is_none_or(|name| *name == port.name)
}

// === impl Route ===

impl Route {
    /// Takes a route in.
    #[must_use]
    pub fn new(route: Object) -> Self {
        // Writing plain data as JSON into memory can't fail; were it to, the empty text is refused by every reader, and
        // the route's parents closed.
        let json = serde_json::to_vec(&route).unwrap_or_default().into();
        Self { route: Arc::new(route), json, rejection: None }
    }

    /// Takes in a route that can't be followed: what it is attached to is closed with this reason.
    #[must_use]
    pub fn rejected(route: Object, reason: &str) -> Self {
        Self { rejection: Some(reason.into()), ..Self::new(route) }
    }

    /// The route.
    #[must_use]
    pub fn get(&self) -> &Object {
        &self.route
    }

    /// Why it can't be followed, if it can't.
    #[must_use]
    pub fn rejection(&self) -> Option<&str> {
        self.rejection.as_deref()
    }

    /// Its name among all routes.
    #[must_use]
    pub fn key(&self) -> RouteKey {
        (self.route.kind(), NamespacedName::new(&self.route.namespace, &self.route.name))
    }

    /// The Services that it names as its parents.
    pub(crate) fn services(&self) -> impl Iterator<Item = NamespacedName> {
        let parents = self.route.parents().iter().filter_map(|parent| parent.service(&self.route.namespace));
        parents.map(|(namespace, name)| NamespacedName::new(namespace, name))
    }
}
