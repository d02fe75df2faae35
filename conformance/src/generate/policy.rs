//! Policies made from the facts of requests.

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{
        Action, AuthorizationPolicySpec, Condition, From, Operation, PolicyTargetReference, Provider, Rule, Source, To,
    },
};
use serde_json::Value;

use super::{pattern, words};
use crate::{
    case::{NAMESPACE, PolicySet, ROOT_NAMESPACE, Request, SERVICE, WAYPOINT},
    random::Random,
};

/// The values that were written, for requests to take up.
#[derive(Debug, Default)]
pub struct Written {
    pub values: Vec<(Kind, String)>,
}

/// What a value is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Port,
    ServerName,
    Host,
    Method,
    Path,
    Header(String),
    RequestPrincipal,
    Claim(Vec<String>),
}

const PROVIDERS: &[(&str, Option<bool>)] = &[("yes", Some(true)), ("no", Some(false)), ("missing", None)];

/// Adds policies to a set.
pub fn add(random: &mut Random, set: &mut PolicySet, bases: &[Request], written: &mut Written) {
    let has_custom = set.is_http && random.percent(20);
    for index in 0..random.between(1, 4) {
        let action = match random.below(20) {
            0..=9 => Action::Allow,
            10 => Action::Audit,
            11..=13 if has_custom => Action::Custom,
            _ => Action::Deny,
        };
        let mut maker = Maker { random, set, written, action, namespace: NAMESPACE };
        let policy = maker.policy(&format!("p{index}"), bases);
        if let Some(provider) = &policy.spec.provider {
            let known = PROVIDERS.iter().find(|(name, _)| *name == provider.name).and_then(|(_, allows)| *allows);
            if let Some(allows) = known {
                set.providers.insert(provider.name.clone(), allows);
            }
        }
        set.policies.push(policy);
    }
}

/// Makes one policy.
struct Maker<'a> {
    random: &'a mut Random,
    set: &'a PolicySet,
    written: &'a mut Written,
    action: Action,
    namespace: &'static str,
}

// === impl Kind ===

impl Kind {
    pub fn is_of_connection(&self) -> bool {
        match self {
            Self::Principal
            | Self::Namespace
            | Self::ServiceAccount
            | Self::TrustDomain
            | Self::SourceIp
            | Self::RemoteIp
            | Self::DestinationIp
            | Self::Port
            | Self::ServerName => true,
            Self::Host | Self::Method | Self::Path | Self::Header(_) | Self::RequestPrincipal | Self::Claim(_) => false,
        }
    }
}

// === impl Maker ===

