//! One answer of Envoy against the engine's decision.

use std::collections::BTreeMap;

use ambit_policy::{Decision, PathNormalization, Stricter};

use crate::{
    case::{PolicySet, Request},
    engine::Engine,
    wire::Answer,
};

/// What came of one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The same verdict.
    Same,
    /// Denied where Envoy allows, on purpose: the named group of `docs/differences-from-istio.md`.
    Stricter(Stricter),
    /// Envoy answered with this status before any policy was asked.
    NotJudged(u16),
    /// Another verdict. This must not be.
    Different(Difference),
}

/// Two verdicts.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub envoy_allows: bool,
    /// How the engine read paths.
    pub paths: PathNormalization,
    pub ours: Decision,
}

/// How the comparison goes.
#[derive(Debug, Default)]
pub struct Tally {
    pub allowed: usize,
    pub denied: usize,
    pub stricter: BTreeMap<Stricter, usize>,
    pub not_judged: BTreeMap<u16, usize>,
    pub different: usize,
    /// Judged a second time, with no mode set: denied under another reading of the path than Envoy's.
    pub other_reading: usize,
}

/// Compares; with paths in mode BASE, a second time as the engine judges where no mode is set.
pub fn compare(set: &PolicySet, engine: &Engine<'_>, request: &Request, answer: Answer, tally: &mut Tally) -> Outcome {
    let envoy_allows = match answer {
        Answer::Allowed => true,
        Answer::Denied => false,
        Answer::Refused(status) => {
            *tally.not_judged.entry(status).or_default() += 1;
            return Outcome::NotJudged(status);
        }
    };
    let ours = engine.decide(request, set.paths);
    let differs = |paths, ours| Outcome::Different(Difference { envoy_allows, paths, ours });
    let outcome = match (envoy_allows, ours.is_allowed()) {
        (theirs, ours) if theirs == ours => Outcome::Same,
        (false, _) => differs(set.paths, ours.clone()),
        (true, _) => {
            let group = engine.why_stricter(request, set.paths);
            group.map_or_else(|| differs(set.paths, ours.clone()), Outcome::Stricter)
        }
    };
    match &outcome {
        Outcome::Same if envoy_allows => tally.allowed += 1,
        Outcome::Same => tally.denied += 1,
        Outcome::Stricter(group) => *tally.stricter.entry(*group).or_default() += 1,
        Outcome::NotJudged(_) => {}
        Outcome::Different(_) => tally.different += 1,
    }
    if outcome == Outcome::Same && set.is_http && set.paths == PathNormalization::Base {
        let paths = PathNormalization::AllReadings;
        let default = engine.decide(request, paths);
        if ours.is_allowed() != default.is_allowed() {
            // Only the rule itself may make the difference, and only to deny.
            if !ours.is_allowed() || engine.why_stricter(request, paths) != Some(Stricter::AllReadings) {
                tally.different += 1;
                return differs(paths, default);
            }
            tally.other_reading += 1;
        }
    }
    outcome
}
