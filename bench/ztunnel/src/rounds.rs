//! A campaign: every phase of every round, the contenders in turn.

use std::path::Path;

use ambit_node::Node;

use crate::{
    arguments::{OURS, Rounds, THEIRS},
    control::ControlPlane,
    machine,
    place::Place,
    report::{DIRECT, Report},
    stage::Director,
};

/// Measures, prints the table after every round and writes `ztunnel.json` to `out`.
pub(crate) fn run(node: &Node, rounds: &Rounds, out: &Path, host_pid: u32) -> Result<(), String> {
    let place = Place::new(out, host_pid)?;
    let control = ControlPlane::start(&place.runtime, &place.run)?;
    let director = place.director(node, &control);
    campaign(&director, rounds, &out.join("ztunnel.json"))
}

fn campaign(director: &Director<'_>, rounds: &Rounds, file: &Path) -> Result<(), String> {
    let has_theirs = rounds.contenders.iter().any(|contender| contender.name == THEIRS);
    let mut report = Report::new(machine::describe(), rounds.time.as_secs_f64(), OURS, has_theirs.then_some(THEIRS));
    for round in 1..=rounds.rounds {
        for (name, phase) in &rounds.phases {
            if phase.is_long() && round > rounds.long_rounds {
                continue;
            }
            // Who begins changes from round to round.
            let mut contenders: Vec<_> = rounds.contenders.iter().map(Some).collect();
            contenders.rotate_left((round - 1) % rounds.contenders.len());
            if phase.has_direct() {
                contenders.insert(0, None);
            }
            for contender in contenders {
                let who = contender.map_or(DIRECT, |contender| contender.name);
                eprintln!("round {round}, {name}, {who}");
                // One lost figure must not cost the others; it is shown as lost, though.
                match phase.run(director, contender, rounds.time, rounds.patience) {
                    Ok(found) => report.add(round, who, *phase, found),
                    Err(reason) => report.fault(round, who, *phase, reason),
                }
                report.write(file).map_err(|error| format!("`{}`: {error}", file.display()))?;
            }
        }
        println!("\nafter round {round}: {}\n", report.table());
    }
    println!("figures of every round: `{}`", file.display());
    match report.faults() {
        0 => Ok(()),
        faults => Err(format!("{faults} measurements are invalid: connections failed; see below the table")),
    }
}
