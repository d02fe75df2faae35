//! `ambit policy eval`: golden cases (`shared/cases/authz/README.md`) against the engine.

mod case;
mod judge;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;

use self::{
    case::{Case, Word},
    judge::{Judged, PolicyFiles},
};
use crate::command::Failure;

/// Longest line of a case file that is read.
const MAX_LINE_BYTES: u64 = 4 * 1024 * 1024;

/// Arguments of `ambit policy eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that the cases' `policies` are relative to; by default the folder above the file's
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Files with a case on each line
    #[arg(required = true, value_name = "FILE.jsonl")]
    files: Vec<PathBuf>,
}

/// How to print the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// What differs, and a summary
    Text,
    /// A JSON object a line for each case; the summary goes to standard error
    Jsonl,
}

/// A line of [`Format::Jsonl`].
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    expect: Word,
    got: Word,
    /// `namespace/name` of the policy that decided.
    policy: Option<String>,
    /// Index of its rule.
    rule: Option<u32>,
    reason: &'a str,
    /// The named group of a deliberate difference.
    stricter: Option<&'static str>,
}

/// How it went.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Cases that passed by being denied on purpose, by group.
    stricter: BTreeMap<&'static str, usize>,
}

/// Judges every case.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut tally = Tally::default();
    for file in &args.files {
        judge_file(file, args, &mut tally, &mut out)?;
    }
    match args.output {
        Format::Text => tally.write(&mut out).map_err(unprinted)?,
        Format::Jsonl => tally.write(&mut std::io::stderr()).map_err(unprinted)?,
    }
    out.flush().map_err(unprinted)?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge_file(file: &Path, args: &Args, tally: &mut Tally, out: &mut impl Write) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| Failure::new(format!("{}: can't be read: {error}", file.display()));
    let root = args.root.clone().unwrap_or_else(|| above(file));
    let mut policies = PolicyFiles::new(root);
    let mut lines = BufReader::new(File::open(file).map_err(unreadable)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            return Ok(());
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let at = |message: String| Failure::new(format!("{}:{number}{message}", file.display()));
        let case = read(&line).map_err(at)?;
        let judged = judge::judge(&case, &mut policies).map_err(|message| at(format!(": {message}")))?;
        tally.add(&case, &judged);
        match args.output {
            Format::Jsonl => write_line(&case, &judged, out),
            Format::Text if judged.passes(case.expect) => Ok(()),
            Format::Text => write_mismatch(&case, &judged, out),
        }
        .map_err(unprinted)?;
    }
    Ok(())
}

/// The case of a line; otherwise what is wrong with it, to stand behind the line's number.
fn read(line: &[u8]) -> Result<Case, String> {
    if line.len() as u64 == MAX_LINE_BYTES {
        return Err(format!(": not a case: the line is longer than {} MiB", MAX_LINE_BYTES / (1024 * 1024)));
    }
    let wrong = |field: &str, error: &serde_json::Error| {
        // It would name the line again, as the first of this one.
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        format!(":{}: not a case: {field}{message}", error.column())
    };
    let mut json = serde_json::Deserializer::from_slice(line.trim_ascii_end());
    let case = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = Some(error.path().to_string()).filter(|path| path != ".");
        wrong(&field.map_or_else(String::new, |path| format!("{path}: ")), error.inner())
    })?;
    json.end().map_err(|error| wrong("", &error))?;
    Ok(case)
}

/// The folder above the one that the file is in.
fn above(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.join("..")
}

fn write_line(case: &Case, judged: &Judged, out: &mut impl Write) -> std::io::Result<()> {
    let line = Line {
        id: &case.id,
        expect: case.expect,
        got: judged.got,
        policy: judged.policy.as_ref().map(ToString::to_string),
        rule: judged.rule,
        reason: &judged.reason,
        stricter: judged.stricter,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn write_mismatch(case: &Case, judged: &Judged, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{} ({}): expected {}, got {}", case.id, case.policies, case.expect, judged.got)?;
    writeln!(out, "  {}", case.summary())?;
    writeln!(out, "  {}", judged.reason)
}

fn unprinted(error: std::io::Error) -> Failure {
    Failure::new(format!("can't print: {error}"))
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, case: &Case, judged: &Judged) {
        if !judged.passes(case.expect) {
            self.failed += 1;
            return;
        }
        self.passed += 1;
        if let Some(group) = judged.stricter {
            *self.stricter.entry(group).or_default() += 1;
        }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let stricter: usize = self.stricter.values().sum();
        if stricter > 0 {
            writeln!(out, "{stricter} of the passed are stricter on purpose (docs/differences-from-istio.md):")?;
        }
        for (group, count) in &self.stricter {
            writeln!(out, "  {group} {count}")?;
        }
        writeln!(out, "{} passed, {} failed", self.passed, self.failed)
    }
}
