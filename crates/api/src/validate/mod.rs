//! What is wrong with an object by itself, and two objects of one name. What depends on other objects (a target or a
//! waypoint that doesn't exist) is for `ambit-mesh`, which reports it through [`Origin::diagnostic`].

mod gateway;
mod names;
mod policy;
mod workloads;

use std::collections::HashMap;

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
        let mut check = Check { origin: &object.origin, found: &mut found };
        names::check(&mut check, &object.resource);
        match &object.resource {
            Resource::Namespace(_) | Resource::ServiceAccount(_) => {}
            Resource::Pod(pod) => workloads::check_pod(&mut check, pod),
            Resource::Deployment(deployment) => workloads::check_deployment(&mut check, deployment),
            Resource::Service(service) => workloads::check_service(&mut check, service),
            Resource::Gateway(gateway) => gateway::check(&mut check, gateway),
            Resource::AuthorizationPolicy(policy) => policy::check(&mut check, policy),
        }
    }
    find_duplicates(objects, &mut found);
    found.into_list()
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

/// One object under validation.
struct Check<'a> {
    origin: &'a Origin,
    found: &'a mut Findings,
}

impl Check<'_> {
    fn error(&mut self, code: Code, field: &str, message: impl Into<String>, help: impl Into<String>) {
        self.report(Severity::Error, code, field, message, help);
    }

    fn warning(&mut self, code: Code, field: &str, message: impl Into<String>, help: impl Into<String>) {
        self.report(Severity::Warning, code, field, message, help);
    }

    fn report(
        &mut self,
        severity: Severity,
        code: Code,
        field: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        if self.found.wants(severity) {
            self.found.push(self.origin.diagnostic(severity, code, field, message, help));
        }
    }
}
