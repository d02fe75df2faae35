//! A JSON Web Token in its compact form (RFC 7515, 7519), before its signature is checked.

use ambit_api::jwks::Algorithm;
use ambit_mesh::view::bare_audience;
use ambit_policy::Claims;
use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;

use crate::limits::{CLOCK_SKEW_SECONDS, MAX_TOKEN_BYTES, MAX_TOKEN_NESTING};

/// A token, read but not believed.
#[derive(Debug)]
pub(super) struct Token {
    /// Header and payload as they were signed, with the point between them.
    pub(super) signed: Box<str>,
    pub(super) signature: Box<[u8]>,
    pub(super) algorithm: Algorithm,
    /// Its `kid`, if it has one.
    pub(super) key: Option<Box<str>>,
    pub(super) claims: Claims,
    pub(super) times: Times,
}

/// From when and until when a token holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) not_before: Option<u64>,
    pub(super) expires: Option<u64>,
}

/// Why a token isn't believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    BadFormat,
    HeaderBase64,
    HeaderJson,
    NoAlgorithm,
    UnsupportedAlgorithm,
    KeyNotText,
    Critical,
    PayloadBase64,
    PayloadJson,
    /// A registered claim of the wrong kind.
    Claim(&'static str),
    SignatureBase64,
    UnknownIssuer,
    NotYetValid,
    Expired,
    AudienceNotAllowed,
    /// The issuer's keys couldn't be had.
    NoKeys,
    NoSuchKey,
    BadSignature,
}

// === impl Token ===

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// What is wrong with its form, or with a claim that has a meaning of its own.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::BadFormat);
        };
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Failure::BadFormat);
        }
        let (algorithm, key) = Self::header(header)?;
        let claims = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| Failure::PayloadBase64)?;
        let claims = object(&claims).ok_or(Failure::PayloadJson)?;
        let times = registered(&claims)?;
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| Failure::SignatureBase64)?;
        let signed = &text[..header.len() + 1 + payload.len()];
        Ok(Self { signed: signed.into(), signature: signature.into(), algorithm, key, claims, times })
    }

    fn header(text: &str) -> Result<(Algorithm, Option<Box<str>>), Failure> {
        let header = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Failure::HeaderBase64)?;
        let header = object(&header).ok_or(Failure::HeaderJson)?;
        let Some(Value::String(algorithm)) = header.get("alg") else { return Err(Failure::NoAlgorithm) };
        let algorithm = Algorithm::named(algorithm).ok_or(Failure::UnsupportedAlgorithm)?;
        let key = match header.get("kid") {
            None => None,
            Some(Value::String(key)) => Some(key.as_str()).filter(|key| !key.is_empty()).map(Box::from),
            Some(_) => return Err(Failure::KeyNotText),
        };
        // What must be understood and isn't changes what was signed (RFC 7515, 4.1.11).
        if header.contains_key("crit") { Err(Failure::Critical) } else { Ok((algorithm, key)) }
    }

    /// Its `iss`.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Its `aud`, as they are compared.
    pub(super) fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, list) = match self.claims.get("aud") {
            Some(Value::String(one)) => (Some(one.as_str()), &[][..]),
            Some(Value::Array(list)) => (None, list.as_slice()),
            _ => (None, &[][..]),
        };
        one.into_iter().chain(list.iter().filter_map(Value::as_str)).map(bare_audience)
    }
}

/// Turns the text of these claims into a list.
pub(super) fn split_lists(claims: &mut Claims, names: &[Box<str>]) {
    for name in names {
        if let Some(claim) = claims.get_mut(&**name)
            && let Value::String(text) = claim
        {
            *claim = text.split(' ').filter(|word| !word.is_empty()).collect();
        }
    }
}

/// An object that isn't nested deeper than claims have a reason to be.
fn object(text: &[u8]) -> Option<Claims> {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_TOKEN_NESTING {
            return None;
        }
    }
    serde_json::from_slice(text).ok()
}

/// Checks the registered claims.
fn registered(claims: &Claims) -> Result<Times, Failure> {
    for name in ["iss", "sub", "jti"] {
        if claims.get(name).is_some_and(|claim| !claim.is_string()) {
            return Err(Failure::Claim(name));
        }
    }
    let audience = claims.get("aud").is_none_or(|audience| match audience {
        Value::String(_) => true,
        Value::Array(list) => list.iter().all(Value::is_string),
        _ => false,
    });
    if !audience {
        return Err(Failure::Claim("aud"));
    }
    let time = |name| match claims.get(name) {
        None => Ok(None),
        Some(value) => seconds(value).map(Some).ok_or(Failure::Claim(name)),
    };
    time("iat")?;
    Ok(Times { not_before: time("nbf")?, expires: time("exp")? })
}

/// A moment in seconds; parts of a second don't count.
fn seconds(value: &Value) -> Option<u64> {
    // INVARIANT: a float turned into an integer saturates.
    value.as_u64().or_else(|| value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64))
}

// === impl Times ===

impl Times {
    /// Whether a token with these holds now, for a clock that may be off a little.
    pub(super) fn check(&self, now: u64) -> Result<(), Failure> {
        if self.not_before.is_some_and(|from| from > now.saturating_add(CLOCK_SKEW_SECONDS)) {
            return Err(Failure::NotYetValid);
        }
        if self.expires.is_some_and(|until| now > until.saturating_add(CLOCK_SKEW_SECONDS)) {
            return Err(Failure::Expired);
        }
        Ok(())
    }
}

// === impl Failure ===

