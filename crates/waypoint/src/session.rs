//! One client tunnel: who asks, for which service or workload, and what the policies in force at the moment say.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ambit_api::SpiffeId;
use ambit_mesh::{View, view::ServiceKey};
use ambit_policy::{Compiled, ConnectionFacts, Decision, Residual};
use ambit_telemetry::{DecisionRecord, Destination, Source};
use ambit_xds::workload::AppProtocol;

use crate::{
    record::{Entry, refusal},
    request::Checked,
    shared::Shared,
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
    /// The policies last asked, with the connection's facts folded in.
    folded: Mutex<Option<Folded>>,
}

/// What is in force for a session at this moment.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) view: Arc<View>,
    pub(crate) protocol: AppProtocol,
    residual: Arc<Residual>,
}

/// What may have to be asked again when the configuration changes.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// May this connection exist?
    Connection,
    /// May this request be made?
    Request(Checked),
}

#[derive(Debug)]
struct Folded {
    /// Held, so that its address can't be given to other policies.
    policies: Arc<Compiled>,
    residual: Arc<Residual>,
}

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
        let source = client.source(&shared.store.load());
        Self { shared, client, target, upstreams: Upstreams::default(), source, folded: Mutex::default() }
    }

    /// The policies and the port as they are now.
    ///
    /// # Errors
    /// A denial, when the service isn't served here (any more).
    pub(crate) fn standing(&self) -> Result<Standing, Decision> {
        let view = self.shared.store.load();
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
        Ok(Standing { view, protocol, residual })
    }

    /// The configuration as it is now, if it lets this connection carry bytes of any kind.
    pub(crate) fn allows_connection(&self) -> Option<Arc<View>> {
        let standing = self.standing().ok()?;
        standing.decide_connection().is_allowed().then_some(standing.view)
    }

    /// A record of this session that says "denied" until something else is decided.
    pub(crate) fn entry(&self, protocol: &'static str) -> Entry {
        let destination = self.target.destination();
        let undecided = refusal("not judged");
        let enforcer = self.shared.enforcer();
        let record = DecisionRecord::new(enforcer, self.source.clone(), destination, protocol, &undecided);
        Entry::new(record, self.shared.recorder.clone())
    }

    /// Ends, with a record, when a change of the configuration denies what was allowed.
    pub(crate) async fn revoked(self: Arc<Self>, question: Question, protocol: &'static str) {
        let decision = self.denied(&question).await;
        let mut entry = self.entry(protocol);
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
                Question::Connection => standing.decide_connection(),
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
    }
}

// === impl Standing ===

impl Standing {
    /// Judges a request; a port that is declared to carry something else than HTTP carries none.
    pub(crate) fn decide(&self, checked: &Checked) -> Decision {
        if matches!(self.protocol, AppProtocol::Tcp | AppProtocol::Tls) {
            return refusal("the port no longer speaks HTTP");
        }
        let facts = checked.facts();
        let decision = self.residual.decide(&facts);
        if decision.is_allowed() { decision } else { self.residual.with_reason(decision, Some(&facts)) }
    }

    /// Judges the connection itself; a port that is declared to speak HTTP carries nothing else.
    pub(crate) fn decide_connection(&self) -> Decision {
        if matches!(self.protocol, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) {
            return refusal("the port speaks only HTTP");
        }
        let decision = self.residual.decide_connection();
        if decision.is_allowed() { decision } else { self.residual.with_reason(decision, None) }
    }
}
