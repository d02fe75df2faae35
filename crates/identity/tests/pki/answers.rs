//! What CAs answer: every wrong answer is refused with what is wrong.

use std::time::{Duration, SystemTime};

use ambit_identity::{
    CertificateDetail, CertificateRequest, ChainError, Clock, IssuedChain, KeyExchange, SystemClock, Trust,
    certificate_pem,
    limits::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES},
};
use ambit_testing::{ManualClock, identity};
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKeyData, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

use crate::authority::{Authority, clock, response, serial};

/// Whether an error says what is wrong.
type Expected = fn(&ChainError) -> bool;

const OURS: &str = "spiffe://cluster.local/ns/a/sa/x";

fn public_key(request: &CertificateRequest) -> rcgen::SubjectPublicKeyInfo {
    let csr = CertificateSigningRequestParams::from_pem(request.pem()).expect("a request");
    rcgen::SubjectPublicKeyInfo::from_der(&csr.public_key.subject_public_key_info()).expect("a key")
}

fn request() -> CertificateRequest {
    CertificateRequest::new(&identity("a", "x")).expect("a key")
}

#[test]
fn a_request_is_over_a_p256_key_with_one_critical_name() {
    let request = request();
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(request.pem().as_bytes()).expect("PEM");
    let (_, csr) = X509CertificationRequest::from_der(&der).expect("PKCS#10");
    csr.verify_signature().expect("signed by its key");
    let info = &csr.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0);
    assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2", "ECDSA with SHA-256");
    let curve = info.subject_pki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    assert_eq!(curve.expect("a curve").to_id_string(), "1.2.840.10045.3.1.7", "P-256");
    let names: Vec<_> = csr
        .requested_extensions()
        .expect("extensions")
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(matches!(names[..], [GeneralName::URI(OURS)]), "{names:?}");
    let key = |request| public_key(request).subject_public_key_info();
    assert_ne!(key(&request), key(&self::request()), "every request has a key of its own");
}

#[test]
fn a_whole_answer_is_accepted() {
    let root = Authority::root("a");
    let lower = root.intermediate("b").intermediate("c");
    let other = Authority::root("other");
    for authority in [&root, &lower] {
        let request = request();
        let mut issued = authority.sign(&public_key(&request), &[OURS], |_| {});
        issued.roots.push(other.root.clone());
        let read = IssuedChain::from_response(&response(&issued)).expect("readable");
        assert_eq!((&read.chain, &read.roots), (&issued.chain, &issued.roots));
        request.check(&read, &SystemClock).expect("right");
        let trust = Trust::new(KeyExchange::default());
        let certificate = request.accept(read, &trust, &clock()).expect("accepted");
        assert_eq!(certificate.chain(), issued.chain);
        assert_eq!(certificate.roots(), issued.roots);
        assert_eq!(trust.roots()[..], issued.roots[..]);
        assert!(certificate.is_valid_now());
    }
}

#[test]
fn parts_that_are_not_an_answer_are_refused() {
    let issued = Authority::root("a").sign(&public_key(&request()), &[OURS], |_| {});
    let parts = response(&issued);
    let (leaf, root) = (parts[0].clone(), parts[1].clone());
    let key = KeyPair::generate().expect("a key").serialize_pem();
    let broken = leaf.replace("-----END CERTIFICATE-----", "-----END NOTHING-----");
    let many = leaf.repeat(MAX_CHAIN_CERTIFICATES + 1);
    let long = "x".repeat(MAX_CHAIN_BYTES);
    let cases: [(&str, Vec<&str>, Expected); 9] = [
        ("nothing", vec![], |error| *error == ChainError::Empty),
        ("only the leaf", vec![&leaf], |error| *error == ChainError::NoRoots),
        ("no leaf", vec!["", &root], |error| *error == ChainError::NoCertificate { part: 0 }),
        ("no root", vec![&leaf, "\n"], |error| *error == ChainError::NoCertificate { part: 1 }),
        ("a key as a leaf", vec![&key, &root], |error| *error == ChainError::NoCertificate { part: 0 }),
        ("nonsense between", vec![&leaf, "nonsense", &root], |error| *error == ChainError::NoCertificate { part: 1 }),
        ("a block without its end", vec![&broken, &root], |error| matches!(error, ChainError::Pem { part: 0, .. })),
        ("too many certificates", vec![&many, &root], |error| {
            matches!(error, ChainError::TooMuch { what: "certificates", .. })
        }),
        ("too many bytes", vec![&long, &root], |error| matches!(error, ChainError::TooMuch { what: "bytes", .. })),
    ];
    for (name, parts, expected) in cases {
        let error = IssuedChain::from_response(&parts).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
    }
}

