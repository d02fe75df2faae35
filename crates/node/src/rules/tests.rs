//! What becomes of packets of a pod in the mesh, rule by rule (`spec/control-plane.md` 5.4): what real namespaces can't
//! easily be made to send. The rest is tried with real packets.

use std::net::Ipv4Addr;

use super::*;

/// A TCP packet that opens a connection, or a UDP one.
#[derive(Clone, Copy, Debug)]
struct Packet {
    tcp: bool,
    from: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
    mark: u32,
    over_loopback: bool,
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
const PROBE: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);

fn matches(packet: Packet, condition: Match) -> bool {
    let inside = |ip: Ipv4Addr, Prefix(network, length)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        u32::from(ip) & mask == u32::from(network) & mask
    };
    match condition {
        Match::Tcp => packet.tcp,
        Match::Udp => !packet.tcp,
        Match::SourceIs(ip) => packet.from == ip,
        Match::DestinationIs(ip) => packet.to == ip,
        Match::DestinationNotIn(prefix) => !inside(packet.to, prefix),
        // Packets that open connections, here always from a high port.
        Match::SourcePortIs(_) => false,
        Match::DestinationPortIs(port) => packet.port == port,
        Match::DestinationPortNot(port) => packet.port != port,
        Match::MarkIs(mark) => packet.mark & MARK_MASK == mark,
        Match::MarkNot(mark) => packet.mark & MARK_MASK != mark,
        Match::ConnectionMarkIs(_) => false,
        Match::OutLoopback => packet.over_loopback,
        Match::OutNotLoopback | Match::InNotLoopback => !packet.over_loopback,
    }
}

/// Where the first rule that matches redirects a packet to; nothing if it goes on as it is.
fn redirected(rules: &Rules, packet: Packet) -> Option<u16> {
    let hit = rules.iter().find(|(conditions, _)| conditions.iter().all(|condition| matches(packet, *condition)));
    match hit.map(|(_, action)| *action) {
        Some(Action::Redirect(port)) => Some(port),
        Some(Action::Accept) | None => None,
        Some(other) => panic!("{other:?} in a NAT chain"),
    }
}

#[test]
fn what_arrives() {
    let usual = Packet { tcp: true, from: PEER, to: POD, port: 8080, mark: 0, over_loopback: false };
    let cases = [
        ("a connection to the application", usual, Some(15_006)),
        ("a tunnel", Packet { port: 15_008, ..usual }, None),
        ("a probe of the node", Packet { from: PROBE, ..usual }, None),
        ("a probe of the HBONE port", Packet { from: PROBE, port: 15_008, ..usual }, None),
        ("a neighbour of the probe's address", Packet { from: Ipv4Addr::new(169, 254, 7, 126), ..usual }, Some(15_006)),
        (
            "the node itself, without the probe's address",
            Packet { from: Ipv4Addr::new(10, 244, 0, 1), ..usual },
            Some(15_006),
        ),
        ("what calls the outbound port", Packet { port: 15_001, ..usual }, Some(15_006)),
        ("what calls the plaintext port", Packet { port: 15_006, ..usual }, Some(15_006)),
        ("the proxy's own connection to the application", Packet { mark: PROXY_MARK, ..usual }, None),
        ("UDP", Packet { tcp: false, ..usual }, None),
        ("the pod's own loopback", Packet { to: Ipv4Addr::LOCALHOST, over_loopback: true, ..usual }, None),
    ];
    for (what, packet, expected) in cases {
        assert_eq!(redirected(&mesh_prerouting(), packet), expected, "{what}");
    }
}

#[test]
fn what_leaves() {
    let usual = Packet { tcp: true, from: POD, to: PEER, port: 8080, mark: 0, over_loopback: false };
    let cases = [
        ("a connection of the application", usual, Some(15_001)),
        ("to a probe's address", Packet { to: PROBE, ..usual }, None),
        ("the proxy's own", Packet { mark: PROXY_MARK, ..usual }, None),
        ("an answer of the proxy under another's address", Packet { mark: CONNECTION_MARK, ..usual }, None),
        ("the pod to its own address (hairpin)", Packet { to: POD, over_loopback: true, ..usual }, None),
        ("the pod to its loopback", Packet { to: Ipv4Addr::LOCALHOST, over_loopback: true, ..usual }, None),
        ("a question over UDP", Packet { tcp: false, port: 53, ..usual }, Some(15_053)),
        ("a question over TCP", Packet { port: 53, ..usual }, Some(15_053)),
        ("the proxy's question", Packet { tcp: false, port: 53, mark: PROXY_MARK, ..usual }, None),
        ("other UDP", Packet { tcp: false, ..usual }, None),
    ];
    for (what, packet, expected) in cases {
        assert_eq!(redirected(&mesh_output(), packet), expected, "{what}");
    }
}
