//! The CA's state on disk, and what it signs.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::{Arc, Barrier},
    time::{Duration, SystemTime},
};

use ambit_identity::{
    Ca, CaError, SpiffeId,
    limits::{DEFAULT_CERTIFICATE_TTL, MAX_CERTIFICATE_TTL, MAX_CSR_BYTES, ROOT_TTL},
    peer_identity,
};
use ambit_testing::{ManualClock, TRUST_DOMAIN, identity};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

const HOUR: Duration = Duration::from_secs(3600);

fn dir() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

fn open(dir: &Path) -> Ca {
    Ca::open(dir, TRUST_DOMAIN).expect("the CA opens")
}

fn csr_for(names: &[&str]) -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for name in names {
        params.subject_alt_names.push(rcgen::SanType::URI((*name).try_into().expect("ASCII")));
    }
    params.serialize_request(&key).expect("a request").pem().expect("PEM")
}

fn csr(id: &SpiffeId) -> String {
    csr_for(&[&id.to_string()])
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the file exists").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn the_root_is_private_and_kept() {
    let dir = dir();
    let state = dir.path().join("deep/ca");
    let first = open(&state).root_pem().to_owned();
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("root-key.pem")), 0o600);
    assert_eq!(first, fs::read_to_string(state.join("root-cert.pem")).expect("the certificate"));
    assert_eq!(open(&state).root_pem(), first);
    let names = fs::read_dir(&state).expect("the directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["lock", "root-cert.pem", "root-key.pem"]);
}

#[test]
fn starts_at_one_moment_share_one_root() {
    let dir = dir();
    let start = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (state, start) = (dir.path().join("ca"), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                open(&state).root_pem().to_owned()
            })
        })
        .collect();
    let roots: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = dir();
    drop(open(dir.path()));
    let key = dir.path().join("root-key.pem");
    for bad in [0o640, 0o604, 0o644, 0o660, 0o601] {
        set_mode(&key, bad);
        let error = Ca::open(dir.path(), TRUST_DOMAIN).expect_err("exposed");
        assert!(matches!(&error, CaError::Exposed { path, .. } if *path == key), "{error}");
    }
    set_mode(&key, 0o400);
    open(dir.path());
}

#[test]
fn state_that_others_can_change_is_refused() {
    let dir = dir();
    drop(open(dir.path()));
    set_mode(&dir.path().join("root-cert.pem"), 0o666);
    assert!(matches!(Ca::open(dir.path(), TRUST_DOMAIN), Err(CaError::Exposed { .. })));
    set_mode(&dir.path().join("root-cert.pem"), 0o644);
    set_mode(dir.path(), 0o770);
    assert!(matches!(Ca::open(dir.path(), TRUST_DOMAIN), Err(CaError::Exposed { .. })));
}

#[test]
fn a_key_behind_a_symlink_is_refused() {
    let dir = dir();
    drop(open(dir.path()));
    let (key, elsewhere) = (dir.path().join("root-key.pem"), dir.path().join("elsewhere"));
    fs::rename(&key, &elsewhere).expect("moved");
    symlink(&elsewhere, &key).expect("linked");
    assert!(matches!(Ca::open(dir.path(), TRUST_DOMAIN), Err(CaError::State { .. })));
}

#[test]
fn a_first_start_that_was_cut_off_is_completed() {
    let dir = dir();
    let before = open(dir.path());
    let id = identity("a", "x");
    let old = before.issue(&csr(&id), &id, HOUR).expect("signed");
    // As after a crash between the two files, with a half-written one left over.
    fs::remove_file(dir.path().join("root-cert.pem")).expect("removed");
    fs::write(dir.path().join("root-cert.pem.new"), "-----BEGIN").expect("written");
    let after = open(dir.path());
    assert_ne!(after.root_pem(), before.root_pem());
    assert_eq!(open(dir.path()).root_pem(), after.root_pem());
    // The key is the same, so what was signed before still chains to the new certificate.
    let new = after.issue(&csr(&id), &id, HOUR).expect("signed");
    let (_, root) = X509Certificate::from_der(&new.roots[0]).expect("a root");
    let (_, leaf) = X509Certificate::from_der(&old.chain[0]).expect("a leaf");
    leaf.verify_signature(Some(root.public_key())).expect("signed by the same key");
    assert_eq!(leaf.issuer(), root.subject());
}

