//! An application for whole-mesh tests: `app NAME HTTP_ADDR [TLS_ADDR CERT KEY]` serves HTTP/1.1, HTTP/2 with prior
//! knowledge, gRPC, WebSockets and server-sent events, and TLS with a certificate of its own (files in DER).
//!
//! It answers with what it saw. The header `x-script` says how the first, second, ... try of one request is answered: a
//! status, `grpc:` and a status of gRPC, `slow` (never) or `break` (the connection ends). `/next` lets what waits go on.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    env, fs,
    io::Write,
    net::TcpListener as StdListener,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use ambit_tests::http1;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};

/// Requests that are remembered for `/seen`.
const MAX_SEEN: usize = 4_096;
/// Pieces of `/source`.
static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
/// The key of RFC 6455's own example has this answer.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

type Error = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Error>;

struct App {
    name: String,
    seen: Mutex<Vec<Value>>,
    tries: Mutex<HashMap<String, usize>>,
    next: Notify,
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [name, address, tls @ ..] = arguments.as_slice() else {
        return Err("usage: app NAME HTTP_ADDR [TLS_ADDR CERT KEY]".into());
    };
    if let [address, certificate, key] = tls {
        serve_tls(name.clone(), address, certificate, key)?;
    }
    let app = App { name: name.clone(), seen: Mutex::default(), tries: Mutex::default(), next: Notify::new() };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(Arc::new(app), address))
}

/// Says who it is and which server was asked for, then sends lines back.
fn serve_tls(name: String, address: &str, certificate: &str, key: &str) -> Result<(), Error> {
    let certificate = CertificateDer::from(fs::read(certificate)?);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(fs::read(key)?));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let (config, listener) = (Arc::new(config), StdListener::bind(address)?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (name, config) = (name.clone(), Arc::clone(&config));
            thread::spawn(move || -> Result<(), Error> {
                let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
                let line = http1::line(&mut stream);
                let asked = stream.conn.server_name().unwrap_or("nobody").to_owned();
                write!(stream, "{name} as {asked}\nagain {line}")?;
                stream.flush()?;
                Ok(())
            });
        }
    });
    Ok(())
}

async fn serve(app: Arc<App>, address: &str) -> Result<(), Error> {
    let listener = TcpListener::bind(address).await?;
    println!("{} listens on {address}", app.name);
    loop {
        let (stream, _) = listener.accept().await?;
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&app), request));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            // Clients of HTTP/1 may end their side and still want the answer.
            builder.http1().half_close(true);
            // A client that breaks its connection is no fault of this server.
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let path = request.uri().path().to_owned();
    let mut response = match path.as_str() {
        "/next" => {
            app.next.notify_one();
            Response::new(full(Bytes::new()))
        }
        "/seen" => Response::new(full(Value::from(app.seen.lock().expect("no panic").clone()).to_string())),
        "/events" => events(&app),
        "/source" => source(&app, &request),
        "/sink" => sink(&app, request).await?,
        "/socket" => socket(request),
        "/trailers" => trailers(request).await?,
        path if path.starts_with("/grpc.Echo/") && !request.headers().contains_key("x-script") => {
            note(&app, request.method().as_str(), path, &request.headers().clone(), "");
            grpc(request)
        }
        _ => echo(&app, request).await?,
    };
    response.headers_mut().insert("x-app", HeaderValue::from_str(&app.name)?);
    Ok(response)
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Five events, each when it is asked for.
fn events(app: &Arc<App>) -> Response<Body> {
    let events = stream::unfold((Arc::clone(app), 0), |(app, number)| async move {
        if number == 5 {
            return None;
        }
        app.next.notified().await;
        Some((Ok(Frame::data(Bytes::from(format!("data: {number}\n\n")))), (app, number + 1)))
    });
    let mut response = Response::new(StreamBody::new(events).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// As many bytes as the query says. That they are on their way can be seen by `/seen`.
fn source(app: &Arc<App>, request: &Request<Incoming>) -> Response<Body> {
    let pieces = request.uri().query().and_then(|bytes| bytes.parse::<usize>().ok()).unwrap_or(0) / PIECE.len();
    let pieces = stream::unfold((Arc::clone(app), pieces), |(app, left)| async move {
        note(&app, "PIECE", &left.to_string(), &HeaderMap::new(), "");
        (left > 0).then(|| (Ok(Frame::data(Bytes::from_static(&PIECE))), (app, left - 1)))
    });
    Response::new(StreamBody::new(pieces).boxed_unsync())
}

/// Reads nothing until it may, then everything.
async fn sink(app: &App, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    app.next.notified().await;
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(full(bytes.to_string())))
}

/// Sends all bytes of a WebSocket back.
fn socket(request: Request<Incoming>) -> Response<Body> {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut block = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut block).await {
            if stream.write_all(&block[..length]).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(ACCEPT));
    response
}

/// The request's trailer `x-sum` as one of the answer, and in its body.
async fn trailers(request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let whole = request.into_body().collect().await?;
    let sum = whole.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
    let sum = sum.unwrap_or(HeaderValue::from_static("none"));
    let body = format!("{} bytes, {}", whole.to_bytes().len(), sum.to_str()?);
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), sum)]);
    let frames = [Ok(Frame::data(Bytes::from(body))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    Ok(response)
}

/// Sends a call's messages back; `/grpc.Echo/Fail` ends as NOT_FOUND.
fn grpc(request: Request<Incoming>) -> Response<Body> {
    let status = if request.uri().path().ends_with("/Fail") { "5" } else { "0" };
    let messages = stream::unfold(Some(request.into_body()), move |body| async move {
        let mut body = body?;
        match body.frame().await {
            Some(Ok(frame)) => Some((Ok(frame), Some(body))),
            Some(Err(error)) => Some((Err(error.into()), None)),
            None => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(status));
                trailers.insert("x-tail", HeaderValue::from_static("last"));
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    });
    let mut response = Response::new(StreamBody::new(messages).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

async fn echo(app: &App, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let seen = note(app, head.method.as_str(), target, &head.headers, &String::from_utf8_lossy(&body));
    let authority = head.uri.authority().map(|authority| Value::from(authority.as_str()));
    let said = json!({"app": app.name, "version": format!("{:?}", head.version), "authority": authority, "seen": seen});
    let mut response = Response::new(full(said.to_string()));
    match step(app, &head).as_str() {
        "break" => return Err("told to".into()),
        "slow" => tokio::time::sleep(Duration::from_secs(60)).await,
        step => match step.strip_prefix("grpc:") {
            Some(code) => {
                *response.body_mut() = full(Bytes::new());
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                response.headers_mut().insert("grpc-status", HeaderValue::from_str(code)?);
            }
            None => *response.status_mut() = step.parse()?,
        },
    }
    Ok(response)
}

/// Remembers a request, and describes it.
fn note(app: &App, method: &str, target: &str, headers: &HeaderMap, body: &str) -> Value {
    let headers = headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    let headers: Vec<Value> = headers.collect();
    let seen = json!({"method": method, "target": target, "headers": headers, "body": body});
    let mut all = app.seen.lock().expect("no panic");
    if all.len() < MAX_SEEN {
        all.push(seen.clone());
    }
    seen
}

/// What is to be done in this try.
fn step(app: &App, head: &Parts) -> String {
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut tries = app.tries.lock().expect("no panic");
    let number = tries.entry(text("x-request-id").to_owned()).or_default();
    *number += 1;
    let step = text("x-script").split(' ').nth(*number - 1).filter(|step| !step.is_empty());
    step.unwrap_or("200").to_owned()
}
