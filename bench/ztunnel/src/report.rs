//! Rounds in a file, and as a table of medians.

use std::{fs, io, path::Path};

use serde::{Serialize, Serializer};

use crate::{
    figures::{Figure, Figures},
    phases::{Found, Phase},
};

/// Everything measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    /// What it ran on.
    machine: String,
    /// Seconds of one steady figure.
    seconds: f64,
    ours: &'static str,
    theirs: Option<&'static str>,
    /// In the order they were run.
    rounds: Vec<Round>,
    faults: Vec<Fault>,
}

#[derive(Debug, Serialize)]
struct Round {
    round: usize,
    /// `direct` is the connection without proxies.
    contender: String,
    figures: Figures,
    /// New connections of every second of the sustained phase.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    by_second: Vec<u64>,
}

/// A measurement that is worth nothing.
#[derive(Debug, Serialize)]
struct Fault {
    round: usize,
    contender: String,
    phase: Phase,
    reason: String,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Row {
    figure: Figure,
    name: &'static str,
    direct: Option<Spread>,
    theirs: Option<Spread>,
    ours: Option<Spread>,
    /// Ours over theirs.
    ratio: Option<f64>,
    bar: String,
    reach: String,
    verdict: Verdict,
}

/// Of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    lowest: f64,
    median: f64,
    highest: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// What is to be reached for, too.
    Reached,
    Holds,
    Misses,
    /// Connections failed, so the figure means nothing.
    Invalid,
    /// There is no bar, or something to compare with is missing.
    NotJudged,
}

/// The contender without proxies.
pub(crate) const DIRECT: &str = "direct";

// === impl Report ===

impl Report {
    pub(crate) fn new(machine: String, seconds: f64, ours: &'static str, theirs: Option<&'static str>) -> Self {
        Self { machine, seconds, ours, theirs, rounds: Vec::new(), faults: Vec::new() }
    }

    /// Adds what was found; figures of one round and contender may come in parts.
    pub(crate) fn add(&mut self, round: usize, contender: &str, phase: Phase, found: Found) {
        if let Some(reason) = found.fault {
            self.fault(round, contender, phase, reason);
        }
        match self.rounds.iter_mut().find(|have| have.round == round && have.contender == contender) {
            Some(have) => {
                have.figures.extend(found.figures);
                have.by_second.extend(found.by_second);
            }
            None => self.rounds.push(Round {
                round,
                contender: contender.to_owned(),
                figures: found.figures,
                by_second: found.by_second,
            }),
        }
        self.add_differences(round);
    }

    /// Notes that a measurement failed.
    pub(crate) fn fault(&mut self, round: usize, contender: &str, phase: Phase, reason: String) {
        eprintln!("!!! INVALID: {phase:?} of {contender} in round {round}: {reason}");
        self.faults.push(Fault { round, contender: contender.to_owned(), phase, reason });
    }

    /// How many measurements failed.
    pub(crate) fn faults(&self) -> usize {
        self.faults.len()
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
    pub(crate) fn table(&self) -> String {
        let rounds = self.rounds.iter().map(|round| round.round).max().unwrap_or_default();
        let mut lines = vec![
            format!("{} ({rounds} rounds; median, lowest to highest)", self.machine),
            String::new(),
            format!(
                "| figure | direct | {} | {} | ratio | bar | reach for | holds |",
                self.theirs.unwrap_or("-"),
                self.ours
            ),
            "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |".to_owned(),
        ];
        lines.extend(self.rows().iter().map(ToString::to_string));
        for series in self.rounds.iter().filter(|round| !round.by_second.is_empty()) {
            let (round, contender) = (series.round, &series.contender);
            lines.push(format!("\nnew connections by second, round {round}, {contender}: {:?}", series.by_second));
        }
        for Fault { round, contender, phase, reason } in &self.faults {
            lines.push(format!("\n**INVALID**: {phase:?} of {contender} in round {round}: {reason}"));
        }
        lines.join("\n")
    }

    /// A row for every figure that somebody has.
    fn rows(&self) -> Vec<Row> {
        let rows = Figure::ALL.into_iter().map(|figure| self.row(figure));
        let has_any = |row: &Row| row.direct.or(row.theirs).or(row.ours).is_some() || row.verdict == Verdict::Invalid;
        rows.filter(has_any).collect()
    }

    fn row(&self, figure: Figure) -> Row {
        let (name, bar) = figure.describe();
        let of = |contender: &str| Spread::of(&self.values(contender, figure));
        let (direct, theirs, ours) = (of(DIRECT), self.theirs.and_then(of), of(self.ours));
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        // What comes out below nothing is lost in the noise of the direct figure: there is no ratio to it.
        let compared = median(theirs).filter(|theirs| *theirs > 0.0);
        let verdict = match median(ours) {
            _ if self.is_spoiled(figure) => Verdict::Invalid,
            None => Verdict::NotJudged,
            Some(ours) => match (bar.holds(ours, compared), bar.is_reached(ours, compared)) {
                (Some(true), Some(true)) => Verdict::Reached,
                (Some(true), _) => Verdict::Holds,
                (Some(false), _) => Verdict::Misses,
                (None, _) => Verdict::NotJudged,
            },
        };
        let ratio = median(ours).zip(compared).map(|(ours, theirs)| ours / theirs);
        Row { figure, name, direct, theirs, ours, ratio, bar: bar.asked(), reach: bar.reach(), verdict }
    }

    /// Whether a measurement of this figure failed, of whomever.
    fn is_spoiled(&self, figure: Figure) -> bool {
        self.faults.iter().any(|fault| fault.phase == figure.phase())
    }

    fn values(&self, contender: &str, figure: Figure) -> Vec<f64> {
        let of = self.rounds.iter().filter(|round| round.contender == contender);
        of.filter_map(|round| round.figures.get(&figure).copied()).collect()
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Whole<'r> {
            machine: &'r str,
            seconds: f64,
            ours: &'r str,
            theirs: Option<&'r str>,
            rows: Vec<Row>,
            faults: &'r [Fault],
            rounds: &'r [Round],
        }
        let Self { machine, seconds, ours, theirs, rounds, faults } = self;
        let rows = self.rows();
        Whole { machine, seconds: *seconds, ours, theirs: *theirs, rows, faults, rounds }.serialize(serializer)
    }
}

