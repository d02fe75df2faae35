//! A small HTTP/1.1 server: few connections, small requests.

use std::{convert::Infallible, future::Future, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::limits::{ACCEPT_PAUSE, DRAIN, HEADER_TIMEOUT, MAX_BUFFER_BYTES, MAX_CONNECTIONS};

/// Serves until told to stop, then finishes what was begun. No connection lasts longer than `longest`.
pub async fn serve<H, F, B>(listeners: Vec<TcpListener>, handler: H, longest: Duration, until: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (places, tasks) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), TaskTracker::new());
    let loops = listeners.into_iter().map(|listener| accept(listener, &handler, &places, &tasks, longest, &until));
    futures_util::future::join_all(loops).await;
    tasks.close();
    // What isn't finished by then is cut off.
    let _ = timeout(DRAIN, tasks.wait()).await;
}

/// An answer of this type.
#[must_use]
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// An answer in plain text.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

/// A web page that a user of this machine has open must not reach this port: neither under a name of its own that leads
/// here, nor by a request across sites.
///
/// # Errors
/// What to tell the client, with a 403.
pub fn check_origin(headers: &HeaderMap) -> Result<(), &'static str> {
    if let Some(host) = headers.get(header::HOST) {
        let host = host.to_str().ok().and_then(|host| host.parse::<http::uri::Authority>().ok());
        let is_local = host.is_some_and(|host| {
            let name = host.host().trim_start_matches('[').trim_end_matches(']');
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        if !is_local {
            return Err("ask under the name `localhost` or a loopback address\n");
        }
    }
    if headers.contains_key(header::ORIGIN) {
        return Err("this port isn't for web pages\n");
    }
    Ok(())
}

async fn accept<H, F, B>(
    listener: TcpListener,
    handler: &H,
    places: &Arc<Semaphore>,
    tasks: &TaskTracker,
    longest: Duration,
    until: &CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
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
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_BUFFER_BYTES)
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
            if let Ok(Err(error)) = timeout(longest, served).await {
                tracing::debug!(%error, "an operator's connection failed");
            }
            drop(place);
        });
    }
}
