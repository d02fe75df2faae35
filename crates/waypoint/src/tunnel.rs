//! A CONNECT from a client: which service or workload it asks for, and who serves it from there (`spec/ztunnel.md` 2.5, 2.6).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::{ConnectRequest, copy::Reset};
use ambit_mesh::{
    View,
    view::{Service, WaypointBundle, Workload},
};
use ambit_telemetry::{DecisionRecord, Destination, Exchange};
use ambit_xds::workload::AppProtocol;
use http::{HeaderMap, Method, StatusCode, uri::Authority};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    HBONE_PORT,
    detect::{self, Prefixed, Spoken},
    record::{Entry, refusal},
    refusals::Refusal,
    serve, server_first,
    session::{Addressee, Client, Session, Target},
    shared::Shared,
    tcp,
};

/// Answers a CONNECT and serves its tunnel to the end.
pub(crate) async fn serve(shared: Arc<Shared>, client: Client, request: ConnectRequest) {
    let view = shared.store.load();
    let Ok(_slot) = Arc::clone(&shared.tunnels).try_acquire_owned() else {
        shared.refusals.add(Refusal::Tunnels);
        let why = Refused::new(StatusCode::SERVICE_UNAVAILABLE, Refusal::Tunnels.reason().to_owned());
        return refuse(&shared, &view, &client, request, why);
    };
    let target = match resolve(&shared, &view, &request) {
        Ok(target) => target,
        Err(why) => return refuse(&shared, &view, &client, request, why),
    };
    let session = Arc::new(Session::new(shared, client, target));
    let protocol = match session.standing() {
        Ok(standing) => standing.protocol,
        Err(decision) => {
            let mut entry = session.entry("TCP");
            entry.decided(&decision, None);
            entry.finish(Some(StatusCode::SERVICE_UNAVAILABLE.as_u16()));
            return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
        }
    };
    drop(view);
    match request.accept(HeaderMap::new()) {
        Ok(tunnel) => serve_stream(session, protocol, tunnel).await,
        Err(error) => tracing::debug!(%error, "tunnel ended before it was open"),
    }
}

/// Why a CONNECT isn't accepted.
struct Refused {
    status: StatusCode,
    reason: String,
    service: Option<Arc<str>>,
    workload: Option<Arc<str>>,
    address: Option<SocketAddr>,
}

/// Ports of workloads' node proxies, which are nobody's destination.
const NODE_PROXY_PORTS: [u16; 5] = [15001, 15006, HBONE_PORT, 15053, 15080];

/// Serves a client's stream by what its port speaks.
pub(crate) async fn serve_stream<S>(session: Arc<Session>, protocol: AppProtocol, tunnel: S)
where
    S: AsyncRead + AsyncWrite + Reset + Send + Unpin + 'static,
{
    let limits = session.shared.config.limits;
    let mut early = None;
    // What is large and isn't every connection's is boxed, or each of them would have the size of the largest.
    let detected = match protocol {
        AppProtocol::Tcp | AppProtocol::Tls => return Box::pin(tcp::serve(session, tunnel, None)).await,
        AppProtocol::Unknown => Box::pin(server_first::detect(&session, tunnel, &mut early)).await,
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => detect::http(tunnel, limits.idle_timeout).await,
    };
    // Only TCP can go on with a connection that was opened for no request in particular.
    let early = early.filter(|_| matches!(detected, Ok((Spoken::Tcp, _))));
    match detected {
        Ok((Spoken::Http1, stream)) => serve::serve_http1(session, stream).await,
        Ok((Spoken::Http2, stream)) => serve::serve_http2(session, stream).await,
        Ok((Spoken::Tcp, stream)) => Box::pin(tcp::serve(session, stream, early)).await,
        Err(error) => tracing::debug!(%error, "tunnel ended before its protocol was known"),
    }
}

