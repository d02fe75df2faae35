//! Ambit's node proxy and a real ztunnel, both ways, with Ambit's CA and xDS serving both: the same bytes have to arrive
//! and the same policies have to hold, whoever stands at either end.

mod cases;
mod exchanges;
mod golden;
mod server;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use ambit_node::{Capture, Node};

use crate::{
    configuration::{SERVER_NAMESPACE, two_pods},
    control::ControlPlane,
    place::Place,
    pods::{Pod, Ports},
    proxy::Contender,
    stage::{Scene, Stage},
};
use cases::{CASES, Case, From};
use exchanges::EXCHANGES;

/// How long a policy may take from the control plane into both proxies.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one question to a proxy may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(2);
const ADMIN_PORT: u16 = 15000;
/// A pod that is not in the mesh.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);
/// Ports of the server.
pub(crate) const PORTS: [u16; 4] = [server::ECHO, server::TALLY, server::GREETING, server::CLOSED];

/// Runs everything with every pair of proxies and prints what differs from what is expected.
pub(crate) fn run(node: &Node, contenders: &[Contender; 2], out: &Path, host_pid: u32) -> Result<(), String> {
    let place = Place::new(out, host_pid)?;
    let control = ControlPlane::start(&place.runtime, &place.run)?;
    let [ours, theirs] = contenders;
    let mut wrong = Vec::new();
    let mut verdicts = Vec::new();
    for pair in [[ours, theirs], [theirs, ours], [ours, ours], [theirs, theirs]] {
        let [from, to] = pair;
        println!("\n{} to {}", from.name, to.name);
        control.serve(&two_pods(&PORTS, &[], &[]))?;
        let mut failures = Vec::new();
        let scene = Scene { proxies: Some(pair), ports: Ports::Wide, server_captured: true, environment: &[] };
        let director = place.director(node, &control);
        let stage = director.set(scene)?;
        let result = stage.server.run_beside(server::run, || {
            exchange(&stage, &mut failures);
            Ok(())
        });
        director.strike(stage)?;
        result.map_err(|error| error.to_string())?;
        let judged = policies(&place, node, &control, scene)?;
        for (case, verdict) in CASES.iter().zip(&judged) {
            if *verdict != case.allowed {
                failures.push(format!("{}: expected {}, got {}", case.name, word(case.allowed), word(*verdict)));
            }
        }
        println!("{} exchanges and {} policies, {} wrong", EXCHANGES.len(), CASES.len(), failures.len());
        wrong.extend(failures.into_iter().map(|failure| format!("{} to {}: {failure}", from.name, to.name)));
        verdicts.push((from.name, to.name, judged));
    }
    report(&verdicts);
    wrong.extend(golden::run(&place, node, &control, contenders)?);
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} differ:\n{}", wrong.len(), wrong.join("\n"))) }
}

fn exchange(stage: &Stage, failures: &mut Vec<String>) {
    for (name, check) in EXCHANGES {
        let outcome = stage.client.run(check);
        println!("  {name}: {}", outcome.as_ref().map_or_else(ToString::to_string, |()| "yes".to_owned()));
        if let Err(error) = outcome {
            failures.push(format!("{name}: {error}"));
        }
    }
}

/// The verdict on every case, each on a connection made once the server's proxy has its policies.
fn policies(place: &Place, node: &Node, control: &ControlPlane, scene: Scene<'_>) -> Result<Vec<bool>, String> {
    let stage = place.director(node, control).set(scene)?;
    let outside = Pod::new(node, "outside", OUTSIDE, Capture::None)?;
    let judged = stage.server.run_beside(server::run, || {
        CASES.iter().enumerate().map(|(index, case)| judge(&stage, &outside, control, index, case)).collect()
    });
    place.director(node, control).strike(stage)?;
    place.runtime.block_on(outside.remove())?;
    judged.map_err(|error: io::Error| error.to_string())
}

fn judge(stage: &Stage, outside: &Pod, control: &ControlPlane, index: usize, case: &Case) -> io::Result<bool> {
    // A policy that matches nothing: when the proxy lists it, it has the others of the same push as well.
    let marker = format!("marker-{index}");
    let mut all = case.policies();
    all.push(format!(
        "{{name: {marker}, namespace: {SERVER_NAMESPACE}, scope: WorkloadSelector, action: Deny, dryRun: false, \
         rules: [[[{{destinationPorts: [1]}}]]]}}"
    ));
    let selected = case.selected();
    control.serve(&two_pods(&PORTS, &all, &selected)).map_err(io::Error::other)?;
    let [_, proxy] = stage.proxies.as_slice() else { return Err(io::Error::other("two proxies are needed")) };
    let deadline = Instant::now() + PUSH_TIMEOUT;
    while !proxy.pod().run(|| lists(&marker, &selected))? {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{}: its policies don't arrive", case.name)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let client = match case.from {
        From::Client => &stage.client,
        From::Outside => outside,
    };
    let allowed = client.run(|| Ok(exchanges::answers(case.port)))?;
    println!("  {}: {}", case.name, word(allowed));
    Ok(allowed)
}

/// Whether the proxy in this network has a policy of this name, and its pod has the selected ones.
fn lists(marker: &str, selected: &[String]) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)), ADMIN_TIMEOUT)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    stream.write_all(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((_, dump)) = answer.split_once("\r\n\r\n") else { return Ok(false) };
    let dump: serde_json::Value = serde_json::from_str(dump).map_err(io::Error::other)?;
    let entries = |key: &str| dump[key].as_array().cloned().unwrap_or_default();
    let has_marker = entries("policies").iter().any(|policy| policy["name"] == marker);
    let server = entries("workloads").into_iter().find(|workload| workload["name"] == "server").unwrap_or_default();
    let attached = server["authorizationPolicies"].as_array().map_or(0, Vec::len);
    Ok(has_marker && attached == selected.len())
}

/// Cases in which the two programs, as servers, judge differently.
fn report(verdicts: &[(&str, &str, Vec<bool>)]) {
    println!("\npolicies by pair of proxies, of {}:", CASES.len());
    for (from, to, judged) in verdicts {
        let allowed = judged.iter().filter(|allowed| **allowed).count();
        println!("  {from} to {to}: {allowed} allowed, {} denied", judged.len() - allowed);
    }
    for (index, case) in CASES.iter().enumerate() {
        let mut each = verdicts.iter().map(|(_, _, judged)| judged[index]);
        let first = each.next();
        if each.any(|verdict| Some(verdict) != first) {
            println!("  they disagree on: {}", case.name);
        }
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}
