//! A set of policies as it is judged: their rules, and which of them are looked at when.

use std::{ops::Range, sync::Arc};

use ambit_api::authorization_policy::Action;

use crate::{
    Options, ProviderKind,
    decision::{Decision, PolicyName},
    index::{ConnectionIndex, RequestIndex, file, file_for_connections, indexes},
    path::Unreadable,
    rule::Rule,
};

/// What a set of policies comes to.
#[derive(Debug)]
pub(crate) struct Program {
    /// The decision for everything, when there is nothing to look at.
    pub(crate) settled: Option<Decision>,
    pub(crate) policies: Box<[Policy]>,
    /// The rules of all policies, in their order.
    pub(crate) rules: Box<[Rule]>,
    /// What changes verdicts.
    pub(crate) enforced: Sets,
    /// What would if nothing were a dry run; nothing if nothing is.
    pub(crate) trial: Option<Sets>,
    /// The rules of AUDIT policies.
    pub(crate) audit: Box<[u32]>,
    /// A rule speaks about the TLS server name.
    pub(crate) names_server: bool,
    pub(crate) unreadable: [Decision; Unreadable::ALL.len()],
}

/// A policy, compiled.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: PolicyName,
    pub(crate) action: Action,
    pub(crate) is_dry_run: bool,
    pub(crate) provider: Option<Arc<str>>,
    /// Its rules among all.
    pub(crate) rules: Range<usize>,
}

/// Rules by what they do.
#[derive(Debug)]
pub(crate) struct Sets {
    pub(crate) custom: Box<[ProviderRules]>,
    pub(crate) deny: RuleSet,
    /// Nothing without an ALLOW policy, when what isn't denied is allowed.
    pub(crate) allow: Option<RuleSet>,
    pub(crate) no_custom_matches: Decision,
    pub(crate) no_deny_matches: Decision,
    pub(crate) no_allow_matches: Decision,
}

/// The rules that ask one provider.
#[derive(Debug)]
pub(crate) struct ProviderRules {
    pub(crate) provider: Arc<str>,
    pub(crate) kind: Option<ProviderKind>,
    pub(crate) rules: RuleSet,
    /// What is decided until the provider has allowed the request; always, if there is no such provider.
    pub(crate) unapproved: Decision,
    /// Why it can't be asked about a connection, if it speaks HTTP.
    pub(crate) only_requests: Arc<str>,
}

/// Rules of one action, to be looked up.
#[derive(Debug)]
pub(crate) struct RuleSet {
    pub(crate) action: Action,
    pub(crate) is_empty: bool,
    pub(crate) by_connection: ConnectionIndex,
    pub(crate) by_request: RequestIndex,
    /// Those of `by_request`, for connections that are judged without one. Empty for ALLOW, which then doesn't match.
    pub(crate) without_request: ConnectionIndex,
}

// === impl Policy ===

impl Policy {
    /// It takes part in verdicts. A dry run doesn't, except that a provider can't be asked for nothing: what such a
    /// policy matches is denied, as in Istio.
    pub(crate) fn is_enforced(&self) -> bool {
        match self.action {
            Action::Audit => false,
            Action::Custom => true,
            Action::Allow | Action::Deny => !self.is_dry_run,
        }
    }
}

// === impl Program ===

impl Program {
    pub(crate) fn new(policies: Vec<Policy>, rules: Vec<Rule>, options: &Options) -> Self {
        let settled = match (policies.is_empty(), policies.iter().any(Policy::is_enforced)) {
            (true, _) => Some(Decision::allow("no policy applies")),
            (false, false) => Some(Decision::allow("only policies that are not enforced apply (AUDIT or dry-run)")),
            (false, true) => None,
        };
        let trial = policies.iter().any(|policy| policy.is_dry_run);
        Self {
            settled,
            enforced: Sets::new(&policies, &rules, options, Policy::is_enforced),
            trial: trial.then(|| Sets::new(&policies, &rules, options, |policy| policy.action != Action::Audit)),
            audit: ids(&policies, |policy| policy.action == Action::Audit && !policy.is_dry_run).into(),
            unreadable: Unreadable::ALL.map(|unreadable| Decision::deny(unreadable.to_string())),
            names_server: rules.iter().any(Rule::names_server),
            policies: policies.into(),
            rules: rules.into(),
        }
    }

    /// One that decides everything alike.
    pub(crate) fn settled(decision: Decision) -> Self {
        Self { settled: Some(decision), ..Self::new(Vec::new(), Vec::new(), &Options::default()) }
    }

