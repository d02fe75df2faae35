//! Groups, as Istio's control plane sends them, in the words of an AuthorizationPolicy.
//!
//! A group is clauses that must all match, of matches of which one is enough, of fields that must all match. A rule of an
//! AuthorizationPolicy with nothing but `when` is conditions that must all match; so a group becomes one rule for each
//! choice of one match from each clause. What Istio writes has one such choice mostly.

use std::{collections::BTreeMap, net::IpAddr};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action as PolicyAction, AuthorizationPolicySpec, Condition, Rule},
};

use super::{
    Action, Address, Authorization, Group, Match, Rules, ServiceAccountMatch, StringMatch, string_match::MatchType,
};
use crate::limits::MAX_RULES_OF_GROUPS;

impl Authorization {
    /// What the groups say (`spec/ztunnel.md` 7), without what it applies to and whether it is a dry run.
    ///
    /// # Errors
    /// When anything in it isn't understood, or it is larger than any policy is. Nothing is left out: a list with one value
    /// less may match more.
    pub fn policy(&self) -> Result<AuthorizationPolicy, String> {
        let action = match Action::try_from(self.action) {
            Ok(Action::Allow) => PolicyAction::Allow,
            Ok(Action::Deny) => PolicyAction::Deny,
            Err(_) => return Err(format!("unknown action {}", self.action)),
        };
        let mut rules = Vec::new();
        for group in &self.groups {
            rules.extend(group_rules(group)?);
            if rules.len() > MAX_RULES_OF_GROUPS {
                return Err(format!("its groups make more than {MAX_RULES_OF_GROUPS} rules"));
            }
        }
        Ok(AuthorizationPolicy {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            spec: AuthorizationPolicySpec { action, rules: Some(rules), ..AuthorizationPolicySpec::default() },
            annotations: BTreeMap::new(),
        })
    }
}

/// The rules of a group: none if it can't match.
fn group_rules(group: &Group) -> Result<Vec<Rule>, String> {
    let mut choices: Vec<Vec<Condition>> = vec![Vec::new()];
    for Rules { matches } in &group.rules {
        // A clause without matches is true.
        if matches.is_empty() {
            continue;
        }
        let alternatives: Vec<_> = matches.iter().map(conditions).collect::<Result<_, _>>()?;
        // A match without fields never matches, so neither does a clause of nothing else, nor its group.
        let alternatives: Vec<_> = alternatives.into_iter().filter(|conditions| !conditions.is_empty()).collect();
        if choices.len().saturating_mul(alternatives.len()) > MAX_RULES_OF_GROUPS {
            return Err(format!("its groups make more than {MAX_RULES_OF_GROUPS} rules"));
        }
        let chosen = choices.iter().flat_map(|so_far| {
            alternatives.iter().map(|alternative| so_far.iter().chain(alternative).cloned().collect::<Vec<_>>())
        });
        choices = chosen.collect();
    }
    let rule = |when: Vec<Condition>| Rule { when: (!when.is_empty()).then_some(when), ..Rule::default() };
    Ok(choices.into_iter().map(rule).collect())
}

/// The conditions of a match; none if it has no fields.
fn conditions(fields: &Match) -> Result<Vec<Condition>, String> {
    if let Some(extension) = fields.extensions.first() {
        return Err(format!("it asks for `{}`, which isn't known here", extension.name));
    }
    let texts = |patterns: &[StringMatch]| patterns.iter().map(pattern).collect::<Result<Vec<_>, _>>();
    let blocks = |blocks: &[Address]| blocks.iter().map(block).collect::<Result<Vec<_>, _>>();
    let ports = |ports: &[u32]| ports.iter().map(|port| self::port(*port)).collect::<Result<Vec<_>, _>>();
    let accounts = |accounts: &[ServiceAccountMatch]| accounts.iter().map(account).collect::<Result<Vec<_>, _>>();
    let rows = [
        ("source.namespace", texts(&fields.namespaces)?, texts(&fields.not_namespaces)?),
        ("source.principal", texts(&fields.principals)?, texts(&fields.not_principals)?),
        ("source.serviceAccount", accounts(&fields.service_accounts)?, accounts(&fields.not_service_accounts)?),
        ("source.ip", blocks(&fields.source_ips)?, blocks(&fields.not_source_ips)?),
        ("destination.ip", blocks(&fields.destination_ips)?, blocks(&fields.not_destination_ips)?),
        ("destination.port", ports(&fields.destination_ports)?, ports(&fields.not_destination_ports)?),
    ];
    let written = rows.into_iter().filter(|(_, values, not_values)| !values.is_empty() || !not_values.is_empty());
    Ok(written.map(|(key, values, not_values)| Condition { key: key.into(), values, not_values }).collect())
}

