//! Headers, tokens, server names, providers, AUDIT and dry runs, and what an explanation says.

use ambit_api::{AuthorizationPolicy, Resource, load_text};
use ambit_policy::{
    Claims, Compiled, ConnectionFacts, Decision, FieldOutcome, Options, ProviderKind, RequestFacts, RuleOutcome, Sni,
    Stage, compile,
};

const CLIENT: &str = "spiffe://cluster.local/ns/a/sa/client";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: {name}, namespace: a }}\nspec: {spec}\n"
    )
}

fn policies(yaml: &str) -> Vec<AuthorizationPolicy> {
    let loaded = load_text("test.yaml", yaml).objects.into_iter();
    let policies = loaded.filter_map(|object| match object.resource {
        Resource::AuthorizationPolicy(policy) => Some(*policy),
        _ => None,
    });
    policies.collect()
}

fn compiled(yaml: &str, several_providers: bool) -> Compiled {
    let providers = [("ext".to_owned(), ProviderKind::Http), ("grpc".to_owned(), ProviderKind::Grpc)].into();
    let options = Options { providers, several_providers, ..Options::default() };
    let policies = policies(yaml);
    assert_eq!(policies.len(), yaml.matches("kind: AuthorizationPolicy").count(), "all policies load");
    compile(&policies, &options).expect("the policies compile")
}

fn facts() -> ConnectionFacts {
    ConnectionFacts::new([10, 244, 1, 5].into(), [10, 96, 0, 10].into(), 8080)
        .with_identity(Some(CLIENT.parse().expect("an identity")))
}

fn get(path: &str) -> RequestFacts<'_> {
    RequestFacts::new("GET", path, "web")
}

fn decide(yaml: &str, request: &RequestFacts<'_>) -> Decision {
    let residual = compiled(yaml, false).for_connection(&facts());
    residual.with_reason(residual.decide(request), Some(request))
}

fn claims(json: &str) -> Claims {
    serde_json::from_str(json).expect("claims")
}

#[test]
fn a_header_denies_by_any_line_or_all_as_one_and_allows_as_envoy_reads_it() {
    let when = |action: &str, values: &str| {
        policy(
            "p",
            &format!("{{ action: {action}, rules: [{{ when: [{{ key: 'request.headers[X-Team]', {values} }}] }}] }}"),
        )
    };
    let two = [("x-team", " a"), ("X-TEAM", "b\t")];
    for (action, values, allowed) in [
        ("ALLOW", "values: [a]", true),
        ("ALLOW", "values: ['a,b']", false),
        ("ALLOW", "notValues: ['a,b']", false),
        ("DENY", "values: ['a,b']", false),
        ("DENY", "values: [b]", false),
        ("DENY", "values: [c]", true),
        ("DENY", "notValues: [b]", true),
        ("DENY", "notValues: ['a,b']", false),
    ] {
        let decision = decide(&when(action, values), &get("/").with_headers(&two));
        assert_eq!(decision.is_allowed(), allowed, "{action} {values}: {}", decision.reason);
    }
    let secret = [("x-team", "hunter2")];
    let decision = decide(&when("ALLOW", "values: [hunter3]"), &get("/").with_headers(&secret));
    assert_eq!(&*decision.reason, "no ALLOW rule matches; nearest is a/p rule 0: header `X-Team` doesn't match");
}

