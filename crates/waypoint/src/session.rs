//! One client tunnel: who asks, for which service or workload, and what the policies in force at the moment say.

use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak},
};

use ambit_api::SpiffeId;
use ambit_mesh::{
    View,
    view::{Authentication, ServiceKey, Tracing, WaypointBundle, routes::ServiceRoutes, traffic::RetryBudget},
};
use ambit_policy::{Compiled, ConnectionFacts, Decision, Residual, Sni, Stage};
use ambit_telemetry::{DecisionRecord, Destination, DryRun, Exchange, MAX_AUDITS, MatchedRule, Source};
use ambit_xds::workload::AppProtocol;
use arc_swap::ArcSwapOption;
use http::HeaderValue;

use crate::{
    custom::Approvals,
    destination,
    operators::Meters,
    record::{Entry, refusal},
    request::Checked,
    shared::Shared,
    traffic::Traffic,
    upstream::Upstreams,
};

/// The client's end of a tunnel, authenticated.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// From its certificate.
    pub(crate) identity: SpiffeId,
    /// Of the HBONE connection: the client's pod, since its node proxy connects from inside of it.
    pub(crate) address: SocketAddr,
}

/// What a tunnel asks for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) addressee: Addressee,
    /// `namespace/name` of the Service or workload, for records.
    pub(crate) name: Arc<str>,
    /// Virtual address and service port, or the workload's own address and port.
    pub(crate) address: SocketAddr,
}

/// Whose address it is.
#[derive(Clone, Debug)]
pub(crate) enum Addressee {
    Service(ServiceKey),
    /// A workload, by its uid.
    Workload(Arc<str>),
}

/// A tunnel from one client to one port of a service or workload.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Client,
    pub(crate) target: Target,
    pub(crate) upstreams: Upstreams,
    source: Source,
    pub(crate) meters: Arc<Meters>,
    /// Where its target's retries are counted.
    pub(crate) retry_counter: OnceLock<usize>,
    /// The server name of its TLS handshake, once somebody has looked.
    server_name: OnceLock<Sni>,
    /// The policies last asked, with the connection's facts folded in.
    folded: Mutex<Option<Folded>>,
    /// What was in force when it was last asked for.
    known: Mutex<Option<Known>>,
    /// How the service's endpoints are treated, if not as usual.
    pub(crate) destination: ArcSwapOption<destination::Settled>,
}

/// What is in force for a session at this moment.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) view: Arc<View>,
    found: Arc<Found>,
}

/// What a view says of a session. Looked up once per view, and shared by all requests under it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) protocol: AppProtocol,
    /// Whose tokens are believed, if any are looked at.
    pub(crate) authentication: Option<Arc<Authentication>>,
    /// The routes of the service, if it has some.
    pub(crate) routes: Option<Arc<ServiceRoutes>>,
    /// What applications are told of the client's certificate, if the Gateway asks for it.
    pub(crate) client_certificate: Option<HeaderValue>,
    /// Whether and how requests are traced, if they are.
    pub(crate) tracing: Option<Arc<Tracing>>,
    /// Rate limits and faults, if there are some.
    pub(crate) traffic: Option<Arc<Traffic>>,
    /// The service's own budget of retries, if it has one.
    pub(crate) retry_budget: Option<Arc<RetryBudget>>,
    residual: Arc<Residual>,
}

/// What was found last, so that requests under the same view don't look it up again.
#[derive(Debug)]
struct Known {
    /// Weak, so that a silent session doesn't keep an old view; held, so that its address can't be given to another.
    view: Weak<View>,
    found: Arc<Found>,
}

/// What may have to be asked again when the configuration changes.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// May this connection exist, which these providers have allowed?
    Connection(Approvals),
    /// May this request be made?
    Request(Box<Checked>),
}

#[derive(Debug)]
struct Folded {
    /// Held, so that its address can't be given to other policies.
    policies: Arc<Compiled>,
    residual: Arc<Residual>,
}

