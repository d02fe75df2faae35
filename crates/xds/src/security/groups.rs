//! An AuthorizationPolicy as groups, for node proxies that know no more (`spec/authorization.md` 2.7).
//!
//! What the groups can't say (anything of HTTP) is left out so that they never permit more than the policy: an alternative of an
//! ALLOW rule that needs it goes, as no connection has it; of a DENY rule it alone goes, so the rule denies more. Istio's
//! control plane differs in the last: there a DENY rule of nothing but HTTP is never enforced.

use std::net::IpAddr;

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, Condition, Operation, Rule, Source},
};
use ipnet::IpNet;

use super::{Address, Empty, Group, Match, Rules, ServiceAccountMatch, StringMatch, string_match::MatchType};

/// What a policy says to node proxies.
///
/// # Errors
/// When a value in it isn't one, or its action isn't for node proxies. Then nothing of it may be sent but a denial of all that
/// it applies to: [`deny_everything`].
pub fn groups(policy: &AuthorizationPolicy) -> Result<Vec<Group>, String> {
    let allow = match policy.spec.action {
        Action::Allow => true,
        Action::Deny => false,
        Action::Audit | Action::Custom => return Err("node proxies only allow and deny".into()),
    };
    let rules = policy.spec.rules.iter().flatten();
    let groups = rules.map(|rule| Reader { allow, namespace: &policy.namespace }.rule(rule));
    groups.filter_map(Result::transpose).collect()
}

/// Groups that match every connection, for a DENY in place of a policy that can't be enforced.
#[must_use]
pub fn deny_everything() -> Vec<Group> {
    vec![Group::default()]
}

struct Reader<'a> {
    allow: bool,
    /// Namespace of service accounts that name none.
    namespace: &'a str,
}

/// An alternative as far as groups can say it.
#[derive(Default)]
struct Alternative {
    fields: Match,
    /// There was more than `fields` says.
    more: bool,
}

// === impl Reader ===

