//! The operators' ports: where they listen, and how long a connection may last.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

pub(super) use ambit_admin::{reply, text};
use ambit_hbone::{
    HostNetwork,
    socket::{self, ListenOptions},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::limits::ADMIN_CONNECTION_TIMEOUT;

/// Listens on the loopback addresses of this process's own network: IPv4, and IPv6 if there is one.
///
/// # Errors
/// When the port is taken; the message names the address.
pub fn bind_loopback(port: u16) -> io::Result<Vec<TcpListener>> {
    let first = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let port = first.local_addr()?.port();
    match bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => Ok(vec![first]),
    }
}

/// Listens on all addresses of this process's own network.
///
/// # Errors
/// When the port is taken; the message names the address.
pub fn bind_wildcard(port: u16, ipv6: bool) -> io::Result<Vec<TcpListener>> {
    Ok(vec![bind(socket::wildcard(ipv6, port))?])
}

/// Serves until told to stop, then finishes what was begun.
pub(super) async fn serve<H, F>(listeners: Vec<TcpListener>, handler: H, until: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    ambit_admin::serve(listeners, handler, ADMIN_CONNECTION_TIMEOUT, until).await;
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    socket::listen(&HostNetwork, address, &ListenOptions::default())
        .map_err(|error| io::Error::new(error.kind(), format!("can't listen on `{address}`: {error}")))
}
