//! What requests are assigned to endpoints by. Every waypoint assigns them the same way, so nothing here is random.

use std::net::{IpAddr, SocketAddr};

use ambit_mesh::view::destinations::HashBy;
use http::{Request, header::COOKIE};

/// The number that a request is assigned by; nothing if it has no such value.
pub(super) fn of_request<B>(by: &HashBy, request: &Request<B>, client: IpAddr) -> Option<u64> {
    match by {
        HashBy::Header(name) => {
            let mut lines = request.headers().get_all(name).iter().peekable();
            lines.peek()?;
            Some(lines.fold(START, |state, line| step(state, line.as_bytes())))
        }
        HashBy::Cookie(name) => {
            let lines = request.headers().get_all(COOKIE).iter();
            let mut pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
            let value = pairs.find_map(|pair| value_of(pair.trim_ascii(), name.as_bytes()));
            value.map(|value| step(START, value))
        }
        HashBy::Query(name) => {
            let mut pairs = request.uri().query()?.as_bytes().split(|byte| *byte == b'&');
            pairs.find_map(|pair| value_of(pair, name.as_bytes())).map(|value| step(START, value))
        }
        HashBy::Source => Some(of_address(client)),
    }
}

/// The number that a connection is assigned by.
pub(super) fn of_connection(by: &HashBy, client: IpAddr) -> Option<u64> {
    matches!(by, HashBy::Source).then(|| of_address(client))
}

/// An endpoint's own number.
pub(super) fn of_endpoint(address: SocketAddr) -> u64 {
    step(of_address(address.ip()), &address.port().to_be_bytes())
}

/// How much a request belongs to an endpoint: it goes where that is highest, so that an endpoint that comes or goes moves
/// only its own share.
pub(super) fn score(request: u64, endpoint: u64, weight: u32) -> f64 {
    // In (0, 1], all values equally likely; 53 bits are what fits.
    let unit = ((mix(request ^ endpoint.rotate_left(32)) >> 11) as f64 + 1.0) / 9_007_199_254_740_992.0;
    if weight == 1 { unit } else { unit.powf(1.0 / f64::from(weight.max(1))) }
}

/// FNV-1a.
const START: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

fn step(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(PRIME))
}

fn of_address(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => step(START, &ip.octets()),
        IpAddr::V6(ip) => step(START, &ip.octets()),
    }
}

/// Spreads what differs in few bits over all of them (the end of MurmurHash3).
fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// The value in `name=value`.
fn value_of<'a>(pair: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    pair.strip_prefix(name)?.strip_prefix(b"=")
}
