//! One pod: its listeners, its limits, its tasks.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ambit_hbone::{
    Network, Pool,
    socket::{self, Congestion, ListenOptions, StreamOptions},
};
use ambit_mesh::{View, view::Workload};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    InPod, Pod, Shared,
    budget::{Permit, PodBudget},
    dns, inbound,
    limits::{
        ACCEPT_PAUSE, HANDOVER, LISTEN_BACKLOG, MAX_ACCEPT_PAUSE, REFUSAL_PAUSE, REFUSALS_AT_ONCE, REVIEWED_AT_ONCE,
        STOP_WAIT, WORKLOAD_WAIT,
    },
    network::{Marked, Shareable},
    outbound, plaintext, socks,
    tracking::Tracked,
};

/// A served pod.
pub(crate) struct PodProxy {
    pub(crate) pod: Pod,
    pub(crate) shared: Arc<Shared>,
    /// Makes sockets, marked if need be, for what isn't the mesh's.
    pub(crate) egress: Arc<dyn Network>,
    /// Tunnels from this pod; nobody else's connections share them.
    pub(crate) pool: Arc<Pool>,
    pub(crate) tracked: Arc<Tracked>,
    /// Nothing new is accepted.
    pub(crate) closing: CancellationToken,
    stopped: CancellationToken,
    tasks: TaskTracker,
    pub(crate) budget: PodBudget,
    /// Its uid in the mesh's view, once it was found there under another one than usual.
    known_as: OnceLock<Arc<str>>,
    /// It is the pod that the proxy itself runs in.
    is_proxy: bool,
    /// Where its DNS is, for tests that let the kernel choose the port.
    #[cfg(test)]
    pub(crate) dns: SocketAddr,
    /// Where its outbound listener is, likewise.
    #[cfg(test)]
    pub(crate) outbound: SocketAddr,
    /// Where SOCKS5 is, likewise.
    #[cfg(test)]
    pub(crate) socks: Option<SocketAddr>,
}

/// Stands for a listener that isn't there.
#[cfg(test)]
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The listeners of a pod, all bound.
struct Listeners {
    /// Unless only names are answered.
    outbound: Option<TcpListener>,
    socks: Option<TcpListener>,
    dns: Option<dns::Listeners>,
    /// Only for a pod in the mesh.
    plaintext: Option<TcpListener>,
    /// Likewise.
    hbone: Option<TcpListener>,
}

// === impl PodProxy ===

impl PodProxy {
    /// Binds all listeners, then serves them.
    pub(crate) fn start(pod: Pod, shared: Arc<Shared>) -> io::Result<Arc<Self>> {
        let listeners = Listeners::bind(&pod, &shared)?;
        Self::serve_all(pod, shared, listeners, false)
    }

    /// The same for the pod that the proxy itself runs in. Nothing is captured there, so HBONE alone is served.
    pub(crate) fn start_own(pod: Pod, shared: Arc<Shared>) -> io::Result<Arc<Self>> {
        let listeners = Listeners::bind_own(&pod, &shared)?;
        Self::serve_all(pod, shared, listeners, true)
    }

    fn serve_all(pod: Pod, shared: Arc<Shared>, listeners: Listeners, is_proxy: bool) -> io::Result<Arc<Self>> {
        let budget = shared.budgets.pod(&shared.config);
        let egress: Arc<dyn Network> = match &pod.in_pod {
            Some(_) => Arc::new(Marked { network: Arc::clone(&pod.network), mark: shared.config.mark }),
            None => Arc::clone(&shared.host),
        };
        let proxy = Arc::new(Self {
            egress,
            pool: Pool::new(Arc::clone(&shared.certificates), budget.outbound().clone()),
            tracked: Tracked::new(shared.recorder.clone()),
            closing: CancellationToken::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            budget,
            known_as: OnceLock::new(),
            is_proxy,
            #[cfg(test)]
            dns: listeners.dns.as_ref().map_or(Ok(NOWHERE), dns::Listeners::address)?,
            #[cfg(test)]
            outbound: listeners.outbound.as_ref().map_or(Ok(NOWHERE), TcpListener::local_addr)?,
            #[cfg(test)]
            socks: listeners.socks.as_ref().map(TcpListener::local_addr).transpose()?,
            pod,
            shared,
        });
        let Listeners { outbound, socks, dns, plaintext, hbone } = listeners;
        if let Some(dns) = dns {
            dns.serve(&proxy);
        }
        if let Some(outbound) = outbound {
            proxy.serve(outbound, PodBudget::is_full, outbound::accepted);
        }
        if let Some(socks) = socks {
            proxy.serve(socks, PodBudget::is_full, socks::accepted);
        }
        if let Some(plaintext) = plaintext {
            proxy.serve(plaintext, PodBudget::is_full, plaintext::accepted);
        }
        if let Some(hbone) = hbone {
            proxy.serve(hbone, PodBudget::is_full_for_tunnels, inbound::accepted);
        }
        // Not one of the tasks that a drain waits for: it ends when the pod is stopped.
        let reviewed = Arc::clone(&proxy);
        tokio::spawn(async move { reviewed.review_changes().await });
        Ok(proxy)
    }

