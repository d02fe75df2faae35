//! The redirection of a pod's traffic, as data and as one nftables transaction (`spec/control-plane.md` 5.4).
//!
//! Tables carry the names that Istio's agent gives them, so tools that look for them find them. They are of family `ip`:
//! pods have no IPv6 but their loopback, and a table of its own drops the rest, so link-local addresses are no way
//! around the capture.

mod encode;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

pub(crate) use encode::apply;

use crate::node::{POD_NETWORK, POD_PREFIX_LENGTH};
use crate::pod::Capture;

/// The mark of packets that the node proxy sends: not captured again.
pub const PROXY_MARK: u32 = 0x539;
/// The mark of connections that the node proxy made towards the application: replies come back to it.
pub const CONNECTION_MARK: u32 = 0x111;
/// The bits that marks are compared in.
pub const MARK_MASK: u32 = 0xfff;
/// The routing table in which everything is local.
pub(crate) const LOCAL_TABLE: u8 = 100;
/// The routing rule's preference.
pub(crate) const MARK_RULE_PRIORITY: u32 = 32_764;

const OUTBOUND_PORT: u16 = 15_001;
const INBOUND_PLAINTEXT_PORT: u16 = 15_006;
const INBOUND_HBONE_PORT: u16 = 15_008;
const DNS_PROXY_PORT: u16 = 15_053;
const DNS_PORT: u16 = 53;
/// Istio's source address of a node's probes.
const PROBE_SOURCE: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
const LOOPBACK: Prefix = Prefix(Ipv4Addr::LOCALHOST, 32);
const LOOPBACK_NETWORK: Prefix = Prefix(Ipv4Addr::new(127, 0, 0, 0), 8);
const PODS: Prefix = Prefix(POD_NETWORK, POD_PREFIX_LENGTH);
const DNS_ZONE: u16 = 1;
/// Where the proxy's own TCP connections are tracked, in the direction in which it opens them.
const PROXY_ZONE: u16 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(pub(crate) Ipv4Addr, pub(crate) u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Ip,
    Ip6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    PreRouting,
    Input,
    Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainType {
    Nat,
    Filter,
    /// Looks the route up again when the mark changes.
    Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    Tcp,
    Udp,
    SourceIs(Ipv4Addr),
    DestinationIs(Ipv4Addr),
    DestinationNotIn(Prefix),
    SourcePortIs(u16),
    DestinationPortIs(u16),
    DestinationPortNot(u16),
    MarkIs(u32),
    MarkNot(u32),
    ConnectionMarkIs(u32),
    OutLoopback,
    OutNotLoopback,
    InNotLoopback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Drop,
    /// To that port of this pod.
    Redirect(u16),
    SetConnectionMark(u32),
    /// The connection's mark becomes the packet's.
    RestoreMark,
    ConnectionZone(u16),
    /// The same, for packets that go the way of the first one. Answers stay in the zone that has no number.
    OriginalZone(u16),
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
    pub(crate) chains: Vec<Chain>,
}

#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) ty: ChainType,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<(Vec<Match>, Action)>,
}

/// Everything that goes into a pod's network namespace.
pub(crate) fn tables(capture: Capture) -> Vec<Table> {
    match capture {
        Capture::Mesh => vec![no_ipv6(), mangle(), nat(mesh_prerouting(), mesh_output()), mesh_raw()],
        Capture::Outside => vec![no_ipv6(), nat(Vec::new(), outside_output()), raw(Vec::new(), vec![apart()])],
        Capture::None => vec![no_ipv6()],
    }
}

/// IPv6 stays on the loopback.
fn no_ipv6() -> Table {
    let chain = |name, hook, away| Chain {
        name,
        ty: ChainType::Filter,
        hook,
        priority: 0,
        rules: vec![(vec![away], Action::Drop)],
    };
    Table {
        name: "ambit-no-ipv6",
        family: Family::Ip6,
        chains: vec![
            chain("input", Hook::Input, Match::InNotLoopback),
            chain("output", Hook::Output, Match::OutNotLoopback),
        ],
    }
}

fn table(name: &'static str, priority: i32, types: (ChainType, ChainType), rules: (Rules, Rules)) -> Table {
    let chain = |name, ty, hook, rules| Chain { name, ty, hook, priority, rules };
    Table {
        name,
        family: Family::Ip,
        chains: vec![
            chain("istio-prerouting", types.0, Hook::PreRouting, rules.0),
            chain("istio-output", types.1, Hook::Output, rules.1),
        ],
    }
}

