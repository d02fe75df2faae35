//! What holds for the whole mesh reaches the proxies, changes what policies mean there, and can be taken back.

mod support;

use ambit_api::{MeshConfig, Resource, authorization_policy::Action, load_text};
use ambit_mesh::{
    Index, Store,
    findings::{codes, findings},
    inputs::{AllowedNamespaces, Change, Settings},
    view::ServiceKey,
};
use ambit_policy::{ConnectionFacts, Options, Peer, RequestFacts};
use support::{gateway, name, namespace, pod, policy, put, service, targeting};

fn config(spec: &str) -> MeshConfig {
    let text = format!("apiVersion: ambit.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {spec}\n");
    let loaded = load_text("mesh.yaml", &text);
    assert_eq!(loaded.diagnostics, []);
    match loaded.objects.into_iter().next().map(|object| object.resource) {
        Some(Resource::MeshConfig(config)) => *config,
        other => panic!("not a MeshConfig: {other:?}"),
    }
}

fn settings(config: Option<&MeshConfig>) -> Change {
    Change::Settings(Settings::default().with_config(config))
}

#[test]
fn aliases_and_path_modes_change_verdicts_and_can_be_taken_back() {
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    let friend = "cluster.local/ns/a/sa/c";
    let objects = [
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))),
        Change::Service(name("a/s"), Some(service("x", &[("istio.io/use-waypoint", "w")]))),
        Change::Pod(name("a/p"), Some(pod("u", "x", 2))),
        put(targeting(policy("a/http", Action::Allow, Some(friend), Some("/v1")), "", "Service", "s")),
        put(policy("a/l4", Action::Allow, Some(friend), None)),
    ];
    let mut apply = |change: Vec<Change>| assert_eq!(store.apply(&index.apply(change)), Ok(()));
    apply(objects.into());
    let key = ServiceKey { namespace: "a".into(), hostname: "s.a.svc.cluster.local".into() };
    // As a client of another trust domain, at the waypoint with two spellings of the path, and at the node proxy.
    let verdicts = || {
        let view = store.load();
        let facts = ConnectionFacts::new([10, 0, 0, 9].into(), [10, 244, 0, 2].into(), 8080);
        let facts = facts.with_peer(Peer::new("spiffe://old.example/ns/a/sa/c").expect("an identity"));
        let waypoint = view.waypoint("a", "w").expect("known").services[&key].for_connection(&facts);
        let asks = |path| waypoint.decide(&RequestFacts::new("GET", path, "s")).is_allowed();
        let at_pod = view.workload("u").expect("known").policies.for_connection(&facts).decide_connection();
        (asks("/v1"), asks("//v1"), at_pod.is_allowed())
    };
    assert_eq!(verdicts(), (false, false, false));
    apply(vec![settings(Some(&config("{trustDomainAliases: [old.example]}")))]);
    assert_eq!(verdicts(), (true, false, true));
    let merging = config("{trustDomainAliases: [old.example], pathNormalization: {normalization: MERGE_SLASHES}}");
    apply(vec![settings(Some(&merging))]);
    assert_eq!(verdicts(), (true, true, true));
    apply(vec![settings(None)]);
    assert_eq!(verdicts(), (false, false, false));
}

#[test]
fn a_custom_policy_says_who_is_asked() {
    let custom = |provider: &str| {
        let mut custom = targeting(policy("a/q", Action::Custom, None, Some("/v1")), "", "Service", "s");
        custom.spec.provider = Some(ambit_api::authorization_policy::Provider { name: provider.into() });
        custom
    };
    let code = |change: Change| {
        let mut index = Index::new(Settings::default());
        let providers = "{extensionProviders: [{name: known, envoyExtAuthzHttp: {service: x.y, port: 80}}]}";
        index.apply([settings(Some(&config(providers))), change]);
        let found = findings(index.inputs());
        found
            .into_iter()
            .find(|f| f.field.starts_with("spec.action") || f.field.starts_with("spec.provider"))
            .map(|f| (f.severity, f.code))
    };
    let (warning, error) = (ambit_api::Severity::Warning, ambit_api::Severity::Error);
    assert_eq!(code(put(custom("unknown"))), Some((warning, codes::UNKNOWN_PROVIDER)));
    assert_eq!(code(put(custom("known"))), Some((warning, codes::UNSUPPORTED_POLICY)));
    let mut selecting = custom("known");
    selecting.spec.target_refs.clear();
    assert_eq!(code(put(selecting)), Some((error, codes::NOT_ENFORCED)));
}
