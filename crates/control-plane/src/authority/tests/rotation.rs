//! From one self-signed root to the next.

use std::time::{Duration, SystemTime};

use ambit_identity::{Ca, CertificateRequest, Clock, IssuedChain, limits::MAX_CERTIFICATE_TTL, limits::ROOT_TTL};
use ambit_testing::{ManualClock, TRUST_DOMAIN, identity};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

fn root(now: SystemTime) -> RootSecret {
    RootSecret::new(TRUST_DOMAIN, ROOT_TTL, now).expect("a root")
}

/// Written and read back, as between replicas.
fn through_a_secret(root: &RootSecret) -> RootSecret {
    let mut secret = Secret::default();
    root.write(&mut secret);
    RootSecret::read(&secret).expect("readable")
}

fn roots(root: &RootSecret, now: SystemTime) -> usize {
    root.signer(TRUST_DOMAIN, now).expect("usable").roots().len()
}

fn issue(root: &RootSecret, clock: &Arc<ManualClock>) -> (CertificateRequest, IssuedChain) {
    let signer = root.signer(TRUST_DOMAIN, clock.now()).expect("usable");
    let ca = Ca::new(TRUST_DOMAIN, signer).expect("a CA").with_clock(Arc::clone(clock) as _);
    let request = CertificateRequest::new(&identity("a", "x")).expect("a request");
    let issued = ca.issue(request.pem(), request.identity(), MAX_CERTIFICATE_TTL).expect("signed");
    (request, issued)
}

fn step(root: &mut RootSecret, lasted: Duration, now: SystemTime) -> Option<Step> {
    let step = root.step(TRUST_DOMAIN, lasted, now).expect("it can be looked at");
    *root = through_a_secret(root);
    step
}

#[test]
fn the_secret_is_istios() {
    let mut secret = Secret::default();
    root(SystemTime::now()).write(&mut secret);
    assert_eq!(secret.type_.as_deref(), Some("istio.io/ca-root"));
    let data = secret.data.expect("some");
    let names: Vec<_> = data.iter().map(|(name, ByteString(value))| (name.as_str(), value.is_empty())).collect();
    let expected = [
        ("ca-cert.pem", false),
        ("ca-key.pem", false),
        ("cert-chain.pem", true),
        ("key.pem", true),
        ("root-cert.pem", true),
    ];
    assert_eq!(names, expected);
}

#[test]
fn one_root_follows_another_without_a_gap() {
    let clock = ManualClock::new();
    let mut now = root(clock.now());
    assert_eq!(step(&mut now, HOUR, clock.now()), None);
    clock.advance(ROOT_TTL * 4 / 5 - DAY);
    assert_eq!(step(&mut now, HOUR, clock.now()), None, "not before the last fifth");
    clock.advance(2 * DAY);
    assert_eq!(step(&mut now, HOUR, clock.now()), Some(Step::Announced));
    assert_eq!(roots(&now, clock.now()), 2);
    let (request, by_old) = issue(&now, &clock);
    let before = by_old.roots.clone();
    assert_eq!(by_old.chain.len(), 1);
    request
        .check(&IssuedChain { roots: vec![before[0].clone()], ..by_old.clone() }, &*clock)
        .expect("the old one signs");

    // It signs until the longest-lived certificate without the new root is gone.
    let mut waited = Duration::ZERO;
    while step(&mut now, DAY, clock.now()) == Some(Step::Waited) {
        clock.advance(DAY);
        waited += DAY;
    }
    assert_eq!(waited + DAY, MAX_CERTIFICATE_TTL);
    let (request, by_new) = issue(&now, &clock);
    assert_eq!(by_new.roots.len(), 2);
    request
        .check(&IssuedChain { roots: vec![before[1].clone()], ..by_new.clone() }, &*clock)
        .expect("the new one signs");
    // Who has only the bundle of before trusts it, and who has the new bundle trusts what was signed before.
    let (request, issued) = issue(&now, &clock);
    request.check(&IssuedChain { roots: before, ..issued }, &*clock).expect("trusted");

    let (request, last_of_old) = (request, by_old);
    drop((request, last_of_old));
    let mut waited = Duration::ZERO;
    while step(&mut now, DAY, clock.now()) == Some(Step::Waited) {
        assert_eq!(roots(&now, clock.now()), 2);
        clock.advance(DAY);
        waited += DAY;
    }
    assert_eq!(waited + DAY, MAX_CERTIFICATE_TTL);
    assert_eq!(roots(&now, clock.now()), 1);
    assert_eq!(step(&mut now, DAY, clock.now()), None);
}

