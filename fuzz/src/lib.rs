//! What the fuzz targets share: policies, connections and requests from random bytes, and what must hold for them.
//!
//! Values come mostly from small pools that collide on purpose, or rules would hardly ever match.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, net::IpAddr};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, AuthorizationPolicySpec, Condition, From, Operation, Provider, Rule, Source, To},
};
use ambit_policy::{
    Claims, ConnectionFacts, HttpVersion, Options, PathNormalization, Peer, ProviderKind, RequestFacts, Sni, Verdict,
    compile, reference,
};
use arbitrary::{Result, Unstructured};

mod pools;
pub mod wire;

/// Most policies, rules, entries and values at each level.
const MAX_POLICIES: usize = 4;
const MAX_RULES: usize = 3;
const MAX_ENTRIES: usize = 2;
const MAX_VALUES: usize = 3;
const MAX_REQUESTS: usize = 4;
const MAX_FREE_BYTES: usize = 48;

/// A request that owns its facts.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    authority: String,
    version: HttpVersion,
    headers: Vec<(String, Vec<u8>)>,
    claims: Option<Claims>,
    approved_by: Vec<&'static str>,
}

/// Policies and what is asked of them.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The policies that apply.
    pub policies: Vec<AuthorizationPolicy>,
    /// The mesh.
    pub options: Options,
    /// How paths are read.
    pub paths: PathNormalization,
    /// Two connections.
    pub connections: [ConnectionFacts; 2],
    /// Requests that come on either.
    pub requests: Vec<Request>,
}

/// A mesh with an alias and providers of both kinds.
#[must_use]
pub fn options() -> Options {
    let provider = |name: &str, kind| (name.to_owned(), kind);
    Options {
        trust_domains: vec!["td".to_owned(), "old".to_owned()],
        root_namespace: "istio-system".to_owned(),
        providers: BTreeMap::from([provider("opa", ProviderKind::Http), provider("grpc", ProviderKind::Grpc)]),
        ..Options::default()
    }
}

// === impl Scene ===

impl Scene {
    /// Reads a scene out of random bytes.
    ///
    /// # Errors
    /// When the bytes don't suffice.
    pub fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(Self {
            paths: *u.choose(pools::MODES)?,
            connections: [connection(u)?, connection(u)?],
            policies: list(u, MAX_POLICIES, policy)?,
            requests: list(u, MAX_REQUESTS, Request::new)?,
            options: Options {
                trust_domains: u.choose(pools::MESHES)?.iter().map(|&domain| domain.to_owned()).collect(),
                several_providers: u.arbitrary()?,
                ..options()
            },
        })
    }

    /// Engine and reference agree on each connection and request; a residual that is used again says the same as a new
    /// one; and the all-readings rule allows nothing that one reading denies. Policies that don't compile are skipped.
    ///
    /// # Panics
    /// When one of these doesn't hold.
    pub fn check(&self) {
        let Self { policies, options, paths, connections, requests } = self;
        let Ok(compiled) = compile(policies, options) else { return };
        let compiled = compiled.with_path_normalization(*paths);
        for connection in connections {
            let case = reference::Case { policies, options, connection, request: None, paths: *paths };
            let residual = compiled.for_connection(connection);
            let ours = residual.decide_connection();
            assert_eq!(ours.verdict, reference::verdict(&case), "at L4: {self:#?}");
            let fixed = match paths {
                PathNormalization::AllReadings => pools::FIXED_READINGS,
                _ => &[],
            };
            let fixed: Vec<_> = fixed
                .iter()
                .map(|mode| (mode, compiled.clone().with_path_normalization(*mode).for_connection(connection)))
                .collect();
            for request in requests {
                let facts = request.facts();
                let (ours, whole) = (residual.decide(&facts), compiled.for_connection(connection).decide(&facts));
                assert_eq!(ours, whole, "a residual used again: {request:?} of {self:#?}");
                let case = reference::Case { request: Some(facts), ..case };
                assert_eq!(ours.verdict, reference::verdict(&case), "{request:?} of {self:#?}");
                for (mode, one) in &fixed {
                    let denies = ours.verdict == Verdict::Allow && !one.decide(&facts).is_allowed();
                    assert!(!denies, "{mode:?} denies {request:?} of {self:#?}");
                }
            }
        }
    }
}

