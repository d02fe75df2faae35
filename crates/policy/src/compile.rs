//! From policies as users write them to rules (`spec/authorization.md` 2.2 to 2.6, 2.11, 2.12).

use std::borrow::Borrow;

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, Condition, From, Operation, Rule as WrittenRule, Source, To},
};

use crate::{
    CompileError, Options,
    address::{Cidr, Port},
    decide::Compiled,
    decision::{Decision, PolicyName, Verdict},
    headers::HeaderName,
    identity::{NamespacePattern, RequestPrincipal, ServiceAccount},
    limits::{MAX_CLAUSES, MAX_RULES, MAX_SERVICE_ACCOUNTS},
    pattern::{PathPattern, StringPattern, StringSet},
    principal::expand_aliases,
    program::{Policy, Program},
    rule::{Clause, Group, Part, Rule},
    test::{Test, Values},
    token::{CLAIMS, ClaimPath},
};

/// The annotation that makes a policy one that is never enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// Attributes that Istio knows and Ambit doesn't.
pub(crate) const UNSUPPORTED_KEYS: &str = "experimental.envoy.filters.";

/// Compiles the policies that apply to one target.
///
/// Attachment (`targetRefs`, `selector`) is not looked at: the caller passes those that apply.
///
/// # Errors
/// On the first field that has no usable value or isn't supported; nothing is skipped. The caller installs
/// [`Compiled::deny_all`] with the error as its reason.
pub fn compile(policies: &[impl Borrow<AuthorizationPolicy>], options: &Options) -> Result<Compiled, CompileError> {
    let (mut rules, mut compiled) = (Vec::new(), Vec::with_capacity(policies.len()));
    for policy in policies {
        let policy = policy.borrow();
        let scope = Scope::new(policy, options)?;
        let own = scope.rules(policy.spec.rules.as_deref().unwrap_or_default())?;
        compiled.push(Policy {
            name: scope.name,
            action: policy.spec.action,
            is_dry_run: scope.is_dry_run,
            provider: policy.spec.provider.as_ref().map(|provider| provider.name.as_str().into()),
            rules: rules.len()..rules.len() + own.len(),
        });
        rules.extend(own);
    }
    Ok(Compiled::new(Program::new(compiled, rules, options)))
}

/// What the parts of one policy need to know.
struct Scope<'a> {
    name: PolicyName,
    action: Action,
    is_dry_run: bool,
    options: &'a Options,
}

/// A place in a policy, and what is being read there.
struct Place<'a> {
    scope: &'a Scope<'a>,
    /// Where it is in. Its path is only put together for an error.
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

/// A field, or an entry of a list.
#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Entry(u32),
}

impl<'a> Scope<'a> {
    fn new(policy: &AuthorizationPolicy, options: &'a Options) -> Result<Self, CompileError> {
        let name = PolicyName { namespace: policy.namespace.as_str().into(), name: policy.name.as_str().into() };
        let error =
            |field: &str, message: String| CompileError { policy: name.clone(), field: field.to_owned(), message };
        let is_dry_run = match policy.annotations.get(DRY_RUN) {
            None => false,
            Some(value) => parse_bool(value).ok_or_else(|| {
                let field = format!("metadata.annotations[{DRY_RUN}]");
                error(&field, format!("`{value}` isn't a boolean; write `true` or `false`"))
            })?,
        };
        let action = policy.spec.action;
        match (&policy.spec.provider, action) {
            (Some(_), Action::Allow | Action::Deny | Action::Audit) => {
                return Err(error("spec.provider", "belongs only to a policy with action `CUSTOM`".to_owned()));
            }
            (None, Action::Custom) => {
                return Err(error("spec.provider", "is missing; name the provider that is asked".to_owned()));
            }
            (Some(provider), Action::Custom) if provider.name.is_empty() => {
                return Err(error("spec.provider.name", "is empty; name the provider that is asked".to_owned()));
            }
            _ => {}
        }
        Ok(Self { name, action, is_dry_run, options })
    }

