//! What is told of certificates in `/config_dump`, in ztunnel's shape (`spec/ztunnel.md` 16).

use std::fmt::Write;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    SpiffeId,
    keeper::State,
    verify::{system_time, timestamp},
};

/// One identity of a store. Serialises as one entry of `certificates`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRecord {
    /// The SPIFFE name.
    pub identity: String,
    /// `Available`, `Initializing` or `Unavailable: <why>`.
    pub state: String,
    /// The leaf, then its intermediates; empty without a certificate. It may be expired, and isn't served then.
    pub cert_chain: Vec<CertificateDetail>,
    /// The trust bundle that came with it.
    pub root_certs: Vec<CertificateDetail>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDetail {
    /// Base64 of the PEM text.
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// RFC 3339, in UTC.
    pub valid_from: String,
    /// RFC 3339, in UTC.
    pub expiration_time: String,
}

/// The PEM text of a certificate, lines of 64 characters.
#[must_use]
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let base64 = data_encoding::BASE64.encode(der);
    let mut pem = String::with_capacity(base64.len() + base64.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        let _ = writeln!(pem, "{line}");
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

// === impl CertificateRecord ===

impl CertificateRecord {
    pub(crate) fn new(id: &SpiffeId, state: &State) -> Self {
        let certificate = state.certificate.as_ref();
        let description = match (certificate.filter(|certificate| certificate.is_valid_now()), &state.failure) {
            (Some(_), _) => "Available".to_owned(),
            (None, Some(failure)) => format!("Unavailable: {failure}"),
            (None, None) => "Initializing".to_owned(),
        };
        let details = |ders: &[CertificateDer<'_>]| ders.iter().map(CertificateDetail::new).collect();
        Self {
            identity: id.to_string(),
            state: description,
            cert_chain: certificate.map(|certificate| details(certificate.chain())).unwrap_or_default(),
            root_certs: certificate.map(|certificate| details(certificate.roots())).unwrap_or_default(),
        }
    }
}

// === impl CertificateDetail ===

impl CertificateDetail {
    /// Describes `der`. Of what can't be parsed only the PEM is told.
    #[must_use]
    pub fn new(der: &CertificateDer<'_>) -> Self {
        let pem = data_encoding::BASE64.encode(certificate_pem(der).as_bytes());
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            let unknown = String::new;
            return Self { pem, serial_number: unknown(), valid_from: unknown(), expiration_time: unknown() };
        };
        let time = |time: x509_parser::time::ASN1Time| timestamp(system_time(time.timestamp()));
        Self {
            pem,
            serial_number: certificate.tbs_certificate.serial.to_string(),
            valid_from: time(certificate.validity().not_before),
            expiration_time: time(certificate.validity().not_after),
        }
    }
}
