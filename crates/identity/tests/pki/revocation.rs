//! Revocation lists (`spec/ztunnel.md` 20): read, watched, and obeyed by handshakes and for living connections.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use ambit_identity::{
    CrlError, CrlFile, CrlFileError, Crls, KeyExchange, Revocation, Trust, WorkloadCertificate,
    limits::{CRL_CHECK_INTERVAL, MAX_CRL_BYTES, MAX_CRLS},
};
use ambit_testing::identity;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::authority::{Authority, meet, serial};

/// Whether an error says what is wrong.
type Expected = fn(&CrlError) -> bool;

fn pem(der: &[u8]) -> String {
    let certificate = ambit_identity::certificate_pem(&CertificateDer::from(der));
    certificate.replace("CERTIFICATE", "X509 CRL")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn workload(authority: &Authority, account: &str) -> (Arc<Trust>, WorkloadCertificate) {
    let trust = Trust::new(KeyExchange::default());
    let certificate = authority.workload(&identity("a", account), &trust);
    (trust, certificate)
}

fn set(trust: &Trust, bytes: &[u8]) {
    trust.set_crls(Arc::new(Crls::parse(bytes).expect("lists")));
}

#[test]
fn lists_are_read_from_pem_and_der() {
    let (a, b) = (Authority::root("a"), Authority::root("b"));
    let leaf = a.workload(&identity("a", "x"), &Trust::new(KeyExchange::default())).chain()[0].clone();
    let (one, two) = (a.crl(&[&leaf], 7), b.crl(&[], 7));
    let both = format!("a comment\n{}{}", pem(&one), pem(&two));
    let with_others = format!("{}{}", ambit_identity::certificate_pem(&a.root), pem(&one));
    for (name, bytes, lists) in [
        ("DER", &one[..], 1),
        ("one block", pem(&one).as_bytes(), 1),
        ("several blocks", both.as_bytes(), 2),
        ("other blocks", with_others.as_bytes(), 1),
        ("CRLF", pem(&one).replace('\n', "\r\n").as_bytes(), 1),
    ] {
        let crls = Crls::parse(bytes).expect(name);
        assert_eq!((crls.len(), crls.is_empty()), (lists, false), "{name}");
        let serial = hexadecimal(&serial(&leaf));
        let expected = Revocation::Listed { index: 0, serial };
        assert_eq!(crls.revocation(std::slice::from_ref(&leaf)), Some(expected), "{name}");
    }
    assert!(Crls::default().is_empty());
    assert_eq!(Crls::default().revocation(&[leaf]), None);
}

#[test]
fn bytes_that_are_not_lists_are_refused_as_a_whole() {
    let a = Authority::root("a");
    let good = a.crl(&[], 7);
    let certificate = ambit_identity::certificate_pem(&a.root);
    let cut = &good[..good.len() - 1];
    let half = format!("{}{}", pem(&good), pem(cut));
    let open = pem(&good).replace("-----END", "-----");
    let many = pem(&good).repeat(MAX_CRLS + 1);
    let long = vec![b'x'; MAX_CRL_BYTES + 1];
    let mut trailing = good.clone();
    trailing.push(0);
    let cases: [(&str, &[u8], Expected); 11] = [
        ("nothing", b"", |error| *error == CrlError::Empty),
        ("spaces", b" \r\n\t", |error| *error == CrlError::Empty),
        ("nonsense", b"nonsense", |error| *error == CrlError::Empty),
        ("a certificate", certificate.as_bytes(), |error| *error == CrlError::Empty),
        ("a certificate, DER", &a.root, |error| matches!(error, CrlError::List { index: 0, .. })),
        ("DER cut short", cut, |error| matches!(error, CrlError::List { index: 0, .. })),
        ("DER with more after it", &trailing, |error| matches!(error, CrlError::List { index: 0, .. })),
        ("the second is cut short", half.as_bytes(), |error| matches!(error, CrlError::List { index: 1, .. })),
        ("a block without its end", open.as_bytes(), |error| matches!(error, CrlError::Pem { .. })),
        ("too many", many.as_bytes(), |error| matches!(error, CrlError::TooMuch { what: "lists", .. })),
        ("too long", &long, |error| matches!(error, CrlError::TooMuch { what: "bytes", .. })),
    ];
    for (name, bytes, expected) in cases {
        let error = Crls::parse(bytes).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
    }
}

#[tokio::test]
async fn revoked_peers_are_refused_both_ways() {
    let authority = Authority::root("a");
    let ((here, x), (there, y)) = (workload(&authority, "x"), workload(&authority, "y"));
    meet(&x, &y).await.expect("before");
    set(&here, &authority.crl(&[&y.chain()[0]], 7));
    let error = meet(&x, &y).await.expect_err("the server is revoked");
    assert!(error.contains("Revoked"), "{error}");
    let error = meet(&y, &x).await.expect_err("the client is revoked");
    assert!(error.contains("Revoked"), "{error}");
    // The other side has no lists and asks nothing.
    set(&here, &authority.crl(&[], 7));
    meet(&x, &y).await.expect("pardoned");
    assert!(there.crls().is_empty());
}

/// What the lists hold beside a leaf that is fine or not, and whether the peer gets through.
#[tokio::test]
async fn open_questions_are_answered_as_documented() {
    let authority = Authority::root("a");
    let below = authority.intermediate("below");
    let stranger = Authority::root("stranger");
    let namesake = Authority::root("a");
    let (trust, x) = workload(&authority, "x");
    let (_, peer) = workload(&below, "y");
    let leaf = &peer.chain()[0];
    let bundle = |lists: &[Vec<u8>]| lists.iter().map(|der| pem(der)).collect::<String>();
    let cases = [
        ("no list of its issuer", bundle(&[stranger.crl(&[leaf], 7)]), None),
        ("a list that doesn't name it", bundle(&[below.crl(&[], 7)]), None),
        ("a list past its time that doesn't name it", bundle(&[below.crl(&[], -1)]), None),
        ("a list past its time that names it", bundle(&[below.crl(&[leaf], -1)]), Some("Revoked")),
        ("the second of two lists names it", bundle(&[below.crl(&[], 7), below.crl(&[leaf], 7)]), Some("Revoked")),
        ("its intermediate is named", bundle(&[authority.crl(&[&below.certificate], 7)]), Some("Revoked")),
        // Somebody else of the issuer's name has signed the list: whether it is right, nobody knows.
        ("a list with a bad signature", bundle(&[namesake.crl(&[], 7), authority.crl(&[], 7)]), Some("BadSignature")),
    ];
    for (name, lists, expected) in cases {
        set(&trust, lists.as_bytes());
        for (way, outcome) in [("server", meet(&x, &peer).await), ("client", meet(&peer, &x).await)] {
            match (outcome, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(needle)) if error.contains(needle) => {}
                (outcome, _) => panic!("{name}, as {way}: {outcome:?} instead of {expected:?}"),
            }
        }
    }
}

