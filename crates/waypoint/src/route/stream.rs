//! TCPRoute and TLSRoute: connections that aren't HTTP.

use std::sync::Arc;

use ambit_mesh::{
    View,
    view::routes::{ServiceRoutes, StreamRule},
};

use super::{
    choose,
    way::{self, Leads, Way},
};
use crate::{
    balance::Endpoint,
    destination::InFlight,
    record::Entry,
    session::{Addressee, Session},
    upstream::{self, Error, Stream},
};

/// True if the server's name that a TLS client asks for says where its connection goes.
pub(crate) fn needs_server_name(session: &Session, view: &View) -> bool {
    let (client, port) = place(session);
    routes(session, view).is_some_and(|routes| routes.tls(client, port).is_some())
}

/// Opens a byte stream to where the routes lead, or to the target itself if there are none.
///
/// # Errors
/// When none of the tried endpoints can be reached, or the routes lead nowhere.
pub(crate) async fn open(
    session: &Session,
    view: &View,
    server_name: Option<&str>,
    entry: &mut Entry,
) -> Result<(Endpoint, Stream, InFlight), Error> {
    let way = way_of(session, view, server_name)?;
    upstream::open(session, view, &way, entry).await
}

/// Where the routes lead.
///
/// # Errors
/// When that is nowhere.
pub(crate) fn way_of(session: &Session, view: &View, server_name: Option<&str>) -> Result<Way, Error> {
    let Some(routes) = routes(session, view) else { return Ok(Way::Target) };
    let (client, port) = place(session);
    let tls = routes.tls(client, port);
    let rule = tls.and_then(|table| table.find(server_name)).or_else(|| routes.tcp(client, port));
    match (rule, tls) {
        (Some(rule), _) => follow(session, view, rule).map_err(|reason| Error::Route { reason }),
        (None, None) => Ok(Way::Target),
        (None, Some(_)) => Err(Error::Route { reason: "no TLSRoute is for the server's name".to_owned() }),
    }
}

fn follow(session: &Session, view: &View, rule: &StreamRule) -> Result<Way, String> {
    let named = |reason: &str| format!("{}: {reason}", rule.name);
    if let Some(fault) = &rule.fault {
        return Err(named(fault));
    }
    let backend = choose(&rule.backends, &session.shared.random).ok_or_else(|| named("no backend has a share"))?;
    let to = backend.to.as_ref().map_err(|reason| named(reason))?;
    let Leads { way, judge, .. } = way::resolve(session, view, to).map_err(|reason| named(&reason))?;
    match judge.map(|judge| judge.connection(session)) {
        Some(decision) if !decision.is_allowed() => Err(named(&decision.reason)),
        _ => Ok(way),
    }
}

fn place(session: &Session) -> (&str, u16) {
    (session.client.identity.namespace(), session.target.address.port())
}

fn routes<'a>(session: &Session, view: &'a View) -> Option<&'a Arc<ServiceRoutes>> {
    let Addressee::Service(key) = &session.target.addressee else { return None };
    let config = &session.shared.config;
    let bundle = view.waypoint(&config.namespace, &config.name)?;
    if bundle.routes.is_empty() { None } else { bundle.routes.get(key) }
}
