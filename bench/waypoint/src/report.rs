//! Rounds in a file, and as tables of medians.

use std::{collections::BTreeMap, fmt::Write, fs, io, path::Path};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::{
    contender::Name,
    figures::{Bar, Figures, Ratios, bars, median},
    load::STREAMS,
    memory::{CONNECTIONS, Memory},
    rounds::Row,
    rules::{FEW, MANY, Rules},
    scenario::{Http, Shape},
};

/// Everything measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    /// Of one figure.
    seconds: f64,
    traffic: Vec<Traffic>,
    memory: BTreeMap<(&'static str, Name), Vec<Memory>>,
    rules: Vec<Rules>,
    faults: Vec<Fault>,
}

/// A row of traffic in all rounds.
#[derive(Debug)]
struct Traffic {
    row: Row,
    /// Requests a second of the figures that aren't of saturation: half of what the first contender did in its first round.
    rate: f64,
    rounds: BTreeMap<Name, Vec<Figures>>,
}

/// A measurement that is worth nothing.
#[derive(Debug, Serialize)]
struct Fault {
    round: usize,
    row: String,
    contender: Name,
    reason: String,
}

/// Of [`Rules`].
const RULES_BAR: Bar = Bar::AtLeast(0.95);

// === impl Report ===

impl Report {
    pub(crate) fn new(machine: String, seconds: f64) -> Self {
        let (traffic, memory, rules, faults) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
        Self { machine, seconds, traffic, memory, rules, faults }
    }

    /// The rate that is given for this row, once one contender has shown what it does.
    pub(crate) fn rate(&self, row: Row) -> Option<f64> {
        self.traffic.iter().find(|traffic| traffic.row == row).map(|traffic| traffic.rate)
    }

    pub(crate) fn add(&mut self, row: Row, name: Name, rate: f64, figures: Figures) {
        let place = self.traffic.iter().position(|traffic| traffic.row == row).unwrap_or_else(|| {
            self.traffic.push(Traffic { row, rate, rounds: BTreeMap::new() });
            self.traffic.len() - 1
        });
        self.traffic[place].rounds.entry(name).or_default().push(figures);
    }

    pub(crate) fn add_memory(&mut self, shape: Shape, name: Name, memory: Memory) {
        self.memory.entry((shape.name(), name)).or_default().push(memory);
    }

    pub(crate) fn add_rules(&mut self, rules: Rules) {
        self.rules.push(rules);
    }

    /// Notes that a measurement failed.
    pub(crate) fn fault(&mut self, round: usize, row: Row, contender: Name, reason: String) {
        let row = row.name();
        eprintln!("!!! INVALID: {row} of {contender:?} in round {round}: {reason}");
        self.faults.push(Fault { round, row, contender, reason });
    }

    /// How many measurements failed.
    pub(crate) fn faults(&self) -> usize {
        self.faults.len()
    }

    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        fs::write(file, serde_json::to_vec_pretty(self)?)
    }

    /// Tables in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{}; medians; `rate` is requests/s at which p50, p99, p99.9 are taken (half of Envoy's saturation)\n\n\
             | row | Envoy requests/s | Ambit requests/s | ratio | CPU s/10k | ratio | rate | p50 ms | p99 ms | ratio | \
             p99.9 ms | RSS MiB | ratio | holds |\n\
             | --- | ---: | ---: | ---: | --- | ---: | ---: | --- | --- | ---: | --- | --- | ---: | --- |\n",
            self.machine
        );
        for traffic in &self.traffic {
            text += &traffic.line(self.is_spoiled(traffic.row));
        }
        for ((shape, name), rounds) in &self.memory {
            let of = |figure: fn(&Memory) -> f64| brief(median(rounds.iter().map(figure).collect()));
            let (idle, connected, after) = (of(|it| it.idle), of(|it| it.connected), of(|it| it.after));
            let row = Row::Memory(shape.parse().unwrap_or(Shape::L7));
            let spoiled = if self.is_spoiled(row) { " **INVALID**" } else { "" };
            let _ = write!(
                text,
                "\n{shape}, {name:?}: RSS {idle} MiB idle, {connected} with {CONNECTIONS} connections, {after} after{spoiled}\n"
            );
        }
        if let Some(ratio) = self.rules_ratio() {
            let (few, many) = self.rules_rates();
            let spoiled = if self.is_spoiled(Row::Rules) { " **INVALID**" } else { "" };
            let _ = write!(
                text,
                "\n{MANY} rules against {FEW}: {} over {} requests/s = {ratio:.3} ({RULES_BAR}: {}){spoiled}\n",
                brief(many),
                brief(few),
                verdict(RULES_BAR.holds(ratio))
            );
        }
        for Fault { round, row, contender, reason } in &self.faults {
            let _ = write!(text, "\n**INVALID**: {row} of {contender:?} in round {round}: {reason}\n");
        }
        text
    }

    fn rules_rates(&self) -> (Option<f64>, Option<f64>) {
        let of = |figure: fn(&Rules) -> f64| median(self.rules.iter().map(figure).collect());
        (of(|rules| rules.few), of(|rules| rules.many))
    }

    fn rules_ratio(&self) -> Option<f64> {
        median(self.rules.iter().map(|rules| rules.many / rules.few).collect())
    }

    /// Whether a measurement of this row failed, of whomever.
    fn is_spoiled(&self, row: Row) -> bool {
        let name = row.name();
        self.faults.iter().any(|fault| fault.row == name)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rows: Vec<Value> = self.traffic.iter().map(|traffic| traffic.json(self.is_spoiled(traffic.row))).collect();
        let memory = self.memory.iter().map(|((shape, contender), rounds)| {
            json!({"shape": shape, "contender": contender, "connections": CONNECTIONS, "rounds": rounds})
        });
        let whole = json!({
            "machine": self.machine,
            "seconds": self.seconds,
            "rows": rows,
            "memory": memory.collect::<Vec<_>>(),
            "rules": {"few": FEW, "many": MANY, "rps_ratio": self.rules_ratio(), "rounds": self.rules},
            "faults": self.faults,
        });
        whole.serialize(serializer)
    }
}

