//! The least that still differs: policies, rules, values and parts of the request are dropped as long as it does.

use ambit_policy::{PathNormalization, envoy::Dialect};
use serde_json::Value;

use crate::{
    case::{Connection, PolicySet, Request},
    compare::{Difference, Outcome, Tally, compare},
    engine::Engine,
    envoy::Installation,
};

/// Rounds, each with an Envoy of its own.
const MAX_ROUNDS: usize = 80;
/// Candidates tried in one round.
const MAX_CANDIDATES: usize = 150;

/// A request that two verdicts were given on.
#[derive(Clone, Debug)]
pub struct Problem {
    pub set: PolicySet,
    pub request: Request,
    pub difference: Difference,
}

/// Drops what can be dropped. In each round all candidates go to one Envoy and the first that still differs is kept.
pub fn minimise(envoy: &Installation, problem: Problem) -> Result<Problem, String> {
    let mut least = problem;
    for _ in 0..MAX_ROUNDS {
        let mut candidates = candidates(&least);
        candidates.truncate(MAX_CANDIDATES);
        let Some(smaller) = first_that_differs(envoy, candidates, &least.difference)? else { break };
        least = smaller;
    }
    Ok(least)
}

fn first_that_differs(
    envoy: &Installation,
    candidates: Vec<(PolicySet, Request)>,
    like: &Difference,
) -> Result<Option<Problem>, String> {
    let candidates: Vec<_> = candidates.into_iter().filter(|(set, _)| Engine::new(set).is_ok()).collect();
    let sets: Vec<_> = candidates.iter().map(|(set, _)| set.clone()).collect();
    if sets.is_empty() {
        return Ok(None);
    }
    let running = envoy.start(&sets)?;
    for (index, (set, request)) in candidates.into_iter().enumerate() {
        let Ok(engine) = Engine::new(&set) else { continue };
        let answers = running.answers(index, set.is_http, std::slice::from_ref(&request))?;
        let outcome = compare(&set, &engine, &request, answers[0], &mut Tally::default());
        if let Outcome::Different(difference) = outcome {
            // Another difference is another problem.
            if difference.envoy_allows == like.envoy_allows {
                return Ok(Some(Problem { set, request, difference }));
            }
        }
    }
    Ok(None)
}

/// What is a little less than this, the greatest steps first.
fn candidates(problem: &Problem) -> Vec<(PolicySet, Request)> {
    let Problem { set, request, .. } = problem;
    let mut candidates = Vec::new();
    for index in 0..set.policies.len() {
        let mut less = set.clone();
        less.policies.remove(index);
        candidates.push((less, request.clone()));
    }
    for less in simpler_requests(request) {
        candidates.push((set.clone(), less));
    }
    for (index, policy) in set.policies.iter().enumerate() {
        if !policy.annotations.is_empty() {
            let mut less = set.clone();
            less.policies[index].annotations.clear();
            candidates.push((less, request.clone()));
        }
        let Ok(rules) = serde_json::to_value(&policy.spec.rules) else { continue };
        for rules in smaller(&rules) {
            let Ok(rules) = serde_json::from_value(rules) else { continue };
            let mut less = set.clone();
            less.policies[index].spec.rules = rules;
            candidates.push((less, request.clone()));
        }
    }
    for change in [
        |set: &mut PolicySet| set.paths = PathNormalization::Base,
        |set: &mut PolicySet| set.trust_domains = vec!["cluster.local".to_owned()],
        |set: &mut PolicySet| set.dialect = Dialect::Strict,
        |set: &mut PolicySet| set.providers.clear(),
        |set: &mut PolicySet| set.several_providers = false,
    ] {
        let mut less = set.clone();
        change(&mut less);
        candidates.push((less, request.clone()));
    }
    candidates.retain(|(less, lesser)| less != set || lesser != request);
    candidates
}

/// The value with one element or one field left out, wherever that leaves something.
fn smaller(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(elements) => {
            let without = |index| {
                let kept = elements.iter().enumerate().filter(move |(at, _)| *at != index);
                Value::from(kept.map(|(_, element)| element.clone()).collect::<Vec<_>>())
            };
            let mut found: Vec<_> = (0..elements.len()).filter(|_| elements.len() > 1).map(without).collect();
            for (index, element) in elements.iter().enumerate() {
                found.extend(smaller(element).into_iter().map(|less| {
                    let mut elements = elements.clone();
                    elements[index] = less;
                    Value::from(elements)
                }));
            }
            found
        }
        Value::Object(fields) => {
            let mut found = Vec::new();
            for (name, field) in fields {
                let mut less = fields.clone();
                less.remove(name);
                // An entry without fields would be another mistake.
                if !less.is_empty() || ["from", "to", "when"].contains(&name.as_str()) {
                    found.push(Value::Object(less));
                }
                found.extend(smaller(field).into_iter().map(|inner| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), inner);
                    Value::Object(fields)
                }));
            }
            found
        }
        _ => Vec::new(),
    }
}

fn simpler_requests(request: &Request) -> Vec<Request> {
    let plain = Request::default();
    let mut found = Vec::new();
    let mut with = |change: &dyn Fn(&mut Request)| {
        let mut less = request.clone();
        change(&mut less);
        found.push(less);
    };
    with(&|r| r.claims = None);
    with(&|r| r.headers.clear());
    with(&|r| r.connection = Connection { principal: r.connection.principal.clone(), ..Connection::default() });
    with(&|r| r.connection.principal.clone_from(&plain.connection.principal));
    with(&|r| r.connection.source_ip = plain.connection.source_ip);
    with(&|r| {
        r.connection.remote_ip = plain.connection.remote_ip;
        r.connection.destination_ip = plain.connection.destination_ip;
    });
    with(&|r| r.connection.destination_port = plain.connection.destination_port);
    with(&|r| r.connection.sni = None);
    with(&|r| r.method.clone_from(&plain.method));
    with(&|r| r.host.clone_from(&plain.host));
    with(&|r| r.target.clone_from(&plain.target));
    with(&|r| r.target = r.target.split('?').next().unwrap_or("/").to_owned());
    for index in 0..request.headers.len() {
        with(&|r| drop(r.headers.remove(index)));
    }
    for name in request.claims.iter().flatten().map(|(name, _)| name) {
        with(&|r| drop(r.claims.as_mut().map(|claims| claims.remove(name))));
    }
    found.retain(|less| less != request);
    found
}
