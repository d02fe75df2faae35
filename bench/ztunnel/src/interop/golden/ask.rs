//! Puts one case to the proxy: a tunnel with the case's certificate, from its address, to its port.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ambit_hbone::{Connect, ConnectError, Limits, Network, Pool};
use ambit_identity::{CertificateStore, SpiffeId};
use http::{HeaderMap, StatusCode};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::timeout,
};

use super::{CLIENT, SERVER_ACCOUNT, cases::Case};
use crate::{
    control::TRUST_DOMAIN,
    pods::{Pod, SERVER},
};

const TUNNELS: u16 = 15_008;
/// How long one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(10);
const GREETING: &[u8; 5] = b"hello";

/// Makes connections as anybody.
pub(super) struct Asker {
    pool: Arc<Pool>,
    network: Arc<dyn Network>,
}

/// Sockets that leave from one address.
#[derive(Debug)]
struct FromAddress {
    network: Arc<dyn Network>,
    ip: Ipv4Addr,
}

// === impl Asker ===

impl Asker {
    pub(super) fn new(certificates: Arc<CertificateStore>, client: &Pod) -> Self {
        Self { pool: Pool::new(certificates, Limits::default()), network: client.sockets() }
    }

    /// Whether the connection is let through.
    pub(super) async fn ask(&self, case: &Case) -> io::Result<bool> {
        let network: Arc<dyn Network> = match case.source {
            CLIENT => Arc::clone(&self.network),
            ip => Arc::new(FromAddress { network: Arc::clone(&self.network), ip }),
        };
        let asked = async {
            match &case.peer {
                Some(peer) => self.tunnel(network, peer, case.port).await,
                None => plain(&*network, case.port).await,
            }
        };
        timeout(CASE_TIMEOUT, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn tunnel(&self, network: Arc<dyn Network>, peer: &SpiffeId, port: u16) -> io::Result<bool> {
        let server = SpiffeId::new(TRUST_DOMAIN, SERVER_ACCOUNT.0, SERVER_ACCOUNT.1).map_err(io::Error::other)?;
        let request = Connect {
            network,
            source: peer.clone(),
            peer: SocketAddr::from((SERVER, TUNNELS)),
            expected: vec![server],
            authority: format!("{SERVER}:{port}"),
            headers: HeaderMap::new(),
            mark: None,
            distant: false,
        };
        match self.pool.connect(request).await {
            Ok(tunnel) => talk(tunnel).await.map(|()| true),
            Err(ConnectError::Refused { status: StatusCode::UNAUTHORIZED, .. }) => Ok(false),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// Without TLS. The proxy accepts before it knows: a connection that isn't let through ends without a byte.
async fn plain(network: &dyn Network, port: u16) -> io::Result<bool> {
    let socket = network.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::from((SERVER, port))).await?;
    match talk(stream).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Other => Err(error),
        Err(_) => Ok(false),
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(GREETING).await?;
    let mut answer = [0; GREETING.len()];
    stream.read_exact(&mut answer).await?;
    if answer == *GREETING { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

/// Applications in the server's pod that send back what they get, until dropped. In a runtime.
pub(super) fn serve(server: &Pod, ports: BTreeSet<u16>) -> io::Result<JoinSet<()>> {
    let mut applications = JoinSet::new();
    for port in ports {
        let socket = server.sockets().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.listen(64)?;
        let listener = TcpListener::from_std(socket.into())?;
        applications.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _gone_away = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }
    Ok(applications)
}

// === impl FromAddress ===

impl Network for FromAddress {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let socket = self.network.socket(domain, ty, protocol)?;
        socket.bind(&SocketAddr::from((self.ip, 0)).into())?;
        Ok(socket)
    }
}
