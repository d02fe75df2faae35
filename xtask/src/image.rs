//! A container image without a registry, a daemon or root. The package `ambit-image` writes it; this builds the static program
//! and runs that.

use std::{env, path::PathBuf};

const USAGE: &str = "usage: cargo xtask image [--profile PROFILE] [--binary PATH]";
/// The profile of what is shipped; it builds for many minutes.
const SHIPPED: &str = "dist";
/// Everything is in the program, the C library too: the image has nothing else.
const STATIC: &str = "-C target-feature=+crt-static";

/// Builds the program unless `--binary` names one, and writes the image into `target/image`.
///
/// # Errors
/// When building or writing fails, or the program isn't static.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let (mut profile, mut binary) = (SHIPPED, None);
    let mut rest = arguments;
    loop {
        match rest {
            [] => break,
            ["--profile", name, others @ ..] => (profile, rest) = (name, others),
            ["--binary", path, others @ ..] => (binary, rest) = (Some(PathBuf::from(path)), others),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let program = match binary {
        Some(program) => program,
        None => build(profile)?,
    };
    let folder = crate::root().join("target/image");
    if folder.join("oci-layout").exists() {
        std::fs::remove_dir_all(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    }
    let mut command = crate::cargo_command(&["run", "--locked", "--quiet", "--package", "ambit-image", "--"]);
    command.arg(program).arg(folder);
    crate::run(&mut command)
}

fn build(profile: &str) -> Result<PathBuf, String> {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    // With a target of its own, programs that only the build runs stay as they are.
    let mut command = crate::cargo_command(&["build", "--locked", "--package", "ambit", "--target", &target]);
    command.args(["--profile", profile]).env("RUSTFLAGS", STATIC);
    crate::run(&mut command)?;
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    let profile = if profile == "dev" { "debug" } else { profile };
    Ok(folder.join(target).join(profile).join("ambit"))
}
