//! Bounds on what the loader reads. A user's folder is small; whatever is beyond these is a mistake or an attack.

/// Largest file read, in bytes.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

/// Most files read by one [`crate::load`].
pub const MAX_FILES: usize = 4096;

/// Most folder entries looked at by one [`crate::load`].
pub const MAX_FOLDER_ENTRIES: usize = 65_536;

/// Deepest folder below a given path.
pub const MAX_FOLDER_DEPTH: usize = 16;

/// Most documents in one file.
pub const MAX_DOCUMENTS: usize = 10_000;

/// Deepest nesting of mappings and sequences in a document.
pub const MAX_NESTING: usize = 64;

/// Most values (scalars, sequences, mappings) in one file, expanded aliases counted.
pub const MAX_NODES: usize = 500_000;

/// Most objects in one file, the items of a `List` counted one by one.
pub const MAX_OBJECTS_PER_FILE: usize = 10_000;

/// Largest JSON Web Key Set read, in bytes.
pub const MAX_KEY_SET_BYTES: usize = 256 * 1024;

/// Most keys in a JSON Web Key Set.
pub const MAX_KEY_SET_KEYS: usize = 128;

/// Most diagnostics of reading one file, and of one [`crate::validate`]. Past it, only a first error is added.
pub const MAX_DIAGNOSTICS: usize = 1000;

/// Most bytes of a request's body that an external authorizer is sent.
pub const MAX_CHECKED_BODY_BYTES: u32 = 1024 * 1024;

/// Longest quotation of a user's value in a message, in bytes.
pub const MAX_QUOTED_BYTES: usize = 128;

/// Most values in a document that isn't a manifest ([`crate::Document`]), expanded aliases counted.
pub const MAX_DOCUMENT_NODES: usize = 8_000_000;

/// Most threads that one [`crate::load`] reads on.
pub const MAX_THREADS: usize = 8;

/// Fewest bytes that more than one thread is used for: below, starting them takes longer than it saves.
pub const MIN_SHARED_BYTES: usize = 64 * 1024;

/// Size of the parts that a file of many documents is cut into for several threads, in bytes.
pub const PART_BYTES: usize = 16 * 1024;

/// Subsets of one DestinationRule.
pub const MAX_SUBSETS: usize = 64;
/// Ports with settings of their own in one place of a DestinationRule.
pub const MAX_PORT_SETTINGS: usize = 256;
/// Localities named in one place of a DestinationRule.
pub const MAX_LOCALITIES: usize = 64;
/// Longest duration that a DestinationRule may name.
pub const MAX_TRAFFIC_DURATION: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// Longest expression of a route's match.
pub const MAX_PATTERN_BYTES: usize = 1_024;
/// What one expression may take when it is compiled.
pub const MAX_COMPILED_PATTERN_BYTES: usize = 256 * 1_024;
/// Rules in one route, as in the Gateway API's schema.
pub const MAX_ROUTE_RULES: usize = 16;
/// Matches in one rule of a route.
pub const MAX_ROUTE_MATCHES: usize = 64;
/// Filters in one place of a route.
pub const MAX_ROUTE_FILTERS: usize = 16;
/// Backends of one rule of a route.
pub const MAX_ROUTE_BACKENDS: usize = 16;
/// Rate limits, and faults, of one TrafficPolicy.
pub const MAX_TRAFFIC_RULES: usize = 64;
/// Entries of any other list in a route.
pub const MAX_ROUTE_LIST: usize = 64;