// === impl Request ===

impl Request {
    /// Reads a request out of random bytes.
    ///
    /// # Errors
    /// When the bytes don't suffice.
    pub fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(Self {
            method: value(u, pools::METHODS_SENT)?,
            path: if u.ratio(1, 3)? { value(u, pools::PATHS_SENT)? } else { target(u)? },
            authority: value(u, pools::AUTHORITIES)?,
            version: *u.choose(&[HttpVersion::Http1, HttpVersion::Http2])?,
            headers: if u.ratio(1, 2)? { list(u, 4, header)? } else { Vec::new() },
            claims: if u.ratio(1, 2)? { Some(claims(u)?) } else { None },
            approved_by: list(u, 2, |u| u.choose(&["opa", "grpc", "unknown"]).copied())?,
        })
    }

    /// The same with this target.
    #[must_use]
    pub fn with_path(self, path: String) -> Self {
        Self { path, ..self }
    }

    /// The same with this method.
    #[must_use]
    pub fn with_method(self, method: String) -> Self {
        Self { method, ..self }
    }

    /// The same for this host.
    #[must_use]
    pub fn with_authority(self, authority: String) -> Self {
        Self { authority, ..self }
    }

    /// The same with one more header line.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: String) -> Self {
        self.headers.push((name.to_owned(), value.into_bytes()));
        self
    }

    /// As the engine takes it.
    #[must_use]
    pub fn facts(&self) -> RequestFacts<'_> {
        RequestFacts::new(&self.method, &self.path, &self.authority)
            .with_version(self.version)
            .with_headers(&self.headers)
            .with_claims(self.claims.as_ref())
            .with_approvals(&self.approved_by)
    }
}

fn header(u: &mut Unstructured<'_>) -> Result<(String, Vec<u8>)> {
    let name = (*u.choose(pools::HEADER_NAMES)?).to_owned();
    let value = if u.ratio(1, 16)? { u.arbitrary()? } else { value(u, pools::HEADER_VALUES)?.into_bytes() };
    Ok((name, value))
}

fn claims(u: &mut Unstructured<'_>) -> Result<Claims> {
    let claims = list(u, 5, |u| Ok(((*u.choose(pools::CLAIM_NAMES)?).to_owned(), claim(u, 2)?)))?;
    Ok(claims.into_iter().collect())
}

/// Any JSON, though mostly what claims look like.
fn claim(u: &mut Unstructured<'_>, depth: usize) -> Result<serde_json::Value> {
    Ok(match u.int_in_range(0..=9)? {
        0 => u.arbitrary::<Option<bool>>()?.into(),
        1 => u.arbitrary::<i64>()?.into(),
        2 | 3 if depth > 0 => list(u, 3, |u| claim(u, depth - 1))?.into(),
        4 | 5 if depth > 0 => claims(u)?.into(),
        6 => list(u, 3, |u| value(u, pools::CLAIM_VALUES))?.join(" ").into(),
        _ => value(u, pools::CLAIM_VALUES)?.into(),
    })
}

/// A request target out of pieces that proxies and applications read in different ways.
fn target(u: &mut Unstructured<'_>) -> Result<String> {
    let start = *u.choose(&["/", "/", "/", "/", "", "http://web/", "HTTPS://web:80", "ftp://web/"])?;
    Ok(start.to_owned() + &list(u, 8, |u| value(u, pools::PIECES))?.concat())
}

