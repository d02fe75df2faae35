//! Values as policies write them, parsed into matchers that can't be wrong.

use std::{fmt, net::IpAddr};

use ambit_api::SpiffeId;
use ipnet::{IpNet, Ipv4Net};

use crate::{
    limits::MAX_SERVICE_ACCOUNT_BYTES,
    template::{PathTemplate, is_template},
};

/// `foo`, `foo*`, `*foo` or `*` (`spec/authorization.md` 2.4). A `*` elsewhere stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StringPattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Present,
}

/// A value of `namespaces`: each `*` stands for any text, also in the middle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespacePattern {
    text: Box<str>,
}

/// A value of `serviceAccounts`, its namespace filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    written: IpNet,
    /// The same with IPv4-mapped IPv6 folded to IPv4.
    folded: IpNet,
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port(u16);

/// A value of `paths`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPattern {
    Text(StringPattern),
    Template(PathTemplate),
}

// === impl StringPattern ===

impl StringPattern {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "" => Err("is empty; remove it or write a value".to_owned()),
            "*" => Ok(Self::Present),
            _ => Ok(if let Some(suffix) = value.strip_prefix('*') {
                Self::Suffix(suffix.into())
            } else if let Some(prefix) = value.strip_suffix('*') {
                Self::Prefix(prefix.into())
            } else {
                Self::Exact(value.into())
            }),
        }
    }

    /// A value of `trustDomains`: one `*` at most, at an end.
    pub(crate) fn parse_trust_domain(value: &str) -> Result<Self, String> {
        if value.contains('/') {
            return Err(format!("`{value}` holds a `/`; write the trust domain alone"));
        }
        let pattern = Self::parse(value)?;
        let (Self::Exact(rest) | Self::Prefix(rest) | Self::Suffix(rest)) = &pattern else { return Ok(pattern) };
        if rest.contains('*') {
            return Err(format!("`{value}` may hold one `*`, at its start or end"));
        }
        Ok(pattern)
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(value) => **value == *text,
            Self::Prefix(value) => text.starts_with(&**value),
            Self::Suffix(value) => text.ends_with(&**value),
            Self::Present => true,
        }
    }

    pub(crate) fn matches_ignoring_case(&self, text: &str) -> bool {
        let (value, text) = (self.literal().as_bytes(), text.as_bytes());
        let part = match self {
            Self::Exact(_) => Some(text),
            Self::Prefix(_) => text.get(..value.len()),
            Self::Suffix(_) => text.len().checked_sub(value.len()).map(|at| &text[at..]),
            Self::Present => return true,
        };
        part.is_some_and(|part| part.eq_ignore_ascii_case(value))
    }

    pub(crate) fn exact(&self) -> Option<&str> {
        if let Self::Exact(value) = self { Some(value) } else { None }
    }

    fn literal(&self) -> &str {
        match self {
            Self::Exact(value) | Self::Prefix(value) | Self::Suffix(value) => value,
            Self::Present => "",
        }
    }
}

impl fmt::Display for StringPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => f.write_str(value),
            Self::Prefix(value) => write!(f, "{value}*"),
            Self::Suffix(value) => write!(f, "*{value}"),
            Self::Present => f.write_str("*"),
        }
    }
}

// === impl NamespacePattern ===

impl NamespacePattern {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "" => Err("is empty; remove it or write a namespace".to_owned()),
            _ if value.contains('/') => Err(format!("`{value}` holds a `/`; write the namespace alone")),
            _ => Ok(Self { text: value.into() }),
        }
    }

    /// The pieces between `*` in order: the first at the start, the last at the end, the others wherever they come
    /// first. Taking the first place is enough, since only the last piece is bound to a place.
    pub(crate) fn matches(&self, namespace: &str) -> bool {
        let Some((head, rest)) = self.text.split_once('*') else { return *self.text == *namespace };
        let Some(mut namespace) = namespace.strip_prefix(head) else { return false };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        for piece in middle.split('*') {
            let Some(at) = namespace.find(piece) else { return false };
            namespace = &namespace[at + piece.len()..];
        }
        namespace.ends_with(tail)
    }
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl ServiceAccount ===

