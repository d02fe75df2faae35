//! The same meaning said slowly: an evaluator that reads policies as they are written, one field after the other.
//!
//! It shares no code with the engine, compiles nothing and gives no reasons. Tests hold the two equal. It expects
//! policies that [`crate::compile`] accepts; it panics on none, but what it says of others means nothing.

use std::{collections::BTreeSet, net::IpAddr};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, Condition, Operation, Rule, Source},
};

use crate::{ConnectionFacts, Options, PathNormalization, RequestFacts, Verdict};

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
    let enforced = |action| case.policies.iter().filter(move |p| p.spec.action == action && !is_dry_run(p));
    if enforced(Action::Allow).count() + enforced(Action::Deny).count() == 0 {
        return Verdict::Allow;
    }
    let paths: BTreeSet<Option<String>> = match &case.request {
        None => BTreeSet::from([None]),
        Some(request) => match readings(request.path, case.paths) {
            Some(readings) => readings.into_iter().map(Some).collect(),
            None => return Verdict::Deny,
        },
    };
    let allowed_under = |path: &Option<String>| {
        let matches = |policy: &AuthorizationPolicy| {
            let rules = policy.spec.rules.iter().flatten();
            rules.into_iter().any(|rule| Judge { case, policy, path: path.as_deref() }.rule(rule))
        };
        !enforced(Action::Deny).any(matches)
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
}

impl Judge<'_> {
    fn rule(&self, rule: &Rule) -> bool {
        let at_l4 = self.case.request.is_none();
        let needs_http = rule.to.iter().flatten().any(|to| {
            let o = &to.operation;
            let lists = [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths];
            lists.iter().any(|list| !list.is_empty())
        });
        if at_l4 && needs_http && self.policy.spec.action == Action::Allow {
            return false;
        }
        let from = rule.from.as_ref().is_none_or(|from| from.iter().any(|from| self.source(&from.source)));
        let to = rule.to.as_ref().is_none_or(|to| to.iter().any(|to| self.operation(&to.operation)));
        from && to && rule.when.iter().flatten().all(|when| self.condition(when))
    }

    fn source(&self, s: &Source) -> bool {
        self.principal(&s.principals, &s.not_principals)
            && self.namespace(&s.namespaces, &s.not_namespaces)
            && self.service_account(&s.service_accounts, &s.not_service_accounts)
            && self.trust_domain(&s.trust_domains, &s.not_trust_domains)
            && self.address(&s.ip_blocks, &s.not_ip_blocks, self.case.connection.source_ip)
    }

    fn operation(&self, o: &Operation) -> bool {
        let port = self.case.connection.destination_port;
        let connection = both(&o.ports, &o.not_ports, |value| value.parse() == Ok(port));
        let (Some(request), Some(path)) = (&self.case.request, self.path) else { return connection };
        let host = authority(request.path).unwrap_or(request.authority).to_ascii_lowercase();
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
        match c.key.as_str() {
            "source.principal" => self.principal(&c.values, &c.not_values),
            "source.namespace" => self.namespace(&c.values, &c.not_values),
            "source.serviceAccount" => self.service_account(&c.values, &c.not_values),
            "source.trustDomain" => self.trust_domain(&c.values, &c.not_values),
            "source.ip" => self.address(&c.values, &c.not_values, facts.source_ip),
            "destination.ip" => self.address(&c.values, &c.not_values, facts.destination_ip),
            "destination.port" => both(&c.values, &c.not_values, |v| v.parse() == Ok(facts.destination_port)),
            _ => false,
        }
    }

    fn principal(&self, values: &[String], not_values: &[String]) -> bool {
        let denies = self.policy.spec.action == Action::Deny;
        let Some(peer) = &self.case.connection.peer else {
            // No identity: no value matches, except that `*` counts as whatever denies.
            let star = |list: &[String]| list.iter().any(|value| value == "*");
            return (values.is_empty() || (denies && star(values))) && (denies || !star(not_values));
        };
        let name = peer.to_string().replacen("spiffe://", "", 1);
        let ours = |domain: &str| domain == "cluster.local" || self.is_ours(domain);
        both(values, not_values, |value| match value.split('/').collect::<Vec<_>>()[..] {
            [domain, ns, namespace, sa, account] if ours(domain) && !self.case.options.trust_domains.is_empty() => self
                .case
                .options
                .trust_domains
                .iter()
                .any(|domain| string(&[domain, ns, namespace, sa, account].join("/"), &name)),
            _ => string(value, &name),
        })
    }

    fn address(&self, values: &[String], not_values: &[String], ip: IpAddr) -> bool {
        let denies = self.policy.spec.action == Action::Deny;
        (values.is_empty() || values.iter().any(|value| in_block(value, ip, denies)))
            && !not_values.iter().any(|value| in_block(value, ip, !denies))
    }

    fn namespace(&self, values: &[String], not_values: &[String]) -> bool {
        both(values, not_values, |value| {
            self.case.connection.peer.as_ref().is_some_and(|peer| stars(value.as_bytes(), peer.namespace().as_bytes()))
        })
    }

    fn service_account(&self, values: &[String], not_values: &[String]) -> bool {
        both(values, not_values, |value| {
            let full =
                if value.contains('/') { value.to_owned() } else { format!("{}/{value}", self.policy.namespace) };
            let peer = self.case.connection.peer.as_ref();
            peer.is_some_and(|peer| full == format!("{}/{}", peer.namespace(), peer.service_account()))
        })
    }

    fn trust_domain(&self, values: &[String], not_values: &[String]) -> bool {
        both(values, not_values, |value| {
            let Some(peer) = &self.case.connection.peer else { return false };
            string(value, peer.trust_domain()) || (self.is_ours(value) && self.is_ours(peer.trust_domain()))
        })
    }

    fn is_ours(&self, domain: &str) -> bool {
        self.case.options.trust_domains.iter().any(|known| known == domain)
    }
}

