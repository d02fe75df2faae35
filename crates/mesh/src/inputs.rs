//! What the mesh is derived from: the users' objects, reduced to what has a meaning here.
//!
//! Sources (files, Kubernetes) make these from their own types, so that the derivation knows neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use ambit_api::{
    AuthorizationPolicy, MeshConfig, PeerAuthentication,
    mesh_config::{ExtensionProvider, MissingWaypoint, Normalization, Percentage, WaypointGuard},
    request_authentication::KeySource,
};
use ambit_policy::{Options, PathNormalization, PolicyName, ProviderKind};
use ambit_xds::workload::AppProtocol;

use crate::{
    attachment::{EnforcementPoint, Via},
    authentication::{Fetched, TokenRules},
    destinations,
    enforcement::Refusal,
    retry_budgets::RetryPolicy,
    routes::{Route, RouteKey},
    traffic::TrafficRules,
};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace that exists without being declared.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Service account that every namespace has.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// Class of the Gateways that are waypoints.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";
/// Port that waypoints and node proxies speak HBONE on.
pub const HBONE_PORT: u16 = 15008;
/// Protocol name of a waypoint's listener.
pub const HBONE_PROTOCOL: &str = "HBONE";

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Labels.
    pub labels: Labels,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Labels.
    pub labels: Labels,
    /// Pods that belong to it; empty selects none.
    pub selector: Labels,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses; none when headless.
    pub vips: Vec<IpAddr>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its number.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// What is spoken on it.
    pub protocol: AppProtocol,
    /// Its name; empty for the only one of a Service.
    pub name: String,
}

/// Where a service port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This port of the pod.
    Number(u16),
    /// The pod's container port of this name.
    Name(String),
}

/// A pod that runs, or could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Key on the wire; another pod of the same name gets another.
    pub uid: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// Service account.
    pub service_account: String,
    /// Address; nothing until it runs, and then it isn't published.
    pub ip: Option<IpAddr>,
    /// It gets new connections.
    pub ready: bool,
    /// It shares the node's network and can't be captured.
    pub host_network: bool,
    /// Whether a node agent has captured it; nothing where its labels say so.
    pub captured: Option<bool>,
    /// The node it runs on.
    pub node: String,
    /// Name of the Deployment it belongs to, if any.
    pub owner: Option<String>,
    /// Container ports by name.
    pub named_ports: BTreeMap<String, u16>,
    /// Name of the Gateway, in its namespace, whose waypoint it is.
    pub waypoint: Option<String>,
}

/// A Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Labels.
    pub labels: Labels,
    /// Name of its class.
    pub class: String,
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Virtual address of its own service.
    pub vip: Option<IpAddr>,
    /// What its annotations ask for.
    pub settings: ambit_api::GatewaySettings,
}

/// A listener of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Port.
    pub port: u16,
    /// Protocol, as written.
    pub protocol: String,
    /// Namespaces whose objects may bind to it.
    pub allowed: AllowedNamespaces,
}

/// Namespaces whose objects may bind to a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// The Gateway's own.
    #[default]
    Same,
    /// All.
    All,
    /// Those with matching labels.
    Selector(LabelSelector),
    /// None: also what stands here for a value that isn't understood.
    None,
}

/// A Kubernetes label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of these must be there.
    pub match_labels: Labels,
    /// All of these must hold.
    pub match_expressions: Vec<LabelRequirement>,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRequirement {
    /// The label.
    pub key: String,
    /// The condition.
    pub operator: LabelOperator,
}

/// A condition on a label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    /// It is there with one of these values.
    In(BTreeSet<String>),
    /// It is not there with one of these values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// A policy, with its text for the wire.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) policy: Arc<AuthorizationPolicy>,
    /// Written when it is first asked for: tools never do.
    json: OnceLock<Arc<[u8]>>,
    pub(crate) rejection: Option<Arc<str>>,
}