impl Failure {
    /// What the client is told: the texts of Envoy's `jwt_authn`.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::BadFormat => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::NoAlgorithm => "Jwt header [alg] field is required and must be a string",
            Self::UnsupportedAlgorithm => "Jwt header [alg] is not supported",
            Self::KeyNotText => "Jwt header [kid] field is not a string",
            Self::Critical => "Jwt header [crit] is not supported",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Claim("iss") => "Jwt payload [iss] field is not a string",
            Self::Claim("sub") => "Jwt payload [sub] field is not a string",
            Self::Claim("jti") => "Jwt payload [jti] field is not a string",
            Self::Claim("aud") => "Jwt payload [aud] field is not a string or string list",
            Self::Claim("iat") => "Jwt payload [iat] field is not an integer",
            Self::Claim("nbf") => "Jwt payload [nbf] field is not an integer",
            Self::Claim(_) => "Jwt payload [exp] field is not an integer",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::NoKeys => "Jwks remote fetch is failed",
            Self::NoSuchKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::BadSignature => "Jwt verification fails",
        }
    }

    /// True if a client learns more from this than from the other one, of another rule: that a token is of another issuer
    /// says little.
    pub(super) fn outweighs(self, other: Self) -> bool {
        other == Self::UnknownIssuer && self != Self::UnknownIssuer
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(header: &Value, payload: &str) -> String {
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        format!("{}.{}.{}", encode(&header.to_string()), encode(payload), encode("signature"))
    }

    fn failure(text: &str) -> Failure {
        Token::parse(text).expect_err("refused")
    }

    #[test]
    fn a_token_is_refused_for_each_fault_of_form() {
        let header = json!({"alg": "ES256", "kid": "k"});
        let good = text(&header, r#"{"iss":"i","aud":["https://a/","b"],"exp":7.9,"nbf":5}"#);
        let token = Token::parse(&good).expect("well-formed");
        assert_eq!((token.issuer(), token.key.as_deref()), (Some("i"), Some("k")));
        assert_eq!(token.audiences().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(token.times, Times { not_before: Some(5), expires: Some(7) });
        assert_eq!(*token.signed, good[..good.rfind('.').expect("two points")]);

        for bad in ["", "a", "a.b", "a.b.c.d", &format!("{good}.x"), &format!("a.b.{}", "c".repeat(MAX_TOKEN_BYTES))] {
            assert_eq!(failure(bad), Failure::BadFormat, "{bad:.40}");
        }
        assert_eq!(failure(&format!("!{good}")), Failure::HeaderBase64);
        assert_eq!(failure(&good.replacen('.', "=.", 1)), Failure::HeaderBase64, "padding");
        assert_eq!(failure(&format!("{good}*")), Failure::SignatureBase64);
        for (header, expected) in [
            (json!([]), Failure::HeaderJson),
            (json!({}), Failure::NoAlgorithm),
            (json!({"alg": 1}), Failure::NoAlgorithm),
            (json!({"alg": "none"}), Failure::UnsupportedAlgorithm),
            (json!({"alg": "nOnE"}), Failure::UnsupportedAlgorithm),
            (json!({"alg": "HS256"}), Failure::UnsupportedAlgorithm),
            (json!({"alg": "ES256", "kid": 1}), Failure::KeyNotText),
            (json!({"alg": "ES256", "crit": ["b64"], "b64": false}), Failure::Critical),
        ] {
            assert_eq!(failure(&text(&header, "{}")), expected, "{header}");
        }
        for (payload, expected) in [
            ("[]", Failure::PayloadJson),
            ("{", Failure::PayloadJson),
            (r#"{"iss":1}"#, Failure::Claim("iss")),
            (r#"{"sub":[]}"#, Failure::Claim("sub")),
            (r#"{"aud":["a",1]}"#, Failure::Claim("aud")),
            (r#"{"exp":"soon"}"#, Failure::Claim("exp")),
            (r#"{"nbf":-1}"#, Failure::Claim("nbf")),
            (r#"{"iat":null}"#, Failure::Claim("iat")),
        ] {
            assert_eq!(failure(&text(&header, payload)), expected, "{payload}");
            assert!(!expected.text().is_empty());
        }
        let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(Token::parse(&text(&header, &deep(MAX_TOKEN_NESTING - 1))).is_ok());
        assert_eq!(failure(&text(&header, &deep(MAX_TOKEN_NESTING))), Failure::PayloadJson);
        let quoted = format!("{{\"a\":\"{}\\\"{}\"}}", "[".repeat(99), "{".repeat(99));
        assert!(Token::parse(&text(&header, &quoted)).is_ok(), "brackets in texts nest nothing");
    }

    #[test]
    fn clocks_may_be_off_by_a_minute() {
        let times = Times { not_before: Some(1_000), expires: Some(2_000) };
        for (now, expected) in
            [(939, Err(Failure::NotYetValid)), (940, Ok(())), (2_060, Ok(())), (2_061, Err(Failure::Expired))]
        {
            assert_eq!(times.check(now), expected, "{now}");
        }
        assert_eq!(Times::default().check(u64::MAX), Ok(()));
    }

    #[test]
    fn lists_in_texts_are_split_where_asked() {
        let mut claims: Claims =
            serde_json::from_value(json!({"groups": "a  b", "other": "a b", "n": 1})).expect("map");
        split_lists(&mut claims, &["groups".into(), "n".into(), "missing".into()]);
        assert_eq!(Value::Object(claims), json!({"groups": ["a", "b"], "other": "a b", "n": 1}));
    }
}
