//! Rounds in a file, and as a table of medians.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::Serialize;

use crate::figures::{Figure, Figures};

/// Everything measured so far.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What it ran on.
    machine: String,
    /// Seconds of one steady figure.
    seconds: f64,
    /// In the order they were run.
    rounds: Vec<Round>,
    /// By contender; `direct` is the connection without proxies.
    medians: BTreeMap<String, Figures>,
}

#[derive(Debug, Serialize)]
struct Round {
    round: usize,
    contender: String,
    figures: Figures,
}

/// The contender without proxies.
pub(crate) const DIRECT: &str = "direct";

// === impl Report ===

impl Report {
    pub(crate) fn new(machine: String, seconds: f64) -> Self {
        Self { machine, seconds, rounds: Vec::new(), medians: BTreeMap::new() }
    }

    /// Adds what was found; figures of one round and contender may come in parts.
    pub(crate) fn add(&mut self, round: usize, contender: &str, figures: Figures) {
        match self.rounds.iter_mut().find(|have| have.round == round && have.contender == contender) {
            Some(have) => have.figures.extend(figures),
            None => self.rounds.push(Round { round, contender: contender.to_owned(), figures }),
        }
        self.add_differences(round);
        let mut medians: BTreeMap<String, Figures> = BTreeMap::new();
        for contender in self.rounds.iter().map(|round| round.contender.clone()) {
            let values = Figure::ALL.iter().filter_map(|figure| {
                let (_, median, _) = spread(&self.values(&contender, *figure))?;
                Some((*figure, median))
            });
            medians.insert(contender.clone(), values.collect());
        }
        self.medians = medians;
    }

    /// What proxies add is known once the direct connection has been measured in the same round.
    fn add_differences(&mut self, round: usize) {
        let tail = |round: &Round| round.figures.get(&Figure::ExchangeOneTail).copied();
        let direct = self.rounds.iter().find(|have| have.round == round && have.contender == DIRECT).and_then(tail);
        let Some(direct) = direct else { return };
        for have in self.rounds.iter_mut().filter(|have| have.round == round && have.contender != DIRECT) {
            if let Some(tail) = tail(have) {
                have.figures.insert(Figure::ExchangeOneTailAdded, tail - direct);
            }
        }
    }

    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        fs::write(file, serde_json::to_vec_pretty(self)?)
    }

    /// A table in Markdown: medians of each contender with the lowest and highest round, ratio, bar and verdict.
    pub(crate) fn table(&self, ours: &str, theirs: Option<&str>) -> String {
        let mut lines = vec![
            format!("{} ({} rounds; median, lowest to highest)", self.machine, self.round_count()),
            String::new(),
            format!("| figure | direct | {} | {ours} | ratio | bar (reach) | holds |", theirs.unwrap_or("-")),
            "| --- | ---: | ---: | ---: | ---: | --- | --- |".to_owned(),
        ];
        for figure in Figure::ALL {
            let (name, bar) = figure.describe();
            let of = |contender: &str| spread(&self.values(contender, figure));
            let (direct, their, our) = (of(DIRECT), theirs.and_then(of), of(ours));
            if direct.is_none() && their.is_none() && our.is_none() {
                continue;
            }
            let show = |spread: Option<(f64, f64, f64)>| match spread {
                Some((low, median, high)) => format!("{} ({} to {})", brief(median), brief(low), brief(high)),
                None => "-".to_owned(),
            };
            let (_, ratio) = (0, our.zip(their).map(|(our, their)| our.1 / their.1));
            let (bar, holds) = match our {
                Some(our) => bar.judge(our.1, their.map(|their| their.1)),
                None => (String::new(), None),
            };
            lines.push(format!(
                "| {name} | {} | {} | {} | {} | {bar} | {} |",
                direct.filter(|direct| direct.1 != 0.0).map_or("-".to_owned(), |direct| brief(direct.1)),
                show(their),
                show(our),
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                holds.map_or("", |holds| if holds { "yes" } else { "NO" }),
            ));
        }
        lines.join("\n")
    }

    fn round_count(&self) -> usize {
        self.rounds.iter().map(|round| round.round).max().unwrap_or_default()
    }

    fn values(&self, contender: &str, figure: Figure) -> Vec<f64> {
        let of = self.rounds.iter().filter(|round| round.contender == contender);
        of.filter_map(|round| round.figures.get(&figure).copied()).collect()
    }
}

/// Lowest, median, highest.
fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        *sorted.get(middle)?
    } else {
        f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?)
    };
    Some((*sorted.first()?, median, *sorted.last()?))
}

/// Three figures are as many as a shared machine can tell.
fn brief(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_verdicts_come_from_the_rounds() {
        let mut report = Report::new("a machine".to_owned(), 1.0);
        for (round, ours, theirs) in [(1, 20.0, 10.0), (2, 30.0, 10.0), (3, 10.0, 40.0)] {
            report.add(round, "ambit", Figures::from([(Figure::ExchangeOneTail, ours)]));
            report.add(round, "ztunnel", Figures::from([(Figure::ExchangeOneTail, theirs)]));
            report.add(round, DIRECT, Figures::from([(Figure::ExchangeOneTail, 5.0)]));
        }
        let table = report.table("ambit", Some("ztunnel"));
        let line = |name: &str| table.lines().find(|line| line.contains(name)).expect("a line").to_owned();
        assert!(line("p99 us |").contains("| 5.00 | 10.0 (10.0 to 40.0) | 20.0 (10.0 to 30.0) | 2.00 |"), "{table}");
        assert!(
            line("added").contains("| 5.00 (5.00 to 35.0) | 15.0 (5.00 to 25.0) | 3.00 | <= 0.8 (0.5) | NO |"),
            "{table}"
        );
    }

    #[test]
    fn an_even_number_of_rounds_has_its_median_between() {
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(&[]), None);
    }
}