/// A connection.
///
/// # Errors
/// When the bytes don't suffice.
pub fn connection(u: &mut Unstructured<'_>) -> Result<ConnectionFacts> {
    let facts = ConnectionFacts::new(address(u)?, address(u)?, *u.choose(&[80, 443, 0])?);
    let sni = match u.int_in_range(0..=3)? {
        0 => Sni::Unknown,
        1 => Sni::Absent,
        _ => Sni::Name(value(u, pools::SERVER_NAMES)?.into()),
    };
    Ok(ConnectionFacts {
        peer: if u.ratio(1, 6)? { None } else { Peer::new(&value(u, pools::PEERS)?) },
        remote_ip: if u.ratio(1, 3)? { Some(address(u)?) } else { None },
        sni,
        ..facts
    })
}

fn address(u: &mut Unstructured<'_>) -> Result<IpAddr> {
    if u.ratio(1, 8)? {
        return Ok(if u.arbitrary()? { IpAddr::V4(u.arbitrary()?) } else { IpAddr::V6(u.arbitrary()?) });
    }
    u.choose(pools::ADDRESSES)?.parse().map_err(|_| arbitrary::Error::IncorrectFormat)
}

fn policy(u: &mut Unstructured<'_>) -> Result<AuthorizationPolicy> {
    let actions =
        [Action::Allow, Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit, Action::Custom];
    let action = *u.choose(&actions)?;
    let dry_run = if u.ratio(1, 8)? { Some(u.choose(&["true", "F", "1", "false"])?) } else { None };
    let provider = match action {
        Action::Custom => Some(Provider { name: (*u.choose(&["opa", "grpc", "unknown"])?).to_owned() }),
        _ => None,
    };
    let rules = if u.ratio(1, 10)? { None } else { Some(list(u, MAX_RULES, rule)?) };
    Ok(AuthorizationPolicy {
        namespace: (*u.choose(&["a", "b"])?).to_owned(),
        name: (*u.choose(&["p", "q", "r"])?).to_owned(),
        annotations: dry_run.map(|&word| ("istio.io/dry-run".to_owned(), word.to_owned())).into_iter().collect(),
        spec: AuthorizationPolicySpec { action, provider, rules, ..AuthorizationPolicySpec::default() },
    })
}

fn rule(u: &mut Unstructured<'_>) -> Result<Rule> {
    let from = |u: &mut Unstructured<'_>| Ok(From { source: source(u)? });
    let to = |u: &mut Unstructured<'_>| Ok(To { operation: operation(u)? });
    Ok(Rule {
        from: if u.ratio(1, 2)? { Some(some(u, MAX_ENTRIES, from)?) } else { None },
        to: if u.ratio(2, 3)? { Some(some(u, MAX_ENTRIES, to)?) } else { None },
        when: if u.ratio(1, 3)? { Some(some(u, MAX_ENTRIES, condition)?) } else { None },
    })
}

/// An entry of `from` with one to three fields, accounts not beside names that exclude them.
fn source(u: &mut Unstructured<'_>) -> Result<Source> {
    let mut source = Source::default();
    for _ in 0..u.int_in_range(1..=3)? {
        let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
        let names = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
        let named = names.iter().any(|values| !values.is_empty());
        let (field, pool) = match u.int_in_range(0..=13)? {
            0 if !accounts => (&mut source.principals, pools::PRINCIPALS),
            1 if !accounts => (&mut source.not_principals, pools::PRINCIPALS),
            2 if !accounts => (&mut source.namespaces, pools::NAMESPACES),
            3 if !accounts => (&mut source.not_namespaces, pools::NAMESPACES),
            4 if !named => (&mut source.service_accounts, pools::ACCOUNTS),
            5 if !named => (&mut source.not_service_accounts, pools::ACCOUNTS),
            6 => (&mut source.trust_domains, pools::TRUST_DOMAINS),
            7 => (&mut source.not_trust_domains, pools::TRUST_DOMAINS),
            8 => (&mut source.remote_ip_blocks, pools::BLOCKS),
            9 => (&mut source.not_remote_ip_blocks, pools::BLOCKS),
            10 => (&mut source.request_principals, pools::REQUEST_PRINCIPALS),
            11 => (&mut source.not_request_principals, pools::REQUEST_PRINCIPALS),
            12 => (&mut source.ip_blocks, pools::BLOCKS),
            _ => (&mut source.not_ip_blocks, pools::BLOCKS),
        };
        *field = values(u, pool)?;
    }
    Ok(source)
}

