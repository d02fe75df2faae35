//! One field of a rule with its values, and whether it holds.

use std::{borrow::Cow, net::IpAddr};

use crate::{
    address::{Cidr, Port},
    facts::{ConnectionFacts, Peer, Sni},
    headers::HeaderName,
    identity::{NamespacePattern, RequestPrincipal, ServiceAccount},
    pattern::{PathPattern, StringPattern, StringSet},
    rule::Request,
    token::{ClaimPath, issuer_and_subject},
};

/// A field with its values.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) values: Values,
    /// It is the `not` form.
    pub(crate) negated: bool,
    /// What a fact counts as that can be read in two ways: as matching where a match helps to deny.
    pub(crate) leans_in: bool,
    /// The name of the field; nothing for a condition, which has its key.
    pub(crate) field: Option<&'static str>,
}

/// Which attribute, and what it takes. Any value is enough.
#[derive(Debug)]
pub(crate) enum Values {
    Principal(StringSet),
    Namespace(Box<[NamespacePattern]>),
    ServiceAccount(Box<[ServiceAccount]>),
    TrustDomain(Box<[StringPattern]>),
    SourceIp(Box<[Cidr]>),
    RemoteIp(Box<[Cidr]>),
    DestinationIp(Box<[Cidr]>),
    DestinationPort(Box<[Port]>),
    Sni(StringSet),
    Host(Box<[StringPattern]>),
    Method(StringSet),
    Path(Box<[PathPattern]>),
    RequestPrincipal(Box<[RequestPrincipal]>),
    Claim(ClaimPath, StringSet),
    Header(HeaderName, StringSet),
}

// === impl Test ===

impl Test {
    /// The field as policies write it, or the key of the condition.
    pub(crate) fn name(&self) -> Cow<'static, str> {
        if let Some(field) = self.field {
            return field.into();
        }
        match &self.values {
            Values::Principal(_) => "source.principal".into(),
            Values::Namespace(_) => "source.namespace".into(),
            Values::ServiceAccount(_) => "source.serviceAccount".into(),
            Values::TrustDomain(_) => "source.trustDomain".into(),
            Values::SourceIp(_) => "source.ip".into(),
            Values::RemoteIp(_) => "remote.ip".into(),
            Values::DestinationIp(_) => "destination.ip".into(),
            Values::DestinationPort(_) => "destination.port".into(),
            Values::Sni(_) => "connection.sni".into(),
            Values::RequestPrincipal(_) => "request.auth.principal".into(),
            Values::Claim(path, _) => path.to_string().into(),
            Values::Header(name, _) => format!("request.headers[{name}]").into(),
            Values::Host(_) => "hosts".into(),
            Values::Method(_) => "methods".into(),
            Values::Path(_) => "paths".into(),
        }
    }

    /// Whether it waits for the request. The server name of a TLS handshake does too: where HTTP is seen there is none.
    pub(crate) fn is_late(&self) -> bool {
        match self.values {
            Values::Sni(_)
            | Values::Host(_)
            | Values::Method(_)
            | Values::Path(_)
            | Values::RequestPrincipal(_)
            | Values::Claim(..)
            | Values::Header(..) => true,
            Values::Principal(_)
            | Values::Namespace(_)
            | Values::ServiceAccount(_)
            | Values::TrustDomain(_)
            | Values::SourceIp(_)
            | Values::RemoteIp(_)
            | Values::DestinationIp(_)
            | Values::DestinationPort(_) => false,
        }
    }

    /// Whether it holds. A late test never does here.
    pub(crate) fn holds_for_connection(&self, connection: &ConnectionFacts) -> bool {
        let peer = connection.peer.as_ref();
        let address = |any_of: &[Cidr], ip: IpAddr| any_of.iter().any(|cidr| cidr.matches(ip, self.leans_in));
        let matched = match &self.values {
            Values::Principal(any_of) => match peer {
                Some(peer) => any_of.matches(peer.principal().as_bytes()),
                // No identity matches no value, and so satisfies the `not` form. But to an Istio waypoint such a client
                // does match `*`: there it counts as whatever denies.
                None => self.leans_in && any_of.patterns().contains(&StringPattern::Present),
            },
            Values::Namespace(any_of) => peer.is_some_and(|peer| {
                let known = peer.id().is_some_and(|id| any_of.iter().any(|value| value.matches(id.namespace())));
                known || (self.leans_in && any_of.iter().any(|value| value.matches_loosely(peer.principal())))
            }),
            Values::ServiceAccount(any_of) => peer.is_some_and(|peer| {
                let known = peer.id().is_some_and(|id| any_of.iter().any(|account| account.matches(id)));
                known || (self.leans_in && any_of.iter().any(|account| account.matches_loosely(peer.principal())))
            }),
            Values::TrustDomain(any_of) => peer.is_some_and(|peer| {
                any_of.iter().any(|value| match trust_domain(peer) {
                    Some(domain) => value.matches(domain.as_bytes()),
                    None => *value == StringPattern::Present,
                })
            }),
            Values::SourceIp(any_of) => address(any_of, connection.source_ip),
            Values::RemoteIp(any_of) => address(any_of, connection.remote_ip()),
            Values::DestinationIp(any_of) => address(any_of, connection.destination_ip),
            Values::DestinationPort(any_of) => any_of.iter().any(|port| port.get() == connection.destination_port),
            _ => return false,
        };
        matched != self.negated
    }

    /// Whether it holds. Only a late test can.
    pub(crate) fn holds_for_request(&self, request: &Request<'_>) -> bool {
        let matched = match &self.values {
            Values::Sni(_) => false,
            Values::Host(any_of) => any_of.iter().any(|value| value.matches_ignoring_case(request.host.as_bytes())),
            Values::Method(any_of) => any_of.matches(request.method.as_bytes()),
            Values::Path(any_of) => any_of.iter().any(|pattern| pattern.matches(request.path)),
            Values::RequestPrincipal(any_of) => request
                .claims
                .and_then(issuer_and_subject)
                .is_some_and(|(issuer, subject)| any_of.iter().any(|principal| principal.matches(issuer, subject))),
            Values::Claim(path, any_of) => {
                request.claims.is_some_and(|claims| path.any(claims, |text| any_of.matches(text.as_bytes())))
            }
            Values::Header(name, any_of) => name.matches(any_of, request, self.leans_in),
            _ => return false,
        };
        matched != self.negated
    }

    /// Whether a late test holds on a connection that is judged without a request; nothing if that is open.
    pub(crate) fn holds_at_l4(&self, connection: &ConnectionFacts) -> Option<bool> {
        let Values::Sni(any_of) = &self.values else { return None };
        let matched = match &connection.sni {
            Sni::Unknown => return None,
            Sni::Absent => false,
            Sni::Name(name) => {
                let matches = |value: &StringPattern| value.matches_lower_cased(name.as_bytes());
                !name.is_empty() && any_of.patterns().iter().any(matches)
            }
        };
        Some(matched != self.negated)
    }
}

/// The trust domain of any peer, a workload or not; nothing if its name has no path.
pub(crate) fn trust_domain(peer: &Peer) -> Option<&str> {
    peer.principal().split_once('/').map(|(domain, _)| domain)
}
