//! AuthorizationPolicy: Istio's own validation (`spec/authorization.md` 2.11; rows by number), and values that can never
//! match (2.12). Rows 12, 15 and the "nil" halves of 16, 17, 24 and 25 are wrong types, found when loading.

mod attachment;
mod condition;
mod path;
mod rule;
mod values;

use std::fmt;

pub(super) use self::{
    attachment::{Attached, check_attached, check_selector},
    values::{is_address_block, is_token},
};
use super::Check;
use crate::{AuthorizationPolicy, authorization_policy::Action, codes, text::quoted, yaml::Node};

/// Most rules in a policy, and most entries of `from` and `to` (2.1).
const MAX_ENTRIES: usize = 512;

/// The annotation that makes a policy report without enforcing.
const DRY_RUN: &str = "istio.io/dry-run";

/// Checks a whole policy.
pub(super) fn check(check: &mut Check<'_>, policy: &AuthorizationPolicy) {
    attachment::check(check, policy);
    check_dry_run(check, policy);
    check_action(check, policy);
    let rules = policy.spec.rules.as_deref().unwrap_or_default();
    at_most(check, "spec.rules", rules.len(), MAX_ENTRIES);
    let root = Field { parent: None, step: Step::Key("spec"), written: check.origin.node("spec") };
    let field = root.key("rules");
    for (index, rule) in rules.iter().enumerate() {
        rule::check(check, policy.spec.action, &field.item(index), rule);
    }
}

/// A field on the way down into a policy, with what is written there. It is made into text only for a diagnostic.
#[derive(Clone, Copy)]
struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    step: Step,
    written: Option<&'a Node>,
}

/// The last part of a field.
#[derive(Clone, Copy)]
enum Step {
    Key(&'static str),
    Item(usize),
}

/// What a list of values is checked as.
#[derive(Clone, Copy)]
struct List<'a> {
    /// The field that it is in, for example `spec.rules[0].to[0].operation`.
    parent: &'a Field<'a>,
    /// Its name there, for example `paths`.
    name: &'static str,
    values: &'a [String],
}

/// A value's field, for example `spec.rules[0].to[0].operation.paths[0]`. It is made into text only for a diagnostic.
#[derive(Clone, Copy)]
struct Element<'a>(List<'a>, usize);

impl Field<'_> {
    fn key(&self, key: &'static str) -> Field<'_> {
        let written = self.written.and_then(|node| node.get(key));
        Field { parent: Some(self), step: Step::Key(key), written }
    }

    fn item(&self, index: usize) -> Field<'_> {
        let written = self.written.and_then(|node| node.item(index));
        Field { parent: Some(self), step: Step::Item(index), written }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.parent, self.step) {
            (None, Step::Key(key)) => f.write_str(key),
            (Some(parent), Step::Key(key)) => write!(f, "{parent}.{key}"),
            (None, Step::Item(index)) => write!(f, "[{index}]"),
            (Some(parent), Step::Item(index)) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl<'a> List<'a> {
    fn each(self) -> impl Iterator<Item = (Element<'a>, &'a str)> {
        self.values.iter().enumerate().map(move |(index, value)| (Element(self, index), value.as_str()))
    }
}

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.parent, self.name)
    }
}

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.0, self.1)
    }
}

fn at_most(check: &mut Check<'_>, field: &(impl fmt::Display + ?Sized), found: usize, most: usize) {
    if found > most {
        let message = format!("{found} entries are more than the {most} allowed");
        check.error(codes::TOO_MANY, field, message, "split the policy");
    }
}

/// The words that Go's `ParseBool` takes.
fn check_dry_run(check: &mut Check<'_>, policy: &AuthorizationPolicy) {
    let Some(value) = policy.annotations.get(DRY_RUN) else { return };
    let words = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
    if !words.contains(&value.as_str()) {
        check.error(
            codes::BAD_DRY_RUN,
            &format!("metadata.annotations[{DRY_RUN}]"),
            format!("`{}` is not a boolean", quoted(value)),
            "write \"true\" or \"false\"",
        );
    } else if policy.spec.action == Action::Custom && value.starts_with(['1', 't', 'T']) {
        check.error(
            codes::CUSTOM_DRY_RUN,
            &format!("metadata.annotations[{DRY_RUN}]"),
            "CUSTOM can't be tried out by a dry run: what the policy matches would be denied",
            "remove the annotation, or the policy",
        );
    }
}

/// Rows 8, 9, 13 and 14.
fn check_action(check: &mut Check<'_>, policy: &AuthorizationPolicy) {
    let spec = &policy.spec;
    let provider = spec.provider.as_ref();
    if check.origin.is_null("spec.action") {
        let help = "write the action; left out altogether it is ALLOW";
        check.error(codes::WRONG_TYPE, "spec.action", "`action` has no value", help);
    }
    match spec.action {
        Action::Custom if spec.rules.is_none() => {
            let help = "add `rules`; `rules: [{}]` asks the provider about everything";
            check.error(codes::ACTION_WITHOUT_RULES, "spec.action", "CUSTOM without `rules` does nothing", help);
        }
        Action::Custom if provider.is_none_or(|provider| provider.name.is_empty()) => {
            let message = "CUSTOM needs `provider.name`";
            let field = if provider.is_some() { "spec.provider.name" } else { "spec.action" };
            check.error(codes::CUSTOM_WITHOUT_PROVIDER, field, message, "name the provider to ask");
        }
        Action::Deny if spec.rules.is_none() => {
            let help = "add `rules`; `rules: [{}]` denies everything";
            check.error(codes::ACTION_WITHOUT_RULES, "spec.action", "DENY without `rules` does nothing", help);
        }
        _ => {}
    }
    if spec.action != Action::Custom && provider.is_some() {
        let help = "remove it, or write `action: CUSTOM`";
        check.error(codes::PROVIDER_WITHOUT_CUSTOM, "spec.provider", "`provider` is only for CUSTOM", help);
    }
}
