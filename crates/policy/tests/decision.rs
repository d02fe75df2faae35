//! What a decision carries: the verdict, the policy, the rule's index, the entries that matched, and for a default deny the
//! rule that came nearest with the fields that it failed on.

use ambit_api::{AuthorizationPolicy, Resource, load_text};
use ambit_policy::{Compiled, ConnectionFacts, Decision, Options, ProviderKind, RequestFacts, Verdict, compile};

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: {name}, namespace: a }}\nspec: {spec}\n"
    )
}

fn compiled(yaml: &str) -> Compiled {
    let loaded = load_text("test.yaml", yaml).objects.into_iter();
    let policies: Vec<AuthorizationPolicy> = loaded
        .filter_map(|object| match object.resource {
            Resource::AuthorizationPolicy(policy) => Some(*policy),
            _ => None,
        })
        .collect();
    assert_eq!(policies.len(), yaml.matches("kind: AuthorizationPolicy").count(), "all policies load");
    let options = Options { providers: [("ext".to_owned(), ProviderKind::Http)].into(), ..Options::default() };
    compile(&policies, &options).expect("the policies compile")
}

fn facts() -> ConnectionFacts {
    ConnectionFacts::new([10, 244, 1, 5].into(), [10, 96, 0, 10].into(), 8080)
        .with_identity(Some("spiffe://cluster.local/ns/a/sa/client".parse().expect("an identity")))
}

/// Verdict, policy, rule, and the matched entries of `from` and `to`.
type Carried = (Verdict, Option<String>, Option<u32>, Option<(Option<u32>, Option<u32>)>);

fn carried(decision: &Decision) -> Carried {
    let clause = decision.clause.map(|entries| (entries.from, entries.to));
    (decision.verdict, decision.policy.as_ref().map(ToString::to_string), decision.rule, clause)
}

/// By the policies `far`, which never matches, and `p` with these rules.
fn decide(action: &str, rules: &str, method: &str, path: &str) -> Carried {
    let far = policy("far", "{ action: DENY, rules: [{ to: [{ operation: { ports: ['1'] } }] }] }");
    let compiled = compiled(&(far + &policy("p", &format!("{{ action: {action}, rules: [{rules}] }}"))));
    carried(&compiled.for_connection(&facts()).decide(&RequestFacts::new(method, path, "web")))
}

const RULES: &str = "{ to: [{ operation: { paths: [/none] } }] }, \
    { from: [{ source: { namespaces: [b] } }, { source: { namespaces: [a] } }], \
      to: [{ operation: { methods: [PUT] } }, { operation: { methods: [POST] } }, { operation: { paths: [/x] } }] }, \
    { to: [{ operation: { paths: [/y] } }] }, \
    { from: [{ source: { serviceAccounts: [client] } }], when: [{ key: destination.port, values: ['9090'] }] }";

#[test]
fn the_rule_and_the_entries_that_matched() {
    for (action, verdict) in
        [("ALLOW", Verdict::Allow), ("DENY", Verdict::Deny), ("CUSTOM, provider: { name: ext }", Verdict::Deny)]
    {
        // CUSTOM knows no identities.
        let rules = match action {
            "ALLOW" | "DENY" => RULES.to_owned(),
            _ => RULES
                .replace("namespaces: [b]", "ipBlocks: [10.0.0.1]")
                .replace("namespaces: [a]", "ipBlocks: [10.244.0.0/16]")
                .replace("serviceAccounts: [client]", "ipBlocks: [10.244.1.5]"),
        };
        let by = |rule, from, to| (verdict, Some("a/p".to_owned()), Some(rule), Some((from, to)));
        assert_eq!(decide(action, &rules, "POST", "/z"), by(1, Some(1), Some(1)), "{action}");
        assert_eq!(decide(action, &rules, "GET", "/x"), by(1, Some(1), Some(2)), "{action}");
        assert_eq!(decide(action, &rules, "GET", "/y"), by(2, None, Some(0)), "{action}");
        let here = rules.replace("9090", "8080");
        assert_eq!(decide(action, &here, "GET", "/z"), by(3, Some(0), None), "{action}");
        assert_eq!(decide(action, "{}", "GET", "/z"), by(0, None, None), "{action}");
    }
}

