//! An issuer of tokens: its key, and what it signs.

use aws_lc_rs::{
    hmac as mac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair},
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

pub struct Issuer {
    pub algorithm: String,
    id: String,
    key: Key,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

pub fn encode(text: &str) -> String {
    BASE64URL_NOPAD.encode(text.as_bytes())
}

/// The token with one bit of a part changed, in the form of a token still.
pub fn tampered(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let mut bytes = BASE64URL_NOPAD.decode(parts[part].as_bytes()).expect("base64url");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    parts[part] = BASE64URL_NOPAD.encode(&bytes);
    parts.join(".")
}

pub fn hmac(secret: &[u8], message: &str) -> String {
    BASE64URL_NOPAD.encode(mac::sign(&mac::Key::new(mac::HMAC_SHA256, secret), message.as_bytes()).as_ref())
}

impl Issuer {
    /// One with a new key for this algorithm, named so.
    pub fn new(algorithm: &str, id: &str) -> Self {
        let ec = |algorithm: &'static EcdsaSigningAlgorithm, curve| {
            Key::Ec(EcdsaKeyPair::generate(algorithm).expect("a key"), curve)
        };
        let key = match algorithm {
            "ES256" => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            "ES384" => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            "ES512" => ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            "EdDSA" => Key::Ed(Ed25519KeyPair::generate().expect("a key")),
            _ => Key::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"))),
        };
        Self { algorithm: algorithm.to_owned(), id: id.to_owned(), key }
    }

    /// Its public key as a JSON Web Key.
    pub fn public_key(&self) -> Value {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let mut key = match &self.key {
            Key::Rsa(pair) => {
                // PKCS #1: a sequence of the modulus, which here has a leading zero, and the exponent.
                let der = pair.public_key().as_ref();
                let modulus = &der[9..der.len() - 5];
                assert_eq!((&der[4..9], modulus.len()), (&[2, 0x82, 1, 1, 0][..], 256));
                json!({"kty": "RSA", "n": text(modulus), "e": text(&der[der.len() - 3..])})
            }
            Key::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)})
            }
            Key::Ed(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())}),
        };
        key["kid"] = json!(self.id);
        key["use"] = json!("sig");
        key
    }

    pub fn key_set(&self) -> Value {
        json!({"keys": [self.public_key()]})
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": self.algorithm, "kid": self.id, "typ": "JWT"}), claims)
    }

    /// A token with this header, signed by its own algorithm all the same.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(&header.to_string()), encode(&claims.to_string()));
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match self.algorithm.as_str() {
                    "RS256" => &signature::RSA_PKCS1_SHA256,
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    _ => &signature::RSA_PSS_SHA512,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, signed.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Key::Ec(pair, _) => pair.sign(&random, signed.as_bytes()).expect("signed").as_ref().to_vec(),
            Key::Ed(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }
}