#[tokio::test]
async fn living_peers_are_looked_at_again_after_a_reload() {
    let authority = Authority::root("a");
    let below = authority.intermediate("below");
    let (trust, _) = workload(&authority, "x");
    let (_, peer) = workload(&below, "y");
    let chain = peer.chain();
    let mut changes = trust.changes();
    assert_eq!(trust.revocation(chain), None);
    set(&trust, &below.crl(&[], 7));
    timeout(Duration::from_secs(5), changes.changed()).await.expect("told").expect("alive");
    assert_eq!(trust.revocation(chain), None);

    set(&trust, &below.crl(&[&chain[0]], 7));
    let leaf = Revocation::Listed { index: 0, serial: hexadecimal(&serial(&chain[0])) };
    assert_eq!(trust.revocation(chain), Some(leaf));
    set(&trust, &authority.crl(&[&chain[1]], 7));
    let intermediate = Revocation::Listed { index: 1, serial: hexadecimal(&serial(&chain[1])) };
    assert_eq!(trust.revocation(chain), Some(intermediate.clone()));
    assert!(intermediate.to_string().contains("intermediate"), "{intermediate}");

    // A root that is gone by now ends no connection; a chain that can't be read does.
    set(&trust, &below.crl(&[], 7));
    trust.replace_roots(vec![Authority::root("other").root.clone()]).expect("good roots");
    assert_eq!(trust.revocation(chain), None);
    assert_eq!(trust.revocation(&[]), Some(Revocation::Unreadable { index: 0 }));
    let unreadable = [chain[0].clone(), CertificateDer::from(vec![1])];
    assert_eq!(trust.revocation(&unreadable), Some(Revocation::Unreadable { index: 1 }));
}

