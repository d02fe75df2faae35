//! What a waypoint stands between: clients with identities, and a server behind its own node proxy.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_hbone::{Connect, ConnectError, HostNetwork, Pool, Tunnel, copy};
use ambit_identity::{CertificateStore, SystemClock};
use ambit_mesh::inputs::Change;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    control_plane::ControlPlane,
    mesh::{self, PORT, VIP, WAYPOINT, account},
    process::Process,
};

/// Nothing takes longer, or the test has failed. Far above what it should take: machines that run tests are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Port of HBONE.
pub const HBONE_PORT: u16 = 15008;

/// A mesh of one waypoint.
pub struct World {
    pub control: ControlPlane,
    pub app: App,
    pub waypoint: Ipv4Addr,
    certificates: Arc<CertificateStore>,
}

/// The server: it says `ok`, to `/slow` only once it is let.
pub struct App {
    pub address: SocketAddr,
    pub released: watch::Sender<bool>,
    /// How many requests it has had.
    pub asked: watch::Receiver<u32>,
}

/// An answer: its status, and its body.
pub type Answer = (u16, String);

// === impl World ===

impl World {
    /// One whose control plane knows the example, with its Gateway.
    pub async fn new() -> Self {
        Self::with(vec![mesh::gateway(true)]).await
    }

    /// One whose control plane knows the example without its Gateway, and these objects.
    pub async fn with(more: Vec<Change>) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        // Other test programs may run at the same time; one of them may have the same process number modulo 250 as we.
        let (second, third) = (100 + NEXT.fetch_add(1, Ordering::Relaxed), (std::process::id() % 250) as u8);
        let ip = |last| Ipv4Addr::new(127, second, third, last);
        let app = App::start(ip(3)).await;
        let mut objects = mesh::objects((ip(3), app.address.port()), ip(4));
        objects.extend(more);
        let control = ControlPlane::start(ip(1), objects).await;
        let certificates = CertificateStore::new(Arc::clone(&control.ca) as _, Arc::new(SystemClock));
        let listener = TcpListener::bind((ip(3), HBONE_PORT)).await.expect("the address is this test's");
        tokio::spawn(node_proxy(listener, Arc::clone(&certificates)));
        Self { control, app, waypoint: ip(2), certificates }
    }

    /// Starts the waypoint's process, with these settings beyond the usual ones.
    pub fn start(&self, log: &str, more: &[(&'static str, String)]) -> Process {
        let settings = [self.control.settings(), more.to_vec()].concat();
        Process::start(self.waypoint, self.control.path(log), &settings)
    }

    /// The same, and waits until it is ready.
    pub async fn serve(&self, more: &[(&'static str, String)]) -> Process {
        let mut process = self.start("waypoint.log", more);
        process.ready().await;
        process
    }

    /// A client's node proxy: its tunnels share a connection.
    pub fn pool(&self) -> Arc<Pool> {
        Pool::new(Arc::clone(&self.certificates), ambit_hbone::Limits::default())
    }

    /// A tunnel to the service, or another address.
    pub async fn tunnel(&self, pool: &Pool, who: &str, to: Ipv4Addr) -> Result<Tunnel, ConnectError> {
        tunnel(pool, self.waypoint, who, to).await
    }

    /// One request of this service account, in a tunnel of its own.
    pub async fn ask(&self, who: &str, request: &str) -> Result<Answer, String> {
        let mut tunnel = self.tunnel(&self.pool(), who, VIP).await.map_err(|error| error.to_string())?;
        exchange(&mut tunnel, request).await
    }

    /// The same, where an answer must come.
    pub async fn status(&self, who: &str, request: &str) -> u16 {
        self.ask(who, request).await.unwrap_or_else(|error| panic!("{who} {request}: {error}")).0
    }

    /// Asks until the answer has this status.
    pub async fn until_status(&self, who: &str, request: &str, wanted: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(who, request).await;
            if answer.as_ref().is_ok_and(|(status, _)| *status == wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{who} {request}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A tunnel of this service account through the waypoint at an address to a service, or another address.
pub async fn tunnel(pool: &Pool, waypoint: Ipv4Addr, who: &str, to: Ipv4Addr) -> Result<Tunnel, ConnectError> {
    let connect = Connect {
        network: Arc::new(HostNetwork),
        source: account(who),
        peer: SocketAddr::from((waypoint, HBONE_PORT)),
        expected: vec![account(WAYPOINT)],
        authority: format!("{to}:{PORT}"),
        headers: http::HeaderMap::new(),
        mark: None,
        distant: false,
    };
    soon(pool.connect(connect)).await
}

/// Sends a request like `GET /path` and reads its answer.
pub async fn exchange(tunnel: &mut Tunnel, request: &str) -> Result<Answer, String> {
    soon(async {
        send(tunnel, request).await?;
        receive(tunnel).await
    })
    .await
}

/// Sends a request like `GET /path`.
pub async fn send(tunnel: &mut Tunnel, request: &str) -> Result<(), String> {
    let text = format!("{request} HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n");
    tunnel.write_all(text.as_bytes()).await.map_err(|error| format!("can't be sent: {error}"))?;
    tunnel.flush().await.map_err(|error| format!("can't be sent: {error}"))
}

/// Reads an answer, whole.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Answer, String> {
    let broken = |error: std::io::Error| format!("the answer breaks off: {error}");
    let head = head(stream).await.map_err(broken)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut body = vec![0; length(&head)];
    stream.read_exact(&mut body).await.map_err(broken)?;
    Ok((status.ok_or(format!("no status: {head}"))?, String::from_utf8_lossy(&body).into_owned()))
}

/// Fails the test rather than hang it.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("within the test's patience")
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).to_ascii_lowercase())
}

fn length(head: &str) -> usize {
    let value = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Pipes what arrives by HBONE to where it is for, as the server's own node proxy does for the waypoint.
pub async fn node_proxy(listener: TcpListener, certificates: Arc<CertificateStore>) {
    while let Ok((stream, _)) = listener.accept().await {
        let certificate = certificates.get(&account("mlflow")).await.expect("a certificate");
        tokio::spawn(async move {
            let accepted = ambit_hbone::accept(stream, certificate, &ambit_hbone::Limits::default()).await;
            let Ok(mut connection) = accepted else { return };
            assert_eq!(*connection.peer(), account(WAYPOINT), "nobody else comes here");
            while let Some(Ok(request)) = connection.next().await {
                tokio::spawn(async move {
                    let authority = request.authority().expect("an authority").to_string();
                    let Ok(mut app) = TcpStream::connect(&authority).await else {
                        return request.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
                    };
                    let Ok(mut tunnel) = request.accept(http::HeaderMap::new()) else { return };
                    let _ = copy::bidirectional(&mut tunnel, &mut app, PATIENCE).await;
                });
            }
        });
    }
}

// === impl App ===

impl App {
    /// At a free port of this address.
    pub async fn start(ip: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (released, gate) = watch::channel(false);
        let (count, asked) = watch::channel(0);
        let count = Arc::new(count);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, gate.clone(), Arc::clone(&count)));
            }
        });
        Self { address, released, asked }
    }
}

async fn answer(mut stream: TcpStream, mut gate: watch::Receiver<bool>, count: Arc<watch::Sender<u32>>) {
    while let Ok(head) = head(&mut stream).await {
        let mut body = vec![0; length(&head)];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        count.send_modify(|count| *count += 1);
        if head.contains(" /slow ") && gate.wait_for(|released| *released).await.is_err() {
            return;
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            return;
        }
    }
}
