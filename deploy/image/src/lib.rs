//! A container image as an OCI image layout (`image-spec` 1.1): a folder that `podman`, `skopeo`, `crane` and `ctr` read. It is
//! made without a registry, a daemon or root: one layer with the static program, and what says how to run it.
//!
//! The same program makes the same bytes: no times, no names of users, sorted entries.
#![forbid(unsafe_code)]

mod elf;

use std::{fs, io, path::Path};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Largest program or bundle of certificates that goes into an image, in bytes.
const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;
/// Where the program is in the image.
const PROGRAM: &str = "ambit";
/// Where programs look for the authorities that sign servers' certificates.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Whom the program runs as, where nothing else is said. The objects in `deploy` say it themselves.
const USER: &str = "1337:1337";

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What goes into an image.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The program: static, for Linux.
    pub program: &'a Path,
    /// Authorities that sign servers' certificates, PEM, for fetching token issuers' keys.
    pub certificates: Option<&'a Path>,
    /// Name of the image with its tag, as annotated in the index.
    pub name: &'a str,
    /// Version of the program.
    pub version: &'a str,
}

/// Writes the layout into this folder, which mustn't exist or be empty, and gives the manifest's digest.
///
/// # Errors
/// When the program isn't a static one, or files can't be read or written.
pub fn write(contents: &Contents<'_>, folder: &Path) -> io::Result<String> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the folder isn't empty; remove it or name another"));
    }
    let program = read(contents.program)?;
    let architecture = elf::architecture(&program).map_err(io::Error::other)?;
    let certificates = contents.certificates.map(read).transpose()?;
    let layer = layer(&program, certificates.as_deref())?;
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |media: &str, bytes: &[u8]| -> io::Result<Value> {
        let digest = hex(bytes);
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let layer_at = put(LAYER, &layer)?;
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "User": USER,
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": "ambit", "org.opencontainers.image.version": contents.version},
        },
        // Of what a layer holds when it is unpacked; this one isn't packed.
        "rootfs": {"type": "layers", "diff_ids": [layer_at["digest"]]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    let config_at = put(CONFIG, config.to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config_at, "layers": [layer_at]});
    let mut manifest_at = put(MANIFEST, manifest.to_string().as_bytes())?;
    let digest = manifest_at["digest"].as_str().unwrap_or_default().to_owned();
    manifest_at["platform"] = json!({"architecture": architecture, "os": "linux"});
    manifest_at["annotations"] = json!({"org.opencontainers.image.ref.name": contents.name});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest_at]});
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(folder.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(digest)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", file.display()));
    if fs::metadata(file).map_err(named)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("`{}` is too large", file.display())));
    }
    fs::read(file).map_err(named)
}

fn layer(program: &[u8], certificates: Option<&[u8]>) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    entry(&mut layer, PROGRAM, 0o755, tar::EntryType::Regular, program)?;
    if let Some(certificates) = certificates {
        for folder in ["etc/", "etc/ssl/", "etc/ssl/certs/"] {
            entry(&mut layer, folder, 0o755, tar::EntryType::Directory, &[])?;
        }
        entry(&mut layer, CERTIFICATES, 0o644, tar::EntryType::Regular, certificates)?;
    }
    // Whoever needs a place for files mounts one here.
    entry(&mut layer, "tmp/", 0o1777, tar::EntryType::Directory, &[])?;
    layer.into_inner()
}

fn entry(
    layer: &mut tar::Builder<Vec<u8>>,
    name: &str,
    mode: u32,
    kind: tar::EntryType,
    bytes: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    layer.append_data(&mut header, name, bytes)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
