//! The last good state, kept on disk, so that a proxy that restarts while its control plane is away still serves.
//!
//! What is kept is what the control plane last said, with what was refused of it: refused again at the next start, it stays
//! closed. The file is written whole beside its place and renamed over it, readable by its owner alone. At the start it is
//! taken whole or not at all: a file of another format or scope, damaged, too large, or writable by others is passed over.
//!
//! Format: 8 bytes [`MAGIC`], format number and length of the body (4 and 8 bytes, little-endian), SHA-256 of the body, the
//! body: a protobuf [`Body`].

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use prost::Message;
use rustix::fs::OFlags;

use crate::{DeltaResponse, Resource, limits::MAX_STATE_BYTES};

const MAGIC: &[u8; 8] = b"AMBITXDS";
/// Raised whenever the body changes its meaning.
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 4 + 8 + SHA256_OUTPUT_LEN;

/// What a file holds.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    /// Whose state it is; that of another server or cluster doesn't count.
    #[prost(string, tag = "1")]
    scope: String,
    /// Seconds since 1970.
    #[prost(int64, tag = "2")]
    written_at: i64,
    /// The resources by type, in the order to apply them in.
    #[prost(message, repeated, tag = "3")]
    types: Vec<TypeBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TypeBody {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<ResourceBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceBody {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(bytes = "vec", tag = "3")]
    value: Vec<u8>,
}

/// A state read back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Restored {
    /// When it was written.
    pub(super) written_at: SystemTime,
    /// What it holds, in the order to apply it in.
    pub(super) deltas: Vec<DeltaResponse>,
}

/// Why a file is not used, or not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("can't {action} `{}`: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("`{}` is {what}; {remedy}", path.display())]
    Exposed { path: PathBuf, what: &'static str, remedy: &'static str },
    #[error("`{}` has {bytes} bytes, at most {MAX_STATE_BYTES} are read or written", path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("`{}` isn't a state that Ambit wrote", path.display())]
    Foreign { path: PathBuf },
    #[error("`{}` has format {found}, this version reads {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("`{}` is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("`{}` holds the state of `{found}`, not of `{expected}`", path.display())]
    OtherScope { path: PathBuf, found: String, expected: String },
}

/// What was last said, and where it is kept.
#[derive(Debug)]
pub(super) struct LastGood {
    path: PathBuf,
    scope: String,
    /// By type, in the order to apply them in.
    types: Vec<(String, Kept)>,
}

/// Version and content by name.
type Kept = BTreeMap<String, (String, Vec<u8>)>;

// === impl LastGood ===

impl LastGood {
    /// Nothing yet, to be kept at `path`. `types` in the order to apply them in.
    pub(super) fn new(path: PathBuf, scope: String, types: impl IntoIterator<Item = String>) -> Self {
        Self { path, scope, types: types.into_iter().map(|url| (url, BTreeMap::new())).collect() }
    }

    /// Takes in what was said of the resources that are to be kept.
    pub(super) fn note(&mut self, delta: &DeltaResponse, is_kept: impl Fn(&str) -> bool) {
        let Some((_, resources)) = self.types.iter_mut().find(|(url, _)| *url == delta.type_url) else { return };
        for name in &delta.removed {
            resources.remove(name);
        }
        for resource in delta.resources.iter().filter(|resource| is_kept(&resource.name)) {
            resources.insert(resource.name.clone(), (resource.version.clone(), resource.value.clone()));
        }
    }

