//! What a decision may look at.

use std::net::IpAddr;

use ambit_api::SpiffeId;

/// Facts that hold for a whole connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// The authenticated peer; nothing for plaintext.
    pub peer: Option<SpiffeId>,
    /// Address of the client (not of a waypoint in between). IPv4-mapped IPv6 is folded to IPv4.
    pub source_ip: IpAddr,
    /// Address the client asked for.
    pub destination_ip: IpAddr,
    /// Port the client asked for: the service port at a waypoint, the container port at a node proxy.
    pub destination_port: u16,
}

/// Facts of one HTTP request. At L4 there are none.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// The request target as sent, in origin form, query included, not normalised: `/v1/traces?x=1`.
    pub path: &'a str,
    /// `:authority` or `Host`, as sent, port included.
    pub authority: &'a str,
}
