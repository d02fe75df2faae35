//! Values against texts, one way at a time.

use std::net::IpAddr;

/// A field and its `not` form: some value if there are any, and no refused one.
pub(super) fn both(values: &[String], not_values: &[String], matches: impl Fn(&str) -> bool) -> bool {
    (values.is_empty() || values.iter().any(|value| matches(value))) && !not_values.iter().any(|value| matches(value))
}

pub(super) fn string(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        true
    } else if let Some(end) = pattern.strip_prefix('*') {
        text.ends_with(end)
    } else if let Some(start) = pattern.strip_suffix('*') {
        text.starts_with(start)
    } else {
        pattern == text
    }
}

/// `*` for any text, anywhere.
pub(super) fn stars(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| stars(rest, &text[at..])),
        [byte, rest @ ..] => text.first() == Some(byte) && stars(rest, &text[1..]),
    }
}

/// Whether an address is in a block, with IPv4-mapped IPv6 read as IPv4 and as written. Where the two differ, it counts
/// as whatever denies.
pub(super) fn in_block(block: &str, ip: IpAddr, leans_in: bool) -> bool {
    let (net, bits) = block.split_once('/').map_or((block, None), |(net, bits)| (net, bits.parse::<u32>().ok()));
    let Ok(net) = net.parse::<IpAddr>() else { return false };
    let bits = bits.unwrap_or(if net.is_ipv4() { 32 } else { 128 });
    let written = same_start(net, ip, bits);
    let folded = match net {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && bits >= 96 => {
            same_start(net.to_canonical(), ip.to_canonical(), bits - 96)
        }
        _ => same_start(net, ip.to_canonical(), bits),
    };
    if leans_in { written || folded } else { written && folded }
}

pub(super) fn same_start(net: IpAddr, ip: IpAddr, bits: u32) -> bool {
    let digits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => format!("{:032b}", u32::from(ip)),
        IpAddr::V6(ip) => format!("{:0128b}", u128::from(ip)),
    };
    net.is_ipv4() == ip.is_ipv4()
        && digits(net).chars().zip(digits(ip).chars()).take(bits as usize).all(|(a, b)| a == b)
}

/// The same without folding.
pub(super) fn in_block_as_written(block: &str, ip: IpAddr) -> bool {
    let (net, bits) = block.split_once('/').map_or((block, None), |(net, bits)| (net, bits.parse::<u32>().ok()));
    net.parse::<IpAddr>().is_ok_and(|net| same_start(net, ip, bits.unwrap_or(if net.is_ipv4() { 32 } else { 128 })))
}

/// `.*/ns/NAMESPACE/.*` as a regular expression over the whole identity, `*` in the value being `.*`.
pub(super) fn loose_namespace(value: &str, principal: &str) -> bool {
    let id = format!("spiffe://{principal}");
    regex(format!("*/ns/{value}/*").as_bytes(), id.as_bytes())
}

/// `spiffe://.+/ns/NAMESPACE/(.+/|)sa/NAME(/.+)?` as a regular expression over the whole identity.
pub(super) fn loose_account(namespace: &str, name: &str, principal: &str) -> bool {
    let id = format!("spiffe://{principal}");
    let ways = ["/", "/+/"]
        .iter()
        .flat_map(|between| ["", "/+"].map(|after| format!("spiffe://+/ns/{namespace}{between}sa/{name}{after}")));
    ways.into_iter().any(|way| regex(way.as_bytes(), id.as_bytes()))
}

/// `*` for any text, `+` for any but none.
fn regex(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| regex(rest, &text[at..])),
        [b'+', rest @ ..] => (1..=text.len()).any(|at| regex(rest, &text[at..])),
        [byte, rest @ ..] => text.first() == Some(byte) && regex(rest, &text[1..]),
    }
}

/// Tries every way to split the path.
pub(super) fn template(pattern: &str, path: &str) -> bool {
    let plain = |text: &str| {
        text.chars().all(|c| {
            c.is_ascii_alphanumeric()
                || ['-', '.', '_', '~', '%', '!', '$', '&', '*'].contains(&c)
                || ['\'', '(', ')', '+', ',', ';', ':', '@', '='].contains(&c)
        })
    };
    let operator = match (pattern.find("{*}"), pattern.find("{**}")) {
        (None, None) => return pattern == path,
        (Some(one), None) => (one, 3),
        (None, Some(rest)) => (rest, 4),
        (Some(one), Some(rest)) => {
            if one < rest {
                (one, 3)
            } else {
                (rest, 4)
            }
        }
    };
    let (at, length) = operator;
    let Some(path) = path.strip_prefix(&pattern[..at]) else { return false };
    let takes = |text: &str| {
        if length == 3 { !text.is_empty() && plain(text) } else { plain(&text.replace('/', "")) }
    };
    let splits = (0..=path.len()).filter(|&end| path.is_char_boundary(end));
    splits.into_iter().any(|end| takes(&path[..end]) && template(&pattern[at + length..], &path[end..]))
}
