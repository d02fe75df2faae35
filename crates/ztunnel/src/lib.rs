//! The L4 node proxy: what a pod sends enters the mesh here, and what it gets leaves the mesh here (`spec/ztunnel.md`).
//!
//! What it does, per pod and with listeners inside the pod's own network namespace: find the way of captured
//! connections ([`Ztunnel::serve_outbound`] and port 15001), terminate HBONE (15008) and captured plaintext (15006),
//! keep guarded ports to their waypoint, enforce L4 policy on new and on live connections, and answer DNS (15053).
//! What it refuses to do: read what a connection carries, make or change network namespaces, or let anything through
//! for lack of knowledge.
#![forbid(unsafe_code)]

mod account;
pub mod admin;
mod application_tunnel;
mod baggage;
mod balance;
mod budget;
mod dns;
mod explain;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod inbound;
mod labels;
mod limits;
#[doc(hidden)]
pub mod measuring;
mod network;
mod next_hop;
mod on_demand;
mod outbound;
mod plaintext;
mod pod;
mod record;
mod route;
mod socks;
mod splice;
mod tracking;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_hbone::{Network, socket::StreamOptions};
use ambit_identity::CertificateStore;
use ambit_mesh::Store;
use ambit_telemetry::{Recorder, metrics::Metrics};
use ipnet::{IpNet, Ipv4Net};
use tokio::{net::TcpStream, runtime::Handle, sync::Semaphore};

pub use dns::{DnsOptions, addresses_of};
pub use limits::Limits;
pub use on_demand::OnDemand;
use pod::PodProxy;

/// Mark of every socket the proxy makes in a pod's namespace; the capture rules let it pass (`spec/ztunnel.md` 11.4).
pub const PROXY_MARK: u32 = 0x539;

/// Port of SOCKS5, where it is switched on.
pub const SOCKS5_PORT: u16 = 15080;

/// What a node proxy has to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Domain that the names of services end in.
    pub cluster_domain: String,
    /// Resolvers for names outside the mesh, asked in this order from the host's network.
    pub upstream_dns: Vec<SocketAddr>,
    /// Bounds of the proxy.
    pub limits: Limits,
    /// Bounds and timeouts of the HBONE transport.
    pub transport: ambit_hbone::Limits,
    /// Addresses of pods; an unknown one of them is refused, never passed on to the host.
    pub pod_cidr: IpNet,
    /// Virtual addresses of services; an unknown one of them is refused, never passed on to the host.
    pub service_cidr: IpNet,
    /// How long open connections may run on when a pod is removed.
    pub drain: Duration,
    /// Mark of the sockets made in pods' namespaces. Only tests without the privilege leave it out.
    pub mark: Option<u32>,
    /// Applications see their client's address. Only tests without the privilege turn it off.
    pub preserve_source: bool,
    /// An application behind an application tunnel that speaks PROXY is reached at its loopback.
    pub tunnel_to_loopback: bool,
    /// Peers are told who answers them (`baggage` in responses), and what peers say so of themselves is believed in metrics.
    pub response_baggage: bool,
    /// Who is refused is told why: peers in the answer to their CONNECT, clients that speak HTTP/1 by a 403. Otherwise
    /// clients see a reset.
    pub explain_refusals: bool,
    /// How dead ends of applications' connections are found.
    pub stream: StreamOptions,
    /// Ports of the listeners in pods.
    pub ports: Ports,
    /// Connections are carried; otherwise only names are answered.
    pub carry_connections: bool,
    /// Names are answered.
    pub answer_dns: bool,
    /// How long connections are kept though nothing moves on them.
    pub idle: ambit_hbone::copy::Timeouts,
    /// Port on the pod's loopback that speaks SOCKS5; nothing for none. The usual one is [`SOCKS5_PORT`].
    pub socks5: Option<u16>,
    /// Listeners share their ports (`SO_REUSEPORT`), so that the proxy that takes over can serve beside this one.
    pub reuse_port: bool,
    /// How names are answered.
    pub dns: DnsOptions,
    /// Asks the control plane for what isn't known yet; nothing where everything is told unasked.
    pub on_demand: Option<Arc<OnDemand>>,
    /// Where TLS handshakes are computed, each on one of these, so that many of them don't hold up traffic; none for where
    /// they come in.
    pub handshakes: Arc<[Handle]>,
    /// What counts.
    pub metrics: Arc<Metrics>,
}

