//! A document to an object: which kind it is, its type, its metadata.

mod written;

use std::sync::Arc;

use gateway_api::gateways::Gateway;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod, Service, ServiceAccount},
};

use self::written::{
    BackendTrafficObject, DestinationObject, MeshObject, Named, PeerObject, PolicyObject, TokenObject, TrafficObject,
    attached_only, attached_route, named_host, route,
};
use crate::{
    Diagnostic, MeshConfig, Object, ObjectRef, Origin, Resource, Severity, Source, backend_traffic_policy,
    codes::{self, Code},
    destination_rule,
    diagnostic::Findings,
    limits::MAX_OBJECTS_PER_FILE,
    routes::{self, GrpcRouteSpec, HttpRouteSpec, RouteSpec, TcpRouteSpec, TlsRouteSpec},
    text::{nearest, quoted},
    traffic_policy,
    yaml::{self, Node, Typed, Unknown, Value},
};

/// Namespace of an object that names none, as in Kubernetes.
const DEFAULT_NAMESPACE: &str = "default";

/// Most known fields listed in a help text.
const MAX_LISTED_FIELDS: usize = 16;

/// One file being read.
pub(crate) struct Reading<'a> {
    source: &'a Arc<Source>,
    objects: &'a mut Vec<Object>,
    malformed: &'a mut Vec<Object>,
    found: &'a mut Findings,
    read: usize,
}

// === impl Reading ===

impl<'a> Reading<'a> {
    pub(crate) fn new(
        source: &'a Arc<Source>,
        objects: &'a mut Vec<Object>,
        malformed: &'a mut Vec<Object>,
        found: &'a mut Findings,
    ) -> Self {
        Self { source, objects, malformed, found, read: 0 }
    }

    /// Objects met so far, also those that can't be read.
    pub(crate) fn met(&self) -> usize {
        self.read
    }

    /// Reads one document: an object, a `List` of them, or nothing.
    pub(crate) fn document(&mut self, root: Node) {
        if root.value == Value::Null {
            return;
        }
        if root.text("kind") != Some("List") || root.text("apiVersion") != Some("v1") {
            return self.object(root);
        }
        let Some(items) = root.into_value("items") else { return };
        match items.value {
            Value::Sequence(items) => items.into_iter().for_each(|item| self.item(item)),
            Value::Null => {}
            _ => {
                let message = "`items` is not a list";
                self.found.push(*misshapen(self.source, &items, "", message, "start each item with `- `"));
            }
        }
    }

    fn item(&mut self, item: Node) {
        if item.text("kind") == Some("List") {
            let message = "a `List` inside a `List`";
            self.found.push(*misshapen(self.source, &item, "kind", message, "put its items into the outer one"));
        } else {
            self.object(item);
        }
    }

    fn object(&mut self, root: Node) {
        self.read += 1;
        if self.read > MAX_OBJECTS_PER_FILE {
            if self.read == MAX_OBJECTS_PER_FILE + 1 {
                let message = format!("more than {MAX_OBJECTS_PER_FILE} objects in one file");
                self.found.push(*about(self.source, &root, codes::TOO_LARGE, "", message, "split the file".to_owned()));
            }
            return;
        }
        if let Err(diagnostic) = self.known_object(root) {
            self.found.push(*diagnostic);
        }
    }

    fn known_object(&mut self, root: Node) -> Result<(), Box<Diagnostic>> {
        let Known { read, namespaced } = identify(self.source, &root)?;
        let name = object_name(self.source, &root)?;
        let namespace = namespaced.then(|| written_namespace(&root).unwrap_or(DEFAULT_NAMESPACE).to_owned());
        let kind = root.text("kind").unwrap_or_default().to_owned();
        let origin = Arc::new(Origin::written(ObjectRef { kind, namespace, name }, Arc::clone(self.source), root));
        let mut faults = Faults { found: self.found, first_error: None };
        match read(&origin, &mut faults) {
            Some(resource) => {
                let rejection = faults.first_error;
                self.objects.push(Object { resource, origin, rejection });
            }
            None if ROUTE_KINDS.contains(&kind_of(&origin)) => {
                let resource = Resource::Route(Box::new(attached_route(&origin)));
                let rejection = faults.first_error;
                self.malformed.push(Object { resource, origin, rejection });
            }
            None if kind_of(&origin) == DESTINATION_KIND => {
                if let Some(rule) = named_host(&origin) {
                    let resource = Resource::DestinationRule(Box::new(rule));
                    let rejection = faults.first_error;
                    self.malformed.push(Object { resource, origin, rejection });
                }
            }
            None if kind_of(&origin) == POLICY_KIND => {
                let resource = Resource::AuthorizationPolicy(Box::new(attached_only(&origin)));
                let rejection = faults.first_error;
                self.malformed.push(Object { resource, origin, rejection });
            }
            None => {}
        }
        Ok(())
    }
}

