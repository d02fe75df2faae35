//! What peers and CAs present.

use ambit_identity::{certificate_pem, fuzzing};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// The first byte says what the others are: a peer's certificate, one that a CA answers with, a revocation list, or the text
/// of a CA's answer.
pub(super) fn any(bytes: &[u8]) {
    let Some((&kind, data)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => drop(fuzzing::certificate(data)),
        1 => {
            let pem = certificate_pem(&data.to_vec().into());
            fuzzing::chain(format!("{pem}\0{pem}{pem}").as_bytes());
        }
        2 => fuzzing::crl(data),
        _ => fuzzing::chain(data),
    }
}

/// Made anew each time: keys and signatures are different ones, what surrounds them is the same.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let key = || KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = key();
    let root = ca.self_signed(&ca_key).expect("signed");
    let issuer = Issuer::new(ca, ca_key);
    let mut leaf = CertificateParams::default();
    let names = ["spiffe://cluster.local/ns/a/sa/x", "https://example.com/", "spiffe://old/ns/b/sa/y"];
    leaf.subject_alt_names = names.map(|name| SanType::URI(name.try_into().expect("ASCII"))).to_vec();
    leaf.subject_alt_names.push(SanType::DnsName("web".try_into().expect("ASCII")));
    let leaf = leaf.signed_by(&key(), &issuer).expect("signed");
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(7_u64),
        revocation_time: date_time_ymd(2025, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2035, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).expect("signed");
    let answer = format!("{}\0{}", leaf.pem(), root.pem());
    let seeds: [(u8, &[u8]); 6] = [
        (0, leaf.der()),
        (0, root.der()),
        (1, leaf.der()),
        (2, list.der()),
        (3, answer.as_bytes()),
        (2, b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"),
    ];
    seeds.map(|(kind, data)| [&[kind], data].concat()).to_vec()
}
