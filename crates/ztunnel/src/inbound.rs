//! Inbound connections: HBONE (15008; `spec/ztunnel.md` 5.1 to 5.3), and what plaintext shares with it.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Instant,
};

use ambit_api::SpiffeId;
use ambit_hbone::{
    ConnectRequest, Connection,
    socket::{self, ConnectOptions},
};
use ambit_mesh::View;
use ambit_policy::Decision;
use ambit_telemetry::{Destination, Enforcer};
use http::{HeaderMap, Method, StatusCode, header::FORWARDED};
use tokio::net::TcpStream;

use crate::{
    guard::{Caller, Claims, Client, Judgement, judge},
    limits::CONNECT_TIMEOUT,
    pod::PodProxy,
    record::{Report, Timing, deny, source, workload_name},
    route::PROXY_PORTS,
    splice::join,
    tracking::{Entry, Ticket, What},
};

/// Header in which a waypoint names the identity it speaks for.
const SOURCE_HEADER: &str = "ambit-source";

/// A connection that policies allow and the application has taken.
pub(crate) struct Admitted {
    pub(crate) ticket: Ticket,
    pub(crate) application: TcpStream,
}

/// Why a connection was not let in. It is recorded already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// By the guard or a policy.
    Denied,
    /// The application can't be reached.
    Unreachable,
}

/// Serves one connection to the HBONE listener.
pub(crate) async fn accepted(pod: Arc<PodProxy>, stream: TcpStream, peer: SocketAddr) {
    let timing = Timing::start();
    let own = SocketAddr::new(pod.pod.ip, pod.shared.config.ports.hbone);
    let nobody = Caller { peer: None, address: peer, claims: None };
    let Some(_slot) = pod.slot() else {
        refuse(&pod, &nobody, own, timing, "the node proxy is at its limit of connections");
        return socket::reset_on_close(&stream);
    };
    match handshake(&pod, stream).await {
        Ok(connection) => serve(&pod, connection).await,
        Err(reason) => refuse(&pod, &nobody, own, timing, &reason),
    }
}

/// Lets a connection in, if the guard, the policies and the application take it. Records what comes of it.
pub(crate) async fn admit(
    pod: &PodProxy,
    caller: Caller,
    destination: SocketAddr,
    mut timing: Timing,
) -> Result<Admitted, Refused> {
    if pod.workload().await.is_none() {
        refuse(pod, &caller, destination, timing, "the control plane does not know this pod; it may be going");
        return Err(Refused::Unreachable);
    }
    let ticket = pod.tracked.track(What::Inbound { caller: caller.clone(), destination });
    let judging = Instant::now();
    let view = pod.shared.store.load();
    let judgement = judge_current(pod, &view, &caller, destination);
    timing.policy = Some(judging.elapsed());
    let Judgement { enforcer, decision, client, through_waypoint } = judgement;
    if !decision.is_allowed() {
        if ticket.end() {
            report(pod, &view, enforcer, &client, destination, decision, timing);
        }
        return Err(Refused::Denied);
    }
    let connecting = Instant::now();
    let connected = tokio::select! {
        biased;
        () = ticket.ended() => return Err(Refused::Denied),
        connected = connect(pod, &client, destination) => connected,
    };
    timing.connect = Some(connecting.elapsed());
    let application = match connected {
        Ok(application) => application,
        Err(error) => {
            let decision = deny(format!("the application at `{destination}` can't be reached: {error}"));
            report(pod, &view, Enforcer::ZtunnelInbound, &client, destination, decision, timing);
            return Err(Refused::Unreachable);
        }
    };
    // A waypoint has recorded the request itself, with what it knows of it.
    if !through_waypoint {
        report(pod, &view, enforcer, &client, destination, decision, timing);
    }
    Ok(Admitted { ticket, application })
}

/// Judges a live inbound connection again and cuts it if it is no longer allowed.
pub(crate) fn review(pod: &PodProxy, view: &View, entry: &Entry) {
    let What::Inbound { caller, destination } = &entry.what else { return };
    let Judgement { enforcer, mut decision, client, .. } = judge_current(pod, view, caller, *destination);
    if !decision.is_allowed() && entry.end() {
        decision.reason = format!("policy changed: {}", decision.reason).into();
        report(pod, view, enforcer, &client, *destination, decision, Timing::start());
    }
}

