//! Inbound connections: HBONE (15008; `spec/ztunnel.md` 5.1 to 5.3), and what plaintext shares with it.

mod claims;

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use ambit_api::SpiffeId;
use ambit_hbone::{
    ConnectRequest, Connection, Tunnel,
    socket::{self, Congestion, ConnectOptions},
};
use ambit_identity::Distrust;
use ambit_mesh::View;
use ambit_telemetry::{
    ConnectionFacts, Destination, Enforcer,
    metrics::{Flag, Refusal, Reporter},
};
use http::{HeaderMap, Method, StatusCode};
use tokio::net::TcpStream;

pub(crate) use self::claims::claims;
use crate::{
    account::{Account, End, Opening, Verdicted},
    application_tunnel, baggage,
    budget::{Slot, refusal},
    guard::{Caller, Client, Judgement, judge},
    labels,
    limits::CONNECT_TIMEOUT,
    next_hop::{Here, Misdirected, NextHop},
    pod::PodProxy,
    record::{Report, Timing, deny, source, told, workload_name},
    route::PROXY_PORTS,
    splice::join,
    tracking::{Entry, Ticket, What},
};

/// Why nothing is served as long as nobody says who the pod is.
pub(crate) const UNKNOWN_POD: &str = "the control plane does not know this pod; it may be going";

/// A connection that policies allow and the application has taken.
pub(crate) struct Admitted {
    pub(crate) ticket: Ticket,
    pub(crate) application: TcpStream,
}

/// What a CONNECT tells beside who asks for what.
#[derive(Clone, Copy)]
pub(crate) struct Via<'r> {
    /// The address that the tunnel was opened to.
    pub(crate) local: SocketAddr,
    /// The headers; they prove nothing.
    pub(crate) headers: &'r HeaderMap,
}

/// Why a connection was not let in, as who asked may be told. It is recorded already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// By the guard or a policy.
    Denied(String),
    /// The application can't be reached.
    Unreachable(String),
}

/// Serves one connection to the HBONE listener.
pub(crate) async fn accepted(pod: Arc<PodProxy>, stream: TcpStream, peer: SocketAddr) {
    let timing = Timing::start();
    let own = SocketAddr::new(pod.pod.ip, pod.shared.config.ports.hbone);
    let nobody = Caller { peer: None, address: peer, claims: None };
    let _socket = pod.shared.config.metrics.traffic.socket(Reporter::Destination);
    let admitted = pod.budget.tunnel().and_then(|slot| Ok((slot, pod.budget.handshake()?)));
    let (_slot, handshaking) = match admitted {
        Ok(admitted) => admitted,
        Err(over) => {
            turn_away(&pod, &nobody, own, timing, (refusal(over), &over));
            return socket::reset_on_close(&stream);
        }
    };
    match handshake(&pod, stream).await {
        Ok(connection) => {
            drop(handshaking);
            serve(&pod, connection).await;
        }
        Err((refusal, reason)) => turn_away(&pod, &nobody, own, timing, (refusal, &reason)),
    }
}

/// Lets a connection in, if the guard, the policies and the application take it. Records what comes of it.
pub(crate) async fn admit(
    pod: &PodProxy,
    caller: Caller,
    hop: NextHop,
    via: Option<Via<'_>>,
    mut timing: Timing,
) -> Result<Admitted, Refused> {
    let destination = hop.destination;
    if pod.workload().await.is_none() {
        refuse(pod, &caller, destination, timing, (Refusal::UnknownWorkload, UNKNOWN_POD));
        return Err(Refused::Unreachable(UNKNOWN_POD.to_owned()));
    }
    if let Some(on_demand) = &pod.shared.config.on_demand
        && let Err(error) = on_demand.make_known(pod, &caller).await
    {
        let reason = error.to_string();
        refuse(pod, &caller, destination, timing, (Refusal::UnknownWorkload, &reason));
        return Err(Refused::Unreachable(reason));
    }
    let ticket = pod.tracked.track(What::Inbound { caller: caller.clone(), destination });
    let judging = Instant::now();
    let view = pod.shared.store.load();
    let judgement = judge_current(pod, &view, &caller, destination);
    timing.policy = Some(judging.elapsed());
    ticket.open(account(pod, &view, &caller, via, destination, &judgement, timing));
    let Judgement { enforcer, decision, client, refusal, .. } = judgement;
    if !decision.is_allowed() {
        count(pod, refusal);
        let told = told(&enforcer, &decision);
        ticket.close(End::Refused(Verdicted { enforcer, decision, changed: false }));
        return Err(Refused::Denied(told));
    }
    let connecting = Instant::now();
    let connected = tokio::select! {
        biased;
        () = ticket.ended() => {
            let told = ticket.ending().map(|verdict| told(&verdict.enforcer, &verdict.decision));
            return Err(Refused::Denied(told.unwrap_or_default()));
        }
        connected = connect(pod, &caller, &client, hop) => connected,
    };
    timing.connect = Some(connecting.elapsed());
    let application = match connected {
        Ok(application) => application,
        Err(error) => {
            let reason = format!("the application at `{destination}` can't be reached: {error}");
            count(pod, Refusal::Unreachable);
            ticket.close(End::Failed { reason: reason.as_str().into(), flag: Flag::Connect, elsewhere: false });
            return Err(Refused::Unreachable(reason));
        }
    };
    ticket.opened(timing);
    Ok(Admitted { ticket, application })
}

