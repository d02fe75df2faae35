//! A control plane for one proxy, at the loopback of its own pod: delta ADS and a CA over gRPC.

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_hbone::Network;
use ambit_identity::{BoxFuture, Ca, SpiffeId};
use ambit_node::PodNamespaces;
use ambit_xds::discovery::Node;
use ambit_xds::server::{Authorize, Denied, Peer, Resources, Server};
use socket2::{Domain, Protocol, Type};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::world::{Outcome, text};

/// Where it is, as the proxy is told.
pub(crate) const ADDRESS: &str = "http://127.0.0.1:15010";

/// What all proxies are served from.
pub(crate) struct ControlPlane {
    pub(crate) resources: Arc<Resources>,
    ca: Arc<Ca>,
    _folder: tempfile::TempDir,
}

/// Lets everybody have everything.
struct Everybody;

impl Authorize for Everybody {
    fn discovery<'a>(&'a self, _: &'a Peer, _: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn certificate<'a>(
        &'a self,
        _: &'a Peer,
        impersonated: Option<&'a SpiffeId>,
    ) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        let identity = impersonated.cloned().ok_or_else(|| Denied::new("it asks for no identity"));
        Box::pin(std::future::ready(identity))
    }
}

impl ControlPlane {
    /// One with these resources (in ztunnel's LOCAL_XDS form) and a root of its own.
    pub(crate) fn new(resources: &str) -> Outcome<Self> {
        let folder = tempfile::tempdir().map_err(text)?;
        let ca = Arc::new(Ca::open(&folder.path().join("ca"), "cluster.local").map_err(text)?);
        let control_plane = Self { resources: Resources::new(), ca, _folder: folder };
        control_plane.apply(resources)?;
        Ok(control_plane)
    }

    /// Adds resources, or replaces those of the same names.
    pub(crate) fn apply(&self, resources: &str) -> Outcome {
        self.resources.apply(&ambit_xds::local::load_text("test", resources).map_err(text)?);
        Ok(())
    }

    /// Serves in that pod until dropped.
    pub(crate) fn serve_in(&self, pod: &PodNamespaces) -> Outcome<DropGuard> {
        let listen = || {
            let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 15_010)).into())?;
            socket.listen(16)?;
            TcpListener::from_std(socket.into())
        };
        let listener = listen().map_err(text)?;
        let stop = CancellationToken::new();
        let server = Server::new(Arc::new(Everybody)).with_resources(Arc::clone(&self.resources));
        tokio::spawn(server.with_ca(Arc::clone(&self.ca)).serve(listener, stop.clone()));
        Ok(stop.drop_guard())
    }
}
