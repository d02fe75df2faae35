//! The way from the node process to the key servers of tokens' issuers: pods over the mesh's own network, all others over
//! the host's.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ambit_control_plane::keys::{Asked, Outside};
use ambit_hbone::{
    HostNetwork, Network,
    socket::{self, ConnectOptions},
};
use tokio::net::TcpStream;

/// Longest wait for a connection to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The host's own name for itself, which no resolver is asked about.
const LOCALHOST: &str = "localhost";

/// Key servers in the mesh and outside of it.
#[derive(Debug)]
pub(super) struct KeyServers {
    host: Arc<dyn Network>,
    resolvers: Vec<SocketAddr>,
}

// === impl KeyServers ===

impl KeyServers {
    pub(super) fn new(host: Arc<dyn Network>, resolvers: Vec<SocketAddr>) -> Self {
        Self { host, resolvers }
    }
}

impl Outside for KeyServers {
    fn resolve(&self, host: String) -> Asked<Vec<IpAddr>> {
        let (network, resolvers) = (Arc::clone(&self.host), self.resolvers.clone());
        Box::pin(async move {
            if host == LOCALHOST {
                return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
            }
            let found = ambit_ztunnel::addresses_of(&*network, &resolvers, &host).await;
            if found.is_empty() { Err(io::Error::other("no resolver knows the name")) } else { Ok(found) }
        })
    }

    fn connect(&self, address: SocketAddr, inside: bool) -> Asked<TcpStream> {
        let host = Arc::clone(&self.host);
        Box::pin(async move {
            let options = ConnectOptions { timeout: CONNECT_TIMEOUT, ..ConnectOptions::default() };
            let network: &dyn Network = if inside { &HostNetwork } else { &*host };
            socket::connect(network, address, &options).await
        })
    }
}
