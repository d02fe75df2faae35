//! `ambit echo`: a small HTTP server that answers with what it was asked, for demonstrations and tests.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use tokio::net::TcpListener;

use super::Failure;

/// Largest request body that is read; a larger one gets 413.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Arguments of `ambit echo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; HTTP/1.1 and HTTP/2 with prior knowledge are both understood
    #[arg(long, default_value = "127.0.0.1:5000", value_name = "ADDR")]
    listen: SocketAddr,
}

/// Serves until the process ends. `/health` answers 200; `/count` says how many other requests came so far.
pub async fn run(args: Args) -> Result<(), Failure> {
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Failure::new(format!("can't listen on {}: {error}; choose another with --listen", args.listen))
    })?;
    println!("echo listens on {}", args.listen);
    let count = Arc::new(AtomicU64::new(0));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors or a connection that was gone before it was accepted: others must still be served.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let count = Arc::clone(&count);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, peer, Arc::clone(&count)));
            // A client that breaks its connection is no fault of this server.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    count: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/health" => return Ok(reply(StatusCode::OK, &json!({"status": "ok"}))),
        "/count" => return Ok(reply(StatusCode::OK, &json!({"requests": count.load(Ordering::SeqCst)}))),
        _ => {}
    }
    count.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return Ok(reply(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error": "body is larger than 1 MiB"})));
    };
    println!("{} {} from {peer}", parts.method, path);
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    Ok(reply(
        StatusCode::OK,
        &json!({
            "method": parts.method.as_str(),
            "path": parts.uri.path_and_query().map_or("", |path| path.as_str()),
            "version": format!("{:?}", parts.version),
            "client": peer.ip().to_string(),
            "headers": headers,
            "body_bytes": body.to_bytes().len(),
        }),
    ))
}

fn reply(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
