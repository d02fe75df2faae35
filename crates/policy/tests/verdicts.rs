//! Verdicts and reasons for the policies of `examples/mlflow`, and for what each action means.

use std::net::{IpAddr, Ipv4Addr};

use ambit_api::{AuthorizationPolicy, Resource, load_text};
use ambit_policy::{
    Compiled, ConnectionFacts, Decision, Options, PathNormalization, ProviderKind, RequestFacts, Residual, Verdict,
    compile,
    limits::{MAX_CLAUSES, MAX_RULES, MAX_RULES_COMPARED, MAX_SERVICE_ACCOUNT_BYTES, MAX_SERVICE_ACCOUNTS},
};

const OTEL: &str = "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector";
const UI: &str = "spiffe://cluster.local/ns/kagenti-system/sa/kagenti-ui";
const OTHER: &str = "spiffe://cluster.local/ns/kagenti-system/sa/other";

const TRACES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: mlflow-traces-from-otel, namespace: kagenti-system }
spec:
  action: ALLOW
  rules:
    - from: [{ source: { principals: ["cluster.local/ns/kagenti-system/sa/otel-collector"] } }]
      to: [{ operation: { methods: ["POST"], paths: ["/v1/traces"] } }]
"#;

const UI_RULE: &str = r#"
    - from: [{ source: { principals: ["cluster.local/ns/kagenti-system/sa/kagenti-ui"] } }]
      to: [{ operation: { methods: ["GET", "POST"], paths: ["/*"] } }]
"#;

/// A policy `ns/name` with this `spec`, in YAML's flow style.
fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("ns/name");
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n"
    )
}

fn policies(yaml: &str) -> Vec<AuthorizationPolicy> {
    let policies: Vec<_> = load_text("test.yaml", yaml)
        .objects
        .into_iter()
        .filter_map(|object| match object.resource {
            Resource::AuthorizationPolicy(policy) => Some(*policy),
            _ => None,
        })
        .collect();
    assert_eq!(policies.len(), yaml.matches("kind: AuthorizationPolicy").count(), "all policies load");
    policies
}

fn options() -> Options {
    Options {
        providers: [("ext".to_owned(), ProviderKind::Http), ("grpc".to_owned(), ProviderKind::Grpc)].into(),
        ..Options::default()
    }
}

fn compiled(yaml: &str) -> Compiled {
    compile(&policies(yaml), &options()).expect("the policies compile")
}

fn refusal(yaml: &str) -> String {
    compile(&policies(yaml), &options()).expect_err("the policies don't compile").to_string()
}

fn facts(peer: Option<&str>) -> ConnectionFacts {
    let (source, destination) = (Ipv4Addr::new(10, 244, 1, 5), Ipv4Addr::new(10, 96, 0, 10));
    ConnectionFacts::new(IpAddr::V4(source), IpAddr::V4(destination), 5000)
        .with_identity(peer.map(|peer| peer.parse().expect("an identity")))
}

fn connect(yaml: &str, peer: &str) -> Residual {
    compiled(yaml).for_connection(&facts(Some(peer)))
}

fn ask(residual: &Residual, method: &str, path: &str) -> Decision {
    ask_with(residual, &RequestFacts::new(method, path, "mlflow"))
}

fn ask_with(residual: &Residual, request: &RequestFacts<'_>) -> Decision {
    residual.with_reason(residual.decide(request), Some(request))
}

fn ask_connection(residual: &Residual) -> Decision {
    residual.with_reason(residual.decide_connection(), None)
}