// === impl Traffic ===

impl Traffic {
    fn of(&self, name: Name) -> &[Figures] {
        self.rounds.get(&name).map(Vec::as_slice).unwrap_or_default()
    }

    fn ratios(&self) -> Option<Ratios> {
        Ratios::of(self.of(Name::Ambit), self.of(Name::Envoy))
    }

    fn json(&self, spoiled: bool) -> Value {
        let Row::Traffic { shape, http, body, connections } = self.row else { return Value::Null };
        let mut value = self.ratios().map_or_else(|| json!({}), |ratios| json!(ratios));
        let streams = if http == Http::H2 { STREAMS } else { 1 };
        let judged = self.ratios().map(|ratios| {
            let judge = |(figure, value, bar): (&str, f64, Bar)| {
                json!({"figure": figure, "bar": bar.to_string(), "holds": !spoiled && bar.holds(value)})
            };
            bars(shape, &ratios).map(judge)
        });
        if let Value::Object(fields) = &mut value {
            let more = json!({
                "shape": shape, "http": http, "body": body, "connections": connections,
                "requests_per_connection": streams, "rate": self.rate, "valid": !spoiled, "bars": judged,
                "ambit": Figures::medians(self.of(Name::Ambit)), "envoy": Figures::medians(self.of(Name::Envoy)),
                "rounds": {"ambit": self.of(Name::Ambit), "envoy": self.of(Name::Envoy)},
            });
            if let Value::Object(more) = more {
                fields.extend(more);
            }
        }
        value
    }

    fn line(&self, spoiled: bool) -> String {
        let Row::Traffic { shape, .. } = self.row else { return String::new() };
        let [theirs, ours] = [Name::Envoy, Name::Ambit].map(|name| Figures::medians(self.of(name)));
        let both = |figure: fn(&Figures) -> f64| {
            let [theirs, ours] = [&theirs, &ours].map(|figures| brief(figures.as_ref().map(figure)));
            format!("{theirs} / {ours}")
        };
        let ratios = self.ratios();
        let ratio =
            |figure: fn(&Ratios) -> f64| ratios.as_ref().map_or("-".to_owned(), |it| format!("{:.2}", figure(it)));
        let holds = match &ratios {
            _ if spoiled => "**INVALID**".to_owned(),
            None => "-".to_owned(),
            Some(ratios) => {
                let missed = bars(shape, ratios).into_iter().filter(|(_, value, bar)| !bar.holds(*value));
                let missed: Vec<String> = missed.map(|(figure, _, bar)| format!("{figure} {bar}")).collect();
                if missed.is_empty() { "yes".to_owned() } else { format!("NO: {}", missed.join(", ")) }
            }
        };
        // With a core that isn't full the clients were the limit.
        let free = ours.filter(|ours| ours.busy < 0.93).map_or(String::new(), |it| format!(" (busy {:.2})", it.busy));
        format!(
            "| {} | {} | {}{free} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {holds} |\n",
            self.row.name(),
            brief(theirs.map(|it| it.rps)),
            brief(ours.map(|it| it.rps)),
            ratio(|it| it.rps_ratio),
            both(|it| it.cpu),
            ratio(|it| it.cpu_ratio),
            brief(Some(self.rate)),
            both(|it| it.p50),
            both(|it| it.p99),
            ratio(|it| it.p99_ratio),
            both(|it| it.p999),
            both(|it| it.rss),
            ratio(|it| it.rss_ratio),
        )
    }
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "MISSED" }
}

/// Three figures are as many as a shared machine can tell.
fn brief(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rps: f64) -> Figures {
        Figures { rps, cpu: 1.0 / rps, busy: 1.0, p50: 1.0, p99: 2.0 / rps, p999: 3.0, rate_cpu: 1.0, rss: 1.0 }
    }

    #[test]
    fn rows_have_ratios_bars_and_what_spoils_them() {
        let row = Row::Traffic { shape: Shape::L7, http: Http::H1, body: 0, connections: 64 };
        let mut report = Report::new("a machine".to_owned(), 1.0);
        report.add(row, Name::Envoy, 5.0, figures(10.0));
        assert_eq!(report.rate(row), Some(5.0));
        report.add(row, Name::Ambit, 5.0, figures(30.0));
        let json = serde_json::to_value(&report).expect("JSON");
        let first = &json["rows"][0];
        assert_eq!((&first["shape"], &first["http"], &first["connections"]), (&json!("l7"), &json!("h1"), &json!(64)));
        assert!((first["rps_ratio"].as_f64().expect("a ratio") - 3.0).abs() < 1e-9, "{first}");
        assert_eq!((&first["bars"][0]["holds"], &first["bars"][3]["holds"]), (&json!(true), &json!(false)));
        assert!(
            report.table().contains("| 3.00 |") && report.table().contains("NO: RSS <= 0.35"),
            "{}",
            report.table()
        );
        report.fault(2, row, Name::Ambit, "a connection broke".to_owned());
        assert_eq!(serde_json::to_value(&report).expect("JSON")["rows"][0]["valid"], json!(false));
        assert!(report.table().contains("**INVALID** |"), "{}", report.table());
    }
}
