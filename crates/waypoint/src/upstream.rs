//! The way to the backend: an endpoint, a tunnel to it under the waypoint's own identity, and HTTP inside.
//!
//! INVARIANT: [`Upstreams`] belongs to one client tunnel, so no upstream connection ever carries the requests of two
//! identities.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use ambit_hbone::{Connect, ConnectError, Tunnel, copy::Reset, socket};
use ambit_mesh::View;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, request};
use http_body::Body as _;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    balance::{self, Endpoint},
    destination::{Aim, InFlight, Lease, Slot, Use},
    limits::{
        HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, HTTP2_SEND_BUFFER_BYTES, HTTP2_STREAM_WINDOW_BYTES,
        MAX_ENDPOINT_TRIES, MAX_HEADER_BYTES, MAX_HTTP1_BUFFER_BYTES, MAX_IDLE_UPSTREAMS, REUSE_WAIT,
    },
    record::{Entry, micros_since},
    respond,
    route::Way,
    session::{Addressee, Client, Session},
    shared::{Shared, Tasks},
};

/// Bodies in both directions.
pub(crate) type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// HTTP version spoken to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// HTTP connections of one client tunnel to the endpoints it has used.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    http1: Mutex<Vec<Http1>>,
    http2: Mutex<Vec<Http2>>,
}

/// A byte stream to an endpoint.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Through HBONE.
    Tunnel(Box<Tunnel>),
    /// To a workload that isn't in the mesh.
    Plain(TcpStream),
}

/// Why no endpoint answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is none to try.
    #[error("service `{service}` has no healthy endpoint for port {port}")]
    NoEndpoint {
        /// `namespace/name`.
        service: String,
        /// The service's port.
        port: u16,
    },
    /// The workload that was asked for by its address has it no longer.
    #[error("workload `{workload}` no longer has address `{address}`")]
    Gone {
        /// `namespace/name`.
        workload: String,
        /// Its address until now.
        address: IpAddr,
    },
    /// It can't be reached.
    #[error("endpoint `{address}` can't be reached: {reason}")]
    Connect {
        /// Pod address and target port.
        address: SocketAddr,
        /// What failed.
        reason: String,
    },
    /// Nothing may go there.
    #[error("{reason}")]
    Closed {
        /// Which rule says so, and why.
        reason: String,
    },
    /// As much goes there as may.
    #[error("service `{service}` has as many {what} as its DestinationRule allows")]
    Overflow {
        /// Full name.
        service: String,
        /// Of what.
        what: &'static str,
    },
    /// Routes lead nowhere.
    #[error("{reason}")]
    Route {
        /// Which, and why.
        reason: String,
    },
    /// The client didn't send its request to the end, or not in a form that can be read.
    #[error("the request's body can't be read: {reason}")]
    Request {
        /// What failed.
        reason: String,
    },
    /// It was reached and gave no answer.
    #[error("endpoint `{address}` gave no answer: {reason}")]
    Exchange {
        /// Pod address and target port.
        address: SocketAddr,
        /// What failed.
        reason: String,
        /// It said that it has done nothing.
        refused: bool,
        /// How it broke off.
        broken: Broken,
    },
}

/// How an exchange with an endpoint broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection ended.
    Closed,
    /// The endpoint reset the stream.
    Reset,
    /// What it sent can't be read.
    Unreadable,
}

/// Sends a request to an endpoint of the session's target and waits for the response's head.
///
/// # Errors
/// When no endpoint can be reached, or the one that was reached gave no answer and the request can't be repeated.
pub(crate) async fn send(
    session: &Session,
    view: &View,
    way: &Way,
    protocol: Protocol,
    mut request: Request<Body>,
    entry: &mut Entry,
) -> Result<(Response<Incoming>, InFlight), Error> {
    let aim = Aim::request(session, view, way, &request)?;
    let mut permit = aim.cluster().map(|cluster| cluster.request()).transpose()?.flatten();
    let mut may_reuse = true;
    loop {
        let Reached { endpoint, mut sender, reused, on } =
            session.upstreams.reach(session, view, &aim, protocol, may_reuse, entry).await?;
        entry.endpoint(&endpoint);
        let lease = on.as_ref().map(|on| Arc::clone(on.lease()));
        let in_flight = InFlight::new(&session.shared, &endpoint, on, permit.take());
        // Only a connection that was idle can turn out to have been closed meanwhile.
        let spare = if reused { Spare::of(&request) } else { None };
        let start = Instant::now();
        let failure = match sender.send(request).await {
            Ok(response) => {
                entry.answered(micros_since(start));
                if let Some(host) = &endpoint.host {
                    host.answered(response.status(), response.headers());
                }
                session.upstreams.put_back(endpoint, sender, lease);
                return Ok((response, in_flight));
            }
            Err(failure) => failure,
        };
        let reason = describe(&failure.error);
        // Hyper's word for errors of the body it was given to send.
        if failure.error.is_user() {
            return Err(Error::Request { reason });
        }
        let refused = is_refused(&failure.error);
        let broken = Broken::of(&failure.error);
        let error = Error::Exchange { address: endpoint.address, reason, refused, broken };
        request = match (reused, failure.unsent, spare) {
            (true, Some(unsent), _) => unsent,
            (true, None, Some(spare)) => spare.restore(),
            _ => {
                if let Some(host) = &endpoint.host {
                    host.failed();
                }
                return Err(error);
            }
        };
        may_reuse = false;
        permit = in_flight.into_permit();
    }
}

