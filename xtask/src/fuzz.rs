//! Fuzzing, by `cargo fuzz` on a nightly toolchain. The targets are in `fuzz/`, which is a workspace of its own.

use std::{env, process::Command};

/// What can be fuzzed: the names of the files in `fuzz/targets`, each with the length in bytes of the longest input. Inputs
/// are of any length up to that from the start: short ones say little.
const TARGETS: [Target; 3] = [("yaml_policy", 4096), ("patterns", 512), ("decide", 2048)];

type Target = (&'static str, u32);

/// Inputs for each target where the command line doesn't say.
const RUNS: u64 = 20_000;

/// Longest that one input may take, in seconds.
const TIMEOUT_S: u32 = 10;

/// Runs the targets: `[TARGET...] [--runs N]`. Where there is no nightly toolchain or `cargo fuzz` can't be installed, it
/// says so loudly and runs nothing; in CI that is a failure.
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

/// Finds a nightly toolchain and `cargo fuzz`, which is installed when missing. What can't be had is the error.
fn prepare() -> Result<(), String> {
    if !succeeds(nightly(&["rustc", "--version"])) {
        return Err("a nightly toolchain (`rustup toolchain install nightly --profile minimal`)".to_owned());
    }
    if succeeds(nightly(&["cargo", "fuzz", "--version"])) {
        return Ok(());
    }
    eprintln!("installing cargo-fuzz");
    let installed = crate::run(&mut nightly(&["cargo", "install", "--locked", "cargo-fuzz"]));
    installed.map_err(|error| format!("`cargo fuzz`, and it can't be installed: {error}"))
}

fn succeeds(mut command: Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A command of the nightly toolchain, free of what the toolchain that runs this has set.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).args(arguments).current_dir(crate::root());
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR"] {
        command.env_remove(variable);
    }
    command
}

/// Sanitizers are left out: the crates under test forbid `unsafe`, so panics, overflows and disagreement are what there is
/// to find, and without them ten times as many inputs are tried.
fn fuzz((target, max_bytes): Target, runs: u64) -> Result<(), String> {
    println!("== fuzz {target}: {runs} inputs");
    let root = crate::root();
    let (corpus, seeds) = (root.join("fuzz/corpus").join(target), root.join("fuzz/seeds").join(target));
    std::fs::create_dir_all(&corpus).map_err(|error| format!("`{}`: {error}", corpus.display()))?;
    let mut command = nightly(&["cargo", "fuzz", "run", "--sanitizer", "none", "--target-dir", "fuzz/target", target]);
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
