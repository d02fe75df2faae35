//! Policies that other control planes and local files write (groups, without the policy itself), as the view enforces them.

use std::sync::Arc;

use ambit_mesh::Store;
use ambit_policy::{ConnectionFacts, Options};
use ambit_xds::{AUTHORIZATION_TYPE, DeltaResponse, local, security::Authorization};
use prost::Message;

/// What the server of this mesh says to a client of namespace `default`, on port 80.
fn is_allowed(policies: &str, client: &str) -> bool {
    let file = format!(
        "workloads:\n\
         - {{uid: c, namespace: default, workloadIps: [10.0.0.1], protocol: HBONE, services: {{}}}}\n\
         - {{uid: s, namespace: default, workloadIps: [10.0.0.2], protocol: HBONE, authorizationPolicies: [default/named], services: {{}}}}\n\
         policies:\n{policies}"
    );
    let deltas = local::load_text("test.yaml", &file).unwrap_or_else(|error| panic!("{error}"));
    let store = Store::new(Options::default());
    store.apply(&deltas).unwrap_or_else(|nack| panic!("{nack}"));
    decide(&store, client)
}

fn decide(store: &Arc<Store>, client: &str) -> bool {
    let identity = format!("spiffe://cluster.local/ns/default/sa/{client}").parse().expect("an identity");
    let facts = ConnectionFacts::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 80).with_identity(Some(identity));
    let workload = Arc::clone(store.load().workload("s").expect("known"));
    workload.policies.for_connection(&facts).decide_connection().is_allowed()
}

/// A policy that `s` names.
fn policy(action: &str, rules: &str) -> String {
    format!(
        "- {{name: named, namespace: default, scope: WorkloadSelector, action: {action}, dryRun: false, rules: {rules}}}\n"
    )
}

#[test]
fn groups_decide_as_they_do_on_other_node_proxies() {
    for (action, rules, x, y) in [
        // The shapes of `spec/ztunnel.md` 7.
        ("Allow", "[]", false, false),
        ("Deny", "[]", true, true),
        ("Allow", "[[]]", true, true),
        ("Deny", "[[]]", false, false),
        ("Allow", "[[[]]]", true, true),
        ("Allow", "[[[{}]]]", false, false),
        ("Deny", "[[[{}]]]", true, true),
        // Patterns.
        ("Allow", "[[[{principals: [!Exact cluster.local/ns/default/sa/x]}]]]", true, false),
        ("Deny", "[[[{principals: [!Suffix /sa/x]}]]]", false, true),
        ("Allow", "[[[{principals: [!Prefix cluster.local/ns/default/]}]]]", true, true),
        ("Allow", "[[[{notPrincipals: [!Presence []]}]]]", false, false),
        ("Allow", "[[[{namespaces: [!Exact default]}]]]", true, true),
        ("Allow", "[[[{namespaces: [!Exact other]}]]]", false, false),
        ("Allow", "[[[{serviceAccounts: [{namespace: default, serviceAccount: y}]}]]]", false, true),
        ("Deny", "[[[{notServiceAccounts: [{namespace: default, serviceAccount: y}]}]]]", false, true),
        ("Allow", "[[[{sourceIps: [10.0.0.0/24]}]]]", true, true),
        ("Allow", "[[[{notSourceIps: [10.0.0.1]}]]]", false, false),
        ("Allow", "[[[{destinationIps: [10.0.0.2/32], destinationPorts: [80]}]]]", true, true),
        ("Allow", "[[[{destinationPorts: [81]}]]]", false, false),
        ("Deny", "[[[{notDestinationPorts: [81]}]]]", false, false),
        // Clauses are all needed, of matches one is enough, and so of rules.
        ("Allow", "[[[{destinationPorts: [80]}], [{principals: [!Suffix /sa/x]}]]]", true, false),
        ("Allow", "[[[{destinationPorts: [81]}], [{principals: [!Suffix /sa/x]}]]]", false, false),
        ("Allow", "[[[{destinationPorts: [81]}, {principals: [!Suffix /sa/x]}]]]", true, false),
        ("Allow", "[[[{destinationPorts: [81]}]], [[{principals: [!Suffix /sa/y]}]]]", false, true),
    ] {
        let policies = policy(action, rules);
        assert_eq!((is_allowed(&policies, "x"), is_allowed(&policies, "y")), (x, y), "{action} {rules}");
    }
}

#[test]
fn groups_that_are_not_understood_deny_what_they_are_named_by() {
    let file = "workloads:\n- {uid: s, namespace: default, workloadIps: [10.0.0.2], protocol: HBONE, authorizationPolicies: [default/named], services: {}}\n";
    let store = Store::new(Options::default());
    let allow = policy("Allow", "[[]]");
    let mut deltas = local::load_text("test.yaml", &format!("{file}policies:\n{allow}")).expect("good");
    store.apply(&deltas).expect("readable");
    assert!(decide(&store, "x"));
    let resource = &mut deltas[0].resources[0];
    let mut message = Authorization::decode(resource.value.as_slice()).expect("an authorization");
    message.groups[0].rules = vec![ambit_xds::security::Rules {
        matches: vec![ambit_xds::security::Match {
            extensions: vec![ambit_xds::workload::Extension { name: "of.tomorrow".into(), config: None }],
            ..Default::default()
        }],
    }];
    resource.value = message.encode_to_vec();
    let delta =
        DeltaResponse { resources: vec![resource.clone()], removed: Vec::new(), type_url: AUTHORIZATION_TYPE.into() };
    let nack = store.apply(&[delta]).expect_err("refused");
    assert_eq!(nack.rejected[0].0, "default/named");
    assert!(!decide(&store, "x"), "closed, not left as it was");
}
