//! Entries for fuzzers: whatever the input, they return.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    headers::{BAGGAGE, ConnectHeaders, TRACEPARENT, X_FORWARDED_NETWORK},
    http2::fuzzing::frames,
};

/// Reads the input's lines as headers of a CONNECT. What is understood must be understood alike once written again.
///
/// # Panics
/// When it isn't.
pub fn connect_headers(input: &[u8]) {
    let names = [BAGGAGE, http::header::FORWARDED, TRACEPARENT, X_FORWARDED_NETWORK, HeaderName::from_static("other")];
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some((&name, value)) = line.split_first() else { continue };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(names[usize::from(name) % names.len()].clone(), value);
        }
    }
    let Ok(parsed) = ConnectHeaders::parse(&headers) else { return };
    let Ok(written) = parsed.to_map() else { return };
    let again = ConnectHeaders::parse(&written).expect("INVARIANT: what we write we understand");
    assert_eq!(again.forwarded, parsed.forwarded, "{headers:?}");
    assert_eq!(again.trace, parsed.trace, "{headers:?}");
    assert_eq!(again.network, parsed.network, "{headers:?}");
    assert_eq!(again.to_map(), Ok(written), "{headers:?}");
}

/// Plays the input to a connection as what its peer sends after the TLS handshake: the first byte's lowest bit says
/// whether it is a server (and adds the preface), the others how the rest is cut into pieces.
///
/// # Panics
/// When an invariant of the connection is broken.
pub fn connection(input: &[u8]) {
    if let Some((&first, rest)) = input.split_first() {
        frames(first & 1 == 1, usize::from(first >> 1) + 1, rest);
    }
}
