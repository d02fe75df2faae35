//! The same meaning said slowly: an evaluator that reads policies as they are written, one field after the other.
//!
//! It shares no code with the engine (only the list of headers that Envoy joins), compiles nothing and gives no reasons.
//! Tests hold the two equal. It expects policies that [`crate::compile`] accepts; it panics on none, but what it says of
//! others means nothing.

mod header;
mod matching;
mod paths;

use std::{collections::BTreeSet, net::IpAddr};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, Condition, Operation, Rule, Source},
};

use self::matching::{both, in_block, loose_account, loose_namespace, stars, string, template};
pub(crate) use self::paths::readings;
use crate::{ConnectionFacts, Options, PathNormalization, ProviderKind, RequestFacts, Sni, Stricter, Verdict};

/// Everything a verdict may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The policies that apply.
    pub policies: &'a [AuthorizationPolicy],
    /// The mesh.
    pub options: &'a Options,
    /// The connection.
    pub connection: &'a ConnectionFacts,
    /// The request; nothing at L4.
    pub request: Option<RequestFacts<'a>>,
    /// How paths are read.
    pub paths: PathNormalization,
}

/// The verdict.
#[must_use]
pub fn verdict(case: &Case<'_>) -> Verdict {
    verdict_without(case, &[])
}

/// The verdict as it would be without some of what makes Ambit stricter than Istio; without all of it, Istio's own.
#[must_use]
pub fn verdict_without(case: &Case<'_>, left_out: &[Stricter]) -> Verdict {
    // A provider can't be asked for a dry run; what it would be asked about is denied.
    let enforced = |action| {
        let counts =
            move |p: &&AuthorizationPolicy| p.spec.action == action && (action == Action::Custom || !is_dry_run(p));
        case.policies.iter().filter(counts)
    };
    if [Action::Allow, Action::Deny, Action::Custom].into_iter().all(|action| enforced(action).count() == 0) {
        return Verdict::Allow;
    }
    let paths: BTreeSet<Option<String>> = match &case.request {
        None => BTreeSet::from([None]),
        Some(request) => {
            let all_readings = case.paths == PathNormalization::AllReadings;
            let relaxed = all_readings && left_out.contains(&Stricter::AllReadings);
            match readings(request.path, if relaxed { PathNormalization::Base } else { case.paths }) {
                Some(readings) => readings.into_iter().map(Some).collect(),
                None => return Verdict::Deny,
            }
        }
    };
    let allowed_under = |path: &Option<String>| {
        let matches = |policy: &AuthorizationPolicy| Judge { case, policy, path: path.as_deref(), left_out }.matches();
        let approved =
            |policy: &AuthorizationPolicy| Judge { case, policy, path: path.as_deref(), left_out }.is_approved();
        enforced(Action::Custom).all(|policy| approved(policy) || !matches(policy))
            && !enforced(Action::Deny).any(matches)
            && (enforced(Action::Allow).count() == 0 || enforced(Action::Allow).any(matches))
    };
    if paths.iter().all(allowed_under) { Verdict::Allow } else { Verdict::Deny }
}

fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    let value = policy.annotations.get("istio.io/dry-run").map_or("", String::as_str);
    ["1", "t", "T", "true", "TRUE", "True"].contains(&value)
}

/// One policy against one reading of one request.
struct Judge<'a> {
    case: &'a Case<'a>,
    policy: &'a AuthorizationPolicy,
    path: Option<&'a str>,
    left_out: &'a [Stricter],
}