/// Until something else is decided.
static UNDECIDED: LazyLock<Decision> = LazyLock::new(|| refusal("not judged"));

// === impl Client ===

impl Client {
    /// This client as the source of a record.
    pub(crate) fn source(&self, view: &View) -> Source {
        let workload = view.workload_by_ip(self.address.ip());
        Source {
            workload: workload.map(|workload| format!("{}/{}", workload.namespace, workload.name).into()),
            identity: Some(self.identity.clone()),
            address: Some(self.address),
        }
    }
}

// === impl Target ===

impl Target {
    /// This target as the destination of a record.
    pub(crate) fn destination(&self) -> Destination {
        let name = Some(Arc::clone(&self.name));
        let (service, workload) = match &self.addressee {
            Addressee::Service(_) => (name, None),
            Addressee::Workload(_) => (None, name),
        };
        Destination { service, workload, address: Some(self.address) }
    }
}

// === impl Session ===

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, client: Client, target: Target) -> Self {
        let view = shared.store.load();
        let source = client.source(&view);
        let meters = Meters::new(&shared.operators, &view, &client, &target);
        let (folded, known) = (Mutex::default(), Mutex::default());
        Self {
            shared,
            client,
            target,
            upstreams: Upstreams::default(),
            source,
            meters,
            destination: ArcSwapOption::empty(),
            retry_counter: OnceLock::new(),
            server_name: OnceLock::new(),
            folded,
            known,
        }
    }

    /// The policies and the port as they are now.
    ///
    /// # Errors
    /// A denial, when the service isn't served here (any more).
    pub(crate) fn standing(&self) -> Result<Standing, Decision> {
        let view = self.shared.store.load();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(known) if std::ptr::eq(known.view.as_ptr(), &raw const *view) => {
                Ok(Standing { view, found: Arc::clone(&known.found) })
            }
            _ => {
                let found = Arc::new(self.look_up(&view)?);
                *known = Some(Known { view: Arc::downgrade(&view), found: Arc::clone(&found) });
                Ok(Standing { view, found })
            }
        }
    }

    fn look_up(&self, view: &View) -> Result<Found, Decision> {
        let Target { addressee, name, address } = &self.target;
        let waypoint = &self.shared.name;
        let Some(bundle) = view.waypoint(&self.shared.config.namespace, &self.shared.config.name) else {
            return Err(refusal(&format!("waypoint `{waypoint}` has no configuration yet")));
        };
        let (policies, protocol) = match addressee {
            Addressee::Service(key) => {
                let Some(policies) = bundle.services.get(key) else {
                    return Err(refusal(&format!("service `{name}` isn't bound to waypoint `{waypoint}`")));
                };
                let Some(service) = view.service(key).filter(|service| service.vips.contains(&address.ip())) else {
                    return Err(refusal(&format!("service `{name}` no longer has address {}", address.ip())));
                };
                let Some(port) = service.ports.get(&address.port()) else {
                    return Err(refusal(&format!("service `{name}` has no port {}", address.port())));
                };
                (policies, port.protocol)
            }
            Addressee::Workload(uid) => {
                let Some(workload) = view.workload(uid).filter(|w| w.addresses.contains(&address.ip())) else {
                    return Err(refusal(&format!("workload `{name}` no longer has address {}", address.ip())));
                };
                if !bundle.fronts(workload) {
                    return Err(refusal(&format!("workload `{name}` isn't bound to waypoint `{waypoint}`")));
                }
                if let Some(reason) = &workload.rejected {
                    return Err(refusal(reason));
                }
                // Nothing says what a port of a workload speaks.
                (&bundle.workloads, AppProtocol::Unknown)
            }
        };
        let residual = self.fold(policies);
        self.destination.store(self.treatment(bundle).map(Arc::new));
        let authentication = match addressee {
            Addressee::Service(_) if bundle.authentications.is_empty() => None,
            Addressee::Service(key) => bundle.authentications.get(key).cloned(),
            Addressee::Workload(_) => bundle.workload_authentication.clone(),
        };
        let routes = match addressee {
            Addressee::Service(key) if !bundle.routes.is_empty() => bundle.routes.get(key).cloned(),
            _ => None,
        };
        let traffic = match addressee {
            Addressee::Service(_) if bundle.traffic.is_empty() => None,
            Addressee::Service(key) => bundle.traffic.get(key),
            Addressee::Workload(_) => bundle.workload_traffic.as_ref(),
        };
        let traffic = traffic.map(|service| Arc::new(Traffic::of(service, self)));
        let retry_budget = match addressee {
            Addressee::Service(key) if !bundle.retry_budgets.is_empty() => bundle.retry_budgets.get(key).cloned(),
            _ => None,
        };
        self.meters.set(&bundle.settings);
        // Identities consist of visible ASCII.
        let client_certificate = bundle.settings.client_identity.then(|| {
            let (by, client) = (&self.shared.config.identity, &self.client.identity);
            HeaderValue::try_from(format!("By={by};URI={client}")).ok()
        });
        let client_certificate = client_certificate.flatten();
        let tracing = bundle.settings.tracing.clone();
        Ok(Found { protocol, authentication, routes, client_certificate, tracing, traffic, retry_budget, residual })
    }

    fn treatment(&self, bundle: &WaypointBundle) -> Option<destination::Settled> {
        let Addressee::Service(key) = &self.target.addressee else { return None };
        let found = bundle.destinations.get(key);
        destination::settle(&self.shared, found, key, self.target.address.port(), None)
    }

    /// The configuration as it is now, if it lets this connection carry bytes of any kind.
    pub(crate) fn allows_connection(&self) -> Option<Arc<View>> {
        let standing = self.standing().ok()?;
        standing.decide_connection(&Approvals::default()).is_allowed().then_some(standing.view)
    }

    /// A record of this session that says "denied" until something else is decided.
    pub(crate) fn entry(&self, protocol: &'static str) -> Entry {
        let destination = self.target.destination();
        let enforcer = self.shared.enforcer();
        let record = DecisionRecord::new(enforcer, self.source.clone(), destination, protocol, &UNDECIDED);
        let entry = Entry::new(record, self.shared.recorder.clone());
        let mut entry = entry.metered(&self.meters, protocol.starts_with("HTTP"));
        entry.watch(|| self.exchange());
        entry
    }

    /// What is known of every request or connection of this session once it has ended.
    pub(crate) fn exchange(&self) -> Exchange {
        let hostname = match &self.target.addressee {
            Addressee::Service(key) => Some(Arc::clone(&key.hostname)),
            Addressee::Workload(_) => None,
        };
        let server_name = match self.server_name.get() {
            Some(Sni::Name(name)) => Some(Arc::clone(name)),
            _ => None,
        };
        Exchange { hostname, server_name, flags: "-", ..Exchange::default() }
    }

    /// True if policies want to know the server name of a TLS handshake that nobody has looked at yet.
    pub(crate) fn wants_server_name(&self) -> bool {
        self.server_name.get().is_none()
            && self.standing().is_ok_and(|standing| standing.residual.names_server() && !standing.speaks_http())
    }

    /// The server name has become known, before anything was judged by it.
    pub(crate) fn heard(&self, server_name: Sni) {
        if self.server_name.set(server_name).is_ok() {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
            *self.folded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Ends, with a record, when a change of the configuration denies what was allowed.
    pub(crate) async fn revoked(self: Arc<Self>, question: Question, protocol: &'static str) {
        let decision = self.denied(&question).await;
        let mut entry = self.entry(protocol).unwatched();
        if let Question::Request(checked) = &question {
            entry.request(&checked.method, checked.path());
        }
        entry.decided(&decision, None);
        entry.finish(None);
    }

    /// The denial of what was allowed before this was called. Since it is asked again at the start, no change in
    /// between is missed.
    pub(crate) async fn denied(&self, question: &Question) -> Decision {
        let mut changes = self.shared.store.changes();
        loop {
            let decision = self.ask(question);
            if !decision.is_allowed() {
                return decision;
            }
            if changes.changed().await.is_err() {
                // The configuration can't change any more.
                std::future::pending::<()>().await;
            }
        }
    }

    fn ask(&self, question: &Question) -> Decision {
        match self.standing() {
            Err(refusal) => refusal,
            Ok(standing) => match question {
                Question::Connection(approvals) => standing.decide_connection(approvals),
                Question::Request(checked) => standing.decide(checked),
            },
        }
    }

    fn fold(&self, policies: &Arc<Compiled>) -> Arc<Residual> {
        let mut folded = self.folded.lock().unwrap_or_else(PoisonError::into_inner);
        match &*folded {
            Some(known) if Arc::ptr_eq(&known.policies, policies) => Arc::clone(&known.residual),
            _ => {
                let residual = Arc::new(policies.for_connection(&self.facts()));
                *folded = Some(Folded { policies: Arc::clone(policies), residual: Arc::clone(&residual) });
                residual
            }
        }
    }

    fn facts(&self) -> ConnectionFacts {
        let Target { address, .. } = &self.target;
        ConnectionFacts::new(self.client.address.ip().to_canonical(), address.ip().to_canonical(), address.port())
            .with_peer(self.client.identity.clone())
            .with_sni(self.server_name.get().cloned().unwrap_or_default())
    }
}

// === impl Standing ===

impl Deref for Standing {
    type Target = Found;

    fn deref(&self) -> &Found {
        &self.found
    }
}

impl Standing {
    /// True if the port is declared to carry nothing but HTTP.
    pub(crate) fn speaks_http(&self) -> bool {
        matches!(self.protocol, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc)
    }

    /// True if CUSTOM policies may want a provider asked.
    pub(crate) fn has_custom(&self) -> bool {
        self.residual.has_custom()
    }

    /// Judges a request; a port that is declared to carry something else than HTTP carries none.
    pub(crate) fn decide(&self, checked: &Checked) -> Decision {
        if matches!(self.protocol, AppProtocol::Tcp | AppProtocol::Tls) {
            return refusal("the port no longer speaks HTTP");
        }
        if self.has_custom() {
            let decision = self.decide_custom(checked);
            if !decision.is_allowed() {
                return decision;
            }
        }
        let facts = checked.facts().with_stage(Stage::AfterCustom);
        let decision = self.residual.decide(&facts);
        if decision.is_allowed() { decision } else { self.residual.with_reason(decision, Some(&facts)) }
    }

    /// Judges a request, as it was sent, by CUSTOM policies alone.
    pub(crate) fn decide_custom(&self, checked: &Checked) -> Decision {
        let approved = checked.approvals().names();
        let facts = checked.facts_as_sent().with_stage(Stage::Custom).with_approvals(&approved);
        let decision = self.residual.decide(&facts);
        if decision.is_allowed() { decision } else { self.residual.with_reason(decision, Some(&facts)) }
    }

    /// Judges the connection itself; a port that is declared to speak HTTP carries nothing else.
    pub(crate) fn decide_connection(&self, approvals: &Approvals) -> Decision {
        if self.speaks_http() {
            return refusal("the port speaks only HTTP");
        }
        let decision = self.residual.decide_connection_approved(&approvals.names());
        if decision.is_allowed() { decision } else { self.residual.with_reason(decision, None) }
    }

    /// Notes what AUDIT and dry-run policies say of a request, or of the connection.
    pub(crate) fn observe(&self, checked: Option<&Checked>, approvals: &Approvals, entry: &mut Entry) {
        if !self.residual.observes() {
            return;
        }
        let approved = approvals.names();
        let facts = checked.map(|checked| checked.facts().with_approvals(&approved));
        let audits = self.residual.audits(facts.as_ref());
        let dry_run = self.residual.dry_run(facts.as_ref());
        entry.note(|notes| {
            notes.audits = audits.iter().take(MAX_AUDITS).map(MatchedRule::from).collect();
            notes.dry_run = dry_run.map(DryRun::from);
        });
    }
}
