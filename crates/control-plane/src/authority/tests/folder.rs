//! A plugged-in CA: both layouts, and what is refused.

use std::{fs, path::Path, time::SystemTime};

use ambit_testing::TRUST_DOMAIN;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::*;

/// An operator's root with an intermediate CA.
pub(super) struct Pki {
    pub(super) root: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pki {
    pub(super) fn new() -> Self {
        let ca = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let (root_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let root = ca("root").self_signed(&root_key).expect("a root");
        let issuer = Issuer::new(ca("root"), &root_key);
        let certificate = ca("intermediate").signed_by(&key, &issuer).expect("signed");
        Self { root: root.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
    }

    pub(super) fn write_istio(&self, folder: &Path) {
        let chain = format!("{}{}", self.certificate, self.root);
        let files = [
            ("ca-cert.pem", &self.certificate),
            ("ca-key.pem", &self.key),
            ("cert-chain.pem", &chain),
            ("root-cert.pem", &self.root),
        ];
        write(folder, &files);
    }
}

fn write(folder: &Path, files: &[(&str, &String)]) {
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("written");
    }
}

fn read(folder: &Path) -> Result<usize, String> {
    let folder = CaFolder::new(folder);
    let signer = folder.signer(TRUST_DOMAIN, SystemTime::now()).map_err(|error| error.to_string())?;
    folder.crl().map_err(|error| error.to_string())?;
    Ok(signer.roots().len())
}

#[test]
fn both_layouts_are_read() {
    let pki = Pki::new();
    let folder = tempfile::tempdir().expect("a folder");
    assert!(!CaFolder::new(folder.path()).is_plugged_in());
    pki.write_istio(folder.path());
    assert!(CaFolder::new(folder.path()).is_plugged_in());
    assert_eq!(read(folder.path()), Ok(1));

    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &[("tls.crt", &pki.certificate), ("tls.key", &pki.key), ("ca.crt", &pki.root)]);
    assert!(CaFolder::new(folder.path()).is_plugged_in());
    assert_eq!(read(folder.path()), Ok(1));
}

#[test]
fn what_is_not_whole_is_refused_and_not_quoted() {
    let (pki, other) = (Pki::new(), Pki::new());
    let cases = [
        ("ca-cert.pem", Some("words"), "no certificate"),
        ("ca-key.pem", Some("words"), "no private key"),
        ("ca-key.pem", Some(&*other.key), "doesn't belong"),
        ("root-cert.pem", Some(&*other.root), "would refuse"),
        ("root-cert.pem", None, "missing"),
        ("ca-key.pem", None, "missing"),
        ("ca-cert.pem", None, "missing"),
        ("ca-crl.pem", Some("words"), "ca-crl.pem"),
    ];
    for (name, text, reason) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        pki.write_istio(folder.path());
        match text {
            Some(text) => fs::write(folder.path().join(name), text).expect("written"),
            None => fs::remove_file(folder.path().join(name)).expect("removed"),
        }
        assert!(CaFolder::new(folder.path()).is_plugged_in(), "a CA that isn't whole is one");
        let error = read(folder.path()).expect_err(reason);
        assert!(error.contains(reason) && !error.contains("words"), "{reason}: {error}");
    }
}

#[test]
fn names_of_the_control_planes_certificate() {
    let plain = server_names("istio-system", "default", &[]);
    for name in
        ["istiod.istio-system.svc", "ambit-control-plane.istio-system.svc", "istiod.istio-system.svc.cluster.local"]
    {
        assert!(plain.iter().any(|found| found == name), "{name}: {plain:?}");
    }
    let more = server_names("m", "canary", &["127.0.0.1".into(), "istiod.m.svc".into()]);
    for name in ["istiod-canary.m.svc", "istiod.m.svc", "127.0.0.1"] {
        assert_eq!(more.iter().filter(|found| *found == name).count(), 1, "{name}: {more:?}");
    }
}
