//! How endpoints are treated where a DestinationRule says so: which of them gets the next request, how much they get at
//! once, and when one of them gets nothing for a while. Where none says, nothing of this is looked at.

mod candidates;
mod clusters;
mod hash;
mod lease;
mod outliers;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_mesh::{
    View, loads,
    view::{
        ServiceKey,
        destinations::{Balancer, Destination, Members, UpstreamHttp},
    },
};
use http::{HeaderMap, Request, Response, Version};

use self::clusters::Permit;
pub(crate) use self::{
    clusters::{Cluster, Clusters},
    lease::{Lease, Slot, Use},
    outliers::Host,
};
use crate::{
    balance::Endpoint,
    route::Way,
    session::Session,
    shared::Shared,
    upstream::{Error, Protocol},
};

/// How the endpoints that a way leads to are treated.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) cluster: Arc<Cluster>,
    /// Who belongs to the subset, if it is one.
    pub(super) members: Option<Arc<Members>>,
}

/// The same, or why nothing may go there.
pub(crate) type Settled = Result<Active, Arc<str>>;

/// Where one request or connection goes.
#[derive(Debug)]
pub(crate) struct Aim<'a> {
    pub(crate) way: &'a Way,
    pub(crate) active: Option<Active>,
    /// What it is assigned to its endpoint by.
    hash: Option<u64>,
}

/// One connection or request in flight at an endpoint, until dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    _load: loads::InFlight,
    /// The connection that it is on.
    _use: Option<Use>,
    _slot: Option<Slot>,
    permit: Option<Permit>,
    /// How long a connection that isn't HTTP may be silent, and how long it may last.
    bounds: Bounds,
    /// The endpoint, where what it does is counted.
    host: Option<Arc<Host>>,
    /// It has answered a gRPC call, and hasn't said yet how that went.
    is_open: bool,
}

/// A retry in flight.
#[derive(Debug)]
pub(crate) struct Retry(#[expect(dead_code, reason = "it is held")] Option<Permit>);

/// How long a connection that isn't HTTP may be silent, and how long it may last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    /// Nothing for the usual, nothing inside for ever.
    pub(crate) idle: Option<Option<Duration>>,
    pub(crate) longest: Option<Duration>,
}

const GRPC_STATUS: &str = "grpc-status";

/// How the endpoints of a service's port are treated; nothing for the usual.
pub(crate) fn settle(
    shared: &Shared,
    destination: Option<&Arc<Destination>>,
    key: &ServiceKey,
    port: u16,
    subset: Option<&Arc<str>>,
) -> Option<Settled> {
    let Some(destination) = destination else {
        let missing = |name| Err(format!("service `{}` has no subset `{name}`", key.hostname).into());
        return subset.map(missing);
    };
    if let Some(reason) = &destination.closed {
        return Some(Err(Arc::clone(reason)));
    }
    let (treatment, members) = match subset {
        None => (destination.treatment(port), None),
        Some(name) => match destination.subset(name) {
            Some(subset) => (subset.treatment(port), Some(Arc::clone(&subset.members))),
            None => return Some(Err(format!("service `{}` has no subset `{name}`", key.hostname).into())),
        },
    };
    let cluster = shared.clusters.get(shared, key, port, subset, treatment);
    Some(Ok(Active { cluster, members }))
}

/// How the endpoints that a way leads to are treated; nothing for the usual.
///
/// # Errors
/// Nothing may go there.
pub(crate) fn of(session: &Session, view: &View, way: &Way) -> Result<Option<Active>, Error> {
    let settled = match way {
        Way::Target => session.destination.load().as_deref().cloned(),
        Way::Service { key, port, subset } => {
            let config = &session.shared.config;
            let bundle = view.waypoint(&config.namespace, &config.name);
            let destination = bundle.and_then(|bundle| bundle.destinations.get(key));
            settle(&session.shared, destination, key, *port, subset.as_ref())
        }
        // Its own waypoint treats them.
        Way::Waypoint { .. } => None,
    };
    settled.transpose().map_err(|reason| Error::Closed { reason: reason.to_string() })
}

