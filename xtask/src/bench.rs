//! Figures of the policy engine. The package `ambit-bench` measures; this only builds and runs it.

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

fn run(arguments: &[&str]) -> Result<(), String> {
    let build = ["run", "--release", "--locked", "--quiet", "--package", "ambit-bench"];
    crate::cargo(&[&build, arguments].concat())
}
