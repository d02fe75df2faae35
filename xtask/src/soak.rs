//! The node proxy for a quarter of an hour, while everything around it changes. The package `ambit-bench-ztunnel` does it;
//! this only builds and runs it.

use std::process::Command;

use crate::bench::built;

const USAGE: &str = "usage: cargo xtask soak ztunnel [--minutes N]";
/// How long it lasts where nothing is asked for.
const MINUTES: u64 = 15;

/// Lets pods talk while workloads, policies and certificates change every second; writes `target/soak/ztunnel.json`.
///
/// # Errors
/// When building or running fails, a verdict is wrong, something is left open, or memory grows.
pub fn ztunnel(arguments: &[&str]) -> Result<(), String> {
    let minutes = match arguments {
        [] => MINUTES,
        ["--minutes", minutes] => minutes.parse().ok().filter(|minutes| *minutes > 0).ok_or(USAGE)?,
        _ => return Err(USAGE.to_owned()),
    };
    crate::cargo(&["build", "--release", "--locked", "--package", "ambit", "--package", "ambit-bench-ztunnel"])?;
    crate::run(
        Command::new(built("release", "ambit-bench-ztunnel")?)
            .arg(crate::root().join("target/soak"))
            .args(["soak", "--ambit"])
            .arg(built("release", "ambit")?)
            .args(["--seconds", &(60 * minutes).to_string()]),
    )
}
