//! Why a tunnel is refused, as the peer is told (header `ambit-refusal` of the answer). Only authenticated peers get here;
//! what they say is a text for people, and proves nothing.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::limits::MAX_REFUSAL_BYTES;

/// Why the answer isn't 200, in one line of visible ASCII and spaces.
pub const REFUSAL: HeaderName = HeaderName::from_static("ambit-refusal");

/// The headers of an answer that says this; other characters are replaced, and what is too long is cut.
pub(crate) fn headers(reason: &str) -> HeaderMap {
    let is_plain = |char: &char| char.is_ascii_graphic() || *char == ' ';
    let plain: String =
        reason.chars().take(MAX_REFUSAL_BYTES).map(|char| if is_plain(&char) { char } else { '?' }).collect();
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(plain.trim())
        && !value.is_empty()
    {
        headers.insert(REFUSAL, value);
    }
    headers
}

/// What an answer says; nothing if it says none, says it twice, or not as it should.
pub(crate) fn reason(headers: &HeaderMap) -> Option<Arc<str>> {
    let mut values = headers.get_all(REFUSAL).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let text = value.to_str().ok()?.trim();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    (is_plain && !text.is_empty() && text.len() <= MAX_REFUSAL_BYTES).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_arrives_as_one_plain_line() {
        let arrives = |text: &str| reason(&headers(text));
        assert_eq!(arrives("policy `ns/a`, rule 1: no").as_deref(), Some("policy `ns/a`, rule 1: no"));
        assert_eq!(arrives("a\r\nb\u{1b}[31m\u{e9}\tc").as_deref(), Some("a??b?[31m??c"));
        assert_eq!(arrives(&"x".repeat(MAX_REFUSAL_BYTES + 1)).map(|text| text.len()), Some(MAX_REFUSAL_BYTES));
        assert_eq!(arrives("  "), None);
    }

    #[test]
    fn what_is_not_a_plain_line_is_not_taken() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(REFUSAL, HeaderValue::from_bytes(value).expect("a value"));
            }
            reason(&headers)
        };
        assert_eq!(of(&[b"why"]).as_deref(), Some("why"));
        let long = vec![b'x'; MAX_REFUSAL_BYTES + 1];
        let bad: [&[&[u8]]; 6] = [&[], &[b""], &[b"a", b"b"], &[b"a\tb"], &[b"caf\xc3\xa9"], &[&long]];
        for bad in bad {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }
}
