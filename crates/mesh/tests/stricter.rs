//! Where Istio is the looser one, a pod's node proxy is the stricter (`docs/differences-from-istio.md`): from the YAML
//! through the derivation and the wire to the proxy's verdict.

mod support;

use std::sync::Arc;

use ambit_api::{MeshConfig, Resource, Severity, load_text};
use ambit_mesh::{
    Index, Store,
    findings::{codes, findings},
    inputs::{Change, NamespacedName, Policy, Settings},
};
use ambit_policy::{ConnectionFacts, Decision, Options, Peer};
use support::{name, pod};

const FRIEND: &str = "spiffe://cluster.local/ns/b/sa/friend";
const OTHER: &str = "spiffe://cluster.local/ns/c/sa/other";

/// A policy for the whole namespace `a`.
fn policy(annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{namespace: a, name: p, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    )
}

fn change(object: ambit_api::Object) -> Option<Change> {
    let Resource::AuthorizationPolicy(policy) = object.resource else { return None };
    let name = NamespacedName::new(&policy.namespace, &policy.name);
    let policy = match object.rejection {
        None => Policy::new(*policy),
        Some(rejection) => Policy::rejected(*policy, &rejection.reason()),
    };
    Some(Change::Policy(name, Some(policy)))
}

/// The mesh of one policy and pod `a/p`.
fn mesh(policy: &str, settings: Settings) -> (Index, Arc<Store>) {
    let mut index = Index::new(settings);
    let store = Store::new(Options::default());
    let loaded = load_text("p.yaml", policy);
    let changes: Vec<_> = loaded.objects.into_iter().chain(loaded.malformed).filter_map(change).collect();
    assert_eq!(changes.len(), 1, "{policy}");
    let responses = index.apply(changes.into_iter().chain([Change::Pod(name("a/p"), Some(pod("u", "x", 2)))]));
    // What can't be enforced is also said; it is denied all the same.
    let _said = store.apply(&responses);
    (index, store)
}

/// What pod `a/p` answers to a client on its port 8080.
fn ask(store: &Store, peer: &str) -> Decision {
    let facts = ConnectionFacts::new([10, 0, 0, 9].into(), [10, 244, 0, 2].into(), 8080);
    let facts = facts.with_peer(Peer::new(peer).expect("an identity"));
    let residual = store.load().workload("u").expect("known").policies.for_connection(&facts);
    residual.with_reason(residual.decide_connection(), None)
}

/// Whether the friend and the other are let in.
fn admits(spec: &str) -> [bool; 2] {
    let (_, store) = mesh(&policy("", spec), Settings::default());
    [FRIEND, OTHER].map(|peer| ask(&store, peer).is_allowed())
}

const BOTH: [bool; 2] = [true, true];
const NEITHER: [bool; 2] = [false, false];
const FRIEND_ALONE: [bool; 2] = [true, false];
const OTHER_ALONE: [bool; 2] = [false, true];