/// What is spoken to an endpoint: what the port says (`usual`), unless a rule says otherwise. Where nothing may go, that
/// shows when it is sent.
pub(crate) fn protocol<B: http_body::Body>(
    session: &Session,
    view: &View,
    way: &Way,
    usual: Protocol,
    request: &Request<B>,
) -> Protocol {
    let Ok(Some(active)) = of(session, view, way) else { return usual };
    match active.cluster.treatment.http {
        UpstreamHttp::Client if request.version() == Version::HTTP_2 => Protocol::Http2,
        UpstreamHttp::Client => Protocol::Http1,
        // Other protocols are switched to in HTTP/1.1 only.
        UpstreamHttp::Http2 if crate::request::upgrade(request).is_none() => Protocol::Http2,
        UpstreamHttp::Http2 | UpstreamHttp::Port => usual,
    }
}

/// A retry in flight, counted until it is dropped; nothing if there are as many as there may be.
pub(crate) fn retry(session: &Session, view: &View, way: &Way) -> Option<Retry> {
    match of(session, view, way) {
        Ok(Some(active)) => active.cluster.retry().map(|permit| Retry(Some(permit))),
        Ok(None) | Err(_) => Some(Retry(None)),
    }
}

// === impl Aim ===

impl<'a> Aim<'a> {
    /// Where a request goes.
    ///
    /// # Errors
    /// Nothing may go there.
    pub(crate) fn request<B>(
        session: &Session,
        view: &View,
        way: &'a Way,
        request: &Request<B>,
    ) -> Result<Self, Error> {
        let active = of(session, view, way)?;
        let hash = active.as_ref().and_then(|active| match &active.cluster.treatment.balancer {
            Balancer::Hash(by) => hash::of_request(by, request, session.client.address.ip()),
            _ => None,
        });
        Ok(Self { way, active, hash })
    }

    /// Where a connection goes.
    ///
    /// # Errors
    /// Nothing may go there.
    pub(crate) fn connection(session: &Session, view: &View, way: &'a Way) -> Result<Self, Error> {
        let active = of(session, view, way)?;
        let hash = active.as_ref().and_then(|active| match &active.cluster.treatment.balancer {
            Balancer::Hash(by) => hash::of_connection(by, session.client.address.ip()),
            _ => None,
        });
        Ok(Self { way, active, hash })
    }

    /// The cluster, if the endpoints are treated in any way.
    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.active.as_ref().map(|active| &active.cluster)
    }

    /// An endpoint as the rule has it, none of those tried.
    pub(crate) fn pick(
        &self,
        active: &Active,
        session: &Session,
        view: &View,
        tried: &[SocketAddr],
    ) -> Option<Endpoint> {
        let shared = &session.shared;
        active.cluster.pick(active.members.as_ref(), view, shared, tried, self.hash)
    }
}

// === impl InFlight ===

impl InFlight {
    /// Counts it until the returned value is dropped.
    pub(crate) fn new(shared: &Shared, endpoint: &Endpoint, on: Option<Use>, permit: Option<Permit>) -> Self {
        let load = shared.loads.add(endpoint.load_key());
        let host = endpoint.host.clone();
        Self { _load: load, _use: on, _slot: None, permit, bounds: Bounds::default(), host, is_open: false }
    }

    /// Counts a connection that isn't HTTP until the returned value is dropped.
    pub(crate) fn connection(shared: &Shared, endpoint: &Endpoint, aim: &Aim<'_>, slot: Option<Slot>) -> Self {
        let bounds = aim.cluster().map_or_else(Bounds::default, |cluster| {
            let limits = &cluster.treatment.limits;
            Bounds { idle: limits.tcp_idle_timeout, longest: limits.connection_duration }
        });
        Self { _slot: slot, bounds, ..Self::new(shared, endpoint, None, None) }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// The endpoint has answered a request (`is_call`: a gRPC call).
    pub(crate) fn answered<B: http_body::Body>(&mut self, response: &Response<B>, is_call: bool) {
        let Some(host) = &self.host else { return };
        // Without a body there are no trailers either.
        let is_call = is_call && (!response.body().is_end_stream() || response.headers().contains_key(GRPC_STATUS));
        self.is_open = host.answered(response.status(), response.headers(), is_call);
    }

    /// Its answer has ended with these trailers.
    pub(crate) fn ended(&mut self, trailers: &HeaderMap) {
        if let Some(host) = self.host.as_ref().filter(|_| self.is_open) {
            host.ended(trailers);
        }
        self.is_open = false;
    }

    /// The endpoint broke its answer off.
    pub(crate) fn broke_off(&mut self) {
        self.is_open = false;
        if let Some(host) = &self.host {
            host.failed();
        }
    }

    /// What stays of it when it is sent again.
    pub(crate) fn into_permit(self) -> Option<Permit> {
        self.permit
    }
}
