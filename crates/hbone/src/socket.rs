//! Sockets in a network namespace, with the options of `spec/ztunnel.md` 11.3.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::OnceLock,
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{
        setsockopt,
        sockopt::{AttachReusePortCbpf, IpBindAddressNoPort},
    },
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A network namespace in which sockets can be made. A socket stays in its namespace wherever it is used from, so
/// making it is the only step that must happen inside.
pub trait Network: Send + Sync + std::fmt::Debug + 'static {
    /// A new non-blocking, close-on-exec socket without any further option.
    ///
    /// # Errors
    /// When the kernel refuses, or the namespace is gone.
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket>;

    /// Has new connections go to the other listeners that share this one's port (`SO_REUSEPORT`), before it closes. Best
    /// effort: where it isn't done, connections that come in that moment may be reset.
    fn hand_over(&self, listener: BorrowedFd<'_>) {
        let _ = listener;
    }
}

/// The namespace this process runs in.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

/// How to make an outgoing connection.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Connect from this address, though it need not be ours (`IP_TRANSPARENT`). If it can't be had, the connection
    /// fails; it never goes out under another address.
    pub source: Option<IpAddr>,
    /// `SO_MARK`, so that the capture rules let the socket pass.
    pub mark: Option<u32>,
    /// Longest wait for the connection.
    pub timeout: Duration,
    /// How a dead peer is noticed.
    pub stream: StreamOptions,
    /// Instead of the machine's.
    pub congestion: Option<Congestion>,
}

/// How to make a listener.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Accept connections to addresses that are not ours (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// `SO_MARK`; accepted sockets inherit it.
    pub mark: Option<u32>,
    /// `SO_REUSEPORT`, for the hand-over between two proxies.
    pub reuse_port: bool,
    /// Connections the kernel keeps until they are accepted.
    pub backlog: i32,
    /// How a dead peer is noticed; accepted sockets inherit it.
    pub stream: StreamOptions,
    /// Instead of the machine's; accepted sockets inherit it.
    pub congestion: Option<Congestion>,
}

/// A congestion control asked for instead of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC, or Reno where that is refused: neither spaces out its packets by a timer.
    Unpaced,
}

/// How the kernel finds out that the other end of a stream is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Keepalive probes; `None` turns them off.
    pub keepalive: Option<Keepalive>,
    /// Gives up on bytes that stay unacknowledged as long as the probes would take (`TCP_USER_TIMEOUT`). Without
    /// probes it has no effect.
    pub user_timeout: bool,
}

/// TCP keepalive probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first.
    pub time: Duration,
    /// Time between them.
    pub interval: Duration,
    /// How many without an answer make the peer dead.
    pub retries: u32,
}

/// Connections the kernel keeps for a listener until they are accepted.
pub const LISTEN_BACKLOG: i32 = 128;
/// Longest wait for an outgoing connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time before the first TCP keepalive probe, and between probes.
pub const KEEPALIVE_TIME: Duration = Duration::from_secs(180);
/// Probes without an answer after which the peer is dead.
pub const KEEPALIVE_RETRIES: u32 = 9;

/// Connects to `dst` from inside `network`.
///
/// # Errors
/// When the socket can't be made or given its options, or when the peer refuses or doesn't answer in time; the message
/// names the step.
pub async fn connect(network: &dyn Network, dst: SocketAddr, options: &ConnectOptions) -> io::Result<TcpStream> {
    let dst = fold_mapped(dst);
    let socket = network.socket(Domain::for_address(dst), Type::STREAM, Some(Protocol::TCP))?;
    mark(&socket, options.mark)?;
    if let Some(source) = options.source {
        bind_source(&socket, source, dst).map_err(|error| {
            io::Error::new(error.kind(), format!("can't connect from address `{source}` to `{dst}`: {error}"))
        })?;
    }
    tune_stream(SockRef::from(&socket), &options.stream)?;
    control(&socket, options.congestion);
    match socket.connect(&SockAddr::from(dst)) {
        Ok(()) => {}
        // A non-blocking connect under way: EINPROGRESS, which std has no stable kind for.
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    // On the loopback the handshake is over by the time `connect` returns, though the kernel calls it under way.
    let is_established = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    if is_established {
        return Ok(stream);
    }
    let established = async {
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    };
    match tokio::time::timeout(options.timeout, established).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            let message = format!("no answer within {:?}", options.timeout);
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
    }
    Ok(stream)
}

