//! Figures of the policy engine, of the node proxy and of the waypoint. The packages `ambit-bench`, `ambit-bench-ztunnel` and
//! `ambit-bench-waypoint` measure; this only builds and runs them.

use std::{path::PathBuf, process::Command};

/// The profile of what is shipped; it builds for many minutes.
const SHIPPED: &str = "dist";

/// Prints what decisions cost and writes `target/bench/policy.json`.
///
/// # Errors
/// When building or running fails. A figure past its bar is printed as such and is no error: times are noisy.
pub fn policy() -> Result<(), String> {
    let file = crate::root().join("target/bench/policy.json");
    run(&["--bin", "ambit-bench", "--", &file.display().to_string()])
}

/// Compares instruction counts with the recorded ones, or records them.
///
/// # Errors
/// When a count grew by more than 10 %, or when counting fails.
pub fn instructions(record: bool) -> Result<(), String> {
    let arguments = ["--bin", "instructions", "--", "--record"];
    run(if record { &arguments } else { &arguments[..3] })
}

/// Measures the node proxy between two pods, in turn with a real ztunnel where `--against` names one.
///
/// # Errors
/// When building or running fails. A figure past its bar is printed as such and is no error: times are noisy.
pub fn ztunnel(arguments: &[&str]) -> Result<(), String> {
    crate::cargo(&["build", "--profile", SHIPPED, "--locked", "--package", "ambit"])?;
    crate::cargo(&["build", "--release", "--locked", "--package", "ambit-bench-ztunnel"])?;
    let ambit = built(SHIPPED, "ambit")?;
    let out = crate::root().join("target/bench");
    crate::run(
        Command::new(built("release", "ambit-bench-ztunnel")?)
            .arg(out)
            .args(["rounds", "--ambit"])
            .arg(ambit)
            .args(arguments),
    )
}

/// Measures the waypoint, in turn with a real Envoy where `--against envoy` asks for it. Where none can be had, it says so
/// loudly and fails.
///
/// # Errors
/// When building or running fails, or there is no Envoy. A figure past its bar is printed as such and is no error: times are
/// noisy.
pub fn waypoint(arguments: &[&str]) -> Result<(), String> {
    let place = arguments.iter().position(|argument| *argument == "--against");
    let (mut arguments, envoy) = (arguments.to_vec(), place.map(|place| arguments.get(place + 1).copied()));
    let envoy = match (place, envoy) {
        (Some(place), Some(Some("envoy"))) => {
            arguments.drain(place..place + 2);
            let envoy = crate::conformance::prepare();
            Some(envoy.map_err(|lack| format!("comparing with Envoy needs {lack}"))?)
        }
        (None, _) => None,
        _ => return Err("`--against` takes `envoy`".to_owned()),
    };
    // The waypoint runs within the program that measures it.
    crate::cargo(&["build", "--profile", SHIPPED, "--locked", "--package", "ambit-bench-waypoint"])?;
    let out = crate::root().join("target/bench");
    let mut command = Command::new(built(SHIPPED, "ambit-bench-waypoint")?);
    command.arg(out).arg("rounds").args(arguments);
    if let Some(envoy) = envoy {
        command.arg("--against").arg(envoy);
    }
    crate::run(&mut command)
}

/// Measures what a mesh costs the control plane, and writes `target/bench/control-plane.json`.
///
/// # Errors
/// When building or running fails. A figure past its bar is printed as such and is no error: times are noisy.
pub fn control_plane(arguments: &[&str]) -> Result<(), String> {
    crate::cargo(&["build", "--release", "--locked", "--package", "ambit-bench-control-plane"])?;
    let out = crate::root().join("target/bench");
    crate::run(Command::new(built("release", "ambit-bench-control-plane")?).arg(out).args(arguments))
}

/// Prints what bytes, exchanges and handshakes cost on this processor at least.
///
/// # Errors
/// When building or running fails.
pub fn costs() -> Result<(), String> {
    crate::cargo(&["build", "--release", "--locked", "--package", "ambit-bench-ztunnel"])?;
    let out = crate::root().join("target/bench");
    crate::run(Command::new(built("release", "ambit-bench-ztunnel")?).arg(out).arg("costs"))
}

/// Where cargo puts this workspace's programs: beside this one.
pub fn built(profile: &str, program: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let target = own.parent().and_then(|folder| folder.parent()).ok_or("this program isn't in a target folder")?;
    Ok(target.join(profile).join(program))
}

fn run(arguments: &[&str]) -> Result<(), String> {
    let build = ["run", "--release", "--locked", "--quiet", "--package", "ambit-bench"];
    crate::cargo(&[&build, arguments].concat())
}