    /// Runs a task until it ends or the pod is stopped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
        // Boxed, or the task would have room for it twice: where it is handed over and where it runs.
        let task = Box::pin(task);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// The same for a task that the caller waits for.
    pub(crate) async fn run(&self, task: impl Future<Output = ()>) {
        let tracked = self.tasks.track_future(Box::pin(task));
        tokio::select! {
            biased;
            () = self.stopped.cancelled() => {}
            () = tracked => {}
        }
    }

    /// A place for one more DNS query, if there is one.
    pub(crate) fn dns_slot(&self) -> Option<Permit> {
        self.budget.dns_query().ok()
    }

    /// This pod as the control plane describes it. A pod that was just added may have to wait for that.
    pub(crate) async fn workload(&self) -> Option<Arc<Workload>> {
        let store = &self.shared.store;
        if let Some(workload) = self.current(&store.load()) {
            return Some(Arc::clone(workload));
        }
        let mut changes = store.changes();
        let known = async {
            loop {
                if let Some(workload) = self.current(&store.load()) {
                    return Some(Arc::clone(workload));
                }
                changes.changed().await.ok()?;
            }
        };
        let known_or_asked_for = async {
            match &self.shared.config.on_demand {
                None => known.await,
                Some(on_demand) => tokio::select! {
                    workload = known => workload,
                    () = on_demand.ask_for_itself(self) => None,
                },
            }
        };
        timeout(WORKLOAD_WAIT, known_or_asked_for).await.ok().flatten()
    }

    /// The uid under which control planes usually know this pod.
    pub(crate) fn usual_uid(&self) -> String {
        match &self.pod.in_pod {
            Some(in_pod) => format!("{}//Pod/{}/{}", in_pod.cluster, self.pod.namespace, in_pod.name),
            None => self.pod.uid.to_string(),
        }
    }

