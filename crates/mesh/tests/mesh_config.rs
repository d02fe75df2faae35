//! What holds for the whole mesh reaches the proxies, changes what policies mean there, and can be taken back.

mod support;

use std::{sync::Arc, time::Duration};

use ambit_api::{Diagnostic, MeshConfig, Resource, authorization_policy::Action, load_text};
use ambit_mesh::{
    Index, Store,
    findings::{codes, findings},
    inputs::{AllowedNamespaces, Change, Settings},
    view::{Ask, Authorizer, CheckedBody, ServiceKey},
};
use ambit_policy::{ConnectionFacts, Options, Peer, RequestFacts};
use support::{gateway, name, namespace, pod, policy, put, service, targeting};

fn config(spec: &str) -> MeshConfig {
    let (config, faults) = written(spec);
    assert_eq!(faults, []);
    config
}

/// The object as it is read, and what is wrong with it.
fn written(spec: &str) -> (MeshConfig, Vec<Diagnostic>) {
    let text = format!("apiVersion: ambit.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {spec}\n");
    let loaded = load_text("mesh.yaml", &text);
    match loaded.objects.into_iter().next().map(|object| object.resource) {
        Some(Resource::MeshConfig(config)) => (*config, loaded.diagnostics),
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
        let providers = "{extensionProviders: [
            {name: known, envoyExtAuthzHttp: {service: x.y, port: 80}},
            {name: missing, envoyExtAuthzGrpc: {service: z.a.svc.cluster.local, port: 80}},
            {name: elsewhere, envoyExtAuthzGrpc: {service: b/x.y, port: 80}}]}";
        index.apply([settings(Some(&config(providers))), change]);
        let found = findings(index.inputs());
        found
            .into_iter()
            .find(|f| f.field.starts_with("spec.action") || f.field.starts_with("spec.provider"))
            .map(|f| (f.severity, f.code))
    };
    let (warning, error) = (ambit_api::Severity::Warning, ambit_api::Severity::Error);
    assert_eq!(code(put(custom("unknown"))), Some((warning, codes::UNKNOWN_PROVIDER)));
    assert_eq!(code(put(custom("known"))), None);
    assert_eq!(code(put(custom("missing"))), Some((warning, codes::UNKNOWN_PROVIDER)), "no such Service");
    assert_eq!(code(put(custom("elsewhere"))), Some((warning, codes::UNKNOWN_PROVIDER)), "no Service's name");
    let mut selecting = custom("known");
    selecting.spec.target_refs.clear();
    assert_eq!(code(put(selecting)), Some((error, codes::NOT_ENFORCED)));
}

/// What the waypoint of a service knows of provider `ext`, which a policy of that service names.
fn authorizer(spec: &str) -> Result<Arc<Authorizer>, String> {
    let mut custom = targeting(policy("a/q", Action::Custom, None, Some("/v1")), "", "Service", "s");
    custom.spec.provider = Some(ambit_api::authorization_policy::Provider { name: "ext".into() });
    let other = "{name: other, envoyExtAuthzGrpc: {service: x.y, port: 1}}";
    let (config, faults) = written(&format!("{{extensionProviders: [{{name: ext, {spec}}}, {other}]}}"));
    let mut index = Index::new(Settings::default());
    let pushes = index.apply([
        settings(Some(&config)),
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))),
        Change::Service(name("a/s"), Some(service("x", &[("istio.io/use-waypoint", "w")]))),
        put(custom),
    ]);
    let store = Store::new(Options::default());
    let applied = store.apply(&pushes);
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("a bundle");
    assert_eq!(bundle.authorizers.len(), 1, "only those that are named");
    let known = bundle.authorizers["ext"].clone().map_err(|reason| reason.to_string());
    assert_eq!(known.is_ok(), applied.is_ok(), "what can't be read is told to the control plane");
    assert!(known.is_err() || faults.is_empty(), "{faults:?}");
    known
}

