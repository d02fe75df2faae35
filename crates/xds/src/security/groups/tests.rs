use ambit_api::authorization_policy::{AuthorizationPolicySpec, From, To};

use super::*;

fn policy(action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: "ns".into(),
        name: "p".into(),
        annotations: Default::default(),
        spec: AuthorizationPolicySpec { action, rules: Some(rules), ..AuthorizationPolicySpec::default() },
    }
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn from(sources: Vec<Source>) -> Option<Vec<From>> {
    Some(sources.into_iter().map(|source| From { source }).collect())
}

fn to(operations: Vec<Operation>) -> Option<Vec<To>> {
    Some(operations.into_iter().map(|operation| To { operation }).collect())
}

fn principals(values: &[&str]) -> Source {
    Source { principals: owned(values), ..Source::default() }
}

fn on_port(port: &str) -> Operation {
    Operation { ports: owned(&[port]), ..Operation::default() }
}

fn with_method(operation: Operation) -> Operation {
    Operation { methods: owned(&["GET"]), ..operation }
}

fn when(key: &str, values: &[&str]) -> Condition {
    Condition { key: key.into(), values: owned(values), not_values: Vec::new() }
}

/// The clauses of each group, each as the number of its matches.
fn shape(action: Action, rules: Vec<Rule>) -> Vec<Vec<usize>> {
    let groups = groups(&policy(action, rules)).expect("readable");
    groups.iter().map(|group| group.rules.iter().map(|rules| rules.matches.len()).collect()).collect()
}

#[test]
fn a_rule_is_a_group_and_its_parts_are_clauses() {
    let rule = Rule {
        from: from(vec![principals(&["a"]), principals(&["b"])]),
        to: to(vec![on_port("80")]),
        when: Some(vec![when("source.ip", &["10.0.0.0/8"]), when("destination.port", &["80", "81"])]),
    };
    assert_eq!(shape(Action::Allow, vec![rule, Rule::default()]), [vec![1, 2, 1, 1], vec![]]);
    assert!(shape(Action::Allow, Vec::new()).is_empty(), "nothing is allowed");
}

#[test]
fn what_connections_do_not_have_never_widens_a_policy() {
    let rule = |operations| vec![Rule { to: to(operations), from: from(vec![principals(&["a"])]), when: None }];
    for (what, action, rules, expected) in [
        ("ALLOW of a method: gone", Action::Allow, rule(vec![with_method(on_port("80"))]), vec![]),
        (
            "ALLOW of a method or a port: the port",
            Action::Allow,
            rule(vec![with_method(on_port("80")), on_port("81")]),
            vec![vec![1, 1]],
        ),
        (
            "DENY of a method on a port: the port",
            Action::Deny,
            rule(vec![with_method(on_port("80"))]),
            vec![vec![1, 1]],
        ),
        (
            "DENY of a method: everything from there",
            Action::Deny,
            rule(vec![with_method(Operation::default())]),
            vec![vec![1]],
        ),
        (
            "DENY of a method, or of a port: everything from there",
            Action::Deny,
            rule(vec![on_port("80"), with_method(Operation::default())]),
            vec![vec![1]],
        ),
    ] {
        assert_eq!(shape(action, rules), expected, "{what}");
    }
    let header = || {
        vec![Rule {
            when: Some(vec![when("request.headers[x]", &["1"]), when("destination.port", &["80"])]),
            ..Rule::default()
        }]
    };
    assert!(shape(Action::Allow, header()).is_empty());
    assert_eq!(shape(Action::Deny, header()), [vec![1]]);
    for source in [
        Source { request_principals: owned(&["i/s"]), ..Source::default() },
        Source { not_remote_ip_blocks: owned(&["10.0.0.1"]), ..Source::default() },
        Source { trust_domains: owned(&["td"]), ..Source::default() },
    ] {
        let rules = || vec![Rule { from: from(vec![source.clone()]), ..Rule::default() }];
        assert!(shape(Action::Allow, rules()).is_empty(), "{source:?}");
        assert_eq!(shape(Action::Deny, rules()), [Vec::<usize>::new()], "{source:?}");
    }
}

#[test]
fn every_field_is_written() {
    let source = Source {
        principals: owned(&["a", "b*", "*c", "*"]),
        not_principals: owned(&["d"]),
        namespaces: owned(&["n"]),
        not_namespaces: owned(&["m"]),
        service_accounts: owned(&["x", "other/y"]),
        not_service_accounts: owned(&["z"]),
        ip_blocks: owned(&["10.0.0.0/8"]),
        not_ip_blocks: owned(&["::1"]),
        ..Source::default()
    };
    let rules = vec![Rule { from: from(vec![source]), ..Rule::default() }];
    let groups = groups(&policy(Action::Allow, rules)).expect("readable");
    let fields = &groups[0].rules[0].matches[0];
    let kinds: Vec<_> = fields.principals.iter().filter_map(|pattern| pattern.match_type.clone()).collect();
    let expected = [
        MatchType::Exact("a".into()),
        MatchType::Prefix("b".into()),
        MatchType::Suffix("c".into()),
        MatchType::Presence(Empty {}),
    ];
    assert_eq!(kinds, expected);
    let lengths = [
        fields.not_principals.len(),
        fields.namespaces.len(),
        fields.not_namespaces.len(),
        fields.service_accounts.len(),
        fields.not_service_accounts.len(),
    ];
    assert_eq!(lengths, [1, 1, 1, 2, 1]);
    assert_eq!(
        (fields.service_accounts[0].namespace.as_str(), fields.service_accounts[1].namespace.as_str()),
        ("ns", "other")
    );
    assert_eq!((fields.source_ips[0].length, fields.not_source_ips[0].length), (8, 128));
}

#[test]
fn values_that_are_none_are_refused() {
    for (key, value) in [
        ("source.ip", "10.0.0.0/33"),
        ("destination.port", "65536"),
        ("source.principal", ""),
        ("source.serviceAccount", "a/b/c"),
    ] {
        let rules = vec![Rule { when: Some(vec![when(key, &[value])]), ..Rule::default() }];
        assert!(groups(&policy(Action::Deny, rules)).is_err(), "{key} {value}");
    }
    for rule in
        [Rule { from: from(vec![]), ..Rule::default() }, Rule { to: to(vec![Operation::default()]), ..Rule::default() }]
    {
        assert!(groups(&policy(Action::Deny, vec![rule])).is_err());
    }
    assert!(groups(&policy(Action::Custom, Vec::new())).is_err());
}

#[test]
fn what_is_written_is_read_back_as_the_same_conditions() {
    let rule = Rule {
        from: from(vec![principals(&["cluster.local/ns/a/sa/x", "*/sa/y"])]),
        to: to(vec![on_port("80")]),
        when: Some(vec![when("source.namespace", &["a*"])]),
    };
    let groups = groups(&policy(Action::Allow, vec![rule])).expect("readable");
    let message = super::super::Authorization { groups, ..Default::default() };
    let rules = message.policy().expect("readable").spec.rules.expect("rules");
    let expected = vec![
        when("destination.port", &["80"]),
        when("source.principal", &["cluster.local/ns/a/sa/x", "*/sa/y"]),
        when("source.namespace", &["a*"]),
    ];
    assert_eq!(rules, [Rule { when: Some(expected), ..Rule::default() }]);
}
