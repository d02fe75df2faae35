//! Any text as a value of any field and as a SPIFFE id: parsing never panics, what parses means what the reference says,
//! and identities survive printing.
#![no_main]

use ambit_api::{
    AuthorizationPolicy, SpiffeId,
    authorization_policy::{Action, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To},
};
use ambit_fuzz::{Request, Scene, connection, list, options, text};
use ambit_policy::{PathNormalization, Peer};
use arbitrary::{Result, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    if let Ok(text) = std::str::from_utf8(data) {
        identity(text);
        identity(&format!("spiffe://{text}"));
    }
    match scene(&mut Unstructured::new(data)) {
        Ok(scene) => {
            scene.check();
            Corpus::Keep
        }
        Err(_) => Corpus::Reject,
    }
});

fn identity(text: &str) {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert_eq!(SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account()).as_ref(), Ok(&id));
        assert_eq!(Peer::new(text).and_then(|peer| peer.id().cloned()), Some(id));
    }
}

/// One policy with one field, free in all its values, and requests with texts that are derived from those.
fn scene(u: &mut Unstructured<'_>) -> Result<Scene> {
    let values = [vec![free(u)?], list(u, 2, free)?].concat();
    let action = *u.choose(&[Action::Allow, Action::Deny])?;
    let rule = rule(u, values.clone())?;
    let spec = AuthorizationPolicySpec { action, rules: Some(vec![rule]), ..AuthorizationPolicySpec::default() };
    let policy =
        AuthorizationPolicy { namespace: "a".to_owned(), name: "p".to_owned(), annotations: Default::default(), spec };
    let requests = list(u, 3, |u| {
        let request = Request::new(u)?;
        let near = near(u, &values)?;
        Ok(match u.int_in_range(0..=3)? {
            0 => request.with_path(near),
            1 => request.with_method(near),
            2 => request.with_authority(near),
            _ => request.with_header("x-team", near),
        })
    })?;
    let peer = Peer::new(&format!("spiffe://{}", near(u, &values)?));
    let connections = [connection(u)?, ambit_policy::ConnectionFacts { peer, ..connection(u)? }];
    let modes = [PathNormalization::AllReadings, PathNormalization::None, PathNormalization::DecodeAndMergeSlashes];
    Ok(Scene { policies: vec![policy], options: options(), paths: *u.choose(&modes)?, connections, requests })
}

/// A value, out of pieces that mean something somewhere.
fn free(u: &mut Unstructured<'_>) -> Result<String> {
    const PIECES: &[&str] = &[
        "*",
        "{*}",
        "{**}",
        "/",
        "/",
        "a",
        "b",
        "ns",
        "sa",
        "td",
        "td/ns/a/sa/x",
        "10.1.2.3",
        "::",
        "ffff:",
        "/8",
        "/0",
        "/33",
        ".",
        ":",
        "-",
        "80",
        "0",
        "65536",
        "%2F",
        "%41",
        "{",
        "}",
        "[",
        "é",
        ";",
        " ",
        "spiffe://",
        "GET",
    ];
    if u.ratio(1, 4)? { text(u) } else { Ok(list(u, 6, |u| u.choose(PIECES).copied())?.concat()) }
}

/// A value as it is, or with its wildcards filled in.
fn near(u: &mut Unstructured<'_>, values: &[String]) -> Result<String> {
    let value = u.choose(values)?;
    let filling = *u.choose(&["", "a", "a/b", "/", "x*"])?;
    Ok(match u.int_in_range(0..=2)? {
        0 => value.clone(),
        1 => value.replace("{**}", filling).replace("{*}", "a").replace('*', filling),
        _ => format!("{filling}{value}"),
    })
}

fn rule(u: &mut Unstructured<'_>, values: Vec<String>) -> Result<Rule> {
    const KEYS: &[&str] = &[
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.headers[x-team]",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[iss]",
        "request.auth.claims[a][b]",
    ];
    let mut rule = Rule::default();
    let (mut source, mut operation) = (Source::default(), Operation::default());
    match u.int_in_range(0..=23)? {
        0 => source.principals = values,
        1 => source.not_principals = values,
        2 => source.request_principals = values,
        3 => source.not_request_principals = values,
        4 => source.namespaces = values,
        5 => source.not_namespaces = values,
        6 => source.service_accounts = values,
        7 => source.not_service_accounts = values,
        8 => source.trust_domains = values,
        9 => source.not_trust_domains = values,
        10 => source.ip_blocks = values,
        11 => source.not_ip_blocks = values,
        12 => source.remote_ip_blocks = values,
        13 => source.not_remote_ip_blocks = values,
        14 => operation.hosts = values,
        15 => operation.not_hosts = values,
        16 => operation.ports = values,
        17 => operation.methods = values,
        18 => operation.not_methods = values,
        19 | 20 => operation.paths = values,
        21 => operation.not_paths = values,
        _ => {
            let key = if u.ratio(1, 6)? { text(u)? } else { (*u.choose(KEYS)?).to_owned() };
            let (values, not_values) = if u.arbitrary()? { (values, Vec::new()) } else { (Vec::new(), values) };
            rule.when = Some(vec![Condition { key, values, not_values }]);
        }
    }
    rule.from = (!source.is_empty()).then(|| vec![From { source }]);
    rule.to = (!operation.is_empty()).then(|| vec![To { operation }]);
    Ok(rule)
}
