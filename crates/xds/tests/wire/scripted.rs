//! A server that says what the test tells it to, right or wrong, and shows what it was asked.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use ambit_xds::{
    Endpoint, Roots,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    workload::Any,
};
use futures_util::{Stream, StreamExt, future, stream};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_rustls::TlsAcceptor;
use tonic::{Status, Streaming, server::Grpc};
use tonic_prost::ProstCodec;

use crate::support::{PATIENCE, Pki, SERVER_NAME};

type Answers = mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>;

/// A listening server.
pub struct Scripted {
    pub address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Exchange>,
}

/// One stream of a client.
pub struct Exchange {
    requests: mpsc::UnboundedReceiver<DeltaDiscoveryRequest>,
    answers: Answers,
}

struct Method(mpsc::UnboundedSender<Exchange>);

// === impl Scripted ===

impl Scripted {
    pub async fn start(pki: &Pki) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (opened, streams) = mpsc::unbounded_channel();
        let acceptor = TlsAcceptor::from(pki.server(&[SERVER_NAME, "127.0.0.1"], false));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, opened) = (acceptor.clone(), opened.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        let method = Method(opened.clone());
                        async move {
                            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(1 << 30);
                            Ok::<_, Infallible>(grpc.streaming(method, request).await)
                        }
                    });
                    // A client that leaves is an error here and none of the test's.
                    let _ =
                        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, streams }
    }

    pub fn endpoint(&self, pki: &Pki) -> Endpoint {
        let address = format!("https://{}", self.address).parse().expect("an address");
        Endpoint::new(address, Roots::Inline(pki.root_pem()))
    }

    /// The next stream that a client opens.
    pub async fn stream(&mut self) -> Exchange {
        timeout(PATIENCE, self.streams.recv()).await.expect("a stream in time").expect("it listens")
    }
}

// === impl Exchange ===

impl Exchange {
    /// The next request.
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        timeout(PATIENCE, self.requests.recv()).await.expect("a request in time").expect("the stream is open")
    }

    /// The next requests by type.
    pub async fn requests<const N: usize>(&mut self) -> [DeltaDiscoveryRequest; N] {
        let mut requests = Vec::new();
        for _ in 0..N {
            requests.push(self.request().await);
        }
        requests.sort_by(|a, b| a.type_url.cmp(&b.type_url));
        requests.try_into().expect("as many")
    }

    /// Waits for the client to end the stream.
    pub async fn ended(&mut self) {
        let ended = async { while self.requests.recv().await.is_some() {} };
        timeout(PATIENCE, ended).await.expect("an end in time");
    }

    pub fn send(&self, response: DeltaDiscoveryResponse) {
        self.answers.send(Ok(response)).expect("the stream is open");
    }

    pub fn fail(&self, status: Status) {
        self.answers.send(Err(status)).expect("the stream is open");
    }
}

// === impl Method ===

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

impl tower_service::Service<tonic::Request<Streaming<DeltaDiscoveryRequest>>> for Method {
    type Response = tonic::Response<Responses>;
    type Error = Status;
    type Future = future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let (asked, requests) = mpsc::unbounded_channel();
        let (answers, mut answered) = mpsc::unbounded_channel();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(request)) = incoming.next().await {
                if asked.send(request).is_err() {
                    return;
                }
            }
        });
        // The test may be over.
        let _ = self.0.send(Exchange { requests, answers });
        let responses: Responses = Box::pin(stream::poll_fn(move |cx| answered.poll_recv(cx)));
        future::ready(Ok(tonic::Response::new(responses)))
    }
}

/// A response.
pub fn response(type_url: &str, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| Resource {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(Any { type_url: type_url.into(), value: format!("{name}{version}").into_bytes() }),
        aliases: Vec::new(),
    };
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}