    /// The file's path and content, to be [written](write) where blocking is allowed.
    pub(super) fn image(&self) -> Result<(PathBuf, Vec<u8>), StateError> {
        let types = self.types.iter().map(|(url, resources)| TypeBody {
            type_url: url.clone(),
            resources: resources
                .iter()
                .map(|(name, (version, value))| ResourceBody {
                    name: name.clone(),
                    version: version.clone(),
                    value: value.clone(),
                })
                .collect(),
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let body = Body {
            scope: self.scope.clone(),
            written_at: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            types: types.collect(),
        };
        let length = body.encoded_len();
        if HEADER_BYTES + length > MAX_STATE_BYTES {
            return Err(StateError::TooLarge { path: self.path.clone(), bytes: (HEADER_BYTES + length) as u64 });
        }
        let body = body.encode_to_vec();
        let mut image = Vec::with_capacity(HEADER_BYTES + length);
        image.extend_from_slice(MAGIC);
        image.extend_from_slice(&FORMAT.to_le_bytes());
        image.extend_from_slice(&(length as u64).to_le_bytes());
        image.extend_from_slice(digest(&SHA256, &body).as_ref());
        image.extend_from_slice(&body);
        Ok((self.path.clone(), image))
    }

    /// Reads the file; nothing if there is none. Blocks.
    pub(super) fn load(&mut self) -> Result<Option<Restored>, StateError> {
        let Some(image) = read(&self.path)? else { return Ok(None) };
        let body = self.parse(&image)?;
        let deltas = body.types.into_iter().map(|entry| DeltaResponse {
            type_url: entry.type_url,
            resources: entry
                .resources
                .into_iter()
                .map(|ResourceBody { name, version, value }| Resource { name, version, value })
                .collect(),
            removed: Vec::new(),
        });
        let deltas: Vec<_> = deltas.collect();
        deltas.iter().for_each(|delta| self.note(delta, |_| true));
        let written_at = UNIX_EPOCH + Duration::from_secs(u64::try_from(body.written_at).unwrap_or(0));
        Ok(Some(Restored { written_at, deltas }))
    }

    fn parse(&self, image: &[u8]) -> Result<Body, StateError> {
        let path = || self.path.clone();
        let damaged = |what: &str| StateError::Damaged { path: path(), what: what.to_owned() };
        let rest = image.strip_prefix(MAGIC.as_slice()).ok_or_else(|| StateError::Foreign { path: path() })?;
        let (format, rest) = rest.split_first_chunk().ok_or_else(|| damaged("it ends in its header"))?;
        let format = u32::from_le_bytes(*format);
        if format != FORMAT {
            return Err(StateError::Format { path: path(), found: format });
        }
        let (length, rest) = rest.split_first_chunk().ok_or_else(|| damaged("it ends in its header"))?;
        let (checksum, body) =
            rest.split_first_chunk::<SHA256_OUTPUT_LEN>().ok_or_else(|| damaged("it ends in its header"))?;
        if u64::from_le_bytes(*length) != body.len() as u64 {
            return Err(damaged("its length isn't what its header says"));
        }
        if digest(&SHA256, body).as_ref() != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        let body = Body::decode(body).map_err(|error| damaged(&error.to_string()))?;
        if body.scope != self.scope {
            let expected = self.scope.clone();
            return Err(StateError::OtherScope { path: path(), found: body.scope, expected });
        }
        // Types that aren't watched any more would never be updated.
        if !body.types.iter().map(|entry| &entry.type_url).eq(self.types.iter().map(|(url, _)| url)) {
            return Err(damaged("it doesn't hold the types that are watched"));
        }
        Ok(body)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let io = |error| StateError::Io { action: "read", path: path.to_owned(), error };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match fs::File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io)?,
    };
    let metadata = file.metadata().map_err(io)?;
    let exposed = |what, remedy| StateError::Exposed { path: path.to_owned(), what, remedy };
    if !metadata.is_file() {
        return Err(exposed("not a file", "name another one"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(exposed("another user's, who could have written any policy into it", "remove it"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(exposed("open to others, who could have written any policy into it", "remove it"));
    }
    if metadata.len() > MAX_STATE_BYTES as u64 {
        return Err(StateError::TooLarge { path: path.to_owned(), bytes: metadata.len() });
    }
    let mut image = Vec::new();
    file.take(MAX_STATE_BYTES as u64).read_to_end(&mut image).map_err(io)?;
    Ok(Some(image))
}

/// Puts the image in the file's place, whole or not at all. Blocks.
pub(super) fn write(path: &Path, image: &[u8]) -> Result<(), StateError> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |error| StateError::Io { action, path, error }
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What an interrupted write left.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("remove", &beside)(error)),
        _ => {}
    }
    let written = fs::File::options().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
        file.write_all(image)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&beside, path));
    if let Err(error) = renamed {
        // Only space would be lost by leaving it.
        let _ = fs::remove_file(&beside);
        return Err(io("write", path)(error));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))
}

pub(crate) mod fuzzing {
    use super::*;

    /// Any file, and any body in a file that is whole otherwise.
    pub(crate) fn kept_state(data: &[u8]) {
        let state = LastGood::new("fuzz".into(), String::new(), []);
        let _ = state.parse(data);
        let mut image = Vec::new();
        image.extend_from_slice(MAGIC);
        image.extend_from_slice(&FORMAT.to_le_bytes());
        image.extend_from_slice(&(data.len() as u64).to_le_bytes());
        image.extend_from_slice(digest(&SHA256, data).as_ref());
        image.extend_from_slice(data);
        if let Ok(body) = state.parse(&image) {
            assert!(body.types.is_empty(), "types that aren't watched were taken");
        }
    }
}

#[cfg(test)]
mod tests;
