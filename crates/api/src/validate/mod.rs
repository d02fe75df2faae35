//! What is wrong with an object by itself, and two objects of one name. What depends on other objects (a target or a
//! waypoint that doesn't exist) is for `ambit-mesh`, which reports it through [`Origin::diagnostic`].

mod backend_traffic_policy;
mod destination_rule;
mod gateway;
mod mesh_config;
mod names;
mod peer_authentication;
mod policy;
mod request_authentication;
mod routes;
mod traffic_policy;
mod workloads;

use std::{collections::HashMap, fmt::Display};

use crate::{
    Diagnostic, Object, ObjectRef, Origin, Resource, Severity,
    codes::{self, Code},
    diagnostic::Findings,
};

/// What Kubernetes, Istio's own validation (`spec/authorization.md` 2.11) or sense would refuse in each object by
/// itself, and two objects of one kind, namespace and name.
#[must_use]
pub fn validate(objects: &[Object]) -> Vec<Diagnostic> {
    let mut found = Findings::default();
    for object in objects {
        // Whoever made the objects keeps what they are rejected for.
        let _rejection = check_one(object, &mut found);
    }
    check_together(objects, &mut found);
    found.into_list()
}

/// Checks each object by itself. Those that can't be enforced as they are written get their rejection.
pub(crate) fn check_each_and_mark(objects: &mut [Object]) -> Vec<Diagnostic> {
    let mut found = Findings::default();
    for object in objects {
        if let Some(rejection) = check_one(object, &mut found) {
            object.rejection.get_or_insert(rejection);
        }
    }
    found.into_list()
}

/// Checks what no object shows by itself.
pub(crate) fn check_together(objects: &[Object], found: &mut Findings) {
    find_duplicates(objects, found);
    find_second_mesh_config(objects, found);
}

/// The first error that leaves open what the object means, if there is one.
fn check_one(object: &Object, found: &mut Findings) -> Option<Box<Diagnostic>> {
    let mut check = Check { origin: &object.origin, found, rejection: None };
    names::check(&mut check, &object.resource);
    match &object.resource {
        Resource::Namespace(_) | Resource::ServiceAccount(_) => {}
        Resource::Pod(pod) => workloads::check_pod(&mut check, pod),
        Resource::Deployment(deployment) => workloads::check_deployment(&mut check, deployment),
        Resource::Service(service) => workloads::check_service(&mut check, service),
        Resource::Gateway(gateway) => gateway::check(&mut check, gateway),
        Resource::AuthorizationPolicy(policy) => policy::check(&mut check, policy),
        Resource::PeerAuthentication(policy) => peer_authentication::check(&mut check, policy),
        Resource::Route(route) => routes::check(&mut check, route),
        Resource::RequestAuthentication(object) => request_authentication::check(&mut check, object),
        Resource::TrafficPolicy(object) => traffic_policy::check(&mut check, object),
        Resource::BackendTrafficPolicy(object) => backend_traffic_policy::check(&mut check, object),
        Resource::DestinationRule(rule) => destination_rule::check(&mut check, rule),
        Resource::MeshConfig(config) => mesh_config::check(&mut check, config),
    }
    check.rejection
}

fn find_duplicates(objects: &[Object], found: &mut Findings) {
    let mut first: HashMap<&ObjectRef, &Origin> = HashMap::new();
    for object in objects {
        let origin = &object.origin;
        let Some(earlier) = first.get(origin.object()) else {
            first.insert(origin.object(), origin);
            continue;
        };
        let elsewhere = earlier.position().unwrap_or_else(|| "elsewhere".to_owned());
        found.push(origin.diagnostic(
            Severity::Error,
            codes::DUPLICATE_OBJECT,
            "metadata.name",
            format!("a second {} with this name; the first is at {elsewhere}", origin.object().kind),
            "remove or rename one of the two",
        ));
    }
}

fn find_second_mesh_config(objects: &[Object], found: &mut Findings) {
    let mut configs = objects.iter().filter(|object| matches!(object.resource, Resource::MeshConfig(_)));
    let Some(first) = configs.next() else { return };
    for object in configs.filter(|object| object.origin.object() != first.origin.object()) {
        let message = format!("a second MeshConfig; the mesh already has `{}`", first.resource.name());
        found.push(object.origin.diagnostic(
            Severity::Error,
            codes::SECOND_MESH_CONFIG,
            "metadata.name",
            message,
            "put everything into one",
        ));
    }
}

/// One object under validation.
struct Check<'a> {
    origin: &'a Origin,
    found: &'a mut Findings,
    /// The first error that leaves open what the object means.
    rejection: Option<Box<Diagnostic>>,
}

impl Check<'_> {
    fn error(
        &mut self,
        code: Code,
        field: &(impl Display + ?Sized),
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report(Severity::Error, code, field, message, help);
    }

    fn warning(
        &mut self,
        code: Code,
        field: &(impl Display + ?Sized),
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report(Severity::Warning, code, field, message, help);
    }

    fn report(
        &mut self,
        severity: Severity,
        code: Code,
        field: &(impl Display + ?Sized),
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let rejects = severity == Severity::Error && self.rejection.is_none() && !codes::is_lint(code);
        if rejects || self.found.wants(severity) {
            let diagnostic = self.origin.diagnostic(severity, code, &field.to_string(), message, help);
            if rejects {
                self.rejection = Some(Box::new(diagnostic.clone()));
            }
            self.found.push(diagnostic);
        }
    }
}