/// What is wrong with one object's form.
struct Faults<'a> {
    found: &'a mut Findings,
    first_error: Option<Box<Diagnostic>>,
}

/// Gives an object its type; what is wrong with it goes to the faults.
type Read = fn(&Origin, &mut Faults<'_>) -> Option<Resource>;

/// How to read one kind.
struct Known {
    read: Read,
    namespaced: bool,
}

/// Kind, group, versions (the first is the one to write), how to read it, and whether it lives in a namespace.
type Row = (&'static str, &'static str, &'static [&'static str], Read);

const KINDS: &[Row] = &[
    ("Namespace", "", &["v1"], |o, d| typed::<Namespace>(o, d).map(|r| Resource::Namespace(Box::new(r)))),
    ("ServiceAccount", "", &["v1"], |o, d| {
        typed::<ServiceAccount>(o, d).map(|r| Resource::ServiceAccount(Box::new(r)))
    }),
    ("Pod", "", &["v1"], |o, d| typed::<Pod>(o, d).map(|r| Resource::Pod(Box::new(r)))),
    ("Deployment", "apps", &["v1"], |o, d| typed::<Deployment>(o, d).map(|r| Resource::Deployment(Box::new(r)))),
    ("Service", "", &["v1"], |o, d| typed::<Service>(o, d).map(|r| Resource::Service(Box::new(r)))),
    ("Gateway", "gateway.networking.k8s.io", &["v1", "v1beta1"], |o, d| {
        typed::<Gateway>(o, d).map(|r| Resource::Gateway(Box::new(r)))
    }),
    (POLICY_KIND, "security.istio.io", &["v1", "v1beta1"], |o, d| {
        typed::<PolicyObject>(o, d).map(|r| Resource::AuthorizationPolicy(Box::new(r.into_policy(o.object()))))
    }),
    ("PeerAuthentication", "security.istio.io", &["v1", "v1beta1"], |o, d| {
        typed::<PeerObject>(o, d).map(|r| Resource::PeerAuthentication(Box::new(r.into_policy(o.object()))))
    }),
    ("HTTPRoute", routes::GROUP, &["v1", "v1beta1"], |o, d| route::<HttpRouteSpec>(o, d, RouteSpec::Http)),
    ("GRPCRoute", routes::GROUP, &["v1", "v1alpha2"], |o, d| route::<GrpcRouteSpec>(o, d, RouteSpec::Grpc)),
    ("TLSRoute", routes::GROUP, &["v1", "v1alpha3", "v1alpha2"], |o, d| route::<TlsRouteSpec>(o, d, RouteSpec::Tls)),
    ("TCPRoute", routes::GROUP, &["v1alpha2", "v1"], |o, d| route::<TcpRouteSpec>(o, d, RouteSpec::Tcp)),
    ("RequestAuthentication", "security.istio.io", &["v1", "v1beta1"], |o, d| {
        typed::<TokenObject>(o, d).map(|r| Resource::RequestAuthentication(Box::new(r.into_object(o.object()))))
    }),
    ("TrafficPolicy", traffic_policy::GROUP, &["v1"], |o, d| {
        typed::<TrafficObject>(o, d).map(|r| Resource::TrafficPolicy(Box::new(r.into_object(o.object()))))
    }),
    ("XBackendTrafficPolicy", backend_traffic_policy::GROUP, &["v1alpha1"], |o, d| {
        typed::<BackendTrafficObject>(o, d).map(|r| Resource::BackendTrafficPolicy(Box::new(r.into_object(o.object()))))
    }),
    (DESTINATION_KIND, destination_rule::GROUP, &["v1", "v1beta1", "v1alpha3"], |o, d| {
        typed::<DestinationObject>(o, d).map(|r| Resource::DestinationRule(Box::new(r.into_rule(o.object()))))
    }),
    (MESH_CONFIG_KIND, "ambit.dev", &["v1alpha1"], |o, d| {
        typed::<MeshObject>(o, d)
            .map(|r| Resource::MeshConfig(Box::new(MeshConfig { name: o.object().name.clone(), spec: r.spec })))
    }),
];

