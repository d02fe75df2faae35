//! The command line. `cargo xtask bench ztunnel` is what people call.

use std::{path::PathBuf, time::Duration};

use crate::{phases::Phase, proxy::Contender};

const USAGE: &str = "usage: ambit-bench-ztunnel OUT rounds [--ambit PATH] [--against PATH] [--rounds N] [--seconds S] \
                     [--patience S] [--phases steady,connect,tunnels,sustained,memory,choice]
       ambit-bench-ztunnel OUT costs
       ambit-bench-ztunnel OUT interop --ambit PATH --against PATH

OUT is the folder for figures and logs.";

/// Rounds where none are asked for.
const ROUNDS: usize = 5;
/// Seconds of a steady figure.
const SECONDS: f64 = 4.0;
/// How long a figure waits for an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Folder for figures and logs.
    pub(crate) out: PathBuf,
    pub(crate) command: Command,
}

#[derive(Debug)]
pub(crate) enum Command {
    Costs,
    /// Ambit's proxy, then the other.
    Interop([Contender; 2]),
    Rounds(Rounds),
}

/// A campaign.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// In the order they take turns.
    pub(crate) contenders: Vec<Contender>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    /// How long a figure waits for an idle machine.
    pub(crate) patience: Duration,
    pub(crate) phases: Vec<(&'static str, Phase)>,
}

// === impl Arguments ===

impl Arguments {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let arguments: Vec<String> = arguments.collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let [out, command, rest @ ..] = words.as_slice() else { return Err(USAGE.to_owned()) };
        let command = match (*command, rest) {
            ("costs", []) => Command::Costs,
            ("interop", ["--ambit", ambit, "--against", against]) => Command::Interop([ours(ambit), theirs(against)]),
            ("rounds", rest) => Command::Rounds(Rounds::parse(rest)?),
            _ => return Err(USAGE.to_owned()),
        };
        Ok(Self { out: PathBuf::from(out), command })
    }
}

// === impl Rounds ===

impl Rounds {
    fn parse(mut rest: &[&str]) -> Result<Self, String> {
        let mut this = Self {
            contenders: Vec::new(),
            rounds: ROUNDS,
            time: Duration::from_secs_f64(SECONDS),
            patience: PATIENCE,
            phases: Phase::ALL.to_vec(),
        };
        while let [name, value, more @ ..] = rest {
            rest = more;
            let wrong = || format!("`{value}` is no value for {name}\n\n{USAGE}");
            match *name {
                "--ambit" => this.contenders.push(ours(value)),
                "--against" => this.contenders.push(theirs(value)),
                "--rounds" => this.rounds = value.parse().ok().filter(|rounds| *rounds > 0).ok_or_else(wrong)?,
                "--seconds" => {
                    let seconds = value.parse().ok().filter(|seconds| (0.5..=60.0).contains(seconds));
                    this.time = Duration::from_secs_f64(seconds.ok_or_else(wrong)?);
                }
                "--patience" => this.patience = Duration::from_secs(value.parse().map_err(|_| wrong())?),
                "--phases" => {
                    let find = |name: &str| Phase::ALL.into_iter().find(|(known, _)| *known == name);
                    this.phases = value.split(',').map(find).collect::<Option<_>>().ok_or_else(wrong)?;
                }
                _ => return Err(USAGE.to_owned()),
            }
        }
        if !rest.is_empty() || this.contenders.is_empty() {
            return Err(USAGE.to_owned());
        }
        Ok(this)
    }
}

fn ours(program: &str) -> Contender {
    Contender { name: "ambit", program: PathBuf::from(program), arguments: &["ztunnel"] }
}

fn theirs(program: &str) -> Contender {
    Contender { name: "ztunnel", program: PathBuf::from(program), arguments: &["proxy", "ztunnel"] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn campaigns_are_read() {
        let arguments = parse("out rounds --ambit a --against z --rounds 3 --seconds 2 --phases memory,steady");
        let Ok(Arguments { command: Command::Rounds(rounds), .. }) = arguments else { panic!("{arguments:?}") };
        assert_eq!(rounds.contenders.iter().map(|contender| contender.name).collect::<Vec<_>>(), ["ambit", "ztunnel"]);
        assert_eq!((rounds.rounds, rounds.time), (3, Duration::from_secs(2)));
        assert_eq!(rounds.phases, [("memory", Phase::Memory), ("steady", Phase::Steady)]);
    }

    #[test]
    fn what_is_not_meant_is_refused() {
        for wrong in [
            "out",
            "out rounds",
            "out rounds --ambit",
            "out rounds --ambit a --rounds 0",
            "out rounds --ambit a --seconds 900",
            "out rounds --ambit a --phases stedy",
            "out costs more",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
