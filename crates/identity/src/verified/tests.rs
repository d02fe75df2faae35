use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{CertificateError, Error};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{Crls, KeyExchange, Trust, limits::MAX_VERIFIED_CHAINS, trust::Snapshot, verify::Usage};

use super::{Fingerprint, VerifiedChains};

/// Seconds since 1970 at which the certificates of these tests begin and end.
const FROM: u64 = 1_700_000_000;
const UNTIL: u64 = FROM + 3600;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn root() -> Self {
        let (params, key) = Self::params();
        let certificate = params.self_signed(&key).expect("signed").der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// One whose certificate ends in half of a leaf's time.
    fn intermediate(&self) -> Self {
        let (mut params, key) = Self::params();
        params.not_before = at(FROM);
        params.not_after = at(FROM + 1800);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn params() -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, KeyPair::generate().expect("a key"))
    }

    fn leaf(&self, serial: u64) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = at(FROM);
        params.not_after = at(UNTIL);
        params.signed_by(&KeyPair::generate().expect("a key"), &self.issuer).expect("signed").der().clone()
    }

    fn revoking(&self, serial: u64) -> Arc<Crls> {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: at(FROM),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: at(FROM),
            next_update: at(UNTIL),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("signed");
        Arc::new(Crls::parse(list.der()).expect("a list"))
    }

    fn trusted(&self) -> Arc<Trust> {
        let trust = Trust::new(KeyExchange::default());
        trust.replace_roots(vec![self.certificate.clone()]).expect("a good root");
        trust
    }
}

fn at(seconds: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).expect("small")).expect("a time")
}

