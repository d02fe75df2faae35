//! What a workload that does nothing wrong sees, measured on a thread of its own: its caller, its tunnel and its
//! application, so that the flood's clients don't get in between.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_hbone::{Limits, Network, Pool, Tunnel};
use ambit_identity::CertificateStore;
use ambit_node::PodNamespaces;
use socket2::{Domain, Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::attack::tunnel_to;
use crate::world::{Outcome, SERVER, text};

/// Measured in so many windows, of so many exchanges and so many new connections. The lower quartile of the windows counts:
/// what else runs on the machine can only add to a window, while a flood that harms is in all of them.
const WINDOWS: usize = 8;
const EXCHANGES: usize = 1_000;
const NEW_CONNECTIONS: usize = 100;
/// Before that, not measured.
const WARM_UP: usize = 200;
/// Bytes of one exchange, each way.
const MESSAGE: usize = 64;
/// Where its application listens.
const PORT: u16 = 8_090;

/// Lower quartiles of the windows' p99.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Of an exchange on a connection that is there.
    pub(super) exchange: Duration,
    /// Of a new connection, with its first exchange.
    pub(super) connection: Duration,
    /// The median exchange.
    typical: Duration,
}

/// Measures for as long as the windows take.
pub(super) fn measure(
    victim: &PodNamespaces,
    network: Arc<impl Network>,
    certificates: Arc<CertificateStore>,
) -> Outcome<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    runtime.block_on(async {
        let application = serve(victim).map_err(text)?;
        let pool = Pool::new(certificates, Limits::default());
        let network: Arc<dyn Network> = network;
        let request = tunnel_to(&network, SERVER, PORT, "server");
        let open = || async { pool.connect(request.clone()).await.map_err(text) };
        let mut tunnel = open().await?;
        for _ in 0..WARM_UP {
            exchange(&mut tunnel).await?;
        }
        let mut windows = Vec::new();
        for _ in 0..WINDOWS {
            let mut exchanges = Vec::with_capacity(EXCHANGES);
            for _ in 0..EXCHANGES {
                exchanges.push(exchange(&mut tunnel).await?);
            }
            let mut connections = Vec::with_capacity(NEW_CONNECTIONS);
            for _ in 0..NEW_CONNECTIONS {
                let started = Instant::now();
                exchange(&mut open().await?).await?;
                connections.push(started.elapsed());
            }
            let (typical, exchange) = (at(&mut exchanges, 50), at(&mut exchanges, 99));
            windows.push((exchange, at(&mut connections, 99), typical));
        }
        pool.close();
        application.abort();
        let quartile = |of: fn(&(Duration, Duration, Duration)) -> Duration| {
            at(&mut windows.iter().map(of).collect::<Vec<_>>(), 25)
        };
        Ok(Figures { exchange: quartile(|w| w.0), connection: quartile(|w| w.1), typical: quartile(|w| w.2) })
    })
}

/// An application that answers with what it gets.
fn serve(victim: &PodNamespaces) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let socket = victim.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.listen(1_024)?;
    let listener = TcpListener::from_std(socket.into())?;
    Ok(tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    }))
}

async fn exchange(tunnel: &mut Tunnel) -> Outcome<Duration> {
    let started = Instant::now();
    tunnel.write_all(&[b'x'; MESSAGE]).await.map_err(text)?;
    let mut answer = [0; MESSAGE];
    tunnel.read_exact(&mut answer).await.map_err(text)?;
    Ok(started.elapsed())
}

/// That percentile.
fn at(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    samples[(samples.len() * percent / 100).min(samples.len() - 1)]
}

// === impl Figures ===

impl Figures {
    /// The mean of both.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self {
            exchange: (self.exchange + other.exchange) / 2,
            connection: (self.connection + other.connection) / 2,
            typical: (self.typical + other.typical) / 2,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exchange, connection, typical } = self;
        write!(f, "p99 of exchanges {exchange:.0?} (median {typical:.0?}), of new connections {connection:.0?}")
    }
}
