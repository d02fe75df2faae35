//! Signatures. The key decides what a signature may be made with: a token can only ask for an algorithm that its key has.

use ambit_api::jwks::{Algorithm, KeySet, Material};
use aws_lc_rs::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

use super::token::{Failure, Token};
use crate::limits::MAX_KEYS_TRIED;

/// Checks a token's signature by the key that it names, or by each that could be meant.
pub(super) fn verify(token: &Token, keys: &KeySet) -> Result<(), Failure> {
    let candidates = keys.keys.iter().filter(|key| {
        let named = match (&token.key, &key.id) {
            (Some(asked), Some(id)) => **asked == **id,
            _ => true,
        };
        named && key.algorithm.is_none_or(|algorithm| algorithm == token.algorithm)
    });
    let mut matched = false;
    let mut tried = 0;
    for key in candidates {
        matched = true;
        if !token.algorithm.fits(&key.material) {
            continue;
        }
        if signed(token, &key.material) {
            return Ok(());
        }
        tried += 1;
        if tried == MAX_KEYS_TRIED {
            break;
        }
    }
    Err(if matched { Failure::BadSignature } else { Failure::NoSuchKey })
}

fn signed(token: &Token, material: &Material) -> bool {
    let (message, signature) = (token.signed.as_bytes(), &*token.signature);
    match material {
        Material::Rsa { modulus, exponent } => {
            let key = RsaPublicKeyComponents { n: modulus, e: exponent };
            rsa(token.algorithm).is_some_and(|parameters| key.verify(parameters, message, signature).is_ok())
        }
        Material::Ec { point, .. } => curve(token.algorithm).is_some_and(|curve| by(curve, point, message, signature)),
        Material::Ed25519(key) => {
            token.algorithm == Algorithm::EdDsa && by(&signature::ED25519, key, message, signature)
        }
    }
}

fn by(algorithm: &'static dyn VerificationAlgorithm, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn curve(algorithm: Algorithm) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match algorithm {
        Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
        Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
        Algorithm::Es512 => &signature::ECDSA_P521_SHA512_FIXED,
        _ => return None,
    })
}