/// Opens a byte stream to one of the target's endpoints.
///
/// # Errors
/// When none of the tried ones can be reached.
pub(crate) async fn open(
    session: &Session,
    view: &View,
    way: &Way,
    entry: &mut Entry,
) -> Result<(Endpoint, Stream, InFlight), Error> {
    let aim = Aim::connection(session, view, way)?;
    let slot = aim.cluster().map(|cluster| cluster.room()).transpose()?;
    let mut tried = Vec::new();
    let mut last = None;
    while tried.len() < MAX_ENDPOINT_TRIES {
        let Some(endpoint) = session.pick(view, &aim, &tried) else { break };
        match connect(session, &aim, &endpoint, entry).await {
            Ok(stream) => {
                if let Some(host) = &endpoint.host {
                    host.reached();
                }
                let in_flight = InFlight::connection(&session.shared, &endpoint, &aim, slot);
                return Ok((endpoint, stream, in_flight));
            }
            Err(error) => last = Some(error),
        }
        tried.push(endpoint.address);
    }
    Err(last.unwrap_or_else(|| session.no_endpoint(way)))
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

/// A connection on which a request can be sent now.
struct Reached {
    endpoint: Endpoint,
    sender: Sender,
    /// It has been used before.
    reused: bool,
    /// Its use, where that is bounded.
    on: Option<Use>,
}

enum Sender {
    Http1(conn::http1::SendRequest<Body>),
    Http2(conn::http2::SendRequest<Body>),
}

struct SendFailure {
    error: hyper::Error,
    /// The request, if no byte of it was sent.
    unsent: Option<Request<Body>>,
}

/// A request that may be sent again: it has no body, and doing it twice is doing it once.
struct Spare(request::Parts);

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const AMBIT_SOURCE: HeaderName = HeaderName::from_static("ambit-source");

async fn connect(session: &Session, aim: &Aim<'_>, endpoint: &Endpoint, entry: &mut Entry) -> Result<Stream, Error> {
    let start = Instant::now();
    let shared = &session.shared;
    let usual = shared.config.limits.connect_timeout;
    let timeout = aim.cluster().map_or(usual, |cluster| cluster.connect_timeout(usual));
    let opened = tokio::time::timeout(timeout, async {
        if endpoint.workload.hbone {
            let tunnel = shared.pool.connect(tunnel_to(shared, &session.client, endpoint)).await;
            tunnel.map(|tunnel| Stream::Tunnel(Box::new(tunnel))).map_err(|error: ConnectError| error.to_string())
        } else {
            let options = socket::ConnectOptions { mark: shared.config.mark, ..Default::default() };
            let stream = socket::connect(&*shared.network, endpoint.address, &options).await;
            stream.map(Stream::Plain).map_err(|error| error.to_string())
        }
    });
    let outcome = opened.await.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned()));
    entry.connected(micros_since(start));
    outcome.map_err(|reason| {
        entry.endpoint(endpoint);
        if let Some(host) = &endpoint.host {
            host.failed();
        }
        Error::Connect { address: endpoint.address, reason }
    })
}

fn tunnel_to(shared: &Shared, client: &Client, endpoint: &Endpoint) -> Connect {
    let mut headers = HeaderMap::with_capacity(2);
    // Addresses and SPIFFE identities consist of visible ASCII, so both conversions succeed.
    if let Ok(value) = HeaderValue::try_from(format!("for=\"{}\"", client.address)) {
        headers.insert(FORWARDED, value);
    }
    if let Ok(value) = HeaderValue::try_from(client.identity.to_string()) {
        headers.insert(AMBIT_SOURCE, value);
    }
    Connect {
        network: std::sync::Arc::clone(&shared.network),
        source: shared.config.identity.clone(),
        peer: match endpoint.beyond {
            None => SocketAddr::new(endpoint.address.ip(), shared.config.hbone_port),
            Some(_) => endpoint.address,
        },
        expected: vec![endpoint.workload.identity.clone()],
        authority: endpoint.beyond.unwrap_or(endpoint.address).to_string(),
        headers,
        mark: shared.config.mark,
        distant: false,
    }
}