// === impl Row ===

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |spread: Option<Spread>| match spread {
            Some(Spread { lowest, median, highest }) => {
                format!("{} ({} to {})", brief(median), brief(lowest), brief(highest))
            }
            None => "-".to_owned(),
        };
        let direct = self.direct.filter(|direct| direct.median != 0.0);
        let verdict = match self.verdict {
            Verdict::Reached => "yes, reached",
            Verdict::Holds => "yes",
            Verdict::Misses => "NO",
            Verdict::Invalid => "**INVALID**",
            Verdict::NotJudged => "",
        };
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} | {verdict} |",
            self.name,
            direct.map_or("-".to_owned(), |direct| brief(direct.median)),
            show(self.theirs),
            show(self.ours),
            self.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            self.bar,
            self.reach,
        )
    }
}

// === impl Spread ===

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            *sorted.get(middle)?
        } else {
            f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?)
        };
        Some(Self { lowest: *sorted.first()?, median, highest: *sorted.last()? })
    }
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

    fn found(figure: Figure, value: f64) -> Found {
        Found::from(Figures::from([(figure, value)]))
    }

    #[test]
    fn medians_ratios_and_verdicts_come_from_the_rounds() {
        let mut report = Report::new("a machine".to_owned(), 1.0, "ambit", Some("ztunnel"));
        for (round, ours, theirs) in [(1, 20.0, 10.0), (2, 30.0, 10.0), (3, 10.0, 40.0)] {
            report.add(round, "ambit", Phase::Steady, found(Figure::ExchangeOneTail, ours));
            report.add(round, "ztunnel", Phase::Steady, found(Figure::ExchangeOneTail, theirs));
            report.add(round, DIRECT, Phase::Steady, found(Figure::ExchangeOneTail, 5.0));
        }
        let table = report.table();
        let line = |name: &str| table.lines().find(|line| line.contains(name)).expect("a line").to_owned();
        assert!(line("p99 us |").contains("| 5.00 | 10.0 (10.0 to 40.0) | 20.0 (10.0 to 30.0) | 2.00 |"), "{table}");
        assert!(
            line("added").contains("| 5.00 (5.00 to 35.0) | 15.0 (5.00 to 25.0) | 3.00 | <= 0.8 | 0.5 | NO |"),
            "{table}"
        );
    }

    #[test]
    fn what_is_lost_in_the_noise_is_not_judged() {
        let mut report = Report::new("a machine".to_owned(), 1.0, "ambit", Some("ztunnel"));
        for (contender, tail) in [("ambit", 9.0), ("ztunnel", 4.0), (DIRECT, 5.0)] {
            report.add(1, contender, Phase::Steady, found(Figure::ExchangeOneTail, tail));
        }
        let row = report.row(Figure::ExchangeOneTailAdded);
        assert_eq!((row.verdict, row.ratio), (Verdict::NotJudged, None));
    }

    #[test]
    fn a_measurement_in_which_connections_failed_spoils_its_rows_and_no_other() {
        let mut report = Report::new("a machine".to_owned(), 1.0, "ambit", Some("ztunnel"));
        for (contender, rate) in [("ambit", 90.0), ("ztunnel", 10.0)] {
            report.add(1, contender, Phase::Connect, found(Figure::ConnectRate, rate));
            report.add(1, contender, Phase::Tunnels, found(Figure::TunnelRate, rate));
        }
        let verdict = |report: &Report, figure| report.row(figure).verdict;
        assert_eq!(verdict(&report, Figure::ConnectRate), Verdict::Reached);
        report.fault(2, "ambit", Phase::Connect, "3 connections failed".to_owned());
        assert_eq!(verdict(&report, Figure::ConnectRate), Verdict::Invalid);
        assert_eq!(verdict(&report, Figure::ConnectTail), Verdict::Invalid, "also what nobody has");
        assert_eq!(verdict(&report, Figure::TunnelRate), Verdict::Reached);
        assert_eq!(report.faults(), 1);
        let (table, json) = (report.table(), serde_json::to_value(&report).expect("JSON"));
        assert!(table.contains("**INVALID**: Connect of ambit in round 2: 3 connections failed"), "{table}");
        let rows = json["rows"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["figure"] == "connect_rate").expect("a row");
        assert_eq!((&row["verdict"], &row["bar"], &row["reach"]), (&"invalid".into(), &">= 1.5".into(), &"3".into()));
        assert_eq!(json["faults"][0]["phase"], "connect");
    }

    #[test]
    fn an_even_number_of_rounds_has_its_median_between() {
        let spread = Spread { lowest: 1.0, median: 2.5, highest: 4.0 };
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(spread));
        assert_eq!(Spread::of(&[]), None);
    }
}
