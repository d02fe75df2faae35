//! Two nodes on one bridge: a client's pod on the one, a server's on the other, a node agent and a proxy on each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ambit_hbone::Network;
use ambit_node::zds::{Server, WorkloadInfo};
use ambit_node::{Capture, Node, NodeProcess, PodDns, PodNamespaces, PodNetworkSpec};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::process::{self, Ztunnel};

/// Where the client's pod is.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
/// Where the server's pod is.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
/// What the client calls.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 50)), 80);
/// Where the server listens.
pub(crate) const APPLICATION: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER), 8_080);
/// How long anything may take that isn't meant to take long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Path of an original ztunnel (built with its feature `testing`) to run in the place of `ambit ztunnel`: our node agent's
/// end is then tried by it. By hand only; the tests named `traffic`, `readiness` and `rolling` apply.
const ORIGINAL: &str = "AMBIT_TEST_ZTUNNEL";
/// A setting that isn't to be there.
pub(crate) const UNSET: &str = "<unset>";
/// The first address of proxies' own pods.
const FIRST_PROXY: u8 = 20;

pub(crate) type Outcome<T = ()> = Result<T, String>;

/// Everything that a test has. Ends with the node process.
pub(crate) struct World {
    folder: PathBuf,
    node: Node,
    pub(crate) client: NodeSide,
    pub(crate) server: NodeSide,
    next_proxy: AtomicU8,
    // Keeps the connection to the host process.
    _process: NodeProcess,
}

/// One node.
pub(crate) struct NodeSide {
    pub(crate) pod: Arc<PodNamespaces>,
    pub(crate) agent: Server,
    name: &'static str,
    socket: PathBuf,
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl World {
    /// Makes pods, agents and what the proxies are told of the mesh; starts nothing.
    pub(crate) fn new(process: NodeProcess, folder: &Path) -> Outcome<Self> {
        let node = Node::new(process.owner).map_err(text)?;
        let own = folder.join("own");
        process::write(&own.join("mesh.yaml"), MESH).map_err(text)?;
        let client = NodeSide::new(&node, &own, "client", CLIENT)?;
        let server = NodeSide::new(&node, &own, "server", SERVER)?;
        let next_proxy = AtomicU8::new(FIRST_PROXY);
        Ok(Self { folder: folder.to_owned(), node, client, server, next_proxy, _process: process })
    }

    /// A file or folder of the test's user.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join("own").join(name)
    }

    /// One more pod.
    pub(crate) fn pod(&self, name: &str, ip: Ipv4Addr, capture: Capture) -> Outcome<PodNamespaces> {
        pod(&self.node, name, ip, capture)
    }

    /// A pod for a proxy itself.
    pub(crate) fn proxy_pod(&self) -> Outcome<Arc<PodNamespaces>> {
        let number = self.next_proxy.fetch_add(1, Ordering::Relaxed);
        let ip = Ipv4Addr::new(10, 244, 0, number);
        pod(&self.node, &format!("ztunnel-{number}"), ip, Capture::None).map(Arc::new)
    }

    /// Starts a proxy on that node.
    pub(crate) fn start(&self, side: &NodeSide, more: &[(&str, &str)]) -> Outcome<Ztunnel> {
        self.start_in(&self.proxy_pod()?, side, more)
    }

    /// Starts a proxy on that node, in this pod.
    pub(crate) fn start_in(
        &self,
        pod: &Arc<PodNamespaces>,
        side: &NodeSide,
        more: &[(&str, &str)],
    ) -> Outcome<Ztunnel> {
        let own = self.folder.join("own");
        let path = |name: &str| own.join(name).display().to_string();
        let mut settings = vec![
            ("INPOD_UDS", side.socket.display().to_string()),
            ("XDS_ADDRESS", String::new()),
            ("LOCAL_XDS_PATH", path("mesh.yaml")),
            ("AMBIT_INSECURE_CA_DIR", path("ca")),
            ("NODE_NAME", side.name.to_owned()),
            ("CLUSTER_ID", "test".to_owned()),
            ("RUST_LOG", "info".to_owned()),
        ];
        settings.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        // No value stands for no setting.
        let more = more.iter().filter(|(_, value)| *value != UNSET);
        settings.extend(more.map(|(name, value)| (*name, (*value).to_owned())));
        let log = own.join(format!("{}.log", pod.name()));
        match std::env::var_os(ORIGINAL) {
            Some(program) => {
                settings.push(("FAKE_CA", "true".to_owned()));
                Ztunnel::start(Path::new(&program), &["proxy", "ztunnel"], pod, log, &settings).map_err(text)
            }
            None => {
                let arguments = ["ztunnel", "proxy", "ztunnel"];
                Ztunnel::start(&self.folder.join("ambit"), &arguments, pod, log, &settings).map_err(text)
            }
        }
    }

