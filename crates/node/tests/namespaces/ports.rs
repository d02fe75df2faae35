//! A source port that an application and the proxy both use: neither has the other's redirection.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ambit_hbone::Network;
use ambit_node::{Capture, PodNamespaces};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::suite::{MARK, Outcome, World, accept, ip, listen};

/// Long enough for a loaded machine, and shorter than what a test may take.
const PATIENCE: Duration = Duration::from_secs(4);

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// The proxy calls somebody who doesn't answer, and gives up. The kernel remembers that for two minutes, while the port is
/// free for the application: a connection from there to the same place is captured like any other.
pub(crate) async fn a_port_that_the_proxy_used_in_vain_is_captured(world: &World) -> Outcome {
    let nobody = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443));
    for (last, capture) in [(2, Capture::Mesh), (3, Capture::Outside)] {
        let pod = world.pod(last, capture)?;
        let proxy = listen(&pod, "0.0.0.0:15001", true)?;
        let port = call_in_vain(&pod, last, nobody).map_err(|error| error.to_string())?;
        let application = bound(&pod, SocketAddr::from((ip(last), port))).map_err(|error| error.to_string())?;
        let (answer, accepted) = tokio::join!(say(application, nobody), accept(&proxy, "from the proxy"));
        let (peer, destination) = accepted.map_err(|why| format!("{capture:?}: {why}"))?;
        ensure!(destination == nobody, "original destination {destination}");
        ensure!(peer == SocketAddr::from((ip(last), port)), "peer {peer}");
        ensure!(answer.map_err(|error| error.to_string())? == "from the proxy", "another answer");
    }
    Ok(())
}

/// A client's connection is captured, and the proxy connects to the application with the client's address: from the port
/// that the client has, for all it knows. Both go on.
pub(crate) async fn the_proxy_may_have_the_port_of_a_captured_client(world: &World) -> Outcome {
    let (server, client) = (world.pod(2, Capture::Mesh)?, world.pod(3, Capture::Outside)?);
    let plaintext = listen(&server, "0.0.0.0:15006", true)?;
    let _serving = world.serve(&server, &["ambit", "serve", "0.0.0.0:9000"]).await?;
    let application = SocketAddr::from((ip(2), 9_000));
    let socket = bound(&client, SocketAddr::from((ip(3), 0))).map_err(|error| error.to_string())?;
    let captured = TcpSocket::from_std_stream(socket.into()).connect(application);
    let both = async { tokio::try_join!(captured, plaintext.accept()) };
    let (mut captured, (mut accepted, peer)) = in_time(both).await?;
    let make = || {
        let socket = server.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(MARK)?;
        socket.set_ip_transparent_v4(true)?;
        socket.bind(&peer.into())?;
        Ok::<_, std::io::Error>(socket)
    };
    let own = make().map_err(|error| format!("{peer} can't be had: {error}"))?;
    let reply = say(own, application).await.map_err(|error| format!("the proxy's own connection: {error}"))?;
    ensure!(reply == "10.244.0.3 said hello", "{reply}");
    let mut byte = [0];
    let exchange = async {
        captured.write_all(b"x").await?;
        accepted.read_exact(&mut byte).await?;
        accepted.write_all(b"y").await?;
        captured.read_exact(&mut byte).await
    };
    in_time(exchange).await.map_err(|why| format!("the client's connection: {why}"))?;
    Ok(())
}

/// A marked socket sends the packet that opens a connection, and is gone; its port.
fn call_in_vain(pod: &PodNamespaces, last: u8, address: SocketAddr) -> std::io::Result<u16> {
    let socket = bound(pod, SocketAddr::from((ip(last), 0)))?;
    socket.set_mark(MARK)?;
    // Under way, as nobody answers.
    let _ = socket.connect(&address.into());
    let port = socket.local_addr()?.as_socket().map(|own| own.port());
    port.ok_or_else(|| std::io::Error::other("no address"))
}

fn bound(pod: &PodNamespaces, address: SocketAddr) -> std::io::Result<Socket> {
    let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn say(socket: Socket, address: SocketAddr) -> std::io::Result<String> {
    let exchange = async {
        let mut stream: TcpStream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

async fn in_time<T>(work: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    let outcome = tokio::time::timeout(PATIENCE, work).await.map_err(|_| "took too long".to_owned())?;
    outcome.map_err(|error| error.to_string())
}
