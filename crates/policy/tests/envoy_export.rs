//! The Envoy filters against those that Istio renders for its own test policies (`shared/cases/authz/istio-testdata`),
//! as values, not as text.

use std::{collections::BTreeMap, fs, path::Path};

use ambit_api::{AuthorizationPolicy, Resource, load_text};
use ambit_policy::{
    Options,
    envoy::{
        self, Dialect, EnvoyFilters, EnvoyTarget, ExternalAuthorizer, ExternalProtocol, IdentitySource, PEER_PRINCIPAL,
        Protocol,
    },
};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value, json};

/// Name, trust domains if not the default, and the files of the filters, in order.
type Pair = (&'static str, &'static [&'static str], &'static [&'static str]);

const HTTP: &[Pair] = &[
    ("allow-empty-rule", &[], &["allow-empty-rule-out"]),
    ("allow-full-rule", &[], &["allow-full-rule-out"]),
    ("allow-nil-rule", &[], &["allow-nil-rule-out"]),
    ("allow-path", &[], &["allow-path-out"]),
    ("audit-full-rule", &[], &["audit-full-rule-out"]),
    (
        "custom-bad-multiple-providers",
        &[],
        &["custom-bad-multiple-providers-out1", "custom-bad-multiple-providers-out2"],
    ),
    ("custom-simple-http", &[], &["custom-bad-out"]),
    ("deny-and-allow", &[], &["deny-and-allow-out1", "deny-and-allow-out2"]),
    ("deny-empty-rule", &[], &["deny-empty-rule-out"]),
    ("dry-run-allow", &[], &["dry-run-allow-out"]),
    ("dry-run-allow-and-deny", &[], &["dry-run-allow-and-deny-out1", "dry-run-allow-and-deny-out2"]),
    ("dry-run-mix", &[], &["dry-run-mix-out"]),
    ("multiple-policies", &[], &["multiple-policies-out"]),
    (
        "simple-policy-multiple-td-aliases",
        &["td1", "cluster.local", "some-td"],
        &["simple-policy-multiple-td-aliases-out"],
    ),
    ("simple-policy-principal-with-wildcard", &["td1", "foobar"], &["simple-policy-principal-with-wildcard-out"]),
    ("simple-policy-td-aliases", &["td1", "cluster.local"], &["simple-policy-td-aliases-out"]),
    ("single-policy", &[], &["single-policy-out"]),
    ("td-aliases-source-principal", &["new-td", "old-td", "some-trustdomain"], &["td-aliases-source-principal-out"]),
    ("trust-domains", &[], &["trust-domains-out"]),
];

const TCP: &[Pair] = &[
    ("allow-both-http-tcp", &[], &["allow-both-http-tcp-out"]),
    ("allow-only-http", &[], &["allow-only-http-out"]),
    ("audit-both-http-tcp", &[], &["audit-both-http-tcp-out"]),
    ("deny-both-http-tcp", &[], &["deny-both-http-tcp-out"]),
    ("dry-run-mix", &[], &["dry-run-mix-out"]),
];

#[test]
fn the_filters_are_those_of_istio() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/authz/istio-testdata");
    if !root.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "Istio's test policies are not at `{}`", root.display());
        eprintln!("SKIPPED: no test policies of Istio at `{}`; the filters were compared with nothing", root.display());
        return;
    }
    for (folder, pairs, protocol) in [("http", HTTP, Protocol::Http), ("tcp", TCP, Protocol::Tcp)] {
        for (name, trust_domains, expected) in pairs {
            let read = |file: &str| {
                let path = root.join(folder).join(format!("{file}.yaml"));
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            };
            let options = options(trust_domains);
            let target = EnvoyTarget { dialect: Dialect::Istio, ..target(&options, protocol) };
            let filters = filters(&policies(&read(&format!("{name}-in"))), &target);
            let ours: Vec<_> = filters.before_authentication.into_iter().chain(filters.after_authentication).collect();
            let theirs: Vec<_> = expected.iter().map(|file| without_unused_prefix(yaml(&read(file)))).collect();
            assert!(ours == theirs, "{folder}/{name}:\n{}\nand not\n{}", pretty(&ours), pretty(&theirs));
        }
    }
}

/// Istio writes the prefix of the statistics of a dry run also where there is none.
fn without_unused_prefix(mut filter: Value) -> Value {
    let config = filter["typedConfig"].as_object_mut().expect("a filter's configuration");
    if !config.contains_key("shadowRules") {
        config.remove("shadowRulesStatPrefix");
    }
    filter
}

