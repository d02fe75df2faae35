//! What an application behind an application tunnel is told of a connection: a PROXY protocol v2 header before the first
//! byte (`spec/ztunnel.md` 5.3). It says what TLS has proved, and nothing that a peer merely claims.

use std::{
    borrow::Cow,
    io,
    net::{IpAddr, SocketAddr},
};

use ambit_api::SpiffeId;
use proxy_header::{ProxiedAddress, ProxyHeader, Tlv};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// The field that names the client's SPIFFE identity.
pub(crate) const IDENTITY_TLV: u8 = 0xD0;

/// Sends the header of a connection from `source` to `destination`, as the client meant them.
///
/// # Errors
/// When the application is gone.
pub(crate) async fn introduce<S>(
    application: &mut S,
    source: SocketAddr,
    destination: SocketAddr,
    peer: Option<&SpiffeId>,
) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    application.write_all(&header(source, destination, peer)?).await
}

/// The header's bytes: no more than 2.2 KiB, since an identity has at most 2 KiB.
pub fn header(source: SocketAddr, destination: SocketAddr, peer: Option<&SpiffeId>) -> io::Result<Vec<u8>> {
    let (source, destination) = of_one_family(source, destination);
    let mut header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
    if let Some(peer) = peer {
        header.append_tlv(Tlv::Custom(IDENTITY_TLV, Cow::Owned(peer.to_string().into_bytes())));
    }
    let mut bytes = Vec::new();
    header.encode_v2(&mut bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(bytes)
}

/// The protocol knows one address family per header: of two, IPv4 is written as IPv6.
fn of_one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
    let mapped = |at: SocketAddr| match at.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), at.port()),
        IpAddr::V6(_) => at,
    };
    let (source, destination) = (canonical(source), canonical(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (mapped(source), mapped(destination))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use ambit_api::{SpiffeId, spiffe::MAX_SPIFFE_ID_BYTES};
    use proxy_header::{ParseConfig, ProxyHeader, Tlv};

    use super::{IDENTITY_TLV, header};
    use crate::tests::fixture::at;

    /// The fixed start of a v2 header, then "version 2, PROXY".
    const START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21";

    fn client() -> SpiffeId {
        SpiffeId::new("cluster.local", "ns", "client").expect("an identity")
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let bytes = header(at("10.0.0.1:258"), at("10.0.0.2:772"), Some(&client())).expect("a header");
        let identity = b"spiffe://cluster.local/ns/ns/sa/client";
        let mut expected = START.to_vec();
        // TCP over IPv4, length of the rest, the two addresses, the two ports, the field.
        expected.extend([0x11, 0, 12 + 3 + 38, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4, IDENTITY_TLV, 0, 38]);
        expected.extend(identity);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn every_pair_of_families_and_no_identity() {
        let cases = [
            ("10.0.0.1:1", "10.0.0.2:2", "10.0.0.1:1", "10.0.0.2:2", 0x11),
            ("[fd00::1]:1", "[fd00::2]:2", "[fd00::1]:1", "[fd00::2]:2", 0x21),
            ("10.0.0.1:1", "[fd00::2]:2", "[::ffff:10.0.0.1]:1", "[fd00::2]:2", 0x21),
            ("[fd00::1]:1", "10.0.0.2:2", "[fd00::1]:1", "[::ffff:10.0.0.2]:2", 0x21),
            ("[::ffff:10.0.0.1]:1", "10.0.0.2:2", "10.0.0.1:1", "10.0.0.2:2", 0x11),
        ];
        for (source, destination, shown_source, shown_destination, family) in cases {
            let bytes = header(at(source), at(destination), None).expect("a header");
            assert_eq!(&bytes[..START.len()], START);
            assert_eq!(bytes[START.len()], family, "{source} {destination}");
            let (read, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).expect("readable");
            assert_eq!(length, bytes.len());
            let shown = read.proxied_address().expect("addresses");
            let shown: [SocketAddr; 2] = [shown.source, shown.destination];
            assert_eq!(shown, [at(shown_source), at(shown_destination)]);
            assert_eq!(read.tlvs().count(), 0, "a client without an identity has no field for it");
        }
    }

    #[test]
    fn the_longest_identity_goes_whole() {
        let rest = "spiffe://cluster.local/ns//sa/client".len();
        let namespace = "n".repeat(MAX_SPIFFE_ID_BYTES - rest);
        let identity = SpiffeId::new("cluster.local", &namespace, "client").expect("at the bound");
        let bytes = header(at("10.0.0.1:1"), at("10.0.0.2:2"), Some(&identity)).expect("a header");
        let (read, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).expect("readable");
        let field = read.tlvs().next().expect("a field").expect("readable");
        assert_eq!(field, Tlv::Custom(IDENTITY_TLV, identity.to_string().into_bytes().into()));
    }
}