/// A field and its `not` form: some value if there are any, and no refused one.
fn both(values: &[String], not_values: &[String], matches: impl Fn(&str) -> bool) -> bool {
    (values.is_empty() || values.iter().any(|value| matches(value))) && !not_values.iter().any(|value| matches(value))
}

fn string(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        true
    } else if let Some(end) = pattern.strip_prefix('*') {
        text.ends_with(end)
    } else if let Some(start) = pattern.strip_suffix('*') {
        text.starts_with(start)
    } else {
        pattern == text
    }
}

/// `*` for any text, anywhere.
fn stars(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| stars(rest, &text[at..])),
        [byte, rest @ ..] => text.first() == Some(byte) && stars(rest, &text[1..]),
    }
}

/// Whether an address is in a block, with IPv4-mapped IPv6 read as IPv4 and as written. Where the two differ, it counts
/// as whatever denies.
fn in_block(block: &str, ip: IpAddr, leans_in: bool) -> bool {
    let (net, bits) = block.split_once('/').map_or((block, None), |(net, bits)| (net, bits.parse::<u32>().ok()));
    let Ok(net) = net.parse::<IpAddr>() else { return false };
    let bits = bits.unwrap_or(if net.is_ipv4() { 32 } else { 128 });
    let written = same_start(net, ip, bits);
    let folded = match net {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && bits >= 96 => {
            same_start(net.to_canonical(), ip.to_canonical(), bits - 96)
        }
        _ => same_start(net, ip.to_canonical(), bits),
    };
    if leans_in { written || folded } else { written && folded }
}

fn same_start(net: IpAddr, ip: IpAddr, bits: u32) -> bool {
    let digits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => format!("{:032b}", u32::from(ip)),
        IpAddr::V6(ip) => format!("{:0128b}", u128::from(ip)),
    };
    net.is_ipv4() == ip.is_ipv4()
        && digits(net).chars().zip(digits(ip).chars()).take(bits as usize).all(|(a, b)| a == b)
}

