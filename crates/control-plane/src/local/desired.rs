//! From loaded objects to what must be there: the mesh's inputs and the declared pods.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use ambit_api::{AuthorizationPolicy, Diagnostic, Object, ObjectRef, Origin, Resource, Severity};
use ambit_mesh::{
    Finding,
    inputs::{Inputs, Labels, Namespace, NamespacedName, Service, Settings},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod as KubePod, Service as KubeService},
};

use super::{
    addresses::{ServiceAddresses, stable_hash},
    codes,
    pod_spec::{Declared, Notes, declare},
};
use crate::{
    limits::{MAX_PODS, MAX_REPLICAS, MAX_SERVICES},
    objects::{authorization, gateway_of, labels, rules, service_port},
};

/// Letters of generated name endings, as Kubernetes chooses them (no vowels, no look-alikes).
const NAME_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest part of an owner's name in a pod's: with hash and ending the name stays a host name.
const MAX_OWNER_NAME_BYTES: usize = 46;

/// What must be there.
#[derive(Debug)]
pub(super) struct Desired {
    /// All but the pods.
    pub(super) inputs: Inputs,
    /// Pods, waypoints included.
    pub(super) pods: BTreeMap<NamespacedName, Declared>,
    origins: HashMap<ObjectRef, Arc<Origin>>,
    /// What can't be had, or only partly.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// What a Service says about its address.
enum Address {
    None,
    Any,
    This(Ipv4Addr),
}

/// Reads the objects. Addresses change only if no diagnostic is an error.
pub(super) fn desired(settings: Settings, objects: &[Object], addresses: &mut ServiceAddresses) -> Desired {
    let config = objects.iter().find_map(|object| match &object.resource {
        Resource::MeshConfig(config) => Some(&**config),
        _ => None,
    });
    let mut desired = Desired {
        inputs: Inputs::new(settings.with_config(config)),
        pods: BTreeMap::new(),
        origins: HashMap::new(),
        diagnostics: Vec::new(),
    };
    let mut wanted = BTreeMap::new();
    for object in objects {
        desired.origins.insert(object.reference(), Arc::clone(&object.origin));
        desired.object(object, addresses, &mut wanted);
    }
    desired.limits();
    if !desired.has_errors() {
        desired.assign(&wanted, addresses);
    }
    desired
}

// === impl Desired ===

impl Desired {
    pub(super) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// A finding as a diagnostic that points into the user's file.
    pub(super) fn diagnostic(&self, finding: Finding) -> Diagnostic {
        let unwritten = Origin::unwritten(finding.object.clone());
        let origin = self.origins.get(&finding.object).map_or(&unwritten, |origin| &**origin);
        origin.diagnostic(finding.severity, finding.code, &finding.field, finding.message, finding.help)
    }

    fn object(
        &mut self,
        object: &Object,
        addresses: &ServiceAddresses,
        wanted: &mut BTreeMap<NamespacedName, Option<Ipv4Addr>>,
    ) {
        let resource = &object.resource;
        let name = NamespacedName::new(resource.namespace().unwrap_or_default(), resource.name());
        let labels = labels(resource.metadata());
        match resource {
            Resource::Namespace(_) => drop(self.inputs.namespaces.insert(name.name, Namespace { labels })),
            Resource::ServiceAccount(_) => drop(self.inputs.service_accounts.insert(name)),
            Resource::Pod(pod) => self.pod(name, labels, pod, &object.origin),
            Resource::Deployment(deployment) => self.deployment(&name, deployment, &object.origin),
            Resource::Service(service) => {
                let Some(read) = self.service(&name, labels, service, &object.origin) else { return };
                match self.cluster_ip(service, &object.origin, addresses, wanted) {
                    Address::None => {}
                    Address::Any => drop(wanted.insert(name.clone(), None)),
                    Address::This(ip) => drop(wanted.insert(name.clone(), Some(ip))),
                }
                self.inputs.services.insert(name, read);
            }
            Resource::Gateway(gateway) => {
                let read = gateway_of(labels, gateway);
                if read.is_waypoint() {
                    let pod = NamespacedName::new(&name.namespace, &pod_name(&name.name, "waypoint", 0));
                    self.pods.insert(pod, Declared::waypoint(&name.name));
                    wanted.entry(name.clone()).or_insert(None);
                }
                self.inputs.gateways.insert(name, read);
            }
            Resource::AuthorizationPolicy(policy) => {
                self.policy((**policy).clone(), object.rejection.as_deref());
            }
            Resource::PeerAuthentication(_)
            | Resource::Route(_)
            | Resource::RequestAuthentication(_)
            | Resource::TrafficPolicy(_)
            | Resource::BackendTrafficPolicy(_)
            | Resource::DestinationRule(_) => {
                let change = rules(resource, object.rejection.as_deref());
                change.into_iter().for_each(|change| self.inputs.apply(change));
            }
            // Read before everything else.
            Resource::MeshConfig(_) => {}
        }
    }

