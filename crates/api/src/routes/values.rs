//! What values in routes may be.

use std::time::Duration;

use regex::bytes::{Regex, RegexBuilder};

use crate::limits::{MAX_COMPILED_PATTERN_BYTES, MAX_PATTERN_BYTES};

/// A duration as the Gateway API writes it (GEP-2257): `1h`, `500ms`, `1m30s`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let parsed = text.parse::<gateway_api::Duration>().ok()?;
    Some(Duration::from_millis(u64::try_from(parsed.as_millis()).ok()?))
}

/// An expression of a match, which the whole value must fulfil. Its size is bounded, and so is its time: both by the
/// value's length.
///
/// # Errors
/// Why it isn't one.
pub fn pattern(text: &str) -> Result<Regex, String> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(format!("it is longer than {MAX_PATTERN_BYTES} bytes"));
    }
    let compile = |text: &str| {
        let mut builder = RegexBuilder::new(text);
        builder.unicode(false).size_limit(MAX_COMPILED_PATTERN_BYTES).build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
            other => other.to_string().lines().last().unwrap_or("it isn't an expression").to_owned(),
        })
    };
    // By itself first: `a)|(b` must not get a meaning from what is put around it.
    compile(text)?;
    compile(&format!(r"\A(?:{text})\z"))
}

/// True for a header that routes may set, add or remove: not one that frames or addresses the message, concerns one hop,
/// or says what only the mesh knows.
#[must_use]
pub fn may_modify(header: &str) -> bool {
    !PROTECTED_HEADERS.iter().any(|name| header.eq_ignore_ascii_case(name)) && !header.starts_with(':')
}

const PROTECTED_HEADERS: [&str; 12] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "x-forwarded-client-cert",
    "ambit-source",
];
