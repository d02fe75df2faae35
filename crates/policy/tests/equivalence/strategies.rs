//! Policies, connections and requests of every kind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, AuthorizationPolicySpec, Condition, From, Operation, Provider, Rule, Source, To},
};
use ambit_policy::{Claims, ConnectionFacts, HttpVersion, PathNormalization, Peer, RequestFacts, Sni};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::Value;

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
    "*d/ns/a/sa/x",
    "t*/ns/a/sa/x",
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
    "spiffe://td/ns/ns/sa/x",
    "spiffe://td/ns/a/sa/x/more",
    "spiffe://td/ns/a/pod/p/sa/x",
    "spiffe://td/ns/a/sa/",
    "spiffe://td/ns/a",
    "spiffe:///ns/a/sa/x",
    "spiffe://td/z/ns/b/sa/y/ns/a/sa/x/",
    "spiffe://td",
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
const TOKENS: &[&str] = &["*", "iss/x", "https://i/s/x", "iss/*", "*/x", "*x", "iss*", "*s/x", "iss/x*", "iss"];
const HEADERS: &[&str] = &["a", "b", "a,b", "a; b", "a*", "*b", "*", " a", "http"];
const LINES: &[&str] = &["", "a", "b", "a,b", "a; b", " a ", "ab", "http"];
const NAMES: &[&str] = &["x-team", "x-forwarded-for", "cookie", "accept", "x-request-id", "x-envoy-internal"];
const CLAIMS: &[&str] = &["a", "b", "a*", "*b", "*", "a b", "1"];
const SERVER_NAMES: &[&str] = &["web", "Web", "w*", "*b", "*"];
const NAMESPACES: &[&str] = &["a", "b", "a*", "*b", "*", "ns", "sa", "*a", "a*b"];
const HOSTS: &[&str] = &["web", "WEB", "web:80", "*.example.com", "web*", "*"];

fn values(from: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    // Most fields are left out, or rules would hardly ever match.
    prop_oneof![4 => Just(Vec::new()), 2 => vec(select(from).prop_map(str::to_owned), 1..3)]
}

fn source() -> impl Strategy<Value = Source> {
    let identity = prop_oneof![
        (values(PRINCIPALS), values(PRINCIPALS), values(NAMESPACES), values(NAMESPACES)).prop_map(
            |(principals, not_principals, namespaces, not_namespaces)| Source {
                principals,
                not_principals,
                namespaces,
                not_namespaces,
                ..Source::default()
            }
        ),
        (values(&["x", "a/x", "b/y", "sa/x"]), values(&["y", "a/x"])).prop_map(
            |(service_accounts, not_service_accounts)| Source {
                service_accounts,
                not_service_accounts,
                ..Source::default()
            }
        ),
    ];
    let domains = &["td", "old", "cluster.local", "oth*", "*d", "*"];
    let blocks = (values(BLOCKS), values(BLOCKS), values(BLOCKS), values(BLOCKS));
    (identity, values(domains), values(domains), values(TOKENS), values(TOKENS), blocks).prop_map(
        |(identity, trust_domains, not_trust_domains, request_principals, not_request_principals, blocks)| {
            let (ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks) = blocks;
            let source = Source {
                trust_domains,
                not_trust_domains,
                request_principals,
                not_request_principals,
                ip_blocks,
                not_ip_blocks,
                remote_ip_blocks,
                not_remote_ip_blocks,
                ..identity
            };
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
        keyed("remote.ip", BLOCKS),
        keyed("source.namespace", NAMESPACES),
        keyed("source.principal", PRINCIPALS),
        keyed("source.serviceAccount", &["x", "b/y"]),
        keyed("source.trustDomain", &["td", "*", "oth*"]),
        keyed("destination.ip", BLOCKS),
        keyed("destination.port", &["80", "443"]),
        keyed("connection.sni", SERVER_NAMES),
        keyed("request.auth.principal", TOKENS),
        keyed("request.auth.audiences", CLAIMS),
        keyed("request.auth.presenter", CLAIMS),
        keyed("request.auth.claims[groups]", CLAIMS),
        keyed("request.auth.claims[scope]", CLAIMS),
        keyed("request.auth.claims[o][scope]", CLAIMS),
        keyed("request.headers[host]", HOSTS),
        keyed("request.headers[:path]", PATHS),
        keyed("request.headers[:METHOD]", METHODS),
        keyed("request.headers[:scheme]", HEADERS),
        keyed("request.headers[x-forwarded-proto]", HEADERS),
        headers(),
        headers(),
    ]
}

fn headers() -> impl Strategy<Value = Condition> {
    (select(NAMES), values(HEADERS), vec(select(HEADERS).prop_map(str::to_owned), 1..3)).prop_map(
        |(name, values, not_values)| {
            let not_values = if values.is_empty() { not_values } else { Vec::new() };
            Condition { key: format!("request.headers[{name}]"), values, not_values }
        },
    )
}

fn first(from: &[&str]) -> String {
    from.first().map(|value| (*value).to_owned()).unwrap_or_default()
}

/// A policy whose rules have one condition each, so that it is found by that condition or not at all.
pub fn policy_of_conditions() -> impl Strategy<Value = AuthorizationPolicy> {
    let rule = condition().prop_map(|condition| {
        let Condition { key, mut values, not_values } = condition;
        values.extend(not_values);
        Rule { when: Some(vec![Condition { key, values, not_values: Vec::new() }]), ..Rule::default() }
    });
    (select(vec![Action::Allow, Action::Deny]), vec(rule, 1..4)).prop_map(|(action, rules)| AuthorizationPolicy {
        namespace: "a".to_owned(),
        name: "p".to_owned(),
        annotations: Default::default(),
        spec: AuthorizationPolicySpec { action, rules: Some(rules), ..AuthorizationPolicySpec::default() },
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        option::weighted(0.5, vec(source().prop_map(|source| From { source }), 1..3)),
        option::weighted(0.7, vec(operation().prop_map(|operation| To { operation }), 1..3)),
        option::weighted(0.5, vec(condition(), 0..3)),
    )
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

pub fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![
        5 => Just(Action::Allow),
        4 => Just(Action::Deny),
        1 => Just(Action::Audit),
        1 => Just(Action::Custom)
    ];
    let dry_run = prop_oneof![8 => Just(None), 1 => Just(Some("true")), 1 => Just(Some("F"))];
    let provider = select(vec!["http", "http", "grpc", "unknown"]);
    (select(vec!["a", "b"]), action, provider, dry_run, option::weighted(0.9, vec(rule(), 0..4))).prop_map(
        |(namespace, action, provider, dry_run, rules)| AuthorizationPolicy {
            namespace: namespace.to_owned(),
            name: "p".to_owned(),
            annotations: dry_run.map(|value| ("istio.io/dry-run".to_owned(), value.to_owned())).into_iter().collect(),
            spec: AuthorizationPolicySpec {
                action,
                rules,
                provider: (action == Action::Custom).then(|| Provider { name: provider.to_owned() }),
                ..AuthorizationPolicySpec::default()
            },
        },
    )
}

pub fn connection() -> impl Strategy<Value = ConnectionFacts> {
    let address = select(vec![
        IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)),
        IpAddr::V6(Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped()),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ]);
    let peer = select(PEERS).prop_map(|peer| Peer::new(peer).expect("a SPIFFE id"));
    let server_name = select(vec!["", "web", "WEB", "x"]).prop_map(|name| Sni::Name(name.into()));
    let sni = prop_oneof![1 => Just(Sni::Unknown), 1 => Just(Sni::Absent), 2 => server_name];
    let addresses = (address.clone(), option::of(address.clone()), address);
    (option::weighted(0.8, peer), addresses, select(vec![80, 443]), sni).prop_map(
        |(peer, (source_ip, remote_ip, destination_ip), destination_port, sni)| ConnectionFacts {
            peer,
            source_ip,
            remote_ip,
            destination_ip,
            destination_port,
            sni,
        },
    )
}

