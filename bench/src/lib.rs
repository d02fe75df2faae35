//! The scenarios that figures are measured on.
//!
//! What it does: make policy sets of a given size with a request that matches the last rule or none, in the shape that
//! Envoy's figures were taken with (`principals` and `paths`, one rule a policy). What it refuses to do: measure;
//! that is what the package's binaries are for.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use ambit_api::{
    AuthorizationPolicy, SpiffeId,
    authorization_policy::{AuthorizationPolicySpec, From, Operation, Rule, Source, To},
};
use ambit_policy::{Compiled, ConnectionFacts, Options, RequestFacts, compile};
use serde::Serialize;

/// Sizes that figures are given for.
pub const RULES: [u32; 5] = [1, 10, 100, 1_000, 10_000];

const NAMESPACE: &str = "default";
const TRUST_DOMAIN: &str = "cluster.local";

/// What the request finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// It matches the last rule, and only that.
    Hit,
    /// It matches no rule: neither its client nor its path is in any.
    Miss,
}

/// ALLOW policies with one rule each, no two alike, and what is asked of them.
#[derive(Debug)]
pub struct Scenario {
    /// The policies.
    pub policies: Vec<AuthorizationPolicy>,
    /// The mesh.
    pub options: Options,
    rules: u32,
    last_path: String,
}

impl Case {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hit, Self::Miss];

    /// As figures name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        }
    }
}

// === impl Scenario ===

impl Scenario {
    /// Policies with this many rules in all.
    #[must_use]
    pub fn new(rules: u32) -> Self {
        Self {
            policies: (0..rules).map(policy).collect(),
            options: Options { trust_domains: vec![TRUST_DOMAIN.to_owned()], ..Options::default() },
            rules,
            last_path: path(rules.saturating_sub(1)),
        }
    }

    /// The policies, compiled.
    ///
    /// # Panics
    /// When they don't compile, which is a defect of the engine.
    #[must_use]
    pub fn compile(&self) -> Compiled {
        compile(&self.policies, &self.options).expect("the scenario's policies compile")
    }

    /// The connection that the request comes on.
    ///
    /// # Panics
    /// Never: its identity is a constant.
    #[must_use]
    pub fn connection(&self, case: Case) -> ConnectionFacts {
        let account = match case {
            Case::Hit => account(self.rules.saturating_sub(1)),
            Case::Miss => "stranger".to_owned(),
        };
        let (source, destination) = (Ipv4Addr::new(10, 244, 1, 5), Ipv4Addr::new(10, 96, 0, 10));
        ConnectionFacts::new(IpAddr::V4(source), IpAddr::V4(destination), 8080)
            .with_peer(SpiffeId::new(TRUST_DOMAIN, NAMESPACE, &account).expect("a workload's identity"))
    }

    /// The request.
    #[must_use]
    pub fn request(&self, case: Case) -> RequestFacts<'_> {
        let path = match case {
            Case::Hit => &*self.last_path,
            Case::Miss => "/somewhere/else/items",
        };
        RequestFacts::new("GET", path, "web.default:8080")
    }
}

fn policy(number: u32) -> AuthorizationPolicy {
    let source = Source {
        principals: vec![format!("{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", account(number))],
        ..Source::default()
    };
    let operation = Operation { paths: vec![path(number)], ..Operation::default() };
    let rule = Rule { from: Some(vec![From { source }]), to: Some(vec![To { operation }]), when: None };
    AuthorizationPolicy {
        namespace: NAMESPACE.to_owned(),
        name: format!("p-{number:06}"),
        annotations: Default::default(),
        spec: AuthorizationPolicySpec { rules: Some(vec![rule]), ..AuthorizationPolicySpec::default() },
    }
}

fn account(number: u32) -> String {
    format!("client-{number:06}")
}

fn path(number: u32) -> String {
    format!("/api/{number:06}/items")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_matches_the_last_rule_and_a_miss_none() {
        for rules in [1, 10, 300] {
            let scenario = Scenario::new(rules);
            let compiled = scenario.compile();
            let decide = |connection, request| {
                compiled.for_connection(&scenario.connection(connection)).decide(&scenario.request(request))
            };
            let hit = decide(Case::Hit, Case::Hit);
            assert!(hit.is_allowed());
            let last = scenario.policies.last().expect("a policy");
            assert_eq!(hit.policy.expect("the policy that decided").to_string(), format!("default/{}", last.name));
            for (connection, request) in [(Case::Miss, Case::Miss), (Case::Hit, Case::Miss), (Case::Miss, Case::Hit)] {
                let miss = decide(connection, request);
                assert!(!miss.is_allowed() && miss.policy.is_none(), "{connection:?} {request:?}");
            }
        }
    }
}