/// Everything that the mesh is derived from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// What holds for the whole mesh.
    pub settings: Settings,
    /// Namespaces that are declared.
    pub namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Service accounts that are declared.
    pub service_accounts: BTreeSet<NamespacedName>,
    /// Services.
    pub services: BTreeMap<NamespacedName, Service>,
    /// Pods.
    pub pods: BTreeMap<NamespacedName, Pod>,
    /// Gateways.
    pub gateways: BTreeMap<NamespacedName, Gateway>,
    /// PeerAuthentications.
    pub peer_authentications: BTreeMap<NamespacedName, PeerAuthentication>,
    /// RequestAuthentications.
    pub request_authentications: BTreeMap<NamespacedName, TokenRules>,
    /// Keys that were fetched for them.
    pub key_sets: BTreeMap<KeySource, Fetched>,
    /// HTTPRoutes, GRPCRoutes, TLSRoutes and TCPRoutes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// DestinationRules.
    pub destination_rules: BTreeMap<NamespacedName, destinations::Rule>,
    /// TrafficPolicies.
    pub traffic_policies: BTreeMap<NamespacedName, TrafficRules>,
    /// XBackendTrafficPolicies.
    pub retry_policies: BTreeMap<NamespacedName, RetryPolicy>,
    pub(crate) policies: crate::attachment::Policies,
}

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// Suffix of service names.
    pub cluster_domain: String,
    /// Other names of the trust domain.
    pub trust_domain_aliases: Vec<String>,
    /// How paths are read before they are compared; nothing means under every reading.
    pub path_normalization: Option<Normalization>,
    /// The external authorizers that CUSTOM policies may name.
    pub providers: BTreeMap<String, ProviderKind>,
    /// How each of them is asked.
    pub authorizers: BTreeMap<String, ExtensionProvider>,
    /// The provider that waypoints send their spans to; nothing if requests aren't traced.
    pub tracing_provider: Option<String>,
    /// Traces begun at a waypoint that are sampled, of 100,000.
    pub sampled: u32,
    /// CUSTOM policies of one target may name different providers.
    pub several_providers: bool,
    /// Ranges that keys for tokens may be fetched from although they aren't public, as written.
    pub key_ranges: Vec<String>,
    /// What becomes of traffic for a waypoint that can't be had.
    pub missing_waypoint: MissingWaypoint,
    /// Whether what is bound to a waypoint is reachable only through it.
    pub waypoint_guard: WaypointGuard,
}

/// A change to [`Inputs`].
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A Namespace is there (with labels) or gone.
    Namespace(Arc<str>, Option<Namespace>),
    /// A ServiceAccount is there or gone.
    ServiceAccount(NamespacedName, bool),
    /// A Service is there or gone.
    Service(NamespacedName, Option<Service>),
    /// A pod is there or gone.
    Pod(NamespacedName, Option<Pod>),
    /// A Gateway is there or gone.
    Gateway(NamespacedName, Option<Gateway>),
    /// A policy is there or gone.
    Policy(NamespacedName, Option<Policy>),
    /// A PeerAuthentication is there or gone.
    PeerAuthentication(NamespacedName, Option<PeerAuthentication>),
    /// A RequestAuthentication is there or gone.
    RequestAuthentication(NamespacedName, Option<TokenRules>),
    /// Keys were fetched, or couldn't be; or nobody wants them any more.
    KeySet(KeySource, Option<Fetched>),
    /// A route is there or gone.
    Route(RouteKey, Option<Route>),
    /// A TrafficPolicy is there or gone.
    TrafficPolicy(NamespacedName, Option<TrafficRules>),
    /// An XBackendTrafficPolicy is there or gone.
    RetryPolicy(NamespacedName, Option<RetryPolicy>),
    /// A DestinationRule is there or gone.
    DestinationRule(NamespacedName, Option<destinations::Rule>),
    /// What holds for the whole mesh is now this.
    Settings(Settings),
}

// === impl NamespacedName ===