    /// This pod in that view.
    pub(crate) fn current<'v>(&self, view: &'v View) -> Option<&'v Arc<Workload>> {
        match &self.pod.in_pod {
            Some(in_pod) => self.find(in_pod, view),
            None => view.workload(&self.pod.uid),
        }
    }

    /// The workload that a node agent means: names, service account and node have to be the same. Where the control plane
    /// names pods as Kubernetes does, this is one look-up.
    fn find<'v>(&self, in_pod: &InPod, view: &'v View) -> Option<&'v Arc<Workload>> {
        let is_ours = |workload: &&Arc<Workload>| {
            *workload.name == *in_pod.name
                && *workload.namespace == *self.pod.namespace
                && workload.identity.service_account() == in_pod.service_account
                && in_pod.node.as_ref().is_none_or(|node| *workload.node == **node)
        };
        let usual = self.usual_uid();
        let known = self.known_as.get().map_or(usual.as_str(), |uid| uid);
        if let Some(workload) = view.workload(known).filter(is_ours) {
            return Some(workload);
        }
        let workload = view.workloads().find(is_ours)?;
        // If it is set already, another one is found by searching each time: rare, and right.
        let _ = self.known_as.set(Arc::clone(&workload.uid));
        Some(workload)
    }

    /// True if this address is the pod's own, as seen from inside.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.is_address(ip) || ip.to_canonical().is_loopback()
    }

    /// Whether the application is to see this client's address. Under its own address a pod needs no disguise, and the
    /// kernel would route the answers of one past us; where the proxy itself is, nothing routes them to it.
    pub(crate) fn disguises_as(&self, client: IpAddr) -> bool {
        self.shared.config.preserve_source && !self.is_proxy && !self.is_own(client)
    }

    /// True if this is one of the pod's addresses.
    pub(crate) fn is_address(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let same = |own: &IpAddr| own.to_canonical() == ip;
        same(&self.pod.ip) || self.pod.in_pod.as_ref().is_some_and(|in_pod| in_pod.addresses.iter().any(same))
    }

    /// Where a captured connection of the pod itself came from. One to the loopback says nothing.
    pub(crate) fn origin(&self, peer: SocketAddr) -> SocketAddr {
        let ip = if peer.ip().to_canonical().is_loopback() { self.pod.ip } else { peer.ip() };
        SocketAddr::new(ip, peer.port())
    }

    /// Stops accepting; open connections go on. [`Self::drained`] has to follow.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
    }

    /// Ends every connection now.
    pub(crate) fn stop(&self) {
        self.closing.cancel();
        self.stopped.cancel();
        self.tasks.close();
        self.pool.close();
    }

    /// Waits for the connections to end, and ends those that are left at the deadline.
    pub(crate) async fn drained(&self, deadline: Instant) {
        // Connections that were on their way here need tunnels for as long as they may still come in.
        let handed_over = timeout_at((Instant::now() + self.handover()).min(deadline), self.tasks.wait()).await.is_ok();
        self.pool.drain();
        let ended = handed_over || timeout_at(deadline, self.tasks.wait()).await.is_ok();
        self.stop();
        if !ended && timeout(STOP_WAIT, self.tasks.wait()).await.is_err() {
            tracing::warn!(pod = %self.pod.uid, "connections did not end in time");
        }
    }

    /// Sets what [`Config::stream`](crate::Config::stream) says. Best effort: an option that can't be set costs time, not
    /// safety.
    pub(crate) fn tune(&self, stream: &TcpStream) {
        if let Err(error) = socket::tune_with(stream, &self.shared.config.stream) {
            tracing::debug!(%error, "a connection's options can't be set");
        }
    }

    /// How long listeners that close still accept.
    fn handover(&self) -> Duration {
        if self.shared.config.reuse_port { HANDOVER } else { Duration::ZERO }
    }

    /// Completes when the listener may close: the proxy drains, and whoever was on the way to it has come in.
    pub(crate) async fn handed_over(&self, listener: BorrowedFd<'_>) {
        self.closing.cancelled().await;
        self.pod.network.hand_over(listener);
        sleep(self.handover()).await;
    }

    /// Serves a listener: each connection in a task of its own. The handler takes care of the limits. However many come
    /// in, between any two the worker's other tasks have their turn.
    fn serve<H, F>(self: &Arc<Self>, listener: TcpListener, is_full: fn(&PodBudget) -> bool, handler: H)
    where
        H: Fn(Arc<Self>, TcpStream, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let proxy = Arc::clone(self);
        self.spawn(async move {
            let mut closed = pin!(proxy.handed_over(listener.as_fd()));
            let (mut pause, mut refusals) = (ACCEPT_PAUSE, 0);
            loop {
                refusals = if is_full(&proxy.budget) { refusals + 1 } else { 0 };
                if refusals > REFUSALS_AT_ONCE {
                    refusals = 0;
                    sleep(REFUSAL_PAUSE).await;
                } else {
                    yield_now().await;
                }
                let accepted = tokio::select! {
                    () = &mut closed => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        pause = ACCEPT_PAUSE;
                        let peer = socket::fold_mapped(peer);
                        proxy.spawn(handler(Arc::clone(&proxy), stream, peer));
                    }
                    Err(error) => {
                        tracing::warn!(pod = %proxy.pod.uid, %error, ?pause, "accepting a connection failed");
                        sleep(pause).await;
                        pause = (2 * pause).min(MAX_ACCEPT_PAUSE);
                    }
                }
            }
        });
    }

    /// Judges the live connections again whenever the configuration changes.
    async fn review_changes(&self) {
        let mut changes = self.shared.store.changes();
        loop {
            let changed = tokio::select! {
                () = self.stopped.cancelled() => return,
                changed = changes.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let view = self.shared.store.load();
            for (number, entry) in self.tracked.snapshot().iter().enumerate() {
                inbound::review(self, &view, entry);
                outbound::review(self, &view, entry);
                // Those that are cut, and everybody else on this thread, need not wait for the last one.
                if number % REVIEWED_AT_ONCE == REVIEWED_AT_ONCE - 1 {
                    yield_now().await;
                }
            }
        }
    }
}

