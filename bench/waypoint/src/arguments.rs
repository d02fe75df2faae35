//! The command line. `cargo xtask bench waypoint` is what people call.

use std::{path::PathBuf, time::Duration};

use crate::{backend, rounds::Row, scenario::Shape};

const USAGE: &str = "usage: ambit-bench-waypoint OUT rounds [--against ENVOY] [--quick] [--rounds N] [--seconds S] \
                     [--patience S] [--rows FILTER,...]
       ambit-bench-waypoint OUT soak [--seconds N]

OUT is the folder for figures. A FILTER is `SHAPE/HTTP/BODY/CONNECTIONS`, `memory/SHAPE` or `rules`: parts may be `*`, and
those at the end may be left out. Shapes are l7 and hbone, HTTP h1 and h2, bodies 0, 1024 and 65536 bytes, connections 16,
64 and 512. A soak changes the configuration five times a second under load; it lasts 600 seconds unless told otherwise.
--quick is `--rounds 2 --seconds 1 --rows */*/0/64,memory,rules`.";

const ROUNDS: usize = 5;
const SECONDS: f64 = 2.0;
const QUICK_ROUNDS: usize = 2;
const QUICK_SECONDS: f64 = 1.0;
const QUICK_ROWS: &str = "*/*/0/64,memory,rules";
/// How long a soak lasts.
const SOAK: Duration = Duration::from_secs(600);
/// How long a figure waits for an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done, and where.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Folder for figures; for the processes that a run starts, the one of its keys.
    pub(crate) place: PathBuf,
    pub(crate) command: Command,
}

#[derive(Debug)]
pub(crate) enum Command {
    Rounds(Rounds),
    /// Load on a waypoint whose configuration changes all the time.
    Soak(Duration),
    /// Be the waypoint that is measured.
    Proxy(Proxy),
    /// Be what is behind it.
    Backend,
}

/// A campaign.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// The Envoy to compare with.
    pub(crate) envoy: Option<PathBuf>,
    pub(crate) rounds: usize,
    /// Of one figure.
    pub(crate) time: Duration,
    pub(crate) patience: Duration,
    pub(crate) rows: Vec<Row>,
}

/// One waypoint.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) shape: Shape,
    pub(crate) rules: usize,
    pub(crate) backend: backend::Address,
    /// Its configuration changes all the time.
    pub(crate) churns: bool,
}

// === impl Arguments ===

impl Arguments {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let arguments: Vec<String> = arguments.collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let [place, command, rest @ ..] = words.as_slice() else { return Err(USAGE.to_owned()) };
        let command = match (*command, rest) {
            ("rounds", rest) => Command::Rounds(Rounds::parse(rest)?),
            ("soak", []) => Command::Soak(SOAK),
            ("soak", ["--seconds", seconds]) => {
                let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0).ok_or(USAGE)?;
                Command::Soak(Duration::from_secs(seconds))
            }
            ("proxy", [shape, rules, plain, port, rest @ ..]) if matches!(rest, [] | ["churn"]) => {
                let wrong = || USAGE.to_owned();
                let plain = plain.parse().map_err(|_| wrong())?;
                let backend = backend::Address { plain, hbone_port: port.parse().map_err(|_| wrong())? };
                let (shape, rules) = (shape.parse()?, rules.parse().map_err(|_| wrong())?);
                Command::Proxy(Proxy { shape, rules, backend, churns: !rest.is_empty() })
            }
            ("backend", []) => Command::Backend,
            _ => return Err(USAGE.to_owned()),
        };
        Ok(Self { place: PathBuf::from(place), command })
    }
}

// === impl Rounds ===

impl Rounds {
    fn parse(mut rest: &[&str]) -> Result<Self, String> {
        let mut this = Self {
            envoy: None,
            rounds: ROUNDS,
            time: Duration::from_secs_f64(SECONDS),
            patience: PATIENCE,
            rows: Row::all().collect(),
        };
        loop {
            let (name, value) = match rest {
                [] => break,
                ["--quick", more @ ..] => {
                    rest = more;
                    this.rounds = QUICK_ROUNDS;
                    this.time = Duration::from_secs_f64(QUICK_SECONDS);
                    this.rows = rows(QUICK_ROWS).ok_or(USAGE)?;
                    continue;
                }
                [name, value, more @ ..] => {
                    rest = more;
                    (*name, *value)
                }
                _ => return Err(USAGE.to_owned()),
            };
            let wrong = || format!("`{value}` is no value for {name}\n\n{USAGE}");
            match name {
                "--against" => this.envoy = Some(PathBuf::from(value)),
                "--rounds" => this.rounds = value.parse().ok().filter(|rounds| *rounds > 0).ok_or_else(wrong)?,
                "--seconds" => {
                    let seconds = value.parse().ok().filter(|seconds| (0.5..=60.0).contains(seconds));
                    this.time = Duration::from_secs_f64(seconds.ok_or_else(wrong)?);
                }
                "--patience" => this.patience = Duration::from_secs(value.parse().map_err(|_| wrong())?),
                "--rows" => this.rows = rows(value).ok_or_else(wrong)?,
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(this)
    }
}

/// The rows that one of the filters means; nothing if a filter means none.
fn rows(filters: &str) -> Option<Vec<Row>> {
    let filters: Vec<&str> = filters.split(',').collect();
    let means = |filter: &str, row: &Row| {
        let name = row.name();
        let mut parts = name.split('/');
        filter.split('/').all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == part))
    };
    let is_empty = |filter: &&str| !Row::all().any(|row| means(filter, &row));
    if filters.iter().any(is_empty) {
        return None;
    }
    Some(Row::all().filter(|row| filters.iter().any(|filter| means(filter, row))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split(' ').map(str::to_owned))
    }

    fn names(line: &str) -> Vec<String> {
        let Ok(Arguments { command: Command::Rounds(rounds), .. }) = parse(line) else { panic!("{line}") };
        rounds.rows.iter().map(Row::name).collect()
    }

    #[test]
    fn campaigns_are_read() {
        let arguments = parse("out rounds --against e --rounds 3 --seconds 1 --rows l7/h1/0/64");
        let Ok(Arguments { command: Command::Rounds(rounds), .. }) = arguments else { panic!("{arguments:?}") };
        assert_eq!((rounds.rounds, rounds.time), (3, Duration::from_secs(1)));
        assert_eq!(rounds.envoy, Some(PathBuf::from("e")));
        assert_eq!(names("out rounds --rows l7/*/0/64,rules"), ["l7/h1/0/64", "l7/h2/0/64", "rules"]);
        assert_eq!(names("out rounds").len(), 36 + 2 + 1);
        assert_eq!(names("out rounds --quick").len(), 4 + 2 + 1);
        assert_eq!(names("out rounds --quick --rows memory/l7"), ["memory/l7"]);
    }

    #[test]
    fn what_is_not_meant_is_refused() {
        for wrong in [
            "out",
            "out rounds --rounds 0",
            "out rounds --seconds 900",
            "out rounds --rows l8",
            "out rounds --rows l7,h3",
            "out rounds --against",
            "out proxy l7",
            "out backend more",
            "out soak --seconds 0",
            "out proxy l7 2 127.0.0.2:1 1 churns",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