#[test]
fn the_demo_table() {
    let otel = connect(TRACES, OTEL);
    for path in
        ["/v1/traces", "/v1/traces?x=1", "/a/../v1/traces", "/v1/./traces", "/v1/%74races", "http://mlflow/v1/traces"]
    {
        let decision = ask(&otel, "POST", path);
        assert!(decision.is_allowed(), "{path}: {}", decision.reason);
        assert_eq!(&*decision.reason, "rule 0 of kagenti-system/mlflow-traces-from-otel allows it");
        assert_eq!(decision.policy.expect("the policy").to_string(), "kagenti-system/mlflow-traces-from-otel");
        assert_eq!(decision.rule, Some(0));
    }
    for path in [
        "/v1/traces/",
        "/V1/traces",
        "/v1/traces/x",
        "//v1/traces",
        "/v1%2Ftraces",
        "/v1/traces;x=1",
        "/v1/traces/..%2fadmin",
        "/v1/traces%3Fx=1",
        "/v1%252Ftraces",
        "*",
        "",
        "v1/traces",
        "/v1/traces#x",
        "/v1/traces%00",
        "ftp://mlflow/v1/traces",
    ] {
        let decision = ask(&otel, "POST", path);
        assert_eq!(decision.verdict, Verdict::Deny, "{path}");
        assert_eq!((decision.policy, decision.rule), (None, None), "a default deny names no policy");
    }
    assert!(!ask(&otel, "GET", "/v1/traces").is_allowed());
    assert!(!ask(&connect(TRACES, OTHER), "POST", "/v1/traces").is_allowed());
    let elsewhere = "spiffe://cluster.local/ns/other/sa/otel-collector";
    assert!(!ask(&connect(TRACES, elsewhere), "POST", "/v1/traces").is_allowed());

    let both = format!("{TRACES}{}", UI_RULE.trim_start_matches('\n'));
    let ui = connect(&both, UI);
    assert!(ask(&ui, "GET", "/anything").is_allowed() && ask(&ui, "POST", "/api").is_allowed());
    assert_eq!(
        &*ask(&ui, "DELETE", "/").reason,
        "no ALLOW rule matches; nearest is kagenti-system/mlflow-traces-from-otel rule 1: method is `DELETE`, expected \
         `GET` or `POST`"
    );
}

#[test]
fn a_default_deny_says_what_came_nearest() {
    let near = "no ALLOW rule matches; nearest is kagenti-system/mlflow-traces-from-otel rule 0: ";
    let principal = "principal is `cluster.local/ns/kagenti-system/sa/other`, expected \
                     `cluster.local/ns/kagenti-system/sa/otel-collector`";
    let otel = connect(TRACES, OTEL);
    let reason = |decision: Decision| decision.reason.strip_prefix(near).expect("the start").to_owned();
    assert_eq!(reason(ask(&otel, "GET", "/v1/traces")), "method is `GET`, expected `POST`");
    let wrong_path = ask(&otel, "POST", "/v1/traces/?token=secret");
    assert_eq!(reason(wrong_path), "path is `/v1/traces/`, expected `/v1/traces`", "the query isn't shown");
    assert_eq!(reason(ask(&connect(TRACES, OTHER), "POST", "/v1/traces")), principal);
    let nobody = compiled(TRACES).for_connection(&facts(None));
    assert_eq!(
        reason(ask(&nobody, "POST", "/v1/traces")),
        "the client has no identity, expected `cluster.local/ns/kagenti-system/sa/otel-collector`"
    );
    let l4 = reason(ask_connection(&connect(TRACES, OTEL)));
    assert!(l4.contains("method") && l4.contains("path"), "{l4}");
}

#[test]
fn without_enforced_policies_everything_is_allowed() {
    let nothing = connect("", OTEL);
    assert_eq!(&*ask(&nothing, "GET", "*").reason, "no policy applies");
    assert!(nothing.decide_connection().is_allowed());
    let dry_run =
        policy("a/dry", "{}").replace("namespace: a", "namespace: a, annotations: { istio.io/dry-run: 'true' }");
    let unenforced = format!("{dry_run}{}", policy("a/audit", "{ action: AUDIT, rules: [{}] }"));
    assert!(ask(&connect(&unenforced, OTEL), "GET", "/").is_allowed(), "they don't mean default deny");
    let deny = policy("a/d", "{ action: DENY, rules: [{ to: [{ operation: { methods: [PUT] } }] }] }");
    assert!(ask(&connect(&deny, OTEL), "GET", "/").is_allowed(), "nor do DENY policies");
}

#[test]
fn policies_without_rules() {
    let empty = connect(&policy("a/deny-all", "{}"), OTEL);
    assert_eq!(
        &*ask(&empty, "GET", "/").reason,
        "no ALLOW rule matches; a/deny-all has no rules, so it allows nothing"
    );
    assert!(!empty.decide_connection().is_allowed());
    let everything = connect(&policy("a/all", "{ rules: [{}] }"), OTEL);
    assert!(ask(&everything, "GET", "/").is_allowed() && everything.decide_connection().is_allowed());
    let never = connect(&policy("a/never", "{ action: DENY }"), OTEL);
    assert!(ask(&never, "GET", "/").is_allowed());
}

