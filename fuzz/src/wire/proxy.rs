//! What an application says to the proxy and the proxy to an application.

use std::net::{IpAddr, SocketAddr};

use ambit_api::SpiffeId;
use arbitrary::{Result, Unstructured};
use ppp::v2;

use crate::text;

/// The field with the client's identity.
const IDENTITY: u8 = 0xd0;
/// Longer identities aren't written.
const MAX_IDENTITY_BYTES: usize = 2048;

/// A PROXY v2 header says to the other implementation what it is meant to say.
pub(super) fn written(bytes: &[u8]) {
    let Ok((source, destination, peer)) = facts(&mut Unstructured::new(bytes)) else { return };
    let Ok(header) = ambit_ztunnel::fuzzing::proxy_header(source, destination, peer.as_ref()) else {
        let name = peer.expect("only an identity can be too much").to_string();
        return assert!(name.len() > MAX_IDENTITY_BYTES, "`{name}` wasn't written");
    };
    assert!(peer.as_ref().is_none_or(|peer| peer.to_string().len() <= MAX_IDENTITY_BYTES));
    // What the application reads after it must not be taken for a part of it.
    let read = [&header[..], bytes].concat();
    let parsed = v2::Header::try_from(read.as_slice()).expect("a header");
    assert_eq!((parsed.len(), parsed.version, parsed.command), (header.len(), v2::Version::Two, v2::Command::Proxy));
    assert_eq!(parsed.protocol, v2::Protocol::Stream);
    let shown = match parsed.addresses {
        v2::Addresses::IPv4(v4) => [
            SocketAddr::from((v4.source_address, v4.source_port)),
            SocketAddr::from((v4.destination_address, v4.destination_port)),
        ],
        v2::Addresses::IPv6(v6) => [
            SocketAddr::from((v6.source_address, v6.source_port)),
            SocketAddr::from((v6.destination_address, v6.destination_port)),
        ],
        other => panic!("addresses of another kind: {other:?}"),
    };
    let plain = |at: SocketAddr| (at.ip().to_canonical(), at.port());
    assert_eq!(shown.map(plain), [plain(source), plain(destination)]);
    assert!(shown[0].is_ipv4() || !shown.iter().all(|at| at.ip().to_canonical().is_ipv4()), "IPv4 in disguise");
    let fields: Vec<_> = parsed.tlvs().map(|field| field.expect("a sound field")).collect();
    let expected: Vec<_> = peer.iter().map(ToString::to_string).collect();
    let fields: Vec<_> = fields.iter().map(|field| (field.kind, &*field.value)).collect();
    assert_eq!(fields, expected.iter().map(|name| (IDENTITY, name.as_bytes())).collect::<Vec<_>>());
}

fn facts(u: &mut Unstructured<'_>) -> Result<(SocketAddr, SocketAddr, Option<SpiffeId>)> {
    let at = |u: &mut Unstructured<'_>| -> Result<SocketAddr> {
        let ip = match u.int_in_range(0..=2)? {
            0 => IpAddr::V4(u.arbitrary()?),
            1 => IpAddr::V6(u.arbitrary()?),
            _ => IpAddr::V6(u.arbitrary::<std::net::Ipv4Addr>()?.to_ipv6_mapped()),
        };
        Ok(SocketAddr::new(ip, u.arbitrary()?))
    };
    let (source, destination) = (at(u)?, at(u)?);
    let part = |u: &mut Unstructured<'_>| match u.int_in_range(0..=3)? {
        0 => text(u),
        1 => Ok("n".repeat(u.int_in_range(1..=2400)?)),
        _ => u.choose(&["cluster.local", "ns", "a-b"]).map(|part| (*part).to_owned()),
    };
    let (domain, namespace, account) = (part(u)?, part(u)?, part(u)?);
    Ok((source, destination, SpiffeId::new(&domain, &namespace, &account).ok()))
}

pub(super) fn socks5_seeds() -> Vec<Vec<u8>> {
    let requests: [&[u8]; 5] = [
        b"\x05\x01\0\x05\x01\0\x01\x0a\0\0\x01\0\x50",
        b"\x05\x02\0\x02\x05\x01\0\x03\x03web\0\x50GET",
        b"\x05\x01\0\x05\x01\0\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x01\0\x50",
        b"\x05\x01\0\x05\x01\0\x03\x08\x31\x30.0.0.1\0\x50",
        b"\x05\x01\x02",
    ];
    requests.map(<[u8]>::to_vec).to_vec()
}
