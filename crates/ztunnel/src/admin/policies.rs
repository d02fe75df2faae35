//! Policies in ztunnel's shape: `policies`.

use ambit_api::authorization_policy::{Action, Condition, Operation, Rule, Source};
use ambit_mesh::view::PolicyRecord;
use ambit_xds::security::Scope;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// One policy. `rules` is what ztunnel's shape can say of it; `spec` is all that it says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyDump {
    name: String,
    namespace: String,
    scope: &'static str,
    action: &'static str,
    dry_run: bool,
    /// Any rule; of a rule, all clauses; of a clause, any match.
    rules: Vec<Vec<Vec<Value>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Value>,
    /// Why it can't be enforced; what it applies to is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<String>,
}

// === impl PolicyDump ===

impl From<PolicyRecord> for PolicyDump {
    fn from(record: PolicyRecord) -> Self {
        let (namespace, name) = record.name.split_once('/').unwrap_or(("", &record.name));
        let scope = match record.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        };
        let mut dump = Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            scope,
            action: "Allow",
            dry_run: false,
            rules: Vec::new(),
            spec: None,
            rejected: None,
        };
        match record.policy {
            Ok(None) => dump.dry_run = true,
            Err(reason) => (dump.action, dump.rejected) = ("Deny", Some(reason)),
            Ok(Some(policy)) => {
                dump.action = match policy.spec.action {
                    Action::Allow => "Allow",
                    Action::Deny => "Deny",
                    Action::Audit => "Audit",
                    Action::Custom => "Custom",
                };
                let rules = policy.spec.rules.iter().flatten();
                dump.rules = rules.map(|rule| clauses(rule, namespace)).collect();
                dump.spec = serde_json::to_value(&policy.spec).ok();
            }
        }
        dump
    }
}

/// The clauses of a rule: one for `from`, one for `to`, one for each condition.
fn clauses(rule: &Rule, namespace: &str) -> Vec<Vec<Value>> {
    let from = rule.from.as_ref().map(|from| from.iter().map(|from| source(&from.source, namespace)).collect());
    let to = rule.to.as_ref().map(|to| to.iter().map(|to| operation(&to.operation)).collect());
    let when = rule.when.iter().flatten().map(|condition| vec![self::condition(condition, namespace)]);
    from.into_iter().chain(to).chain(when).collect()
}

fn source(source: &Source, namespace: &str) -> Value {
    let accounts = |values: &[String]| values.iter().map(|value| account(value, namespace)).collect();
    object([
        ("namespaces", patterns(&source.namespaces)),
        ("notNamespaces", patterns(&source.not_namespaces)),
        ("principals", patterns(&source.principals)),
        ("notPrincipals", patterns(&source.not_principals)),
        ("sourceIps", texts(&source.ip_blocks)),
        ("notSourceIps", texts(&source.not_ip_blocks)),
        ("serviceAccounts", accounts(&source.service_accounts)),
        ("notServiceAccounts", accounts(&source.not_service_accounts)),
    ])
}

fn operation(operation: &Operation) -> Value {
    object([("destinationPorts", ports(&operation.ports)), ("notDestinationPorts", ports(&operation.not_ports))])
}

fn condition(condition: &Condition, namespace: &str) -> Value {
    let Condition { key, values, not_values } = condition;
    let accounts = |values: &[String]| values.iter().map(|value| account(value, namespace)).collect();
    match key.as_str() {
        "source.ip" => object([("sourceIps", texts(values)), ("notSourceIps", texts(not_values))]),
        "source.namespace" => object([("namespaces", patterns(values)), ("notNamespaces", patterns(not_values))]),
        "source.principal" => object([("principals", patterns(values)), ("notPrincipals", patterns(not_values))]),
        "source.serviceAccount" => {
            object([("serviceAccounts", accounts(values)), ("notServiceAccounts", accounts(not_values))])
        }
        "destination.ip" => object([("destinationIps", texts(values)), ("notDestinationIps", texts(not_values))]),
        "destination.port" => object([("destinationPorts", ports(values)), ("notDestinationPorts", ports(not_values))]),
        _ => Value::Object(Map::new()),
    }
}

/// An object of the lists that have entries.
fn object<const N: usize>(lists: [(&str, Vec<Value>); N]) -> Value {
    let lists = lists.into_iter().filter(|(_, values)| !values.is_empty());
    Value::Object(lists.map(|(name, values)| (name.to_owned(), Value::Array(values))).collect())
}

fn texts(values: &[String]) -> Vec<Value> {
    values.iter().map(|value| Value::String(value.clone())).collect()
}

fn ports(values: &[String]) -> Vec<Value> {
    values.iter().filter_map(|value| value.parse::<u16>().ok()).map(Value::from).collect()
}

fn patterns(values: &[String]) -> Vec<Value> {
    let pattern = |value: &String| match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => json!({"Presence": null}),
        (Some(suffix), _) => json!({"Suffix": suffix}),
        (None, Some(prefix)) => json!({"Prefix": prefix}),
        (None, None) => json!({"Exact": value}),
    };
    values.iter().map(pattern).collect()
}

fn account(value: &str, own_namespace: &str) -> Value {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    json!({"namespace": namespace, "serviceAccount": account})
}
