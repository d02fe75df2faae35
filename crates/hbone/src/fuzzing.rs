//! Entries for fuzzers: whatever the input, they return.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    headers::{BAGGAGE, ConnectHeaders, TRACEPARENT, X_FORWARDED_NETWORK},
    http2::{
        fuzzing::{frames, pieces, tunnels},
        hpack,
    },
    limits::MAX_CONNECT_HEADER_BYTES,
};

/// Fields of a header block: names and values.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

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
    headers.remove(&names[4]);
    assert_eq!(ConnectHeaders::parse(&headers).as_ref(), Ok(&parsed), "other headers say something");
    written(&parsed);
}

/// Writes headers of a CONNECT, if they can be written, and reads them again. Nothing else is in them than what is meant.
///
/// # Panics
/// When there is.
pub fn written(headers: &ConnectHeaders) {
    let Ok(written) = headers.to_map() else { return };
    for (name, value) in &written {
        assert!(value.len() <= MAX_CONNECT_HEADER_BYTES, "{name} is too long: {headers:?}");
        let text = value.to_str().expect("INVARIANT: what we write is text");
        assert_eq!(text.trim(), text, "{name} has space around it, which HTTP/2 forbids: {headers:?}");
    }
    let again = ConnectHeaders::parse(&written).expect("INVARIANT: what we write we understand");
    assert_eq!(again.forwarded, headers.forwarded, "{headers:?}");
    assert_eq!(again.trace, headers.trace, "{headers:?}");
    assert_eq!(again.network, headers.network, "{headers:?}");
    assert_eq!(again.to_map(), Ok(written), "{headers:?}");
    if let Some((before, after)) = headers.baggage.as_ref().zip(again.baggage.as_ref()) {
        let fields = |of: &crate::Baggage| {
            let workload = of.workload.as_ref().map(|(_, name)| name.clone()).unwrap_or_default();
            let rest = [&of.cluster, &of.namespace, &of.service, &of.revision, &of.region, &of.zone];
            [rest.map(String::clone).as_slice(), &[workload]].concat()
        };
        for (before, after) in fields(before).into_iter().zip(fields(after)) {
            assert!(after.is_empty() || after == before, "`{after}` was `{before}`");
        }
    }
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

/// Takes the input apart as frames, at once and in pieces: the first byte says whether a server does and how many of the
/// next bytes are the pieces' lengths.
///
/// # Panics
/// When the pieces make a difference.
pub fn cut_connection(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    if let Some((cuts, bytes)) = rest.split_at_checked(usize::from(first >> 1 & 7) + 1) {
        pieces(first & 1 == 1, cuts, bytes);
    }
}

/// Plays the input as a script to both ends of a connection.
///
/// # Panics
/// When bytes are lost or changed, or the ends don't come to rest.
pub fn connection_ends(input: &[u8]) {
    tunnels(input);
}

/// Decodes header blocks that come one after another on one connection; after a corrupt one there is nothing.
///
/// # Panics
/// When the decoder keeps more than it may.
#[must_use]
pub fn header_blocks(blocks: &[&[u8]]) -> Vec<Option<Fields>> {
    let mut decoder = hpack::Decoder::default();
    let mut decoded = Vec::new();
    for block in blocks {
        let mut fields = Fields::new();
        let sound = decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec()))).is_ok();
        decoder.assert_bounded();
        decoded.push(sound.then_some(fields));
        if !sound {
            break;
        }
    }
    decoded
}

/// Encodes a header block.
#[must_use]
pub fn header_block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| hpack::encode(name, value, &mut block));
    block
}