impl NamespacedName {
    /// Of this namespace and name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Service ===

impl Service {
    /// True if it selects a pod of its namespace with these labels.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty() && contains(labels, &self.selector)
    }
}

// === impl Gateway ===

impl Gateway {
    /// True if it is a waypoint.
    #[must_use]
    pub fn is_waypoint(&self) -> bool {
        self.class == WAYPOINT_CLASS
    }

    /// Namespaces that may bind, by its HBONE listener (`spec/control-plane.md` 1.3).
    #[must_use]
    pub fn allowed(&self) -> &AllowedNamespaces {
        let listener = self.listeners.iter().find(|l| l.port == HBONE_PORT && l.protocol == HBONE_PROTOCOL);
        listener.map_or(&AllowedNamespaces::Same, |listener| &listener.allowed)
    }
}

// === impl LabelSelector ===

impl LabelSelector {
    /// True if the labels fulfil all of it; an empty selector selects everything.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        contains(labels, &self.match_labels)
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

// === impl LabelRequirement ===

impl LabelRequirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            LabelOperator::In(values) => value.is_some_and(|value| values.contains(value)),
            LabelOperator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

// === impl Policy ===

/// Whether the text has been written yet is no difference.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.policy == other.policy && self.rejection == other.rejection
    }
}

impl Eq for Policy {}

impl Policy {
    /// Takes a policy in.
    #[must_use]
    pub fn new(policy: AuthorizationPolicy) -> Self {
        Self { policy: Arc::new(policy), json: OnceLock::new(), rejection: None }
    }

    /// It as JSON.
    pub(crate) fn json(&self) -> &[u8] {
        // Writing a struct of strings as JSON into memory can't fail; were it to, the empty text is refused by every
        // reader, and the policy's targets denied.
        self.json.get_or_init(|| serde_json::to_vec(&*self.policy).unwrap_or_default().into())
    }

    /// Takes in a policy that can't be enforced: what it targets is denied with this reason.
    #[must_use]
    pub fn rejected(policy: AuthorizationPolicy, reason: &str) -> Self {
        Self { rejection: Some(reason.into()), ..Self::new(policy) }
    }

    /// Why it can't be enforced, if it can't.
    #[must_use]
    pub fn rejection(&self) -> Option<&str> {
        self.rejection.as_deref()
    }

    /// What [`crate::enforcement::enforce`] takes.
    ///
    /// # Errors
    /// The policy is rejected.
    pub fn enforceable(&self) -> Result<&AuthorizationPolicy, Refusal> {
        let Some(reason) = &self.rejection else { return Ok(&self.policy) };
        let (namespace, name) = (self.policy.namespace.as_str(), self.policy.name.as_str());
        let reason = format!("policy `{namespace}/{name}` was rejected: {reason}");
        Err(Refusal { policy: PolicyName { namespace: namespace.into(), name: name.into() }, reason })
    }

    /// The policy.
    #[must_use]
    pub fn get(&self) -> &AuthorizationPolicy {
        &self.policy
    }
}

// === impl Settings ===

impl Settings {
    /// The same under this configuration; without one, everything that it could say has its default.
    #[must_use]
    pub fn with_config(self, config: Option<&MeshConfig>) -> Self {
        let spec = config.map(|config| config.spec.clone()).unwrap_or_default();
        let kind = |grpc: bool| if grpc { ProviderKind::Grpc } else { ProviderKind::Http };
        let providers = spec.extension_providers.iter().filter(|provider| provider.opentelemetry.is_none());
        let tracing_provider = spec.default_providers.as_ref().and_then(|providers| providers.tracing.first());
        let tracing = spec.default_config.and_then(|config| config.tracing).and_then(|tracing| tracing.sampling);
        Self {
            trust_domain_aliases: spec.trust_domain_aliases,
            path_normalization: spec.path_normalization.and_then(|paths| paths.normalization),
            several_providers: spec.multiple_custom_providers,
            key_ranges: spec.jwks_allowed_ranges,
            missing_waypoint: spec.missing_waypoint,
            waypoint_guard: spec.waypoint_guard,
            tracing_provider: tracing_provider.cloned(),
            sampled: tracing.unwrap_or_default().of_100_000(),
            providers: providers.map(|p| (p.name.clone(), kind(p.envoy_ext_authz_grpc.is_some()))).collect(),
            authorizers: spec.extension_providers.into_iter().map(|p| (p.name.clone(), p)).collect(),
            ..self
        }
    }