#[test]
fn every_option_of_a_provider_reaches_the_waypoints_that_ask_it() {
    let plain = authorizer("envoyExtAuthzGrpc: {service: a/ext.example.com, port: 9000}");
    assert!(plain.is_ok_and(|plain| &*plain.host == "ext.example.com" && plain.mesh_only));
    let plain = authorizer("envoyExtAuthzGrpc: {service: ext.example.com, port: 9000}").expect("readable");
    let expected = Authorizer {
        name: "ext".into(),
        namespace: None,
        host: "ext.example.com".into(),
        port: 9000,
        mesh_only: false,
        timeout: Duration::from_secs(600),
        fail_open: false,
        status_on_error: 403,
        body: None,
        ask: Ask::Grpc,
    };
    assert_eq!(*plain, expected, "the defaults");
    let full = authorizer(
        "envoyExtAuthzGrpc: {service: b/ext.b.svc.cluster.local, port: 1, timeout: 1.5s, failOpen: true, \
         statusOnError: \"503\", includeRequestBodyInCheck: {maxRequestBytes: 7, allowPartialMessage: true, packAsBytes: true}}",
    );
    let body = CheckedBody { max_bytes: 7, allow_partial: true, as_bytes: true };
    let expected = Authorizer {
        namespace: Some("b".into()),
        host: "ext.b.svc.cluster.local".into(),
        port: 1,
        mesh_only: true,
        timeout: Duration::from_millis(1500),
        fail_open: true,
        status_on_error: 503,
        body: Some(body),
        ..expected
    };
    assert_eq!(*full.expect("readable"), expected);

    let http = authorizer(
        "envoyExtAuthzHttp: {service: ext.b.svc.cluster.local, port: 80, pathPrefix: /check, includeHeadersInCheck: [old], \
         includeRequestHeadersInCheck: [X-One, \"x-a*\", \"*-z\"], includeAdditionalHeadersInCheck: {x-tenant: t}, \
         headersToUpstreamOnAllow: [x-user], headersToDownstreamOnAllow: [set-cookie], headersToDownstreamOnDeny: [x-why]}",
    )
    .expect("readable");
    let Ask::Http(ask) = &http.ask else { panic!("{http:?}") };
    assert_eq!((&*ask.path_prefix, http.mesh_only), ("/check", true));
    let sent = ["x-one", "x-ab", "b-z", "old", "x-on", "z-x"].map(|name| ask.request_headers.matches(name));
    assert_eq!(sent, [true, true, true, false, false, false]);
    assert_eq!(ask.additional_headers, [("x-tenant".into(), "t".into())]);
    assert!(ask.to_upstream_on_allow.matches("x-user") && ask.to_downstream_on_allow.matches("set-cookie"));
    assert!(ask.to_downstream_on_deny.as_ref().is_some_and(|names| names.matches("x-why") && !names.matches("x")));
    let old = authorizer("envoyExtAuthzHttp: {service: ext.x, port: 80, includeHeadersInCheck: [old]}");
    let Ask::Http(ask) = &old.expect("readable").ask else { panic!("asked over HTTP") };
    assert!(ask.request_headers.matches("old") && ask.to_downstream_on_deny.is_none());
}

#[test]
fn a_provider_that_cannot_be_read_is_known_as_such() {
    for (spec, reason) in [
        ("envoyExtAuthzGrpc: {service: x.y, port: 70000}", "70000 is no port"),
        ("envoyExtAuthzGrpc: {port: 1}", "it has no host"),
        ("envoyExtAuthzGrpc: {service: x.y, port: 1, timeout: soon}", "it has no time to answer"),
        ("envoyExtAuthzGrpc: {service: x.y, port: 1, statusOnError: \"200\"}", "0 is no status of a refusal"),
        ("envoyExtAuthzGrpc: {service: x.y, port: 1, includeRequestBodyInCheck: {}}", "it can't be sent 0 bytes"),
        ("envoyExtAuthzHttp: {service: x.y, port: 1, pathPrefix: x}", "its path prefix doesn't start with `/`"),
        ("envoyExtAuthzHttp: {service: x.y, port: 1, headersToUpstreamOnAllow: [\"*\"]}", "`*` is no header"),
    ] {
        let known = authorizer(spec);
        assert!(known.as_ref().is_err_and(|known| known.contains(reason)), "{spec}: {known:?}");
    }
}

#[test]
fn a_collector_of_traces_reaches_waypoints_and_is_no_authorizer() {
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    let mut apply = |change: Vec<Change>| assert_eq!(store.apply(&index.apply(change)), Ok(()));
    let spec = "{extensionProviders: [{name: otel, opentelemetry: {service: a/s.a.svc.cluster.local, port: 80, http: \
        {path: /v1/traces, headers: [{name: X-Key, value: hush}]}}}], defaultProviders: {tracing: [otel]}, \
        defaultConfig: {tracing: {sampling: 12.5}}}";
    let traced = config(spec);
    assert!(Settings::default().with_config(Some(&traced)).providers.is_empty(), "a CUSTOM policy can't name it");
    apply(vec![
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))),
        settings(Some(&traced)),
    ]);
    let tracing = || store.load().waypoint("a", "w").expect("known").settings.tracing.clone();
    let found = tracing().expect("traced");
    let collector = &found.collector;
    assert_eq!((&*collector.host, collector.port), ("s.a.svc.cluster.local", 80));
    assert_eq!((collector.namespace.as_deref(), collector.mesh_only), (Some("a"), true));
    assert_eq!((collector.timeout, found.sampled), (Duration::from_secs(10), 12_500));
    assert_eq!((found.path.path(), found.authority.as_bytes()), ("/v1/traces", &b"s.a.svc.cluster.local:80"[..]));
    assert_eq!(found.headers["x-key"], "hush");
    assert!(!format!("{:?}", found.headers).contains("hush"), "it may be a secret");
    assert!(found.draws(12_499) && !found.draws(12_500));

    let default = spec.replace(", defaultConfig: {tracing: {sampling: 12.5}}", "");
    let default = config(&default.replace("\n", ""));
    apply(vec![settings(Some(&default))]);
    assert_eq!(tracing().expect("traced").sampled, 1_000, "one per cent");
    apply(vec![settings(None)]);
    assert!(tracing().is_none());
}
