//! A rule's sources and operations (rows 10, 16 to 26 and 33).

use super::{Field, List, MAX_ENTRIES, at_most, condition, path, values};
use crate::{
    authorization_policy::{Action, Operation, Rule, Source},
    codes,
    validate::Check,
};

/// Checks one rule; `field` is its own.
pub(super) fn check(check: &mut Check<'_>, action: Action, field: &Field<'_>, rule: &Rule) {
    check_written_null(check, field, rule);
    if let Some(from) = &rule.from {
        let field = field.key("from");
        if from.is_empty() {
            let help = "remove `from` for any source, or add one";
            check.error(codes::EMPTY_FROM, &field, "`from` is empty", help);
        }
        at_most(check, &field, from.len(), MAX_ENTRIES);
        for (index, entry) in from.iter().enumerate() {
            check_source(check, action, &field.item(index).key("source"), &entry.source);
        }
    }
    if let Some(to) = &rule.to {
        let field = field.key("to");
        if to.is_empty() {
            check.error(codes::EMPTY_TO, &field, "`to` is empty", "remove `to` for any operation, or add one");
        }
        at_most(check, &field, to.len(), MAX_ENTRIES);
        for (index, entry) in to.iter().enumerate() {
            check_operation(check, &field.item(index).key("operation"), &entry.operation);
        }
    }
    let conditions = field.key("when");
    for (index, when) in rule.when.iter().flatten().enumerate() {
        condition::check(check, action, &conditions.item(index), when);
    }
    if action == Action::Deny {
        check_tcp_reach(check, field, rule);
    }
}