/// Judges a live inbound connection again and cuts it if it is no longer allowed.
pub(crate) fn review(pod: &PodProxy, view: &View, entry: &Entry) {
    let What::Inbound { caller, destination } = &entry.what else { return };
    let Judgement { enforcer, mut decision, .. } = judge_current(pod, view, caller, *destination);
    if !decision.is_allowed() {
        decision.reason = format!("policy changed: {}", decision.reason).into();
        if entry.cut(Verdicted { enforcer, decision, changed: true }) {
            count(pod, Refusal::PolicyChange);
        }
    }
}

/// Records a refusal that needed no policy: what it counts as, and why.
pub(crate) fn refuse(
    pod: &PodProxy,
    caller: &Caller,
    destination: SocketAddr,
    timing: Timing,
    (refusal, reason): (Refusal, &str),
) {
    count(pod, refusal);
    let view = pod.shared.store.load();
    let source = source(&view, caller.peer.clone(), caller.address);
    let workload = pod.current(&view).map(|workload| workload_name(workload));
    let destination = Destination { service: None, workload, address: Some(destination) };
    let enforcer = Enforcer::ZtunnelInbound;
    Report { enforcer, source, destination, decision: deny(reason), timing }.send(&pod.shared.recorder);
}

/// The same for what a flood brings many of: all are counted, and as many recorded as is worth the cost.
pub(crate) fn turn_away(
    pod: &PodProxy,
    caller: &Caller,
    destination: SocketAddr,
    timing: Timing,
    (refusal, reason): (Refusal, &dyn Display),
) {
    match pod.budget.recordable(reason) {
        Some(reason) => refuse(pod, caller, destination, timing, (refusal, &reason)),
        None => count(pod, refusal),
    }
}

fn count(pod: &PodProxy, refusal: Refusal) {
    pod.shared.config.metrics.refusals.refused(Reporter::Destination, refusal);
}

/// TLS and HTTP/2.
async fn handshake(pod: &PodProxy, stream: TcpStream) -> Result<Connection, (Refusal, String)> {
    let shared = &pod.shared;
    // Whatever fails before TLS has taken over: the client sees a reset, not an end.
    let cut = |stream: &TcpStream, refusal: Refusal, reason: String| {
        socket::reset_on_close(stream);
        (refusal, reason)
    };
    let Some(workload) = pod.workload().await else {
        return Err(cut(&stream, Refusal::UnknownWorkload, UNKNOWN_POD.to_owned()));
    };
    let certificate = match shared.certificates.get(&workload.identity).await {
        Ok(certificate) => certificate,
        Err(error) => return Err(cut(&stream, Refusal::Identity, error.to_string())),
    };
    ambit_hbone::accept(stream, certificate, pod.budget.inbound())
        .await
        .map_err(|error| (Refusal::Handshake, format!("the HBONE handshake failed: {error}")))
}

/// Serves the streams of one tunnel until the peer is done. Being drained, it takes no new ones.
async fn serve(pod: &Arc<PodProxy>, mut connection: Connection) {
    let peer = connection.peer().clone();
    let address = socket::fold_mapped(connection.peer_addr());
    let local = connection.local_addr();
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
                pod.spawn(serve_request(Arc::clone(pod), request, peer.clone(), address, local));
            }
            Some(Err(error)) => return failed(pod, peer, address, &error),
            None => return,
        }
    }
}

