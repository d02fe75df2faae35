//! Programs of others, in Go, that pods run.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

use crate::{Place, place::workspace};

/// Where their sources lie.
const SOURCES: &str = "crates/waypoint/tests";

/// Builds the Go program of this folder and copies it into the place. Where it can't be had, it says so loudly, except in CI,
/// where that fails.
pub fn program(place: &Place, folder: &str) -> Option<PathBuf> {
    // Tests of one process build one after the other.
    static BUILDS: Mutex<()> = Mutex::new(());
    let built = {
        let _one = BUILDS.lock().unwrap_or_else(PoisonError::into_inner);
        build(folder)
    };
    match built {
        Ok(program) => Some(place.install(&program)),
        Err(lack) => {
            assert!(env::var_os("CI").is_none(), "`{folder}` can't be had: {lack}");
            eprintln!("SKIPPED: `{folder}` can't be had: {lack}");
            None
        }
    }
}

fn build(folder: &str) -> Result<PathBuf, String> {
    let sources = workspace().join(SOURCES).join(folder);
    let go = |arguments: &[&str]| -> Result<Output, String> {
        let output = Command::new("go").args(arguments).current_dir(&sources).output();
        output.map_err(|error| format!("there is no `go`: {error}"))
    };
    let lacks = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let modules = go(&["mod", "download"])?;
    if !modules.status.success() {
        return Err(lacks(&modules));
    }
    let test = env::current_exe().map_err(|error| error.to_string())?;
    // Beside what Cargo builds for tests.
    let program = test.ancestors().nth(2).ok_or("a test has no such path")?.join("foreign").join(folder);
    let path = program.to_str().ok_or("its path isn't UTF-8")?;
    let built = go(&["build", "-o", path, "."])?;
    assert!(built.status.success(), "`{folder}` doesn't build: {}", lacks(&built));
    Ok(program)
}
