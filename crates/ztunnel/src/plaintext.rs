//! Captured inbound plaintext (15006; `spec/ztunnel.md` 5.4). It has no identity, so a guarded port is always closed to
//! it. Not one byte of the client is passed on before the policies have agreed; one that is refused is read as far as it
//! takes to see whether it can be told why.

use std::{net::SocketAddr, sync::Arc};

use ambit_hbone::socket;
use ambit_telemetry::metrics::Reporter;
use tokio::net::TcpStream;

use crate::{
    budget::refusal,
    explain::explain,
    guard::Caller,
    inbound::{Refused, admit, turn_away},
    next_hop::NextHop,
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
    let _socket = pod.shared.config.metrics.traffic.socket(Reporter::Destination);
    let _slot = match pod.budget.connection() {
        Ok(slot) => slot,
        Err(over) => {
            turn_away(pod, &caller, destination, timing, (refusal(over), &over));
            return socket::reset_on_close(&client);
        }
    };
    match admit(pod, caller, NextHop::direct(destination), None, timing).await {
        Ok(mut admitted) => join(&admitted.ticket, pod, &mut client, &mut admitted.application).await,
        Err(Refused::Denied(why)) => explain(pod, client, &why).await,
        Err(Refused::Unreachable(_)) => socket::reset_on_close(&client),
    }
}
