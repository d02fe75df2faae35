//! The diagnostic codes of this crate (AMB2xxx).

use ambit_api::codes::Code;

/// A `clusterIP` that can't be had.
pub const BAD_CLUSTER_IP: Code = "AMB2001";
/// Something of a pod that isn't done here and would be on Kubernetes.
pub const UNSUPPORTED_POD_FEATURE: Code = "AMB2002";
/// More than this machine is made to run.
pub const TOO_MANY: Code = "AMB2003";
/// A probe that can't be run.
pub const BAD_PROBE: Code = "AMB2004";
/// A kind of Service that isn't served here.
pub const UNSUPPORTED_SERVICE: Code = "AMB2005";
/// Files can't be watched.
pub const NOT_WATCHED: Code = "AMB2006";