fn pattern(pattern: &StringMatch) -> Result<String, String> {
    // A star at an end is the pattern's own sign, so text that has one there can't be written.
    let plain = |text: &str| match text.starts_with('*') || text.ends_with('*') || text.is_empty() {
        true => Err(format!("`{text}` can't be matched as text")),
        false => Ok(text.to_owned()),
    };
    match &pattern.match_type {
        Some(MatchType::Exact(text)) => plain(text),
        Some(MatchType::Prefix(text)) => plain(text).map(|text| format!("{text}*")),
        Some(MatchType::Suffix(text)) => plain(text).map(|text| format!("*{text}")),
        Some(MatchType::Presence(_)) => Ok("*".into()),
        None => Err("a pattern of a kind that isn't known here".into()),
    }
}

fn block(Address { address, length }: &Address) -> Result<String, String> {
    let (ip, longest) = if let Ok(bytes) = <[u8; 4]>::try_from(address.as_slice()) {
        (IpAddr::from(bytes), 32)
    } else if let Ok(bytes) = <[u8; 16]>::try_from(address.as_slice()) {
        (IpAddr::from(bytes), 128)
    } else {
        return Err(format!("an address of {} bytes", address.len()));
    };
    if *length > longest {
        return Err(format!("`{ip}/{length}` isn't an address block"));
    }
    Ok(format!("{ip}/{length}"))
}

fn port(port: u32) -> Result<String, String> {
    u16::try_from(port).map(|port| port.to_string()).map_err(|_| format!("{port} isn't a port"))
}