/// Listens on `addr` inside `network`.
///
/// # Errors
/// When the address is taken, or an option is refused; the message names the option.
pub fn listen(network: &dyn Network, addr: SocketAddr, options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = network.socket(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    mark(&socket, options.mark)?;
    if options.transparent {
        transparent(&socket, addr.is_ipv6())?;
    }
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // What is set here costs no system call for each connection.
    tune_stream(SockRef::from(&socket), &options.stream)?;
    control(&socket, options.congestion);
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(options.backlog)?;
    TcpListener::from_std(socket.into())
}

/// A UDP socket bound to `addr` inside `network`.
///
/// # Errors
/// When the address is taken, or the mark is refused.
pub fn udp(network: &dyn Network, addr: SocketAddr, socket_mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = network.socket(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    mark(&socket, socket_mark)?;
    socket.bind(&SockAddr::from(addr))?;
    UdpSocket::from_std(socket.into())
}

/// Where a captured connection was going before the kernel redirected it; IPv4 in its plain form. For a connection
/// that was not redirected this is the socket's own address, so callers must still refuse their own ports.
///
/// # Errors
/// When the socket has no address any more.
pub fn original_dst(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = fold_mapped(stream.local_addr()?);
    let socket = SockRef::from(stream);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    Ok(original.ok().and_then(|addr| addr.as_socket()).map_or(local, fold_mapped))
}

/// Sets the options of every stream that carries an application's bytes: no delay, and keepalive 180 s / 180 s / 9.
///
/// # Errors
/// When the socket is gone.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    tune_with(stream, &StreamOptions::default())
}

/// Sets no delay, and what `options` say.
///
/// # Errors
/// When the socket is gone.
pub fn tune_with(stream: &TcpStream, options: &StreamOptions) -> io::Result<()> {
    tune_stream(SockRef::from(stream), options)
}

/// Makes the coming close of `stream` a reset, so that the peer can tell a broken connection from a finished one.
pub fn reset_on_close(stream: &TcpStream) {
    // A socket that is already gone needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Writes an IPv4 address that came mapped into IPv6 (`::ffff:1.2.3.4`) as the IPv4 address it is.
#[must_use]
pub fn fold_mapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

// `EINPROGRESS` of Linux; `std::io::ErrorKind::InProgress` is not stable.
const EINPROGRESS: i32 = 115;

fn tune_stream(socket: SockRef<'_>, options: &StreamOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let Some(Keepalive { time, interval, retries }) = options.keepalive else { return socket.set_keepalive(false) };
    let probes = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    socket.set_tcp_keepalive(&probes)?;
    if options.user_timeout {
        socket.set_tcp_user_timeout(Some(time.saturating_add(interval.saturating_mul(retries))))?;
    }
    Ok(())
}

/// Best effort: with the machine's own it only costs more.
fn control(socket: &Socket, congestion: Option<Congestion>) {
    let Some(Congestion::Unpaced) = congestion else { return };
    // Reno is there in every kernel, for everyone; CUBIC may not be allowed to us.
    if socket.set_tcp_congestion(b"cubic").is_err() {
        let _slower_to_grow = socket.set_tcp_congestion(b"reno");
    }
}

fn mark(socket: &Socket, mark: Option<u32>) -> io::Result<()> {
    let Some(mark) = mark else { return Ok(()) };
    socket.set_mark(mark).map_err(|error| {
        io::Error::new(error.kind(), format!("can't mark a socket with {mark:#x} (needs CAP_NET_ADMIN): {error}"))
    })
}

fn transparent(socket: &Socket, v6: bool) -> io::Result<()> {
    let outcome = if v6 {
        // Captured IPv4 traffic arrives at a dual-stack listener too, which reads the IPv4 option.
        socket.set_ip_transparent_v6(true).and_then(|()| socket.set_ip_transparent_v4(true))
    } else {
        socket.set_ip_transparent_v4(true)
    };
    outcome.map_err(|error| {
        io::Error::new(error.kind(), format!("can't make a socket transparent (needs CAP_NET_ADMIN): {error}"))
    })
}

fn bind_source(socket: &Socket, source: IpAddr, dst: SocketAddr) -> io::Result<()> {
    let source = source.to_canonical();
    if source.is_ipv4() != dst.is_ipv4() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the two are of different address families"));
    }
    transparent(socket, source.is_ipv6())?;
    if source.is_ipv6() {
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    // Without it the kernel looks for a port that is free towards everybody, which takes milliseconds once many
    // connections have come and gone; with it the port is chosen at the connect, for this destination alone.
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    // Another's address is only ever used towards the pod's own application, by way of the loopback. Said so, a port of a
    // connection that has just ended may be used again after a second (`tcp_tw_reuse` is 2: on the loopback only) instead
    // of a minute: without it one client can't have more than some 14,000 connections a minute. Where it's refused that
    // bound is all that's lost.
    let _bounded = socket.bind_device(Some(b"lo"));
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))
}