/// Tries every way to split the path.
fn template(pattern: &str, path: &str) -> bool {
    let plain = |text: &str| {
        text.chars().all(|c| {
            c.is_ascii_alphanumeric()
                || ['-', '.', '_', '~', '%', '!', '$', '&', '*'].contains(&c)
                || ['\'', '(', ')', '+', ',', ';', ':', '@', '='].contains(&c)
        })
    };
    let operator = match (pattern.find("{*}"), pattern.find("{**}")) {
        (None, None) => return pattern == path,
        (Some(one), None) => (one, 3),
        (None, Some(rest)) => (rest, 4),
        (Some(one), Some(rest)) => {
            if one < rest {
                (one, 3)
            } else {
                (rest, 4)
            }
        }
    };
    let (at, length) = operator;
    let Some(path) = path.strip_prefix(&pattern[..at]) else { return false };
    let takes = |text: &str| {
        if length == 3 { !text.is_empty() && plain(text) } else { plain(&text.replace('/', "")) }
    };
    let splits = (0..=path.len()).filter(|&end| path.is_char_boundary(end));
    splits.into_iter().any(|end| takes(&path[..end]) && template(&pattern[at + length..], &path[end..]))
}

/// The authority of a target in absolute form.
fn authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (!scheme.starts_with('/')).then(|| rest.split(['/', '?', '\\']).next().unwrap_or(rest))
}

/// The paths that a target can be read as; nothing if it is refused.
pub(crate) fn readings(target: &str, how: PathNormalization) -> Option<BTreeSet<String>> {
    if target.len() > crate::limits::MAX_TARGET_BYTES || target.contains('#') {
        return None;
    }
    let mut origin = target.to_owned();
    if !target.starts_with('/') {
        let (scheme, rest) = target.split_once("://")?;
        if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return None;
        }
        let authority = authority(target)?;
        origin = rest[authority.len()..].to_owned();
        if authority.is_empty() || origin.starts_with('\\') {
            return None;
        }
        if !origin.starts_with('/') {
            origin = "/".to_owned();
        }
    }
    let raw = origin.split('?').next().unwrap_or_default().to_owned();
    if raw.contains("%00") {
        return None;
    }
    let path = unescape(&raw);
    let dots = |path: String| dots(&path);
    Some(BTreeSet::from_iter(match how {
        PathNormalization::None => vec![raw],
        PathNormalization::Base => vec![dots(path)],
        PathNormalization::MergeSlashes => vec![merged(dots(path))],
        PathNormalization::DecodeAndMergeSlashes => vec![merged(dots(slashes(path)))],
        PathNormalization::AllReadings => {
            let roots = [
                path.clone(),
                slashes(path.clone()),
                parameters(&path),
                slashes(parameters(&path)),
                parameters(&slashes(path)),
            ];
            roots.into_iter().flat_map(|p| [dots(p.clone()), merged(dots(p.clone())), dots(merged(p))]).collect()
        }
    }))
}

fn unescape(raw: &str) -> String {
    let mut bytes: Vec<u8> = raw.bytes().rev().collect();
    let mut out = String::new();
    while let Some(byte) = bytes.pop() {
        let hex: String = bytes.iter().rev().take(2).map(|&b| char::from(b)).collect();
        let escape =
            (byte == b'%' && hex.len() == 2 && !hex.contains('+')).then(|| u8::from_str_radix(&hex, 16).ok()).flatten();
        match (byte, escape) {
            (b'%', None) => out.push_str("%25"),
            (b'%', Some(inner)) if inner.is_ascii_alphanumeric() || [b'-', b'.', b'_', b'~'].contains(&inner) => {
                out.push(char::from(inner));
                bytes.truncate(bytes.len() - 2);
            }
            (b'\\', _) => out.push('/'),
            (b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f..=0xff, _) => {
                out.push_str(&format!("%{byte:02X}"));
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn slashes(path: String) -> String {
    ["%2f", "%2F", "%5c", "%5C"].iter().fold(path, |path, escape| path.replace(escape, "/"))
}

fn parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

fn merged(mut path: String) -> String {
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    path
}

fn dots(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let mut kept = Vec::new();
    for segment in &segments {
        match *segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    if matches!(segments.last(), Some(&("." | ".."))) {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}