    /// An agent-named pod on each node, and a ready proxy beside it.
    pub(crate) async fn start_both(&self, more: &[(&str, &str)]) -> Outcome<(Ztunnel, Ztunnel)> {
        let (mut client, mut server) = (self.start(&self.client, more)?, self.start(&self.server, more)?);
        self.client.serve_pod().await?;
        self.server.serve_pod().await?;
        client.ready(PATIENCE).await?;
        server.ready(PATIENCE).await?;
        Ok((client, server))
    }
}

impl NodeSide {
    fn new(node: &Node, folder: &Path, name: &'static str, ip: Ipv4Addr) -> Outcome<Self> {
        let socket = folder.join(format!("{name}.sock"));
        let agent = Server::bind(&socket).map_err(text)?;
        Ok(Self { pod: Arc::new(pod(node, name, ip, Capture::Mesh)?), agent, name, socket })
    }

    /// Waits until so many proxies know all pods.
    pub(crate) async fn proxies(&self, count: usize) -> Outcome {
        let mut synced = self.agent.synced();
        let came = matches!(tokio::time::timeout(PATIENCE, synced.wait_for(|now| *now == count)).await, Ok(Ok(_)));
        if came { Ok(()) } else { Err(format!("never had {count} proxies")) }
    }

    /// Has the agent name its pod.
    pub(crate) async fn serve_pod(&self) -> Outcome {
        self.proxies(1).await?;
        let info = WorkloadInfo {
            name: self.name.to_owned(),
            namespace: "test".to_owned(),
            service_account: self.name.to_owned(),
        };
        let network = self.pod.network().as_fd().try_clone_to_owned().map_err(text)?;
        self.agent.add(self.name, info, network).await.map_err(text)
    }

    /// A socket of the pod's application.
    pub(crate) fn socket(&self) -> io::Result<Socket> {
        self.pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
    }

    /// Connects as the pod's application.
    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpSocket::from_std_stream(self.socket()?.into()).connect(address).await
    }

    /// Listens as the pod's application.
    pub(crate) fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket()?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1_024)?;
        TcpListener::from_std(socket.into())
    }
}

/// An application that serves. When dropped it listens no more, so that the next test may: aborting it alone would have that
/// happen later.
#[must_use = "it ends when dropped"]
pub(crate) struct Application {
    task: tokio::task::JoinHandle<()>,
    listener: Socket,
}

/// Serves an application that answers each line with the caller's address and the line, until dropped.
pub(crate) fn echo(listener: TcpListener) -> io::Result<Application> {
    Application::start(listener, |mut stream, peer| async move {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            let answer = [format!("{} ", peer.ip()).as_bytes(), &buffer[..length]].concat();
            stream.write_all(&answer).await?;
        }
        Ok(())
    })
}

impl Application {
    /// Serves each connection in a task of its own.
    pub(crate) fn start<F>(
        listener: TcpListener,
        serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let same = SockRef::from(&listener).try_clone()?;
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, peer)) = listener.accept().await else { continue };
                tokio::spawn(serve(stream, peer));
            }
        });
        Ok(Self { task, listener: same })
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
        // Of a listener this is the end, whoever else holds it.
        let _ = self.listener.shutdown(Shutdown::Both);
    }
}

/// Says one line and hears the answer.
pub(crate) async fn exchange(stream: &mut TcpStream) -> io::Result<String> {
    let talk = async {
        stream.write_all(b"hello\n").await?;
        let mut answer = Vec::new();
        let mut buffer = [0; 256];
        while answer.last() != Some(&b'\n') {
            match stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => answer.extend_from_slice(&buffer[..length]),
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(PATIENCE, talk).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn pod(node: &Node, name: &str, ip: Ipv4Addr, capture: Capture) -> Outcome<PodNamespaces> {
    let dns = PodDns { nameserver: Ipv4Addr::new(10, 96, 0, 10), search: Vec::new(), ndots: 5 };
    let spec = PodNetworkSpec { name: name.to_owned(), ip, capture, dns, hosts: Vec::new(), hide: Vec::new() };
    node.create_pod(&spec).map_err(text)
}

/// What is in the mesh, in ztunnel's LOCAL_XDS form.
pub(crate) const MESH: &str = r#"{
  "workloads": [
    {"uid": "test//Pod/test/client", "name": "client", "namespace": "test", "trustDomain": "cluster.local",
     "serviceAccount": "client", "workloadIps": ["10.244.0.2"], "protocol": "HBONE", "node": "client", "services": {}},
    {"uid": "somewhere/else/server", "name": "server", "namespace": "test", "trustDomain": "cluster.local",
     "serviceAccount": "server", "workloadIps": ["10.244.0.3"], "protocol": "HBONE", "node": "server",
     "services": {"test/server.test.svc.cluster.local": {80: 8080}}}
  ],
  "services": [
    {"name": "server", "namespace": "test", "hostname": "server.test.svc.cluster.local", "vips": ["/10.96.0.50"],
     "ports": {80: 8080}}
  ],
  "policies": []
}"#;
