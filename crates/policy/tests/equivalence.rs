//! The engine and the reference evaluator give the same verdict for any policies and requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ambit_api::{
    AuthorizationPolicy, SpiffeId,
    authorization_policy::{Action, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To},
};
use ambit_policy::{ConnectionFacts, Options, PathNormalization, RequestFacts, Verdict, compile, reference};
use proptest::{collection::vec, option, prelude::*, sample::select};

const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a*",
    "*b",
    "*",
    "/admin",
    "/admin/*",
    "/{*}",
    "/a/{*}",
    "/a/{**}",
    "/{**}/b",
    "/a/{*}/b",
    "//a",
    "/a%2Fb",
    "/{*}/{**}",
];
const PIECES: &[&str] = &[
    "/", "/", "a", "b", "admin", "..", ".", "%2e", "%2F", "%2f", "%5C", "%5c", "\\", ";", ";x", "%41", "%25", "%252F",
    "%", "%2", "é", "{", "|", "*", "[", "?q", "#", "%00", "~", " ",
];
const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/a/sa/x",
    "td/ns/a/sa/x",
    "old/ns/b/sa/y",
    "other/ns/a/sa/x",
    "*",
    "*/sa/x",
    "td/ns/a/*",
    "cluster.local/*",
    "*/ns/a/sa/x",
    "td/ns/a/sa/*",
];
const PEERS: &[&str] = &[
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://td/ns/a/sa/x",
    "spiffe://old/ns/b/sa/y",
    "spiffe://other/ns/a/sa/x",
    "spiffe://td/ns/ab/sa/y",
    "spiffe://other/ns/b/sa/z",
];
const BLOCKS: &[&str] = &[
    "10.1.0.0/16",
    "10.1.2.3",
    "0.0.0.0/0",
    "::/0",
    "fd00::/8",
    "::ffff:10.1.0.0/112",
    "::ffff:0:0/96",
    "::/80",
    "10.1.2.3/8",
];
const METHODS: &[&str] = &["GET", "POST", "P*", "*T", "*", "get"];
const HOSTS: &[&str] = &["web", "WEB", "web:80", "*.example.com", "web*", "*"];

fn values(from: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    // Most fields are left out, or rules would hardly ever match.
    prop_oneof![4 => Just(Vec::new()), 2 => vec(select(from).prop_map(str::to_owned), 1..3)]
}

fn source() -> impl Strategy<Value = Source> {
    let identity = prop_oneof![
        (values(PRINCIPALS), values(PRINCIPALS), values(&["a", "b", "a*", "*b", "*"]), values(&["a", "*", "b"]))
            .prop_map(|(principals, not_principals, namespaces, not_namespaces)| Source {
                principals,
                not_principals,
                namespaces,
                not_namespaces,
                ..Source::default()
            }),
        (values(&["x", "a/x", "b/y"]), values(&["y", "a/x"])).prop_map(|(service_accounts, not_service_accounts)| {
            Source { service_accounts, not_service_accounts, ..Source::default() }
        }),
    ];
    let domains = &["td", "old", "cluster.local", "oth*", "*d", "*"];
    (identity, values(domains), values(domains), values(BLOCKS), values(BLOCKS)).prop_map(
        |(identity, trust_domains, not_trust_domains, ip_blocks, not_ip_blocks)| {
            let source = Source { trust_domains, not_trust_domains, ip_blocks, not_ip_blocks, ..identity };
            if source.is_empty() { Source { not_ip_blocks: vec!["1.2.3.4".to_owned()], ..source } } else { source }
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let ports = &["80", "443", "080"];
    let lists = (values(HOSTS), values(HOSTS), values(ports), values(ports), values(METHODS), values(METHODS));
    (lists, values(PATHS), values(PATHS)).prop_map(
        |((hosts, not_hosts, ports, not_ports, methods, not_methods), paths, not_paths)| {
            let operation = Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths };
            if operation.is_empty() { Operation { not_ports: vec!["1".to_owned()], ..operation } } else { operation }
        },
    )
}

fn condition() -> impl Strategy<Value = Condition> {
    let keyed = |key: &'static str, from: &'static [&'static str]| {
        (values(from), values(from)).prop_map(move |(values, not_values)| {
            let not_values = if values.is_empty() && not_values.is_empty() { vec![first(from)] } else { not_values };
            Condition { key: key.to_owned(), values, not_values }
        })
    };
    prop_oneof![
        keyed("source.ip", BLOCKS),
        keyed("source.namespace", &["a", "*b", "*"]),
        keyed("source.principal", PRINCIPALS),
        keyed("source.serviceAccount", &["x", "b/y"]),
        keyed("source.trustDomain", &["td", "*", "oth*"]),
        keyed("destination.ip", BLOCKS),
        keyed("destination.port", &["80", "443"]),
    ]
}

fn first(from: &[&str]) -> String {
    from.first().map(|value| (*value).to_owned()).unwrap_or_default()
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        option::weighted(0.5, vec(source().prop_map(|source| From { source }), 1..3)),
        option::weighted(0.8, vec(operation().prop_map(|operation| To { operation }), 1..3)),
        option::weighted(0.2, vec(condition(), 0..2)),
    )
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![4 => Just(Action::Allow), 2 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let dry_run = prop_oneof![8 => Just(None), 1 => Just(Some("true")), 1 => Just(Some("F"))];
    (select(vec!["a", "b"]), action, dry_run, option::weighted(0.9, vec(rule(), 0..4))).prop_map(
        |(namespace, action, dry_run, rules)| AuthorizationPolicy {
            namespace: namespace.to_owned(),
            name: "p".to_owned(),
            annotations: dry_run.map(|value| ("istio.io/dry-run".to_owned(), value.to_owned())).into_iter().collect(),
            spec: AuthorizationPolicySpec { action, rules, ..AuthorizationPolicySpec::default() },
        },
    )
}

fn connection() -> impl Strategy<Value = ConnectionFacts> {
    let address = select(vec![
        IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)),
        IpAddr::V6(Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped()),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ]);
    let peer = select(PEERS).prop_map(|peer| peer.parse::<SpiffeId>().expect("an identity"));
    (option::weighted(0.8, peer), address.clone(), address, select(vec![80, 443])).prop_map(
        |(peer, source_ip, destination_ip, destination_port)| ConnectionFacts {
            peer,
            source_ip,
            destination_ip,
            destination_port,
        },
    )
}

