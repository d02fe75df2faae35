//! SOCKS5 for applications that ask for a proxy (15080, off by default; `spec/ztunnel.md` 13, RFC 1928): CONNECT only,
//! without authentication, on the pod's loopback only. What it asks for goes the way of captured connections.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::socket;
use ambit_telemetry::metrics::Refusal;
use hickory_proto::rr::RecordType;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    SOCKS5_PORT,
    budget::refusal,
    dns::lookup,
    limits::{NAME_TIMEOUT, SOCKS_TIMEOUT},
    outbound::{self, NOT_THE_POD},
    pod::PodProxy,
};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Address(SocketAddr),
    Name(String, u16),
}

/// Why a client gets no connection, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refused {
    /// The conversation broke off.
    Io = 1,
    /// The name has no address.
    Name = 4,
    /// It isn't version 5, wants authentication, asks for another command, or names its destination in another way.
    Protocol = 7,
}

/// Serves one connection to the SOCKS5 listener.
pub(crate) async fn accepted(pod: Arc<PodProxy>, mut client: TcpStream, peer: SocketAddr) {
    // Anyone else would act in the pod's name.
    let here = client.local_addr().unwrap_or(SocketAddr::new(pod.pod.ip, SOCKS5_PORT));
    if !pod.is_own(peer.ip()) {
        outbound::turn_away(&pod, peer, here, Refusal::BadRequest, NOT_THE_POD);
        return socket::reset_on_close(&client);
    }
    let slot = match pod.budget.connection() {
        Ok(slot) => slot,
        Err(over) => {
            outbound::turn_away(&pod, peer, here, refusal(over), over);
            return socket::reset_on_close(&client);
        }
    };
    let negotiated = timeout(SOCKS_TIMEOUT, negotiate(&pod, &mut client, peer.is_ipv4())).await;
    drop(slot);
    match negotiated.unwrap_or(Err(Refused::Io)) {
        Ok(destination) => outbound::carry(&pod, client, peer, destination).await,
        Err(refused) => {
            tracing::debug!(pod = %pod.pod.uid, ?refused, "a SOCKS5 client got no connection");
            // It may be gone already.
            let _ = timeout(SOCKS_TIMEOUT, async {
                client.write_all(&reply(refused as u8)).await?;
                client.shutdown().await
            })
            .await;
        }
    }
}

/// Talks until the client has been told that its connection is there. (It isn't yet: what goes wrong later shows as the
/// end of the connection, as with the original.)
async fn negotiate(pod: &PodProxy, client: &mut TcpStream, ipv4: bool) -> Result<SocketAddr, Refused> {
    let destination = match request(client).await? {
        Request::Address(address) => address,
        Request::Name(name, port) => SocketAddr::new(resolve(pod, &name, ipv4).await.ok_or(Refused::Name)?, port),
    };
    client.write_all(&reply(0)).await?;
    Ok(destination)
}

/// Reads what a client asks for. Not one byte more than that is read.
pub(crate) async fn request<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S) -> Result<Request, Refused> {
    let [version, methods] = read(client).await?;
    if version != VERSION {
        return Err(Refused::Protocol);
    }
    let mut offered = [0; u8::MAX as usize];
    let offered = &mut offered[..usize::from(methods)];
    client.read_exact(offered).await?;
    if !offered.contains(&NO_AUTHENTICATION) {
        return Err(Refused::Protocol);
    }
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let [version, command, _reserved, kind] = read(client).await?;
    if version != VERSION || command != CONNECT {
        return Err(Refused::Protocol);
    }
    let host = match kind {
        IPV4 => Ok(IpAddr::V4(Ipv4Addr::from(read::<4, _>(client).await?))),
        IPV6 => Ok(IpAddr::V6(Ipv6Addr::from(read::<16, _>(client).await?)).to_canonical()),
        DOMAIN => {
            let [length] = read(client).await?;
            let mut name = vec![0; usize::from(length)];
            client.read_exact(&mut name).await?;
            let name = String::from_utf8(name).ok().filter(|name| is_name(name)).ok_or(Refused::Protocol)?;
            // Some clients send an address as if it were a name.
            name.parse().map_err(|_| name)
        }
        _ => return Err(Refused::Protocol),
    };
    let port = u16::from_be_bytes(read(client).await?);
    Ok(match host {
        Ok(ip) => Request::Address(SocketAddr::new(ip, port)),
        Err(name) => Request::Name(name, port),
    })
}

async fn read<const N: usize, S: AsyncRead + Unpin>(client: &mut S) -> Result<[u8; N], Refused> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The first address of the client's family, else the first.
async fn resolve(pod: &PodProxy, name: &str, ipv4: bool) -> Option<IpAddr> {
    let kinds = if ipv4 { [RecordType::A, RecordType::AAAA] } else { [RecordType::AAAA, RecordType::A] };
    let _slot = pod.dns_slot()?;
    for kind in kinds {
        let found = timeout(NAME_TIMEOUT, lookup::for_pod(pod, name, kind)).await.ok().flatten();
        if let Some(ip) = found.and_then(|found| found.first().copied()) {
            return Some(ip);
        }
    }
    None
}

/// Text that can be asked for as a name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An answer; the address in it says nothing.
fn reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]
}

// === impl Refused ===

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}
