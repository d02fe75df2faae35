//! JSON Web Key Sets (RFC 7517, 7518, 8037): the public keys in them that signatures can be verified with.

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use crate::limits::{MAX_KEY_SET_BYTES, MAX_KEY_SET_KEYS};

/// The keys of an issuer that can be used; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// In the order written.
    pub keys: Vec<Key>,
    /// Keys that can't be used here: symmetric ones, for encryption, of an unknown kind, too weak, malformed.
    pub unusable: usize,
    /// One of the keys shows its private half.
    pub holds_private_key: bool,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its `kid`, if it has one.
    pub id: Option<String>,
    /// The one algorithm that it is for, if it says so.
    pub algorithm: Option<Algorithm>,
    /// The key itself.
    pub material: Material,
}

/// What a key is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// RSA, of 2048 to 8192 bits; big-endian, without leading zeros.
    Rsa {
        /// `n`.
        modulus: Vec<u8>,
        /// `e`.
        exponent: Vec<u8>,
    },
    /// A point on a curve.
    Ec {
        /// The curve.
        curve: Curve,
        /// The uncompressed point (SEC 1), `04` first.
        point: Vec<u8>,
    },
    /// An Ed25519 key.
    Ed25519([u8; 32]),
}

/// An elliptic curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the curves' names")]
pub enum Curve {
    P256,
    P384,
    P521,
}

/// A signature algorithm with public keys. There is no `none` and no HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the names of RFC 7518 and 8037")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

/// Why a text isn't a usable key set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Larger than is read.
    #[error("it has {0} bytes, at most {MAX_KEY_SET_BYTES} are read")]
    TooLarge(usize),
    /// Not JSON, or without a list `keys`.
    #[error("it isn't a JSON Web Key Set: {0}")]
    Malformed(String),
    /// More keys than are read.
    #[error("it has {0} keys, at most {MAX_KEY_SET_KEYS} are read")]
    TooMany(usize),
    /// None of its keys can be used.
    #[error(
        "none of its {0} keys can verify a signature here (RSA of 2048 bits and more, EC on P-256, P-384, P-521, Ed25519)"
    )]
    NoUsableKey(usize),
}

// === impl KeySet ===

impl KeySet {
    /// Reads a key set. Keys that can't be used are left out, as long as one can.
    ///
    /// # Errors
    /// When nothing could ever be verified with it, or it is larger than a key set has a reason to be.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_KEY_SET_BYTES {
            return Err(KeySetError::TooLarge(text.len()));
        }
        // The error tells where, not what: a key set that holds private keys is a secret.
        let malformed =
            |e: serde_json::Error| KeySetError::Malformed(format!("line {}, column {}", e.line(), e.column()));
        let Document { keys: written } = serde_json::from_slice(text).map_err(malformed)?;
        if written.len() > MAX_KEY_SET_KEYS {
            return Err(KeySetError::TooMany(written.len()));
        }
        let holds_private_key = written.iter().any(|key| key.get("d").is_some() || key.get("k").is_some());
        let total = written.len();
        let keys: Vec<_> = written.into_iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey(total));
        }
        Ok(Self { unusable: total - keys.len(), keys, holds_private_key })
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Written {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

/// Sizes of an RSA modulus, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Longest RSA exponent, in bytes.
const MAX_EXPONENT_BYTES: usize = 4;

fn key(value: serde_json::Value) -> Option<Key> {
    let written: Written = serde_json::from_value(value).ok()?;
    let for_signatures = written.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && written.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    let material = material(&written).filter(|_| for_signatures)?;
    let algorithm = match &written.alg {
        None => None,
        // A key for something else than signatures, or for signatures of another kind of key.
        Some(name) => Some(Algorithm::named(name).filter(|algorithm| algorithm.fits(&material))?),
    };
    Some(Key { id: written.kid.filter(|id| !id.is_empty()), algorithm, material })
}

fn material(written: &Written) -> Option<Material> {
    match (written.kty.as_str(), written.crv.as_deref()) {
        ("RSA", _) => {
            let (modulus, exponent) = (number(written.n.as_deref()?)?, number(written.e.as_deref()?)?);
            let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
            let sound = exponent.len() <= MAX_EXPONENT_BYTES && exponent.last()? & 1 == 1 && exponent != [1];
            (sound && RSA_BITS.contains(&bits)).then_some(Material::Rsa { modulus, exponent })
        }
        ("EC", Some(name)) => {
            let (curve, size) = match name {
                "P-256" => (Curve::P256, 32),
                "P-384" => (Curve::P384, 48),
                "P-521" => (Curve::P521, 66),
                _ => return None,
            };
            let mut point = vec![0; 1 + 2 * size];
            point[0] = 4;
            for (coordinate, end) in [(&written.x, 1 + size), (&written.y, 1 + 2 * size)] {
                let bytes = number(coordinate.as_deref()?)?;
                if bytes.len() > size {
                    return None;
                }
                point[end - bytes.len()..end].copy_from_slice(&bytes);
            }
            Some(Material::Ec { curve, point })
        }
        ("OKP", Some("Ed25519")) => {
            let bytes = BASE64URL_NOPAD.decode(written.x.as_deref()?.as_bytes()).ok()?;
            Some(Material::Ed25519(bytes.try_into().ok()?))
        }
        _ => None,
    }
}

/// A big-endian number in base64url, without leading zeros.
fn number(text: &str) -> Option<Vec<u8>> {
    let mut bytes = BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes()).ok()?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    (!bytes.is_empty()).then_some(bytes)
}

