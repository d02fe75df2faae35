//! A collector of spans.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use ambit_telemetry::trace::otlp::{ExportTraceServiceRequest, Span, Value};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpListener;

use crate::mesh::soon;

/// Takes what it is sent, or answers with another status.
#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

impl Collector {
    pub async fn start(status: u16) -> Self {
        // An address that no workload of the mesh has.
        let listener = TcpListener::bind("127.0.0.9:0").await.expect("free port");
        let collector = Self { address: listener.local_addr().expect("bound"), taken: Arc::default() };
        let ours = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ours = ours.clone();
                let service = service_fn(move |request| take(ours.clone(), status, request));
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        collector
    }

    /// Waits for so many spans.
    pub async fn spans(&self, number: usize) -> Vec<Span> {
        soon(async {
            loop {
                let spans = self.so_far();
                if spans.len() >= number {
                    return spans;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await
    }

    pub fn so_far(&self) -> Vec<Span> {
        let taken = self.taken.lock().expect("unpoisoned");
        let scopes = taken.iter().flat_map(|(_, request)| &request.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    pub fn first(&self) -> (HeaderMap, ExportTraceServiceRequest) {
        self.taken.lock().expect("unpoisoned").first().expect("something was sent").clone()
    }
}

/// A span's attribute as text.
pub fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::String(text)) => text,
        Some(Value::Int(number)) => number.to_string(),
        Some(Value::Bool(truth)) => truth.to_string(),
        None => panic!("no {name} in {span:?}"),
    }
}

async fn take(
    collector: Collector,
    status: u16,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/v1/traces"));
    let body = body.collect().await.expect("a whole body").to_bytes();
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    collector.taken.lock().expect("unpoisoned").push((head.headers, request));
    Ok(Response::builder().status(status).body(Full::default()).expect("an answer"))
}