    /// What the engine needs of it.
    #[must_use]
    pub fn options(&self) -> Options {
        let trust_domains = std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases).cloned();
        Options {
            trust_domains: trust_domains.collect(),
            root_namespace: self.root_namespace.clone(),
            providers: self.providers.clone(),
            several_providers: self.several_providers,
        }
    }

    /// How the engine is to read paths.
    #[must_use]
    pub fn paths(&self) -> PathNormalization {
        match self.path_normalization {
            None => PathNormalization::AllReadings,
            Some(Normalization::None) => PathNormalization::None,
            Some(Normalization::Base) => PathNormalization::Base,
            Some(Normalization::MergeSlashes) => PathNormalization::MergeSlashes,
            Some(Normalization::DecodeAndMergeSlashes) => PathNormalization::DecodeAndMergeSlashes,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            path_normalization: None,
            providers: BTreeMap::new(),
            authorizers: BTreeMap::new(),
            tracing_provider: None,
            sampled: Percentage::default().of_100_000(),
            several_providers: false,
            key_ranges: Vec::new(),
            missing_waypoint: MissingWaypoint::Deny,
            waypoint_guard: WaypointGuard::Enforce,
        }
    }
}

// === impl Inputs ===

impl Inputs {
    /// Nothing but settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Labels of a namespace; none if it isn't declared.
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace).map(|namespace| &namespace.labels)
    }

    /// The objects of one namespace in a map by namespace and name.
    pub fn in_namespace<'a, T>(
        map: &'a BTreeMap<NamespacedName, T>,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a T)> {
        map.range(NamespacedName::new(namespace, "")..).take_while(move |(key, _)| &*key.namespace == namespace)
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = (&NamespacedName, &Policy)> {
        self.policies.iter()
    }

    /// The policies that are enforced at a point, with how they come to be, in order of namespace and name.
    #[must_use]
    pub fn enforced_at(&self, point: &EnforcementPoint<'_>) -> Vec<(&Policy, Via)> {
        self.policies.enforced_at(point, &self.settings.root_namespace)
    }

    /// Fully qualified name of a service.
    #[must_use]
    pub fn hostname(&self, service: &NamespacedName) -> String {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.settings.cluster_domain)
    }

    /// Makes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Namespace(name, value) => put(&mut self.namespaces, name, value),
            Change::ServiceAccount(name, true) => drop(self.service_accounts.insert(name)),
            Change::ServiceAccount(name, false) => drop(self.service_accounts.remove(&name)),
            Change::Service(name, value) => put(&mut self.services, name, value),
            Change::Pod(name, value) => put(&mut self.pods, name, value),
            Change::Gateway(name, value) => put(&mut self.gateways, name, value),
            Change::Policy(name, value) => self.policies.put(name, value),
            Change::PeerAuthentication(name, value) => put(&mut self.peer_authentications, name, value),
            Change::RequestAuthentication(name, value) => put(&mut self.request_authentications, name, value),
            Change::KeySet(source, value) => put(&mut self.key_sets, source, value),
            Change::Route(name, value) => put(&mut self.routes, name, value),
            Change::TrafficPolicy(name, value) => put(&mut self.traffic_policies, name, value),
            Change::RetryPolicy(name, value) => put(&mut self.retry_policies, name, value),
            Change::DestinationRule(name, value) => put(&mut self.destination_rules, name, value),
            Change::Settings(settings) => self.settings = settings,
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// True if all of `wanted` is in `labels`.
pub(crate) fn contains(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
