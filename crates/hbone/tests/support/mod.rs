//! A server on loopback whose answer to a CONNECT depends on its authority, and a client for it.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod raw;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_hbone::{Connect, ConnectRequest, HostNetwork, Limits, Network, Pool, Tunnel, accept};
use ambit_identity::SpiffeId;
use ambit_testing::{TestMesh, identity};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// What the server saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// The peer of each connection accepted.
    pub connections: Vec<SpiffeId>,
    /// Connections that have ended.
    pub ended: usize,
    /// The peer and authority of each request.
    pub requests: Vec<(SpiffeId, String)>,
    /// How accepting failed.
    pub failures: Vec<String>,
}

/// A server, as workload `a/server`. It ends when it is dropped.
pub struct Server {
    pub addr: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    drain: watch::Sender<bool>,
    task: AbortHandle,
}

pub async fn server(mesh: &TestMesh, limits: Limits) -> Server {
    serve(mesh, limits, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port")).await
}

pub async fn serve(mesh: &TestMesh, limits: Limits, listener: TcpListener) -> Server {
    let addr = listener.local_addr().expect("bound");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (drain, draining) = watch::channel(false);
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    let record = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (certificate, limits, seen) = (Arc::clone(&certificate), limits.clone(), Arc::clone(&record));
            let (mut draining, mut drained) = (draining.clone(), false);
            connections.spawn(async move {
                let mut connection = match accept(stream, certificate, &limits).await {
                    Ok(connection) => connection,
                    Err(error) => return locked(&seen).failures.push(error.to_string()),
                };
                let peer = connection.peer().clone();
                locked(&seen).connections.push(peer.clone());
                let mut tunnels = JoinSet::new();
                loop {
                    tokio::select! {
                        request = connection.next() => {
                            let Some(Ok(request)) = request else { break };
                            let authority = request.authority().map(ToString::to_string).unwrap_or_default();
                            locked(&seen).requests.push((peer.clone(), authority.clone()));
                            tunnels.spawn(answer(request, authority, peer.clone()));
                        }
                        Ok(()) = draining.changed(), if !drained => {
                            drained = true;
                            connection.graceful_shutdown();
                        }
                    }
                }
                locked(&seen).ended += 1;
            });
        }
    });
    Server { addr, seen, drain, task: task.abort_handle() }
}

async fn answer(request: ConnectRequest, authority: String, peer: SpiffeId) {
    if request.method() != Method::CONNECT {
        return request.refuse(StatusCode::BAD_REQUEST);
    }
    let mut headers = HeaderMap::new();
    headers.insert("x-peer", HeaderValue::from_str(&peer.to_string()).expect("ASCII"));
    if let Some(sent) = request.headers().get("x-sent") {
        headers.insert("x-sent", sent.clone());
    }
    match authority.as_str() {
        "denied:1" => return request.refuse(StatusCode::UNAUTHORIZED),
        "away:1" => return request.refuse(StatusCode::SERVICE_UNAVAILABLE),
        "bad:1" => return request.refuse(StatusCode::BAD_REQUEST),
        "silent:1" => std::future::pending().await,
        "gone:1" => return drop(request),
        _ => {}
    }
    let Ok(mut tunnel) = request.accept(headers) else { return };
    match authority.as_str() {
        // Sends what it gets.
        "echo:1" => {
            let (mut read, mut write) = tokio::io::split(tunnel);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
        // Reads to the end first, then answers with the number of bytes.
        "count:1" => {
            let mut all = Vec::new();
            if tunnel.read_to_end(&mut all).await.is_ok() {
                let _ = tunnel.write_all(all.len().to_string().as_bytes()).await;
                let _ = tunnel.shutdown().await;
            }
        }
        // Says something, ends its direction, then reads on.
        "greet:1" => {
            let _ = tunnel.write_all(b"hello").await;
            let _ = tunnel.shutdown().await;
            let mut all = Vec::new();
            let _ = tunnel.read_to_end(&mut all).await;
        }
        // Says something and breaks off.
        "break:1" => {
            let _ = tunnel.write_all(b"half").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Reads nothing.
        _ => std::future::pending().await,
    }
}

pub fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Times short enough for a test.
pub fn quick() -> Limits {
    Limits {
        connect_timeout: Duration::from_secs(2),
        handshake_timeout: Duration::from_millis(500),
        response_timeout: Duration::from_millis(500),
        ..Limits::default()
    }
}

/// A client: a pool in one network.
pub struct Client {
    pub pool: Arc<Pool>,
    pub network: Arc<dyn Network>,
}

impl Client {
    pub fn new(mesh: &TestMesh, limits: Limits) -> Self {
        Self { pool: Pool::new(Arc::clone(&mesh.certificates), limits), network: Arc::new(HostNetwork) }
    }

    pub fn request(&self, account: &str, peer: SocketAddr, authority: &str) -> Connect {
        Connect {
            network: Arc::clone(&self.network),
            source: identity("a", account),
            peer,
            expected: vec![identity("a", "server")],
            authority: authority.to_owned(),
            headers: HeaderMap::new(),
            mark: None,
            distant: false,
        }
    }

    pub async fn open(&self, account: &str, peer: SocketAddr, authority: &str) -> Tunnel {
        self.pool.connect(self.request(account, peer, authority)).await.expect("a tunnel")
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within five seconds: {what}");
}

/// Fails a test that hangs instead of hanging with it.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("done within 20 s")
}

impl Server {
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    pub fn stop(&self) {
        self.task.abort();
    }

    pub fn connections(&self) -> usize {
        locked(&self.seen).connections.len()
    }

    pub fn ended(&self) -> usize {
        locked(&self.seen).ended
    }

    pub fn requests(&self) -> usize {
        locked(&self.seen).requests.len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