#[test]
fn a_provider_that_is_known_is_asked_about_what_its_policies_match() {
    let policies = policies(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: ask, namespace: foo}\n\
         spec: {action: CUSTOM, provider: {name: p}, rules: [{to: [{operation: {paths: [/a]}}]}]}\n",
    );
    let options = options(&[]);
    let authorizer = |protocol| {
        BTreeMap::from([(
            "p".to_owned(),
            ExternalAuthorizer { cluster: "c".to_owned(), protocol, timeout_ms: 1500, fail_open: false },
        )])
    };
    let http = authorizer(ExternalProtocol::Http { path_prefix: "/check".to_owned() });
    let target = EnvoyTarget { authorizers: &http, ..target(&options, Protocol::Http) };
    let asked = filters(&policies, &target);
    assert_eq!(asked.after_authentication, [] as [Value; 0]);
    let [note, ask] = asked.before_authentication.as_slice() else { panic!("two filters, not {asked:?}") };
    let rules = note["typedConfig"]["shadowRules"]["policies"].as_object().expect("policies");
    assert_eq!(rules.keys().collect::<Vec<_>>(), ["istio-ext-authz-p-ns[foo]-policy[ask]-rule[0]"]);
    assert_eq!(note["typedConfig"].get("rules"), None, "matching denies nothing by itself");
    let config = &ask["typedConfig"];
    assert_eq!(config["filterEnabledMetadata"]["path"][0]["key"], "istio_ext_authz_shadow_effective_policy_id");
    assert_eq!(config["filterEnabledMetadata"]["value"]["stringMatch"]["prefix"], "istio-ext-authz-p-ns[");
    assert_eq!(config["httpService"]["serverUri"]["timeout"], "1.500s");
    assert_eq!(config["failureModeAllow"], false);
    // At L4 there is no HTTP to ask by; a gRPC provider is asked about what remains of the rule.
    assert_eq!(filters(&policies, &EnvoyTarget { protocol: Protocol::Tcp, ..target.clone() }), EnvoyFilters::default());
    let grpc = authorizer(ExternalProtocol::Grpc);
    let target = EnvoyTarget { authorizers: &grpc, protocol: Protocol::Tcp, ..target };
    assert_eq!(filters(&policies, &target).before_authentication.len(), 2);
}

#[test]
fn the_strict_dialect_allows_by_a_whole_identity_and_denies_by_any_part_of_one() {
    let (namespaces, accounts, principals) =
        ("namespaces: ['t.*-a']", "serviceAccounts: [x, y/z]", "principals: ['*']");
    let whole = json!([
        [regex(r"spiffe://[^/]+/ns/t\.[^/]*-a/sa/[^/]+")],
        [regex("spiffe://[^/]+/ns/foo/sa/x"), regex("spiffe://[^/]+/ns/y/sa/z")],
        [identity(json!({"prefix": "spiffe://"}))],
    ]);
    let part = json!([
        [regex(r".*/ns/t\..*-a/.*")],
        [regex("spiffe://.+/ns/foo/(.+/|)sa/x(/.+)?"), regex("spiffe://.+/ns/y/(.+/|)sa/z(/.+)?")],
        [{"any": true}],
    ]);
    let not =
        [("namespaces", "notNamespaces"), ("serviceAccounts", "notServiceAccounts"), ("principals", "notPrincipals")];
    for (action, expected, of_not) in [("ALLOW", &whole, &part), ("DENY", &part, &whole)] {
        for (negated, expected) in [(false, expected), (true, of_not)] {
            let sources = [namespaces, accounts, principals].map(|field| match negated {
                true => not.iter().fold(field.to_owned(), |field, (yes, no)| field.replace(yes, no)),
                false => field.to_owned(),
            });
            let from = sources.map(|source| format!("{{source: {{{source}}}}}")).join(", ");
            let text = format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: foo}}\n\
                 spec: {{action: {action}, rules: [{{from: [{from}]}}]}}\n"
            );
            let options = options(&[]);
            let identity = IdentitySource::FilterState(PEER_PRINCIPAL);
            let rendered = filters(&policies(&text), &EnvoyTarget { identity, ..target(&options, Protocol::Http) });
            let rules = &rendered.after_authentication[0]["typedConfig"]["rules"]["policies"];
            let principals = rules["ns[foo]-policy[a]-rule[0]"]["principals"].as_array().expect("principals");
            let wrapped = expected.as_array().expect("a list").iter().map(|ids| match negated {
                true => json!({"andIds": {"ids": [{"notId": {"orIds": {"ids": ids}}}]}}),
                false => json!({"andIds": {"ids": [{"orIds": {"ids": ids}}]}}),
            });
            assert_eq!(*principals, wrapped.collect::<Vec<_>>(), "{text}");
        }
    }
}

