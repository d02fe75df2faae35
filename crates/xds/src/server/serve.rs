//! Connections: accepted, secured, served, drained.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc};

use ambit_identity::{SpiffeId, peer_identity};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::Grpc};
use tonic_prost::ProstCodec;

use super::{Server, authorize::Connection, certificates::Certificates, discovery::Discovery};
use crate::{
    ca::CREATE_CERTIFICATE_PATH,
    discovery::DELTA_PATH,
    limits::{
        ACCEPT_PAUSE, CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, DRAIN_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
        MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_REQUEST_BYTES, MAX_SIGNING_REQUEST_BYTES, MAX_STREAMS_PER_CONNECTION,
        STREAM_WINDOW_BYTES,
    },
};

// === impl Server ===

impl Server {
    /// Serves connections until `stop`, then lets those there are end for up to [`DRAIN_TIMEOUT`].
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let server = Arc::new(self);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
                // Reaped as they end, so that the set doesn't grow.
                Some(_) = connections.join_next() => continue,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "can't accept connections");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                tracing::warn!(peer = %address, "refused: already {MAX_CONNECTIONS} connections");
                continue;
            };
            let (server, stop) = (Arc::clone(&server), stop.clone());
            connections.spawn(async move {
                if let Err(reason) = server.connection(stream, address, stop).await {
                    tracing::debug!(peer = %address, %reason, "connection ended");
                }
                drop(permit);
            });
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(2 * DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("connections that didn't end are dropped");
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        stop: CancellationToken,
    ) -> Result<(), String> {
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(config) = self.tls.clone() else {
            return self.http2(stream, address, None, stop).await;
        };
        let accepted = timeout(CONNECT_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
        let stream = accepted.map_err(|_| "no TLS in time".to_owned())?.map_err(|error| error.to_string())?;
        let (_, tls) = stream.get_ref();
        if tls.alpn_protocol() != Some(b"h2") {
            return Err("the client doesn't speak HTTP/2 (ALPN `h2`)".into());
        }
        let identity = tls.peer_certificates().and_then(peer_identity);
        self.http2(stream, address, identity, stop).await
    }

    async fn http2<S>(
        self: Arc<Self>,
        stream: S,
        address: SocketAddr,
        identity: Option<SpiffeId>,
        stop: CancellationToken,
    ) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let known = Connection(Arc::new((address, identity)));
        let stopping = stop.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(known.clone());
            let (server, stop) = (Arc::clone(&self), stopping.clone());
            async move { Ok::<_, Infallible>(server.call(request, stop).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            result = &mut connection => return result.map_err(|error| error.to_string()),
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        match timeout(DRAIN_TIMEOUT, connection).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("it didn't end in time".into()),
        }
    }

    async fn call(&self, request: http::Request<Incoming>, stop: CancellationToken) -> http::Response<Body> {
        match (request.uri().path(), &self.resources, &self.ca) {
            (DELTA_PATH, Some(resources), _) => {
                let (authorize, resources) = (Arc::clone(&self.authorize), Arc::clone(resources));
                let method = Discovery { authorize, resources, stop };
                let mut grpc = Grpc::new(ProstCodec::default())
                    .max_decoding_message_size(MAX_REQUEST_BYTES)
                    .max_encoding_message_size(usize::MAX);
                grpc.streaming(method, request).await
            }
            (CREATE_CERTIFICATE_PATH, _, Some(ca)) => {
                let method = Certificates { ca: Arc::clone(ca), authorize: Arc::clone(&self.authorize) };
                let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_SIGNING_REQUEST_BYTES);
                grpc.unary(method, request).await
            }
            _ => tonic::Status::unimplemented("this server doesn't have this method").into_http(),
        }
    }
}