/// A request that owns its parts.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: &'static str,
    pub target: String,
    pub authority: &'static str,
    pub version: HttpVersion,
    pub headers: Vec<(&'static str, &'static str)>,
    pub claims: Option<Claims>,
    pub approved_by: Vec<&'static str>,
}

impl Sent {
    pub fn facts(&self) -> RequestFacts<'_> {
        RequestFacts::new(self.method, &self.target, self.authority)
            .with_version(self.version)
            .with_headers(&self.headers)
            .with_claims(self.claims.as_ref())
            .with_approvals(&self.approved_by)
    }
}

pub fn request() -> impl Strategy<Value = Sent> {
    let method = select(vec!["GET", "POST", "PUT", "get"]);
    let authority = select(vec!["web", "WEB:80", "x.Example.com", ""]);
    let version = select(vec![HttpVersion::Http1, HttpVersion::Http2]);
    let headers = vec((select(NAMES), select(LINES)), 0..4);
    let approved_by = select(vec![vec![], vec!["http"], vec!["grpc", "http"]]);
    (method, target(), authority, version, headers, option::of(claims()), approved_by).prop_map(
        |(method, target, authority, version, headers, claims, approved_by)| Sent {
            method,
            target,
            authority,
            version,
            headers,
            claims,
            approved_by,
        },
    )
}

fn claims() -> impl Strategy<Value = Claims> {
    let text = select(vec!["iss", "https://i/s", "x", "xx", "", "a", "b", "a b", "ab"]).prop_map(Value::from);
    let value = prop_oneof![
        4 => text.clone(),
        2 => vec(text.clone(), 0..3).prop_map(Value::from),
        1 => Just(Value::from(1)),
        1 => Just(Value::Null),
        1 => text.prop_map(|text| Value::Object([("scope".to_owned(), text)].into_iter().collect())),
    ];
    let name = select(vec!["iss", "sub", "iss", "sub", "aud", "azp", "groups", "scope", "o"]);
    vec((name.prop_map(str::to_owned), value), 0..7).prop_map(|claims| claims.into_iter().collect())
}

pub fn target() -> impl Strategy<Value = String> {
    let free = vec(select(PIECES), 0..8).prop_map(|pieces| pieces.concat());
    let known = select(vec!["/", "/a", "/a/b", "/admin", "/a/b/b", "/admin/x"]).prop_map(str::to_owned);
    let prefix = select(vec!["/", "/", "/", "", "http://web/", "HTTPS://web:80", "ftp://web/", "http://"]);
    prop_oneof![2 => known, 3 => (prefix, free).prop_map(|(prefix, rest)| format!("{prefix}{rest}"))]
}

pub const MODES: &[PathNormalization] = &[
    PathNormalization::AllReadings,
    PathNormalization::AllReadings,
    PathNormalization::AllReadings,
    PathNormalization::None,
    PathNormalization::Base,
    PathNormalization::MergeSlashes,
    PathNormalization::DecodeAndMergeSlashes,
];
