//! The HTTP connections of one client tunnel.

use std::sync::{Arc, Mutex, PoisonError};

use ambit_mesh::View;
use hyper::client::conn;

use super::{
    Body, Protocol, Trail,
    connect::{Sender, connect, handshake},
    error::{Broken, Error, describe},
};
use crate::{
    balance::Endpoint,
    destination::{Aim, Lease, Slot, Use},
    limits::{MAX_ENDPOINT_TRIES, MAX_IDLE_UPSTREAMS, REUSE_WAIT},
    record::Entry,
    session::Session,
};

/// HTTP connections of one client tunnel to the endpoints it has used.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    http1: Mutex<Vec<Http1>>,
    http2: Mutex<Vec<Http2>>,
}

/// A connection on which a request can be sent now.
pub(super) struct Reached {
    pub(super) endpoint: Endpoint,
    pub(super) sender: Sender,
    /// It has been used before.
    pub(super) reused: bool,
    /// Its use, where that is bounded.
    pub(super) on: Option<Use>,
}

#[derive(Debug)]
struct Http1 {
    endpoint: Endpoint,
    sender: conn::http1::SendRequest<Body>,
    lease: Option<Arc<Lease>>,
}

#[derive(Debug)]
struct Http2 {
    endpoint: Endpoint,
    sender: conn::http2::SendRequest<Body>,
    lease: Option<Arc<Lease>>,
}

// === impl Upstreams ===

impl Upstreams {
    /// A connection of the session on which a request can be sent now.
    pub(super) async fn reach(
        session: &Session,
        view: &View,
        aim: &Aim<'_>,
        protocol: Protocol,
        may_reuse: bool,
        trail: &mut Trail,
        entry: &mut Entry,
    ) -> Result<Reached, Error> {
        let upstreams = &session.upstreams;
        // Those who have had it get it again only if there is nobody else.
        let mut tried = trail.before().to_vec();
        let mut avoided = tried.len();
        let mut last = None;
        let mut waiting = None;
        while tried.len() - avoided < MAX_ENDPOINT_TRIES {
            let Some(endpoint) = session.pick(view, aim, &tried) else {
                if avoided == 0 {
                    break;
                }
                tried.drain(..std::mem::take(&mut avoided));
                continue;
            };
            if may_reuse && let Some((sender, on)) = upstreams.take(protocol, &endpoint).await {
                return Ok(Reached { endpoint, sender, reused: true, on });
            }
            let slot = match aim.cluster() {
                None => None,
                Some(cluster) => {
                    if waiting.is_none() {
                        waiting = Some(cluster.pending()?);
                    }
                    Some(cluster.room_soon().await?)
                }
            };
            // Rare and large: the future of every request would have room for it.
            match Box::pin(upstreams.open(session, aim, &endpoint, protocol, slot, entry)).await {
                Ok((sender, on)) => return Ok(Reached { endpoint, sender, reused: false, on }),
                Err(error) => last = Some(error),
            }
            tried.push(endpoint.address);
            trail.unreachable(endpoint.address);
        }
        Err(last.unwrap_or_else(|| session.no_endpoint(aim.way)))
    }

    /// A new connection.
    async fn open(
        &self,
        session: &Session,
        aim: &Aim<'_>,
        endpoint: &Endpoint,
        protocol: Protocol,
        slot: Option<Slot>,
        entry: &mut Entry,
    ) -> Result<(Sender, Option<Use>), Error> {
        let stream = connect(session, aim, endpoint, entry).await?;
        let lease = aim.cluster().map(|cluster| cluster.lease(slot.unwrap_or_default()));
        let on = lease.as_ref().and_then(Lease::begin);
        let opened = handshake(stream, protocol, &session.shared.tasks, lease).await;
        let sender = opened.map_err(|error| {
            if let Some(host) = &endpoint.host {
                host.failed();
            }
            let (address, reason, broken) = (endpoint.address, describe(&error), Broken::of(&error));
            Error::Exchange { address, reason, refused: false, broken }
        })?;
        Ok((sender, on))
    }

    async fn take(&self, protocol: Protocol, endpoint: &Endpoint) -> Option<(Sender, Option<Use>)> {
        match protocol {
            Protocol::Http1 => {
                let Http1 { mut sender, lease, .. } = {
                    let mut idle = self.http1.lock().unwrap_or_else(PoisonError::into_inner);
                    idle.retain(|connection| !connection.sender.is_closed());
                    let mine = |connection: &Http1| connection.endpoint == *endpoint;
                    let ready = |connection: &Http1| mine(connection) && connection.sender.is_ready();
                    let position = idle.iter().position(ready).or_else(|| idle.iter().position(mine))?;
                    idle.swap_remove(position)
                };
                if !sender.is_ready() {
                    match tokio::time::timeout(REUSE_WAIT, sender.ready()).await {
                        Ok(ready) => ready.ok()?,
                        Err(_elapsed) => {
                            self.put_back(endpoint.clone(), Sender::Http1(sender), lease);
                            return None;
                        }
                    }
                }
                let on = Lease::begin_any(lease.as_ref())?;
                Some((Sender::Http1(sender), on))
            }
            Protocol::Http2 => {
                let mut open = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
                open.retain(|connection| !connection.sender.is_closed());
                open.retain(|connection| connection.lease.as_ref().is_none_or(|lease| lease.lasts()));
                let found = open.iter().find(|connection| connection.endpoint == *endpoint)?;
                let on = Lease::begin_any(found.lease.as_ref())?;
                Some((Sender::Http2(found.sender.clone()), on))
            }
        }
    }

    pub(super) fn put_back(&self, endpoint: Endpoint, sender: Sender, lease: Option<Arc<Lease>>) {
        if lease.as_ref().is_some_and(|lease| !lease.lasts()) {
            return;
        }
        match sender {
            Sender::Http1(sender) => {
                let mut idle = self.http1.lock().unwrap_or_else(PoisonError::into_inner);
                // One that doesn't fit ends when its response has.
                if idle.len() < MAX_IDLE_UPSTREAMS && !sender.is_closed() {
                    idle.push(Http1 { endpoint, sender, lease });
                }
            }
            Sender::Http2(sender) => {
                let mut open = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
                let known = open.iter().any(|connection| connection.endpoint == endpoint);
                if !known && open.len() < MAX_IDLE_UPSTREAMS {
                    open.push(Http2 { endpoint, sender, lease });
                }
            }
        }
    }
}