/// The wildcard address for listeners that take both families, or only IPv4.
#[must_use]
pub fn wildcard(ipv6: bool, port: u16) -> SocketAddr {
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(ip, port)
}

// === impl HostNetwork ===

impl Network for HostNetwork {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        Socket::new(domain, ty.nonblocking().cloexec(), protocol)
    }

    /// Sockets that share a port are numbered in the order they came, so of two proxies the older has number 0, and this
    /// sends new connections to number 1. Where there is none, and once this one has closed, the kernel chooses as before.
    fn hand_over(&self, listener: BorrowedFd<'_>) {
        const RETURN_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let mut instruction = libc::sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: 1 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut instruction };
        if let Err(error) = setsockopt(&listener, AttachReusePortCbpf, &program) {
            tracing::debug!(%error, "connections can't be steered to the next proxy");
        }
    }
}

// === impl Congestion ===

impl Congestion {
    /// What to ask for on short ways: something unpaced where the machine's own is BBR, which sends by timer. On a loopback
    /// or within a cluster the timers cost a quarter of the processor time of bulk and gain nothing; over long ways BBR is
    /// worth it.
    #[must_use]
    pub fn unpaced() -> Option<Self> {
        static MACHINE: OnceLock<bool> = OnceLock::new();
        let paced = MACHINE.get_or_init(|| {
            let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
            name.is_ok_and(|name| name.starts_with("bbr"))
        });
        paced.then_some(Self::Unpaced)
    }
}

// === impl StreamOptions ===

impl Default for StreamOptions {
    fn default() -> Self {
        Self { keepalive: Some(Keepalive::default()), user_timeout: false }
    }
}

// === impl Keepalive ===

impl Default for Keepalive {
    fn default() -> Self {
        Self { time: KEEPALIVE_TIME, interval: KEEPALIVE_TIME, retries: KEEPALIVE_RETRIES }
    }
}

// === impl ConnectOptions ===

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { source: None, mark: None, timeout: CONNECT_TIMEOUT, stream: StreamOptions::default(), congestion: None }
    }
}

// === impl ListenOptions ===

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            transparent: false,
            mark: None,
            reuse_port: false,
            backlog: LISTEN_BACKLOG,
            stream: StreamOptions::default(),
            congestion: None,
        }
    }
}