#[test]
fn a_denial_is_never_weakened_and_a_warning_says_so() {
    let (all, more) = ("denies all traffic in its scope", "more is denied than written");
    let from_friend = "from: [{source: {namespaces: [b]}}]";
    for (rule, admitted, tail) in [
        ("to: [{operation: {methods: [GET]}}]", NEITHER, all),
        ("to: [{operation: {notPaths: [/healthz]}}]", NEITHER, all),
        ("to: [{operation: {hosts: [web], ports: ['8080']}}]", NEITHER, more),
        ("to: [{operation: {hosts: [web], ports: ['9090']}}]", BOTH, more),
        ("to: [{operation: {ports: ['9090']}}, {operation: {methods: [GET]}}]", NEITHER, all),
        ("from: [{source: {requestPrincipals: ['*']}}]", NEITHER, all),
        ("from: [{source: {namespaces: [b], notRequestPrincipals: ['*']}}]", OTHER_ALONE, more),
        ("from: [{source: {namespaces: [b]}}, {source: {requestPrincipals: ['*']}}]", NEITHER, all),
        ("when: [{key: 'request.headers[x-team]', values: [red]}]", NEITHER, all),
        ("when: [{key: connection.sni, values: [x.example]}]", NEITHER, all),
        (
            "when: [{key: source.namespace, values: [b]}, {key: 'request.auth.claims[a]', values: [c]}]",
            OTHER_ALONE,
            more,
        ),
        (&format!("{from_friend}, to: [{{operation: {{methods: [GET]}}}}]"), OTHER_ALONE, more),
    ] {
        let spec = format!("{{action: DENY, rules: [{{{rule}}}]}}");
        assert_eq!(admits(&spec), admitted, "{rule}");
        let (index, _) = mesh(&policy("", &spec), Settings::default());
        let found = findings(index.inputs());
        let warning = found.iter().find(|finding| finding.code == codes::HTTP_AT_L4).expect(rule);
        assert_eq!(warning.severity, Severity::Warning);
        assert!(warning.message.contains(tail), "{rule}: {}", warning.message);
    }
    let (_, store) =
        mesh(&policy("", "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"), Settings::default());
    let reason = ask(&store, FRIEND).reason;
    assert!(reason.contains("can't be judged on a connection and count as met"), "{reason}");
}

#[test]
fn what_cant_be_understood_rejects_the_policy_whatever_else_it_says() {
    let good = "{from: [{source: {namespaces: [b, c]}}]}";
    for bad in [
        "{to: [{operation: {ports: [http]}}]}",
        "{to: [{operation: {ports: ['70000']}}]}",
        "{to: [{operation: {paths: ['/{id}']}}]}",
        "{from: [{source: {ipBlocks: [10.0.0.256]}}]}",
        "{from: [{source: {notIpBlocks: [10.0.0.0/40]}}]}",
        "{from: [{source: {serviceAccounts: ['a*']}}]}",
        "{from: [{source: {trustDomains: ['a*b']}}]}",
        "{from: [{source: {principal: [x]}}]}",
        "{from: [{sources: {principals: [x]}}]}",
        "{when: [{key: no.such, values: [x]}]}",
        "{when: [{key: source.ip, values: [x]}]}",
        "{when: [{key: destination.port, notValues: [x]}]}",
        "{when: [{key: source.ip, value: [10.0.0.1]}]}",
        "{unless: []}",
    ] {
        for action in ["ALLOW", "DENY"] {
            let spec = format!("{{action: {action}, rules: [{good}, {bad}]}}");
            let (_, store) = mesh(&policy("", &spec), Settings::default());
            for peer in [FRIEND, OTHER, "spiffe://cluster.local/ns/d/sa/x"] {
                let Decision { verdict, reason, .. } = ask(&store, peer);
                let says = reason.contains("policy `a/p` was rejected: spec.rules[1]");
                assert!(verdict == ambit_policy::Verdict::Deny && says, "{spec}: {verdict} {reason}");
            }
        }
    }
}

#[test]
fn a_dry_run_that_isnt_a_boolean_is_an_error_and_neither_enforced_nor_ignored() {
    for word in ["yes", "on", "tRUE", "", " true", "2", "dry"] {
        let text = policy(&format!("istio.io/dry-run: '{word}'"), "{rules: [{from: [{source: {namespaces: [b]}}]}]}");
        let found = load_text("p.yaml", &text).diagnostics;
        assert_eq!(
            found.iter().map(|found| (found.severity, found.code)).collect::<Vec<_>>(),
            [(Severity::Error, ambit_api::codes::BAD_DRY_RUN)],
            "{word:?}"
        );
        let (_, store) = mesh(&text, Settings::default());
        for peer in [FRIEND, OTHER] {
            let Decision { verdict, reason, .. } = ask(&store, peer);
            let says = reason.contains("`a/p` was rejected") && reason.contains("istio.io/dry-run");
            assert!(verdict == ambit_policy::Verdict::Deny && says, "{word:?}: {verdict} {reason}");
        }
    }
    for (words, admitted) in
        [(["1", "t", "T", "TRUE", "true", "True"], BOTH), (["0", "f", "F", "FALSE", "false", "False"], FRIEND_ALONE)]
    {
        for word in words {
            let rules = "{rules: [{from: [{source: {namespaces: [b]}}]}]}";
            let (_, store) = mesh(&policy(&format!("istio.io/dry-run: '{word}'"), rules), Settings::default());
            assert_eq!([FRIEND, OTHER].map(|peer| ask(&store, peer).is_allowed()), admitted, "{word:?}");
        }
    }
}