impl Maker<'_> {
    fn policy(&mut self, name: &str, bases: &[Request]) -> AuthorizationPolicy {
        let target = match self.random.below(10) {
            0 => ("gateway.networking.k8s.io", "GatewayClass", "istio-waypoint"),
            1 | 2 => ("gateway.networking.k8s.io", "Gateway", WAYPOINT),
            _ => ("", "Service", SERVICE),
        };
        self.namespace = if target.1 == "GatewayClass" { ROOT_NAMESPACE } else { NAMESPACE };
        let mut policy = AuthorizationPolicy {
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
            annotations: [].into(),
            spec: AuthorizationPolicySpec {
                target_refs: vec![PolicyTargetReference {
                    group: target.0.to_owned(),
                    kind: target.1.to_owned(),
                    name: target.2.to_owned(),
                    namespace: String::new(),
                }],
                action: self.action,
                ..AuthorizationPolicySpec::default()
            },
        };
        if self.action == Action::Custom {
            policy.spec.provider = Some(Provider { name: self.random.pick(PROVIDERS).0.to_owned() });
        }
        if self.random.percent(10) {
            let value = self.random.word(&["true", "false", "1", "0", "T", "FALSE"]);
            policy.annotations.insert("istio.io/dry-run".to_owned(), value);
        }
        if self.action != Action::Allow || self.random.percent(97) {
            let rules = if self.random.percent(3) { 0 } else { self.random.between(1, 3) };
            policy.spec.rules = Some((0..rules).map(|_| self.rule(bases)).collect());
        }
        policy
    }

    fn rule(&mut self, bases: &[Request]) -> Rule {
        if self.random.percent(2) {
            return Rule::default();
        }
        let base = self.random.pick(bases).clone();
        let other = self.random.pick(bases).clone();
        let from = (0..[0, 1, 1, 1, 2][self.random.below(5)])
            .filter_map(|index| {
                let source = self.source(if index == 0 { &base } else { &other });
                (!source.is_empty()).then_some(From { source })
            })
            .collect::<Vec<_>>();
        let to = (0..[0, 1, 1, 1, 2][self.random.below(5)])
            .filter_map(|index| {
                let operation = self.operation(if index == 0 { &base } else { &other });
                (!operation.is_empty()).then_some(To { operation })
            })
            .collect::<Vec<_>>();
        let when = (0..[0, 0, 1, 1, 2][self.random.below(5)]).filter_map(|_| self.condition(&base)).collect::<Vec<_>>();
        Rule {
            from: (!from.is_empty()).then_some(from),
            to: (!to.is_empty()).then_some(to),
            when: (!when.is_empty()).then_some(when),
        }
    }

    fn source(&mut self, base: &Request) -> Source {
        let mut source = Source::default();
        let s = &mut source;
        for _ in 0..self.random.between(1, 2) {
            let not = self.random.percent(25);
            let field = if self.action == Action::Custom { self.random.between(5, 7) } else { self.random.below(9) };
            let (kind, list) = match field {
                0 | 1 => (Kind::Principal, if not { &mut s.not_principals } else { &mut s.principals }),
                2 => (Kind::Namespace, if not { &mut s.not_namespaces } else { &mut s.namespaces }),
                3 => (Kind::ServiceAccount, if not { &mut s.not_service_accounts } else { &mut s.service_accounts }),
                4 => (Kind::TrustDomain, if not { &mut s.not_trust_domains } else { &mut s.trust_domains }),
                5 | 6 => (Kind::SourceIp, if not { &mut s.not_ip_blocks } else { &mut s.ip_blocks }),
                7 => (Kind::RemoteIp, if not { &mut s.not_remote_ip_blocks } else { &mut s.remote_ip_blocks }),
                _ if self.may_be_of_http() => (
                    Kind::RequestPrincipal,
                    match not {
                        true => &mut s.not_request_principals,
                        false => &mut s.request_principals,
                    },
                ),
                _ => continue,
            };
            *list = self.values(&kind, base, not);
        }
        // They don't go together (`spec/authorization.md` 2.11 row 18).
        if !(s.service_accounts.is_empty() && s.not_service_accounts.is_empty()) {
            for list in [&mut s.principals, &mut s.not_principals, &mut s.namespaces, &mut s.not_namespaces] {
                list.clear();
            }
        }
        source
    }

    fn operation(&mut self, base: &Request) -> Operation {
        let mut operation = Operation::default();
        let o = &mut operation;
        for _ in 0..self.random.between(1, 3) {
            let not = self.random.percent(25);
            let is_http = self.may_be_of_http();
            let (kind, list) = match self.random.below(10) {
                0..=4 if is_http => (Kind::Path, if not { &mut o.not_paths } else { &mut o.paths }),
                5 | 6 if is_http => (Kind::Method, if not { &mut o.not_methods } else { &mut o.methods }),
                7 | 8 if is_http => (Kind::Host, if not { &mut o.not_hosts } else { &mut o.hosts }),
                _ => (Kind::Port, if not { &mut o.not_ports } else { &mut o.ports }),
            };
            *list = self.values(&kind, base, not);
        }
        operation
    }

    fn condition(&mut self, base: &Request) -> Option<Condition> {
        let is_http = self.may_be_of_http();
        let (key, kind) = match self.random.below(17) {
            0 | 1 if is_http => {
                let name = match self.random.below(12) {
                    0 => self.random.word(&[":method", ":path", ":authority", "host", "x-request-id"]),
                    _ => self.random.word(words::HEADERS),
                };
                // CUSTOM comes before a token is taken out of there, and the engine is asked once, after that.
                if self.action == Action::Custom && name == "authorization" {
                    return None;
                }
                (format!("request.headers[{name}]"), Kind::Header(name))
            }
            2 => ("source.ip".to_owned(), Kind::SourceIp),
            3 => ("remote.ip".to_owned(), Kind::RemoteIp),
            4 => ("destination.ip".to_owned(), Kind::DestinationIp),
            5 => ("destination.port".to_owned(), Kind::Port),
            6 => ("connection.sni".to_owned(), Kind::ServerName),
            // Those that follow are not for CUSTOM (`spec/authorization.md` 2.11 row 11).
            _ if self.action == Action::Custom => return None,
            7 => ("source.principal".to_owned(), Kind::Principal),
            8 => ("source.namespace".to_owned(), Kind::Namespace),
            9 => ("source.serviceAccount".to_owned(), Kind::ServiceAccount),
            10 => ("source.trustDomain".to_owned(), Kind::TrustDomain),
            11 if is_http => ("request.auth.principal".to_owned(), Kind::RequestPrincipal),
            12 if is_http => ("request.auth.audiences".to_owned(), Kind::Claim(vec!["aud".to_owned()])),
            13 if is_http => ("request.auth.presenter".to_owned(), Kind::Claim(vec!["azp".to_owned()])),
            _ if is_http => {
                let path: Vec<_> = self.random.pick(words::CLAIMS).iter().map(ToString::to_string).collect();
                (format!("request.auth.claims[{}]", path.join("][")), Kind::Claim(path))
            }
            _ => return None,
        };
        let mut condition = Condition { key, ..Condition::default() };
        let which = self.random.below(10);
        if which < 8 {
            condition.values = self.values(&kind, base, false);
        }
        if which >= 6 {
            condition.not_values = self.values(&kind, base, true);
        }
        Some(condition)
    }

    /// At L4 a field of HTTP is there only now and then.
    fn may_be_of_http(&mut self) -> bool {
        self.set.is_http || self.random.percent(12)
    }

    /// Values of which one mostly takes what the base has; of a `not` form mostly none does.
    fn values(&mut self, kind: &Kind, base: &Request, not: bool) -> Vec<String> {
        let mut values = Vec::new();
        let matches = self.random.percent(if not { 30 } else { 85 });
        for index in 0..[1, 1, 1, 2, 3][self.random.below(5)] {
            let value = if index == 0 && matches { self.taking(kind, base) } else { None };
            let value = value.unwrap_or_else(|| self.any(kind));
            if !(value.is_empty() || values.contains(&value)) {
                self.written.values.push((kind.clone(), value.clone()));
                values.push(value);
            }
        }
        while values.is_empty() {
            values.extend(Some(self.any(kind)).filter(|value| !value.is_empty()));
        }
        values
    }

    /// A value that mostly takes what the base has; nothing if it has nothing.
    fn taking(&mut self, kind: &Kind, base: &Request) -> Option<String> {
        let connection = &base.connection;
        let id = connection.principal.as_deref().unwrap_or("spiffe://cluster.local/ns/default/sa/web");
        let part = |index: usize| id.split('/').nth(index).unwrap_or("x").to_owned();
        let random = &mut *self.random;
        Some(match kind {
            Kind::Principal => pattern::string(random, id.strip_prefix("spiffe://")?),
            Kind::Namespace => pattern::string(random, &part(4)),
            Kind::ServiceAccount if part(4) == self.namespace && random.percent(50) => part(6),
            Kind::ServiceAccount => format!("{}/{}", part(4), part(6)),
            Kind::TrustDomain => pattern::string(random, &part(2)),
            Kind::SourceIp => pattern::block(random, connection.source_ip),
            Kind::RemoteIp => pattern::block(random, connection.remote_ip),
            Kind::DestinationIp => pattern::block(random, connection.destination_ip),
            Kind::Port => connection.destination_port.to_string(),
            Kind::ServerName => pattern::string(random, &connection.sni.as_deref()?.to_ascii_lowercase()),
            Kind::Host => pattern::string(random, &base.host),
            Kind::Method => pattern::string(random, &base.method),
            Kind::Path => pattern::path(random, base.target.split('?').next()?),
            Kind::Header(name) => {
                let (_, value) = base.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
                pattern::string(random, value)
            }
            Kind::RequestPrincipal => {
                let claims = base.claims.as_ref()?;
                let text = |name| claims.get(name).and_then(Value::as_str);
                pattern::string(random, &format!("{}/{}", text("iss")?, text("sub")?))
            }
            Kind::Claim(path) => {
                let mut value = base.claims.as_ref()?.get(&path[0])?;
                for name in &path[1..] {
                    value = value.get(name)?;
                }
                let value = value.as_array().map_or(Some(value), |list| list.first())?;
                pattern::string(random, value.as_str()?)
            }
        })
    }

    fn any(&mut self, kind: &Kind) -> String {
        let random = &mut *self.random;
        let all = match kind {
            Kind::Principal => {
                let domain = random.word(words::OTHER_TRUST_DOMAINS);
                let (namespace, account) = (random.word(words::NAMESPACES), random.word(words::ACCOUNTS));
                return match random.below(12) {
                    0 => "*".to_owned(),
                    1 => format!("*/sa/{account}"),
                    2 => format!("*/ns/{namespace}/sa/{account}"),
                    3 => format!("{domain}/*"),
                    4 => format!("{domain}/ns/{namespace}/*"),
                    5 => format!("*{}/ns/{namespace}/sa/{account}", &domain[domain.len() - 2..]),
                    _ => format!("{domain}/ns/{namespace}/sa/{account}"),
                };
            }
            Kind::ServiceAccount => {
                return format!("{}/{}", random.word(words::NAMESPACES), random.word(words::ACCOUNTS));
            }
            Kind::SourceIp => {
                return random.word(&["127.0.0.0/8", "127.0.0.1", "::1", "::/0", "0.0.0.0/0", "127.2.0.0/15"]);
            }
            Kind::RemoteIp | Kind::DestinationIp => {
                return random.word(&[
                    "10.0.0.0/8",
                    "10.96.0.0/12",
                    "10.244.1.5",
                    "fd00::/8",
                    "fd00::1",
                    "::/0",
                    "192.0.2.1",
                ]);
            }
            Kind::Port => return random.pick(words::PORTS).to_string(),
            Kind::RequestPrincipal => {
                let text = format!("{}/{}", random.word(words::ISSUERS), random.word(words::SUBJECTS));
                return match random.below(5) {
                    0 => "*".to_owned(),
                    1 => format!("*/{}", random.word(words::SUBJECTS)),
                    2 => format!("*{}", random.word(words::SUBJECTS)),
                    3 => format!("{}/*", random.word(words::ISSUERS)),
                    _ => text,
                };
            }
            Kind::Path => {
                let path = random.word(words::PATHS);
                return pattern::path(random, &path);
            }
            Kind::Namespace => words::NAMESPACES,
            Kind::TrustDomain => words::OTHER_TRUST_DOMAINS,
            Kind::ServerName => &["web.example.com", "*.example.com", "api.*", "*"],
            Kind::Host => words::HOSTS,
            Kind::Method => words::METHODS,
            Kind::Header(_) => words::HEADER_VALUES,
            Kind::Claim(_) => words::GROUPS,
        };
        let word = random.word(all);
        if random.percent(30) { pattern::string(random, &word) } else { word }
    }
}
