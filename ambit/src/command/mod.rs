//! One module per command: its arguments and how its outcome is shown.

pub mod client;
pub mod demo;
pub mod echo;
pub mod forward;
pub mod run;
pub mod up;

use std::fmt;

/// Why a command failed, in words for the person who typed it.
#[derive(Debug)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