    fn rules(&self, written: &[WrittenRule]) -> Result<Vec<Rule>, CompileError> {
        let place = Place { scope: self, parent: None, step: Step::Field("spec.rules") };
        place.at_most(written.len(), MAX_RULES)?;
        (0u32..).zip(written).map(|(index, rule)| self.rule(index, rule, &place.entry(index))).collect()
    }

    fn rule(&self, index: u32, written: &WrittenRule, place: &Place<'_>) -> Result<Rule, CompileError> {
        let mut groups = Vec::new();
        if let Some(from) = &written.from {
            let source = |place: &Place<'_>, From { source }: &From| place.field("source").source(source);
            groups.push(place.field("from").group(Part::From, from, source)?);
        }
        if let Some(to) = &written.to {
            let operation = |place: &Place<'_>, To { operation }: &To| place.field("operation").operation(operation);
            groups.push(place.field("to").group(Part::To, to, operation)?);
        }
        let when = place.field("when");
        let conditions = written.when.as_deref().unwrap_or_default();
        when.at_most(conditions.len(), MAX_CLAUSES)?;
        for (at, condition) in (0u32..).zip(conditions) {
            let clause = Clause::new(when.entry(at).condition(condition)?);
            groups.push(Group::new(Part::When(at), vec![clause]));
        }
        let verdict = if self.action == Action::Allow { Verdict::Allow } else { Verdict::Deny };
        let does = match self.action {
            Action::Allow => "allows it",
            Action::Deny => "denies it",
            Action::Audit => "records it",
            Action::Custom => "wants it authorized by a provider",
        };
        let decision = Decision {
            verdict,
            policy: Some(self.name.clone()),
            rule: Some(index),
            ..Decision::deny(format!("rule {index} of {} {does}", self.name))
        };
        Ok(Rule { index, groups: groups.into(), decision })
    }
}

