//! Every row of Istio's validation (`spec/authorization.md` 2.11) has its stable code, its severity and the place in the
//! file that it points to: `data/policy_rows.txt`.

use std::{collections::BTreeSet, fmt};

use ambit_api::{Severity, codes, load_text};

const TABLE: &str = include_str!("data/policy_rows.txt");

/// Rows of the spec's table.
const ROWS: std::ops::RangeInclusive<u32> = 1..=33;

/// What stands before a case's `spec`.
const HEAD: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: p
  namespace: a
spec:
";

/// Marks the character that the diagnostic points to.
const MARK: char = '◆';

struct Case {
    row: u32,
    wanted: Found,
    text: String,
}

#[derive(Clone, PartialEq, Eq)]
struct Found {
    severity: Severity,
    code: String,
    place: String,
}

#[test]
fn every_row_has_its_code_severity_and_place() {
    let cases = cases();
    let mut wrong = Vec::new();
    for case in &cases {
        let found: Vec<_> = load_text("policies/p.yaml", &case.text).diagnostics.iter().map(Found::new).collect();
        if found != [case.wanted.clone()] {
            wrong.push(format!("row {}: wanted {}, found {found:?} in\n{}", case.row, case.wanted, case.text));
        }
        assert!(codes::ALL.contains(&case.wanted.code.as_str()), "{}", case.wanted);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let covered: BTreeSet<_> = cases.iter().map(|case| case.row).collect();
    assert!(covered.iter().copied().eq(ROWS), "{covered:?}");
}

fn cases() -> Vec<Case> {
    let sections = TABLE.split("\n== ").skip(1);
    sections.map(|section| Case::parse(section).unwrap_or_else(|| panic!("not a case: {section}"))).collect()
}

// === impl Case ===

impl Case {
    /// `1 error AMB0301: more than one of ...`, and the lines of the `spec`.
    fn parse(section: &str) -> Option<Self> {
        let (title, spec) = section.split_once('\n')?;
        let (row, severity, code) = match title.split_once(": ")?.0.split(' ').collect::<Vec<_>>()[..] {
            [row, "error", code] => (row, Severity::Error, code),
            [row, "warning", code] => (row, Severity::Warning, code),
            _ => return None,
        };
        let marked = spec.lines().fold(HEAD.to_owned(), |text, line| format!("{text}  {line}\n"));
        let (before, after) = marked.split_once(MARK)?;
        let line = before.lines().count();
        let column = before.lines().last()?.chars().count() + 1;
        let place = format!("policies/p.yaml:{line}:{column}");
        let wanted = Found { severity, code: code.to_owned(), place };
        Some(Self { row: row.parse().ok()?, wanted, text: format!("{before}{after}") })
    }
}

// === impl Found ===

impl Found {
    fn new(diagnostic: &ambit_api::Diagnostic) -> Self {
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let file = diagnostic.file.as_deref().unwrap_or("-");
        let place = format!("{file}:{}:{}", number(diagnostic.line()), number(diagnostic.column()));
        Self { severity: diagnostic.severity, code: diagnostic.code.to_owned(), place }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.severity, self.code, self.place)
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
