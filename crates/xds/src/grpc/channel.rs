//! A connection to a gRPC server.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{body::Body, metadata::MetadataMap};

use super::endpoint::{ConnectError, Endpoint};
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HEADER_BYTES,
    STREAM_WINDOW_BYTES, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_RETRIES, TCP_KEEPALIVE_TIME,
};

/// One HTTP/2 connection. It ends when the last clone goes.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    requests: http2::SendRequest<Body>,
    /// Drives the connection; aborted when dropped.
    _driver: Arc<JoinSet<()>>,
}

// === impl Channel ===

impl Channel {
    /// Connects, and gives the metadata that calls must carry.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<(Self, MetadataMap), ConnectError> {
        let credentials = endpoint.clone();
        let read = move || Ok::<_, ConnectError>((credentials.metadata()?, credentials.tls()?));
        // Files, which may be on slow disks.
        let read = tokio::task::spawn_blocking(read).await;
        let (metadata, tls) = read.unwrap_or_else(|error| {
            let address = endpoint.address.clone();
            Err(ConnectError::Roots { address, reason: format!("reading them failed: {error}") })
        })?;
        let late = |_| ConnectError::Timeout { address: endpoint.address.clone(), after: CONNECT_TIMEOUT };
        let tcp = timeout(CONNECT_TIMEOUT, Self::tcp(endpoint)).await.map_err(late)??;
        let secured = async {
            match tls {
                None => Self::http2(endpoint, tcp).await,
                Some((name, config)) => {
                    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
                    let wrong = |reason: String| ConnectError::Tls { address: endpoint.address.clone(), reason };
                    let tls = tls.map_err(|error| wrong(error.to_string()))?;
                    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                        return Err(wrong("the server doesn't offer HTTP/2 (ALPN `h2`)".into()));
                    }
                    Self::http2(endpoint, tls).await
                }
            }
        };
        let channel = timeout(CONNECT_TIMEOUT, secured).await.map_err(late)??;
        Ok((channel, metadata))
    }

    async fn tcp(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
        let wrong =
            |error: std::io::Error| ConnectError::Tcp { address: endpoint.address.clone(), reason: error.to_string() };
        let stream = TcpStream::connect((endpoint.address.host(), endpoint.address.port())).await.map_err(wrong)?;
        stream.set_nodelay(true).map_err(wrong)?;
        let keepalive = TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE_TIME)
            .with_interval(TCP_KEEPALIVE_INTERVAL)
            .with_retries(TCP_KEEPALIVE_RETRIES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(wrong)?;
        Ok(stream)
    }

    async fn http2<S>(endpoint: &Endpoint, stream: S) -> Result<Self, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await;
        let (requests, connection) = handshake
            .map_err(|error| ConnectError::Http2 { address: endpoint.address.clone(), reason: error.to_string() })?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the control plane ended");
            }
        });
        Ok(Self { requests, _driver: Arc::new(driver) })
    }

    /// True once the connection can carry no more calls.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

impl tower_service::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