impl Place<'_> {
    fn field<'b>(&'b self, name: &'b str) -> Place<'b> {
        Place { scope: self.scope, parent: Some(self), step: Step::Field(name) }
    }

    fn entry(&self, index: u32) -> Place<'_> {
        Place { scope: self.scope, parent: Some(self), step: Step::Entry(index) }
    }

    fn error(&self, message: impl Into<String>) -> CompileError {
        CompileError { policy: self.scope.name.clone(), field: self.path(), message: message.into() }
    }

    fn path(&self) -> String {
        let parent = self.parent.map(Self::path);
        match (parent, self.step) {
            (Some(parent), Step::Field(name)) => format!("{parent}.{name}"),
            (None, Step::Field(name)) => name.to_owned(),
            (parent, Step::Entry(index)) => format!("{}[{index}]", parent.unwrap_or_default()),
        }
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
        part: Part,
        entries: &[T],
        tests: impl Fn(&Place<'_>, &T) -> Result<Vec<Test>, CompileError>,
    ) -> Result<Group, CompileError> {
        if entries.is_empty() {
            return Err(self.error("is empty; remove it to match everything, or add an entry"));
        }
        self.at_most(entries.len(), MAX_CLAUSES)?;
        let clauses = (0u32..).zip(entries).map(|(index, entry)| tests(&self.entry(index), entry).map(Clause::new));
        Ok(Group::new(part, clauses.collect::<Result<_, _>>()?))
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
        let mut tests = Tests::new(self);
        tests.principals(Names::of("principals", "notPrincipals"), &source.principals, &source.not_principals)?;
        tests.request_principals(
            Names::of("requestPrincipals", "notRequestPrincipals"),
            &source.request_principals,
            &source.not_request_principals,
        )?;
        tests.namespaces(Names::of("namespaces", "notNamespaces"), &source.namespaces, &source.not_namespaces)?;
        tests.accounts(
            Names::of("serviceAccounts", "notServiceAccounts"),
            &source.service_accounts,
            &source.not_service_accounts,
        )?;
        let domains = Names::of("trustDomains", "notTrustDomains");
        tests.trust_domains(domains, &source.trust_domains, &source.not_trust_domains)?;
        let blocks = Names::of("ipBlocks", "notIpBlocks");
        tests.both(blocks, &source.ip_blocks, &source.not_ip_blocks, Cidr::parse, boxed(Values::SourceIp))?;
        let blocks = Names::of("remoteIpBlocks", "notRemoteIpBlocks");
        let remote = boxed(Values::RemoteIp);
        tests.both(blocks, &source.remote_ip_blocks, &source.not_remote_ip_blocks, Cidr::parse, remote)?;
        Ok(tests.tests)
    }

    fn operation(&self, operation: &Operation) -> Result<Vec<Test>, CompileError> {
        if operation.is_empty() {
            return Err(self.error("has no field; remove the entry to match every operation"));
        }
        let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = operation;
        let mut tests = Tests::new(self);
        let string = StringPattern::parse;
        tests.both(Names::of("hosts", "notHosts"), hosts, not_hosts, string, boxed(Values::Host))?;
        tests.both(Names::of("ports", "notPorts"), ports, not_ports, Port::parse, boxed(Values::DestinationPort))?;
        tests.both(Names::of("methods", "notMethods"), methods, not_methods, string, set(Values::Method))?;
        tests.both(Names::of("paths", "notPaths"), paths, not_paths, PathPattern::parse, boxed(Values::Path))?;
        Ok(tests.tests)
    }

    fn condition(&self, condition: &Condition) -> Result<Vec<Test>, CompileError> {
        let Condition { key, values, not_values } = condition;
        if values.is_empty() && not_values.is_empty() {
            return Err(self.error(format!("`{key}` needs `values` or `notValues`")));
        }
        let (names, yes, no) = (Names::CONDITION, values, not_values);
        let bad_key = |message: String| self.field("key").error(message);
        let mut tests = Tests::new(self);
        let string = StringPattern::parse;
        match key.as_str() {
            "source.principal" => tests.principals(names, yes, no)?,
            "source.namespace" => tests.namespaces(names, yes, no)?,
            "source.serviceAccount" => tests.accounts(names, yes, no)?,
            "source.trustDomain" => tests.trust_domains(names, yes, no)?,
            "source.ip" => tests.both(names, yes, no, Cidr::parse, boxed(Values::SourceIp))?,
            "remote.ip" => tests.both(names, yes, no, Cidr::parse, boxed(Values::RemoteIp))?,
            "destination.ip" => tests.both(names, yes, no, Cidr::parse, boxed(Values::DestinationIp))?,
            "destination.port" => tests.both(names, yes, no, Port::parse, boxed(Values::DestinationPort))?,
            "connection.sni" => tests.both(names, yes, no, string, set(Values::Sni))?,
            "request.auth.principal" => tests.request_principals(names, yes, no)?,
            "request.auth.audiences" => tests.claim(names, yes, no, &ClaimPath::of(key, "aud"))?,
            "request.auth.presenter" => tests.claim(names, yes, no, &ClaimPath::of(key, "azp"))?,
            _ if key.starts_with(UNSUPPORTED_KEYS) => {
                return Err(bad_key(format!("`{key}` is not supported: it reads what another proxy's filters know")));
            }
            _ => {
                if let Some(brackets) = key.strip_prefix(CLAIMS) {
                    tests.claim(names, yes, no, &ClaimPath::parse(brackets).map_err(bad_key)?)?;
                } else if let Some(header) = header(key) {
                    let name = HeaderName::parse(header).map_err(bad_key)?;
                    let wrap = |values| Values::Header(name.clone(), StringSet::new(values));
                    tests.both(names, yes, no, string, wrap)?;
                } else {
                    return Err(bad_key(format!("`{key}` isn't an attribute of policies")));
                }
            }
        }
        Ok(tests.tests)
    }
}

fn header(key: &str) -> Option<&str> {
    key.strip_prefix("request.headers[")?.strip_suffix(']')
}

