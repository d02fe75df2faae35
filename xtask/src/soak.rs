//! The node proxy for a quarter of an hour, and the waypoint for ten minutes, while everything around them changes. The
//! packages `ambit-bench-ztunnel` and `ambit-bench-waypoint` do it; this only builds and runs them.

use std::process::Command;

use crate::bench::built;

const USAGE: &str = "usage: cargo xtask soak ztunnel [--minutes N]
       cargo xtask soak waypoint [--seconds N]";
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

/// Loads the waypoint while its policies, routes and endpoints change five times a second, 600 seconds unless told
/// otherwise; writes `target/soak/waypoint.json`.
///
/// # Errors
/// When building or running fails, a request fails, something is left open, or memory grows.
pub fn waypoint(arguments: &[&str]) -> Result<(), String> {
    if !matches!(arguments, [] | ["--seconds", _]) {
        return Err(USAGE.to_owned());
    }
    crate::cargo(&["build", "--release", "--locked", "--package", "ambit-bench-waypoint"])?;
    let program = built("release", "ambit-bench-waypoint")?;
    crate::run(Command::new(program).arg(crate::root().join("target/soak")).arg("soak").args(arguments))
}
