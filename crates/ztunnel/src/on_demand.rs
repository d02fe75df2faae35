//! What isn't known yet is asked of the control plane when it is first needed (`XDS_ON_DEMAND`; `spec/ztunnel.md` 4, 5.2, 9).
//!
//! Who misses something in the view asks here for its name, waits, and looks again. That a name leads to nothing is believed
//! for [`ABSENT_FOR`]; that the control plane doesn't answer, or that what it says can't be read, never means "nothing": the
//! connection that needs it is refused.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ambit_mesh::{
    View,
    view::{Gateway, GatewayRef, ServiceKey, Workload},
};
use ambit_xds::{
    ADDRESS_TYPE,
    client::{DemandError, Handle},
};
use http::uri::Authority;
use tokio::time::{Instant, sleep};

use crate::{
    guard::{self, Caller, Claims},
    limits::{ABSENT_FOR, MAX_ABSENT, MAX_DEMANDS_PER_CONNECTION, MAX_DEMANDS_PER_POD},
    pod::PodProxy,
    route::{Found, Route, Source, find, is_address},
};

/// Asks the control plane by name.
pub struct OnDemand {
    client: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names that led to nothing of use lately.
    misses: HashMap<Arc<str>, Miss>,
    /// Questions under way, by pod.
    asking: HashMap<Arc<str>, usize>,
}

#[derive(Clone, Copy)]
struct Miss {
    until: Instant,
    /// It is there, and can't be read.
    unreadable: bool,
}

/// Why it isn't known what a name leads to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("what the control plane says of `{0}` can't be read")]
    Unreadable(String),
    #[error("`{name}` isn't known, and can't be asked for: {reason}")]
    Unanswered { name: String, reason: DemandError },
    #[error("`{0}` isn't known, and this pod asks the control plane for too many names already")]
    Busy(String),
}

/// A question under way, until dropped.
struct Asking<'o> {
    on_demand: &'o OnDemand,
    pod: &'o Arc<str>,
}

/// Names to ask for, each once, and only so many.
#[derive(Default)]
pub(crate) struct Lacking(Vec<String>);

// === impl OnDemand ===

impl OnDemand {
    /// Asks by this client, which has to watch addresses on demand.
    #[must_use]
    pub fn new(client: Handle) -> Arc<Self> {
        Arc::new(Self { client, state: Mutex::default() })
    }

    /// Asks for a name in the name of a pod. True if it leads to something, which is in the view now.
    pub(crate) async fn ask(&self, pod: &Arc<str>, name: &str) -> Result<bool, AskError> {
        let _asking = {
            let mut state = self.state();
            match state.misses.get(name).filter(|miss| miss.until > Instant::now()) {
                Some(Miss { unreadable: true, .. }) => return Err(AskError::Unreadable(name.to_owned())),
                Some(_) => return Ok(false),
                None => {}
            }
            let count = state.asking.entry(Arc::clone(pod)).or_default();
            if *count >= MAX_DEMANDS_PER_POD {
                return Err(AskError::Busy(name.to_owned()));
            }
            *count += 1;
            Asking { on_demand: self, pod }
        };
        match self.client.refresh(ADDRESS_TYPE, name).await {
            Ok(()) => Ok(true),
            Err(DemandError::Absent) => {
                self.miss(name, false);
                Ok(false)
            }
            Err(DemandError::Unreadable) => {
                self.miss(name, true);
                Err(AskError::Unreadable(name.to_owned()))
            }
            Err(reason) => Err(AskError::Unanswered { name: name.to_owned(), reason }),
        }
    }

    /// Asks for a pod itself until it is known. Never completes: whoever waits for the pod sees it come.
    pub(crate) async fn ask_for_itself(&self, pod: &PodProxy) {
        let network = Arc::clone(pod.shared.store.load().network());
        let names = [pod.usual_uid(), address_name(&network, pod.pod.ip.to_canonical())];
        loop {
            for name in &names {
                if let Err(error) = self.ask(&pod.pod.uid, name).await {
                    tracing::debug!(pod = %pod.pod.uid, %error, "asking for the pod itself");
                }
            }
            sleep(ABSENT_FOR).await;
        }
    }

    /// Makes known what it takes to judge a caller that says it speaks for somebody else: its workload, and if that is a
    /// waypoint, the services that lead through it. Of one that can't be found out an answer is not to be guessed.
    pub(crate) async fn make_known(&self, pod: &PodProxy, caller: &Caller) -> Result<(), AskError> {
        if caller.peer.is_none() {
            return Ok(());
        }
        let view = pod.shared.store.load();
        let ip = caller.address.ip().to_canonical();
        let guarded = pod.current(&view).is_some_and(|own| !own.guard.is_empty());
        if (guarded || caller.claims != Some(Claims::default())) && view.workload_by_ip(ip).is_none() {
            self.ask(&pod.pod.uid, &address_name(view.network(), ip)).await?;
        }
        let view = pod.shared.store.load();
        let Some(own) = pod.current(&view).filter(|_| guard::caller_waypoint(&view, caller).is_some()) else {
            return Ok(());
        };
        let mut lacking = Lacking::default();
        let unknown = own.services.keys().filter(|key| view.service(key).is_none());
        unknown.for_each(|key| lacking.add(service_name(key)));
        let services = own.services.keys().filter_map(|key| view.service(key));
        services.flat_map(|service| service.waypoints()).for_each(|gateway| lacking.place(&view, gateway));
        self.ask_for_all(pod, lacking).await
    }

