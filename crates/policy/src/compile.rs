//! From policies as users write them to rules (`spec/authorization.md` 2.2 to 2.6, 2.11, 2.12).

use std::sync::Arc;

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, Condition, From, Operation, Rule as WrittenRule, Source, To},
};

use crate::{
    CompileError, Options,
    decide::{Compiled, Program},
    decision::{Decision, PolicyName, Verdict},
    limits::{MAX_CLAUSES, MAX_RULES, MAX_SERVICE_ACCOUNTS},
    pattern::{Cidr, NamespacePattern, PathPattern, Port, ServiceAccount, StringPattern},
    principal::expand_aliases,
    rule::{Clause, Effect, Group, Rule, Test, Values},
};

/// The annotation that makes a policy one that is never enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// Compiles the policies that apply to one target.
///
/// Attachment (`targetRefs`, `selector`) is not looked at: the caller passes those that apply. AUDIT and dry-run
/// policies never change a verdict; they are checked, then left out.
///
/// # Errors
/// On the first field that has no usable value or isn't supported yet; nothing is skipped. The caller installs
/// [`Compiled::deny_all`] with the error as its reason.
pub fn compile(policies: &[AuthorizationPolicy], options: &Options) -> Result<Compiled, CompileError> {
    let mut program = ProgramParts::default();
    for policy in policies {
        let scope = Scope::new(policy, options)?;
        let rules = scope.rules(policy.spec.rules.as_deref().unwrap_or_default())?;
        match scope.effect {
            Some(Effect::Allow) => {
                program.allow.extend(rules);
                program.allow_policies.push(scope.name);
            }
            Some(Effect::Deny) => {
                program.deny.extend(rules);
                program.deny_policies.push(scope.name);
            }
            None => program.unenforced += 1,
        }
    }
    Ok(Compiled::new(Program::new(program)))
}

/// What all policies together come to.
#[derive(Debug, Default)]
pub(crate) struct ProgramParts {
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) allow_policies: Vec<PolicyName>,
    pub(crate) deny_policies: Vec<PolicyName>,
    /// AUDIT and dry-run policies.
    pub(crate) unenforced: usize,
}

/// What the parts of one policy need to know.
struct Scope<'a> {
    name: PolicyName,
    /// Nothing for a policy that never changes a verdict.
    effect: Option<Effect>,
    options: &'a Options,
}

/// A place in a policy, and what is being read there.
struct Place<'a> {
    scope: &'a Scope<'a>,
    path: String,
}

impl<'a> Scope<'a> {
    fn new(policy: &AuthorizationPolicy, options: &'a Options) -> Result<Self, CompileError> {
        let name = PolicyName { namespace: policy.namespace.as_str().into(), name: policy.name.as_str().into() };
        let error =
            |field: &str, message: String| CompileError { policy: name.clone(), field: field.to_owned(), message };
        let dry_run = match policy.annotations.get(DRY_RUN) {
            None => false,
            Some(value) => parse_bool(value).ok_or_else(|| {
                let field = format!("metadata.annotations[{DRY_RUN}]");
                error(&field, format!("`{value}` isn't a boolean; write `true` or `false`"))
            })?,
        };
        let effect = match policy.spec.action {
            Action::Custom => {
                return Err(error("spec.action", "`CUSTOM` is not supported yet; remove the policy".to_owned()));
            }
            _ if policy.spec.provider.is_some() => {
                return Err(error("spec.provider", "belongs only to a policy with action `CUSTOM`".to_owned()));
            }
            Action::Audit => None,
            Action::Allow => (!dry_run).then_some(Effect::Allow),
            Action::Deny => (!dry_run).then_some(Effect::Deny),
        };
        Ok(Self { name, effect, options })
    }

    fn rules(&self, written: &[WrittenRule]) -> Result<Vec<Rule>, CompileError> {
        let place = Place { scope: self, path: "spec.rules".to_owned() };
        place.at_most(written.len(), MAX_RULES)?;
        (0u32..).zip(written).map(|(index, rule)| self.rule(index, rule, &place.entry(index))).collect()
    }

    fn rule(&self, index: u32, written: &WrittenRule, place: &Place<'_>) -> Result<Rule, CompileError> {
        let mut groups = Vec::new();
        if let Some(from) = &written.from {
            groups
                .push(place.field("from").group(from, |place, From { source }| place.field("source").source(source))?);
        }
        if let Some(to) = &written.to {
            let operation = |place: &Place<'_>, To { operation }: &To| place.field("operation").operation(operation);
            groups.push(place.field("to").group(to, operation)?);
        }
        let when = place.field("when");
        let conditions = written.when.as_deref().unwrap_or_default();
        when.at_most(conditions.len(), MAX_CLAUSES)?;
        for (index, condition) in (0u32..).zip(conditions) {
            let clause = Clause::new(when.entry(index).condition(condition)?);
            groups.push(Group { clauses: [clause].into() });
        }
        let allowed = Decision {
            verdict: Verdict::Allow,
            policy: Some(self.name.clone()),
            rule: Some(index),
            reason: Arc::from(format!("rule {index} of {} allows it", self.name)),
        };
        Ok(Rule { policy: self.name.clone(), index, groups: groups.into(), allowed })
    }
}