/// Records a refusal that needed no policy.
pub(crate) fn refuse(pod: &PodProxy, caller: &Caller, destination: SocketAddr, timing: Timing, reason: &str) {
    let client = Client { identity: caller.peer.clone(), address: caller.address };
    let view = pod.shared.store.load();
    report(pod, &view, Enforcer::ZtunnelInbound, &client, destination, deny(reason), timing);
}

/// TLS and HTTP/2, within the limit of handshakes in flight.
async fn handshake(pod: &PodProxy, stream: TcpStream) -> Result<Connection, String> {
    let shared = &pod.shared;
    // Whatever fails before TLS has taken over: the client sees a reset, not an end.
    let cut = |stream: &TcpStream, reason: String| {
        socket::reset_on_close(stream);
        reason
    };
    let Ok(_permit) = shared.handshakes.try_acquire() else {
        return Err(cut(&stream, "the node proxy is at its limit of TLS handshakes".to_owned()));
    };
    let Some(workload) = pod.workload().await else {
        return Err(cut(&stream, "the control plane does not know this pod; it may be going".to_owned()));
    };
    let certificate = match shared.certificates.get(&workload.identity).await {
        Ok(certificate) => certificate,
        Err(error) => return Err(cut(&stream, error.to_string())),
    };
    ambit_hbone::accept(stream, certificate, &shared.config.transport)
        .await
        .map_err(|error| format!("the HBONE handshake failed: {error}"))
}

/// Serves the streams of one tunnel until the peer is done. Being drained, it takes no new ones.
async fn serve(pod: &Arc<PodProxy>, mut connection: Connection) {
    let peer = connection.peer().clone();
    let address = socket::fold_mapped(connection.peer_addr());
    let mut closing = false;
    loop {
        let next = tokio::select! {
            () = pod.closing.cancelled(), if !closing => {
                closing = true;
                connection.graceful_shutdown();
                continue;
            }
            next = connection.next() => next,
        };
        match next {
            Some(Ok(request)) => {
                let served = Arc::clone(pod);
                let peer = peer.clone();
                pod.spawn(async move { serve_request(&served, request, peer, address).await });
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "tunnel failed");
                return;
            }
            None => return,
        }
    }
}

async fn serve_request(pod: &PodProxy, request: ConnectRequest, peer: SpiffeId, address: SocketAddr) {
    let timing = Timing::start();
    let claims = claims(request.headers(), &pod.shared.config.trust_domain);
    let caller = Caller { peer: Some(peer), address, claims };
    let destination = match parse(pod, &request) {
        Ok(destination) => destination,
        Err((status, destination, reason)) => {
            let destination = destination.unwrap_or(SocketAddr::new(pod.pod.ip, 0));
            refuse(pod, &caller, destination, timing, &reason);
            return request.refuse(status);
        }
    };
    let Some(_slot) = pod.slot() else {
        refuse(pod, &caller, destination, timing, "the node proxy is at its limit of connections");
        return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
    };
    let mut admitted = match admit(pod, caller, destination, timing).await {
        Ok(admitted) => admitted,
        Err(Refused::Denied) => return request.refuse(StatusCode::UNAUTHORIZED),
        Err(Refused::Unreachable) => return request.refuse(StatusCode::SERVICE_UNAVAILABLE),
    };
    match request.accept(HeaderMap::new()) {
        Ok(mut tunnel) => join(&admitted.ticket, pod.shared.config.idle, &mut tunnel, &mut admitted.application).await,
        Err(error) => tracing::debug!(%error, "the peer gave up while the application was being reached"),
    }
}

type BadRequest = (StatusCode, Option<SocketAddr>, String);

