//! The engine and the reference evaluator give the same verdict for any policies and requests.

mod strategies;

use std::net::{IpAddr, Ipv4Addr};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, AuthorizationPolicySpec, Operation, Rule, To},
};
use ambit_policy::{
    Compiled, ConnectionFacts, Decision, Explanation, Options, PathNormalization, ProviderKind, RequestFacts,
    RuleOutcome, Stricter, Verdict, compile, reference, stricter,
};
use proptest::{collection::vec, prelude::*, sample::select};

use self::strategies::{MODES, connection, policy, policy_of_conditions, request};

fn options(several_providers: bool) -> Options {
    Options {
        trust_domains: vec!["td".to_owned(), "old".to_owned()],
        providers: [("http".to_owned(), ProviderKind::Http), ("grpc".to_owned(), ProviderKind::Grpc)].into(),
        several_providers,
        ..Options::default()
    }
}

/// What holds of every explanation: it says what was decided, and the rule that decided is the first of its action that
/// matches.
fn check_explanation(decision: &Decision, explanation: &Explanation) -> Result<(), TestCaseError> {
    let explained = &explanation.decision;
    prop_assert_eq!(
        (decision.verdict, decision.rule, &decision.ask),
        (explained.verdict, explained.rule, &explained.ask)
    );
    prop_assert!(!explained.reason.is_empty());
    prop_assert!(decision.is_allowed() || explanation.path.is_none() || !explanation.changes.is_empty());
    let Some(name) = &decision.policy else { return Ok(()) };
    let decided = explanation.policies.iter().find(|policy| policy.policy == *name).expect("the deciding policy");
    let mut matching =
        explanation.policies.iter().filter(|policy| policy.action == decided.action && policy.is_enforced);
    let first = matching.find(|policy| policy.is_matched).expect("a policy that matches");
    let rule = first.rules.iter().find(|rule| rule.outcome == RuleOutcome::Matches).map(|rule| rule.index);
    // Several providers are asked one after the other, and not in the order of rules.
    if decided.action != Action::Custom {
        prop_assert_eq!((&first.policy, rule), (name, decision.rule));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engine_and_reference_agree(
        mut policies in vec(policy(), 0..5),
        connections in vec(connection(), 2),
        requests in vec(request(), 3),
        paths in select(MODES),
        several_providers: bool,
    ) {
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.name = format!("p{index}");
        }
        let options = options(several_providers);
        let compiled = compile(&policies, &options).expect("generated policies compile").with_path_normalization(paths);
        for connection in &connections {
            let residual = compiled.for_connection(connection);
            let case = reference::Case { policies: &policies, options: &options, connection, request: None, paths };
            let ours = residual.decide_connection();
            let why = residual.with_reason(ours.clone(), None).reason;
            prop_assert_eq!(ours.verdict, reference::verdict(&case), "at L4: {}", why);
            check_explanation(&ours, &residual.explain(None))?;
            for sent in &requests {
                let request = sent.facts();
                let ours = residual.decide(&request);
                let case = reference::Case { request: Some(request), ..case };
                let why = residual.with_reason(ours.clone(), Some(&request)).reason;
                prop_assert_eq!(ours.verdict, reference::verdict(&case), "{:?}: {}", sent, why);
                prop_assert_eq!(&ours, &compiled.for_connection(connection).decide(&request));
                check_explanation(&ours, &residual.explain(Some(&request)))?;
                if paths == PathNormalization::Base && ours.verdict == Verdict::Deny {
                    let all = compiled.clone().with_path_normalization(PathNormalization::AllReadings);
                    let all = all.for_connection(connection).decide(&request);
                    prop_assert_eq!(all.verdict, Verdict::Deny, "more readings allow more: {}", all.reason);
                }
                let istio = reference::verdict_without(&case, &Stricter::ALL);
                prop_assert!(istio == Verdict::Allow || !ours.is_allowed(), "looser than Istio: {:?}: {}", sent, why);
                let group = stricter(&policies, &options, paths, connection, Some(request));
                prop_assert_eq!(group.is_some(), istio == Verdict::Allow && !ours.is_allowed(), "{:?}", group);
            }
        }
    }

    #[test]
    fn rules_of_one_condition_agree(
        policy in policy_of_conditions(),
        connections in vec(connection(), 4),
        requests in vec(request(), 4),
    ) {
        let (policies, options) = ([policy], options(false));
        let compiled = compile(&policies, &options).expect("generated policies compile");
        for connection in &connections {
            let residual = compiled.for_connection(connection);
            let paths = PathNormalization::AllReadings;
            let case = reference::Case { policies: &policies, options: &options, connection, request: None, paths };
            prop_assert_eq!(residual.decide_connection().verdict, reference::verdict(&case));
            for sent in &requests {
                let request = sent.facts();
                let case = reference::Case { request: Some(request), ..case };
                prop_assert_eq!(residual.decide(&request).verdict, reference::verdict(&case), "{:?}", sent);
            }
        }
    }

    #[test]
    fn any_text_can_be_judged(method in ".{0,8}", path in ".{0,40}", authority in ".{0,20}", values in vec(".{1,12}", 1..4)) {
        let operation = Operation { paths: values.clone(), hosts: values.clone(), methods: values, ..Operation::default() };
        let rules = vec![Rule { to: Some(vec![To { operation }]), ..Rule::default() }];
        let policy = AuthorizationPolicy {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
            annotations: Default::default(),
            spec: AuthorizationPolicySpec { rules: Some(rules), ..AuthorizationPolicySpec::default() },
        };
        let options = Options { trust_domains: Vec::new(), ..Options::default() };
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let facts = ConnectionFacts::new(address, address, 1);
        if let Ok(compiled) = compile(&[policy], &options) {
            judge_all(&compiled, &facts, &RequestFacts::new(&method, &path, &authority))?;
        }
    }
}

fn judge_all(compiled: &Compiled, facts: &ConnectionFacts, request: &RequestFacts<'_>) -> Result<(), TestCaseError> {
    let residual = compiled.for_connection(facts);
    let decision = residual.with_reason(residual.decide(request), Some(request));
    prop_assert!(!decision.reason.is_empty());
    prop_assert!(!residual.explain(Some(request)).decision.reason.is_empty());
    prop_assert!(!residual.decide_connection().is_allowed());
    Ok(())
}
