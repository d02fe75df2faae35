//! Captured inbound plaintext (15006; `spec/ztunnel.md` 5.4). It has no identity, so a guarded port is always closed to
//! it. Not one byte of the client is read before the policies have agreed.

use std::{net::SocketAddr, sync::Arc};

use ambit_hbone::socket;
use tokio::net::TcpStream;

use crate::{
    guard::Caller,
    inbound::{admit, refuse},
    pod::PodProxy,
    record::Timing,
    splice::join,
};

/// Serves one connection to the plaintext listener.
pub(crate) async fn accepted(pod: Arc<PodProxy>, client: TcpStream, peer: SocketAddr) {
    match socket::original_dst(&client) {
        Ok(destination) => serve(&pod, client, peer, destination).await,
        Err(error) => {
            tracing::debug!(%error, "the connection was gone before it could be looked at");
            socket::reset_on_close(&client);
        }
    }
}

pub(crate) async fn serve(pod: &Arc<PodProxy>, mut client: TcpStream, peer: SocketAddr, destination: SocketAddr) {
    let timing = Timing::start();
    let caller = Caller { peer: None, address: peer, claims: None };
    let Some(_slot) = pod.slot() else {
        refuse(pod, &caller, destination, timing, "the node proxy is at its limit of connections");
        return socket::reset_on_close(&client);
    };
    pod.tune(&client);
    match admit(pod, caller, destination, timing).await {
        Ok(mut admitted) => {
            join(&admitted.ticket, pod.shared.config.idle, &mut client, &mut admitted.application).await
        }
        Err(_) => socket::reset_on_close(&client),
    }
}
