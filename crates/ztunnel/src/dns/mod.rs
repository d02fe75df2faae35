//! The DNS listener of one pod (`spec/ztunnel.md` 12): names of the mesh are answered here, all others by resolvers
//! outside. It listens on the pod's loopback only and answers nobody but the pod, so it is no open resolver.

mod answer;
mod cache;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod lookup;
mod resolve;
mod serve;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::{
    Network,
    socket::{self, ListenOptions},
};
use ambit_mesh::View;
use tokio::net::{TcpListener, UdpSocket};

pub use self::lookup::addresses_of;
use self::{
    answer::{Outcome, answer},
    resolve::Names,
    serve::Server,
};
use crate::{balance::random, pod::PodProxy};

/// How names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsOptions {
    /// Namespace that wins among services of one hostname, after the client's own and the canonical one.
    pub preferred_namespace: Option<String>,
    /// Search domains that pods use; nothing for those that Kubernetes gives a pod of its namespace.
    pub search: Option<Vec<String>>,
    /// Names have IPv6 addresses; otherwise questions for them get none.
    pub ipv6: bool,
}

/// A pod's DNS sockets: over UDP and TCP, on each of its loopback addresses.
#[derive(Debug)]
pub(crate) struct Listeners {
    sockets: Vec<(Arc<UdpSocket>, TcpListener)>,
}

// === impl DnsOptions ===

impl Default for DnsOptions {
    fn default() -> Self {
        Self { preferred_namespace: None, search: None, ipv6: true }
    }
}

// === impl Listeners ===

impl Listeners {
    /// Binds all on the pod's loopback addresses. IPv6 is left out where the pod's network has none.
    pub(crate) fn bind(network: &dyn Network, port: u16, mark: Option<u32>, ipv6: bool) -> io::Result<Self> {
        let options = ListenOptions { mark, ..ListenOptions::default() };
        let bind = |address: SocketAddr| {
            let tcp = socket::listen(network, address, &options)?;
            // The same port for both, also where the kernel chose it.
            let udp = socket::udp(network, tcp.local_addr()?, mark)?;
            io::Result::Ok((Arc::new(udp), tcp))
        };
        let first = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let port = first.1.local_addr()?.port();
        let mut sockets = vec![first];
        if ipv6 {
            match bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
                Ok(second) => sockets.push(second),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                Err(error) => tracing::debug!(target: "dns", %error, "the pod has no IPv6 loopback address"),
            }
        }
        Ok(Self { sockets })
    }

    /// Where queries go.
    #[cfg(test)]
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.sockets[0].0.local_addr()
    }

    /// Starts serving.
    pub(crate) fn serve(self, pod: &Arc<PodProxy>) {
        let server = Arc::new(Server::new(Arc::clone(pod)));
        for (udp, tcp) in self.sockets {
            let served = Arc::clone(&server);
            pod.spawn(async move { served.serve_udp(&udp).await });
            let served = Arc::clone(&server);
            pod.spawn(async move { served.serve_tcp(&tcp).await });
        }
    }
}

/// Judges a query of this pod.
fn judge(pod: &PodProxy, view: &View, packet: &[u8]) -> Outcome {
    let config = &pod.shared.config;
    let names = Names {
        namespace: &pod.pod.namespace,
        cluster_domain: &config.cluster_domain,
        // Elsewhere than on one machine, the cluster's own DNS knows more names than the mesh does.
        authoritative: pod.pod.in_pod.is_none().then_some([config.pod_cidr, config.service_cidr]),
        preferred_namespace: config.dns.preferred_namespace.as_deref(),
        search: config.dns.search.as_deref(),
        ipv6: config.dns.ipv6,
    };
    answer(view, names, packet, random())
}
