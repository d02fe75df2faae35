//! testing.
#![forbid(unsafe_code)]