impl Reader<'_> {
    /// The rule's group; nothing if it can't match.
    fn rule(&self, rule: &Rule) -> Result<Option<Group>, String> {
        let mut clauses = Vec::new();
        let from = rule.from.as_ref().map(|from| from.iter().map(|from| self.source(&from.source)).collect());
        let to = rule.to.as_ref().map(|to| to.iter().map(|to| operation(&to.operation)).collect());
        let when = rule.when.iter().flatten().map(|condition| Some(vec![self.condition(condition)]));
        for alternatives in [to, from].into_iter().chain(when).flatten() {
            let alternatives: Vec<Result<Alternative, String>> = alternatives;
            match self.clause(alternatives.into_iter().collect::<Result<_, _>>()?)? {
                Clause::True => {}
                Clause::False => return Ok(None),
                Clause::Matches(matches) => clauses.push(Rules { matches }),
            }
        }
        Ok(Some(Group { rules: clauses }))
    }

    fn clause(&self, alternatives: Vec<Alternative>) -> Result<Clause, String> {
        if alternatives.is_empty() {
            return Err("an empty list".into());
        }
        let mut matches = Vec::new();
        for Alternative { fields, more } in alternatives {
            match (more, fields == Match::default()) {
                (true, _) if self.allow => {}
                (true, true) => return Ok(Clause::True),
                (false, true) => return Err("an alternative that says nothing".into()),
                (_, false) => matches.push(fields),
            }
        }
        Ok(if matches.is_empty() { Clause::False } else { Clause::Matches(matches) })
    }

    fn source(&self, source: &Source) -> Result<Alternative, String> {
        let fields = Match {
            principals: patterns(&source.principals)?,
            not_principals: patterns(&source.not_principals)?,
            namespaces: patterns(&source.namespaces)?,
            not_namespaces: patterns(&source.not_namespaces)?,
            service_accounts: self.accounts(&source.service_accounts)?,
            not_service_accounts: self.accounts(&source.not_service_accounts)?,
            source_ips: blocks(&source.ip_blocks)?,
            not_source_ips: blocks(&source.not_ip_blocks)?,
            ..Match::default()
        };
        let said = Source {
            request_principals: Vec::new(),
            not_request_principals: Vec::new(),
            trust_domains: Vec::new(),
            not_trust_domains: Vec::new(),
            remote_ip_blocks: Vec::new(),
            not_remote_ip_blocks: Vec::new(),
            ..source.clone()
        };
        Ok(Alternative { fields, more: said != *source })
    }

    fn condition(&self, condition: &Condition) -> Result<Alternative, String> {
        let Condition { key, values, not_values } = condition;
        let mut fields = Match::default();
        match key.as_str() {
            "source.namespace" => {
                (fields.namespaces, fields.not_namespaces) = (patterns(values)?, patterns(not_values)?)
            }
            "source.principal" => {
                (fields.principals, fields.not_principals) = (patterns(values)?, patterns(not_values)?)
            }
            "source.serviceAccount" => {
                (fields.service_accounts, fields.not_service_accounts) =
                    (self.accounts(values)?, self.accounts(not_values)?);
            }
            "source.ip" => (fields.source_ips, fields.not_source_ips) = (blocks(values)?, blocks(not_values)?),
            "destination.ip" => {
                (fields.destination_ips, fields.not_destination_ips) = (blocks(values)?, blocks(not_values)?);
            }
            "destination.port" => {
                (fields.destination_ports, fields.not_destination_ports) = (ports(values)?, ports(not_values)?);
            }
            _ => return Ok(Alternative { more: true, ..Alternative::default() }),
        }
        Ok(Alternative { fields, more: false })
    }

    fn accounts(&self, values: &[String]) -> Result<Vec<ServiceAccountMatch>, String> {
        let account = |value: &String| {
            let (namespace, account) = value.split_once('/').unwrap_or((self.namespace, value));
            if namespace.is_empty() || account.is_empty() || account.contains('/') {
                return Err(format!("`{value}` isn't a service account"));
            }
            Ok(ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() })
        };
        values.iter().map(account).collect()
    }
}

enum Clause {
    True,
    False,
    Matches(Vec<Match>),
}

fn operation(operation: &Operation) -> Result<Alternative, String> {
    let fields = Match {
        destination_ports: ports(&operation.ports)?,
        not_destination_ports: ports(&operation.not_ports)?,
        ..Match::default()
    };
    let said =
        Operation { ports: operation.ports.clone(), not_ports: operation.not_ports.clone(), ..Operation::default() };
    Ok(Alternative { fields, more: said != *operation })
}

fn patterns(values: &[String]) -> Result<Vec<StringMatch>, String> {
    let pattern = |value: &String| {
        let match_type = match (value.as_str(), value.strip_prefix('*'), value.strip_suffix('*')) {
            ("", ..) => return Err("an empty value".into()),
            ("*", ..) => MatchType::Presence(Empty {}),
            (_, Some(suffix), _) => MatchType::Suffix(suffix.into()),
            (_, _, Some(prefix)) => MatchType::Prefix(prefix.into()),
            (text, ..) => MatchType::Exact(text.into()),
        };
        Ok(StringMatch { match_type: Some(match_type) })
    };
    values.iter().map(pattern).collect()
}

fn blocks(values: &[String]) -> Result<Vec<Address>, String> {
    let block = |value: &String| {
        let block = value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
        let block = block.map_err(|_| format!("`{value}` isn't an address block"))?;
        let address = match block.addr() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        Ok(Address { address, length: block.prefix_len().into() })
    };
    values.iter().map(block).collect()
}

fn ports(values: &[String]) -> Result<Vec<u32>, String> {
    let port = |value: &String| value.parse::<u16>().map(u32::from).map_err(|_| format!("`{value}` isn't a port"));
    values.iter().map(port).collect()
}

#[cfg(test)]
mod tests;
