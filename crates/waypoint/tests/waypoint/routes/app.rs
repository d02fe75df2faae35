//! An application that says who it is and what it saw, and fails when it is told to.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// An application for HTTP/1.1 and HTTP/2.
///
/// The header `x-script` says how the first, second, ... try of one request is answered: a status, `grpc:` and a status
/// of gRPC, `slow` (never), or `break` (the connection ends).
#[derive(Clone)]
pub struct App {
    pub address: SocketAddr,
    name: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
    tries: Arc<Mutex<HashMap<String, usize>>>,
}

/// A request that arrived whole.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl App {
    pub async fn start(name: &'static str) -> Self {
        Self::at(name, "127.0.0.2:0").await
    }

    pub async fn at(name: &'static str, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("free port");
        let address = listener.local_addr().expect("bound");
        let app = Self { address, name, seen: Arc::default(), tries: Arc::default() };
        let server = app.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = server.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| app.clone().answer(request));
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        app
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("unpoisoned").clone()
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let (head, body) = request.into_parts();
        let text = |name: &str| head.headers.get(name).map(|value| value.to_str().expect("text").to_owned());
        let id = text("x-request-id").unwrap_or_default();
        let body = body.collect().await?.to_bytes();
        let line = format!("{} {}", head.method, head.uri.path_and_query().expect("a path"));
        let authority = head.uri.authority().map(ToString::to_string);
        let host = authority.or_else(|| text("host")).unwrap_or_default();
        let seen = Seen { line, headers: head.headers.clone(), body: String::from_utf8_lossy(&body).into_owned() };
        let answer = format!("{} saw {} at {host}", self.name, seen.line);
        self.seen.lock().expect("unpoisoned").push(seen);
        let number = {
            let mut tries = self.tries.lock().expect("unpoisoned");
            let count = tries.entry(id).or_default();
            *count += 1;
            *count - 1
        };
        let script = text("x-script").unwrap_or_default();
        let step = script.split(' ').nth(number).filter(|step| !step.is_empty()).unwrap_or("200");
        let mut response = Response::new(Full::from(answer));
        response.headers_mut().insert("x-app", "1".parse().expect("value"));
        response.headers_mut().insert("x-backend", self.name.parse().expect("value"));
        match step {
            "break" => return Err("told to".into()),
            "slow" => tokio::time::sleep(Duration::from_secs(60)).await,
            _ => match step.strip_prefix("grpc:") {
                Some(code) => {
                    *response.body_mut() = Full::default();
                    response.headers_mut().insert("content-type", "application/grpc".parse().expect("value"));
                    response.headers_mut().insert("grpc-status", code.parse().expect("value"));
                }
                None => *response.status_mut() = StatusCode::from_bytes(step.as_bytes()).expect("a status"),
            },
        }
        Ok::<_, Infallible>(response).map_err(Into::into)
    }
}