    /// Takes in a policy; with a rejection as one that can't be enforced.
    pub(super) fn policy(&mut self, policy: AuthorizationPolicy, rejection: Option<&Diagnostic>) {
        self.inputs.apply(authorization(policy, rejection));
    }

    fn pod(&mut self, name: NamespacedName, labels: Labels, pod: &KubePod, origin: &Origin) {
        let Some(spec) = &pod.spec else { return };
        let mut notes = Notes { origin, path: "spec", diagnostics: &mut self.diagnostics };
        let declared = declare(labels, None, spec, &mut notes);
        self.pods.insert(name, declared);
    }

    fn deployment(&mut self, name: &NamespacedName, deployment: &Deployment, origin: &Origin) {
        let Some((spec, template)) = deployment.spec.as_ref().and_then(|s| Some((s, s.template.spec.as_ref()?))) else {
            return;
        };
        let replicas = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if replicas > MAX_REPLICAS {
            let message = format!("{replicas} replicas, at most {MAX_REPLICAS} are run on one machine");
            let help = "lower the number";
            let diagnostic = origin.diagnostic(Severity::Error, codes::TOO_MANY, "spec.replicas", message, help);
            self.diagnostics.push(diagnostic);
        }
        let mut notes = Notes { origin, path: "spec.template.spec", diagnostics: &mut self.diagnostics };
        let labels = labels(spec.template.metadata.as_ref());
        let declared = declare(labels, Some(name.name.to_string()), template, &mut notes);
        // A template is plain data, so it can always be written; were it not, all templates would look alike.
        let template = serde_json::to_string(&spec.template).unwrap_or_default();
        for replica in 0..replicas.min(MAX_REPLICAS) {
            let pod = NamespacedName::new(&name.namespace, &pod_name(&name.name, &template, replica));
            self.pods.insert(pod, declared.clone());
        }
    }

