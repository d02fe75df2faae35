//! The root of a local mesh on disk: `root-cert.pem` and `root-key.pem` (mode 0600) in a directory of mode 0700.
//!
//! INVARIANT: a file that exists under its final name is complete. Both are written under another name first, and the
//! key is in place before the certificate, so a crash in between leaves a key from which the certificate is made again.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    CaError,
    ca::{random_serial, uri_name},
    limits::{MAX_STATE_FILE_BYTES, NOT_BEFORE_SLACK, ROOT_TTL, STATE_LOCK_TIMEOUT},
    verify::system_time,
};

const CERTIFICATE_FILE: &str = "root-cert.pem";
const KEY_FILE: &str = "root-key.pem";
const LOCK_FILE: &str = "lock";

/// An opened root. The key never leaves this process's memory and the key file.
pub(crate) struct Root {
    pub(crate) key: KeyPair,
    pub(crate) certificate: CertificateDer<'static>,
}

/// Loads the root in `dir`, or makes it.
pub(crate) fn open(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, CaError> {
    prepare_dir(dir)?;
    let _lock = lock(&dir.join(LOCK_FILE))?;
    let (key_path, certificate_path) = (dir.join(KEY_FILE), dir.join(CERTIFICATE_FILE));
    let key_pem = read(&key_path, Secrecy::Private)?;
    let certificate_pem = read(&certificate_path, Secrecy::Public)?;
    match (key_pem, certificate_pem) {
        (Some(key_pem), Some(pem)) => load(&key_path, &key_pem, &certificate_path, &pem, trust_domain, now),
        (Some(key_pem), None) => certify(parse_key(&key_path, &key_pem)?, &certificate_path, trust_domain, now),
        (None, None) => {
            let key = new_key()?;
            write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            certify(key, &certificate_path, trust_domain, now)
        }
        (None, Some(_)) => Err(CaError::Root {
            path: certificate_path,
            reason: format!(
                "its key `{KEY_FILE}` is missing; put the key back, or remove the certificate too and restart every \
                 workload under a new root"
            ),
        }),
    }
}

fn prepare_dir(dir: &Path) -> Result<(), CaError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| state("make the directory", dir, &error))?;
    let metadata = fs::metadata(dir).map_err(|error| state("read", dir, &error))?;
    if metadata.mode() & 0o022 != 0 {
        return Err(CaError::Exposed {
            path: dir.to_owned(),
            problem: "can be written by others".to_owned(),
            remedy: "`chmod 700` it, and remove its files if you don't know who made them".to_owned(),
        });
    }
    check_owner(dir, &metadata)
}

/// Waits for the lock; the kernel lets go of it when the file is closed, however the process ends.
fn lock(path: &Path) -> Result<File, CaError> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow()).open(path);
    let file = file.map_err(|error| state("open", path, &error))?;
    let deadline = Instant::now() + STATE_LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(CaError::Locked { path: path.to_owned() }),
            Err(fs::TryLockError::Error(error)) => return Err(state("lock", path, &error)),
        }
    }
}

fn load(
    key_path: &Path,
    key_pem: &str,
    certificate_path: &Path,
    pem: &str,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Root, CaError> {
    let unusable = |reason: String| CaError::Root { path: certificate_path.to_owned(), reason };
    let key = parse_key(key_path, key_pem)?;
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| unusable(format!("not a certificate: {error}")))?;
    let (_, parsed) =
        X509Certificate::from_der(&certificate).map_err(|error| unusable(format!("not a certificate: {error}")))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(unusable(format!("`{KEY_FILE}` is the key of another certificate; put the right pair back")));
    }
    if !parsed.is_ca() {
        return Err(unusable("it is not a CA certificate".to_owned()));
    }
    let name = format!("spiffe://{trust_domain}");
    let names = parsed.subject_alternative_name().ok().flatten();
    let ours = |general: &GeneralName<'_>| matches!(general, GeneralName::URI(uri) if *uri == name);
    if !names.is_some_and(|names| names.value.general_names.iter().any(ours)) {
        let reason = format!("it is not for trust domain `{trust_domain}`; use another state directory for this one");
        return Err(unusable(reason));
    }
    let not_after = system_time(parsed.validity().not_after.timestamp());
    if now >= not_after || now < system_time(parsed.validity().not_before.timestamp()) {
        let reason = "it is expired or not yet valid; check the clock, or remove both files to make a new root";
        return Err(unusable(reason.to_owned()));
    }
    Ok(Root { key, certificate })
}

fn certify(key: KeyPair, path: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, CaError> {
    let made = self_signed(&key, trust_domain, ROOT_TTL, now)?;
    write(path, made.pem().as_bytes(), 0o644)?;
    Ok(Root { key, certificate: made.der().clone() })
}

/// A root's key.
pub(crate) fn new_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(signing)
}

/// The certificate of a root that signs workloads directly.
pub(crate) fn self_signed(
    key: &KeyPair,
    trust_domain: &str,
    life: Duration,
    now: SystemTime,
) -> Result<Certificate, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // Named after its key, so that a peer of another mesh is told apart by name and not by a signature that fails.
    let key_id: String = params.key_identifier(key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("ambit root {key_id}"));
    params.subject_alt_names = vec![uri_name(&format!("spiffe://{trust_domain}"))?];
    params.not_before = (now - NOT_BEFORE_SLACK).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(random_serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key).map_err(signing)
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, CaError> {
    // The parser's own message is left out: it could quote the file.
    KeyPair::from_pem(pem).map_err(|_| CaError::Root {
        path: path.to_owned(),
        reason: "it holds no private key in PKCS#8 PEM; put the right file back, or remove it and the certificate"
            .to_owned(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Private,
    Public,
}

fn read(path: &Path, secrecy: Secrecy) -> Result<Option<String>, CaError> {
    let file = match OpenOptions::new().read(true).custom_flags(no_follow()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(state("open", path, &error)),
    };
    // Asked of the open file, so nobody can swap it between the check and the reading.
    let metadata = file.metadata().map_err(|error| state("read", path, &error))?;
    check_owner(path, &metadata)?;
    let forbidden = if secrecy == Secrecy::Private { 0o077 } else { 0o022 };
    if metadata.mode() & forbidden != 0 {
        let rights = if secrecy == Secrecy::Private { "read or written" } else { "written" };
        return Err(CaError::Exposed {
            path: path.to_owned(),
            problem: format!("has mode {:04o}: it can be {rights} by others", metadata.mode() & 0o7777),
            remedy: "remove both root files to make a new root, or `chmod go-rwx` them if nobody else had access"
                .to_owned(),
        });
    }
    let mut text = String::new();
    file.take(MAX_STATE_FILE_BYTES).read_to_string(&mut text).map_err(|error| state("read", path, &error))?;
    Ok(Some(text))
}

/// Writes the whole of a file or nothing: another name first (`O_EXCL`), on the disk, then renamed.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let temporary = path.with_extension("pem.new");
    // Under the lock nobody else writes here; what is left is from a start that was cut off.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(state("remove", &temporary, &error)),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    })();
    written.map_err(|error| state("write", path, &error))
}

fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), CaError> {
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(CaError::Exposed {
        path: path.to_owned(),
        problem: format!("belongs to user {}", metadata.uid()),
        remedy: "use a state directory of your own".to_owned(),
    })
}

fn no_follow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn state(action: &'static str, path: &Path, error: &io::Error) -> CaError {
    CaError::State { action, path: path.to_owned(), reason: error.to_string() }
}

fn signing(error: rcgen::Error) -> CaError {
    CaError::Signing { reason: error.to_string() }
}