#[test]
fn deny_comes_first_and_names_rule_and_field() {
    let yaml = policy("a/all", "{ rules: [{}] }")
        + &policy(
            "a/no-admin",
            "{ action: DENY, rules: [{ to: [{ operation: { methods: [PUT] } }] }, \
             { to: [{ operation: { paths: ['/admin*'], notPorts: ['80'] } }] }] }",
        );
    let otel = connect(&yaml, OTEL);
    let decision = ask(&otel, "GET", "/admin/x?y");
    assert_eq!(decision.rule, Some(1));
    assert_eq!(
        &*decision.reason,
        "rule 1 of a/no-admin denies it: port `5000` is none of `80`; path `/admin/x` matches `/admin*`"
    );
    assert_eq!(ask(&otel, "PUT", "/x").rule, Some(0));
    assert!(ask(&otel, "GET", "/x").is_allowed());
    let connection = ask_connection(&otel);
    assert_eq!((connection.verdict, connection.rule), (Verdict::Deny, Some(0)), "at L4 the method counts as met");
    assert!(connection.reason.contains("can't be judged"), "{}", connection.reason);
}

#[test]
fn a_denied_reading_denies_and_is_named() {
    let yaml = policy("a/all", "{ rules: [{}] }")
        + &policy(
            "a/no-admin",
            "{ action: DENY, rules: [{ to: [{ operation: { paths: ['/admin', '/admin/*'] } }] }] }",
        );
    let otel = connect(&yaml, OTEL);
    for (path, reading) in [
        ("//admin", "slashes merged"),
        ("/x;y/%2e%2e;/admin", "path parameters stripped"),
        ("/admin;x", "path parameters stripped"),
        ("/x/..%2fadmin", "escaped slashes decoded"),
        ("/x%5c..%5Cadmin", "escaped slashes decoded"),
        ("/a//../admin/x", "slashes merged"),
        ("/%2Fadmin", "escaped slashes decoded and slashes merged"),
    ] {
        let decision = ask(&otel, "GET", path);
        assert_eq!(decision.verdict, Verdict::Deny, "{path}");
        assert!(decision.reason.contains(&format!("with {reading} it is")), "{path}: {}", decision.reason);
        assert_eq!(decision.policy.expect("the policy").to_string(), "a/no-admin");
    }
    for path in ["/x%252Fadmin", "/x/%2%65%2%65/admin", "/x//y", "/x;admin", "/%61dmi"] {
        let decision = ask(&otel, "GET", path);
        assert!(decision.is_allowed(), "{path}: {}", decision.reason);
    }
    let base = compiled(&yaml).with_path_normalization(PathNormalization::Base).for_connection(&facts(Some(OTEL)));
    assert!(ask(&base, "GET", "//admin").is_allowed(), "an explicit mode switches the rule off");
}

#[test]
fn at_l4_an_allow_rule_with_any_http_field_is_void() {
    let ports = connect(&policy("a/p", "{ rules: [{ to: [{ operation: { ports: ['5000'] } }] }] }"), OTEL);
    assert!(ports.decide_connection().is_allowed());
    let mixed = "{ rules: [{ to: [{ operation: { ports: ['5000'] } }, { operation: { methods: [GET] } }] }] }";
    let mixed = connect(&policy("a/p", mixed), OTEL);
    assert!(!mixed.decide_connection().is_allowed(), "also through its alternative without");
    assert!(ask(&mixed, "PUT", "/").is_allowed());
    let deny = "{ action: DENY, rules: [{ from: [{ source: { namespaces: [other] } }], \
                to: [{ operation: { notMethods: [GET] } }] }] }";
    assert!(connect(&policy("a/d", deny), OTEL).decide_connection().is_allowed(), "its other conditions stay");
    let other = "spiffe://cluster.local/ns/other/sa/x";
    assert!(!connect(&policy("a/d", deny), other).decide_connection().is_allowed());
}