impl Judge<'_> {
    fn denies(&self) -> bool {
        self.policy.spec.action != Action::Allow
    }

    fn is(&self, stricter: Stricter) -> bool {
        !self.left_out.contains(&stricter)
    }

    /// Whether the policy's provider has allowed this, or isn't to be asked.
    fn is_approved(&self) -> bool {
        let name_of = |policy: &AuthorizationPolicy| policy.spec.provider.clone().unwrap_or_default().name;
        let custom = self.case.policies.iter().filter(|p| p.spec.action == Action::Custom && !is_dry_run(p));
        let several = custom.map(name_of).collect::<BTreeSet<_>>().len() > 1;
        if is_dry_run(self.policy) || (several && !self.case.options.several_providers) {
            return false;
        }
        let name = &*name_of(self.policy);
        match (self.case.options.providers.get(name), &self.case.request) {
            (None, _) => false,
            (Some(_), Some(request)) => request.approved_by.contains(&name),
            (Some(ProviderKind::Http), None) => !self.is(Stricter::HttpProvider),
            (Some(ProviderKind::Grpc), None) => false,
        }
    }

    fn matches(&self) -> bool {
        self.policy.spec.rules.iter().flatten().any(|rule| self.rule(rule))
    }

    fn rule(&self, rule: &Rule) -> bool {
        if self.case.request.is_none() && self.policy.spec.action == Action::Allow && self.is_void(rule) {
            return false;
        }
        let from = rule.from.as_ref().is_none_or(|from| from.iter().any(|from| self.source(&from.source)));
        let to = rule.to.as_ref().is_none_or(|to| to.iter().any(|to| self.operation(&to.operation)));
        from && to && rule.when.iter().flatten().all(|when| self.condition(when))
    }

    /// Whether a rule has anything that a connection alone leaves open.
    fn is_void(&self, rule: &Rule) -> bool {
        let operations = rule.to.iter().flatten().any(|to| {
            let o = &to.operation;
            let lists = [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths];
            lists.iter().any(|list| !list.is_empty())
        });
        let sources =
            rule.from.iter().flatten().any(|from| {
                !from.source.request_principals.is_empty() || !from.source.not_request_principals.is_empty()
            });
        let conditions = rule.when.iter().flatten().any(|when| {
            when.key.starts_with("request.") || (when.key == "connection.sni" && self.server_name().is_none())
        });
        operations || sources || conditions
    }

    fn source(&self, s: &Source) -> bool {
        let facts = self.case.connection;
        self.principal(&s.principals, &s.not_principals)
            && self.request_principal(&s.request_principals, &s.not_request_principals)
            && self.namespace(&s.namespaces, &s.not_namespaces)
            && self.service_account(&s.service_accounts, &s.not_service_accounts)
            && self.trust_domain(&s.trust_domains, &s.not_trust_domains)
            && self.address(&s.ip_blocks, &s.not_ip_blocks, facts.source_ip)
            && self.address(&s.remote_ip_blocks, &s.not_remote_ip_blocks, facts.remote_ip.unwrap_or(facts.source_ip))
    }

    fn operation(&self, o: &Operation) -> bool {
        let port = self.case.connection.destination_port;
        let connection = both(&o.ports, &o.not_ports, |value| value.parse() == Ok(port));
        let (Some(request), Some(path)) = (&self.case.request, self.path) else { return connection };
        let host = self.host(request).to_ascii_lowercase();
        connection
            && both(&o.hosts, &o.not_hosts, |value| string(&value.to_ascii_lowercase(), &host))
            && both(&o.methods, &o.not_methods, |value| string(value, request.method))
            && both(&o.paths, &o.not_paths, |value| {
                if value.contains("{*}") || value.contains("{**}") {
                    template(value, path)
                } else {
                    string(value, path)
                }
            })
    }

    fn condition(&self, c: &Condition) -> bool {
        let facts = self.case.connection;
        let (yes, no) = (&c.values, &c.not_values);
        match c.key.as_str() {
            "source.principal" => self.principal(yes, no),
            "source.namespace" => self.namespace(yes, no),
            "source.serviceAccount" => self.service_account(yes, no),
            "source.trustDomain" => self.trust_domain(yes, no),
            "source.ip" => self.address(yes, no, facts.source_ip),
            "remote.ip" => self.address(yes, no, facts.remote_ip.unwrap_or(facts.source_ip)),
            "destination.ip" => self.address(yes, no, facts.destination_ip),
            "destination.port" => both(yes, no, |v| v.parse() == Ok(facts.destination_port)),
            "connection.sni" => match (&self.case.request, self.server_name()) {
                (Some(_), _) => yes.is_empty(),
                // What is open counts as met, except for a rule that allows, which is void.
                (None, None) => true,
                (None, Some(name)) => both(yes, no, |value| !name.is_empty() && string(value, &name)),
            },
            "request.auth.principal" => self.request_principal(yes, no),
            "request.auth.audiences" => self.claim("[aud]", yes, no),
            "request.auth.presenter" => self.claim("[azp]", yes, no),
            key => match (key.strip_prefix("request.auth.claims"), key.strip_prefix("request.headers[")) {
                (Some(claim), _) => self.claim(claim, yes, no),
                (_, Some(header)) => self.header(header.trim_end_matches(']'), yes, no),
                _ => false,
            },
        }
    }

    /// Empty if there is none, nothing if that is unknown.
    fn server_name(&self) -> Option<String> {
        match &self.case.connection.sni {
            Sni::Unknown if self.is(Stricter::UnknownServerName) => None,
            Sni::Unknown | Sni::Absent => Some(String::new()),
            Sni::Name(name) => Some(name.to_lowercase()),
        }
    }

    fn host<'r>(&self, request: &RequestFacts<'r>) -> &'r str {
        paths::authority(request.path).unwrap_or(request.authority)
    }

    fn principal(&self, values: &[String], not_values: &[String]) -> bool {
        let Some(peer) = &self.case.connection.peer else {
            // No identity: no value matches, except that `*` counts as whatever denies.
            let star = |list: &[String]| list.iter().any(|value| value == "*");
            let (in_values, in_not_values) = match self.is(Stricter::NoIdentity) {
                true => (self.denies() && star(values), !self.denies() && star(not_values)),
                false => (star(values), star(not_values)),
            };
            return (values.is_empty() || in_values) && !in_not_values;
        };
        let name = peer.principal();
        let domains = &self.case.options.trust_domains;
        // A star at an end of the trust domain can mean one of ours.
        let meant = |written: &str, domain: &str| {
            let ends = |suffix: &str| domain.ends_with(suffix);
            written == domain
                || written.strip_prefix('*').is_some_and(ends)
                || written.strip_suffix('*').is_some_and(|prefix| domain.starts_with(prefix))
        };
        let ours = |written: &str| written == "cluster.local" || domains.iter().any(|domain| meant(written, domain));
        both(values, not_values, |value| match value.split('/').collect::<Vec<_>>()[..] {
            [written, ns, namespace, sa, account] if ours(written) && !domains.is_empty() => {
                domains.iter().any(|domain| match written.strip_prefix('*') {
                    Some(suffix) if domain.ends_with(suffix) => string(value, name),
                    _ => string(&[domain, ns, namespace, sa, account].join("/"), name),
                })
            }
            _ => string(value, name),
        })
    }

    /// The `not` form of what denies is the plain form of what allows: each leans to where it denies.
    fn leaning(&self, values: &[String], not_values: &[String], matches: impl Fn(&str, bool) -> bool) -> bool {
        let denies = self.denies();
        (values.is_empty() || values.iter().any(|value| matches(value, denies)))
            && !not_values.iter().any(|value| matches(value, !denies))
    }

    fn address(&self, values: &[String], not_values: &[String], ip: IpAddr) -> bool {
        self.leaning(values, not_values, |value, leans_in| match self.is(Stricter::MappedAddress) {
            true => in_block(value, ip, leans_in),
            false => matching::in_block_as_written(value, ip),
        })
    }

    fn namespace(&self, values: &[String], not_values: &[String]) -> bool {
        self.leaning(values, not_values, |value, leans_in| {
            let Some(peer) = &self.case.connection.peer else { return false };
            let exactly = peer.id().is_some_and(|id| stars(value.as_bytes(), id.namespace().as_bytes()));
            let loosely = leans_in || !self.is(Stricter::OddSpiffeId);
            exactly || (loosely && loose_namespace(value, peer.principal()))
        })
    }

    fn service_account(&self, values: &[String], not_values: &[String]) -> bool {
        self.leaning(values, not_values, |value, leans_in| {
            let (namespace, name) = value.split_once('/').unwrap_or((&self.policy.namespace, value));
            let Some(peer) = &self.case.connection.peer else { return false };
            let exactly = peer.id().is_some_and(|id| (namespace, name) == (id.namespace(), id.service_account()));
            let loosely = leans_in || !self.is(Stricter::OddSpiffeId);
            exactly || (loosely && loose_account(namespace, name, peer.principal()))
        })
    }

    fn trust_domain(&self, values: &[String], not_values: &[String]) -> bool {
        both(values, not_values, |value| {
            let Some(peer) = &self.case.connection.peer else { return false };
            match peer.principal().split_once('/') {
                Some((domain, _)) => string(value, domain) || (self.is_ours(value) && self.is_ours(domain)),
                None => value == "*",
            }
        })
    }

    fn is_ours(&self, domain: &str) -> bool {
        self.case.options.trust_domains.iter().any(|known| known == domain)
    }

    fn request_principal(&self, values: &[String], not_values: &[String]) -> bool {
        if self.case.request.is_none() {
            return true;
        }
        let text = |name: &str| self.token(&[name]).and_then(|claim| claim.as_str());
        let (issuer, subject) = (text("iss"), text("sub"));
        both(values, not_values, |value| {
            let (Some(issuer), Some(subject)) = (issuer, subject) else { return false };
            let some = |text: &str| !text.is_empty();
            match value.rfind('/').map(|at| (&value[..at], &value[at + 1..])) {
                None if value == "*" => some(issuer) && some(subject),
                None if value.starts_with('*') => some(issuer) && subject.ends_with(&value[1..]),
                None if value.ends_with('*') => issuer.starts_with(value.trim_end_matches('*')) && some(subject),
                None => issuer == value && subject.is_empty(),
                Some(("*", end)) => some(issuer) && subject == end,
                Some((start, end)) if start.starts_with('*') => issuer.ends_with(&start[1..]) && subject == end,
                Some((start, "*")) => issuer == start && some(subject),
                Some((start, end)) if end.ends_with('*') => {
                    issuer == start && subject.starts_with(&end[..end.len() - 1])
                }
                Some((start, end)) => issuer == start && subject == end,
            }
        })
    }

    /// A claim of the token. What asks a provider runs before the token is looked at.
    fn token(&self, names: &[&str]) -> Option<&serde_json::Value> {
        if self.policy.spec.action == Action::Custom {
            return None;
        }
        let (first, rest) = names.split_first()?;
        let value = self.case.request.as_ref()?.claims?.get(*first)?;
        rest.iter().try_fold(value, |value, name| value.as_object()?.get(*name))
    }

    fn claim(&self, brackets: &str, values: &[String], not_values: &[String]) -> bool {
        if self.case.request.is_none() {
            return true;
        }
        let inner = brackets.trim_start_matches('[').trim_end_matches(']');
        let texts: Vec<&str> = match self.token(&inner.split("][").collect::<Vec<_>>()) {
            Some(serde_json::Value::String(text)) if ["scope", "permission"].contains(&inner) => {
                text.split(' ').collect()
            }
            Some(serde_json::Value::String(text)) => vec![text],
            Some(serde_json::Value::Array(list)) => list.iter().filter_map(|entry| entry.as_str()).collect(),
            _ => Vec::new(),
        };
        both(values, not_values, |value| texts.iter().any(|text| !text.is_empty() && string(value, text)))
    }

    fn header(&self, name: &str, values: &[String], not_values: &[String]) -> bool {
        let (Some(request), Some(path)) = (&self.case.request, self.path) else { return true };
        let name = name.to_ascii_lowercase();
        let host = self.host(request);
        self.leaning(values, not_values, |value, leans_in| {
            let leans_in = leans_in && self.is(Stricter::HeaderLines);
            header::matches(&name, value, request, path, host, leans_in)
        })
    }
}
