//! The DNS listener of one pod (`spec/ztunnel.md` 12): names of the mesh are answered here, all others by the host's
//! resolvers. It listens on the pod's loopback only, so nobody else can use it.

mod answer;
mod forward;
mod resolve;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::{
    Network,
    socket::{self, ListenOptions},
};
use hickory_proto::op::Message;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use self::{
    answer::{Outcome, answer, encode_udp, failure},
    forward::{Transport, forward, read_framed, write_framed},
    resolve::Names,
};
use crate::{
    limits::{ACCEPT_PAUSE, DNS_TCP_IDLE, MAX_DNS_QUERY_BYTES, MAX_DNS_TCP_QUERIES},
    pod::PodProxy,
};

/// A pod's DNS sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

// === impl Listeners ===

impl Listeners {
    /// Binds both on the pod's loopback address.
    pub(crate) fn bind(network: &dyn Network, port: u16, mark: Option<u32>) -> io::Result<Self> {
        let options = ListenOptions { mark, ..ListenOptions::default() };
        let tcp = socket::listen(network, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &options)?;
        // The same port for both, also where the kernel chose it.
        let udp = socket::udp(network, tcp.local_addr()?, mark)?;
        Ok(Self { udp: Arc::new(udp), tcp })
    }

    /// Where queries go.
    #[cfg(test)]
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Starts serving.
    pub(crate) fn serve(self, pod: &Arc<PodProxy>) {
        let Self { udp, tcp } = self;
        let served = Arc::clone(pod);
        pod.spawn(async move { serve_udp(&served, &udp).await });
        let served = Arc::clone(pod);
        pod.spawn(async move { serve_tcp(&served, &tcp).await });
    }
}

async fn serve_udp(pod: &Arc<PodProxy>, socket: &Arc<UdpSocket>) {
    // One byte more than is accepted, so a longer query is seen to be longer.
    let mut buffer = vec![0; MAX_DNS_QUERY_BYTES + 1];
    loop {
        let received = tokio::select! {
            () = pod.closing.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (packet, client) = match received {
            Ok((length, client)) => (&buffer[..length], client),
            Err(error) => {
                tracing::debug!(target: "dns", %error, "receiving failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match judge(pod, packet) {
            Outcome::Ignore => {}
            Outcome::Reply(reply) => {
                let payload = Message::from_vec(packet).map_or(0, |request| request.max_payload());
                send(socket, encode_udp(&reply, payload), client).await;
            }
            Outcome::Forward(request) => {
                let packet = packet.to_vec();
                let (socket, served) = (Arc::clone(socket), Arc::clone(pod));
                let Some(slot) = pod.dns_slot() else {
                    send(&socket, failure(&request).to_vec().ok(), client).await;
                    continue;
                };
                pod.spawn(async move {
                    let reply = ask(&served, Transport::Udp, &request, &packet).await;
                    send(&socket, reply, client).await;
                    drop(slot);
                });
            }
        }
    }
}

async fn serve_tcp(pod: &Arc<PodProxy>, listener: &TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = pod.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match (accepted, pod.dns_slot()) {
            (Ok((stream, _)), Some(slot)) => {
                let served = Arc::clone(pod);
                pod.spawn(async move {
                    if let Err(error) = serve_stream(&served, stream).await {
                        tracing::debug!(target: "dns", %error, "connection failed");
                    }
                    drop(slot);
                });
            }
            (Ok((stream, _)), None) => drop(stream),
            (Err(error), _) => {
                tracing::debug!(target: "dns", %error, "accepting failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_stream(pod: &Arc<PodProxy>, mut stream: TcpStream) -> io::Result<()> {
    for _ in 0..MAX_DNS_TCP_QUERIES {
        let Some(packet) = timeout(DNS_TCP_IDLE, read_framed(&mut stream)).await?? else {
            return Ok(());
        };
        let reply = match judge(pod, &packet) {
            Outcome::Ignore => return Ok(()),
            Outcome::Reply(reply) => reply.to_vec().ok(),
            Outcome::Forward(request) => ask(pod, Transport::Tcp, &request, &packet).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(DNS_TCP_IDLE, write_framed(&mut stream, &reply)).await??;
    }
    Ok(())
}

fn judge(pod: &PodProxy, packet: &[u8]) -> Outcome {
    let config = &pod.shared.config;
    let names = Names {
        namespace: &pod.pod.namespace,
        cluster_domain: &config.cluster_domain,
        ranges: [config.pod_cidr, config.service_cidr],
    };
    answer(&pod.shared.store.load(), names, packet)
}

async fn ask(pod: &PodProxy, transport: Transport, request: &Message, packet: &[u8]) -> Option<Vec<u8>> {
    let shared = &pod.shared;
    let answer = forward(&*shared.host, &shared.config.upstream_dns, transport, request, packet).await;
    answer.or_else(|| failure(request).to_vec().ok())
}

async fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, client: SocketAddr) {
    if let Some(reply) = reply
        && let Err(error) = socket.send_to(&reply, client).await
    {
        tracing::debug!(target: "dns", %error, "answering failed");
    }
}