fn operation(u: &mut Unstructured<'_>) -> Result<Operation> {
    let mut operation = Operation::default();
    for _ in 0..u.int_in_range(1..=3)? {
        let (field, pool) = match u.int_in_range(0..=7)? {
            0 => (&mut operation.hosts, pools::HOSTS),
            1 => (&mut operation.not_hosts, pools::HOSTS),
            2 => (&mut operation.ports, pools::PORTS),
            3 => (&mut operation.not_ports, pools::PORTS),
            4 => (&mut operation.methods, pools::METHODS),
            5 => (&mut operation.not_methods, pools::METHODS),
            6 => (&mut operation.paths, pools::PATHS),
            _ => (&mut operation.not_paths, pools::PATHS),
        };
        *field = values(u, pool)?;
    }
    Ok(operation)
}

fn condition(u: &mut Unstructured<'_>) -> Result<Condition> {
    let &(key, pool) = u.choose(pools::CONDITIONS)?;
    let form = u.int_in_range(0..=2)?;
    let of = |u: &mut Unstructured<'_>, wanted: bool| if wanted { values(u, pool) } else { Ok(Vec::new()) };
    Ok(Condition { key: key.to_owned(), values: of(u, form != 1)?, not_values: of(u, form != 0)? })
}

/// At least one value of a field.
fn values(u: &mut Unstructured<'_>, pool: &[&str]) -> Result<Vec<String>> {
    some(u, MAX_VALUES, |u| value(u, pool))
}

/// Mostly one of the pool, now and then any text.
fn value(u: &mut Unstructured<'_>, pool: &[&str]) -> Result<String> {
    if u.ratio(1, 100)? { text(u) } else { Ok((*u.choose(pool)?).to_owned()) }
}

/// Any short text.
///
/// # Errors
/// When the bytes don't suffice.
pub fn text(u: &mut Unstructured<'_>) -> Result<String> {
    let length = u.int_in_range(0..=MAX_FREE_BYTES)?.min(u.len());
    Ok(String::from_utf8_lossy(u.bytes(length)?).into_owned())
}

/// Up to so many.
///
/// # Errors
/// When the bytes don't suffice.
pub fn list<T>(
    u: &mut Unstructured<'_>,
    most: usize,
    mut entry: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=most)?).map(|_| entry(u)).collect()
}

fn some<T>(
    u: &mut Unstructured<'_>,
    most: usize,
    mut entry: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(1..=most)?).map(|_| entry(u)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random and are the same each time (the generator of `std`'s old friend, xorshift).
    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    /// A fuzz run that denies everything by default would find little.
    #[test]
    fn scenes_say_something() {
        const SCENES: u64 = 2000;
        let (mut compile_fine, mut asked, mut allowed, mut by_rule) = (0, 0u64, 0u64, 0u64);
        for seed in 1..=SCENES {
            let bytes = bytes(seed, 2048);
            let scene = Scene::new(&mut Unstructured::new(&bytes)).expect("enough bytes");
            scene.check();
            let Ok(compiled) = compile(&scene.policies, &scene.options) else { continue };
            compile_fine += 1;
            let compiled = compiled.with_path_normalization(scene.paths);
            for request in &scene.requests {
                let decision = compiled.for_connection(&scene.connections[0]).decide(&request.facts());
                asked += 1;
                allowed += u64::from(decision.is_allowed());
                by_rule += u64::from(decision.rule.is_some());
            }
        }
        assert!(compile_fine > SCENES * 2 / 3, "{compile_fine} of {SCENES} compile");
        assert!(allowed > asked / 10 && allowed < asked * 9 / 10, "{allowed} of {asked} are allowed");
        assert!(by_rule > asked / 10, "{by_rule} of {asked} are decided by a rule");
    }
}
