//! The keys of `when` (`spec/authorization.md` 2.4).

use ambit_api::authorization_policy::Condition;

use super::{
    Place,
    field::{Side, Test, Values, any_of},
    value,
};
use crate::CompileError;

/// The parts of a condition: that one of its values matches, and that none of its `notValues` does.
pub(super) fn tests(condition: &Condition, place: &Place<'_>) -> Result<Vec<Test>, CompileError> {
    let key = Key::parse(&condition.key).ok_or_else(|| {
        place.at(".key").error(format!("`{}` isn't an attribute that a policy can look at", condition.key))
    })?;
    let render = |values: &[String], place: &Place<'_>| key.render(values, place);
    let lists = [(&condition.values, false, ".values"), (&condition.not_values, true, ".notValues")];
    let mut tests = Vec::new();
    for (values, negated, field) in lists {
        tests.extend(any_of(key.side(), values, negated, &place.at(field), render)?);
    }
    Ok(tests)
}

/// An attribute.
enum Key<'a> {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    DestinationPort,
    ServerName,
    RequestPrincipal,
    Header(&'a str),
    Claim(Vec<&'a str>),
    FilterMetadata { filter: &'a str, key: &'a str },
}

// === impl Key ===

impl<'a> Key<'a> {
    fn parse(key: &'a str) -> Option<Self> {
        Some(match key {
            "source.principal" => Self::Principal,
            "source.namespace" => Self::Namespace,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::ServerName,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Claim(vec!["aud"]),
            "request.auth.presenter" => Self::Claim(vec!["azp"]),
            _ => return Self::with_brackets(key),
        })
    }

    fn with_brackets(key: &'a str) -> Option<Self> {
        let (name, rest) = key.split_once('[')?;
        let inner = rest.strip_suffix(']').filter(|inner| !inner.is_empty())?;
        match name {
            "request.headers" => Some(Self::Header(inner)),
            "request.auth.claims" => {
                let path: Vec<_> = inner.split("][").collect();
                path.iter().all(|part| !part.is_empty()).then_some(Self::Claim(path))
            }
            _ => {
                let filter = name.strip_prefix("experimental.").filter(|filter| filter.starts_with("envoy."))?;
                Some(Self::FilterMetadata { filter, key: inner })
            }
        }
    }

    fn side(&self) -> Side {
        match self {
            Self::DestinationIp | Self::DestinationPort | Self::ServerName | Self::FilterMetadata { .. } => {
                Side::Permission
            }
            _ => Side::Principal,
        }
    }

    fn render(&self, values: &[String], place: &Place<'_>) -> Result<Values, CompileError> {
        match self {
            Self::Principal => value::principals(values, place),
            Self::Namespace => value::namespaces(values, place),
            Self::ServiceAccount => value::accounts(values, place),
            Self::TrustDomain => value::trust_domains(values, place),
            Self::SourceIp => value::source_ips(values, place),
            Self::RemoteIp => value::remote_ips(values, place),
            Self::DestinationIp => value::destination_ips(values, place),
            Self::DestinationPort => value::destination_ports(values, place),
            Self::ServerName => value::server_names(values, place),
            Self::RequestPrincipal => value::request_principals(values, place),
            Self::Header(name) => value::header(name, values),
            Self::Claim(path) => value::claim(path, values),
            Self::FilterMetadata { filter, key } => value::filter_metadata(filter, key, values),
        }
    }
}
