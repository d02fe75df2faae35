//! Floods. Each goes on until it is dropped, at a pace that leaves processor time for what is measured: what it costs the
//! proxy is the question, not what it costs its clients on the same machine.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ambit_hbone::{Connect, Limits, Network, Pool, Tunnel};
use ambit_identity::SpiffeId;
use ambit_node::PodNamespaces;
use http::HeaderMap;
use socket2::{Domain, Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{CONNECTIONS, FLOODER, PEER, SINK, Stage};
use crate::world::{Outcome, PATIENCE, text};

/// Where those who are flooded listen.
const PORT: u16 = 9_000;
/// What is begun each time, and how often.
const BATCH: usize = 1;
const PACE: Duration = Duration::from_millis(1);
/// Tunnels of slow readers, and streams in each.
const TUNNELS: usize = 12;
const STREAMS: usize = 20;
/// Receive buffer of those who don't read.
const SMALL_BUFFER: usize = 16 << 10;
/// How long a slow reader waits for its stream.
const ANSWER: Duration = Duration::from_millis(500);
/// How long a handshake is left unfinished.
const UNFINISHED: Duration = Duration::from_secs(1);

/// The flood's ends, on threads of their own, behind all others in priority: they are other machines' in truth.
struct Crowd {
    tasks: JoinSet<()>,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

impl Crowd {
    fn new() -> Outcome<Self> {
        let behind = || {
            let own = Some(rustix::thread::gettid());
            rustix::process::setpriority_process(own, 19).expect("a lower priority is always to be had");
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).on_thread_start(behind).enable_all().build();
        Ok(Self { tasks: JoinSet::new(), runtime: Some(runtime.map_err(text)?) })
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            self.tasks.spawn_on(task, runtime.handle());
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The flooder opens connections to somebody outside the mesh, and keeps those that it gets.
pub(super) async fn connections(stage: &Stage) -> Outcome {
    let mut crowd = Crowd::new()?;
    let listener = listen(&stage.sink, PORT).map_err(text)?;
    crowd.spawn(async move {
        let mut kept = Vec::new();
        loop {
            kept.extend(listener.accept().await);
        }
    });
    let network = stage.flooder.network();
    paced(crowd, CONNECTIONS, move || {
        let network = Arc::clone(&network);
        async move {
            let Ok(mut stream) = connect(&*network, SocketAddr::from((SINK, PORT))).await else { return };
            // Until it is reset.
            let _ = stream.read(&mut [0]).await;
        }
    })
    .await
}

/// Somebody begins handshakes with the flooder's proxy, and leaves it to finish them. The first message is always the same,
/// so that it costs nothing.
pub(super) async fn handshakes(stage: &Stage) -> Outcome {
    let hello = Arc::new(client_hello(stage).await?);
    let network = stage.peer.network();
    paced(Crowd::new()?, usize::MAX, move || {
        let (network, hello) = (Arc::clone(&network), Arc::clone(&hello));
        async move {
            let Ok(mut stream) = connect(&*network, SocketAddr::from((FLOODER, 15_008))).await else { return };
            if stream.write_all(&hello).await.is_ok() {
                sleep(UNFINISHED).await;
            }
        }
    })
    .await
}

/// Many streams, each with as much in it as goes in, both ways, and nobody reads.
pub(super) async fn slow_readers(stage: &Stage) -> Outcome {
    let mut crowd = Crowd::new()?;
    let listener = listen(&stage.flooder, PORT).map_err(text)?;
    crowd.spawn(async move {
        let mut writers = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            writers.spawn(fill(stream));
        }
    });
    let network: Arc<dyn Network> = stage.peer.network();
    let request = tunnel_to(&network, FLOODER, PORT, "flooder");
    // They take in little themselves.
    let limits = Limits { stream_window_bytes: 65_535, connection_window_bytes: 65_535, ..Limits::default() };
    let pools: Vec<_> = (0..TUNNELS).map(|_| Pool::new(Arc::clone(&stage.certificates), limits.clone())).collect();
    'opening: for _ in 0..STREAMS {
        for pool in &pools {
            // Once the bound is reached, there is a refusal, or no answer on a tunnel that is full already.
            let Ok(Ok(tunnel)) = timeout(ANSWER, pool.connect(request.clone())).await else { break 'opening };
            crowd.spawn(fill_tunnel(tunnel));
        }
    }
    // One more, again and again; those that are there are in no state to carry it.
    loop {
        sleep(PACE * 50).await;
        let one_more = Pool::new(Arc::clone(&stage.certificates), limits.clone());
        if let Ok(Ok(tunnel)) = timeout(PATIENCE, one_more.connect(request.clone())).await {
            crowd.spawn(fill_tunnel(tunnel));
        }
    }
}

/// A tunnel to a port of a pod whose identity is that account.
pub(super) fn tunnel_to(network: &Arc<dyn Network>, ip: Ipv4Addr, port: u16, account: &str) -> Connect {
    let identity = |account| SpiffeId::new("cluster.local", "test", account).expect("an identity");
    Connect {
        network: Arc::clone(network),
        source: identity("client"),
        peer: SocketAddr::from((ip, 15_008)),
        expected: vec![identity(account)],
        authority: SocketAddr::from((ip, port)).to_string(),
        headers: HeaderMap::new(),
        mark: None,
        distant: false,
    }
}

/// Begins so many, a batch at a time, and waits for those that last.
async fn paced<F>(mut crowd: Crowd, count: usize, begin: impl Fn() -> F) -> Outcome
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut clock = interval(PACE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut begun = 0;
    while begun < count {
        clock.tick().await;
        for _ in 0..BATCH {
            crowd.spawn(begin());
        }
        begun += BATCH;
        while let Some(ended) = crowd.tasks.try_join_next() {
            ended.map_err(text)?;
        }
    }
    // What is refused from now on is what comes back for more.
    loop {
        clock.tick().await;
        crowd.spawn(begin());
        while let Some(ended) = crowd.tasks.try_join_next() {
            ended.map_err(text)?;
        }
    }
}

async fn fill(mut stream: TcpStream) {
    while stream.write_all(&[0; 1 << 16]).await.is_ok() {}
}

async fn fill_tunnel(mut tunnel: Tunnel) {
    while tunnel.write_all(&[0; 1 << 16]).await.is_ok() {}
}

/// What a caller says first.
async fn client_hello(stage: &Stage) -> Outcome<Vec<u8>> {
    let listener = listen(&stage.peer, PORT).map_err(text)?;
    let network: Arc<dyn Network> = stage.peer.network();
    let request = Connect { peer: SocketAddr::from((PEER, PORT)), ..tunnel_to(&network, FLOODER, PORT, "flooder") };
    let pool = Pool::new(Arc::clone(&stage.certificates), Limits::default());
    let calling = tokio::spawn(async move { pool.connect(request).await.map(drop) });
    let heard = async {
        let (mut stream, _) = listener.accept().await?;
        let mut head = [0; 5];
        stream.read_exact(&mut head).await?;
        let mut hello = head.to_vec();
        hello.resize(head.len() + usize::from(u16::from_be_bytes([head[3], head[4]])), 0);
        stream.read_exact(&mut hello[head.len()..]).await?;
        Ok::<_, io::Error>(hello)
    };
    let hello = timeout(PATIENCE, heard).await.map_err(text)?.map_err(text)?;
    calling.abort();
    Ok(hello)
}

async fn connect(network: &dyn Network, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = network.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

fn listen(pod: &PodNamespaces, port: u16) -> io::Result<TcpListener> {
    let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Little fits into the kernel, so that what nobody reads is soon the proxy's to hold.
    socket.set_recv_buffer_size(SMALL_BUFFER)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4_096)?;
    TcpListener::from_std(socket.into())
}