#[tokio::test(start_paused = true)]
async fn our_own_certificate_is_replaced_when_it_is_revoked() {
    let authority = Authority::root("a");
    let below = authority.intermediate("below");
    let store = crate::authority::store(&below);
    let (x, y) = (identity("a", "x"), identity("a", "y"));
    let (first, other) = (store.get(&x).await.expect("a certificate"), store.get(&y).await.expect("a certificate"));
    let after = async |wait_s| {
        tokio::time::sleep(Duration::from_secs(wait_s)).await;
        store.current(&x).expect("there is always one")
    };
    set(store.trust(), &below.crl(&[&first.chain()[0]], 7));
    let second = after(2).await;
    assert!(!Arc::ptr_eq(&first, &second), "the revoked one is still in use");
    assert!(Arc::ptr_eq(&other, &store.current(&y).expect("there is always one")), "others are left alone");
    // Where the successor is revoked as well, the CA is asked once and not on and on.
    set(store.trust(), &authority.crl(&[&below.certificate], 7));
    let third = after(2).await;
    assert!(!Arc::ptr_eq(&second, &third));
    assert!(Arc::ptr_eq(&third, &after(60).await));
}

/// Waits until `trust` has changed from `before` on, or a few looks at the file have passed.
async fn settled(trust: &Trust, path: &Path) -> usize {
    let mut changes = trust.changes();
    changes.mark_unchanged();
    // The watch looks at the file in a blocking thread, which holds the paused clock until it is done.
    let _ = timeout(CRL_CHECK_INTERVAL * 4, changes.changed()).await;
    assert!(path.is_absolute());
    trust.crls().len()
}

#[tokio::test(start_paused = true)]
async fn the_file_is_watched() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("ca-crl.pem");
    let (a, b) = (Authority::root("a"), Authority::root("b"));
    let (one, two) = (pem(&a.crl(&[], 7)), pem(&b.crl(&[], 7)));
    let trust = Trust::new(KeyExchange::default());
    let mut file = CrlFile::new(&path);
    file.load(&trust).expect("a missing file is tolerated");
    assert!(trust.crls().is_empty());
    let watch = tokio::spawn(file.watch(Arc::clone(&trust)));

    fs::write(&path, &one).expect("written");
    assert_eq!(settled(&trust, &path).await, 1, "the file has come");
    fs::write(&path, one.clone() + &two).expect("written");
    assert_eq!(settled(&trust, &path).await, 2, "the file has grown");
    fs::write(&path, "-----BEGIN X509 CRL-----\nMIIB").expect("written");
    assert_eq!(settled(&trust, &path).await, 2, "a malformed file sets nobody free");
    fs::write(&path, "").expect("written");
    assert_eq!(settled(&trust, &path).await, 2, "nor does an empty one");
    fs::remove_file(&path).expect("removed");
    assert_eq!(settled(&trust, &path).await, 2, "nor does a file that is gone");
    // As a mounted ConfigMap changes: by a link to another directory.
    for (name, content, expected) in [("first", &one, 1), ("second", &(one.clone() + &two + &two), 3)] {
        let version = dir.path().join(name);
        fs::create_dir(&version).expect("a directory");
        fs::write(version.join("ca-crl.pem"), content).expect("written");
        symlink(version.join("ca-crl.pem"), dir.path().join("new")).expect("a link");
        fs::rename(dir.path().join("new"), &path).expect("swapped");
        assert_eq!(settled(&trust, &path).await, expected, "{name}");
    }
    watch.abort();
}

#[test]
fn a_file_that_is_there_but_no_use_stops_the_start() {
    let dir = TempDir::new().expect("a temporary directory");
    let trust = Trust::new(KeyExchange::default());
    let path = dir.path().join("ca-crl.pem");
    fs::write(&path, "nonsense").expect("written");
    let error = CrlFile::new(&path).load(&trust).expect_err("malformed");
    assert!(matches!(error, CrlFileError::Content { error: CrlError::Empty, .. }), "{error}");
    let error = CrlFile::new(dir.path()).load(&trust).expect_err("a directory");
    assert!(matches!(error, CrlFileError::Read { .. }), "{error}");
    fs::write(&path, pem(&Authority::root("a").crl(&[], 7))).expect("written");
    CrlFile::new(&path).load(&trust).expect("good");
    assert_eq!(trust.crls().len(), 1);
}
