//! A rule: what it permits and to whom. Envoy asks for one permission and one principal that match.

use ambit_api::authorization_policy::{Action, Operation, Rule, Source};
use serde_json::{Value, json};

use super::{
    Place, condition,
    field::{Side, Test, any_of},
    value,
};
use crate::CompileError;

/// The rule; nothing if it can never allow, because it needs an HTTP field and there is none.
pub(super) fn render(rule: &Rule, place: &Place<'_>) -> Result<Option<Value>, CompileError> {
    let mut clauses = Clauses { permissions: Vec::new(), principals: Vec::new() };
    let mut shared = Vec::new();
    for (index, condition) in rule.when.iter().flatten().enumerate() {
        shared.extend(condition::tests(condition, &place.at(format_args!(".when[{index}]")))?);
    }
    let sources = entries(rule.from.as_deref(), |from| &from.source);
    for (index, source) in sources.into_iter().enumerate() {
        let tests = match source {
            Some(source) => source_tests(source, &place.at(format_args!(".from[{index}].source")))?,
            None => Vec::new(),
        };
        clauses.principals.push(tests.into_iter().chain(of_side(&shared, Side::Principal)).collect());
    }
    let operations = entries(rule.to.as_deref(), |to| &to.operation);
    for (index, operation) in operations.into_iter().enumerate() {
        let tests = match operation {
            Some(operation) => operation_tests(operation, &place.at(format_args!(".to[{index}].operation")))?,
            None => Vec::new(),
        };
        clauses.permissions.push(tests.into_iter().chain(of_side(&shared, Side::Permission)).collect());
    }
    if !place.is_http() {
        if place.policy.spec.action == Action::Allow && clauses.need_http() {
            return Ok(None);
        }
        clauses.forget_http();
    }
    let permissions: Vec<_> = clauses.permissions.iter().map(|tests| all_of(Side::Permission, tests)).collect();
    let principals: Vec<_> = clauses.principals.iter().map(|tests| all_of(Side::Principal, tests)).collect();
    Ok(Some(json!({"permissions": permissions, "principals": principals})))
}

/// The tests of each entry of `to` and `from`, with those of `when` in every one of them.
struct Clauses {
    permissions: Vec<Vec<Test>>,
    principals: Vec<Vec<Test>>,
}

/// Each entry, or one that asks for nothing.
fn entries<'a, E, T>(written: Option<&'a [E]>, inner: impl Fn(&'a E) -> &'a T) -> Vec<Option<&'a T>> {
    match written {
        None | Some([]) => vec![None],
        Some(entries) => entries.iter().map(|entry| Some(inner(entry))).collect(),
    }
}

fn of_side(tests: &[Test], side: Side) -> Vec<Test> {
    tests.iter().filter(|test| test.side == side).cloned().collect()
}

fn all_of(side: Side, tests: &[Test]) -> Value {
    let mut parts: Vec<_> = tests.iter().map(|test| test.rendered.clone()).collect();
    if parts.is_empty() {
        parts.push(json!({"any": true}));
    }
    side.all(parts)
}

fn source_tests(source: &Source, place: &Place<'_>) -> Result<Vec<Test>, CompileError> {
    let s = source;
    let mut tests = Vec::new();
    macro_rules! field {
        ($yes:literal, $values:expr, $no:literal, $not_values:expr, $render:expr) => {
            tests.extend(any_of(Side::Principal, $values, false, &place.at(concat!(".", $yes)), $render)?);
            tests.extend(any_of(Side::Principal, $not_values, true, &place.at(concat!(".", $no)), $render)?);
        };
    }
    field!("principals", &s.principals, "notPrincipals", &s.not_principals, value::principals);
    field!(
        "requestPrincipals",
        &s.request_principals,
        "notRequestPrincipals",
        &s.not_request_principals,
        value::request_principals
    );
    field!("namespaces", &s.namespaces, "notNamespaces", &s.not_namespaces, value::namespaces);
    field!("serviceAccounts", &s.service_accounts, "notServiceAccounts", &s.not_service_accounts, value::accounts);
    field!("trustDomains", &s.trust_domains, "notTrustDomains", &s.not_trust_domains, value::trust_domains);
    field!("remoteIpBlocks", &s.remote_ip_blocks, "notRemoteIpBlocks", &s.not_remote_ip_blocks, value::remote_ips);
    field!("ipBlocks", &s.ip_blocks, "notIpBlocks", &s.not_ip_blocks, value::source_ips);
    Ok(tests)
}

fn operation_tests(operation: &Operation, place: &Place<'_>) -> Result<Vec<Test>, CompileError> {
    let o = operation;
    let mut tests = Vec::new();
    macro_rules! field {
        ($yes:literal, $values:expr, $no:literal, $not_values:expr, $render:expr) => {
            tests.extend(any_of(Side::Permission, $values, false, &place.at(concat!(".", $yes)), $render)?);
            tests.extend(any_of(Side::Permission, $not_values, true, &place.at(concat!(".", $no)), $render)?);
        };
    }
    field!("hosts", &o.hosts, "notHosts", &o.not_hosts, value::hosts);
    field!("methods", &o.methods, "notMethods", &o.not_methods, value::methods);
    field!("paths", &o.paths, "notPaths", &o.not_paths, value::paths);
    field!("ports", &o.ports, "notPorts", &o.not_ports, value::destination_ports);
    Ok(tests)
}

// === impl Clauses ===

impl Clauses {
    fn need_http(&self) -> bool {
        self.permissions.iter().chain(&self.principals).flatten().any(|test| test.needs_http)
    }

    fn forget_http(&mut self) {
        for tests in self.permissions.iter_mut().chain(&mut self.principals) {
            tests.retain(|test| !test.needs_http);
        }
    }
}
