//! `instructions [--record]`: machine instructions of the measured operations, counted by callgrind, against those
//! recorded in `bench/instructions.json` (`cargo xtask bench instructions`).
//!
//! Counts don't depend on what else the machine does, so a regression shows in CI where times would drown in noise.
//! They do depend on the compiler; the record says which one it was.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use ambit_bench::{Case, Scenario};
use serde::{Deserialize, Serialize};

/// A count may grow by this much before the check fails.
const TOLERANCE: f64 = 0.10;

/// Decisions counted for one figure; the figure is their mean.
const DECISIONS: u32 = 200;

/// Numbers of rules that have bars. Sizes in between would show nothing that these two don't.
const SIZES: [u32; 2] = [10, 10_000];

/// Policies, all on the target, of the one explanation that is counted: what `ambit policy explain` does once it has read
/// its files.
const EXPLAINED: u32 = 1_000;

/// The argument with which this program runs itself under callgrind.
const WORK: &str = "--work";

/// The contents of `bench/instructions.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// `rustc --version` of the recording.
    rustc: String,
    /// Instructions per operation, by figure.
    figures: BTreeMap<String, u64>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [] => check(),
        ["--record"] => record(),
        [WORK] => {
            work();
            Ok(())
        }
        _ => Err("usage: instructions [--record]".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The names of what [`work`] counts, in its order, each with the number of operations.
fn figures() -> Vec<(String, u32)> {
    let mut figures = Vec::new();
    for rules in SIZES {
        figures.push((format!("compile/{rules}"), 1));
        for case in Case::ALL {
            for operation in ["decide", "whole"] {
                figures.push((format!("{operation}/{rules}/{}", case.name()), DECISIONS));
            }
        }
    }
    figures.push((format!("explain/{EXPLAINED}"), 1));
    figures
}

fn check() -> Result<(), String> {
    let Some(counted) = count()? else { return Ok(()) };
    let file = record_file();
    let text = fs::read_to_string(&file)
        .map_err(|error| format!("`{}`: {error}; run with --record to make it", file.display()))?;
    let recorded: Record = serde_json::from_str(&text).map_err(|error| format!("`{}`: {error}", file.display()))?;
    let mut grown = Vec::new();
    println!("{:<22} {:>12} {:>12} {:>8}", "figure", "recorded", "now", "change");
    for (figure, &now) in &counted.figures {
        let Some(&before) = recorded.figures.get(figure) else {
            grown.push(format!("`{figure}` isn't in the record"));
            continue;
        };
        let change = ratio(now, before) - 1.0;
        println!("{figure:<22} {before:>12} {now:>12} {:>+7.1}%", change * 100.0);
        if change > TOLERANCE {
            grown.push(format!("`{figure}` grew by {:.1} %, from {before} to {now} instructions", change * 100.0));
        }
    }
    if let Some(gone) = recorded.figures.keys().find(|figure| !counted.figures.contains_key(*figure)) {
        grown.push(format!("`{gone}` is in the record and isn't counted any more"));
    }
    if grown.is_empty() {
        return Ok(());
    }
    if counted.rustc != recorded.rustc {
        grown.push(format!("the record was made with {}, this is {}", recorded.rustc, counted.rustc));
    }
    grown.push("if this is meant, run `cargo xtask bench instructions --record` and say why in the commit".to_owned());
    Err(grown.join("\n"))
}

fn record() -> Result<(), String> {
    let counted = count()?.ok_or("nothing was counted, so nothing is recorded")?;
    let text = serde_json::to_string_pretty(&counted).map_err(|error| error.to_string())?;
    let file = record_file();
    fs::write(&file, text + "\n").map_err(|error| format!("`{}`: {error}", file.display()))?;
    for (figure, count) in &counted.figures {
        println!("{figure:<22} {count:>12}");
    }
    Ok(())
}

/// Runs this program under callgrind. Nothing if there is no valgrind, which only a machine outside CI may lack.
fn count() -> Result<Option<Record>, String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        let message = "SKIPPED: instruction counts need valgrind, which isn't installed";
        if env::var_os("CI").is_some() {
            return Err(format!("{message}; in CI that is a failure"));
        }
        eprintln!("{message}");
        return Ok(None);
    }
    let folder = env::temp_dir().join(format!("ambit-instructions-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    let counted = count_in(&folder);
    // Leaving a temporary folder behind isn't worth failing for.
    let _ = fs::remove_dir_all(&folder);
    counted.map(Some)
}

fn count_in(folder: &Path) -> Result<Record, String> {
    let program = env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let out = folder.join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*::counted", "--dump-after=*::counted"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(WORK)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        return Err(format!("valgrind: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let mut counts = BTreeMap::new();
    for (dump, (figure, operations)) in (1..).zip(figures()) {
        // One dump a call of `counted`, in their order.
        let file = folder.join(format!("callgrind.out.{dump}"));
        let text = fs::read_to_string(&file).map_err(|error| format!("`{}`: {error}", file.display()))?;
        let total: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
            .filter(|&total| total > 0)
            .ok_or_else(|| format!("callgrind counted nothing for `{figure}`"))?;
        counts.insert(figure, total / u64::from(operations));
    }
    Ok(Record { rustc: rustc_version()?, figures: counts })
}

fn rustc_version() -> Result<String, String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().map_err(|error| format!("rustc: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn record_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json")
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn ratio(now: u64, before: u64) -> f64 {
    now as f64 / before.max(1) as f64
}

/// Does what is counted, figure by figure.
fn work() {
    for rules in SIZES {
        let scenario = Scenario::new(rules);
        let mut compiled = None;
        counted(&mut || compiled = Some(black_box(black_box(&scenario).compile())), 1);
        let Some(compiled) = compiled else { continue };
        for case in Case::ALL {
            let (connection, request) = (scenario.connection(case), scenario.request(case));
            let residual = compiled.for_connection(&connection);
            let mut decide = || drop(black_box(black_box(&residual).decide(black_box(&request))));
            let mut whole = || {
                let residual = black_box(&compiled).for_connection(black_box(&connection));
                drop(black_box(residual.decide(black_box(&request))));
            };
            // What is done once, such as resolving a symbol, belongs to no operation.
            decide();
            whole();
            counted(&mut decide, DECISIONS);
            counted(&mut whole, DECISIONS);
        }
    }
    let scenario = Scenario::new(EXPLAINED);
    let (connection, request) = (scenario.connection(Case::Hit), scenario.request(Case::Hit));
    let mut explain = || {
        let compiled = black_box(&scenario).compile();
        drop(black_box(compiled.explain(black_box(&connection), Some(black_box(&request)))));
    };
    counted(&mut explain, 1);
}

/// What callgrind counts in: it is told this function's name.
#[inline(never)]
fn counted(operation: &mut dyn FnMut(), count: u32) {
    for _ in 0..count {
        operation();
    }
}
