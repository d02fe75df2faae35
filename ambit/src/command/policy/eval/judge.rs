//! A golden case to a verdict. What it means is the engine's and the mesh's; here facts are put together.

use std::{collections::HashMap, fs, path::PathBuf, rc::Rc, sync::Arc};

use ambit_api::{AuthorizationPolicy, Object, Resource, load_text};
use ambit_mesh::{
    enforcement::{Enforced, enforce},
    inputs::Policy,
};
use ambit_policy::{Compiled, Decision, Options, PolicyName, Stricter, stricter};

use super::case::{Case, Target, Word};

/// What came of a case.
#[derive(Debug)]
pub struct Judged {
    pub got: Word,
    pub policy: Option<PolicyName>,
    pub rule: Option<u32>,
    pub reason: Arc<str>,
    /// The named group of deliberate differences that it is in, if it is a denial where Envoy allows.
    pub stricter: Option<&'static str>,
}

/// Policy files and what they compile to, each read and compiled once.
pub struct PolicyFiles {
    root: PathBuf,
    files: HashMap<String, Rc<Vec<Policy>>>,
    compiled: HashMap<(String, Target), Rc<Rules>>,
}

/// The policies of a target.
struct Rules {
    policies: Vec<AuthorizationPolicy>,
    options: Options,
    enforced: Enforced,
    /// One of them can't be enforced as it is written.
    is_rejected: bool,
}

/// Judges a case.
///
/// # Errors
/// The case can't be judged: its policies can't be read, or it names no place where they are enforced.
pub fn judge(case: &Case, files: &mut PolicyFiles) -> Result<Judged, String> {
    let rules = files.rules(case)?;
    let decision = decide(&rules.enforced.compiled, case);
    let got = if decision.is_allowed() { Word::Allow } else { Word::Deny };
    let differs = got == Word::Deny && case.expect == Word::Allow;
    let refusal = rules.enforced.refusal.as_ref();
    Ok(Judged {
        got,
        policy: refusal.map(|refusal| refusal.policy.clone()).or(decision.policy),
        rule: decision.rule,
        reason: decision.reason,
        stricter: if differs { group(case, &rules) } else { None },
    })
}

/// Asks external authorizers as a proxy would: once each, and what one denies is denied.
fn decide(compiled: &Compiled, case: &Case) -> Decision {
    let residual = compiled.for_connection(&case.connection());
    let headers = headers(case);
    let mut approved = Vec::new();
    loop {
        let request = case.is_http().then(|| case.request(&headers).with_approvals(&approved));
        let decision = match &request {
            Some(request) => residual.decide(request),
            None => residual.decide_connection_approved(&approved),
        };
        let asked = decision.ask.as_deref().and_then(|name| case.target.extension_providers.get_key_value(name));
        match asked {
            Some((name, Word::Allow)) if !approved.contains(&name.as_str()) => approved.push(name),
            _ => return residual.with_reason(decision, request.as_ref()),
        }
    }
}

/// The header lines that policy sees: what the case names, what its client sent besides, and what a proxy always adds;
/// without what only proxies may say.
fn headers(case: &Case) -> Vec<(String, String)> {
    let sent = &case.request.headers;
    let never = ["x-forwarded-client-cert", "x-envoy-internal"];
    let mut headers: Vec<_> =
        sent.iter().filter(|(name, _)| !never.contains(&name.to_ascii_lowercase().as_str())).cloned().collect();
    let length = case.sends_length().then_some(("content-length", "0"));
    let added = [("x-request-id", "00000000-0000-4000-8000-000000000000"), ("x-forwarded-proto", "http")];
    for (name, value) in added.into_iter().chain(length) {
        if !headers.iter().any(|(sent, _)| sent.eq_ignore_ascii_case(name)) {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    headers
}

/// Why Ambit may deny what Envoy allows; nothing if it may not.
fn group(case: &Case, rules: &Rules) -> Option<&'static str> {
    if rules.is_rejected {
        return Some(Stricter::UnusableValue.name());
    }
    let headers = headers(case);
    let approving = case.target.extension_providers.iter().filter(|(_, answer)| **answer == Word::Allow);
    let approved: Vec<_> = approving.map(|(name, _)| name.as_str()).collect();
    let request = case.is_http().then(|| case.request(&headers).with_approvals(&approved));
    let Rules { policies, options, .. } = rules;
    stricter(policies, options, case.target.paths(), &case.connection(), request).map(Stricter::name)
}

// === impl Judged ===

impl Judged {
    /// True for the expected verdict, and for a denial on purpose.
    pub fn passes(&self, expect: Word) -> bool {
        self.got == expect || self.stricter.is_some()
    }
}

// === impl PolicyFiles ===

impl PolicyFiles {
    /// Of files relative to this folder.
    pub fn new(root: PathBuf) -> Self {
        Self { root, files: HashMap::new(), compiled: HashMap::new() }
    }

    fn rules(&mut self, case: &Case) -> Result<Rc<Rules>, String> {
        let key = (case.policies.clone(), case.target.clone());
        if let Some(rules) = self.compiled.get(&key) {
            return Ok(Rc::clone(rules));
        }
        let written = self.file(&case.policies)?;
        let names = case.target.names();
        let point = case
            .target
            .point(names.as_ref())
            .ok_or("target: it has neither `service` and `waypoint` nor `workload`")?;
        let root = case.target.root_namespace();
        let here: Vec<_> = written.iter().filter(|policy| point.enforces(policy.get(), root).is_some()).collect();
        let enforceable = here.iter().map(|policy| policy.enforceable());
        let options = case.target.options();
        let rules = Rc::new(Rules {
            policies: here.iter().map(|policy| policy.get().clone()).collect(),
            enforced: enforce(enforceable, &options, case.target.paths()),
            options,
            is_rejected: here.iter().any(|policy| policy.rejection().is_some()),
        });
        self.compiled.insert(key, Rc::clone(&rules));
        Ok(rules)
    }

    fn file(&mut self, name: &str) -> Result<Rc<Vec<Policy>>, String> {
        if let Some(policies) = self.files.get(name) {
            return Ok(Rc::clone(policies));
        }
        let path = self.root.join(name);
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("policies: {}: can't be read: {error}; is `--root` right?", path.display()))?;
        let loaded = load_text(name, &text);
        // What isn't said about one policy leaves open whether all were read.
        if let Some(error) = loaded.diagnostics.iter().find(|found| found.is_error() && found.object.is_none()) {
            return Err(format!("policies: {error}"));
        }
        let policies: Vec<_> = loaded.objects.into_iter().chain(loaded.malformed).filter_map(written).collect();
        let policies = Rc::new(policies);
        self.files.insert(name.to_owned(), Rc::clone(&policies));
        Ok(policies)
    }
}

fn written(object: Object) -> Option<Policy> {
    let Resource::AuthorizationPolicy(policy) = object.resource else { return None };
    Some(match object.rejection {
        None => Policy::new(*policy),
        Some(rejection) => Policy::rejected(*policy, &rejection.reason()),
    })
}