impl<'a> Place<'a> {
    fn field(&self, name: &str) -> Self {
        Self { scope: self.scope, path: format!("{}.{name}", self.path) }
    }

    fn entry(&self, index: u32) -> Self {
        Self { scope: self.scope, path: format!("{}[{index}]", self.path) }
    }

    fn error(&self, message: impl Into<String>) -> CompileError {
        CompileError { policy: self.scope.name.clone(), field: self.path.clone(), message: message.into() }
    }

    fn at_most(&self, count: usize, limit: usize) -> Result<(), CompileError> {
        if count <= limit {
            Ok(())
        } else {
            Err(self.error(format!("has {count} entries; at most {limit} are allowed")))
        }
    }

    fn group<T>(
        &self,
        entries: &[T],
        tests: impl Fn(&Self, &T) -> Result<Vec<Test>, CompileError>,
    ) -> Result<Group, CompileError> {
        if entries.is_empty() {
            return Err(self.error("is empty; remove it to match everything, or add an entry"));
        }
        self.at_most(entries.len(), MAX_CLAUSES)?;
        let clauses = (0u32..).zip(entries).map(|(index, entry)| tests(&self.entry(index), entry).map(Clause::new));
        Ok(Group { clauses: clauses.collect::<Result<_, _>>()? })
    }

    fn source(&self, source: &Source) -> Result<Vec<Test>, CompileError> {
        if source.is_empty() {
            return Err(self.error("has no field; remove the entry to match every source"));
        }
        self.field("serviceAccounts").at_most(source.service_accounts.len(), MAX_SERVICE_ACCOUNTS)?;
        self.field("notServiceAccounts").at_most(source.not_service_accounts.len(), MAX_SERVICE_ACCOUNTS)?;
        let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
        let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
        if accounts && others.iter().any(|values| !values.is_empty()) {
            return Err(
                self.error("`serviceAccounts` can't stand beside `principals` or `namespaces`; keep one of them")
            );
        }
        for (name, values) in [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ] {
            if !values.is_empty() {
                self.field(name).unsupported("this field")?;
            }
        }
        let mut tests = Tests { place: self, tests: Vec::new() };
        tests.principals("principals", &source.principals, "notPrincipals", &source.not_principals)?;
        tests.namespaces("namespaces", &source.namespaces, "notNamespaces", &source.not_namespaces)?;
        tests.accounts(
            "serviceAccounts",
            &source.service_accounts,
            "notServiceAccounts",
            &source.not_service_accounts,
        )?;
        tests.trust_domains("trustDomains", &source.trust_domains, "notTrustDomains", &source.not_trust_domains)?;
        tests.both(
            ("ipBlocks", &source.ip_blocks),
            ("notIpBlocks", &source.not_ip_blocks),
            Cidr::parse,
            Values::SourceIp,
        )?;
        Ok(tests.tests)
    }

    fn operation(&self, operation: &Operation) -> Result<Vec<Test>, CompileError> {
        if operation.is_empty() {
            return Err(self.error("has no field; remove the entry to match every operation"));
        }
        let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = operation;
        let mut tests = Tests { place: self, tests: Vec::new() };
        tests.both(("hosts", hosts), ("notHosts", not_hosts), StringPattern::parse, Values::Host)?;
        tests.both(("ports", ports), ("notPorts", not_ports), Port::parse, Values::DestinationPort)?;
        tests.both(("methods", methods), ("notMethods", not_methods), StringPattern::parse, Values::Method)?;
        tests.both(("paths", paths), ("notPaths", not_paths), PathPattern::parse, Values::Path)?;
        Ok(tests.tests)
    }