#[test]
fn a_root_that_is_not_whole_is_refused() {
    let (one, other) = (dir(), dir());
    drop((open(one.path()), open(other.path())));
    let (key, certificate) = (one.path().join("root-key.pem"), one.path().join("root-cert.pem"));
    let kept = fs::read(&certificate).expect("read");
    let refused = || match Ca::open(one.path(), TRUST_DOMAIN) {
        Err(CaError::Root { reason, .. }) => reason,
        other => panic!("expected a root error, got {other:?}"),
    };

    fs::copy(other.path().join("root-cert.pem"), &certificate).expect("copied");
    assert!(refused().contains("the key of another certificate"));
    fs::write(&certificate, "nonsense").expect("written");
    assert!(refused().contains("not a certificate"));
    fs::write(&certificate, kept).expect("written");
    open(one.path());

    let secret = fs::read_to_string(&key).expect("read");
    fs::write(&key, secret.replace("BEGIN", "BEGAN")).expect("written");
    let reason = refused();
    assert!(reason.contains("no private key") && !reason.contains(&secret[30..60]));
    fs::remove_file(&key).expect("removed");
    assert!(refused().contains("is missing"));
}

#[test]
fn a_root_serves_one_trust_domain() {
    let dir = dir();
    let ca = open(dir.path());
    let error = Ca::open(dir.path(), "other.example").expect_err("another domain");
    assert!(matches!(&error, CaError::Root { reason, .. } if reason.contains("other.example")), "{error}");
    for bad in ["", "a/b", "a b", "*"] {
        assert!(matches!(Ca::open(dir.path(), bad), Err(CaError::TrustDomain { .. })), "{bad}");
    }
    let foreign = SpiffeId::new("other.example", "a", "x").expect("valid");
    assert!(matches!(ca.issue(&csr(&foreign), &foreign, HOUR), Err(CaError::ForeignIdentity { .. })));
}

#[test]
fn requests_that_are_not_plain_are_refused() {
    let dir = dir();
    let ca = open(dir.path());
    let id = identity("a", "x");
    let mut flipped = csr(&id);
    let middle = flipped.len() - 60;
    let replacement = if flipped.as_bytes()[middle] == b'A' { "B" } else { "A" };
    flipped.replace_range(middle..=middle, replacement);
    let other = csr(&identity("a", "y"));
    let both = csr_for(&[&id.to_string(), "spiffe://cluster.local/ns/a/sa/y"]);
    let long = "x".repeat(MAX_CSR_BYTES + 1);
    for bad in ["", "nonsense", &flipped, &other, &both, &long] {
        let error = ca.issue(bad, &id, HOUR).expect_err("refused");
        assert!(matches!(error, CaError::Request { .. }), "{error}");
    }
    let sound = csr(&id);
    for bad in [Duration::ZERO, MAX_CERTIFICATE_TTL + Duration::from_secs(1)] {
        assert!(matches!(ca.issue(&sound, &id, bad), Err(CaError::Ttl { .. })));
    }
    ca.issue(&sound, &id, MAX_CERTIFICATE_TTL).expect("signed");
    // A request without a name is for whom the CA says.
    let issued = ca.issue(&csr_for(&[]), &id, HOUR).expect("signed");
    assert_eq!(peer_identity(&issued.chain), Some(id));
}

#[test]
fn a_leaf_has_the_workload_profile() {
    let dir = dir();
    let ca = open(dir.path());
    let id = identity("kagenti-system", "otel-collector");
    let issued = ca.issue(&csr(&id), &id, DEFAULT_CERTIFICATE_TTL).expect("signed");
    assert_eq!((issued.chain.len(), issued.roots.len()), (1, 1));
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).expect("a certificate");

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("in range");
    assert!((now - 125..=now - 115).contains(&leaf.validity().not_before.timestamp()));
    assert!((now + 86_395..=now + 86_405).contains(&leaf.validity().not_after.timestamp()));
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let names = leaf.subject_alternative_name().expect("parsed").expect("present");
    assert!(names.critical);
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(peer_identity(&issued.chain), Some(id.clone()));
    let usage = leaf.extended_key_usage().expect("parsed").expect("present").value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let key_usage = leaf.key_usage().expect("parsed").expect("present").value;
    assert!(key_usage.digital_signature() && !key_usage.key_cert_sign() && !key_usage.key_encipherment());
    let authority = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::AuthorityKeyIdentifier(_));
    assert!(leaf.extensions().iter().any(|extension| authority(extension.parsed_extension())));

    let again = ca.issue(&csr(&id), &id, DEFAULT_CERTIFICATE_TTL).expect("signed");
    let (_, again) = X509Certificate::from_der(&again.chain[0]).expect("a certificate");
    assert_ne!(again.raw_serial(), leaf.raw_serial());
}

#[test]
fn no_leaf_outlives_the_root() {
    let dir = dir();
    let clock = ManualClock::new();
    let ca = open(dir.path()).with_clock(clock.clone());
    clock.advance(ROOT_TTL - HOUR);
    let id = identity("a", "x");
    let issued = ca.issue(&csr(&id), &id, 2 * HOUR).expect("signed");
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).expect("a certificate");
    let (_, root) = X509Certificate::from_der(&issued.roots[0]).expect("a certificate");
    assert!(leaf.validity().not_after <= root.validity().not_after);
}