/// Says why a tunnel has failed, where that matters.
fn failed(pod: &PodProxy, peer: SpiffeId, address: SocketAddr, error: &ambit_hbone::Error) {
    let ambit_hbone::Error::Distrusted { distrust, .. } = error else {
        return tracing::debug!(%error, "tunnel failed");
    };
    if matches!(distrust, Distrust::Revoked(_)) {
        pod.shared.config.metrics.revocation.rejected(Reporter::Destination);
    }
    let own = SocketAddr::new(pod.pod.ip, pod.shared.config.ports.hbone);
    let caller = Caller { peer: Some(peer), address, claims: None };
    refuse(pod, &caller, own, Timing::start(), (Refusal::Identity, &error.to_string()));
}

/// A stream that was let in.
struct Entered {
    tunnel: Tunnel,
    admitted: Admitted,
    _slot: Slot,
}

/// Serves one stream.
fn serve_request(
    pod: Arc<PodProxy>,
    request: ConnectRequest,
    peer: SpiffeId,
    address: SocketAddr,
    local: SocketAddr,
) -> impl Future<Output = ()> + Send + 'static {
    // Boxed: an idle connection has no use for the room that letting it in takes.
    let entering = Box::pin(enter(Arc::clone(&pod), request, peer, address, local));
    async move {
        if let Some(Entered { mut tunnel, mut admitted, _slot }) = entering.await {
            join(&admitted.ticket, &pod, &mut tunnel, &mut admitted.application).await;
        }
    }
}

