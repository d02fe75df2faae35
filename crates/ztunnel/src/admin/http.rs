//! A small HTTP/1.1 server: few connections, small requests, whole answers.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::{
    HostNetwork,
    socket::{self, ListenOptions},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::limits::{
    ACCEPT_PAUSE, ADMIN_CONNECTION_TIMEOUT, ADMIN_DRAIN, ADMIN_HEADER_TIMEOUT, MAX_ADMIN_BUFFER_BYTES,
    MAX_ADMIN_CONNECTIONS,
};

/// Listens on the loopback addresses of this process's own network: IPv4, and IPv6 if there is one.
///
/// # Errors
/// When the port is taken; the message names the address.
pub fn bind_loopback(port: u16) -> io::Result<Vec<TcpListener>> {
    let first = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let port = first.local_addr()?.port();
    match bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => Ok(vec![first]),
    }
}

/// Listens on all addresses of this process's own network.
///
/// # Errors
/// When the port is taken; the message names the address.
pub fn bind_wildcard(port: u16, ipv6: bool) -> io::Result<Vec<TcpListener>> {
    Ok(vec![bind(socket::wildcard(ipv6, port))?])
}

/// Serves until told to stop, then finishes what was begun.
pub(super) async fn serve<H, F>(listeners: Vec<TcpListener>, handler: H, until: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (places, tasks) = (Arc::new(Semaphore::new(MAX_ADMIN_CONNECTIONS)), TaskTracker::new());
    let loops = listeners.into_iter().map(|listener| accept(listener, &handler, &places, &tasks, &until));
    futures_util::future::join_all(loops).await;
    tasks.close();
    // What isn't finished by then is cut off.
    let _ = timeout(ADMIN_DRAIN, tasks.wait()).await;
}

/// An answer of this type.
pub(super) fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

async fn accept<H, F>(
    listener: TcpListener,
    handler: &H,
    places: &Arc<Semaphore>,
    tasks: &TaskTracker,
    until: &CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            () = until.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting an operator's connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Past the limit the newest is refused; those that are slow are cut off before long.
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { continue };
        let (handler, until) = (handler.clone(), until.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let response = handler(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ADMIN_HEADER_TIMEOUT)
                .max_buf_size(MAX_ADMIN_BUFFER_BYTES)
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service);
            let served = async {
                tokio::pin!(connection);
                tokio::select! {
                    outcome = connection.as_mut() => return outcome,
                    () = until.cancelled() => connection.as_mut().graceful_shutdown(),
                }
                connection.await
            };
            if let Ok(Err(error)) = timeout(ADMIN_CONNECTION_TIMEOUT, served).await {
                tracing::debug!(%error, "an operator's connection failed");
            }
            drop(place);
        });
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    socket::listen(&HostNetwork, address, &ListenOptions::default())
        .map_err(|error| io::Error::new(error.kind(), format!("can't listen on `{address}`: {error}")))
}
