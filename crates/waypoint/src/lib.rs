//! waypoint.
#![forbid(unsafe_code)]