/// Kind, group and versions of those that an API server doesn't have by itself.
#[cfg(test)]
pub(crate) fn custom_kinds() -> impl Iterator<Item = (&'static str, &'static str, &'static [&'static str])> {
    let built_in = ["", "apps"];
    KINDS
        .iter()
        .filter(move |(_, group, ..)| !built_in.contains(group))
        .map(|(kind, group, versions, _)| (*kind, *group, *versions))
}

const POLICY_KIND: &str = "AuthorizationPolicy";
const DESTINATION_KIND: &str = "DestinationRule";
const MESH_CONFIG_KIND: &str = "MeshConfig";
const ROUTE_KINDS: [&str; 4] = ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"];

fn kind_of(origin: &Origin) -> &str {
    &origin.object().kind
}

fn identify(source: &Arc<Source>, root: &Node) -> Result<Known, Box<Diagnostic>> {
    let help = "every document needs `apiVersion`, `kind` and `metadata.name`; documents are separated by `---`";
    if !matches!(root.value, Value::Mapping(_)) {
        return Err(misshapen(source, root, "", "not a Kubernetes object", help));
    }
    let text = |field: &'static str| match root.get(field).map(|node| &node.value) {
        Some(Value::Text(text)) => Ok(text.as_str()),
        Some(_) => Err(misshapen(source, root, field, format!("`{field}` is not text"), help)),
        None => Err(misshapen(source, root, field, format!("`{field}` is missing"), help)),
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let Some((_, wanted, versions, read)) = KINDS.iter().find(|(known, ..)| *known == kind) else {
        return Err(unknown_kind(source, root, group, kind));
    };
    let full = if wanted.is_empty() { versions[0].to_owned() } else { format!("{wanted}/{}", versions[0]) };
    if group != *wanted {
        let known_group = group == "extensions" || KINDS.iter().any(|(_, known, ..)| *known == group);
        // A policy of another project may share the kind's name; a slip of the pen must not unmake a policy.
        let misspelled = !group.is_empty() && nearest(group, [*wanted]).is_some();
        if known_group || misspelled {
            let message = format!("`{kind}` is not in the API group of `{}`", quoted(api_version));
            return Err(unsupported_version(source, root, message, &full));
        }
        return Err(ignored(source, root, kind, api_version));
    }
    if !versions.contains(&version) {
        let message = format!("`{kind}` has no version `{}`", quoted(version));
        return Err(unsupported_version(source, root, message, &full));
    }
    Ok(Known { read: *read, namespaced: !["Namespace", MESH_CONFIG_KIND].contains(&kind) })
}

fn unknown_kind(source: &Arc<Source>, root: &Node, group: &str, kind: &str) -> Box<Diagnostic> {
    let api_version = root.text("apiVersion").unwrap_or_default();
    let item = kind.strip_suffix("List").unwrap_or_default();
    if let Some((known, ..)) = KINDS.iter().find(|(known, known_group, ..)| *known == item && *known_group == group) {
        let message = format!("`{known}List` is what a cluster answers, not what one writes");
        return misspelled(source, root, message, "write `apiVersion: v1` and `kind: List`".to_owned());
    }
    let candidates = KINDS.iter().filter(|(_, known_group, ..)| *known_group == group).map(|(known, ..)| *known);
    match nearest(kind, candidates) {
        Some(near) => {
            let message = format!("`{}` has no kind `{}`", quoted(api_version), quoted(kind));
            misspelled(source, root, message, format!("did you mean `{near}`?"))
        }
        None => ignored(source, root, kind, api_version),
    }
}

/// A note, or a warning for Istio's other security kinds: the user counts on what they refuse.
fn ignored(source: &Arc<Source>, root: &Node, kind: &str, api_version: &str) -> Box<Diagnostic> {
    let matters = api_version.starts_with("security.istio.io/");
    let severity = if matters { Severity::Warning } else { Severity::Note };
    let message = format!("`{}` of `{}` is ignored", quoted(kind), quoted(api_version));
    let help = if matters { "what it demands is not enforced here" } else { "" };
    let mut diagnostic = Diagnostic::new(severity, codes::IGNORED_KIND, message, help);
    diagnostic.object = object_name(source, root).ok().map(|name| ObjectRef {
        kind: kind.to_owned(),
        namespace: written_namespace(root).map(str::to_owned),
        name,
    });
    Box::new(diagnostic.at(source.place(root.locate("kind"))))
}

