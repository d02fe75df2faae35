//! What the figures must hold.

use std::fmt;

use ambit_bench::Case;

use crate::Row;

/// A figure beside its bar.
pub(crate) struct Bar {
    what: String,
    measured: f64,
    at_most: f64,
    unit: &'static str,
}

const MIB: f64 = 1024.0 * 1024.0;

/// The bars that apply to these rows.
pub(crate) fn of(rows: &[Row]) -> Vec<Bar> {
    let find = |rules, case| rows.iter().find(|row| row.rules == rules && row.case == case);
    let mut bars = Vec::new();
    for case in Case::ALL {
        let name = case.name();
        let (Some(ten), Some(most)) = (find(10, case), find(10_000, case)) else { continue };
        let mut bar = |what: String, measured, at_most, unit| bars.push(Bar { what, measured, at_most, unit });
        bar(format!("decide, 10 rules, {name}"), ten.decide_ns, 150.0, "ns");
        bar(format!("decide, 10,000 rules, {name}"), most.decide_ns, 3.0 * ten.decide_ns, "ns (3 x that of 10)");
        bar(format!("whole, 10,000 rules, {name}"), most.whole_ns, 2000.0, "ns");
        let allocations = rows.iter().filter(|row| row.case == case).map(|row| row.decide_allocations).max();
        bar(format!("allocations of decide, {name}"), count(allocations.unwrap_or_default()), 0.0, "");
    }
    if let Some(row) = find(10_000, Case::Hit) {
        let mut bar = |what: &str, measured, at_most, unit| {
            bars.push(Bar { what: what.to_owned(), measured, at_most, unit });
        };
        bar("compile, 10,000 policies", row.compile_ms, 150.0, "ms");
        bar("compiled, 10,000 policies", count(row.compiled_bytes) / MIB, 64.0, "MiB");
        bar("compile, 10,000 policies, at its peak", count(row.peak_bytes) / MIB, 64.0, "MiB");
    }
    bars
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

// === impl Bar ===

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, measured, at_most, unit } = self;
        let verdict = if measured <= at_most { "holds" } else { "MISSED" };
        write!(f, "{verdict:<7} {what}: {measured:.1} of at most {at_most:.1} {unit}")
    }
}
