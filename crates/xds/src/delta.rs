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
