//! A campaign: every phase of every round, the contenders in turn.

use std::path::Path;

use ambit_node::Node;

use crate::{
    arguments::Rounds,
    control::ControlPlane,
    machine,
    phases::Phase,
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
    let mut report = Report::new(machine::describe(), rounds.time.as_secs_f64());
    let name_of = |name| rounds.contenders.iter().map(|contender| contender.name).find(|have| *have == name);
    let (ours, theirs) = (name_of("ambit").unwrap_or("ambit"), name_of("ztunnel"));
    for round in 1..=rounds.rounds {
        for (name, phase) in &rounds.phases {
            if matches!(phase, Phase::Steady | Phase::Connect) {
                eprintln!("round {round}, {name}, {DIRECT}");
                report.add(round, DIRECT, phase.run(director, None, rounds.time, rounds.patience)?);
            }
            // Who begins changes from round to round.
            let mut contenders: Vec<_> = rounds.contenders.iter().collect();
            contenders.rotate_left((round - 1) % rounds.contenders.len());
            for contender in contenders {
                eprintln!("round {round}, {name}, {}", contender.name);
                match phase.run(director, Some(contender), rounds.time, rounds.patience) {
                    Ok(figures) => report.add(round, contender.name, figures),
                    // One lost figure must not cost the others.
                    Err(message) => eprintln!("{name} of {}: {message}", contender.name),
                }
                report.write(file).map_err(|error| format!("`{}`: {error}", file.display()))?;
            }
        }
        println!("\nafter round {round}: {}\n", report.table(ours, theirs));
    }
    println!("figures of every round: `{}`", file.display());
    Ok(())
}