#[test]
fn a_client_without_identity() {
    let allowed = |spec: &str| {
        let residual = compiled(&policy("a/p", spec)).for_connection(&facts(None));
        (ask(&residual, "GET", "/").is_allowed(), residual.decide_connection().is_allowed())
    };
    for field in
        ["principals: ['*']", "principals: ['*b']", "namespaces: ['*']", "serviceAccounts: [b]", "trustDomains: ['*']"]
    {
        assert_eq!(
            allowed(&format!("{{ rules: [{{ from: [{{ source: {{ {field} }} }}] }}] }}")),
            (false, false),
            "{field}"
        );
    }
    for field in ["notPrincipals: [x]", "notNamespaces: ['*']", "notServiceAccounts: [b]", "notTrustDomains: ['*']"] {
        assert_eq!(
            allowed(&format!("{{ rules: [{{ from: [{{ source: {{ {field} }} }}] }}] }}")),
            (true, true),
            "{field}"
        );
    }
    let deny =
        |field: &str| allowed(&format!("{{ action: DENY, rules: [{{ from: [{{ source: {{ {field} }} }}] }}] }}"));
    assert_eq!(deny("notPrincipals: ['*']"), (false, false), "the usual way to require mutual TLS");
    assert_eq!(deny("namespaces: [x]"), (true, true));
    // `*` against nobody counts as whatever denies.
    assert_eq!(deny("principals: ['*']"), (false, false));
    assert_eq!(allowed("{ rules: [{ from: [{ source: { notPrincipals: ['*'] } }] }] }"), (false, false));
}

#[test]
fn what_cannot_be_used_refuses_the_whole_policy() {
    let rule = |rule: &str| refusal(&policy("a/p", &format!("{{ rules: [{{}}, {rule}] }}")));
    for (text, expected) in [
        (
            "{ to: [{ operation: { ports: ['80', http] } }] }",
            "policy `a/p`: spec.rules[1].to[0].operation.ports[1]: `http` isn't a port number from 0 to 65535",
        ),
        (
            "{ when: [{ key: 'experimental.envoy.filters.a.b[c]', values: [a] }] }",
            "policy `a/p`: spec.rules[1].when[0].key: `experimental.envoy.filters.a.b[c]` is not supported: it reads what \
             another proxy's filters know",
        ),
        (
            "{ when: [{ key: 'request.headers[a b]', values: [a] }] }",
            "policy `a/p`: spec.rules[1].when[0].key: `a b` isn't the name of a header; write `request.headers[x-team]`",
        ),
        (
            "{ when: [{ key: 'request.auth.claims[a]b', values: [a] }] }",
            "policy `a/p`: spec.rules[1].when[0].key: `[a]b` isn't a claim; write `request.auth.claims[a]`, or `[a][b]` \
             for `b` in `a`",
        ),
        (
            "{ when: [{ key: 'no.such.key', values: [a] }] }",
            "policy `a/p`: spec.rules[1].when[0].key: `no.such.key` isn't an attribute of policies",
        ),
    ] {
        assert_eq!(rule(text), expected);
    }
    for text in [
        "{ from: [] }",
        "{ from: [{ source: {} }] }",
        "{ to: [{ operation: {} }] }",
        "{ when: [{ key: source.ip }] }",
        "{ when: [{ key: source.ip, values: [x] }] }",
        "{ from: [{ source: { principals: [''] } }] }",
        "{ from: [{ source: { serviceAccounts: [a], namespaces: [b] } }] }",
        "{ from: [{ source: { serviceAccounts: ['a*'] } }] }",
        "{ from: [{ source: { remoteIpBlocks: [10.0.0.256] } }] }",
        "{ from: [{ source: { requestPrincipals: [''] } }] }",
        "{ when: [{ key: 'request.headers', values: [x] }] }",
        "{ when: [{ key: 'request.auth.claims', values: [x] }] }",
        "{ when: [{ key: destination.namespace, values: [x] }] }",
        "{ from: [{ source: { ipBlocks: [10.0.0.0/40] } }] }",
        "{ to: [{ operation: { paths: ['/{x}'] } }] }",
        "{ to: [{ operation: { paths: ['/{**}/{*}'] } }] }",
    ] {
        assert!(rule(text).starts_with("policy `a/p`: spec.rules[1]."), "{text}");
    }
    assert!(refusal(&policy("a/p", "{ action: CUSTOM, rules: [{}] }")).contains("name the provider"));
    assert!(refusal(&policy("a/p", "{ provider: { name: x }, rules: [{}] }")).contains("only to a policy with action"));
    let dry_run = policy("a/p", "{}").replace("namespace: a", "namespace: a, annotations: { istio.io/dry-run: 'yes' }");
    assert!(refusal(&dry_run).contains("isn't a boolean"));
}

