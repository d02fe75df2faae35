//! Python with packages, for the servers and clients of others that tests run.

use std::{env, path::PathBuf, process::Command};

use crate::{Place, place::workspace};

/// Packages of the example `mlflow-oauth2`.
const OAUTH2_PACKAGES: [&str; 3] = ["authlib", "flask", "requests"];

/// The Python of an environment under `target/` with what the OAuth2 server and its clients need, made on first use. Where
/// it can't be had, it says so loudly, except in CI, where that fails.
pub fn oauth2_python() -> Option<PathBuf> {
    match prepare() {
        Ok(python) => Some(python),
        Err(lack) => {
            assert!(env::var_os("CI").is_none(), "the OAuth2 server can't be had: {lack}");
            eprintln!("SKIPPED: the OAuth2 server can't be had: {lack}");
            None
        }
    }
}

/// The environment with MLflow and OpenTelemetry's exporter that `cargo xtask real` makes, or that MLFLOW_ENVIRONMENT names.
/// Where there is none it says so: it is too large to be installed by a test.
pub fn mlflow_environment() -> Option<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let environment =
        env::var_os("MLFLOW_ENVIRONMENT").map_or_else(|| target.join("mlflow-environment"), PathBuf::from);
    if environment.join("bin/mlflow").exists() {
        return Some(environment);
    }
    eprintln!("SKIPPED: there is no MLflow; `cargo xtask real` installs it");
    None
}

/// True if the user of this place may run it; otherwise it says so. Root's own Python is often closed to others.
pub fn may_run(place: &Place, python: &std::path::Path) -> bool {
    let runs = place.command(python).args(["-c", &imports()]).output().is_ok_and(|output| output.status.success());
    if !runs {
        eprintln!("SKIPPED as {}: `{}` isn't theirs to run", place.user(), python.display());
    }
    runs
}

fn imports() -> String {
    format!("import {}", OAUTH2_PACKAGES.join(", "))
}

fn prepare() -> Result<PathBuf, String> {
    let environment = workspace().join("target/oauth2-environment");
    let python = environment.join("bin/python");
    let ready = || Command::new(&python).args(["-c", &imports()]).output().is_ok_and(|output| output.status.success());
    if !ready() {
        eprintln!("installing {OAUTH2_PACKAGES:?} for Python in `{}`", environment.display());
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
        run(Command::new(environment.join("bin/pip")).args(["install", "--quiet"]).args(OAUTH2_PACKAGES))?;
    }
    if ready() { Ok(python) } else { Err("what was installed doesn't run".to_owned()) }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let failed = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(failed()) }
}
