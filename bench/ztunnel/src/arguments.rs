//! The command line. `cargo xtask bench ztunnel` is what people call.

use std::{path::PathBuf, time::Duration};

use crate::{phases::Phase, proxy::Contender, soak::Soak};

const USAGE: &str =
    "usage: ambit-bench-ztunnel OUT rounds [--ambit PATH] [--against PATH] [--rounds N] [--long-rounds N] \
                     [--seconds S] [--patience S] [--phases steady,connect,tunnels,sustained,memory,choice]
       ambit-bench-ztunnel OUT costs
       ambit-bench-ztunnel OUT interop --ambit PATH --against PATH
       ambit-bench-ztunnel OUT soak --ambit PATH [--seconds S] [--grace-ms MS]

OUT is the folder for figures and logs. `sustained`, `memory` and `choice` take long: only the first rounds, as many as
--long-rounds says, have them.";

/// How tables name our own program.
pub(crate) const OURS: &str = "ambit";
/// How they name the other.
pub(crate) const THEIRS: &str = "ztunnel";
/// Rounds where none are asked for.
const ROUNDS: usize = 5;
/// Rounds that have the long phases, where no number is asked for.
const LONG_ROUNDS: usize = 3;
/// Seconds of a steady figure.
const SECONDS: f64 = 2.0;
/// How long a figure waits for an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a soak lasts where nothing is asked for, and how long after a change either verdict is right.
const SOAK: Duration = Duration::from_secs(15 * 60);
const GRACE: Duration = Duration::from_millis(100);

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
    Soak(Soak),
}

/// A campaign.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// In the order they take turns.
    pub(crate) contenders: Vec<Contender>,
    pub(crate) rounds: usize,
    /// How many of them have the long phases.
    pub(crate) long_rounds: usize,
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
            ("soak", ["--ambit", ambit, rest @ ..]) => Command::Soak(soak(ambit, rest)?),
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
            long_rounds: LONG_ROUNDS,
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
                "--long-rounds" => this.long_rounds = value.parse().map_err(|_| wrong())?,
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

fn soak(ambit: &str, mut rest: &[&str]) -> Result<Soak, String> {
    let mut soak = Soak { ambit: ours(ambit), time: SOAK, grace: GRACE };
    while let [name, value, more @ ..] = rest {
        rest = more;
        let number: u64 = value.parse().map_err(|_| format!("`{value}` is no value for {name}\n\n{USAGE}"))?;
        match *name {
            "--seconds" if number > 0 => soak.time = Duration::from_secs(number),
            "--grace-ms" => soak.grace = Duration::from_millis(number),
            _ => return Err(USAGE.to_owned()),
        }
    }
    if rest.is_empty() { Ok(soak) } else { Err(USAGE.to_owned()) }
}

fn ours(program: &str) -> Contender {
    Contender { name: OURS, program: PathBuf::from(program), arguments: &["ztunnel"] }
}

fn theirs(program: &str) -> Contender {
    Contender { name: THEIRS, program: PathBuf::from(program), arguments: &["proxy", "ztunnel"] }
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
    fn soaks_are_read() {
        let arguments = parse("out soak --ambit a --seconds 20");
        let Ok(Arguments { command: Command::Soak(soak), .. }) = arguments else { panic!("{arguments:?}") };
        assert_eq!((soak.time, soak.grace), (Duration::from_secs(20), GRACE));
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
            "out soak --ambit a --seconds",
            "out soak --ambit a --seconds 0",
            "out soak --ambit a --seconds 5 --grace 5",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
