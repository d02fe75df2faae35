//! From an address to the rules whose ranges hold it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::text::Ids;

/// Rules by address range. Ranges are in order of their start, wider ones first; each knows the narrowest other one
/// that it lies in, as prefixes of texts do.
#[derive(Debug, Default)]
pub(crate) struct AddressIndex {
    ranges: Box<[Range]>,
}

#[derive(Debug)]
struct Range {
    net: IpNet,
    parent: Option<u32>,
    ids: Ids,
}

// === impl AddressIndex ===

impl AddressIndex {
    /// Takes each range, its host bits zero, with the rules filed under it.
    pub(crate) fn new(filed: impl IntoIterator<Item = (IpNet, Vec<u32>)>) -> Self {
        let mut filed: Vec<_> = filed.into_iter().collect();
        filed.sort_unstable_by_key(|(net, _)| (net.addr(), net.prefix_len()));
        let mut ranges: Vec<Range> = Vec::with_capacity(filed.len());
        for (net, ids) in filed {
            let mut parent = ranges.len().checked_sub(1).and_then(|last| u32::try_from(last).ok());
            while let Some(range) = parent.and_then(|at| ranges.get(at as usize)) {
                if range.net.contains(&net) {
                    break;
                }
                parent = range.parent;
            }
            ranges.push(Range { net, parent, ids: ids.into() });
        }
        Self { ranges: ranges.into() }
    }

    /// The rules of each range that holds the address as it is, or read as IPv4 if it is one in IPv6's clothes.
    pub(crate) fn visit(&self, address: IpAddr, each: &mut dyn FnMut(&[u32])) {
        if self.ranges.is_empty() {
            return;
        }
        self.visit_one(address, each);
        let canonical = address.to_canonical();
        if canonical != address {
            self.visit_one(canonical, each);
        }
    }

    fn visit_one(&self, address: IpAddr, each: &mut dyn FnMut(&[u32])) {
        let after = self.ranges.partition_point(|range| range.net.addr() <= address);
        let mut at = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        while let Some(range) = at {
            if range.net.contains(&address) {
                each(&range.ids);
            }
            at = range.parent.and_then(|parent| self.ranges.get(parent as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_that_holds_an_address_is_found() {
        let nets =
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.9.0.0/16", "::/0", "fd00::/8"];
        let index = AddressIndex::new((0u32..).zip(nets).map(|(id, net)| (net.parse().expect("a range"), vec![id])));
        for (address, expected) in [
            ("10.1.2.3", &[0, 1, 2, 3, 4][..]),
            ("10.1.2.4", &[0, 1, 2, 3]),
            ("10.1.3.1", &[0, 1, 2]),
            ("10.5.0.1", &[0, 1]),
            ("11.0.0.1", &[0]),
            ("fd00::1", &[6, 7]),
            ("fe00::1", &[6]),
            ("::ffff:10.9.0.1", &[0, 1, 5, 6]),
        ] {
            let mut found = Vec::new();
            index.visit(address.parse().expect("an address"), &mut |ids| found.extend_from_slice(ids));
            found.sort_unstable();
            assert_eq!(found, expected, "{address}");
        }
    }
}
