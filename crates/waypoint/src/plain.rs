//! Plain connections in place of a client's tunnels, so that a benchmark can measure the L7 proxy without HBONE.
//!
//! Whoever connects is taken for the given client, which nothing proves: that is why no release has this.

use std::{net::SocketAddr, sync::Arc};

use ambit_api::SpiffeId;
use tokio::net::TcpListener;

use crate::{
    Waypoint,
    session::{Addressee, Client, Session, Target},
    shared::Shared,
    tunnel,
};

impl Waypoint {
    /// Serves what connects to `listener` as tunnels of `client` to the service with this virtual address and port, until
    /// the waypoint ends. False if there is no such service.
    #[must_use]
    pub fn serve_plain(&self, listener: TcpListener, client: SpiffeId, address: SocketAddr) -> bool {
        let Some(target) = target(&self.shared, address) else { return false };
        self.shared.tasks.spawn(run(Arc::clone(&self.shared), listener, client, target));
        true
    }
}

async fn run(shared: Arc<Shared>, listener: TcpListener, identity: SpiffeId, target: Target) {
    while let Ok((stream, address)) = listener.accept().await {
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let client = Client { identity: identity.clone(), address };
        let session = Arc::new(Session::new(Arc::clone(&shared), client, target.clone()));
        if let Ok(standing) = session.standing() {
            let protocol = standing.protocol;
            shared.tasks.spawn(tunnel::serve_stream(session, protocol, stream));
        }
    }
}

fn target(shared: &Shared, address: SocketAddr) -> Option<Target> {
    let view = shared.store.load();
    let service = view.service_by_vip(address.ip())?;
    Some(Target { addressee: Addressee::Service(service.key.clone()), name: tunnel::name_of(service), address })
}
