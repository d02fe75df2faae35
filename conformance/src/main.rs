//! Random policies and requests through a real Envoy and through the engine: any difference is a failure, shown with the
//! least case that still differs. `cargo xtask conformance envoy` finds an Envoy and runs this.
#![forbid(unsafe_code)]

mod authorizer;
mod case;
mod compare;
mod config;
mod engine;
mod envoy;
mod generate;
mod minimise;
mod random;
mod report;
mod token;
mod wire;

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use case::{PolicySet, Request};
use compare::{Outcome, Tally, compare};
use engine::Engine;
use envoy::Installation;
use minimise::{Problem, minimise};
use random::Random;

const USAGE: &str = "usage: ambit-conformance --envoy BINARY --output FOLDER [--requests N] [--seed S]";
/// Requests where the command line doesn't say.
const REQUESTS: usize = 5_000;
/// Requests to one set of policies.
const REQUESTS_PER_SET: usize = 60;
/// Sets that one Envoy enforces.
const SETS_PER_START: usize = 100;
/// Differences that are minimised; more are counted.
const MAX_PROBLEMS: usize = 12;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    envoy: PathBuf,
    output: PathBuf,
    requests: usize,
    seed: u64,
}

/// True if nothing differs.
fn run() -> Result<bool, String> {
    let arguments = arguments()?;
    println!("seed {}", arguments.seed);
    let folder = arguments.output.clone();
    fs::create_dir_all(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    let authorizer = authorizer::start().map_err(|error| format!("no external authorizer: {error}"))?;
    let installation = Installation { binary: arguments.envoy, folder: folder.clone(), authorizer };
    let start = Instant::now();
    let mut random = Random::new(arguments.seed);
    let mut report = report::Report::new(arguments.requests);
    let mut problems: Vec<Problem> = Vec::new();
    while report.requests < arguments.requests {
        let scenes = scenes(&mut random, arguments.requests - report.requests, &mut report.refused);
        let sets: Vec<_> = scenes.iter().map(|(set, _)| set.clone()).collect();
        let envoy = installation.start(&sets)?;
        for (index, (set, requests)) in scenes.iter().enumerate() {
            let answers = envoy.answers(index, set.is_http, requests)?;
            let found = judge(set, requests, &answers, &mut report.tally)?;
            // One of each set: the others are likely to be the same.
            problems.extend(found.into_iter().next());
            report.sets += 1;
            report.requests += requests.len();
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    println!("{report}");
    let folder = report::Failures::new(&folder)?;
    for (index, problem) in problems.into_iter().take(MAX_PROBLEMS).enumerate() {
        folder.write(index, &minimise(&installation, problem)?)?;
    }
    report.passed()
}

/// Sets of policies, with requests to each: as many as one Envoy takes, and no more requests than this.
fn scenes(
    random: &mut Random,
    requests: usize,
    refused: &mut BTreeMap<String, usize>,
) -> Vec<(PolicySet, Vec<Request>)> {
    let mut scenes = Vec::new();
    let mut left = requests;
    while left > 0 && scenes.len() < SETS_PER_START {
        let (mut set, requests) = generate::scene(random, REQUESTS_PER_SET.min(left));
        // What the engine refuses as a whole, Envoy isn't asked about.
        while let Err(error) = Engine::new(&set) {
            let before = set.policies.len();
            set.policies.retain(|policy| policy.name != *error.policy.name);
            *refused.entry(report::kind_of(&error)).or_default() += 1;
            if set.policies.len() == before {
                set.policies.clear();
            }
        }
        left -= requests.len();
        scenes.push((set, requests));
    }
    scenes
}

fn judge(
    set: &PolicySet,
    requests: &[Request],
    answers: &[wire::Answer],
    tally: &mut Tally,
) -> Result<Vec<Problem>, String> {
    let engine = Engine::new(set).map_err(|error| error.to_string())?;
    let mut problems = Vec::new();
    for (request, answer) in requests.iter().zip(answers) {
        if let Outcome::Different(difference) = compare(set, &engine, request, *answer, tally) {
            problems.push(Problem { set: set.clone(), request: request.clone(), difference });
        }
    }
    Ok(problems)
}

fn arguments() -> Result<Arguments, String> {
    let (mut envoy, mut output, mut requests, mut seed) = (None, None, REQUESTS, None);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let number = || value.replace([',', '_'], "").parse::<u64>().map_err(|_| format!("`{value}` isn't a number"));
        match argument.as_str() {
            "--envoy" => envoy = Some(PathBuf::from(value)),
            "--output" => output = Some(PathBuf::from(value)),
            "--requests" => requests = usize::try_from(number()?).map_err(|error| error.to_string())?,
            "--seed" => seed = Some(number()?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (Some(envoy), Some(output)) = (envoy, output) else { return Err(USAGE.to_owned()) };
    Ok(Arguments { envoy, output, requests, seed: seed.unwrap_or(now) })
}