fn identity(matcher: Value) -> Value {
    json!({"filterState": {"key": "io.istio.peer_principal", "stringMatch": matcher}})
}

fn regex(regex: &str) -> Value {
    identity(json!({"safeRegex": {"regex": regex}}))
}

#[test]
fn what_cannot_be_rendered_is_an_error() {
    let options = options(&[]);
    for (rule, field) in [
        ("{to: [{operation: {ports: ['80', http]}}]}", "spec.rules[0].to[0].operation.ports[1]"),
        ("{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        ("{from: [{source: {notPrincipals: ['']}}]}", "spec.rules[0].from[0].source.notPrincipals[0]"),
        ("{from: [{source: {serviceAccounts: [a/b/c]}}]}", "spec.rules[0].from[0].source.serviceAccounts[0]"),
        ("{to: [{operation: {paths: ['/{**}/{*}']}}]}", "spec.rules[0].to[0].operation.paths[0]"),
        ("{when: [{key: source.nothing, values: [a]}]}", "spec.rules[0].when[0].key"),
        ("{when: [{key: 'request.auth.claims[a][]', values: [a]}]}", "spec.rules[0].when[0].key"),
    ] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: foo}}\n\
             spec: {{action: DENY, rules: [{rule}]}}\n"
        );
        let error = envoy::filters(&policies(&text), &target(&options, Protocol::Http)).expect_err(rule);
        assert_eq!(error.field, field, "{error}");
    }
}

fn options(trust_domains: &[&str]) -> Options {
    let mut options = Options::default();
    if !trust_domains.is_empty() {
        options.trust_domains = trust_domains.iter().map(ToString::to_string).collect();
    }
    options
}

fn target(options: &Options, protocol: Protocol) -> EnvoyTarget<'_> {
    static NOBODY: BTreeMap<String, ExternalAuthorizer> = BTreeMap::new();
    let (identity, dialect) = (IdentitySource::MutualTls, Dialect::Strict);
    EnvoyTarget { options, protocol, identity, dialect, authorizers: &NOBODY }
}

fn filters(policies: &[AuthorizationPolicy], target: &EnvoyTarget<'_>) -> EnvoyFilters {
    envoy::filters(policies, target).unwrap_or_else(|error| panic!("{error}"))
}

/// The policies of a file, valid or not: Istio's tests hold values that its own validation refuses.
fn policies(text: &str) -> Vec<AuthorizationPolicy> {
    let loaded = load_text("policies.yaml", text);
    let policies: Vec<_> = loaded
        .objects
        .into_iter()
        .filter_map(|object| match object.resource {
            Resource::AuthorizationPolicy(policy) => Some(*policy),
            _ => None,
        })
        .collect();
    let written = text.matches("kind: AuthorizationPolicy").count();
    assert_eq!(policies.len(), written, "a policy isn't loaded: {:#?}", loaded.diagnostics);
    policies
}

fn pretty(filters: &[Value]) -> String {
    serde_json::to_string_pretty(filters).expect("JSON")
}

/// The first document of a YAML file without anchors and tags.
fn yaml(text: &str) -> Value {
    let mut open: Vec<(Value, Option<String>)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.expect("YAML");
        let done = match event {
            Event::MappingStart(..) => {
                open.push((Map::new().into(), None));
                continue;
            }
            Event::SequenceStart(..) => {
                open.push((Vec::<Value>::new().into(), None));
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => open.pop().expect("an open collection").0,
            Event::Scalar(text, style, ..) => scalar(&text, style),
            _ => continue,
        };
        match open.last_mut() {
            None => return done,
            Some((Value::Array(values), _)) => values.push(done),
            Some((Value::Object(map), key)) => match key.take() {
                Some(key) => drop(map.insert(key, done)),
                None => *key = Some(done.as_str().map_or_else(|| done.to_string(), str::to_owned)),
            },
            Some(_) => unreachable!("only collections are open"),
        }
    }
    panic!("no document")
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return text.into();
    }
    match text {
        "true" => true.into(),
        "false" => false.into(),
        _ => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
    }
}
