//! What is printed and written.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use ambit_policy::CompileError;

use crate::{
    case::{PolicySet, mode_name},
    compare::Tally,
    minimise::Problem,
};

/// Each verdict must be this part of all, or the run says little.
const MIN_PERCENT: usize = 10;
/// Requests that Envoy may refuse before policy, as a part of all.
const MAX_NOT_JUDGED_PERCENT: usize = 10;
/// Runs that are too small for such figures.
const SMALL: usize = 2_000;

/// A run.
#[derive(Debug, Default)]
pub struct Report {
    pub requests: usize,
    pub sets: usize,
    pub tally: Tally,
    /// Policies that the engine refuses, by reason.
    pub refused: BTreeMap<String, usize>,
    pub seconds: f64,
    wanted: usize,
}

/// Where the cases that differ go, in the format of the golden ones.
pub struct Failures {
    folder: PathBuf,
}

/// An error without the values it names.
pub fn kind_of(error: &CompileError) -> String {
    let message: String = error.message.split('`').step_by(2).collect::<Vec<_>>().join("..");
    let field: String = error.field.chars().filter(|c| !c.is_ascii_digit()).collect();
    format!("{field}: {message}")
}

// === impl Report ===

impl Report {
    pub fn new(wanted: usize) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Whether nothing differs. A run that says little is an error.
    pub fn passed(&self) -> Result<bool, String> {
        let Tally { allowed, denied, not_judged, different, stricter, .. } = &self.tally;
        let refused: usize = not_judged.values().sum();
        let percent = |part: usize| part * 100 / self.requests.max(1);
        println!("{} passed, {different} failed", allowed + denied + stricter.values().sum::<usize>());
        if self.wanted >= SMALL {
            if percent(*allowed) < MIN_PERCENT || percent(*denied) < MIN_PERCENT {
                return Err(format!("{allowed} requests were allowed and {denied} denied: the generator is lopsided"));
            }
            if percent(refused) > MAX_NOT_JUDGED_PERCENT {
                return Err(format!("Envoy refused {refused} requests before policy: the generator is off"));
            }
        }
        Ok(*different == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, sets, tally, .. } = self;
        writeln!(f, "{requests} requests to {sets} sets of policies in {:.1} s", self.seconds)?;
        writeln!(f, "{:8} allowed by both", tally.allowed)?;
        writeln!(f, "{:8} denied by both", tally.denied)?;
        for (group, count) in &tally.stricter {
            writeln!(f, "{count:8} denied here only, on purpose: {group}")?;
        }
        for (status, count) in &tally.not_judged {
            writeln!(f, "{count:8} refused by Envoy before policy, with status {status}")?;
        }
        for (reason, count) in &self.refused {
            writeln!(f, "{count:8} policies refused by the engine: {reason}")?;
        }
        let reading = tally.other_reading;
        writeln!(f, "{reading:8} more denied where no path mode is set: another reading of the path is denied")?;
        write!(f, "{:8} DIFFERENT", tally.different)
    }
}

// === impl Failures ===

impl Failures {
    /// An empty folder in this one.
    pub fn new(folder: &Path) -> Result<Self, String> {
        let folder = folder.join("failures");
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// Prints a case and writes it as `failures/case-N.jsonl` and `failures/policies/case-N.yaml`.
    pub fn write(&self, index: usize, problem: &Problem) -> Result<(), String> {
        let Problem { set, request, difference } = problem;
        let name = format!("case-{index}");
        let (policies, file) = (format!("policies/{name}.yaml"), format!("{name}.jsonl"));
        let expect = if difference.envoy_allows { "ALLOW" } else { "DENY" };
        // The mode in which the engine judged, which may be none.
        let judged = PolicySet { paths: difference.paths, ..set.clone() };
        let case = judged.golden(&name, &policies, request, expect);
        let documents: Vec<_> = set.manifests().iter().map(|manifest| format!("{manifest:#}")).collect();
        let text = documents.join("\n---\n");
        println!(
            "\n--- {name}: Envoy says {expect} (mode {}), the engine {} in mode {}: {}\n{text}\n{case}",
            mode_name(set.paths).unwrap_or("none"),
            difference.ours.verdict,
            mode_name(difference.paths).unwrap_or("none"),
            difference.ours.reason,
        );
        let write = |file: &str, text: &str| {
            let path = self.folder.join(file);
            let parent = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, text))
                .map_err(|error| format!("`{}`: {error}", path.display()))
        };
        write(&policies, &text)?;
        write(&file, &format!("{case}\n"))
    }
}