#[test]
fn what_no_rule_decided_names_none() {
    assert_eq!(decide("DENY", RULES, "GET", "/z"), (Verdict::Allow, None, None, None), "no ALLOW policy");
    assert_eq!(decide("ALLOW", RULES, "GET", "/z"), (Verdict::Deny, None, None, None), "by default");
    let settled =
        Compiled::deny_all("the reason").for_connection(&facts()).decide(&RequestFacts::new("GET", "/", "web"));
    assert_eq!(carried(&settled), (Verdict::Deny, None, None, None));
}

#[test]
fn connections_are_decided_by_entries_too() {
    let rules = "{ to: [{ operation: { methods: [GET], ports: ['80'] } }, { operation: { methods: [GET], ports: ['8080'] } }] }";
    let compiled = compiled(&policy("p", &format!("{{ action: DENY, rules: [{rules}] }}")));
    let decision = compiled.for_connection(&facts()).decide_connection();
    assert_eq!(carried(&decision), (Verdict::Deny, Some("a/p".to_owned()), Some(0), Some((None, Some(1)))));
}

#[test]
fn a_default_deny_carries_the_rule_that_failed_on_fewest_fields_and_which() {
    let rules = "{ from: [{ source: { namespaces: [b] } }], to: [{ operation: { methods: [PUT], paths: [/v1] } }] }, \
        { from: [{ source: { namespaces: [b] } }, { source: { namespaces: [a], ipBlocks: [10.244.0.0/16] } }], \
          to: [{ operation: { methods: [PUT, POST], paths: [/z] } }], \
          when: [{ key: 'request.headers[x-team]', notValues: [blue] }, { key: destination.port, values: ['8080'] }] }, \
        { to: [{ operation: { methods: [PUT], hosts: [x], paths: [/z] } }] }";
    let yaml = policy("other", "{ rules: [{ to: [{ operation: { methods: [PUT], paths: [/a], hosts: [x] } }] }] }")
        + &policy("p", &format!("{{ rules: [{rules}] }}"));
    let compiled = compiled(&yaml);
    let request = RequestFacts::new("GET", "/z", "web");
    let explained = compiled.explain(&facts(), Some(&request));
    assert_eq!(carried(&explained.decision), (Verdict::Deny, None, None, None));
    let nearest = explained.nearest.expect("a near miss");
    assert_eq!((nearest.policy.to_string().as_str(), nearest.rule), ("a/p", 1));
    let fields: Vec<_> = nearest.fields.iter().map(|field| (field.field.as_str(), field.seen.as_deref())).collect();
    assert_eq!(fields, [("methods", Some("GET"))]);
    assert_eq!(nearest.fields[0].expected, ["PUT", "POST"]);
    let expected = "no ALLOW rule matches; nearest is a/p rule 1: method is `GET`, expected `PUT` or `POST`";
    assert_eq!(&*explained.decision.reason, expected);
    let residual = compiled.for_connection(&facts());
    let decision = residual.decide(&request);
    assert_eq!(decision.near_miss, None, "it costs time, so only what is recorded has it");
    let decision = residual.with_reason(decision, Some(&request));
    assert_eq!(&*decision.reason, expected);
    let near = decision.near_miss.expect("the same near miss");
    assert_eq!((near.policy.to_string().as_str(), near.rule, &*near.fields), ("a/p", 1, &["methods".to_owned()][..]));
    // Two fields of it fail, and one of another rule.
    let elsewhere = RequestFacts::new("PUT", "/a", "web");
    let nearest = compiled.explain(&facts(), Some(&elsewhere)).nearest.expect("a near miss");
    assert_eq!((nearest.policy.to_string().as_str(), nearest.rule, nearest.fields.len()), ("a/other", 0, 1));
    assert_eq!(nearest.fields[0].field, "hosts");
    let doubled = RequestFacts::new("GET", "//a", "x");
    let changes = compiled.explain(&facts(), Some(&doubled)).changes;
    assert!(changes.iter().any(|change| change.text.contains("reads in one way only: in `//a`")), "{changes:?}");
}
