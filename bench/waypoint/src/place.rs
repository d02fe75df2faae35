//! Where a run keeps what it needs for a while, and the certificates that all its processes share.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ambit_identity::{Ca, CertificateStore, SpiffeId, SystemClock};
use data_encoding::BASE64;
use rcgen::{CertificateParams, KeyPair};

use crate::scenario::TRUST_DOMAIN;

/// A folder of keys and sockets that goes with this.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
}

/// PEM files for a program that isn't ours.
#[derive(Clone, Debug)]
pub(crate) struct PemFiles {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) roots: PathBuf,
}

const CERTIFICATE_LIFE: Duration = Duration::from_secs(12 * 3600);

/// The certificates of the CA that is kept in this folder.
pub(crate) fn certificates(folder: &Path) -> Result<Arc<CertificateStore>, String> {
    Ok(CertificateStore::new(Arc::new(ca(folder)?), Arc::new(SystemClock)))
}

/// Issues a certificate and writes it down.
pub(crate) fn pem_files(folder: &Path, identity: &SpiffeId) -> Result<PemFiles, String> {
    let failed = |error: &dyn std::fmt::Display| format!("no certificate for `{identity}`: {error}");
    let ca = ca(folder)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
    let request = CertificateParams::default().serialize_request(&key).and_then(|request| request.pem());
    let request = request.map_err(|error| failed(&error))?;
    let issued = ca.issue(&request, identity, CERTIFICATE_LIFE).map_err(|error| failed(&error))?;
    let chain: String = issued.chain.iter().map(|certificate| pem(certificate)).collect();
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).map_err(|error| failed(&error))?;
        Ok::<_, String>(file)
    };
    Ok(PemFiles {
        chain: write("envoy.pem", &chain)?,
        key: write("envoy.key", &key.serialize_pem())?,
        roots: write("roots.pem", &ca.root_pem())?,
    })
}

fn ca(folder: &Path) -> Result<Ca, String> {
    Ca::open(&folder.join("ca"), TRUST_DOMAIN).map_err(|error| error.to_string())
}

fn pem(certificate: &[u8]) -> String {
    let text = BASE64.encode(certificate);
    // Base64 is ASCII, so it can be cut anywhere.
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

// === impl Place ===

impl Place {
    pub(crate) fn new() -> Result<Self, String> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = std::env::temp_dir().join(format!("ambit-bench-waypoint-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(|error| format!("`{}`: {error}", folder.display()))?;
        Ok(Self { folder })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.folder);
    }
}
