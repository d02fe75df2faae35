//! Addresses and ports as policies write them, parsed into matchers that can't be wrong.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};

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

    /// Every range that an address must be in, as written or folded, for any match.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = IpNet> {
        [self.written, self.folded].into_iter().take(if self.written == self.folded { 1 } else { 2 })
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

    pub(crate) fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn ports_that_cannot_be_used_are_refused() {
        for bad in ["", "http", "-1", "+80", "65536", " 80", "8*"] {
            assert!(Port::parse(bad).is_err(), "{bad}");
        }
        assert!(Port::parse("0").is_ok() && Port::parse("65535").is_ok());
    }
}