/// Lets a stream in, or tells the peer why not.
async fn enter(
    pod: Arc<PodProxy>,
    request: ConnectRequest,
    peer: SpiffeId,
    address: SocketAddr,
    local: SocketAddr,
) -> Option<Entered> {
    let (pod, timing) = (&*pod, Timing::start());
    let claims = claims(request.headers(), &pod.shared.config.trust_domain);
    let caller = Caller { peer: Some(peer), address, claims };
    let hop = match find_hop(pod, &request, local.ip()).await {
        Ok(hop) => hop,
        Err(Misdirected { status, destination, reason }) => {
            let destination = destination.unwrap_or(SocketAddr::new(pod.pod.ip, 0));
            refuse(pod, &caller, destination, timing, (Refusal::BadRequest, &reason));
            answer_no(pod, request, status, &reason);
            return None;
        }
    };
    let slot = match pod.budget.connection() {
        Ok(slot) => slot,
        Err(over) => {
            turn_away(pod, &caller, hop.destination, timing, (refusal(over), &over));
            answer_no(pod, request, StatusCode::SERVICE_UNAVAILABLE, &over.to_string());
            return None;
        }
    };
    let via = Via { local, headers: request.headers() };
    let admitted = admit(pod, caller, hop, Some(via), timing).await;
    let (status, why) = match admitted {
        Ok(admitted) => match request.accept(answer(pod)) {
            Ok(tunnel) => return Some(Entered { tunnel, admitted, _slot: slot }),
            Err(error) => {
                let reason = format!("the peer gave up while the application was being reached: {error}");
                admitted.ticket.close(End::Broken(reason));
                return None;
            }
        },
        Err(Refused::Denied(why)) => (StatusCode::UNAUTHORIZED, why),
        Err(Refused::Unreachable(why)) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    answer_no(pod, request, status, &why);
    None
}

/// Refuses a stream, and tells the peer why: it is one of the mesh.
fn answer_no(pod: &PodProxy, request: ConnectRequest, status: StatusCode, why: &str) {
    match pod.shared.config.explain_refusals {
        true => request.refuse_because(status, why),
        false => request.refuse(status),
    }
}

/// Where a CONNECT goes.
async fn find_hop(pod: &PodProxy, request: &ConnectRequest, local: IpAddr) -> Result<NextHop, Misdirected> {
    if request.method() != Method::CONNECT {
        let reason = "only CONNECT is served on the HBONE port".to_owned();
        return Err(Misdirected { status: StatusCode::BAD_REQUEST, destination: None, reason });
    }
    let Some(workload) = pod.workload().await else {
        let reason = UNKNOWN_POD.to_owned();
        return Err(Misdirected { status: StatusCode::SERVICE_UNAVAILABLE, destination: None, reason });
    };
    if let Some((on_demand, authority)) = pod.shared.config.on_demand.as_ref().zip(request.authority()) {
        let known = on_demand.make_authority_known(pod, &workload, authority).await;
        known.map_err(|error| Misdirected {
            status: StatusCode::SERVICE_UNAVAILABLE,
            destination: None,
            reason: error.to_string(),
        })?;
    }
    let view = pod.shared.store.load();
    Here { pod, workload: &workload, view: &view, local }.next_hop(request.authority())
}

/// The headers of a 200.
fn answer(pod: &PodProxy) -> HeaderMap {
    if !pod.shared.config.response_baggage {
        return HeaderMap::new();
    }
    pod.current(&pod.shared.store.load()).map(|workload| baggage::answer(workload)).unwrap_or_default()
}

/// Judges by the pod as the control plane describes it now. A pod that is gone takes nobody.
fn judge_current(pod: &PodProxy, view: &View, caller: &Caller, destination: SocketAddr) -> Judgement {
    let client = || Client { identity: caller.peer.clone(), address: caller.address };
    let refused = |refusal, reason: String| Judgement {
        enforcer: Enforcer::ZtunnelInbound,
        decision: deny(reason),
        client: client(),
        through_waypoint: false,
        refusal,
    };
    if !pod.is_address(destination.ip()) {
        return refused(Refusal::BadRequest, format!("`{}` is not the address of this pod", destination.ip()));
    }
    if PROXY_PORTS.contains(&destination.port()) {
        return refused(Refusal::Loop, format!("port {} belongs to the node proxy itself", destination.port()));
    }
    match pod.current(view) {
        Some(workload) => judge(view, workload, caller, destination.ip(), destination.port()),
        None => refused(Refusal::UnknownWorkload, "the control plane no longer knows this pod".to_owned()),
    }
}

/// Connects to the application under the client's address, so that it sees who calls; behind an application tunnel that
/// speaks PROXY it is told.
async fn connect(pod: &PodProxy, caller: &Caller, client: &Client, hop: NextHop) -> std::io::Result<TcpStream> {
    let config = &pod.shared.config;
    let ip: IpAddr = client.address.ip().to_canonical();
    let disguised = !hop.at_loopback && pod.disguises_as(ip);
    let options = ConnectOptions {
        source: disguised.then_some(ip),
        mark: config.mark,
        timeout: CONNECT_TIMEOUT,
        stream: config.stream,
        // The way never leaves the pod.
        congestion: Congestion::unpaced(),
    };
    let mut stream = socket::connect(&*pod.pod.network, hop.target(), &options).await?;
    if let Some(destination) = hop.tunnelled {
        application_tunnel::introduce(&mut stream, caller.address, destination, caller.peer.as_ref()).await?;
    }
    Ok(stream)
}

/// The account of a connection that was judged.
fn account(
    pod: &PodProxy,
    view: &View,
    caller: &Caller,
    via: Option<Via<'_>>,
    destination: SocketAddr,
    judgement: &Judgement,
    timing: Timing,
) -> Box<Account> {
    let Judgement { enforcer, decision, client, through_waypoint, .. } = judgement;
    let own = pod.current(view);
    let headers = via.map(|via| via.headers);
    let called = own.and_then(|own| labels::called(view, own, headers, destination));
    let takes_baggage = pod.shared.config.response_baggage;
    let own_workload = own.map(|own| &**own);
    let labels = labels::inbound(view, own_workload, caller, headers, takes_baggage, called.map(|called| &**called));
    let facts = ConnectionFacts {
        source_cluster: labels.source.cluster.clone(),
        destination_cluster: labels.destination.cluster.clone(),
        address: via.map(|via| via.local),
        hbone_address: via.map(|_| destination.to_string().into()),
        service_hostname: labels.service.hostname.clone(),
        destination_identity: own.filter(|_| via.is_some()).map(|own| own.identity.clone()),
        // A waypoint records requests itself, with what it knows of them.
        decided_elsewhere: *through_waypoint,
        ..ConnectionFacts::default()
    };
    let opening = Opening {
        labels,
        enforcer: enforcer.clone(),
        source: source(view, client.identity.clone(), client.address),
        destination: Destination {
            service: None,
            workload: own.map(|own| workload_name(own)),
            address: Some(destination),
        },
        decision,
        facts,
    };
    Account::open(&pod.shared.config.metrics.traffic, opening, timing)
}
