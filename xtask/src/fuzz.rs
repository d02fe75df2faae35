//! Fuzzing, by `cargo fuzz`. The targets are in `fuzz/`, which is a workspace of its own.

use std::env;

/// What can be fuzzed: each with the binary of `fuzz/targets` that it is in and the length in bytes of the longest input.
/// Inputs are of any length up to that from the start: short ones say little.
const TARGETS: [Target; 22] = [
    Target { name: "yaml_policy", binary: "yaml_policy", max_bytes: 4096 },
    Target { name: "patterns", binary: "patterns", max_bytes: 512 },
    Target { name: "decide", binary: "decide", max_bytes: 2048 },
    Target { name: "hbone_headers", binary: WIRE, max_bytes: 1024 },
    Target { name: "hpack", binary: WIRE, max_bytes: 128 },
    Target { name: "http2_peer", binary: WIRE, max_bytes: 256 },
    Target { name: "http2_pieces", binary: WIRE, max_bytes: 512 },
    Target { name: "http2_ends", binary: WIRE, max_bytes: 256 },
    Target { name: "proxy_protocol", binary: WIRE, max_bytes: 256 },
    Target { name: "socks5", binary: WIRE, max_bytes: 300 },
    Target { name: "zds", binary: WIRE, max_bytes: 256 },
    Target { name: "dns_query", binary: WIRE, max_bytes: 512 },
    Target { name: "dns_reply", binary: WIRE, max_bytes: 512 },
    Target { name: "xds_responses", binary: WIRE, max_bytes: 1024 },
    Target { name: "xds_requests", binary: WIRE, max_bytes: 512 },
    Target { name: "xds_exchange", binary: WIRE, max_bytes: 256 },
    Target { name: "xds_resource", binary: WIRE, max_bytes: 512 },
    Target { name: "local_file", binary: WIRE, max_bytes: 1024 },
    Target { name: "kept_state", binary: WIRE, max_bytes: 256 },
    Target { name: "mesh_view", binary: WIRE, max_bytes: 256 },
    Target { name: "certificates", binary: WIRE, max_bytes: 2048 },
    Target { name: "logging", binary: WIRE, max_bytes: 128 },
];

/// The binary with all that comes to the node proxy over a wire. It reads from [`CHOICE`] which target is meant, and has its
/// seeds itself.
const WIRE: &str = "wire";
const CHOICE: &str = "AMBIT_FUZZ_TARGET";

#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    binary: &'static str,
    max_bytes: u32,
}

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
        } else if let Some(target) = TARGETS.iter().find(|target| target.name == argument) {
            targets.push(*target);
        } else {
            let names = TARGETS.map(|target| target.name).join(", ");
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
fn fuzz(target: Target, runs: u64) -> Result<(), String> {
    let Target { name, binary, max_bytes } = target;
    println!("== fuzz {name}: {runs} inputs");
    let root = crate::root();
    let (corpus, seeds) = (root.join("fuzz/corpus").join(name), root.join("fuzz/seeds").join(name));
    let artifacts = root.join("fuzz/artifacts").join(name);
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    }
    let mut command =
        crate::cargo_command(&["fuzz", "run", "--sanitizer", "none", "--target-dir", "fuzz/target", binary]);
    command.env(CHOICE, name).arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    command.args(["--", "-print_final_stats=1", "-len_control=0"]).args([
        format!("-runs={runs}"),
        format!("-max_len={max_bytes}"),
        format!("-timeout={TIMEOUT_S}"),
        format!("-artifact_prefix={}/", artifacts.display()),
    ]);
    let dictionary = root.join(format!("fuzz/{name}.dict"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let again = format!("{CHOICE}={name} cargo fuzz run --sanitizer none --target-dir fuzz/target {binary} FILE");
    crate::run(&mut command).map_err(|error| format!("{error}; `{again}` runs one of `fuzz/artifacts/{name}` again"))
}