/// Ports of the listeners in pods; 0 lets the kernel choose, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Captured outbound connections.
    pub outbound: u16,
    /// Captured inbound connections.
    pub plaintext: u16,
    /// HBONE. Peers always use 15008.
    pub hbone: u16,
    /// DNS over UDP and TCP.
    pub dns: u16,
}

/// A pod whose traffic the proxy carries.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The workload's uid in the mesh's [`View`](ambit_mesh::View).
    pub uid: Arc<str>,
    /// Its address.
    pub ip: IpAddr,
    /// Its namespace, which short DNS names are relative to.
    pub namespace: String,
    /// Makes sockets in its network namespace.
    pub network: Arc<dyn Network>,
    /// It is in the mesh. Otherwise the node only plays what kube-proxy and cluster DNS are elsewhere: services are
    /// reached by plain TCP, without an identity.
    pub captured: bool,
    /// What a node agent says of it; nothing if `uid` is the workload's in the mesh's view.
    pub in_pod: Option<InPod>,
}

/// A pod that a node agent asks to serve, in the cluster's way: listeners on all addresses, the way out from the pod's own
/// network, and the workload found by its names (`spec/ztunnel.md` 4 and 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPod {
    /// Pod name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Cluster, the first part of a pod's uid in the mesh's view.
    pub cluster: String,
    /// The node; the workload has to be one of its. Nothing takes any.
    pub node: Option<String>,
    /// All its addresses, `Pod::ip` among them.
    pub addresses: Vec<IpAddr>,
    /// IPv6 is served too.
    pub ipv6: bool,
}

/// The node proxy.
pub struct Ztunnel {
    shared: Arc<Shared>,
    pods: Mutex<HashMap<Arc<str>, Arc<PodProxy>>>,
}

/// What all pods share.
struct Shared {
    config: Config,
    store: Arc<Store>,
    certificates: Arc<CertificateStore>,
    host: Arc<dyn Network>,
    recorder: Recorder,
    budgets: budget::Budgets,
    /// Places for refused clients that are told why.
    explanations: Semaphore,
    loads: Arc<ambit_mesh::loads::Loads>,
    names: outbound::Names,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            upstream_dns: Vec::new(),
            limits: Limits::default(),
            transport: ambit_hbone::Limits::default(),
            pod_cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)),
            service_cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
            drain: Duration::ZERO,
            mark: Some(PROXY_MARK),
            preserve_source: true,
            tunnel_to_loopback: true,
            response_baggage: true,
            explain_refusals: true,
            stream: StreamOptions::default(),
            ports: Ports::default(),
            carry_connections: true,
            answer_dns: true,
            idle: ambit_hbone::copy::Timeouts::default(),
            socks5: None,
            reuse_port: false,
            dns: DnsOptions::default(),
            on_demand: None,
            handshakes: Arc::default(),
            metrics: Metrics::new("ztunnel", "unknown"),
        }
    }
}

// === impl Ports ===

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, plaintext: 15006, hbone: route::HBONE_PORT, dns: 15053 }
    }
}

// === impl Ztunnel ===

