//! Signed tokens, so that Envoy's own filter verifies claims before policy sees them.

use ambit_policy::Claims;
use aws_lc_rs::hmac;
use serde_json::{Value, json};

/// A key that is known to everyone: it protects nothing.
const KEY: &[u8] = b"a key for tokens that only this comparison believes";

/// The key set by which Envoy verifies.
pub fn key_set() -> Value {
    json!({"keys": [{"kty": "oct", "alg": "HS256", "kid": "k", "k": base64url(KEY)}]})
}

/// A token with these claims.
pub fn sign(claims: &Claims) -> String {
    let header = json!({"alg": "HS256", "kid": "k", "typ": "JWT"}).to_string();
    let payload = Value::Object(claims.clone()).to_string();
    let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), signed.as_bytes());
    format!("{signed}.{}", base64url(tag.as_ref()))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            let index = (number >> (18 - 6 * digit)) & 63;
            text.push(char::from(DIGITS[index as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_urls_without_padding() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("\u{7f}?>", "fz8-")]
        {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
    }
}