fn misspelled(source: &Arc<Source>, root: &Node, message: String, help: String) -> Box<Diagnostic> {
    about(source, root, codes::MISSPELLED_KIND, "kind", message, help)
}

fn unsupported_version(source: &Arc<Source>, root: &Node, message: String, full: &str) -> Box<Diagnostic> {
    about(source, root, codes::UNSUPPORTED_VERSION, "apiVersion", message, format!("write `apiVersion: {full}`"))
}

fn misshapen(
    source: &Arc<Source>,
    node: &Node,
    field: &str,
    message: impl Into<String>,
    help: &str,
) -> Box<Diagnostic> {
    about(source, node, codes::NOT_AN_OBJECT, field, message.into(), help.to_owned())
}

fn about(source: &Arc<Source>, node: &Node, code: Code, field: &str, message: String, help: String) -> Box<Diagnostic> {
    let mut diagnostic = Diagnostic::new(Severity::Error, code, message, help);
    diagnostic.field = (!field.is_empty()).then(|| field.to_owned());
    Box::new(diagnostic.at(source.place(node.locate(field))))
}

fn object_name(source: &Arc<Source>, root: &Node) -> Result<String, Box<Diagnostic>> {
    let kind = quoted(root.text("kind").unwrap_or("object"));
    match root.find("metadata.name").map(|node| &node.value) {
        Some(Value::Text(name)) if !name.is_empty() => Ok(name.clone()),
        Some(Value::Text(_) | Value::Null) | None => {
            let message = format!("this `{kind}` has no name");
            Err(misshapen(source, root, "metadata.name", message, "add `metadata.name`"))
        }
        Some(_) => {
            let message = format!("the name of this `{kind}` is not text");
            Err(misshapen(source, root, "metadata.name", message, "put quotes around it"))
        }
    }
}

fn written_namespace(root: &Node) -> Option<&str> {
    match &root.find("metadata.namespace")?.value {
        Value::Text(namespace) if !namespace.is_empty() => Some(namespace),
        _ => None,
    }
}

fn typed<T: Named>(origin: &Origin, faults: &mut Faults<'_>) -> Option<T> {
    let Typed { object, unknown } = origin.typed::<T>()?;
    for unknown in &unknown {
        if faults.wants_error() {
            faults.error(unknown_field(origin, unknown));
        }
    }
    match object {
        Ok(mut object) => {
            let metadata = object.metadata_mut();
            metadata.name = Some(origin.object().name.clone());
            metadata.namespace = origin.object().namespace.clone();
            Some(object)
        }
        Err(failure) => {
            let yaml::Failure { field, message, help } = failure;
            faults.error(origin.diagnostic(Severity::Error, codes::WRONG_TYPE, &field, message, help));
            None
        }
    }
}

// === impl Faults ===

impl Faults<'_> {
    fn wants_error(&self) -> bool {
        self.first_error.is_none() || self.found.wants(Severity::Error)
    }

    fn error(&mut self, diagnostic: Diagnostic) {
        if self.first_error.is_none() {
            self.first_error = Some(Box::new(diagnostic.clone()));
        }
        self.found.push(diagnostic);
    }
}

fn unknown_field(origin: &Origin, unknown: &Unknown) -> Diagnostic {
    let (message, help) = unknown_field_text(unknown);
    let diagnostic = origin.diagnostic(Severity::Error, codes::UNKNOWN_FIELD, &unknown.field, message, help);
    match origin.source() {
        Some(source) => diagnostic.at(source.place(unknown.key_span.clone())),
        None => diagnostic,
    }
}

/// What to say of a field that doesn't exist, and what to do about it.
pub(crate) fn unknown_field_text(unknown: &Unknown) -> (String, String) {
    let listed = || unknown.known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let help = match nearest(&unknown.key, unknown.known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if (1..=MAX_LISTED_FIELDS).contains(&unknown.known.len()) => format!("the fields here are {}", listed()),
        None => "remove it, or move it to where it belongs".to_owned(),
    };
    (format!("there is no field `{}` here", quoted(&unknown.key)), help)
}
