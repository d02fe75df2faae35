//! What a rule can be filed under: values that a connection or request must have for the rule to match.

use std::borrow::Cow;

use ipnet::IpNet;

use super::text::Form;
use crate::{
    address::Cidr,
    headers::HeaderSource,
    pattern::{PathPattern, StringPattern},
    test::{Test, Values},
    token::ClaimPath,
};

/// One value of one attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key<'a> {
    Principal(Form, &'a str),
    Namespace(Form, &'a str),
    /// `namespace/sa/account`, as it stands in a principal.
    Account(String),
    TrustDomain(Form, &'a str),
    SourceIp(IpNet),
    RemoteIp(IpNet),
    DestinationIp(IpNet),
    DestinationPort(u16),
    Path(Form, &'a str),
    /// In lower case.
    Host(Form, Cow<'a, str>),
    Method(&'a str),
    Header(&'a str, &'a str),
    Claim(&'a ClaimPath, &'a str),
    Subject(&'a str),
}

/// The keys of a test such that it holds for nothing that has none of them. Nothing if there is no such set, or if it
/// would be of no help.
pub(crate) fn keys(test: &Test) -> Option<Vec<Key<'_>>> {
    if test.negated {
        return None;
    }
    match &test.values {
        Values::Principal(any_of) => each(any_of.patterns(), |value| text(value).map(|(f, t)| Key::Principal(f, t))),
        Values::TrustDomain(any_of) => each(any_of, |value| text(value).map(|(f, t)| Key::TrustDomain(f, t))),
        Values::Namespace(any_of) => each(any_of, |value| {
            match (value.exact(), value.prefix()) {
                (Some(exact), _) => Some(Key::Namespace(Form::Exact, exact)),
                (None, "") => None,
                // A star may take more than the namespace where it is matched loosely, but nothing before it.
                (None, prefix) => Some(Key::Namespace(Form::Prefix, prefix)),
            }
        }),
        Values::ServiceAccount(any_of) => each(any_of, |value| Some(Key::Account(value.in_principal()))),
        Values::SourceIp(any_of) => Some(ranges(any_of, Key::SourceIp)),
        Values::RemoteIp(any_of) => Some(ranges(any_of, Key::RemoteIp)),
        Values::DestinationIp(any_of) => Some(ranges(any_of, Key::DestinationIp)),
        Values::DestinationPort(any_of) => each(any_of, |port| Some(Key::DestinationPort(port.get()))),
        Values::Path(any_of) => each(any_of, |value| match value {
            PathPattern::Text(pattern) => text(pattern).map(|(form, text)| Key::Path(form, text)),
            PathPattern::Template(template) => Some(Key::Path(Form::Prefix, template.prefix())),
        }),
        Values::Host(any_of) => each(any_of, |value| {
            text(value).map(|(form, text)| match text.bytes().any(|b| b.is_ascii_uppercase()) {
                true => Key::Host(form, text.to_ascii_lowercase().into()),
                false => Key::Host(form, text.into()),
            })
        }),
        Values::Method(any_of) => each(any_of.patterns(), |value| value.exact().map(Key::Method)),
        Values::Header(name, any_of) => {
            let HeaderSource::Lines { name, unless_sent: None, .. } = &name.source else { return None };
            each(any_of.patterns(), |value| value.exact().map(|text| Key::Header(name, text)))
        }
        Values::Claim(path, any_of) => {
            each(any_of.patterns(), |value| value.exact().map(|text| Key::Claim(path, text)))
        }
        Values::RequestPrincipal(any_of) => each(any_of, |value| value.exact_subject().map(Key::Subject)),
        Values::Sni(_) => None,
    }
}

fn each<'a, T>(values: &'a [T], key: impl Fn(&'a T) -> Option<Key<'a>>) -> Option<Vec<Key<'a>>> {
    values.iter().map(key).collect()
}

fn ranges<'a>(cidrs: &[Cidr], key: fn(IpNet) -> Key<'a>) -> Vec<Key<'a>> {
    cidrs.iter().flat_map(|cidr| cidr.ranges()).map(|net| key(net.trunc())).collect()
}

fn text(pattern: &StringPattern) -> Option<(Form, &str)> {
    match pattern {
        StringPattern::Exact(text) => Some((Form::Exact, text)),
        StringPattern::Prefix(text) => Some((Form::Prefix, text)),
        StringPattern::Suffix(text) => Some((Form::Suffix, text)),
        StringPattern::Present => None,
    }
}

// === impl Key ===

impl Key<'_> {
    /// True if it is looked up for each request, and not once per connection.
    pub(crate) fn is_late(&self) -> bool {
        match self {
            Self::Path(..)
            | Self::Host(..)
            | Self::Method(_)
            | Self::Header(..)
            | Self::Claim(..)
            | Self::Subject(_) => true,
            Self::Principal(..)
            | Self::Namespace(..)
            | Self::Account(_)
            | Self::TrustDomain(..)
            | Self::SourceIp(_)
            | Self::RemoteIp(_)
            | Self::DestinationIp(_)
            | Self::DestinationPort(_) => false,
        }
    }

    /// How much it takes in, roughly, compared with an exact value.
    pub(crate) fn breadth(&self) -> u32 {
        match self {
            Self::Principal(form, text)
            | Self::Namespace(form, text)
            | Self::TrustDomain(form, text)
            | Self::Path(form, text) => Self::breadth_of(*form, text),
            Self::Host(form, text) => Self::breadth_of(*form, text),
            Self::SourceIp(net) | Self::RemoteIp(net) | Self::DestinationIp(net) => {
                if net.prefix_len() == net.max_prefix_len() { 1 } else { 4 }
            }
            Self::Method(_) | Self::DestinationPort(_) => 8,
            Self::Account(_) | Self::Header(..) | Self::Claim(..) | Self::Subject(_) => 1,
        }
    }

    fn breadth_of(form: Form, text: &str) -> u32 {
        match (form, text.len()) {
            (Form::Exact, _) => 1,
            // As `/*` for paths: nearly everything.
            (_, 0 | 1) => 1 << 16,
            _ => 4,
        }
    }
}
