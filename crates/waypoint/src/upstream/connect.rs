//! Reaching an endpoint, and agreeing on HTTP with it.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ambit_hbone::{Connect, ConnectError, socket};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::TokioIo;

use super::{Body, Protocol, Stream, error::Error};
use crate::{
    balance::Endpoint,
    destination::{Aim, Lease},
    limits::{
        HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, HTTP2_SEND_BUFFER_BYTES, HTTP2_STREAM_WINDOW_BYTES,
        MAX_HEADER_BYTES, MAX_HTTP1_BUFFER_BYTES,
    },
    record::{Entry, micros_since},
    session::{Client, Session},
    shared::{Shared, Tasks},
};

pub(super) enum Sender {
    Http1(conn::http1::SendRequest<Body>),
    Http2(conn::http2::SendRequest<Body>),
}

pub(super) struct SendFailure {
    pub(super) error: hyper::Error,
    /// The request, if no byte of it was sent.
    pub(super) unsent: Option<Request<Body>>,
}

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const AMBIT_SOURCE: HeaderName = HeaderName::from_static("ambit-source");

pub(super) async fn connect(
    session: &Session,
    aim: &Aim<'_>,
    endpoint: &Endpoint,
    entry: &mut Entry,
) -> Result<Stream, Error> {
    let start = Instant::now();
    let shared = &session.shared;
    let usual = shared.config.limits.connect_timeout;
    let timeout = aim.cluster().map_or(usual, |cluster| cluster.connect_timeout(usual));
    let opened = tokio::time::timeout(timeout, async {
        if endpoint.workload.hbone {
            // Boxed, since it is large and soon over.
            let tunnel = Box::pin(shared.pool.connect(tunnel_to(shared, &session.client, endpoint))).await;
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

pub(super) async fn handshake(
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

// === impl Sender ===

impl Sender {
    pub(super) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendFailure> {
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
