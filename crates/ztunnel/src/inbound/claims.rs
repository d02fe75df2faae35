//! What a waypoint says of the client it speaks for. The guard decides whether it is believed.

use std::{net::SocketAddr, str::FromStr};

use ambit_api::SpiffeId;
use ambit_hbone::socket;
use http::{HeaderMap, header::FORWARDED};

use crate::guard::Claims;

/// Header in which a waypoint names the identity it speaks for.
const SOURCE_HEADER: &str = "ambit-source";

/// What the peer says of the client behind it; nothing if a header is malformed, doubled, or of a foreign trust domain.
pub(crate) fn claims(headers: &HeaderMap, trust_domain: &str) -> Option<Claims> {
    let single = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Some(None),
            (Some(value), None) => value.to_str().ok().map(Some),
            (Some(_), Some(_)) => None,
        }
    };
    let identity = match single(SOURCE_HEADER)? {
        Some(text) => Some(SpiffeId::from_str(text).ok().filter(|id| id.trust_domain() == trust_domain)?),
        None => None,
    };
    let address = match single(FORWARDED.as_str())? {
        Some(text) => forwarded_for(text)?,
        None => None,
    };
    Some(Claims { identity, address })
}

/// The `for` of a `forwarded` header of one element; the outer nothing if it is malformed.
fn forwarded_for(text: &str) -> Option<Option<SocketAddr>> {
    let mut address = None;
    for pair in text.split(';') {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            let parsed = socket::fold_mapped(SocketAddr::from_str(value.trim().trim_matches('"')).ok()?);
            let ip = parsed.ip();
            let usable = !(ip.is_unspecified() || ip.is_multicast());
            if !usable || address.replace(parsed).is_some() {
                return None;
            }
        }
    }
    Some(address)
}