fn unix(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn snapshot(trust: &Trust) -> Arc<Snapshot> {
    trust.snapshot(std::time::UNIX_EPOCH + Duration::from_secs(FROM))
}

fn verify(trust: &Trust, chain: &[CertificateDer<'_>], now: u64) -> Result<(), Error> {
    snapshot(trust).verify(&chain[0], &chain[1..], None, unix(now), Usage::Server)
}

/// Whether the chain would be let in at `now` without a look at it.
fn is_known(trust: &Trust, chain: &[CertificateDer<'_>], now: u64) -> bool {
    let fingerprint = Fingerprint::of(Usage::Server, None, &chain[0], &chain[1..]);
    snapshot(trust).verified.contains(&fingerprint, unix(now))
}

fn refusal(outcome: Result<(), Error>) -> CertificateError {
    match outcome {
        Err(Error::InvalidCertificate(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_success_counts_within_the_time_of_the_whole_chain() {
    let root = Authority::root();
    let (trust, middle) = (root.trusted(), root.intermediate());
    let chain = [middle.leaf(1), middle.certificate.clone()];
    assert!(!is_known(&trust, &chain, FROM + 10));
    assert_eq!(verify(&trust, &chain, FROM + 10), Ok(()));
    for (now, known) in [(FROM - 1, false), (FROM, true), (FROM + 1800, true), (FROM + 1801, false), (UNTIL, false)] {
        assert_eq!(is_known(&trust, &chain, now), known, "{now}");
    }
    // The leaf's time isn't over, the intermediate's is.
    assert!(matches!(refusal(verify(&trust, &chain, FROM + 1801)), CertificateError::ExpiredContext { .. }));
    // Nor does it count before its time, should the clock be set back.
    assert!(matches!(refusal(verify(&trust, &chain, FROM - 1)), CertificateError::NotValidYetContext { .. }));
    // That didn't spoil what was known.
    assert_eq!(verify(&trust, &chain, FROM + 1800), Ok(()));
}

#[test]
fn a_success_is_forgotten_when_the_trust_changes() {
    let root = Authority::root();
    let (trust, chain) = (root.trusted(), [root.leaf(7)]);
    let warm = || {
        verify(&trust, &chain, FROM).expect("a good chain");
        assert!(is_known(&trust, &chain, FROM));
    };
    warm();
    trust.set_crls(root.revoking(8));
    assert!(!is_known(&trust, &chain, FROM), "other lists");
    warm();
    trust.set_crls(root.revoking(7));
    assert_eq!(refusal(verify(&trust, &chain, FROM)), CertificateError::Revoked);
    trust.set_crls(Arc::default());
    warm();
    let other = Authority::root();
    trust.replace_roots(vec![root.certificate.clone(), other.certificate.clone()]).expect("good roots");
    assert!(!is_known(&trust, &chain, FROM), "other roots");
    warm();
    trust.replace_roots(vec![other.certificate.clone()]).expect("a good root");
    assert!(verify(&trust, &chain, FROM).is_err(), "its root is gone");
    // Another domain's roots are another question.
    trust.replace_roots(vec![root.certificate.clone()]).expect("a good root");
    warm();
    trust.set_foreign_roots("other.domain", std::slice::from_ref(&other.certificate)).expect("a good root");
    warm();
    let foreign = snapshot(&trust).verify(&chain[0], &[], Some("other.domain"), unix(FROM), Usage::Server);
    assert!(foreign.is_err(), "our own roots don't vouch for it");
}

#[test]
fn only_the_same_chain_for_the_same_use_is_known() {
    let root = Authority::root();
    let (trust, middle) = (root.trusted(), root.intermediate());
    let (leaf, own) = (middle.leaf(1), middle.certificate.clone());
    verify(&trust, &[leaf.clone(), own.clone()], FROM).expect("a good chain");
    let stranger = Authority::root().intermediate().certificate;
    let mut longer = own.to_vec();
    longer.push(0);
    for (name, chain) in [
        ("without its intermediate", vec![leaf.clone()]),
        ("with another one", vec![leaf.clone(), stranger.clone()]),
        ("with a longer one", vec![leaf.clone(), longer.into()]),
    ] {
        assert!(!is_known(&trust, &chain, FROM), "{name}");
        assert!(verify(&trust, &chain, FROM).is_err(), "{name}");
    }
    for (name, chain) in [
        ("with one more", vec![leaf.clone(), own.clone(), stranger]),
        ("a sibling's", vec![middle.leaf(1), own.clone()]),
        ("the leaf alone, twice", vec![leaf.clone(), leaf.clone(), own.clone()]),
    ] {
        assert!(!is_known(&trust, &chain, FROM), "{name}");
    }
    let client = Fingerprint::of(Usage::Client, None, &leaf, std::slice::from_ref(&own));
    let elsewhere = Fingerprint::of(Usage::Server, Some("elsewhere"), &leaf, std::slice::from_ref(&own));
    for fingerprint in [client, elsewhere] {
        assert!(!snapshot(&trust).verified.contains(&fingerprint, unix(FROM)));
    }
    assert!(is_known(&trust, &[leaf, own], FROM));
}

#[test]
fn failures_are_not_remembered() {
    let (root, other) = (Authority::root(), Authority::root());
    let trust = root.trusted();
    trust.set_crls(root.revoking(1));
    for (name, chain, now) in [
        ("a stranger", vec![other.leaf(1)], FROM),
        ("expired", vec![root.leaf(2)], UNTIL + 1),
        ("not yet valid", vec![root.leaf(2)], FROM - 1),
        ("revoked", vec![root.leaf(1)], FROM),
        ("nonsense", vec![CertificateDer::from(vec![1, 2, 3])], FROM),
        ("nonsense behind", vec![other.leaf(1), CertificateDer::from(vec![1, 2, 3])], FROM),
    ] {
        assert!(verify(&trust, &chain, now).is_err(), "{name}");
        assert_eq!(snapshot(&trust).verified.lock().len(), 0, "{name}");
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let root = Authority::root();
    let (leaf, chains) = (root.leaf(1), VerifiedChains::default());
    let fingerprint = |number: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Fingerprint(bytes)
    };
    for number in 0..3 * MAX_VERIFIED_CHAINS {
        chains.remember(fingerprint(number), &leaf, &[], unix(FROM));
        assert!(chains.contains(&fingerprint(number), unix(FROM)), "the last one is known");
        assert!(chains.lock().len() <= MAX_VERIFIED_CHAINS);
    }
    // Out of its time, as the second parser has it, nothing is.
    chains.lock().clear();
    chains.remember(fingerprint(0), &leaf, &[], unix(UNTIL + 1));
    assert_eq!(chains.lock().len(), 0);
}
