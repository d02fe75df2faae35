//! Programs of others that tests run.

use std::{
    collections::HashMap,
    env,
    path::PathBuf,
    process::Output,
    sync::{Mutex, PoisonError},
};

/// Says that a test does without what it needs. On CI that fails, unless the machine says that it hasn't got it by naming
/// it in `AMBIT_TESTS_WITHOUT`.
pub fn missing(tool: &str, why: &str) {
    let without = env::var("AMBIT_TESTS_WITHOUT").unwrap_or_default();
    let expected = without.split_whitespace().any(|named| named == tool);
    assert!(env::var_os("CI").is_none() || expected, "`{tool}` can't be had: {why}");
    eprintln!("SKIPPED: `{tool}` can't be had: {why}");
}

/// The first of these programs that this machine has.
pub fn program(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let places = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = places.into_iter().find(|place| place.is_file());
    if found.is_none() {
        missing(names[0], "it isn't installed");
    }
    found
}

/// The Go program of this folder of `tests`, built on first use. Nothing where the machine has no Go, or can't get its
/// modules; that fails on CI.
pub async fn go(folder: &'static str) -> Option<PathBuf> {
    static PROGRAMS: Mutex<Option<HashMap<&'static str, Option<PathBuf>>>> = Mutex::new(None);
    let built = tokio::task::spawn_blocking(move || {
        let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        programs.get_or_insert_default().entry(folder).or_insert_with(|| build(folder)).clone()
    });
    built.await.expect("it builds or not")
}

fn build(folder: &str) -> Option<PathBuf> {
    let go = |arguments: &[&str]| -> std::io::Result<Output> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
        std::process::Command::new("go").args(arguments).current_dir(folder).output()
    };
    let lack = match go(&["mod", "download"]) {
        Err(error) => Some(format!("there is no `go`: {error}")),
        Ok(output) if !output.status.success() => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Ok(_) => None,
    };
    if let Some(lack) = lack {
        missing(folder, &lack);
        return None;
    }
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let output = go(&["build", "-o", program.to_str().expect("a path in UTF-8"), "."]).expect("go runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}