#[test]
fn a_verified_token_is_looked_into() {
    let token = claims(
        r#"{"iss":"https://issuer/x","sub":"alice","aud":["web","api"],"azp":"cli","scope":"read write",
            "realm":{"roles":["admin"]},"level":3}"#,
    );
    let when =
        |key: &str, values: &str| policy("p", &format!("{{ rules: [{{ when: [{{ key: '{key}', {values} }}] }}] }}"));
    for (key, values, with, without) in [
        ("request.auth.principal", "values: ['https://issuer/x/alice']", true, false),
        ("request.auth.principal", "values: ['*']", true, false),
        ("request.auth.principal", "values: ['*alice']", true, false),
        ("request.auth.principal", "values: ['*/alice']", true, false),
        ("request.auth.principal", "values: ['https://issuer/x/*']", true, false),
        ("request.auth.principal", "values: ['https://issuer/*']", false, false),
        ("request.auth.principal", "notValues: ['*']", false, true),
        ("request.auth.audiences", "values: [api]", true, false),
        ("request.auth.presenter", "values: [cli]", true, false),
        ("request.auth.claims[scope]", "values: [write]", true, false),
        ("request.auth.claims[scope]", "values: ['read write']", false, false),
        ("request.auth.claims[realm][roles]", "values: ['adm*']", true, false),
        ("request.auth.claims[level]", "values: ['*']", false, false),
        ("request.auth.claims[none]", "notValues: ['*']", true, true),
    ] {
        let allowed = |claims| decide(&when(key, values), &get("/").with_claims(claims)).is_allowed();
        assert_eq!((allowed(Some(&token)), allowed(None)), (with, without), "{key} {values}");
    }
    let source = policy("p", "{ rules: [{ from: [{ source: { requestPrincipals: ['https://issuer/x/bob'] } }] }] }");
    let decision = decide(&source, &get("/").with_claims(Some(&token)));
    assert!(decision.reason.contains("token is `https://issuer/x/alice`"), "{}", decision.reason);
}

#[test]
fn a_server_name_that_nobody_looked_at_counts_as_whatever_denies() {
    let rules = |action: &str, values: &str| {
        let spec = format!("{{ action: {action}, rules: [{{ when: [{{ key: connection.sni, {values} }}] }}] }}");
        compiled(&policy("p", &spec), false)
    };
    let named = |name: &str| Sni::Name(name.into());
    for (action, values, sni, allowed) in [
        ("ALLOW", "values: [web]", named("WEB"), true),
        ("ALLOW", "values: ['*']", Sni::Absent, false),
        ("ALLOW", "notValues: [web]", Sni::Absent, true),
        ("ALLOW", "values: [web]", Sni::Unknown, false),
        ("ALLOW", "notValues: [web]", Sni::Unknown, false),
        ("DENY", "values: [web]", named("other"), true),
        ("DENY", "values: [web]", Sni::Unknown, false),
        ("DENY", "notValues: [web]", Sni::Unknown, false),
    ] {
        let residual = rules(action, values).for_connection(&facts().with_sni(sni.clone()));
        assert_eq!(residual.decide_connection().is_allowed(), allowed, "{action} {values} {sni:?}");
        // A request has none, whatever the connection says.
        let request = residual.decide(&get("/"));
        assert_eq!(request.is_allowed(), (action == "ALLOW") == values.starts_with("not"), "{action} {values}");
    }
}

#[test]
fn addresses_behind_trusted_proxies() {
    let remote = compiled(&policy("p", "{ rules: [{ from: [{ source: { remoteIpBlocks: [9.9.9.0/24] } }] }] }"), false);
    let allowed = |facts: &ConnectionFacts| remote.for_connection(facts).decide(&get("/")).is_allowed();
    assert!(allowed(&facts().with_remote_ip([9, 9, 9, 9].into())));
    assert!(!allowed(&facts()), "without one it is the client's own");
}

const EXT: &str =
    "{ action: CUSTOM, provider: { name: ext }, rules: [{ to: [{ operation: { paths: ['/ext/*'] } }] }] }";

#[test]
fn a_provider_is_asked_first_and_then_the_rest_is_judged() {
    let yaml =
        policy("c", EXT) + &policy("d", "{ action: DENY, rules: [{ to: [{ operation: { paths: [/ext/no] } }] }] }");
    assert!(decide(&yaml, &get("/other")).is_allowed());
    let asked = decide(&yaml, &get("/ext/x"));
    assert_eq!((asked.is_allowed(), asked.ask.as_deref()), (false, Some("ext")));
    assert_eq!(
        &*asked.reason,
        "rule 0 of a/c matches: path `/ext/x` matches `/ext/*`; provider `ext` has to allow it first"
    );
    assert_eq!(decide(&yaml, &get("/x/..%2fext/x")).ask.as_deref(), Some("ext"), "any reading is enough to ask");
    let approved = |path: &'static str| decide(&yaml, &get(path).with_approvals(&["ext"]));
    assert!(approved("/ext/x").is_allowed());
    let denied = approved("/ext/no");
    assert_eq!((denied.is_allowed(), denied.ask), (false, None), "its word isn't the last");
    let bytes = compiled(&policy("c", EXT), false).for_connection(&facts());
    let denied = bytes.with_reason(bytes.decide_connection_approved(&["ext"]), None);
    assert!(!denied.is_allowed() && denied.ask.is_none(), "there is nothing to ask it about");
    assert_eq!(
        &*denied.reason,
        "rule 0 of a/c matches; its HTTP conditions can't be judged on a connection and count as met; provider `ext` can \
         only be asked about HTTP requests, so nobody can allow it"
    );
    let grpc = compiled(&policy("c", &EXT.replace("ext }", "grpc }")), false).for_connection(&facts());
    assert_eq!(grpc.decide_connection().ask.as_deref(), Some("grpc"));
    assert!(grpc.decide_connection_approved(&["grpc"]).is_allowed());
}