fn resolve(shared: &Shared, view: &View, request: &ConnectRequest) -> Result<Target, Refused> {
    let bad = |reason: &str| Refused::new(StatusCode::BAD_REQUEST, reason.to_owned());
    if request.method() != Method::CONNECT {
        return Err(bad("only CONNECT is served"));
    }
    let authority = request.authority().ok_or_else(|| bad("the CONNECT names no destination"))?;
    let port = authority.port_u16().ok_or_else(|| bad("the CONNECT names no port"))?;
    let unknown = |what: &str| {
        let reason = format!("`{what}` is nothing that waypoint `{}` serves", shared.name);
        Refused::new(StatusCode::NOT_FOUND, reason)
    };
    let bundle = view.waypoint(&shared.config.namespace, &shared.config.name).ok_or_else(|| {
        let reason = format!("waypoint `{}` has no configuration yet", shared.name);
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    })?;
    let pod = |ip: &IpAddr| view.workload_by_ip(*ip).filter(|workload| workload.is_pod());
    // A pod's address is the pod's, whatever services claim it: as node proxies see it.
    if let Some((ip, workload)) = ip_of(authority).and_then(|ip| Some((ip, pod(&ip)?))) {
        return to_workload(shared, bundle, workload, SocketAddr::new(ip, port));
    }
    let (service, ip) = match ip_of(authority) {
        Some(ip) => match (view.service_by_vip(ip), view.workload_by_ip(ip)) {
            (None, Some(workload)) => return to_workload(shared, bundle, workload, SocketAddr::new(ip, port)),
            (service, _) => (service, Some(ip)),
        },
        None => {
            let named = |hostname: &str| hostname.eq_ignore_ascii_case(authority.host());
            let key = bundle.services.keys().find(|key| named(&key.hostname));
            (key.and_then(|key| view.service(key)), None)
        }
    };
    let service = service.ok_or_else(|| unknown(authority.as_str()))?;
    let ip = ip.or_else(|| service.vips.first().copied()).ok_or_else(|| unknown(authority.as_str()))?;
    let address = SocketAddr::new(ip, port);
    let name = name_of(service);
    if !bundle.services.contains_key(&service.key) {
        return Err(unknown(&name).about(name, address));
    }
    if !service.ports.contains_key(&port) {
        let reason = format!("service `{name}` has no port {port}");
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, reason).about(name, address));
    }
    Ok(Target { addressee: Addressee::Service(service.key.clone()), name, address })
}

/// A workload asked for by its own address.
fn to_workload(
    shared: &Shared,
    bundle: &WaypointBundle,
    workload: &Workload,
    address: SocketAddr,
) -> Result<Target, Refused> {
    let name: Arc<str> = format!("{}/{}", workload.namespace, workload.name).into();
    if !bundle.fronts(workload) {
        let reason = format!("`{name}` is no workload that waypoint `{}` serves", shared.name);
        let address = Some(address);
        return Err(Refused { address, workload: Some(name), ..Refused::new(StatusCode::NOT_FOUND, reason) });
    }
    if NODE_PROXY_PORTS.contains(&address.port()) || address.port() == 0 {
        let reason = format!("port {} of `{name}` is its node proxy's", address.port());
        let address = Some(address);
        return Err(Refused { address, workload: Some(name), ..Refused::new(StatusCode::SERVICE_UNAVAILABLE, reason) });
    }
    Ok(Target { addressee: Addressee::Workload(Arc::clone(&workload.uid)), name, address })
}

fn refuse(shared: &Shared, view: &View, client: &Client, request: ConnectRequest, why: Refused) {
    let address = why.address.or_else(|| {
        let authority = request.authority()?;
        Some(SocketAddr::new(ip_of(authority)?, authority.port_u16()?))
    });
    let destination = Destination { service: why.service, workload: why.workload, address };
    let decision = refusal(&why.reason);
    let record = DecisionRecord::new(shared.enforcer(), client.source(view), destination, "TCP", &decision);
    let mut entry = Entry::new(record, shared.recorder.clone()).watched(&shared.operators);
    entry.watch(Exchange::default);
    if why.status == StatusCode::NOT_FOUND {
        entry.flag("NR");
    }
    entry.finish(Some(why.status.as_u16()));
    request.refuse(why.status);
}

fn ip_of(authority: &Authority) -> Option<IpAddr> {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// `namespace/name`, for records.
pub(crate) fn name_of(service: &Service) -> Arc<str> {
    format!("{}/{}", service.key.namespace, service.name).into()
}

// === impl Refused ===

impl Refused {
    fn new(status: StatusCode, reason: String) -> Self {
        Self { status, reason, service: None, workload: None, address: None }
    }

    fn about(self, service: Arc<str>, address: SocketAddr) -> Self {
        Self { service: Some(service), address: Some(address), ..self }
    }
}

// === impl Prefixed ===

impl<S: Reset> Reset for Prefixed<S> {
    fn reset(&mut self) {
        self.stream_mut().reset();
    }
}