// === impl Listeners ===

impl Listeners {
    /// Outbound and DNS are bound to loopback: that is where the kernel redirects what the pod itself sends, and from
    /// outside nobody can use them. Inbound is bound to the pod's address, where the kernel redirects what arrives.
    ///
    /// A node agent's pods have them on all addresses (DNS apart), as agents and their rules expect. What comes from
    /// outside to the outbound port without having been redirected asks for one of the proxy's own ports, and is refused.
    fn bind(pod: &Pod, shared: &Shared) -> io::Result<Self> {
        let config = &shared.config;
        let ports = config.ports;
        let loopback = match pod.ip.to_canonical() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let (outside, inside) = match &pod.in_pod {
            Some(in_pod) => {
                let any = socket::wildcard(in_pod.ipv6, 0).ip();
                (any, any)
            }
            None => (pod.ip, loopback),
        };
        let shareable = Shareable(Arc::clone(&pod.network));
        let network: &dyn Network = if config.reuse_port { &shareable } else { &*pod.network };
        let listen = |ip: IpAddr, port: u16, transparent: bool| {
            let address = SocketAddr::new(ip, port);
            let tunnels = port == ports.hbone;
            let options = ListenOptions {
                transparent,
                mark: config.mark,
                backlog: LISTEN_BACKLOG,
                stream: if tunnels { StreamOptions::default() } else { config.stream },
                // What isn't a tunnel comes from this pod's applications, or is passed on to them.
                congestion: if tunnels { config.transport.congestion } else { Congestion::unpaced() },
                ..ListenOptions::default()
            };
            socket::listen(network, address, &options).map_err(|error| named(error, &pod.uid, address))
        };
        let ipv6 = pod.in_pod.as_ref().map_or(pod.ip.is_ipv6(), |in_pod| in_pod.ipv6);
        let bind_dns = || {
            dns::Listeners::bind(network, ports.dns, config.mark, ipv6)
                .map_err(|error| named(error, &pod.uid, SocketAddr::new(loopback, ports.dns)))
        };
        let dns = config.answer_dns.then(bind_dns).transpose()?;
        if !config.carry_connections {
            return Ok(Self { dns, ..Self::none() });
        }
        let outbound = Some(listen(inside, ports.outbound, pod.in_pod.is_some() && config.preserve_source)?);
        let socks = config.socks5.map(|port| listen(IpAddr::V4(Ipv4Addr::LOCALHOST), port, false)).transpose()?;
        let inbound = |port| pod.captured.then(|| listen(outside, port, config.preserve_source)).transpose();
        Ok(Self { outbound, socks, dns, plaintext: inbound(ports.plaintext)?, hbone: inbound(ports.hbone)? })
    }

    /// HBONE alone, on all addresses.
    fn bind_own(pod: &Pod, shared: &Shared) -> io::Result<Self> {
        let config = &shared.config;
        let ipv6 = pod.in_pod.as_ref().map_or(pod.ip.is_ipv6(), |in_pod| in_pod.ipv6);
        let ip = if pod.in_pod.is_some() { socket::wildcard(ipv6, 0).ip() } else { pod.ip };
        let address = SocketAddr::new(ip, config.ports.hbone);
        let options = ListenOptions {
            mark: config.mark,
            reuse_port: config.reuse_port,
            backlog: LISTEN_BACKLOG,
            congestion: config.transport.congestion,
            ..ListenOptions::default()
        };
        let hbone =
            socket::listen(&*pod.network, address, &options).map_err(|error| named(error, &pod.uid, address))?;
        Ok(Self { hbone: Some(hbone), ..Self::none() })
    }

    fn none() -> Self {
        Self { outbound: None, socks: None, dns: None, plaintext: None, hbone: None }
    }
}

fn named(error: io::Error, uid: &str, address: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("can't listen on `{address}` in pod `{uid}`: {error}"))
}