// === impl Algorithm ===

impl Algorithm {
    /// The algorithm of this name in a token or key.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    /// True if keys of this kind make signatures of this algorithm: the key decides, never the token.
    #[must_use]
    pub fn fits(self, material: &Material) -> bool {
        matches!(
            (self, material),
            (Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512, Material::Rsa { .. })
                | (Self::Es256, Material::Ec { curve: Curve::P256, .. })
                | (Self::Es384, Material::Ec { curve: Curve::P384, .. })
                | (Self::Es512, Material::Ec { curve: Curve::P521, .. })
                | (Self::EdDsa, Material::Ed25519(_))
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(keys: serde_json::Value) -> Result<KeySet, KeySetError> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes())
    }

    fn rsa(bytes: usize) -> serde_json::Value {
        json!({"kty": "RSA", "kid": "r", "n": BASE64URL_NOPAD.encode(&vec![0xff; bytes]), "e": "AQAB"})
    }

    #[test]
    fn keys_that_cannot_verify_are_left_out() {
        let coordinate = BASE64URL_NOPAD.encode(&[7; 32]);
        let with = |key: serde_json::Value, more: serde_json::Value| {
            let mut key = key;
            for (name, value) in more.as_object().expect("an object") {
                key[name] = value.clone();
            }
            key
        };
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": coordinate});
        let ec = json!({"kty": "EC", "crv": "P-256", "x": coordinate, "y": coordinate, "alg": "ES256", "use": "sig"});
        let set = parse(json!([
            rsa(256),
            ed,
            ec,
            rsa(128),
            json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
            with(rsa(256), json!({"alg": "HS256"})),
            with(rsa(256), json!({"alg": "ES256"})),
            with(rsa(256), json!({"use": "enc"})),
            with(rsa(256), json!({"key_ops": ["sign"]})),
            with(rsa(256), json!({"e": "AQ"})),
            with(rsa(256), json!({"e": "Ag"})),
            with(ec.clone(), json!({"crv": "secp256k1"})),
            with(ec.clone(), json!({"crv": "P-384", "x": BASE64URL_NOPAD.encode(&[7; 49])})),
            with(ed.clone(), json!({"crv": "X25519"})),
            with(ed.clone(), json!({"x": "AAAA"})),
            json!("text"),
            json!({"n": "AAAA"}),
        ]))
        .expect("three are usable");
        assert_eq!((set.keys.len(), set.unusable, set.holds_private_key), (3, 14, true));
        assert_eq!(set.keys[0].id.as_deref(), Some("r"));
        assert_eq!(set.keys[2].algorithm, Some(Algorithm::Es256));
        assert!(matches!(&set.keys[2].material, Material::Ec { point, .. } if point.len() == 65 && point[0] == 4));
    }

    #[test]
    fn the_key_decides_the_algorithm() {
        let set = parse(json!([rsa(256)])).expect("usable");
        let material = &set.keys[0].material;
        for (name, fits) in [("RS256", true), ("PS512", true), ("ES256", false), ("EdDSA", false)] {
            assert_eq!(Algorithm::named(name).expect("known").fits(material), fits, "{name}");
        }
        for refused in ["none", "None", "HS256", "HS512", "rs256", ""] {
            assert_eq!(Algorithm::named(refused), None, "{refused}");
        }
    }

    #[test]
    fn texts_that_are_no_key_set_are_refused() {
        assert!(matches!(KeySet::parse(b"{}"), Err(KeySetError::Malformed(_))));
        assert!(matches!(KeySet::parse(b"<html>"), Err(KeySetError::Malformed(_))));
        assert_eq!(parse(json!([])), Err(KeySetError::NoUsableKey(0)));
        assert_eq!(parse(json!([rsa(128)])), Err(KeySetError::NoUsableKey(1)));
        let many = vec![rsa(1); MAX_KEY_SET_KEYS + 1];
        assert_eq!(parse(json!(many)), Err(KeySetError::TooMany(MAX_KEY_SET_KEYS + 1)));
        let large = vec![b' '; MAX_KEY_SET_BYTES + 1];
        assert_eq!(KeySet::parse(&large), Err(KeySetError::TooLarge(MAX_KEY_SET_BYTES + 1)));
    }
}
