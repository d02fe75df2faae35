//! PeerAuthentication: every row of `spec/control-plane.md` 3.2, through the derivation and the proxies' view.

mod support;

use ambit_api::{PeerAuthentication, Resource, load_text};
use ambit_mesh::{
    Index, Store,
    findings::{codes, findings},
    inputs::{Change, Settings},
};
use ambit_policy::{ConnectionFacts, Options};
use support::{arc, labels, name, pod};

fn peer_authentications(yaml: &str) -> Vec<PeerAuthentication> {
    let loaded = load_text("peers.yaml", yaml);
    assert_eq!(loaded.diagnostics, [], "{yaml}");
    let read = |object: ambit_api::Object| match object.resource {
        Resource::PeerAuthentication(object) => Some(*object),
        _ => None,
    };
    loaded.objects.into_iter().filter_map(read).collect()
}

fn object(full_name: &str, spec: &str) -> String {
    let full_name = name(full_name);
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{namespace: {}, name: {}}}\nspec: {{{spec}}}\n",
        full_name.namespace, full_name.name
    )
}

fn change(object: PeerAuthentication) -> Change {
    Change::PeerAuthentication(name(&format!("{}/{}", object.namespace, object.name)), Some(object))
}

/// Whether pod `a/p` (label `app: x`) takes plaintext on ports 80 and 81, and mutual TLS on both.
fn takes(yaml: &str) -> [bool; 2] {
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    let objects = peer_authentications(yaml).into_iter().map(change);
    let responses = index.apply(objects.chain([Change::Pod(name("a/p"), Some(pod("u", "x", 2)))]));
    assert_eq!(store.apply(&responses), Ok(()), "{yaml}");
    let view = store.load();
    let policies = &view.workload("u").expect("known").policies;
    [80, 81].map(|port| {
        let plaintext = ConnectionFacts::new([10, 0, 0, 9].into(), [10, 244, 0, 2].into(), port);
        let tls = plaintext.clone().with_identity("spiffe://cluster.local/ns/z/sa/z".parse().ok());
        assert!(policies.for_connection(&tls).decide_connection().is_allowed(), "mutual TLS is always taken: {yaml}");
        policies.for_connection(&plaintext).decide_connection().is_allowed()
    })
}

const BOTH: [bool; 2] = [true, true];
const NEITHER: [bool; 2] = [false, false];
const SELECTOR: &str = "selector: {matchLabels: {app: x}}";

#[test]
fn the_narrowest_level_that_says_something_counts() {
    let mesh = |mode: &str| object("istio-system/m", &format!("mtls: {{mode: {mode}}}"));
    let namespace = |mode: &str| object("a/n", &format!("mtls: {{mode: {mode}}}"));
    let own = |mode: &str| object("a/w", &format!("{SELECTOR}, mtls: {{mode: {mode}}}"));
    assert_eq!(takes(""), BOTH);
    assert_eq!(takes(&mesh("STRICT")), NEITHER);
    assert_eq!(takes(&namespace("STRICT")), NEITHER);
    assert_eq!(takes(&own("STRICT")), NEITHER);
    assert_eq!(takes(&object("b/n", "mtls: {mode: STRICT}")), BOTH, "another namespace's");
    for open in ["PERMISSIVE", "DISABLE"] {
        assert_eq!(takes(&(mesh("STRICT") + &namespace(open))), BOTH, "{open}");
        assert_eq!(takes(&(namespace("STRICT") + &own(open))), BOTH, "{open}");
    }
    assert_eq!(takes(&(mesh("STRICT") + &namespace("UNSET") + &own("UNSET"))), NEITHER);
    assert_eq!(takes(&(mesh("STRICT") + &object("a/n", ""))), NEITHER, "nothing said");
    assert_eq!(takes(&(mesh("PERMISSIVE") + &own("STRICT"))), NEITHER);
}

