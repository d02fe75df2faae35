//! Which addresses keys may be fetched from: whoever may write a RequestAuthentication must not be able to make the control
//! plane ask what only it can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Ranges that were allowed on top of the public ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<IpNet>);

// === impl Ranges ===

impl Ranges {
    /// Those of a MeshConfig. What can't be read (validation refuses it) allows nothing.
    pub(crate) fn parse(written: &[String]) -> Self {
        let range = |text: &String| text.parse::<IpNet>().ok().or_else(|| Some(text.parse::<IpAddr>().ok()?.into()));
        Self(written.iter().filter_map(range).collect())
    }

    /// True if keys may be fetched from there.
    pub(crate) fn admit(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        is_public(ip) || self.0.iter().any(|range| range.contains(&ip))
    }
}

/// True for an address that anybody on the internet would reach just as well.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => match ip.segments() {
            // Translated (RFC 6052) and tunnelled (RFC 3056) addresses are as public as what is inside of them.
            [0x64, 0xff9b, 0, 0, 0, 0, a, b] => is_public_v4(embedded(a, b)),
            [0x2002, a, b, ..] => is_public_v4(embedded(a, b)),
            // Of 2000::/3, the only part that is given out: not documentation, and not Teredo, which hides an address.
            [0x2001, 0xdb8, ..] | [0x2001, 0, ..] | [0x3fff, 0..=0xfff, ..] => false,
            [first, ..] => first & 0xe000 == 0x2000 && ip != Ipv6Addr::UNSPECIFIED,
        },
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let shared = matches!(ip.octets(), [100, 64..=127, ..]);
    let special =
        matches!(ip.octets(), [0, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] | [240..=255, ..]);
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || shared
        || special)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_admitted_unless_allowed() {
        let ranges = Ranges::default();
        for public in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
        {
            assert!(ranges.admit(public.parse().expect("an address")), "{public}");
        }
        for refused in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "::7f00:1",
        ] {
            assert!(!ranges.admit(refused.parse().expect("an address")), "{refused}");
        }
    }

    #[test]
    fn a_mesh_config_allows_ranges_and_addresses() {
        let ranges = Ranges::parse(&["10.244.0.0/16".into(), "127.0.0.1".into(), "fd00::/8".into(), "nonsense".into()]);
        for (address, admitted) in [
            ("10.244.3.4", true),
            ("10.245.0.1", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("fd00::1", true),
            ("::ffff:10.244.0.1", true),
        ] {
            assert_eq!(ranges.admit(address.parse().expect("an address")), admitted, "{address}");
        }
    }
}
