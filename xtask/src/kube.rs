//! A real Kubernetes API server to try things on. The package `ambit-tests-kube` does it; this only builds and runs it.

const USAGE: &str = "usage: cargo xtask kube up|down";

/// Starts the server and says where it is, or ends it.
///
/// # Errors
/// When the server can't be built, started or ended.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let [command @ ("up" | "down")] = arguments else { return Err(USAGE.to_owned()) };
    crate::cargo(&["run", "--locked", "--quiet", "--package", "ambit-tests-kube", "--", command])
}