impl Ztunnel {
    /// A proxy without pods. `host` makes sockets in the host's network, for what isn't the mesh's.
    #[must_use]
    pub fn new(
        config: Config,
        store: Arc<Store>,
        certificates: Arc<CertificateStore>,
        host: Arc<dyn Network>,
        recorder: Recorder,
    ) -> Arc<Self> {
        let budgets = budget::Budgets::new(&config);
        let shared = Shared {
            config,
            store,
            certificates,
            host,
            recorder,
            budgets,
            explanations: Semaphore::new(limits::MAX_EXPLANATIONS),
            loads: Arc::new(ambit_mesh::loads::Loads::new(limits::LOAD_COUNTERS)),
            names: outbound::Names::default(),
        };
        let ztunnel = Arc::new(Self { shared: Arc::new(shared), pods: Mutex::default() });
        let counted = Arc::downgrade(&ztunnel);
        ztunnel.shared.config.metrics.traffic.before_scrape(move || {
            if let Some(ztunnel) = counted.upgrade() {
                ztunnel.count_moved();
            }
        });
        ztunnel
    }

    /// Makes the listeners in the pod's namespace, and serves them on the current tokio runtime. When this returns, the
    /// pod may start.
    ///
    /// # Errors
    /// When the pod is there already, or a listener can't be made; the message names the port.
    pub fn add(self: &Arc<Self>, pod: Pod) -> io::Result<()> {
        self.insert(pod, PodProxy::start)
    }

    /// The same for the pod that the proxy itself runs in, so that its metrics can be fetched over mutual TLS and under
    /// policy (`spec/ztunnel.md` 1): only HBONE is served, and applications see the proxy's address, not the client's.
    ///
    /// # Errors
    /// As [`Ztunnel::add`].
    pub fn add_own(self: &Arc<Self>, pod: Pod) -> io::Result<()> {
        self.insert(pod, PodProxy::start_own)
    }

    fn insert(&self, pod: Pod, start: impl FnOnce(Pod, Arc<Shared>) -> io::Result<Arc<PodProxy>>) -> io::Result<()> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.contains_key(&pod.uid) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("pod `{}` is served already; remove it first", pod.uid),
            ));
        }
        let uid = Arc::clone(&pod.uid);
        pods.insert(uid, start(pod, Arc::clone(&self.shared))?);
        Ok(())
    }

    /// Closes the pod's listeners at once and its connections after [`Config::drain`]. An unknown uid is fine.
    pub fn remove(&self, uid: &str) {
        let pod = self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let Some(pod) = pod else { return };
        let drain = self.shared.config.drain;
        pod.close();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !drain.is_zero() => {
                runtime.spawn(async move { pod.drained(tokio::time::Instant::now() + drain).await });
            }
            _ => pod.stop(),
        }
    }

    /// Carries a connection that was accepted elsewhere as if this pod had opened it to `destination`. Returns when it
    /// has ended; a connection that can't go on is reset and recorded.
    pub async fn serve_outbound(&self, uid: &str, stream: TcpStream, destination: SocketAddr) {
        match self.pod(uid) {
            Some(pod) => {
                pod.tune(&stream);
                outbound::enter(&pod, stream, destination).await;
            }
            None => ambit_hbone::socket::reset_on_close(&stream),
        }
    }

    /// Stops accepting, lets open connections run until the deadline, then ends them.
    pub async fn drain(&self, deadline: Duration) {
        // They stay in the table: a pod that goes away meanwhile is to end at once.
        let pods: Vec<Arc<PodProxy>> =
            self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let until = tokio::time::Instant::now() + deadline;
        for pod in &pods {
            pod.close();
        }
        futures_util::future::join_all(pods.iter().map(|pod| pod.drained(until))).await;
        let drained: Vec<_> = pods.iter().map(|pod| Arc::clone(&pod.pod.uid)).collect();
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| !drained.contains(uid));
    }

    /// Counts the bytes that live connections have moved so far. Otherwise they are counted at their end.
    fn count_moved(&self) {
        let pods: Vec<_> = self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        pods.iter().for_each(|pod| pod.tracked.flush());
    }

    fn pod(&self, uid: &str) -> Option<Arc<PodProxy>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}

impl std::fmt::Debug for Ztunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ztunnel").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