    /// Makes known what it takes to tell whether a CONNECT has come to the right pod, of these two (`spec/ztunnel.md` 5.2).
    pub(crate) async fn make_authority_known(
        &self,
        pod: &PodProxy,
        own: &Workload,
        authority: &Authority,
    ) -> Result<(), AskError> {
        let host = authority.host().trim_matches(['[', ']']);
        let mut lacking = Lacking::default();
        let view = pod.shared.store.load();
        match host.parse().map(|ip: IpAddr| ip.to_canonical()) {
            Ok(ip) if pod.is_address(ip) || own.application_tunnel.is_some() => {}
            Ok(ip) => {
                if !view.has_address(view.network(), ip) {
                    self.ask(&pod.pod.uid, &address_name(view.network(), ip)).await?;
                }
                let view = pod.shared.store.load();
                let of_workload = view.workload_by_ip(ip).and_then(|workload| workload.waypoint.as_ref());
                let services = view.service_for(ip, &own.namespace).into_iter();
                let waypoints = of_workload.into_iter().chain(services.flat_map(|service| service.waypoints()));
                waypoints.for_each(|gateway| lacking.place(&view, gateway));
            }
            Err(_) => {
                let host = host.strip_suffix('.').unwrap_or(host);
                let meant = own.services.keys().filter(|key| key.hostname.eq_ignore_ascii_case(host));
                meant.filter(|key| view.service(key).is_none()).for_each(|key| lacking.add(service_name(key)));
            }
        }
        self.ask_for_all(pod, lacking).await
    }

    async fn ask_for_all(&self, pod: &PodProxy, lacking: Lacking) -> Result<(), AskError> {
        for name in lacking.0 {
            self.ask(&pod.pod.uid, &name).await?;
        }
        Ok(())
    }

    /// Notes that what a name leads to is of no use.
    pub(crate) fn is_of_no_use(&self, name: &str) {
        self.miss(name, false);
    }

    fn miss(&self, name: &str, unreadable: bool) {
        let mut state = self.state();
        let now = Instant::now();
        if state.misses.len() >= MAX_ABSENT {
            state.misses.retain(|_, miss| miss.until > now);
        }
        // Without room it is asked for again: slower, not less safe.
        if state.misses.len() < MAX_ABSENT {
            state.misses.insert(name.into(), Miss { until: now + ABSENT_FOR, unreadable });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").finish_non_exhaustive()
    }
}

// === impl Asking ===

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.on_demand.state();
        if let Some(count) = state.asking.get_mut(self.pod) {
            *count -= 1;
            if *count == 0 {
                state.asking.remove(self.pod);
            }
        }
    }
}

// === impl Lacking ===

impl Lacking {
    /// What a connection to this address lacks, given the route found without it.
    pub(crate) fn of(view: &View, source: Source<'_>, ip: IpAddr, route: &Route) -> Self {
        let mut lacking = Self::default();
        // A range may hold an address that has an owner of its own.
        if is_address(ip) && !view.has_address(view.network(), ip) {
            lacking.add(address_name(view.network(), ip));
        }
        if !matches!(route, Route::Refuse(_)) {
            return lacking;
        }
        match find(view, source, ip) {
            Found::Workload(workload) => workload.waypoint.iter().for_each(|waypoint| lacking.gateway(view, waypoint)),
            Found::Service(service) if service.rejected.is_none() => {
                service.waypoints().for_each(|waypoint| lacking.gateway(view, waypoint));
                lacking.endpoints(view, &service.key);
            }
            Found::Service(_) | Found::Unknown => {}
        }
        lacking
    }

    /// The names.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// What it takes to reach a waypoint or network gateway.
    fn gateway(&mut self, view: &View, gateway: &GatewayRef) {
        match &gateway.destination {
            Gateway::Service(key) => {
                let is_it = |workload: &&Arc<Workload>| workload.namespace == key.namespace;
                match view.workloads_by_hostname(&key.hostname).find(is_it) {
                    Some(_) => {}
                    None => self.endpoints(view, key),
                }
            }
            Gateway::Address(at) if !view.has_address(&at.network, at.ip) => {
                self.add(address_name(&at.network, at.ip));
            }
            Gateway::Address(at) => {
                if let Some(service) = view.service_by_address(at) {
                    self.endpoints(view, &service.key);
                }
            }
        }
    }

    /// A service that isn't known, or has nobody to go to: control planes need not tell of endpoints that came later. And
    /// the gateways to endpoints in other networks.
    fn endpoints(&mut self, view: &View, key: &ServiceKey) {
        let endpoints = view.endpoints(key);
        if view.service(key).is_none() || !endpoints.iter().any(|endpoint| endpoint.healthy) {
            self.add(service_name(key));
        }
        let remote = endpoints.iter().filter(|endpoint| endpoint.network != *view.network());
        for gateway in remote.filter_map(|endpoint| endpoint.network_gateway.as_ref()).take(MAX_DEMANDS_PER_CONNECTION)
        {
            match &gateway.destination {
                Gateway::Service(key) if view.service(key).is_none() => self.add(service_name(key)),
                Gateway::Service(_) | Gateway::Address(_) => self.place(view, gateway),
            }
        }
    }

    /// Whose address a reference names.
    fn place(&mut self, view: &View, gateway: &GatewayRef) {
        if let Gateway::Address(at) = &gateway.destination
            && !view.has_address(&at.network, at.ip)
        {
            self.add(address_name(&at.network, at.ip));
        }
    }

    fn add(&mut self, name: String) {
        if self.0.len() < MAX_DEMANDS_PER_CONNECTION && !self.0.contains(&name) {
            self.0.push(name);
        }
    }
}

fn address_name(network: &str, ip: IpAddr) -> String {
    format!("{network}/{ip}")
}

fn service_name(key: &ServiceKey) -> String {
    format!("{}/{}", key.namespace, key.hostname)
}
