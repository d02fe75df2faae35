//! A decision on a plain path takes nothing from the heap, whatever the policies say and whatever the verdict is.

use std::{
    collections::BTreeMap,
    fmt::Write,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
};

use ambit_api::{AuthorizationPolicy, Resource, load_text};
use ambit_policy::{Claims, ConnectionFacts, Options, Peer, ProviderKind, RequestFacts, Residual, compile};

const PEER: &str = "spiffe://cluster.local/ns/default/sa/web";

/// A policy of each kind and field; `{}` is where the requests below are told apart by path.
const KINDS: &str = r#"
- { action: ALLOW, rules: [{ to: [{ operation: { paths: ["/exact"], methods: ["GET"] } }] }] }
- { action: ALLOW, rules: [{ to: [{ operation: { paths: ["/prefix/*"], notPaths: ["/prefix/not"] } }] }] }
- { action: ALLOW, rules: [{ to: [{ operation: { paths: ["*/suffix"], hosts: ["*.EXAMPLE.com", "web"] } }] }] }
- { action: ALLOW, rules: [{ to: [{ operation: { paths: ["/one/{*}/two", "/rest/{**}"], ports: ["80"] } }] }] }
- { action: ALLOW, rules: [{ from: [{ source: { namespaces: ["default"], notPrincipals: ["*/sa/x"] } }], to: [{ operation: { paths: ["/from"] } }] }] }
- { action: ALLOW, rules: [{ to: [{ operation: { paths: ["/when"] } }], when: [{ key: "request.headers[x-team]", values: ["a*"] }, { key: "request.auth.claims[groups]", values: ["admin"] }, { key: "request.auth.audiences", notValues: ["other"] }] }] }
- { action: ALLOW, rules: [{ from: [{ source: { requestPrincipals: ["issuer/*"], remoteIpBlocks: ["10.0.0.0/8"] } }], to: [{ operation: { paths: ["/token"] } }] }] }
- { action: AUDIT, rules: [{ to: [{ operation: { paths: ["/exact"] } }] }] }
- { action: DENY, rules: [{ to: [{ operation: { paths: ["/denied", "/denied/*"] } }] }] }
- { action: DENY, rules: [{ to: [{ operation: { paths: ["/guarded"] } }], when: [{ key: "request.headers[x-team]", notValues: ["b"] }] }] }
- { action: CUSTOM, provider: { name: opa }, rules: [{ to: [{ operation: { paths: ["/asked"] } }] }] }
"#;

/// Requests that these policies allow, deny by a rule, and deny by default.
const ALLOWED: &[&str] =
    &["/exact", "/exact?q=1", "/prefix/x", "/x/suffix", "/one/1/two", "/rest/a/b", "/from", "/when", "/token"];
const DENIED: &[&str] = &["/denied", "/denied/x", "/guarded", "/asked", "/prefix/not", "/one/1/three", "/nowhere"];

fn policies(specs: &str) -> Vec<AuthorizationPolicy> {
    let mut yaml = String::new();
    for (index, spec) in specs.lines().filter_map(|line| line.strip_prefix("- ")).enumerate() {
        writeln!(
            yaml,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{ name: p-{index}, namespace: default }}\nspec: {spec}"
        )
        .expect("text");
    }
    let policies: Vec<_> = load_text("test.yaml", &yaml)
        .objects
        .into_iter()
        .filter_map(|object| match object.resource {
            Resource::AuthorizationPolicy(policy) => Some(*policy),
            _ => None,
        })
        .collect();
    assert_eq!(policies.len(), yaml.matches("spec:").count(), "all policies load");
    policies
}

fn connect(specs: &str) -> Residual {
    let address = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
    let connection = ConnectionFacts::new(address, address, 80).with_peer(Peer::new(PEER).expect("an identity"));
    let providers = BTreeMap::from([("opa".to_owned(), ProviderKind::Http)]);
    let options = Options { providers, ..Options::default() };
    compile(&policies(specs), &options).expect("the policies compile").for_connection(&connection)
}

/// Decides, and counts. The decision is dropped in it, too.
fn allocations(residual: &Residual, request: &RequestFacts<'_>) -> u64 {
    allocation_counter::measure(|| drop(black_box(residual.decide(black_box(request))))).count_total
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(black_box(Box::new(black_box(1u32)))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn a_decision_allocates_nothing() {
    let residual = connect(KINDS);
    let headers = [("X-Team", "a-team"), ("accept", "*/*")];
    let claims: Claims =
        serde_json::from_str(r#"{ "iss": "issuer", "sub": "me", "aud": ["web"], "groups": ["admin"] }"#)
            .expect("claims");
    for (paths, allowed) in [(ALLOWED, true), (DENIED, false)] {
        for path in paths {
            let request = RequestFacts::new("GET", path, "web").with_headers(&headers).with_claims(Some(&claims));
            let decision = residual.decide(&request);
            assert_eq!(decision.is_allowed(), allowed, "{path}: {}", decision.reason);
            assert_eq!(allocations(&residual, &request), 0, "{path}: {}", decision.reason);
        }
    }
    assert_eq!(allocations(&residual, &RequestFacts::new("GET", "/when", "web")), 0, "without headers and token");
}

#[test]
fn the_number_of_rules_changes_nothing() {
    for count in [0, 1, 10, 1000] {
        let specs: String = (0..count)
            .map(|number| {
                format!(
                    "- {{ rules: [{{ from: [{{ source: {{ principals: [\"cluster.local/ns/default/sa/web\"] }} }}], \
                     to: [{{ operation: {{ paths: [\"/{number}\", \"/{number}/*\"] }} }}] }}] }}\n"
                )
            })
            .collect();
        let residual = connect(&specs);
        for path in [format!("/{}", count - 1), format!("/{}/x", count - 1), "/nowhere".to_owned()] {
            assert_eq!(allocations(&residual, &RequestFacts::new("GET", &path, "web")), 0, "{count} rules, {path}");
        }
    }
}

#[test]
fn a_refused_target_allocates_nothing() {
    let residual = connect(KINDS);
    for target in ["", "*", "/a#b", "/a%00"] {
        assert_eq!(allocations(&residual, &RequestFacts::new("GET", target, "web")), 0, "{target}");
    }
}