#[test]
fn a_provider_that_cannot_be_asked_denies() {
    let unknown = decide(&policy("c", &EXT.replace("ext }", "nobody }")), &get("/ext/x").with_approvals(&["nobody"]));
    assert!(unknown.ask.is_none() && !unknown.is_allowed());
    assert!(unknown.reason.contains("`nobody` isn't configured (known are `ext`, `grpc`)"), "{}", unknown.reason);
    let token = "{ action: CUSTOM, provider: { name: ext }, rules: [{ when: [{ key: request.auth.presenter, values: [x] }] }] }";
    let token_seen = claims(r#"{"azp":"x"}"#);
    let blind = decide(&policy("c", token), &get("/").with_claims(Some(&token_seen)));
    assert!(blind.is_allowed(), "providers are asked before tokens are looked at: {}", blind.reason);

    let two = policy("c", EXT) + &policy("d", &EXT.replace("ext }", "grpc }").replace("/ext/*", "*x"));
    let request = get("/ext/x").with_approvals(&["ext"]);
    let denied = compiled(&two, false).for_connection(&facts()).decide(&request);
    assert!(denied.ask.is_none() && !denied.is_allowed() && denied.reason.contains("different providers"));
    let next = compiled(&two, true).for_connection(&facts()).decide(&request);
    assert_eq!(next.ask.as_deref(), Some("grpc"), "one after the other");
    let both = request.with_approvals(&["grpc", "ext"]);
    assert!(compiled(&two, true).for_connection(&facts()).decide(&both).is_allowed());
}

#[test]
fn audits_and_dry_runs_are_told_and_change_nothing() {
    let dry = |name: &str, spec: &str| {
        policy(name, spec).replace("namespace: a", "namespace: a, annotations: { istio.io/dry-run: 'true' }")
    };
    let yaml = policy("all", "{ rules: [{}] }")
        + &policy(
            "seen",
            "{ action: AUDIT, rules: [{ to: [{ operation: { paths: [/x] } }] }, { to: [{ operation: { methods: [GET] } }] }] }",
        )
        + &dry("trial", "{ action: DENY, rules: [{ to: [{ operation: { paths: [/x] } }] }] }");
    let residual = compiled(&yaml, false).for_connection(&facts());
    let told = |path: &str| residual.audits(Some(&get(path))).iter().map(|audit| audit.rule).collect::<Vec<_>>();
    assert_eq!((told("/x"), told("/y")), (vec![Some(0), Some(1)], vec![Some(1)]));
    assert!(residual.decide(&get("/x")).is_allowed() && residual.decide_connection().is_allowed());
    let trial = residual.dry_run(Some(&get("/x"))).expect("a dry run");
    assert_eq!((trial.is_allowed(), trial.policy.expect("the policy").to_string().as_str()), (false, "a/trial"));
    assert!(residual.dry_run(Some(&get("/y"))).expect("a dry run").is_allowed());
    assert!(compiled(&policy("all", "{}"), false).for_connection(&facts()).dry_run(None).is_none());
    let custom = decide(&dry("c", EXT), &get("/ext/x"));
    assert!(!custom.is_allowed() && custom.reason.contains("dry run"), "{}", custom.reason);
}

#[test]
fn an_explanation_shows_every_field_and_what_would_help() {
    let yaml = policy("far", "{ rules: [{ to: [{ operation: { paths: [/z], methods: [PUT] } }] }] }")
        + &policy(
            "near",
            "{ rules: [{ from: [{ source: { principals: ['cluster.local/ns/a/sa/client'] } }], \
             to: [{ operation: { methods: [POST], notPaths: [/admin] } }], \
             when: [{ key: 'request.headers[x-team]', values: [blue] }] }] }",
        );
    let headers = [("x-team", "blue")];
    let request = get("/v1?x").with_headers(&headers);
    let explained = compiled(&yaml, false).explain(&facts(), Some(&request));
    assert_eq!(explained.path.as_deref(), Some("/v1"));
    let rule = &explained.policies[1].rules[0];
    assert_eq!(
        (rule.outcome, rule.from[0].is_met, rule.to[0].is_met, rule.when[0].is_met),
        (RuleOutcome::Misses, true, false, true)
    );
    let methods = &rule.to[0].fields[0];
    assert_eq!(
        (&*methods.field, methods.seen.as_deref(), methods.outcome),
        ("methods", Some("GET"), FieldOutcome::Unmet)
    );
    assert_eq!(methods.expected, ["POST"]);
    let not_paths = &rule.to[0].fields[1];
    assert_eq!((&*not_paths.field, not_paths.is_negated, not_paths.outcome), ("notPaths", true, FieldOutcome::Met));
    assert_eq!(
        (&*rule.when[0].fields[0].field, rule.when[0].fields[0].seen.as_deref()),
        ("request.headers[x-team]", Some("blue"))
    );
    let nearest = explained.nearest.expect("a near miss");
    assert_eq!((nearest.policy.to_string().as_str(), nearest.fields.len()), ("a/near", 1));
    assert_eq!(explained.changes[0].text, "in rule 0 of a/near, add `GET` to `methods`");

    let l4 = compiled(&yaml, false).explain(&facts(), None);
    assert!(l4.policies.iter().all(|policy| policy.rules[0].outcome == RuleOutcome::Void));
    assert!(l4.changes[0].text.contains("waypoint"), "{}", l4.changes[0].text);

    let deny = policy("closed", "{ action: DENY, rules: [{ to: [{ operation: { paths: ['/admin*'] } }] }] }");
    let denied = compiled(&deny, false).explain(&facts(), Some(&get("/x/..%2fadmin")));
    assert_eq!(denied.path.as_deref(), Some("/admin"), "the reading that denies");
    assert_eq!(denied.changes[0].text, "change rule 0 of a/closed so that one of these no longer matches: `paths`");
    let json = serde_json::to_value(&denied).expect("data");
    assert_eq!(
        (&json["verdict"], &json["policy"], &json["policies"][0]["action"]),
        (&"deny".into(), &"a/closed".into(), &"DENY".into())
    );
    let at_l4 = compiled(&deny, false).explain(&facts(), None);
    assert_eq!(at_l4.policies[0].rules[0].to[0].fields[0].outcome, FieldOutcome::CountsAsMet);
}

#[test]
fn the_stages_of_a_decision_are_together_the_whole() {
    let yaml =
        policy("c", EXT) + &policy("d", "{ action: DENY, rules: [{ to: [{ operation: { paths: [/ext/no] } }] }] }");
    let stage = |path: &'static str, stage| decide(&yaml, &get(path).with_stage(stage));
    assert_eq!(stage("/ext/no", Stage::Custom).ask.as_deref(), Some("ext"));
    assert!(stage("/other", Stage::Custom).is_allowed());
    assert!(decide(&yaml, &get("/ext/no").with_stage(Stage::Custom).with_approvals(&["ext"])).is_allowed());
    assert!(stage("/ext/x", Stage::AfterCustom).is_allowed(), "no approval is looked for any more");
    let denied = stage("/ext/no", Stage::AfterCustom);
    assert!(!denied.is_allowed() && denied.reason.contains("a/d"), "{}", denied.reason);

    let of = |yaml: &str| compiled(yaml, false).for_connection(&facts());
    assert!(of(&yaml).has_custom() && !of(&yaml).observes());
    let audit = of(&policy("a", "{ action: AUDIT, rules: [{}] }"));
    assert!(!audit.has_custom() && audit.observes());
}