/// A constructor of values, for vectors.
fn boxed<T>(wrap: fn(Box<[T]>) -> Values) -> impl Fn(Vec<T>) -> Values {
    move |values| wrap(values.into())
}

fn set(wrap: fn(StringSet) -> Values) -> impl Fn(Vec<StringPattern>) -> Values {
    move |values| wrap(StringSet::new(values))
}

/// Booleans as Go's `strconv.ParseBool` takes them.
fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A field and its `not` form, by name.
#[derive(Clone, Copy)]
struct Names {
    yes: &'static str,
    no: &'static str,
    /// They are the fields of a condition, whose key says what is meant.
    of_condition: bool,
}

impl Names {
    const CONDITION: Self = Self { yes: "values", no: "notValues", of_condition: true };

    fn of(yes: &'static str, no: &'static str) -> Self {
        Self { yes, no, of_condition: false }
    }
}

/// The tests of one clause, gathered field by field.
struct Tests<'a> {
    place: &'a Place<'a>,
    tests: Vec<Test>,
}

impl<'a> Tests<'a> {
    fn new(place: &'a Place<'a>) -> Self {
        Self { place, tests: Vec::new() }
    }

    /// A field and its `not` form.
    fn both<T>(
        &mut self,
        names: Names,
        values: &[String],
        not_values: &[String],
        parse: impl Fn(&str) -> Result<T, String>,
        wrap: impl Fn(Vec<T>) -> Values,
    ) -> Result<(), CompileError> {
        for (name, values, negated) in [(names.yes, values, false), (names.no, not_values, true)] {
            if !values.is_empty() {
                let values = wrap(self.parse(name, values, &parse)?);
                let denies = self.place.scope.action != Action::Allow;
                let field = (!names.of_condition).then_some(name);
                self.tests.push(Test { values, negated, leans_in: denies != negated, field });
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

    fn principals(&mut self, names: Names, values: &[String], not_values: &[String]) -> Result<(), CompileError> {
        let trust_domains = &self.place.scope.options.trust_domains;
        let parse = |value: &str| -> Result<Vec<_>, _> {
            expand_aliases(value, trust_domains).iter().map(|value| StringPattern::parse(value)).collect()
        };
        let wrap = |values: Vec<Vec<_>>| Values::Principal(StringSet::new(values.into_iter().flatten().collect()));
        self.both(names, values, not_values, parse, wrap)
    }

    fn request_principals(
        &mut self,
        names: Names,
        values: &[String],
        not_values: &[String],
    ) -> Result<(), CompileError> {
        self.both(names, values, not_values, RequestPrincipal::parse, boxed(Values::RequestPrincipal))
    }

    fn claim(
        &mut self,
        names: Names,
        values: &[String],
        not_values: &[String],
        path: &ClaimPath,
    ) -> Result<(), CompileError> {
        let wrap = |values| Values::Claim(path.clone(), StringSet::new(values));
        self.both(names, values, not_values, StringPattern::parse, wrap)
    }

    fn namespaces(&mut self, names: Names, values: &[String], not_values: &[String]) -> Result<(), CompileError> {
        self.both(names, values, not_values, NamespacePattern::parse, boxed(Values::Namespace))
    }

    fn accounts(&mut self, names: Names, values: &[String], not_values: &[String]) -> Result<(), CompileError> {
        let namespace = self.place.scope.name.namespace.clone();
        let parse = |value: &str| ServiceAccount::parse(value, &namespace);
        self.both(names, values, not_values, parse, boxed(Values::ServiceAccount))
    }

    /// The mesh's own trust domain and its aliases are one.
    fn trust_domains(&mut self, names: Names, values: &[String], not_values: &[String]) -> Result<(), CompileError> {
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
        let wrap = |values: Vec<Vec<_>>| Values::TrustDomain(values.into_iter().flatten().collect());
        self.both(names, values, not_values, parse, wrap)
    }
}