#[test]
fn policies_larger_than_the_limits_are_refused() {
    let list = |entry: &str, count: usize| vec![entry; count].join(", ");
    let compiles = |spec: &str| compile(&policies(&policy("a/p", spec)), &options()).is_ok();
    let rules = |count| compiles(&format!("{{ rules: [{}] }}", list("{}", count)));
    assert!(rules(MAX_RULES) && !rules(MAX_RULES + 1));
    let to =
        |count| compiles(&format!("{{ rules: [{{ to: [{}] }}] }}", list("{ operation: { ports: ['1'] } }", count)));
    assert!(to(MAX_CLAUSES) && !to(MAX_CLAUSES + 1));
    let when = |count| {
        compiles(&format!("{{ rules: [{{ when: [{}] }}] }}", list("{ key: source.ip, values: ['::1'] }", count)))
    };
    assert!(when(MAX_CLAUSES) && !when(MAX_CLAUSES + 1));
    let accounts = |account: &str, count| {
        compiles(&format!(
            "{{ rules: [{{ from: [{{ source: {{ serviceAccounts: [{}] }} }}] }}] }}",
            list(account, count)
        ))
    };
    assert!(accounts("a", MAX_SERVICE_ACCOUNTS) && !accounts("a", MAX_SERVICE_ACCOUNTS + 1));
    let long = "a".repeat(MAX_SERVICE_ACCOUNT_BYTES);
    assert!(accounts(&long, 1) && !accounts(&format!("{long}a"), 1));
}

#[test]
fn many_rules_are_searched_and_the_first_match_is_named() {
    let rules: Vec<String> = (0..MAX_RULES)
        .map(|n| {
            let paths = if n % 2 == 0 { format!("'/{n}', /both") } else { format!("'/{n}/*', '/bo*'") };
            format!("{{ to: [{{ operation: {{ paths: [{paths}] }} }}, {{ operation: {{ ports: ['{n}'], paths: [/x] }} }}] }}")
        })
        .collect();
    let residual = connect(&policy("a/p", &format!("{{ rules: [{}] }}", rules.join(", "))), OTEL);
    for (path, rule) in
        [("/0", Some(0)), ("/300", Some(300)), ("/301/x", Some(301)), ("/both", Some(0)), ("/bot", Some(1))]
    {
        assert_eq!(ask(&residual, "GET", path).rule, rule, "{path}");
    }
    let denied = ask(&residual, "GET", "/511");
    assert!(denied.reason.contains("nearest is a/p rule 0: path is `/511`"), "{}", denied.reason);
}

#[test]
fn a_reason_compares_a_bounded_number_of_rules() {
    let nearest = |far: usize| {
        let mut rules = vec!["{ to: [{ operation: { paths: [/x], methods: [PUT] } }] }"; far];
        rules.push("{ to: [{ operation: { paths: [/x], methods: [GET] } }] }");
        ask(&connect(&policy("a/p", &format!("{{ rules: [{}] }}", rules.join(", "))), OTEL), "GET", "/y").reason
    };
    let last = nearest(MAX_RULES_COMPARED - 1);
    assert!(last.contains(&format!("nearest is a/p rule {}:", MAX_RULES_COMPARED - 1)), "{last}");
    let first = nearest(MAX_RULES_COMPARED);
    assert!(first.contains("nearest is a/p rule 0:"), "{first}");
}

#[test]
fn deny_all_denies_all_with_its_reason() {
    let residual = Compiled::deny_all("policy `a/b` is broken").for_connection(&facts(Some(OTEL)));
    for decision in [ask(&residual, "GET", "/"), residual.decide_connection()] {
        assert_eq!((decision.verdict, &*decision.reason), (Verdict::Deny, "policy `a/b` is broken"));
    }
}

#[test]
fn reasons_are_bounded_and_show_no_secrets() {
    let yaml =
        policy("a/p", "{ rules: [{ to: [{ operation: { hosts: [web], paths: ['/a', '/b', '/c', '/d', '/e'] } }] }] }");
    let residual = connect(&yaml, OTEL);
    let path = format!("/{}", "x".repeat(5000));
    let decision = ask_with(&residual, &RequestFacts::new("GET", &path, "user:secret@web"));
    assert!(decision.reason.len() < 600, "{}", decision.reason);
    assert!(!decision.reason.contains("secret"), "{}", decision.reason);
    assert!(decision.reason.contains("expected `/a`, `/b`, `/c` or 2 more"), "{}", decision.reason);
}

#[test]
fn compiled_policies_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Compiled>();
    shared::<Residual>();
}
