//! The delta-xDS exchange, reduced to what both transports share.

/// One named, versioned resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Unique within its type.
    pub name: String,
    /// Changes whenever `value` does.
    pub version: String,
    /// The encoded message of the response's type.
    pub value: Vec<u8>,
}

/// A change to the set of resources of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaResponse {
    /// Type URL of every resource in it.
    pub type_url: String,
    /// Added or changed.
    pub resources: Vec<Resource>,
    /// Names that are gone.
    pub removed: Vec<String>,
}

/// Bytes of a content's SHA-256 that make its version.
const VERSION_BYTES: usize = 8;

impl Resource {
    /// A resource whose version is a digest of its content: it says the same on every replica, and after a restart.
    #[must_use]
    pub fn digested(name: String, value: Vec<u8>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &value);
        let version = digest.as_ref().iter().take(VERSION_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Self { name, version, value }
    }
}