impl ServiceAccount {
    /// `account` is one in the policy's own namespace, `namespace/account` one in another.
    pub(crate) fn parse(value: &str, policy_namespace: &str) -> Result<Self, String> {
        let (namespace, name) = value.split_once('/').unwrap_or((policy_namespace, value));
        if value.len() > MAX_SERVICE_ACCOUNT_BYTES {
            Err(format!("is longer than {MAX_SERVICE_ACCOUNT_BYTES} bytes"))
        } else if value.contains('*') {
            Err(format!("`{value}` holds a `*`; service accounts are named in full"))
        } else if namespace.is_empty() || name.is_empty() || name.contains('/') {
            Err(format!("`{value}` isn't `account` or `namespace/account`"))
        } else {
            Ok(Self { namespace: namespace.into(), name: name.into() })
        }
    }

    pub(crate) fn matches(&self, peer: &SpiffeId) -> bool {
        *self.namespace == *peer.namespace() && *self.name == *peer.service_account()
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl Cidr ===

/// Bits in front of the IPv4 address in an IPv4-mapped IPv6 address.
const MAPPED_PREFIX_BITS: u8 = 96;

impl Cidr {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        let net = if value.contains('/') {
            value.parse::<IpNet>().ok()
        } else {
            value.parse::<IpAddr>().ok().map(IpNet::from)
        };
        let net = net.ok_or_else(|| {
            format!("`{value}` isn't an address or a CIDR range; write for example `10.1.2.3` or `10.1.0.0/16`")
        })?;
        Ok(Self { written: net, folded: unmap(net) })
    }

    /// An IPv4-mapped IPv6 address should be folded to IPv4 before it comes here. If it isn't (or if the range is
    /// written so), it is read both ways; where the two differ it matches only if `leans_in`.
    pub(crate) fn matches(&self, address: IpAddr, leans_in: bool) -> bool {
        let (written, folded) = (self.written.contains(&address), self.folded.contains(&address.to_canonical()));
        if leans_in { written || folded } else { written && folded }
    }
}

fn unmap(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let (Some(address), Some(bits)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(MAPPED_PREFIX_BITS))
    else {
        return net;
    };
    Ipv4Net::new(address, bits).map_or(net, IpNet::V4)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.written;
        if net.prefix_len() == net.max_prefix_len() { net.addr().fmt(f) } else { net.fmt(f) }
    }
}

// === impl Port ===

