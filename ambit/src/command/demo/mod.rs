//! `ambit demo`: the MLflow example on real traffic, with its verdict table.
//!
//! It uses the program as a person would: `ambit up` on the example's own files, `ambit run` for every client, and the
//! decision records of the access log for the reasons.

mod checks;
mod example;
mod mesh;

use std::process::ExitCode;

use serde::Serialize;

use super::Failure;

/// Arguments of `ambit demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print the checks
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Show what the mesh prints, too
    #[arg(long, short)]
    verbose: bool,
}

/// How to print the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table
    Text,
    /// One JSON object
    Json,
}

/// One row of the table.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    expected: String,
    got: String,
    reason: String,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    checks: &'a [Check],
    passed: usize,
    failed: usize,
}

/// Runs every check; success only if all match.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let example = example::Example::write()?;
    let mut mesh = mesh::Mesh::up(&example, args.verbose)?;
    if args.output == Format::Text {
        println!("{}\n", mesh.ready_line());
        print_titles();
    }
    let mut checks = Vec::new();
    checks::run(&mesh, &example, &mut |check| {
        if args.output == Format::Text {
            print_row(&check);
        }
        checks.push(check);
    })?;
    let ended = mesh.end()?;
    checks.push(ended);
    let failed = checks.iter().filter(|check| !check.ok).count();
    let report = Report { checks: &checks, passed: checks.len() - failed, failed };
    match args.output {
        Format::Text => {
            if let Some(last) = checks.last() {
                print_row(last);
            }
            println!("\n{} passed, {} failed", report.passed, report.failed);
        }
        Format::Json => {
            println!("{}", serde_json::to_string(&report).map_err(|error| Failure::new(error.to_string()))?);
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Widths of the table's first columns; the last is as wide as it gets.
const REQUEST_WIDTH: usize = 62;
const EXPECTED_WIDTH: usize = 34;

fn print_titles() {
    println!("      {:<REQUEST_WIDTH$}  {:<EXPECTED_WIDTH$}  GOT", "REQUEST", "EXPECTED");
}

fn print_row(check: &Check) {
    let mark = if check.ok { "ok  " } else { "FAIL" };
    println!("{mark}  {:<REQUEST_WIDTH$}  {:<EXPECTED_WIDTH$}  {}", check.name, check.expected, check.got);
    if !check.reason.is_empty() {
        println!("        why: {}", check.reason);
    }
}