async fn handshake(
    stream: Stream,
    protocol: Protocol,
    tasks: &Tasks,
    lease: Option<Arc<Lease>>,
) -> hyper::Result<Sender> {
    match protocol {
        Protocol::Http1 => {
            let (sender, connection) = conn::http1::Builder::new()
                .max_buf_size(MAX_HTTP1_BUFFER_BYTES)
                .handshake(TokioIo::new(stream))
                .await?;
            tasks.spawn(async move {
                // Its error is also the request's.
                let connection = connection.with_upgrades();
                match lease {
                    None => drop(connection.await),
                    Some(lease) => lease.hold(connection).await,
                }
            });
            Ok(Sender::Http1(sender))
        }
        Protocol::Http2 => {
            let (sender, connection) = conn::http2::Builder::new(tasks.clone())
                .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
                .max_frame_size(HTTP2_FRAME_BYTES)
                .max_header_list_size(MAX_HEADER_BYTES as u32)
                .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
                .handshake(TokioIo::new(stream))
                .await?;
            tasks.spawn(async move {
                match lease {
                    None => drop(connection.await),
                    Some(lease) => lease.hold(connection).await,
                }
            });
            Ok(Sender::Http2(sender))
        }
    }
}

/// True if the endpoint refused an HTTP/2 stream before it looked at it.
fn is_refused(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.and_then(h2::Error::reason) == Some(h2::Reason::REFUSED_STREAM)
}

/// An error with all its causes: hyper's own text leaves them out.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

// === impl Error ===

impl Error {
    /// Envoy's word for it (`response_flags`).
    pub(crate) fn flag(&self) -> &'static str {
        match self {
            Self::NoEndpoint { .. } | Self::Gone { .. } => "UH",
            Self::Connect { .. } => "UF",
            Self::Closed { .. } => "NC",
            Self::Overflow { .. } => "UO",
            Self::Route { .. } => "NR",
            Self::Request { .. } => "DC",
            Self::Exchange { broken, .. } => broken.flag(),
        }
    }
}

// === impl Broken ===

impl Broken {
    fn of(error: &hyper::Error) -> Self {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
        match cause {
            Some(cause) if cause.is_reset() && cause.is_remote() => Self::Reset,
            Some(cause) if cause.is_library() => Self::Unreadable,
            None if error.is_parse() => Self::Unreadable,
            _ => Self::Closed,
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Closed => "UC",
            Self::Reset => "UR",
            Self::Unreadable => "UPE",
        }
    }
}

// === impl Upstreams ===

impl Upstreams {
    /// A connection on which a request can be sent now.
    async fn reach(
        &self,
        session: &Session,
        view: &View,
        aim: &Aim<'_>,
        protocol: Protocol,
        may_reuse: bool,
        entry: &mut Entry,
    ) -> Result<Reached, Error> {
        let mut tried = Vec::new();
        let mut last = None;
        let mut waiting = None;
        while tried.len() < MAX_ENDPOINT_TRIES {
            let Some(endpoint) = session.pick(view, aim, &tried) else { break };
            if may_reuse && let Some((sender, on)) = self.take(protocol, &endpoint).await {
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
            match Box::pin(self.open(session, aim, &endpoint, protocol, slot, entry)).await {
                Ok((sender, on)) => return Ok(Reached { endpoint, sender, reused: false, on }),
                Err(error) => last = Some(error),
            }
            tried.push(endpoint.address);
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

    fn put_back(&self, endpoint: Endpoint, sender: Sender, lease: Option<Arc<Lease>>) {
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

// === impl Sender ===

impl Sender {
    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendFailure> {
        let sent = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut failure| {
            let unsent = failure.take_message();
            SendFailure { error: failure.into_error(), unsent }
        })
    }
}

// === impl Spare ===

impl Spare {
    fn of(request: &Request<Body>) -> Option<Self> {
        let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
        if !request.body().is_end_stream() || !idempotent.contains(request.method()) {
            return None;
        }
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = request.method().clone();
        head.uri = request.uri().clone();
        head.version = request.version();
        head.headers = request.headers().clone();
        Some(Self(head))
    }

    fn restore(self) -> Request<Body> {
        Request::from_parts(self.0, respond::empty())
    }
}

// === impl Session ===

impl Session {
    /// An endpoint of the service, or the workload itself, or of what a route leads to; none of those tried.
    fn pick(&self, view: &View, aim: &Aim<'_>, tried: &[SocketAddr]) -> Option<Endpoint> {
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

    fn no_endpoint(&self, way: &Way) -> Error {
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

/// Makes any body one of ours.
pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    body.map_err(Into::into).boxed_unsync()
}

// === impl Stream ===

impl Reset for Stream {
    fn reset(&mut self) {
        match self {
            Self::Tunnel(tunnel) => tunnel.reset(),
            Self::Plain(stream) => stream.reset(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_read(cx, buffer),
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_write(cx, bytes),
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_flush(cx),
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_shutdown(cx),
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