impl Port {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        match value.parse() {
            Ok(port) if digits => Ok(Self(port)),
            _ => Err(format!("`{value}` isn't a port number from 0 to 65535")),
        }
    }

    pub(crate) fn matches(self, port: u16) -> bool {
        self.0 == port
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl PathPattern ===

impl PathPattern {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        if is_template(value) {
            return PathTemplate::parse(value).map(Self::Template);
        }
        if value.contains(['{', '}']) {
            return Err(format!(
                "`{value}` holds a `{{` or `}}` that isn't part of a whole segment `{{*}}` or `{{**}}`"
            ));
        }
        StringPattern::parse(value).map(Self::Text)
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }

    pub(crate) fn exact(&self) -> Option<&str> {
        if let Self::Text(pattern) = self { pattern.exact() } else { None }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(pattern) => pattern.fmt(f),
            Self::Template(template) => template.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching<'a>(pattern: &str, texts: &[&'a str]) -> Vec<&'a str> {
        let pattern = StringPattern::parse(pattern).expect("valid");
        texts.iter().copied().filter(|text| pattern.matches(text)).collect()
    }

    #[test]
    fn the_four_string_forms() {
        let texts = ["GET", "GETx", "xGET", "get"];
        assert_eq!(matching("GET", &texts), ["GET"]);
        assert_eq!(matching("GET*", &texts), ["GET", "GETx"]);
        assert_eq!(matching("*GET", &texts), ["GET", "xGET"]);
        assert_eq!(matching("*", &texts), texts);
        assert_eq!(matching("G*T", &texts), [""; 0], "a star in the middle stands for itself");
        assert!(StringPattern::parse("").is_err());
    }

    #[test]
    fn hosts_ignore_case_in_every_form() {
        for pattern in ["Web.Example.com", "WEB.*", "*.EXAMPLE.com", "*"] {
            let pattern = StringPattern::parse(pattern).expect("valid");
            assert!(pattern.matches_ignoring_case("web.example.COM"), "{pattern}");
        }
        for pattern in ["web.example.co", "web.example.com:80", "*.example.org", "xweb*", "*aweb.example.com"] {
            let pattern = StringPattern::parse(pattern).expect("valid");
            assert!(!pattern.matches_ignoring_case("web.example.com"), "{pattern}");
        }
        assert!(!StringPattern::parse("é*").expect("valid").matches_ignoring_case("e"), "no panic inside a character");
    }

    #[test]
    fn namespaces_take_stars_anywhere() {
        for (pattern, yes, no) in [
            ("team-a", "team-a", "team-ax"),
            ("team-*", "team-", "xteam-a"),
            ("*-a", "-a", "team-ab"),
            ("te*-a", "te-a", "te-b"),
            ("a*b*c", "abc", "acb"),
            ("a*b*b", "a-b-b", "ab"),
            ("*x*", "axb", "ab"),
            ("a*a", "aa", "a"),
        ] {
            let pattern = NamespacePattern::parse(pattern).expect("valid");
            assert!(pattern.matches(yes), "{pattern} {yes}");
            assert!(!pattern.matches(no), "{pattern} {no}");
        }
    }

    #[test]
    fn addresses_of_two_readings_match_only_where_that_denies() {
        let both = |cidr: &str, ip: &str| {
            let (cidr, ip) = (Cidr::parse(cidr).expect("valid"), ip.parse().expect("valid"));
            (cidr.matches(ip, false), cidr.matches(ip, true))
        };
        let (yes, no, depends) = ((true, true), (false, false), (false, true));
        assert_eq!(both("10.1.2.3/16", "10.1.255.1"), yes, "host bits are ignored");
        assert_eq!(both("10.1.2.3", "10.1.2.3"), yes);
        assert_eq!(both("10.1.2.3", "10.1.2.4"), no);
        assert_eq!(both("0.0.0.0/0", "fd00::1"), no);
        assert_eq!(both("::/0", "10.0.0.1"), no);
        assert_eq!(both("10.1.0.0/16", "::ffff:10.1.0.1"), depends);
        assert_eq!(both("::ffff:10.1.0.0/112", "10.1.0.1"), depends);
        assert_eq!(both("::ffff:10.1.0.0/112", "::ffff:10.1.0.1"), yes);
        assert_eq!(both("10.1.0.0/16", "::ffff:10.2.0.1"), no);
        for bad in ["", "10.1.2", "10.1.2.3/33", "http", "10.0.0.0/-1"] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_and_accounts_that_cannot_be_used_are_refused() {
        for bad in ["", "http", "-1", "+80", "65536", " 80", "8*"] {
            assert!(Port::parse(bad).is_err(), "{bad}");
        }
        assert!(Port::parse("0").is_ok() && Port::parse("65535").is_ok());
        for bad in ["", "*", "a/b/c", "/a", "a/", "team-*/a"] {
            assert!(ServiceAccount::parse(bad, "default").is_err(), "{bad}");
        }
        assert_eq!(ServiceAccount::parse("api", "default"), ServiceAccount::parse("default/api", "other"));
        for bad in ["", "a/b", "a*b", "*a*"] {
            assert!(StringPattern::parse_trust_domain(bad).is_err(), "{bad}");
        }
    }
}
