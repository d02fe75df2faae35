//! One pod: its listeners, its limits, its tasks.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::{
    Pool,
    socket::{self, ListenOptions},
};
use ambit_mesh::view::Workload;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Pod, Shared, dns, inbound,
    limits::{ACCEPT_PAUSE, LISTEN_BACKLOG, STOP_WAIT, WORKLOAD_WAIT},
    outbound, plaintext,
    tracking::Tracked,
};

/// A served pod.
pub(crate) struct PodProxy {
    pub(crate) pod: Pod,
    pub(crate) shared: Arc<Shared>,
    /// Tunnels from this pod; nobody else's connections share them.
    pub(crate) pool: Arc<Pool>,
    pub(crate) tracked: Arc<Tracked>,
    /// Nothing new is accepted.
    pub(crate) closing: CancellationToken,
    stopped: CancellationToken,
    tasks: TaskTracker,
    connections: Arc<Semaphore>,
    dns_queries: Arc<Semaphore>,
    /// Where its DNS is, for tests that let the kernel choose the port.
    #[cfg(test)]
    pub(crate) dns: SocketAddr,
    /// Where its outbound listener is, likewise.
    #[cfg(test)]
    pub(crate) outbound: SocketAddr,
}

/// A place below the limits, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    _pod: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// The listeners of a pod, all bound.
struct Listeners {
    outbound: TcpListener,
    dns: dns::Listeners,
    /// Plaintext and HBONE; only for a pod in the mesh.
    inbound: Option<(TcpListener, TcpListener)>,
}

// === impl PodProxy ===

impl PodProxy {
    /// Binds all listeners, then serves them.
    pub(crate) fn start(pod: Pod, shared: Arc<Shared>) -> io::Result<Arc<Self>> {
        let listeners = Listeners::bind(&pod, &shared)?;
        let limits = shared.config.limits;
        let proxy = Arc::new(Self {
            pool: Pool::new(Arc::clone(&shared.certificates), shared.config.transport.clone()),
            tracked: Arc::default(),
            closing: CancellationToken::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            connections: Arc::new(Semaphore::new(limits.connections_per_pod)),
            dns_queries: Arc::new(Semaphore::new(limits.dns_queries_per_pod)),
            #[cfg(test)]
            dns: listeners.dns.address()?,
            #[cfg(test)]
            outbound: listeners.outbound.local_addr()?,
            pod,
            shared,
        });
        let Listeners { outbound, dns, inbound } = listeners;
        dns.serve(&proxy);
        proxy.serve(outbound, outbound::accepted);
        if let Some((plaintext, hbone)) = inbound {
            proxy.serve(plaintext, plaintext::accepted);
            proxy.serve(hbone, inbound::accepted);
        }
        // Not one of the tasks that a drain waits for: it ends when the pod is stopped.
        let reviewed = Arc::clone(&proxy);
        tokio::spawn(async move { reviewed.review_changes().await });
        Ok(proxy)
    }

    /// Runs a task until it ends or the pod is stopped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
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
        let tracked = self.tasks.track_future(task);
        tokio::select! {
            biased;
            () = self.stopped.cancelled() => {}
            () = tracked => {}
        }
    }

    /// A place for one more connection, if there is one.
    pub(crate) fn slot(&self) -> Option<Slot> {
        slot(&self.connections, &self.shared.connections)
    }

    /// A place for one more DNS query, if there is one.
    pub(crate) fn dns_slot(&self) -> Option<Slot> {
        slot(&self.dns_queries, &self.shared.dns_queries)
    }

    /// This pod as the control plane describes it. A pod that was just added may have to wait for that.
    pub(crate) async fn workload(&self) -> Option<Arc<Workload>> {
        let store = &self.shared.store;
        if let Some(workload) = store.load().workload(&self.pod.uid) {
            return Some(Arc::clone(workload));
        }
        let mut changes = store.changes();
        let known = async {
            loop {
                if let Some(workload) = store.load().workload(&self.pod.uid) {
                    return Some(Arc::clone(workload));
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(WORKLOAD_WAIT, known).await.ok().flatten()
    }

    /// True if this address is the pod's own, as seen from inside.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip == self.pod.ip.to_canonical() || ip.is_loopback()
    }

    /// Stops accepting; open connections go on.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.pool.drain();
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
        let ended = timeout_at(deadline, self.tasks.wait()).await.is_ok();
        self.stop();
        if !ended && timeout(STOP_WAIT, self.tasks.wait()).await.is_err() {
            tracing::warn!(pod = %self.pod.uid, "connections did not end in time");
        }
    }

    /// Serves a listener: each connection in a task of its own. The handler takes care of the limits.
    fn serve<H, F>(self: &Arc<Self>, listener: TcpListener, handler: H)
    where
        H: Fn(Arc<Self>, TcpStream, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let proxy = Arc::clone(self);
        self.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = proxy.closing.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        let peer = socket::fold_mapped(peer);
                        proxy.spawn(handler(Arc::clone(&proxy), stream, peer));
                    }
                    Err(error) => {
                        tracing::warn!(pod = %proxy.pod.uid, %error, "accepting a connection failed");
                        sleep(ACCEPT_PAUSE).await;
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
            for entry in self.tracked.snapshot() {
                inbound::review(self, &view, &entry);
                outbound::review(self, &view, &entry);
            }
        }
    }
}

fn slot(pod: &Arc<Semaphore>, all: &Arc<Semaphore>) -> Option<Slot> {
    let pod = Arc::clone(pod).try_acquire_owned().ok()?;
    let all = Arc::clone(all).try_acquire_owned().ok()?;
    Some(Slot { _pod: pod, _all: all })
}

// === impl Listeners ===

impl Listeners {
    /// Outbound and DNS are bound to loopback: that is where the kernel redirects what the pod itself sends, and from
    /// outside nobody can use them. Inbound is bound to the pod's address, where the kernel redirects what arrives.
    fn bind(pod: &Pod, shared: &Shared) -> io::Result<Self> {
        let config = &shared.config;
        let ports = config.ports;
        let loopback = match pod.ip.to_canonical() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let listen = |ip: IpAddr, port: u16, transparent: bool| {
            let address = SocketAddr::new(ip, port);
            let options = ListenOptions { transparent, mark: config.mark, reuse_port: false, backlog: LISTEN_BACKLOG };
            socket::listen(&*pod.network, address, &options).map_err(|error| named(error, &pod.uid, address))
        };
        let outbound = listen(loopback, ports.outbound, false)?;
        let dns = dns::Listeners::bind(&*pod.network, ports.dns, config.mark)
            .map_err(|error| named(error, &pod.uid, SocketAddr::new(loopback, ports.dns)))?;
        let inbound = match pod.captured {
            true => Some((
                listen(pod.ip, ports.plaintext, config.preserve_source)?,
                listen(pod.ip, ports.hbone, config.preserve_source)?,
            )),
            false => None,
        };
        Ok(Self { outbound, dns, inbound })
    }
}

fn named(error: io::Error, uid: &str, address: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("can't listen on `{address}` in pod `{uid}`: {error}"))
}