fn target() -> impl Strategy<Value = String> {
    let free = vec(select(PIECES), 0..8).prop_map(|pieces| pieces.concat());
    let known = select(vec!["/", "/a", "/a/b", "/admin", "/a/b/b", "/admin/x"]).prop_map(str::to_owned);
    let prefix = select(vec!["/", "/", "/", "", "http://web/", "HTTPS://web:80", "ftp://web/", "http://"]);
    prop_oneof![2 => known, 3 => (prefix, free).prop_map(|(prefix, rest)| format!("{prefix}{rest}"))]
}

const MODES: &[PathNormalization] = &[
    PathNormalization::AllReadings,
    PathNormalization::AllReadings,
    PathNormalization::AllReadings,
    PathNormalization::None,
    PathNormalization::Base,
    PathNormalization::MergeSlashes,
    PathNormalization::DecodeAndMergeSlashes,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engine_and_reference_agree(
        policies in vec(policy(), 0..4),
        connections in vec(connection(), 2),
        requests in vec((select(vec!["GET", "POST", "PUT", "get"]), target(), select(vec!["web", "WEB:80", "x.Example.com", ""])), 3),
        paths in select(MODES),
    ) {
        let trust_domains = vec!["td".to_owned(), "old".to_owned()];
        let options = Options { trust_domains, root_namespace: "istio-system".to_owned() };
        let compiled = compile(&policies, &options).expect("generated policies compile").with_path_normalization(paths);
        for connection in &connections {
            let residual = compiled.for_connection(connection);
            let case = reference::Case { policies: &policies, options: &options, connection, request: None, paths };
            let ours = residual.decide_connection();
            prop_assert_eq!(ours.verdict, reference::verdict(&case), "at L4: {}", ours.reason);
            for (method, path, authority) in &requests {
                let request = RequestFacts { method, path, authority };
                let ours = residual.decide(&request);
                let case = reference::Case { request: Some(request), ..case };
                prop_assert_eq!(ours.verdict, reference::verdict(&case), "{}: {}", path, &ours.reason);
                prop_assert_eq!(ours.verdict, compiled.for_connection(connection).decide(&request).verdict);
                if paths == PathNormalization::Base && ours.verdict == Verdict::Deny {
                    let all = compiled.clone().with_path_normalization(PathNormalization::AllReadings);
                    let all = all.for_connection(connection).decide(&request);
                    prop_assert_eq!(all.verdict, Verdict::Deny, "more readings allow more: {}", all.reason);
                }
            }
        }
    }

    #[test]
    fn any_text_can_be_judged(method in ".{0,8}", path in ".{0,40}", authority in ".{0,20}", values in vec(".{1,12}", 1..4)) {
        let operation = Operation { paths: values.clone(), hosts: values.clone(), methods: values, ..Operation::default() };
        let rules = vec![Rule { to: Some(vec![To { operation }]), ..Rule::default() }];
        let policy = AuthorizationPolicy {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
            annotations: Default::default(),
            spec: AuthorizationPolicySpec { rules: Some(rules), ..AuthorizationPolicySpec::default() },
        };
        let options = Options { trust_domains: Vec::new(), root_namespace: String::new() };
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let facts = ConnectionFacts { peer: None, source_ip: address, destination_ip: address, destination_port: 1 };
        if let Ok(compiled) = compile(&[policy], &options) {
            let residual = compiled.for_connection(&facts);
            let request = RequestFacts { method: &method, path: &path, authority: &authority };
            prop_assert!(!residual.decide(&request).reason.is_empty());
            prop_assert!(!residual.decide_connection().is_allowed());
        }
    }
}
