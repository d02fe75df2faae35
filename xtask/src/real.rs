//! The MLflow example with the real server and the real exporter.

/// Runs `examples/mlflow/real.sh`.
///
/// # Errors
/// When a step of it fails.
pub fn run() -> Result<(), String> {
    crate::cargo(&["build", "--release", "--locked", "--package", "ambit"])?;
    crate::run(std::process::Command::new("bash").arg("examples/mlflow/real.sh"))
}