fn account(account: &ServiceAccountMatch) -> Result<String, String> {
    let ServiceAccountMatch { namespace, service_account } = account;
    if namespace.is_empty() || service_account.is_empty() || namespace.contains('/') || service_account.contains('/') {
        return Err(format!("`{namespace}/{service_account}` isn't a service account"));
    }
    Ok(format!("{namespace}/{service_account}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::Empty;

    fn text(match_type: MatchType) -> StringMatch {
        StringMatch { match_type: Some(match_type) }
    }

    fn port_match(port: u32) -> Match {
        Match { destination_ports: vec![port], ..Match::default() }
    }

    fn group(clauses: Vec<Vec<Match>>) -> Group {
        Group { rules: clauses.into_iter().map(|matches| Rules { matches }).collect() }
    }

    /// Key, values, values it must not have.
    type Row = (String, Vec<String>, Vec<String>);

    fn rules(groups: Vec<Group>) -> Result<Vec<Vec<Row>>, String> {
        let policy = Authorization { groups, ..Authorization::default() }.policy()?;
        let conditions = |rule: Rule| {
            assert!(rule.from.is_none() && rule.to.is_none());
            let conditions = rule.when.unwrap_or_default().into_iter();
            conditions.map(|condition| (condition.key, condition.values, condition.not_values)).collect()
        };
        Ok(policy.spec.rules.expect("rules").into_iter().map(conditions).collect())
    }

    fn row(key: &str, values: &[&str], not_values: &[&str]) -> Row {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        (key.into(), owned(values), owned(not_values))
    }

    #[test]
    fn empty_groups_clauses_and_matches_mean_what_they_mean_to_node_proxies() {
        let port = || row("destination.port", &["1"], &[]);
        for (what, groups, expected) in [
            ("no groups: never", vec![], vec![]),
            ("a group without clauses: always", vec![group(vec![])], vec![vec![]]),
            ("a clause without matches: true", vec![group(vec![vec![], vec![port_match(1)]])], vec![vec![port()]]),
            ("only such a clause: always", vec![group(vec![vec![]])], vec![vec![]]),
            (
                "a match without fields: skipped",
                vec![group(vec![vec![Match::default(), port_match(1)]])],
                vec![vec![port()]],
            ),
            ("a clause of nothing else: never", vec![group(vec![vec![port_match(1)], vec![Match::default()]])], vec![]),
            ("of two groups, the one that can", vec![group(vec![vec![Match::default()]]), group(vec![])], vec![vec![]]),
        ] {
            assert_eq!(rules(groups), Ok(expected), "{what}");
        }
    }

    #[test]
    fn clauses_multiply_and_groups_add() {
        let groups = vec![
            group(vec![vec![port_match(1), port_match(2)], vec![port_match(3), port_match(4)]]),
            group(vec![vec![port_match(5)]]),
        ];
        let ports = |ports: &[&str]| ports.iter().map(|port| row("destination.port", &[port], &[])).collect::<Vec<_>>();
        let expected =
            vec![ports(&["1", "3"]), ports(&["1", "4"]), ports(&["2", "3"]), ports(&["2", "4"]), ports(&["5"])];
        assert_eq!(rules(groups), Ok(expected));
    }

    #[test]
    fn every_field_has_its_condition() {
        let account = ServiceAccountMatch { namespace: "n".into(), service_account: "x".into() };
        let fields = Match {
            namespaces: vec![text(MatchType::Exact("a".into()))],
            not_namespaces: vec![text(MatchType::Prefix("b".into()))],
            principals: vec![text(MatchType::Suffix("/sa/c".into()))],
            not_principals: vec![text(MatchType::Presence(Empty {}))],
            source_ips: vec![Address { address: vec![10, 0, 0, 0], length: 8 }],
            not_source_ips: vec![Address { address: vec![10, 1, 0, 0], length: 16 }],
            destination_ips: vec![Address { address: vec![0; 16], length: 0 }],
            not_destination_ips: vec![Address { address: vec![192, 0, 2, 1], length: 32 }],
            destination_ports: vec![80, 0],
            not_destination_ports: vec![81],
            service_accounts: vec![account.clone()],
            not_service_accounts: vec![account],
            extensions: Vec::new(),
        };
        let expected = vec![vec![
            row("source.namespace", &["a"], &["b*"]),
            row("source.principal", &["*/sa/c"], &["*"]),
            row("source.serviceAccount", &["n/x"], &["n/x"]),
            row("source.ip", &["10.0.0.0/8"], &["10.1.0.0/16"]),
            row("destination.ip", &["::/0"], &["192.0.2.1/32"]),
            row("destination.port", &["80", "0"], &["81"]),
        ]];
        assert_eq!(rules(vec![group(vec![vec![fields]])]), Ok(expected));
    }

    #[test]
    fn what_is_not_understood_makes_the_policy_unreadable_rather_than_wider() {
        let extension = crate::workload::Extension { name: "x".into(), config: None };
        for fields in [
            Match { namespaces: vec![StringMatch { match_type: None }], ..port_match(1) },
            Match { principals: vec![text(MatchType::Exact("a*".into()))], ..port_match(1) },
            Match { principals: vec![text(MatchType::Exact(String::new()))], ..port_match(1) },
            Match { source_ips: vec![Address { address: vec![1; 5], length: 8 }], ..port_match(1) },
            Match { source_ips: vec![Address { address: vec![1; 4], length: 33 }], ..port_match(1) },
            Match { service_accounts: vec![ServiceAccountMatch::default()], ..port_match(1) },
            Match { extensions: vec![extension], ..port_match(1) },
            port_match(65_536),
        ] {
            assert!(rules(vec![group(vec![vec![fields.clone()]])]).is_err(), "{fields:?}");
        }
        assert!(Authorization { action: 2, ..Authorization::default() }.policy().is_err());
    }

    #[test]
    fn choices_that_multiply_without_end_are_refused() {
        let clauses = (0..20).map(|_| vec![port_match(1), port_match(2)]).collect();
        assert!(rules(vec![group(clauses)]).is_err());
    }
}
