//! `ambit-bench FILE`: what a decision costs, as a table and as JSON in that file (`cargo xtask bench policy`).
#![forbid(unsafe_code)]

mod bars;
mod measure;

use std::{env, fs, hint::black_box, path::Path, process::ExitCode};

use ambit_bench::{Case, RULES, Scenario};
use serde::Serialize;

/// Policies of the one explanation that is timed, all on the target.
const EXPLAINED: u32 = 1_000;

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
}

/// One size and case.
#[derive(Debug, Serialize)]
struct Row {
    rules: u32,
    case: Case,
    /// A request on a connection whose facts are folded in. Median, nanoseconds.
    decide_ns: f64,
    /// From the facts of connection and request as they come. Median, nanoseconds.
    whole_ns: f64,
    /// Of all policies. Median, milliseconds.
    compile_ms: f64,
    /// Heap that the compiled policies hold.
    compiled_bytes: u64,
    /// Heap in use at most while compiling. Printed only.
    #[serde(skip)]
    peak_bytes: u64,
    /// Heap allocations of one decision. Printed only.
    #[serde(skip)]
    decide_allocations: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [file] = arguments.as_slice() else {
        eprintln!("usage: ambit-bench FILE");
        return ExitCode::FAILURE;
    };
    let report = Report { rows: RULES.into_iter().flat_map(rows).collect() };
    print!("{}", table(&report.rows));
    println!("\nexplain, {EXPLAINED} policies read before: {:.2} of at most 10 ms", explain_ms());
    // A busy machine makes times longer, and a reader should know.
    if let Ok(load) = fs::read_to_string("/proc/loadavg") {
        println!("\nload of the machine (1, 5, 15 minutes): {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    }
    println!();
    for bar in bars::of(&report.rows) {
        println!("{bar}");
    }
    match write(Path::new(file), &report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("`{file}`: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What `ambit policy explain` does once it has read its files: compile all, decide, take the decision apart.
fn explain_ms() -> f64 {
    let scenario = Scenario::new(EXPLAINED);
    let (connection, request) = (scenario.connection(Case::Hit), scenario.request(Case::Hit));
    measure::median_ns(|| drop(black_box(black_box(&scenario).compile().explain(&connection, Some(&request))))) / 1e6
}

fn rows(rules: u32) -> [Row; 2] {
    let scenario = Scenario::new(rules);
    let compile_ms = measure::median_ns(|| drop(black_box(black_box(&scenario).compile()))) / 1e6;
    let mut compiled = None;
    let compiling = allocation_counter::measure(|| compiled = Some(scenario.compile()));
    let compiled = compiled.unwrap_or_else(|| scenario.compile());
    Case::ALL.map(|case| {
        let (connection, request) = (scenario.connection(case), scenario.request(case));
        let residual = compiled.for_connection(&connection);
        let decide = || drop(black_box(black_box(&residual).decide(black_box(&request))));
        let whole = || {
            let residual = black_box(&compiled).for_connection(black_box(&connection));
            drop(black_box(residual.decide(black_box(&request))));
        };
        Row {
            rules,
            case,
            decide_ns: rounded(measure::median_ns(decide)),
            whole_ns: rounded(measure::median_ns(whole)),
            compile_ms: (compile_ms * 1e4).round() / 1e4,
            compiled_bytes: u64::try_from(compiling.bytes_current).unwrap_or_default(),
            peak_bytes: compiling.bytes_max,
            decide_allocations: allocation_counter::measure(decide).count_total,
        }
    })
}

fn rounded(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "{:>7} {:>5} {:>11} {:>13} {:>10} {:>12} {:>15} {:>12}\n",
        "rules", "case", "decide ns", "allocations", "whole ns", "compile ms", "compiled bytes", "peak bytes"
    );
    for row in rows {
        table += &format!(
            "{:>7} {:>5} {:>11.1} {:>13} {:>10.1} {:>12.3} {:>15} {:>12}\n",
            row.rules,
            row.case.name(),
            row.decide_ns,
            row.decide_allocations,
            row.whole_ns,
            row.compile_ms,
            row.compiled_bytes,
            row.peak_bytes
        );
    }
    table
}

fn write(file: &Path, report: &Report) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, serde_json::to_string_pretty(report)? + "\n")
}
