//! The cryptography of every HBONE connection (`spec/ztunnel.md` 2.2).

use std::{
    str::FromStr,
    sync::{Arc, OnceLock},
};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// Which key exchanges we take part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyExchange {
    /// The hybrid X25519MLKEM768 first, then X25519, P-256 and P-384 for peers without it.
    #[default]
    PostQuantumFirst,
    /// X25519MLKEM768 or no connection (`COMPLIANCE_POLICY=pqc`).
    PostQuantumOnly,
}

/// A compliance policy that isn't known, and so can't be promised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{policy}` is not a compliance policy; use `pqc`, or leave it empty")]
pub struct UnknownPolicyError {
    policy: String,
}

/// TLS 1.3 only: AES-256-GCM, then AES-128-GCM, with the groups of `key_exchange`. The same object on every call.
#[must_use]
pub fn provider(key_exchange: KeyExchange) -> &'static Arc<CryptoProvider> {
    static FIRST: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    static ONLY: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let cell = match key_exchange {
        KeyExchange::PostQuantumFirst => &FIRST,
        KeyExchange::PostQuantumOnly => &ONLY,
    };
    cell.get_or_init(|| {
        use aws_lc_rs::{cipher_suite, kx_group};
        let kx_groups = match key_exchange {
            KeyExchange::PostQuantumFirst => {
                vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]
            }
            KeyExchange::PostQuantumOnly => vec![kx_group::X25519MLKEM768],
        };
        Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups,
            ..aws_lc_rs::default_provider()
        })
    })
}

// === impl KeyExchange ===

impl FromStr for KeyExchange {
    type Err = UnknownPolicyError;

    /// Reads the value of `COMPLIANCE_POLICY`.
    fn from_str(policy: &str) -> Result<Self, Self::Err> {
        match policy {
            "" => Ok(Self::PostQuantumFirst),
            "pqc" => Ok(Self::PostQuantumOnly),
            other => Err(UnknownPolicyError { policy: other.chars().take(64).collect() }),
        }
    }
}
