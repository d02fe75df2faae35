//! Where a route leads, without a way around anybody's policies.

use std::{net::SocketAddr, sync::Arc};

use ambit_mesh::{
    View,
    view::{Gateway, GatewayRef, ServiceKey, routes::BackendService},
};
use ambit_policy::{Compiled, ConnectionFacts, Decision};
use ambit_xds::workload::AppProtocol;

use crate::{record::refusal, request::Checked, session::Session};

/// Where a request or connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To what the client asked for.
    Target,
    /// To the endpoints of a service.
    Service {
        /// The service.
        key: ServiceKey,
        /// Its port.
        port: u16,
        /// The part of them that is meant, if not all.
        subset: Option<Arc<str>>,
    },
    /// To a service, through the waypoint that guards it.
    Waypoint {
        /// The waypoint's own service.
        waypoint: ServiceKey,
        /// Port on which that terminates HBONE.
        port: u16,
        /// Address and port of the service.
        beyond: SocketAddr,
    },
}

/// A way, and what has to be asked before it is taken.
pub(super) struct Leads {
    pub(super) way: Way,
    /// What the service's port speaks.
    pub(super) protocol: AppProtocol,
    pub(super) judge: Option<Judge>,
}

/// Policies of a service whose owner isn't the route's: they have a say, too. Providers aren't asked for them, and no
/// tokens are believed, since those were verified by the rules of another service.
pub(super) struct Judge {
    policies: Arc<Compiled>,
    address: SocketAddr,
}

/// Where a route's backend is reached.
///
/// # Errors
/// Why it can't be.
pub(super) fn resolve(session: &Session, view: &View, backend: &BackendService) -> Result<Leads, String> {
    let name = &backend.key.hostname;
    let service = view.service(&backend.key).ok_or_else(|| format!("there is no service `{name}`"))?;
    let port = service.ports.get(&backend.port);
    let port = port.ok_or_else(|| format!("service `{name}` has no port {}", backend.port))?;
    let direct = || Way::Service { key: backend.key.clone(), port: backend.port, subset: backend.subset.clone() };
    let address = || {
        let vip = service.vips.first().ok_or_else(|| format!("service `{name}` has no address"))?;
        Ok::<_, String>(SocketAddr::new(*vip, backend.port))
    };
    let config = &session.shared.config;
    let bundle = view.waypoint(&config.namespace, &config.name);
    let protocol = port.protocol;
    if let Some(policies) = bundle.and_then(|bundle| bundle.services.get(&backend.key)) {
        let judge =
            if backend.foreign { Some(Judge { policies: Arc::clone(policies), address: address()? }) } else { None };
        return Ok(Leads { way: direct(), protocol, judge });
    }
    if backend.subset.is_some() {
        return Err(format!("service `{name}` isn't bound to this waypoint, so it has no subsets here"));
    }
    let way = match (&service.waypoint, service.weighted_waypoints.is_empty()) {
        (None, true) => direct(),
        (Some(GatewayRef { destination: Gateway::Service(waypoint), hbone_port }), true) => {
            Way::Waypoint { waypoint: waypoint.clone(), port: *hbone_port, beyond: address()? }
        }
        _ => return Err(format!("the waypoint of service `{name}` can't be reached from here")),
    };
    Ok(Leads { way, protocol, judge: None })
}

// === impl Judge ===

impl Judge {
    /// What they say of a request, as it will be sent.
    pub(super) fn request(&self, session: &Session, checked: &Checked) -> Decision {
        let residual = self.policies.for_connection(&self.facts(session));
        if residual.has_custom() {
            return refusal(PROVIDER_WANTED);
        }
        let facts = checked.facts().with_claims(None);
        let decision = residual.decide(&facts);
        if decision.is_allowed() { decision } else { residual.with_reason(decision, Some(&facts)) }
    }

    /// What they say of a connection.
    pub(super) fn connection(&self, session: &Session) -> Decision {
        let residual = self.policies.for_connection(&self.facts(session));
        if residual.has_custom() {
            return refusal(PROVIDER_WANTED);
        }
        let decision = residual.decide_connection();
        if decision.is_allowed() { decision } else { residual.with_reason(decision, None) }
    }

    fn facts(&self, session: &Session) -> ConnectionFacts {
        let client = &session.client;
        ConnectionFacts::new(client.address.ip().to_canonical(), self.address.ip().to_canonical(), self.address.port())
            .with_peer(client.identity.clone())
    }
}

const PROVIDER_WANTED: &str =
    "a route leads to a service of another namespace whose CUSTOM policies aren't asked for it";