#[test]
fn what_ztunnel_takes_for_http_is_judged_on_connections_too() {
    for (rule, admitted) in [
        // A connection has no address but its own.
        ("from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]", BOTH),
        ("from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}]", NEITHER),
        ("when: [{key: remote.ip, values: [10.0.0.9]}]", BOTH),
        ("from: [{source: {serviceAccounts: [b/friend]}}]", FRIEND_ALONE),
        ("from: [{source: {notServiceAccounts: [b/friend]}}]", OTHER_ALONE),
        ("from: [{source: {trustDomains: [cluster.local]}}]", BOTH),
        ("from: [{source: {trustDomains: ['clu*']}}]", BOTH),
        ("from: [{source: {notTrustDomains: ['*.local']}}]", NEITHER),
        ("when: [{key: source.serviceAccount, values: [b/friend]}]", FRIEND_ALONE),
        ("when: [{key: source.serviceAccount, notValues: [b/friend]}]", OTHER_ALONE),
        ("when: [{key: source.serviceAccount, values: [friend]}]", NEITHER),
        ("when: [{key: source.trustDomain, values: ['*.local']}]", BOTH),
        ("when: [{key: source.trustDomain, values: [old.example]}]", NEITHER),
        ("when: [{key: source.trustDomain, notValues: [cluster.local]}]", NEITHER),
    ] {
        assert_eq!(admits(&format!("{{rules: [{{{rule}}}]}}")), admitted, "{rule}");
        let opposite = admitted.map(|admitted| !admitted);
        assert_eq!(admits(&format!("{{action: DENY, rules: [{{{rule}}}]}}")), opposite, "DENY {rule}");
        let (index, _) = mesh(&policy("", &format!("{{rules: [{{{rule}}}]}}")), Settings::default());
        let found = findings(index.inputs());
        assert!(found.iter().all(|finding| finding.code != codes::HTTP_AT_L4), "{rule}: {found:?}");
    }
}

#[test]
fn aliases_of_the_trust_domain_count_on_connections_too() {
    let config = load_text(
        "mesh.yaml",
        "apiVersion: ambit.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {trustDomainAliases: [old.example]}\n",
    );
    let config: Vec<MeshConfig> = config
        .objects
        .into_iter()
        .filter_map(|object| match object.resource {
            Resource::MeshConfig(config) => Some(*config),
            _ => None,
        })
        .collect();
    let principals = policy("", "{rules: [{from: [{source: {principals: [cluster.local/ns/b/sa/friend]}}]}]}");
    let old = "spiffe://old.example/ns/b/sa/friend";
    let admitted = |config: Option<&MeshConfig>| {
        let mut index = Index::new(Settings::default());
        let store = Store::new(Options::default());
        let settings = Change::Settings(Settings::default().with_config(config));
        let policy = load_text("p.yaml", &principals).objects.into_iter().filter_map(change);
        let pod = Change::Pod(name("a/p"), Some(pod("u", "x", 2)));
        assert_eq!(store.apply(&index.apply([settings, pod].into_iter().chain(policy))), Ok(()));
        [FRIEND, old, "spiffe://other.example/ns/b/sa/friend"].map(|peer| ask(&store, peer).is_allowed())
    };
    assert_eq!(admitted(None), [true, false, false]);
    assert_eq!(admitted(config.first()), [true, true, false]);
}