#[test]
fn ports_are_exceptions_from_the_effective_mode() {
    let strict = object("istio-system/m", "mtls: {mode: STRICT}");
    let own = |mode: &str, ports: &str| {
        object("a/w", &format!("{SELECTOR}, mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}"))
    };
    let (open80, strict80) = ("80: {mode: PERMISSIVE}", "80: {mode: STRICT}");
    let disabled80 = "80: {mode: DISABLE}";
    for (wide, mode, ports, expected) in [
        ("", "STRICT", strict80, NEITHER),
        ("", "STRICT", open80, [true, false]),
        ("", "STRICT", disabled80, [true, false]),
        ("", "STRICT", "80: {mode: UNSET}", NEITHER),
        ("", "PERMISSIVE", strict80, [false, true]),
        ("", "DISABLE", strict80, [false, true]),
        ("", "PERMISSIVE", open80, BOTH),
        (&strict, "PERMISSIVE", strict80, [false, true]),
        (&strict, "UNSET", open80, [true, false]),
        (&strict, "UNSET", strict80, NEITHER),
        (&strict, "UNSET", "80: {mode: PERMISSIVE}, 81: {mode: STRICT}", [true, false]),
        ("", "UNSET", strict80, [false, true]),
        ("", "UNSET", "80: {mode: PERMISSIVE}, 81: {mode: STRICT}", [true, false]),
    ] {
        assert_eq!(takes(&(wide.to_owned() + &own(mode, ports))), expected, "{wide:?} {mode} {ports}");
    }
}

#[test]
fn of_several_at_one_level_the_oldest_counts() {
    let aged = |full_name: &str, created: &str, mode: &str| {
        let object = object(full_name, &format!("{SELECTOR}, mtls: {{mode: {mode}}}"));
        object.replace("metadata: {", &format!("metadata: {{creationTimestamp: \"{created}\", "))
    };
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    assert_eq!(takes(&(aged("a/a", young, "PERMISSIVE") + &aged("a/b", old, "STRICT"))), NEITHER);
    assert_eq!(takes(&(aged("a/a", old, "PERMISSIVE") + &aged("a/b", young, "STRICT"))), BOTH);

    let mut index = Index::new(Settings::default());
    let both = aged("a/a", young, "PERMISSIVE") + &aged("a/b", old, "STRICT");
    index.apply(peer_authentications(&both).into_iter().map(change));
    index.apply([Change::Pod(name("a/p"), Some(pod("u", "x", 2)))]);
    let found = findings(index.inputs());
    let shadowed: Vec<_> = found.iter().filter(|f| f.code == codes::SHADOWED_PEER_AUTHENTICATION).collect();
    assert_eq!(shadowed.iter().map(|f| f.object.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn on_the_wire_it_is_named_as_in_istio() {
    let mut index = Index::new(Settings::default());
    let names = |index: &Index| -> Vec<String> {
        let keys = index.resources().keys();
        keys.filter(|(kind, _)| *kind == ambit_xds::AUTHORIZATION_TYPE).map(|(_, name)| name.clone()).collect()
    };
    assert_eq!(names(&index), [""; 0]);
    let open80 = format!("{SELECTOR}, mtls: {{mode: STRICT}}, portLevelMtls: {{80: {{mode: PERMISSIVE}}}}");
    index.apply(peer_authentications(&object("a/w", &open80)).into_iter().map(change));
    assert_eq!(names(&index), ["a/converted_peer_authentication_w", "istio-system/istio_converted_static_strict"]);
    index.apply([Change::PeerAuthentication(name("a/w"), None)]);
    assert_eq!(names(&index), [""; 0]);
}

#[test]
fn one_of_the_root_namespace_that_selects_pods_has_no_effect_and_says_so() {
    let mut root_pod = pod("u", "x", 2);
    root_pod.labels = labels(&[("app", "x")]);
    let mut index = Index::new(Settings::default());
    let strict = object("istio-system/w", &format!("{SELECTOR}, mtls: {{mode: STRICT}}"));
    index.apply(peer_authentications(&strict).into_iter().map(change));
    index.apply([Change::Pod(name("istio-system/p"), Some(root_pod))]);
    let found = findings(index.inputs());
    let unused = found.iter().find(|f| f.code == codes::PEER_AUTHENTICATION_UNUSED).expect("a finding");
    assert_eq!((unused.severity, arc(&unused.field)), (ambit_api::Severity::Error, arc("spec.selector")));
}
