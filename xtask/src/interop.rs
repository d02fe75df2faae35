//! The node proxy beside a real ztunnel. The package `ambit-bench-ztunnel` does it; this only builds and runs it.

use std::{path::Path, process::Command};

use crate::bench::built;

const USAGE: &str = "usage: cargo xtask interop ztunnel --binary PATH

PATH is a release build of Istio's ztunnel, from its public sources:
  cargo build --release --no-default-features --features tls-aws-lc,jemalloc";

/// Lets Ambit's node proxy talk to a real ztunnel and back. Without a binary it is skipped, loudly; with `CI` set that is
/// an error.
///
/// # Errors
/// When building fails, the binary isn't one, or anything differs from what is expected.
pub fn ztunnel(arguments: &[&str]) -> Result<(), String> {
    let binary = match arguments {
        [] if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: no ztunnel was given, so nothing was tried with a real one\n\n{USAGE}");
            return Ok(());
        }
        ["--binary", binary] => Path::new(binary),
        _ => return Err(USAGE.to_owned()),
    };
    let binary = binary.canonicalize().map_err(|error| format!("`{}`: {error}", binary.display()))?;
    crate::cargo(&["build", "--locked", "--package", "ambit", "--package", "ambit-bench-ztunnel"])?;
    let out = crate::root().join("target/interop");
    crate::run(
        Command::new(built("debug", "ambit-bench-ztunnel")?)
            .arg(out)
            .args(["interop", "--ambit"])
            .arg(built("debug", "ambit")?)
            .arg("--against")
            .arg(binary),
    )
}