/// Where a CONNECT wants to go.
fn parse(pod: &PodProxy, request: &ConnectRequest) -> Result<SocketAddr, BadRequest> {
    let bad = |destination, reason: String| (StatusCode::BAD_REQUEST, destination, reason);
    if request.method() != Method::CONNECT {
        return Err(bad(None, "only CONNECT is served on the HBONE port".to_owned()));
    }
    let destination = request.authority().and_then(|authority| SocketAddr::from_str(authority.as_str()).ok());
    let Some(destination) = destination.map(socket::fold_mapped) else {
        return Err(bad(None, "the authority of the CONNECT is not `ip:port`".to_owned()));
    };
    if !pod.is_address(destination.ip()) {
        let reason =
            format!("`{}` is not the address of this pod; the caller's configuration is stale", destination.ip());
        return Err(bad(Some(destination), reason));
    }
    if PROXY_PORTS.contains(&destination.port()) || destination.port() == 0 {
        let reason = format!("port {} belongs to the node proxy itself", destination.port());
        return Err((StatusCode::SERVICE_UNAVAILABLE, Some(destination), reason));
    }
    Ok(destination)
}

/// What the peer says of the client behind it; nothing if a header is malformed, doubled, or of a foreign trust domain.
pub(crate) fn claims(headers: &HeaderMap, trust_domain: &str) -> Option<Claims> {
    let single = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Some(None),
            (Some(value), None) => value.to_str().ok().map(Some),
            (Some(_), Some(_)) => None,
        }
    };
    let identity = match single(SOURCE_HEADER)? {
        Some(text) => Some(SpiffeId::from_str(text).ok().filter(|id| id.trust_domain() == trust_domain)?),
        None => None,
    };
    let address = match single(FORWARDED.as_str())? {
        Some(text) => forwarded_for(text)?,
        None => None,
    };
    Some(Claims { identity, address })
}

/// The `for` of a `forwarded` header of one element; the outer nothing if it is malformed.
fn forwarded_for(text: &str) -> Option<Option<SocketAddr>> {
    let mut address = None;
    for pair in text.split(';') {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            let parsed = socket::fold_mapped(SocketAddr::from_str(value.trim().trim_matches('"')).ok()?);
            let ip = parsed.ip();
            let usable = !(ip.is_unspecified() || ip.is_multicast());
            if !usable || address.replace(parsed).is_some() {
                return None;
            }
        }
    }
    Some(address)
}

/// Judges by the pod as the control plane describes it now. A pod that is gone takes nobody.
fn judge_current(pod: &PodProxy, view: &View, caller: &Caller, destination: SocketAddr) -> Judgement {
    let client = || Client { identity: caller.peer.clone(), address: caller.address };
    let refused = |reason: String| Judgement {
        enforcer: Enforcer::ZtunnelInbound,
        decision: deny(reason),
        client: client(),
        through_waypoint: false,
    };
    if !pod.is_address(destination.ip()) {
        return refused(format!("`{}` is not the address of this pod", destination.ip()));
    }
    if PROXY_PORTS.contains(&destination.port()) {
        return refused(format!("port {} belongs to the node proxy itself", destination.port()));
    }
    match pod.current(view) {
        Some(workload) => judge(view, workload, caller, destination.ip(), destination.port()),
        None => refused("the control plane no longer knows this pod".to_owned()),
    }
}

/// Connects to the application under the client's address, so that it sees who calls.
async fn connect(pod: &PodProxy, client: &Client, destination: SocketAddr) -> std::io::Result<TcpStream> {
    let config = &pod.shared.config;
    let ip: IpAddr = client.address.ip().to_canonical();
    // Under its own address a pod needs no disguise, and the kernel would route the answers of one past us.
    let source = (config.preserve_source && !pod.is_own(ip)).then_some(ip);
    let options = ConnectOptions { source, mark: config.mark, timeout: CONNECT_TIMEOUT };
    let stream = socket::connect(&*pod.pod.network, destination, &options).await?;
    pod.tune(&stream);
    Ok(stream)
}

fn report(
    pod: &PodProxy,
    view: &View,
    enforcer: Enforcer,
    client: &Client,
    destination: SocketAddr,
    decision: Decision,
    timing: Timing,
) {
    let source = source(view, client.identity.clone(), client.address);
    let workload = pod.current(view).map(|workload| workload_name(workload));
    let destination = Destination { service: None, workload, address: Some(destination) };
    Report { enforcer, source, destination, decision, timing }.send(&pod.shared.recorder);
}