fn check_source(check: &mut Check<'_>, action: Action, field: &Field<'_>, source: &Source) {
    if source.is_empty() {
        let help = "a source without fields would mean anyone; leave `from` out to say so, or add `principals`";
        check.error(codes::EMPTY_SOURCE, field, "`source` has no field with a value", help);
        return;
    }
    let list = |name, values| List { parent: field, name, values };
    let principals = [list("principals", &source.principals), list("notPrincipals", &source.not_principals)];
    let request_principals = [
        list("requestPrincipals", &source.request_principals),
        list("notRequestPrincipals", &source.not_request_principals),
    ];
    let namespaces = [list("namespaces", &source.namespaces), list("notNamespaces", &source.not_namespaces)];
    let accounts =
        [list("serviceAccounts", &source.service_accounts), list("notServiceAccounts", &source.not_service_accounts)];
    let domains = [list("trustDomains", &source.trust_domains), list("notTrustDomains", &source.not_trust_domains)];
    let addresses = [
        list("ipBlocks", &source.ip_blocks),
        list("notIpBlocks", &source.not_ip_blocks),
        list("remoteIpBlocks", &source.remote_ip_blocks),
        list("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    let all = [&principals[..], &request_principals, &namespaces, &accounts, &domains, &addresses].concat();
    check_written_empty(check, field, &all);
    if action == Action::Custom {
        let unsupported = [&principals[..], &request_principals, &namespaces, &accounts, &domains].concat();
        for list in unsupported.iter().filter(|list| !list.values.is_empty()) {
            let message = format!("`{}` is not supported with CUSTOM", list.name);
            check.error(codes::CUSTOM_UNSUPPORTED, list, message, "let the provider decide on identities");
        }
    }
    let used = |lists: &[List<'_>]| lists.iter().any(|list| !list.values.is_empty());
    if used(&accounts) && (used(&principals) || used(&namespaces)) {
        let message = "`serviceAccounts` can't be combined with `principals` or `namespaces`";
        let help = "keep one of them, or write two entries of `from`";
        check.error(
            codes::ACCOUNTS_WITH_PRINCIPALS,
            &accounts[usize::from(accounts[0].values.is_empty())],
            message,
            help,
        );
    }
    principals.iter().for_each(|list| values::check_principals(check, list));
    request_principals.iter().for_each(|list| values::check_not_empty(check, list));
    namespaces.iter().for_each(|list| values::check_namespaces(check, list));
    accounts.iter().for_each(|list| values::check_service_accounts(check, list));
    domains.iter().for_each(|list| values::check_trust_domains(check, list, false));
    addresses.iter().for_each(|list| values::check_addresses(check, list));
}

fn check_operation(check: &mut Check<'_>, field: &Field<'_>, operation: &Operation) {
    if operation.is_empty() {
        let help = "an operation without fields would mean any; leave `to` out to say so, or add `methods` or `paths`";
        check.error(codes::EMPTY_OPERATION, field, "`operation` has no field with a value", help);
        return;
    }
    let list = |name, values| List { parent: field, name, values };
    let hosts = [list("hosts", &operation.hosts), list("notHosts", &operation.not_hosts)];
    let ports = [list("ports", &operation.ports), list("notPorts", &operation.not_ports)];
    let methods = [list("methods", &operation.methods), list("notMethods", &operation.not_methods)];
    let paths = [list("paths", &operation.paths), list("notPaths", &operation.not_paths)];
    check_written_empty(check, field, &[&hosts[..], &ports, &methods, &paths].concat());
    hosts.iter().for_each(|list| values::check_hosts(check, list));
    ports.iter().for_each(|list| values::check_ports(check, list));
    methods.iter().for_each(|list| values::check_methods(check, list));
    paths.iter().for_each(|list| path::check(check, list));
}

/// `from:` with nothing behind it reads like a restriction and would be none: what should stand there was forgotten, or
/// is indented wrongly.
fn check_written_null(check: &mut Check<'_>, field: &Field<'_>, rule: &Rule) {
    let Some(written) = field.written else { return };
    for (name, absent, code) in [
        ("from", rule.from.is_none(), codes::EMPTY_FROM),
        ("to", rule.to.is_none(), codes::EMPTY_TO),
        ("when", rule.when.as_ref().is_none_or(Vec::is_empty), codes::CONDITION_WITHOUT_VALUES),
    ] {
        if absent && written.get(name).is_some() {
            let message = format!("`{name}` has no value, so it would restrict nothing");
            check.error(
                code,
                &format_args!("{field}.{name}"),
                message,
                format!("remove `{name}` to match everything, or add an entry"),
            );
        }
    }
}

/// `principals: []` reads like "nobody" and means "anybody".
fn check_written_empty(check: &mut Check<'_>, field: &Field<'_>, lists: &[List<'_>]) {
    let Some(written) = field.written.filter(|written| written.has_other_than_full_lists()) else { return };
    for list in lists.iter().filter(|list| list.values.is_empty() && written.get(list.name).is_some()) {
        let message = format!("`{}` without values would restrict nothing", list.name);
        check.error(codes::SUSPICIOUS_VALUE, list, message, "add values, or remove it");
    }
}

/// Row 33: on a TCP port the fields of HTTP can't be seen, and a DENY falls on what remains of the rule.
fn check_tcp_reach(check: &mut Check<'_>, field: &Field<'_>, rule: &Rule) {
    let seen_at_tcp = |source: &Source| {
        [
            &source.principals,
            &source.not_principals,
            &source.namespaces,
            &source.not_namespaces,
            &source.service_accounts,
            &source.not_service_accounts,
            &source.ip_blocks,
            &source.not_ip_blocks,
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
        ]
        .iter()
        .any(|values| !values.is_empty())
    };
    let blind_source = match (&rule.from, &rule.to) {
        (Some(from), None) => from.iter().position(|entry| !seen_at_tcp(&entry.source)),
        _ => None,
    };
    let portless = rule.to.as_ref().and_then(|to| {
        to.iter().position(|entry| entry.operation.ports.is_empty() && entry.operation.not_ports.is_empty())
    });
    let place = match (blind_source, portless) {
        (Some(index), _) => format!("{field}.from[{index}]"),
        (None, Some(index)) => format!("{field}.to[{index}]"),
        (None, None) => return,
    };
    let message =
        "on TCP ports, where HTTP can't be seen, this DENY falls on everything that the rest of the rule matches";
    check.warning(codes::DENIES_ALL_TCP, &place, message, "add the `ports` that are meant to `to.operation`");
}