type Rules = Vec<(Vec<Match>, Action)>;

fn mangle() -> Table {
    table(
        "istio-ambient-mangle",
        -150,
        (ChainType::Filter, ChainType::Route),
        (
            // Remembers connections that the proxy made towards the application ...
            vec![(vec![Match::MarkIs(PROXY_MARK)], Action::SetConnectionMark(CONNECTION_MARK))],
            // ... so that their replies are routed back to it, whatever address it used as its own.
            vec![(vec![Match::ConnectionMarkIs(CONNECTION_MARK)], Action::RestoreMark)],
        ),
    )
}

fn nat(prerouting: Rules, output: Rules) -> Table {
    table("istio-ambient-nat", -100, (ChainType::Nat, ChainType::Nat), (prerouting, output))
}

fn mesh_prerouting() -> Rules {
    vec![
        (vec![Match::SourceIs(PROBE_SOURCE), Match::Tcp], Action::Accept),
        (
            vec![
                Match::DestinationNotIn(LOOPBACK),
                Match::Tcp,
                Match::DestinationPortNot(INBOUND_HBONE_PORT),
                Match::MarkNot(PROXY_MARK),
            ],
            Action::Redirect(INBOUND_PLAINTEXT_PORT),
        ),
    ]
}

fn mesh_output() -> Rules {
    let [udp, tcp] = dns();
    vec![
        (vec![Match::DestinationIs(PROBE_SOURCE), Match::Tcp], Action::Accept),
        udp,
        tcp,
        (vec![Match::Tcp, Match::MarkIs(CONNECTION_MARK)], Action::Accept),
        (vec![Match::DestinationNotIn(LOOPBACK), Match::OutLoopback], Action::Accept),
        (
            vec![Match::DestinationNotIn(LOOPBACK), Match::Tcp, Match::MarkNot(PROXY_MARK)],
            Action::Redirect(OUTBOUND_PORT),
        ),
    ]
}

/// A pod outside of the mesh: names are answered and the outside world is reached through the host, but what it sends to
/// other pods goes as it is.
fn outside_output() -> Rules {
    let [udp, tcp] = dns();
    vec![
        udp,
        tcp,
        (
            vec![
                Match::DestinationNotIn(PODS),
                Match::DestinationNotIn(LOOPBACK_NETWORK),
                Match::Tcp,
                Match::MarkNot(PROXY_MARK),
            ],
            Action::Redirect(OUTBOUND_PORT),
        ),
    ]
}

fn dns() -> [(Vec<Match>, Action); 2] {
    let port = Match::DestinationPortIs(DNS_PORT);
    let unmarked = Match::MarkNot(PROXY_MARK);
    [
        (vec![Match::OutNotLoopback, Match::Udp, port, unmarked], Action::Redirect(DNS_PROXY_PORT)),
        (vec![Match::DestinationNotIn(LOOPBACK), Match::Tcp, port, unmarked], Action::Redirect(DNS_PROXY_PORT)),
    ]
}

fn raw(prerouting: Rules, output: Rules) -> Table {
    table("istio-ambient-raw", -300, (ChainType::Filter, ChainType::Filter), (prerouting, output))
}

/// Keeps the proxy's own questions to a nameserver, and its own connections, out of the redirection's connection tracking.
fn mesh_raw() -> Table {
    raw(
        vec![(
            vec![Match::Udp, Match::MarkNot(PROXY_MARK), Match::SourcePortIs(DNS_PORT)],
            Action::ConnectionZone(DNS_ZONE),
        )],
        vec![
            (
                vec![Match::Udp, Match::MarkIs(PROXY_MARK), Match::DestinationPortIs(DNS_PORT)],
                Action::ConnectionZone(DNS_ZONE),
            ),
            apart(),
        ],
    )
}

/// Tracks the proxy's connections apart from the application's. Only a connection's first packet is asked whether it is to
/// be redirected, and one that has the addresses and ports of a connection that is remembered isn't a first packet. The
/// proxy calls under the address of the application (or, of a pod's clients, under theirs), so its ports can come to be
/// theirs: what it called in vain is remembered for two minutes, and an application that then had the port would go past
/// the proxy. Istio's agent has no such rule.
fn apart() -> (Vec<Match>, Action) {
    // Answers have no mark. They are found in the zone without a number, where those of captured connections come from
    // the proxy's ports and so are never mistaken for them.
    (vec![Match::Tcp, Match::MarkIs(PROXY_MARK)], Action::OriginalZone(PROXY_ZONE))
}