/// A wrong answer to a request, and how it is refused.
type Wrong = (&'static str, fn(&Authority, &CertificateRequest) -> IssuedChain, Expected);

fn at(params: &mut CertificateParams, from: Duration, until: Duration) {
    params.not_before = (SystemTime::now() - Duration::from_secs(1000) + from).into();
    params.not_after = (SystemTime::now() - Duration::from_secs(1000) + until).into();
}

const WRONG: [Wrong; 12] = [
    ("empty", |ca, _| IssuedChain { chain: vec![], roots: vec![ca.root.clone()] }, |error| *error == ChainError::Empty),
    (
        "another identity",
        |ca, request| ca.sign(&public_key(request), &["spiffe://cluster.local/ns/a/sa/y"], |_| {}),
        |error| matches!(error, ChainError::Identity { got, .. } if *got == identity("a", "y")),
    ),
    (
        "another trust domain",
        |ca, request| ca.sign(&public_key(request), &["spiffe://other/ns/a/sa/x"], |_| {}),
        |error| matches!(error, ChainError::Identity { .. }),
    ),
    (
        "no identity",
        |ca, request| ca.sign(&public_key(request), &["https://example.com"], |_| {}),
        |error| matches!(error, ChainError::NoIdentity { .. }),
    ),
    (
        "another key",
        |ca, _| ca.sign(&KeyPair::generate().expect("a key"), &[OURS], |_| {}),
        |error| *error == ChainError::Key,
    ),
    (
        "expired",
        |ca, request| {
            ca.sign(&public_key(request), &[OURS], |params| at(params, Duration::ZERO, Duration::from_secs(900)))
        },
        |error| matches!(error, ChainError::Expired { .. }),
    ),
    (
        "not yet valid",
        |ca, request| {
            ca.sign(&public_key(request), &[OURS], |params| {
                at(params, Duration::from_secs(1100), Duration::from_secs(2000));
            })
        },
        |error| matches!(error, ChainError::NotYetValid { .. }),
    ),
    (
        "no roots",
        |ca, request| IssuedChain { roots: vec![], ..ca.sign(&public_key(request), &[OURS], |_| {}) },
        |error| *error == ChainError::NoRoots,
    ),
    (
        "a root that is none",
        |ca, request| IssuedChain {
            roots: vec![ca.root.clone(), CertificateDer::from(vec![1, 2, 3])],
            ..ca.sign(&public_key(request), &[OURS], |_| {})
        },
        |error| matches!(error, ChainError::Root { index: 1, .. }),
    ),
    (
        "another root",
        |ca, request| IssuedChain {
            roots: vec![Authority::root("a").root.clone()],
            ..ca.sign(&public_key(request), &[OURS], |_| {})
        },
        |error| matches!(error, ChainError::Untrusted { .. }),
    ),
    (
        "an intermediate is missing",
        |ca, request| {
            let mut issued = ca.intermediate("b").sign(&public_key(request), &[OURS], |_| {});
            issued.chain.truncate(1);
            issued
        },
        |error| matches!(error, ChainError::Untrusted { .. }),
    ),
    (
        "only for clients",
        |ca, request| {
            ca.sign(&public_key(request), &[OURS], |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            })
        },
        |error| matches!(error, ChainError::Untrusted { .. }),
    ),
];

#[test]
fn certificates_that_do_not_fit_the_request_are_refused() {
    let authority = Authority::root("a");
    for (name, answer, expected) in WRONG {
        let request = request();
        let issued = answer(&authority, &request);
        let error = request.check(&issued, &SystemClock).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
        let trust = Trust::new(KeyExchange::default());
        let refusal = request.accept(issued, &trust, &clock()).expect_err(name);
        assert!(refusal.to_string().contains(&error.to_string()), "{name}: {refusal}");
        assert!(trust.roots().is_empty(), "{name}: roots were learnt from a wrong answer");
    }
}

#[test]
fn the_clock_decides_on_validity() {
    let authority = Authority::root("a");
    let request = request();
    let issued = authority.sign(&public_key(&request), &[OURS], |params| {
        at(params, Duration::ZERO, Duration::from_secs(2000));
    });
    let clock = ManualClock::new();
    request.check(&issued, &*clock).expect("valid");
    clock.advance(Duration::from_secs(1001));
    let error = request.check(&issued, &*clock).expect_err("over");
    assert!(matches!(error, ChainError::Expired { .. }), "{error}");
}

#[test]
fn a_certificate_is_described_as_operators_expect() {
    let authority = Authority::root("a");
    let issued = authority.sign(&public_key(&request()), &[OURS], |params| {
        params.not_before = time::macros::datetime!(2026-01-02 03:04:05 UTC);
        params.not_after = time::macros::datetime!(2026-02-03 04:05:06 UTC);
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x01, 0, 0, 0, 0, 0, 0, 0, 0]));
    });
    let detail = CertificateDetail::new(&issued.chain[0]);
    assert_eq!(detail.serial_number, "18446744073709551616");
    assert_eq!(detail.valid_from, "2026-01-02T03:04:05Z");
    assert_eq!(detail.expiration_time, "2026-02-03T04:05:06Z");
    let json = serde_json::to_value(&detail).expect("JSON");
    let keys: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["expirationTime", "pem", "serialNumber", "validFrom"]);
    let pem = data_encoding::BASE64.decode(detail.pem.as_bytes()).expect("Base64");
    let pem = String::from_utf8(pem).expect("text");
    assert!(pem.lines().all(|line| line.len() <= 64), "{pem}");
    assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM"), issued.chain[0]);
    assert_eq!(certificate_pem(&issued.chain[0]), pem);
    assert_eq!(serial(&issued.chain[0])[0], 1);
    // Other names than URIs are no identity, and do no harm.
    let host = SanType::DnsName("x.a.svc".try_into().expect("ASCII"));
    let request = request();
    let issued = authority.sign(&public_key(&request), &[OURS], |params| params.subject_alt_names.push(host));
    request.check(&issued, &SystemClock).expect("right");
    assert!(SystemClock.since_boot().is_some());
}
