//! Entries for fuzzers: each takes any bytes, and must neither panic nor break what it asserts.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    Crls, IssuedChain, SpiffeId, limits::MAX_PEER_IDENTITIES, listing::CertificateDetail, peer::peer_identities,
};

/// A CA's answer: parts separated by zero bytes.
pub fn chain(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parts: Vec<&str> = text.split('\0').collect();
    let Ok(issued) = IssuedChain::from_response(&parts) else { return };
    assert!(!issued.chain.is_empty() && !issued.roots.is_empty(), "a chain without leaf or root was read");
    if let Ok(id) = SpiffeId::new("cluster.local", "a", "x") {
        assert!(issued.check(&id, &[], SystemTime::UNIX_EPOCH).is_err(), "a certificate without a key was accepted");
    }
    issued.chain.iter().for_each(|der| drop(certificate(der)));
}

/// A peer's certificate: another parser finds the same identities in it, in the same order. Gives those.
pub fn certificate(data: &[u8]) -> Vec<SpiffeId> {
    let der = CertificateDer::from(data);
    let identities = peer_identities(&der);
    assert!(identities.len() <= MAX_PEER_IDENTITIES, "{} identities", identities.len());
    for identity in &identities {
        assert_eq!(identity.to_string().parse().as_ref(), Ok(identity), "an identity doesn't survive printing");
    }
    if !identities.is_empty()
        && let Some(others) = other_opinion(data)
    {
        // Behind a name that can't be read, the one that counts sees nothing more.
        assert!(others.starts_with(&identities), "two parsers see two peers: {identities:?}, {others:?}");
    }
    let _ = CertificateDetail::new(&der);
    identities
}

/// The identities that the other parser sees, if it can read the certificate.
fn other_opinion(data: &[u8]) -> Option<Vec<SpiffeId>> {
    let (_, certificate) = X509Certificate::from_der(data).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    });
    Some(uris.take(MAX_PEER_IDENTITIES).collect())
}

/// Revocation lists, and a certificate (the same bytes) that they are asked about.
pub fn crl(data: &[u8]) {
    let Ok(crls) = Crls::parse(data) else { return };
    assert!(!crls.is_empty(), "lists without a list were read");
    let _ = crls.revocation(&[CertificateDer::from(data)]);
    assert!(crls.revocation(&[]).is_some(), "a peer without certificates was let through");
}
