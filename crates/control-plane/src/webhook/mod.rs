//! The admission webhook: an API server asks whether objects can be enforced before it takes them, and gets the diagnostics of
//! the command line as its answer (`docs/kubernetes.md`).
//!
//! INVARIANT: what is answered depends on the object alone (and the one that it replaces), never on the state of the mesh, so
//! every replica gives the same answer, also while it starts.

mod registration;
mod review;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    registration::{Registration, keep_registration},
    review::{Review, answer},
};
use crate::limits::{
    ACCEPT_PAUSE, MAX_REVIEW_BYTES, MAX_WEBHOOK_CONNECTIONS, WEBHOOK_CONNECTION_TIMEOUT, WEBHOOK_DRAIN, WEBHOOK_TIMEOUT,
};

/// Where it answers.
pub const PATH: &str = "/validate";

/// Answers at this listener until `stop`, then finishes what has begun.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_WEBHOOK_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = stop.cancelled() => break,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => drop(tasks.spawn(connection(stream, acceptor.clone(), place, stop.clone()))),
            Err(error) => {
                tracing::warn!(%error, "the webhook can't take a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    if timeout(WEBHOOK_DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("reviews were cut off at the end");
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, place: OwnedSemaphorePermit, stop: CancellationToken) {
    let Ok(Ok(stream)) = timeout(WEBHOOK_TIMEOUT, acceptor.accept(stream)).await else { return };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(WEBHOOK_TIMEOUT);
    let connection = http.serve_connection(TokioIo::new(stream), service_fn(handle));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = timeout(WEBHOOK_CONNECTION_TIMEOUT, connection.as_mut()) => ended.is_ok(),
        () = stop.cancelled() => false,
    };
    if !ended {
        // What has begun is answered, and nothing more is taken.
        connection.as_mut().graceful_shutdown();
        let _ = timeout(WEBHOOK_TIMEOUT, connection).await;
    }
    drop(place);
}

async fn handle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match timeout(WEBHOOK_TIMEOUT, respond(request)).await {
        Ok(response) => response,
        Err(_) => plain(StatusCode::REQUEST_TIMEOUT, "the review didn't come in time"),
    })
}

async fn respond(request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "reviews are answered at /validate");
    }
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "send an AdmissionReview by POST");
    }
    let body = match Limited::new(request.into_body(), MAX_REVIEW_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "the review is too large");
        }
        Err(_) => return plain(StatusCode::BAD_REQUEST, "the review can't be read"),
    };
    // Judging a large object takes milliseconds of processor time, which mustn't hold up others' streams.
    let answered = tokio::task::spawn_blocking(move || Review::parse(&body).map(|review| answer(&review)));
    match answered.await {
        Ok(Ok(answer)) => {
            let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
        Ok(Err(error)) => plain(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the object can't be judged"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}