    fn service(
        &mut self,
        name: &NamespacedName,
        labels: Labels,
        service: &KubeService,
        origin: &Origin,
    ) -> Option<Service> {
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let message = format!("service `{name}` is an ExternalName, which isn't served");
            let code = codes::UNSUPPORTED_SERVICE;
            let help = "use the external name itself";
            self.diagnostics.push(origin.diagnostic(Severity::Warning, code, "spec.type", message, help));
            return None;
        }
        let mut ports = Vec::new();
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
                let field = format!("spec.ports[{i}].protocol");
                let message = "only TCP ports are served".to_owned();
                let code = codes::UNSUPPORTED_SERVICE;
                // Whoever asks for a waypoint expects every port behind it, and nobody could stand guard at this one.
                let wants_waypoint = labels
                    .get(ambit_mesh::binding::USE_WAYPOINT)
                    .is_some_and(|waypoint| waypoint != ambit_mesh::binding::NO_WAYPOINT);
                let severity = if wants_waypoint { Severity::Error } else { Severity::Warning };
                let help =
                    if wants_waypoint { "make it TCP, or take the port to a Service without a waypoint" } else { "" };
                self.diagnostics.push(origin.diagnostic(severity, code, &field, message, help));
            } else {
                ports.extend(service_port(port));
            }
        }
        Some(Service { labels, selector: spec.selector.unwrap_or_default(), ports, vips: Vec::new() })
    }

    fn cluster_ip(
        &mut self,
        service: &KubeService,
        origin: &Origin,
        addresses: &ServiceAddresses,
        wanted: &BTreeMap<NamespacedName, Option<Ipv4Addr>>,
    ) -> Address {
        let asked = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        let mut refuse = |message: String| {
            let help = format!("leave the field out, or name a free address of {}", addresses.range());
            let code = codes::BAD_CLUSTER_IP;
            self.diagnostics.push(origin.diagnostic(Severity::Error, code, "spec.clusterIP", message, help));
            Address::None
        };
        match (asked, asked.parse::<Ipv4Addr>()) {
            ("", _) => Address::Any,
            ("None", _) => Address::None,
            (_, Ok(ip)) if !addresses.admits(ip) => refuse(format!("{ip} isn't an address of {}", addresses.range())),
            (_, Ok(ip)) => match wanted.iter().find(|(_, other)| **other == Some(ip)) {
                Some((other, _)) => refuse(format!("{ip} is already that of service `{other}`")),
                None => Address::This(ip),
            },
            (_, Err(_)) => refuse(format!("`{asked}` isn't an IPv4 address")),
        }
    }

    fn limits(&mut self) {
        let counts = [
            ("pods", self.pods.len(), MAX_PODS),
            ("services", self.inputs.services.len() + self.inputs.gateways.len(), MAX_SERVICES),
        ];
        for (what, count, most) in counts {
            if count > most {
                let message = format!("{count} {what}, at most {most} fit on one machine");
                self.diagnostics.push(Diagnostic::new(Severity::Error, codes::TOO_MANY, message, "load fewer files"));
            }
        }
    }

    fn assign(&mut self, wanted: &BTreeMap<NamespacedName, Option<Ipv4Addr>>, addresses: &mut ServiceAddresses) {
        match addresses.assign(wanted) {
            Err(error) => {
                let help = "remove Services";
                self.diagnostics.push(Diagnostic::new(Severity::Error, codes::TOO_MANY, error.to_string(), help));
            }
            Ok(given) => {
                for (name, ip) in given {
                    if let Some(gateway) = self.inputs.gateways.get_mut(name).filter(|gateway| gateway.is_waypoint()) {
                        gateway.vip = Some((*ip).into());
                    } else if let Some(service) = self.inputs.services.get_mut(name) {
                        service.vips = vec![(*ip).into()];
                    }
                }
            }
        }
    }
}

/// `<owner>-<10 hex digits of the template>-<5 letters of the replica>`, the same on every start.
pub(super) fn pod_name(owner: &str, template: &str, replica: usize) -> String {
    let short = &owner[..owner.floor_char_boundary(MAX_OWNER_NAME_BYTES)];
    let hash = stable_hash(format!("{owner}\0{template}").as_bytes());
    format!("{short}-{:010x}-{}", hash & 0xff_ffff_ffff, letters(&format!("{owner}\0{hash}\0{replica}")))
}

/// Five letters that a text hashes to.
pub(super) fn letters(text: &str) -> String {
    let mut hash = stable_hash(text.as_bytes());
    // The low bits of this hash are the weak ones.
    hash ^= hash >> 32;
    let mut ending = String::with_capacity(5);
    for _ in 0..5 {
        let index = usize::try_from(hash % 27).unwrap_or(0);
        ending.push(char::from(NAME_LETTERS[index]));
        hash /= 27;
    }
    ending
}
