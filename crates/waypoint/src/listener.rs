//! Accepts HBONE connections and hands out their tunnels.

use std::{net::SocketAddr, os::fd::AsFd, pin::pin, sync::Arc, time::Duration};

use ambit_hbone::{Connection, Limits as HboneLimits};
use ambit_telemetry::{DecisionRecord, Destination, Source};
use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
};

use crate::{
    limits::{HANDOVER, MAX_LAST_CONNECTIONS},
    record::{Entry, refusal},
    refusals::Refusal,
    session::Client,
    shared::Shared,
    tunnel,
};

/// Accepts until a drain starts, or until the port is handed over.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let mut closed = pin!(handed_over(&shared, &listener));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closed => break,
        };
        match accepted {
            Ok((stream, peer)) => take(&shared, stream, peer),
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back.
                tracing::warn!(waypoint = %shared.name, %error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What the kernel has accepted already would be reset with the listener.
    for _ in 0..MAX_LAST_CONNECTIONS {
        match listener.accept().now_or_never() {
            Some(Ok((stream, peer))) => take(&shared, stream, peer),
            Some(Err(_)) | None => break,
        }
    }
}

/// Completes when the listener may close: the waypoint drains, and whoever was on the way to it has come in.
async fn handed_over(shared: &Shared, listener: &TcpListener) {
    shared.drain.cancelled().await;
    if shared.config.reuse_port {
        shared.network.hand_over(listener.as_fd());
        tokio::time::sleep(HANDOVER).await;
    }
}

/// Fetches the waypoint's certificate, so that the first client doesn't wait for it.
pub(crate) async fn prepare(shared: Arc<Shared>) {
    if let Err(error) = shared.certificates.get(&shared.config.identity).await {
        tracing::warn!(waypoint = %shared.name, %error, "no certificate yet");
    }
}

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

fn take(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let Ok(slot) = Arc::clone(&shared.connections).try_acquire_owned() else {
        let source = Source { address: Some(peer), ..Source::default() };
        shared.refusals.add(Refusal::Connections);
        let decision = refusal(Refusal::Connections.reason());
        let record = DecisionRecord::new(shared.enforcer(), source, Destination::default(), "TCP", &decision);
        return Entry::new(record, shared.recorder.clone()).watched(&shared.operators).finish(None);
    };
    shared.tasks.spawn(serve(Arc::clone(shared), stream, peer, slot));
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, _slot: OwnedSemaphorePermit) {
    let certificate = match shared.certificates.get(&shared.config.identity).await {
        Ok(certificate) => certificate,
        Err(error) => return tracing::warn!(waypoint = %shared.name, %error, "no certificate to serve with"),
    };
    // Boxed, since it is large and soon over.
    match Box::pin(ambit_hbone::accept(stream, certificate, &HboneLimits::default())).await {
        Ok(connection) => serve_tunnels(shared, connection).await,
        Err(error) => tracing::info!(waypoint = %shared.name, %peer, %error, "HBONE connection refused"),
    }
}

async fn serve_tunnels(shared: Arc<Shared>, mut connection: Connection) {
    let address = connection.peer_addr();
    let client = Client {
        identity: connection.peer().clone(),
        address: SocketAddr::new(address.ip().to_canonical(), address.port()),
    };
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = connection.next() => next,
            () = shared.drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match next {
            Some(Ok(request)) => shared.tasks.spawn(tunnel::serve(Arc::clone(&shared), client.clone(), request)),
            Some(Err(error)) => {
                tracing::debug!(waypoint = %shared.name, peer = %client.address, %error, "HBONE stream failed");
            }
            None => return,
        }
    }
}
