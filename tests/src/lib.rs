//! Whole-mesh tests.
#![forbid(unsafe_code)]
