//! Plain HTTPS to the API server, where a process of `kubectl` for each request would be in the way.

use ambit_tests_kube::KubeServer;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One connection, with or without a bearer token.
pub struct Https {
    sender: http1::SendRequest<Full<Bytes>>,
    token: Option<String>,
}

/// The lines of an answer that goes on.
pub struct Lines {
    body: Incoming,
    unread: Vec<u8>,
}

// === impl Https ===

impl Https {
    pub async fn connect(server: &KubeServer, token: Option<&str>) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(server.authority()).expect("a certificate");
        roots.add(authority).expect("of an authority");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let url = server.url();
        let address = url.strip_prefix("https://").expect("it is an HTTPS server");
        let tcp = TcpStream::connect(address).await.expect("the server listens");
        tcp.set_nodelay(true).expect("an open socket");
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("the server's own authority");
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("it speaks HTTP/1.1");
        tokio::spawn(connection);
        Self { sender, token: token.map(str::to_owned) }
    }

    /// The status of an answer, and what it says.
    pub async fn get(&mut self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, &Value::Null).await
    }

    /// As [`Self::get`].
    pub async fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::POST, path, body).await
    }

    /// As [`Self::get`], with a merge patch.
    pub async fn patch(&mut self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::PATCH, path, body).await
    }

    /// The events of a watch.
    pub async fn watch(mut self, path: &str) -> Lines {
        let response = self.send(Method::GET, path, &Value::Null).await;
        assert_eq!(response.status(), 200, "{path}");
        Lines { body: response.into_body(), unread: Vec::new() }
    }

    async fn call(&mut self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let response = self.send(method, path, body).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("the whole answer").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn send(&mut self, method: Method, path: &str, body: &Value) -> hyper::Response<Incoming> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = Request::builder().method(method).uri(path).header("host", "kubernetes");
        request = request.header("accept", "application/json").header("content-type", kind);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = request.body(Full::new(body)).expect("a request");
        self.sender.ready().await.expect("the connection is open");
        self.sender.send_request(request).await.expect("an answer")
    }
}

// === impl Lines ===

impl Lines {
    /// The next line, JSON.
    pub async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("an event is JSON");
            }
            let frame = self.body.frame().await.expect("the watch goes on").expect("and isn't broken");
            self.unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}