    pub(crate) fn unreadable(&self, unreadable: Unreadable) -> Decision {
        // INVARIANT: `unreadable` has one for each.
        self.unreadable[unreadable as usize].clone()
    }
}

/// The rules of these policies, ascending.
fn ids(policies: &[Policy], counts: impl Fn(&Policy) -> bool) -> Vec<u32> {
    let rules = policies.iter().filter(|policy| counts(policy)).flat_map(|policy| policy.rules.clone());
    rules.filter_map(|id| u32::try_from(id).ok()).collect()
}

// === impl Sets ===

impl Sets {
    fn new(policies: &[Policy], rules: &[Rule], options: &Options, counts: impl Fn(&Policy) -> bool) -> Self {
        let set = |action: Action| {
            RuleSet::new(action, rules, &ids(policies, |policy| policy.action == action && counts(policy)))
        };
        let mut providers: Vec<&Arc<str>> = Vec::new();
        for policy in policies.iter().filter(|policy| policy.action == Action::Custom && !policy.is_dry_run) {
            if let Some(provider) = policy.provider.as_ref().filter(|name| !providers.contains(name)) {
                providers.push(provider);
            }
        }
        let asks = |provider: &Arc<str>| {
            let asks = |policy: &Policy| {
                !policy.is_dry_run && policy.action == Action::Custom && policy.provider.as_ref() == Some(provider)
            };
            RuleSet::new(Action::Custom, rules, &ids(policies, asks))
        };
        let is_one = providers.len() <= 1 || options.several_providers;
        let mut custom: Vec<_> =
            providers.iter().map(|provider| ProviderRules::new(provider, options, is_one, asks(provider))).collect();
        let dry_runs = ids(policies, |policy| policy.action == Action::Custom && policy.is_dry_run && counts(policy));
        if !dry_runs.is_empty() {
            let rules = RuleSet::new(Action::Custom, rules, &dry_runs);
            let reason = "a CUSTOM policy can't be tried out by a dry run, so what it matches is denied; remove the \
                          annotation or the policy";
            let unapproved = Decision::deny(reason);
            custom.push(ProviderRules { provider: "".into(), kind: None, rules, unapproved, only_requests: "".into() });
        }
        let has_allow = policies.iter().any(|policy| policy.action == Action::Allow && counts(policy));
        Self {
            custom: custom.into(),
            deny: set(Action::Deny),
            allow: has_allow.then(|| set(Action::Allow)),
            no_custom_matches: Decision::allow("no CUSTOM rule wants a provider asked"),
            no_deny_matches: Decision::allow("no DENY rule matches and there is no ALLOW policy"),
            no_allow_matches: Decision::deny("no ALLOW rule matches"),
        }
    }
}

// === impl ProviderRules ===

impl ProviderRules {
    fn new(provider: &Arc<str>, options: &Options, is_one: bool, rules: RuleSet) -> Self {
        let kind = options.providers.get(&**provider).copied().filter(|_| is_one);
        let unapproved = if !is_one {
            Decision::deny("CUSTOM policies of this target name different providers, which has to be switched on")
        } else if kind.is_some() {
            let reason = format!("provider `{provider}` has to allow it first");
            Decision { ask: Some(Arc::clone(provider)), ..Decision::deny(reason) }
        } else {
            let known: Vec<_> = options.providers.keys().map(|name| format!("`{name}`")).collect();
            let known = if known.is_empty() { "none is".to_owned() } else { format!("known are {}", known.join(", ")) };
            Decision::deny(format!("provider `{provider}` isn't configured ({known}), so nobody can allow it"))
        };
        let only_requests =
            format!("provider `{provider}` can only be asked about HTTP requests, so nobody can allow it");
        Self { provider: Arc::clone(provider), kind, rules, unapproved, only_requests: only_requests.into() }
    }

    /// What is decided where this rule matches.
    pub(crate) fn unapproved_by(&self, rule: &Rule) -> Decision {
        Decision { policy: rule.decision.policy.clone(), rule: rule.decision.rule, ..self.unapproved.clone() }
    }
}

// === impl RuleSet ===

impl RuleSet {
    fn new(action: Action, rules: &[Rule], ids: &[u32]) -> Self {
        let filed = file(rules, ids);
        let without_request = match action {
            Action::Allow => ConnectionIndex::default(),
            _ => indexes(file_for_connections(rules, &filed.late)).0,
        };
        let (by_connection, by_request) = indexes(filed);
        Self { action, is_empty: ids.is_empty(), by_connection, by_request, without_request }
    }
}