    fn condition(&self, condition: &Condition) -> Result<Vec<Test>, CompileError> {
        let Condition { key, values, not_values } = condition;
        if values.is_empty() && not_values.is_empty() {
            return Err(self.error(format!("`{key}` needs `values` or `notValues`")));
        }
        let (yes, no) = ("values", "notValues");
        let mut tests = Tests { place: self, tests: Vec::new() };
        match key.as_str() {
            "source.principal" => tests.principals(yes, values, no, not_values)?,
            "source.namespace" => tests.namespaces(yes, values, no, not_values)?,
            "source.serviceAccount" => tests.accounts(yes, values, no, not_values)?,
            "source.trustDomain" => tests.trust_domains(yes, values, no, not_values)?,
            "source.ip" => tests.both((yes, values), (no, not_values), Cidr::parse, Values::SourceIp)?,
            "destination.ip" => tests.both((yes, values), (no, not_values), Cidr::parse, Values::DestinationIp)?,
            "destination.port" => tests.both((yes, values), (no, not_values), Port::parse, Values::DestinationPort)?,
            _ if is_known_key(key) => self.field("key").unsupported(&format!("`{key}`"))?,
            _ => return Err(self.field("key").error(format!("`{key}` isn't an attribute of policies"))),
        }
        Ok(tests.tests)
    }

    /// Something Istio knows and this engine doesn't yet. In a policy that changes no verdict it does no harm.
    fn unsupported(&self, what: &str) -> Result<(), CompileError> {
        match self.scope.effect {
            Some(_) => Err(self.error(format!("{what} is not supported yet; remove it or the policy"))),
            None => Ok(()),
        }
    }
}

fn is_known_key(key: &str) -> bool {
    let of_a_map = |map: &str| key.strip_prefix(map).is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']'));
    matches!(
        key,
        "remote.ip" | "connection.sni" | "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter"
    ) || of_a_map("request.headers")
        || of_a_map("request.auth.claims")
        || key.starts_with("experimental.envoy.filters.")
}

/// Booleans as Go's `strconv.ParseBool` takes them.
fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The tests of one clause, gathered field by field.
struct Tests<'a> {
    place: &'a Place<'a>,
    tests: Vec<Test>,
}

impl Tests<'_> {
    /// A field and its `not` form.
    fn both<T>(
        &mut self,
        (yes, values): (&str, &[String]),
        (no, not_values): (&str, &[String]),
        parse: impl Fn(&str) -> Result<T, String>,
        wrap: impl Fn(Box<[T]>) -> Values,
    ) -> Result<(), CompileError> {
        for (name, values, negated) in [(yes, values, false), (no, not_values, true)] {
            if !values.is_empty() {
                let values = wrap(self.parse(name, values, &parse)?.into());
                let denies = self.place.scope.effect == Some(Effect::Deny);
                self.tests.push(Test { values, negated, leans_in: denies != negated });
            }
        }
        Ok(())
    }

    fn parse<T>(
        &self,
        name: &str,
        values: &[String],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, CompileError> {
        let field = self.place.field(name);
        let value = |(index, value): (u32, &String)| parse(value).map_err(|message| field.entry(index).error(message));
        (0u32..).zip(values).map(value).collect()
    }

    fn principals(
        &mut self,
        yes: &str,
        values: &[String],
        no: &str,
        not_values: &[String],
    ) -> Result<(), CompileError> {
        let trust_domains = &self.place.scope.options.trust_domains;
        let parse = |value: &str| -> Result<Vec<_>, _> {
            expand_aliases(value, trust_domains).iter().map(|value| StringPattern::parse(value)).collect()
        };
        let wrap = |values: Box<[Vec<StringPattern>]>| Values::Principal(values.into_iter().flatten().collect());
        self.both((yes, values), (no, not_values), parse, wrap)
    }

    fn namespaces(
        &mut self,
        yes: &str,
        values: &[String],
        no: &str,
        not_values: &[String],
    ) -> Result<(), CompileError> {
        self.both((yes, values), (no, not_values), NamespacePattern::parse, Values::Namespace)
    }

    fn accounts(&mut self, yes: &str, values: &[String], no: &str, not_values: &[String]) -> Result<(), CompileError> {
        let namespace = self.place.scope.name.namespace.clone();
        let parse = |value: &str| ServiceAccount::parse(value, &namespace);
        self.both((yes, values), (no, not_values), parse, Values::ServiceAccount)
    }

    /// The mesh's own trust domain and its aliases are one.
    fn trust_domains(
        &mut self,
        yes: &str,
        values: &[String],
        no: &str,
        not_values: &[String],
    ) -> Result<(), CompileError> {
        let aliases = &self.place.scope.options.trust_domains;
        let parse = |value: &str| {
            let pattern = StringPattern::parse_trust_domain(value)?;
            Ok(match pattern.exact() {
                Some(exact) if aliases.iter().any(|alias| alias == exact) => {
                    aliases.iter().map(|alias| StringPattern::Exact(alias.as_str().into())).collect()
                }
                _ => vec![pattern],
            })
        };
        let wrap = |values: Box<[Vec<StringPattern>]>| Values::TrustDomain(values.into_iter().flatten().collect());
        self.both((yes, values), (no, not_values), parse, wrap)
    }
}
