//! Entries for fuzzers: each takes any bytes, and must neither panic nor break what it asserts.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::{Crls, IssuedChain, SpiffeId, listing::CertificateDetail, peer::peer_identities};

/// A CA's answer: parts separated by zero bytes.
pub fn chain(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parts: Vec<&str> = text.split('\0').collect();
    let Ok(issued) = IssuedChain::from_response(&parts) else { return };
    assert!(!issued.chain.is_empty() && !issued.roots.is_empty(), "a chain without leaf or root was read");
    if let Ok(id) = SpiffeId::new("cluster.local", "a", "x") {
        assert!(issued.check(&id, &[], SystemTime::UNIX_EPOCH).is_err(), "a certificate without a key was accepted");
    }
    issued.chain.iter().for_each(|der| certificate(der));
}

/// A peer's certificate.
pub fn certificate(data: &[u8]) {
    let der = CertificateDer::from(data);
    for identity in peer_identities(&der) {
        assert_eq!(identity.to_string().parse().as_ref(), Ok(&identity), "an identity doesn't survive printing");
    }
    let _ = CertificateDetail::new(&der);
}

/// Revocation lists, and a certificate (the same bytes) that they are asked about.
pub fn crl(data: &[u8]) {
    let Ok(crls) = Crls::parse(data) else { return };
    assert!(!crls.is_empty(), "lists without a list were read");
    let _ = crls.revocation(&[CertificateDer::from(data)]);
    assert!(crls.revocation(&[]).is_some(), "a peer without certificates was let through");
}
