//! Fuzzing, by `cargo fuzz`. The targets are in `fuzz/`, which is a workspace of its own.

use std::env;

/// What can be fuzzed: the names of the files in `fuzz/targets`, each with the length in bytes of the longest input. Inputs
/// are of any length up to that from the start: short ones say little.
const TARGETS: [Target; 3] = [("yaml_policy", 4096), ("patterns", 512), ("decide", 2048)];

type Target = (&'static str, u32);

/// Inputs for each target where the command line doesn't say.
const RUNS: u64 = 20_000;

/// Longest that one input may take, in seconds.
const TIMEOUT_S: u32 = 10;

/// Runs the targets: `[TARGET...] [--runs N]`. Where `cargo fuzz` can't be installed, it says so loudly and runs nothing; in
/// CI that is a failure.
///
/// # Errors
/// When a target finds something, or can't be built.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let (targets, runs) = parse(arguments)?;
    if let Err(lack) = prepare() {
        let message = format!("SKIPPED: fuzzing needs {lack}");
        if env::var_os("CI").is_some() {
            return Err(format!("{message}; in CI that is a failure"));
        }
        eprintln!("{message}");
        return Ok(());
    }
    targets.into_iter().try_for_each(|target| fuzz(target, runs))
}

fn parse(arguments: &[&str]) -> Result<(Vec<Target>, u64), String> {
    let (mut targets, mut runs) = (Vec::new(), RUNS);
    let mut arguments = arguments.iter();
    while let Some(&argument) = arguments.next() {
        if argument == "--runs" {
            let number = arguments.next().and_then(|number| number.replace([',', '_'], "").parse().ok());
            runs = number.ok_or("`--runs` needs a number")?;
        } else if let Some(target) = TARGETS.iter().find(|(name, _)| *name == argument) {
            targets.push(*target);
        } else {
            let names = TARGETS.map(|(name, _)| name).join(", ");
            return Err(format!("there is no fuzz target `{argument}`; the targets are {names}"));
        }
    }
    Ok((if targets.is_empty() { TARGETS.to_vec() } else { targets }, runs))
}

/// Installs `cargo fuzz` where it is missing. What can't be had is the error.
fn prepare() -> Result<(), String> {
    if crate::cargo_command(&["fuzz", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    eprintln!("installing cargo-fuzz");
    let installed = crate::cargo(&["install", "--locked", "cargo-fuzz"]);
    installed.map_err(|error| format!("`cargo fuzz`, and it can't be installed: {error}"))
}

/// Sanitizers are left out: the crates under test forbid `unsafe`, so panics, overflows and disagreement are what there is
/// to find, without them ten times as many inputs are tried, and a stable toolchain is enough.
fn fuzz((target, max_bytes): Target, runs: u64) -> Result<(), String> {
    println!("== fuzz {target}: {runs} inputs");
    let root = crate::root();
    let (corpus, seeds) = (root.join("fuzz/corpus").join(target), root.join("fuzz/seeds").join(target));
    std::fs::create_dir_all(&corpus).map_err(|error| format!("`{}`: {error}", corpus.display()))?;
    let mut command =
        crate::cargo_command(&["fuzz", "run", "--sanitizer", "none", "--target-dir", "fuzz/target", target]);
    command.arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    command.args(["--", "-print_final_stats=1", "-len_control=0"]).args([
        format!("-runs={runs}"),
        format!("-max_len={max_bytes}"),
        format!("-timeout={TIMEOUT_S}"),
    ]);
    let dictionary = root.join(format!("fuzz/{target}.dict"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    crate::run(&mut command)
}