/// A clock that is ahead begins a rotation. When it is right again nothing was lost, and no proxy ever met a signature by a root
/// that it hadn't been given.
#[test]
fn a_clock_that_leaps_cuts_nothing_short() {
    let clock = ManualClock::new();
    let started = clock.now();
    let mut root = root(started);
    let ahead = started + ROOT_TTL - DAY;
    assert_eq!(step(&mut root, HOUR, ahead), Some(Step::Announced));
    assert_eq!(step(&mut root, HOUR, ahead + DAY / 2), Some(Step::Waited), "the leap isn't counted as time");
    // The clock is put right.
    for _ in 0..89 {
        assert_eq!(step(&mut root, DAY, started), Some(Step::Waited));
    }
    assert_eq!(
        step(&mut root, DAY, started),
        Some(Step::Announced),
        "a root of the future isn't signed with; another is made"
    );
    assert_eq!(roots(&root, started), 2);
    for _ in 0..89 {
        assert_eq!(step(&mut root, DAY, started), Some(Step::Waited));
    }
    assert_eq!(step(&mut root, DAY, started), Some(Step::Switched));
    issue(&root, &clock);
}

#[test]
fn a_clock_outside_the_roots_life_signs_nothing() {
    let now = SystemTime::now();
    let mut root = root(now);
    for wrong in [now - DAY, now + ROOT_TTL + DAY] {
        root.signer(TRUST_DOMAIN, wrong).expect_err("refused");
        root.step(TRUST_DOMAIN, HOUR, wrong).expect_err("refused");
    }
    assert_eq!(roots(&root, now), 1);
}

#[test]
fn a_secret_that_is_not_whole_is_refused_and_not_quoted() {
    let mut whole = Secret::default();
    let now = SystemTime::now();
    root(now).write(&mut whole);
    let with = |key: &str, value: Option<&[u8]>| {
        let mut secret = whole.clone();
        let data = secret.data.as_mut().expect("some");
        match value {
            Some(value) => data.insert(key.into(), ByteString(value.to_vec())),
            None => data.remove(key),
        };
        RootSecret::read(&secret)
            .and_then(|root| root.signer(TRUST_DOMAIN, now).map(|_| ()))
            .map_err(|error| error.to_string())
    };
    let mut other = Secret::default();
    root(now).write(&mut other);
    let other_key = other.data.expect("some")["ca-key.pem"].0.clone();
    let large = vec![b'x'; 2 * 1024 * 1024];
    let cases: [(&str, Option<&[u8]>, &str); 8] = [
        ("ca-cert.pem", None, "missing"),
        ("ca-key.pem", None, "missing"),
        ("ca-key.pem", Some(b""), "missing"),
        ("ca-key.pem", Some(b"secret words"), "no private key"),
        ("ca-cert.pem", Some(b"secret words"), "no certificate"),
        ("ca-cert.pem", Some(&[0xff, 0xfe]), "no text"),
        ("ca-cert.pem", Some(&large), "too large"),
        ("ca-key.pem", Some(&other_key), "doesn't belong"),
    ];
    for (key, value, reason) in cases {
        let error = with(key, value).expect_err(reason);
        assert!(error.contains(reason) && !error.contains("secret words"), "{reason}: {error}");
    }
    with("unrelated", Some(b"x")).expect("others' entries don't matter");
}
