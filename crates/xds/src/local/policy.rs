//! Policies.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use super::{Problem, value::ip_bytes};
use crate::security::{
    self as wire, Address, Authorization, Empty, Group, Match, Rules, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};

/// A policy as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    name: String,
    namespace: String,
    scope: Scope,
    action: Action,
    dry_run: bool,
    /// Rules (one is enough) of clauses (all must match) of matches (one is enough).
    rules: Vec<Vec<Vec<MatchFields>>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Scope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct MatchFields {
    namespaces: Vec<Pattern>,
    not_namespaces: Vec<Pattern>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    principals: Vec<Pattern>,
    not_principals: Vec<Pattern>,
    source_ips: Vec<String>,
    not_source_ips: Vec<String>,
    destination_ips: Vec<String>,
    not_destination_ips: Vec<String>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    namespace: String,
    service_account: String,
}

/// `!Exact x`, `!Prefix x`, `!Suffix x` or `!Presence []`; as JSON has no tags, also `{"Exact": "x"}`, which is how dumps
/// are written.
#[derive(Clone, Debug)]
struct Pattern(MatchType);

// === impl Policy ===

impl Policy {
    /// Its resource name and message.
    pub(super) fn convert(&self) -> Result<(String, Authorization), Problem> {
        for (field, text) in [("name", &self.name), ("namespace", &self.namespace)] {
            if text.is_empty() {
                return Err(Problem::new(field, "it is empty", "every policy has one"));
            }
        }
        let mut groups = Vec::new();
        for (rule_index, rule) in self.rules.iter().enumerate() {
            let mut rules = Vec::new();
            for (clause_index, clause) in rule.iter().enumerate() {
                let field = |index: usize| format!("rules[{rule_index}][{clause_index}][{index}]");
                let matches = clause.iter().enumerate();
                let matches =
                    matches.map(|(index, fields)| fields.convert().map_err(|problem| problem.under(&field(index))));
                rules.push(Rules { matches: matches.collect::<Result<_, _>>()? });
            }
            groups.push(Group { rules });
        }
        let message = Authorization {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            scope: match self.scope {
                Scope::Global => wire::Scope::Global,
                Scope::Namespace => wire::Scope::Namespace,
                Scope::WorkloadSelector => wire::Scope::WorkloadSelector,
            } as i32,
            action: match self.action {
                Action::Allow => wire::Action::Allow,
                Action::Deny => wire::Action::Deny,
            } as i32,
            groups,
            dry_run: self.dry_run,
            extensions: Vec::new(),
        };
        Ok((format!("{}/{}", self.namespace, self.name), message))
    }
}

// === impl MatchFields ===

impl MatchFields {
    fn convert(&self) -> Result<Match, Problem> {
        let patterns = |patterns: &[Pattern]| {
            patterns.iter().map(|Pattern(pattern)| StringMatch { match_type: Some(pattern.clone()) }).collect()
        };
        let ports = |ports: &[u16]| ports.iter().map(|port| (*port).into()).collect();
        let accounts = |accounts: &[Account]| accounts.iter().map(Account::convert).collect();
        Ok(Match {
            namespaces: patterns(&self.namespaces),
            not_namespaces: patterns(&self.not_namespaces),
            principals: patterns(&self.principals),
            not_principals: patterns(&self.not_principals),
            source_ips: blocks("sourceIps", &self.source_ips)?,
            not_source_ips: blocks("notSourceIps", &self.not_source_ips)?,
            destination_ips: blocks("destinationIps", &self.destination_ips)?,
            not_destination_ips: blocks("notDestinationIps", &self.not_destination_ips)?,
            destination_ports: ports(&self.destination_ports),
            not_destination_ports: ports(&self.not_destination_ports),
            service_accounts: accounts(&self.service_accounts),
            not_service_accounts: accounts(&self.not_service_accounts),
            extensions: Vec::new(),
        })
    }
}

fn blocks(field: &str, texts: &[String]) -> Result<Vec<Address>, Problem> {
    let block = |(index, text): (usize, &String)| {
        let block = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let block = block.map_err(|_| {
            let field = format!("{field}[{index}]");
            Problem::new(field, format!("`{text}` is no address block"), "write it like `10.0.0.0/8`")
        })?;
        Ok(Address { address: ip_bytes(block.addr()), length: block.prefix_len().into() })
    };
    texts.iter().enumerate().map(block).collect()
}

// === impl Account ===

impl Account {
    fn convert(&self) -> ServiceAccountMatch {
        ServiceAccountMatch { namespace: self.namespace.clone(), service_account: self.service_account.clone() }
    }
}

// === impl Pattern ===

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PatternVisitor)
    }
}

struct PatternVisitor;

impl<'de> Visitor<'de> for PatternVisitor {
    type Value = Pattern;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("`!Exact`, `!Prefix` or `!Suffix` with text, or `!Presence []`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pattern, A::Error> {
        let wrong = || de::Error::custom("expected `!Exact`, `!Prefix` or `!Suffix` with text, or `!Presence []`");
        let kind: String = map.next_key()?.ok_or_else(wrong)?;
        let pattern = match kind.as_str() {
            "Exact" => MatchType::Exact(map.next_value()?),
            "Prefix" => MatchType::Prefix(map.next_value()?),
            "Suffix" => MatchType::Suffix(map.next_value()?),
            "Presence" => map.next_value::<Nothing>().map(|Nothing| MatchType::Presence(Empty {}))?,
            _ => return Err(wrong()),
        };
        if map.next_key::<String>()?.is_some() {
            return Err(wrong());
        }
        Ok(Pattern(pattern))
    }
}

/// `[]`, `{}` or nothing.
struct Nothing;

impl<'de> Deserialize<'de> for Nothing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NothingVisitor)
    }
}

struct NothingVisitor;

impl<'de> Visitor<'de> for NothingVisitor {
    type Value = Nothing;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("`[]`")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Nothing, E> {
        Ok(Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Nothing, A::Error> {
        match items.next_element::<de::IgnoredAny>()? {
            None => Ok(Nothing),
            Some(_) => Err(de::Error::custom("`!Presence` takes an empty list")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Nothing, A::Error> {
        match map.next_key::<de::IgnoredAny>()? {
            None => Ok(Nothing),
            Some(_) => Err(de::Error::custom("`!Presence` takes nothing")),
        }
    }
}
