//! Whether the proxy may be given traffic: `/healthz/ready` on port 15021 (`spec/ztunnel.md` 1). A control plane answers the
//! same way, at `/ready` on port 8080.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

/// Where proxies are asked.
const READY: &str = "/healthz/ready";
/// Where control planes are.
const ISTIOD_READY: &str = "/ready";
/// How long a probe may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest request of a probe, in bytes.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// Probes at a time.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a failed `accept` (no descriptors left), so the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What the proxy still waits for. Cheap to clone; all copies are the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<Part, Option<String>>>>);

/// Something that has to be there first, in the order in which they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Configuration.
    State,
    /// The proxy's own certificate.
    Certificate,
    /// The proxy of a dedicated workload, or the ability to make them.
    Proxy,
    /// DNS.
    Dns,
    /// The pods of the node.
    Pods,
    /// Nothing is to come in any more.
    Running,
}

// === impl Readiness ===

impl Readiness {
    /// Waits for these.
    pub fn waiting_for(parts: impl IntoIterator<Item = Part>) -> Self {
        Self(Arc::new(Mutex::new(parts.into_iter().map(|part| (part, None)).collect())))
    }

    /// Says whether a part is there.
    pub fn set(&self, part: Part, there: bool) {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if there {
            pending.remove(&part);
        } else {
            pending.insert(part, None);
        }
    }

    /// Says why a part isn't there. The reason is shown to this machine or pod only.
    pub fn lack(&self, part: Part, reason: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, Some(reason.into()));
    }

    /// True if nothing is waited for.
    pub fn is_ready(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// True if this part is waited for.
    pub fn lacks(&self, part: Part) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&part)
    }

    /// What is answered, with reasons if they are known and may be shown.
    pub fn answer(&self, with_reasons: bool) -> (StatusCode, String) {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.is_empty() {
            return (StatusCode::OK, "ready\n".to_owned());
        }
        let shown = |(part, reason): (&Part, &Option<String>)| match reason {
            Some(reason) if with_reasons => format!("{part} ({reason})"),
            _ => part.to_string(),
        };
        let names: Vec<String> = pending.iter().map(shown).collect();
        (StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {}\n", names.join(", ")))
    }

    /// Answers probes until dropped.
    pub async fn serve(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a probe failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let readiness = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = readiness.respond(&request, peer.ip().to_canonical().is_loopback());
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .max_buf_size(MAX_REQUEST_BYTES)
                    .half_close(true)
                    .serve_connection(TokioIo::new(stream), service);
                // A probe that goes away early is its own matter.
                let _ = connection.await;
                drop(place);
            });
        }
    }

    fn respond<B>(&self, request: &Request<B>, is_local: bool) -> Response<Full<Bytes>> {
        let (status, text) = match (request.uri().path(), request.method()) {
            (READY | ISTIOD_READY, &Method::GET) => self.answer(is_local),
            (READY | ISTIOD_READY, _) => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
            _ => (StatusCode::NOT_FOUND, String::new()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        response
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "state manager",
            Self::Certificate => "certificate",
            Self::Proxy => "proxy",
            Self::Dns => "dns proxy",
            Self::Pods => "workload proxy manager",
            Self::Running => "draining",
        })
    }
}

/// Listens on all addresses.
///
/// # Errors
/// When the port is taken; the message names it.
pub fn listen(ipv6: bool, port: u16) -> io::Result<TcpListener> {
    let address: SocketAddr = ambit_hbone::socket::wildcard(ipv6, port);
    let options = ambit_hbone::socket::ListenOptions::default();
    ambit_hbone::socket::listen(&ambit_hbone::HostNetwork, address, &options)
        .map_err(|error| io::Error::new(error.kind(), format!("can't listen on `{address}`: {error}")))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("written");
        stream.shutdown().await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn probes_hear_what_is_pending() {
        let readiness = Readiness::waiting_for([Part::Pods, Part::State, Part::Proxy, Part::Dns]);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(readiness.clone().serve(listener));
        let get = "GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = ask(address, get).await;
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        let body = "not ready, pending: state manager, proxy, dns proxy, workload proxy manager\n";
        assert!(answer.ends_with(body), "{answer}");
        for part in [Part::State, Part::Proxy, Part::Dns, Part::Pods] {
            readiness.set(part, true);
        }
        let answer = ask(address, get).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nready\n"), "{answer}");
        assert!(readiness.is_ready());
        readiness.lack(Part::Certificate, "the CA is away");
        assert!(ask(address, get).await.ends_with("pending: certificate (the CA is away)\n"), "at the loopback");
        assert_eq!(readiness.answer(false).1, "not ready, pending: certificate\n", "elsewhere");
        readiness.set(Part::Certificate, true);
        readiness.set(Part::Pods, false);
        assert!(ask(address, get).await.ends_with("pending: workload proxy manager\n"));
        for (request, status) in [("POST /healthz/ready", 405), ("GET /", 404), ("GET /healthz/ready/x", 404)] {
            let answer = ask(address, &format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        }
    }
}
