//! The golden cases of L4 at the destination: policies and connections with the verdict that a real Envoy gave
//! (`tests/data`), each put to a node proxy by tunnels of the case's own identity, address and port.

mod ask;
mod cases;

use std::{
    collections::BTreeMap,
    fmt::Write,
    io,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_node::{Capture, Node};

use super::lists;
use crate::{
    agent::Workload,
    configuration::SERVER_NODE,
    control::ControlPlane,
    place::Place,
    pods::{Pod, SERVER},
    proxy::{Contender, Proxy, Start},
};
use ask::Asker;
use cases::{Golden, Set};

/// Where the golden cases' connections come from, unless they say another address.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// Who answers.
pub(super) const SERVER_ACCOUNT: (&str, &str) = ("default", "server");
const SERVER_PROXY: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 2);
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Fewer cases than this would mean that it passes by leaving out.
const MIN_CASES: usize = 500;

/// What one program said to every case, by the case's id.
type Verdicts = BTreeMap<String, bool>;

/// Puts every case to each program as the destination's proxy; what differs from what is expected.
pub(super) fn run(
    place: &Place,
    node: &Node,
    control: &ControlPlane,
    contenders: &[Contender; 2],
) -> Result<Vec<String>, String> {
    let golden = Golden::read()?;
    let count: usize = golden.sets.iter().map(|set| set.cases.len()).sum();
    println!("\ngolden cases of L4: {count} of {} policies", golden.sets.len());
    for (why, count) in &golden.left_out {
        println!("  {count} left out: {why}");
    }
    if count < MIN_CASES {
        return Err(format!("only {count} golden cases are left"));
    }
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    for contender in contenders {
        let started = Instant::now();
        let verdicts = judged_by(place, node, control, contender, &golden)?;
        let (summary, faults) = compare(contender, &golden, &verdicts);
        println!("  {} as destination: {summary}, in {:.0} s", contender.name, started.elapsed().as_secs_f64());
        wrong.extend(faults);
        all.push(verdicts);
    }
    let differ = all[0].iter().filter(|(id, verdict)| all[1].get(*id) != Some(verdict)).count();
    println!("  enforced alike by both: {} of {count}", count - differ);
    Ok(wrong)
}

fn judged_by(
    place: &Place,
    node: &Node,
    control: &ControlPlane,
    contender: &Contender,
    golden: &Golden,
) -> Result<Verdicts, String> {
    control.serve(&mesh(""))?;
    let client = Pod::new(node, "client", CLIENT, Capture::None)?;
    let server = Pod::new(node, "server", SERVER, Capture::Mesh)?;
    let director = place.director(node, control);
    let proxy = Proxy::start(
        node,
        &Start {
            contender,
            node: SERVER_NODE,
            ip: SERVER_PROXY,
            workloads: &[Workload { name: SERVER_ACCOUNT.1, namespace: SERVER_ACCOUNT.0, network: server.network() }],
            environment: &control.environment(),
            run: director.run,
            logs: director.logs,
        },
    )?;
    let judged = judge_all(place, control, golden, (&client, &server, &proxy));
    for pod in [proxy.stop(), client, server] {
        place.runtime.block_on(pod.remove())?;
    }
    judged.map_err(|error| format!("{}: {error}", contender.name))
}

fn judge_all(
    place: &Place,
    control: &ControlPlane,
    golden: &Golden,
    (client, server, proxy): (&Pod, &Pod, &Proxy),
) -> io::Result<Verdicts> {
    for ip in golden.addresses() {
        client.ip(&["address", "add", &format!("{ip}/32"), "dev", "eth0"])?;
        server.ip(&["route", "add", &format!("{ip}/32"), "dev", "eth0"])?;
    }
    let _inside = place.runtime.enter();
    let _applications = ask::serve(server, golden.ports())?;
    let asker = Asker::new(control.certificates(), client);
    let mut verdicts = Verdicts::new();
    for (index, set) in golden.sets.iter().enumerate() {
        push(control, proxy, index, set)?;
        for case in &set.cases {
            let verdict = place.runtime.block_on(asker.ask(case));
            let verdict = verdict.map_err(|error| io::Error::other(format!("{}: {error}", case.id)))?;
            verdicts.insert(case.id.clone(), verdict);
        }
    }
    Ok(verdicts)
}

/// Serves the set's policies, and waits until the proxy has them.
fn push(control: &ControlPlane, proxy: &Proxy, index: usize, set: &Set) -> io::Result<()> {
    let marker = format!("golden-{index}");
    control.serve_with(&mesh(&marker), &set.policies).map_err(io::Error::other)?;
    let deadline = Instant::now() + PUSH_TIMEOUT;
    while !proxy.pod().run(|| lists(&marker, &[]))? {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{}: it doesn't arrive", set.name)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The server alone, and a policy that matches nothing: when the proxy lists it, it has the others of the same push.
fn mesh(marker: &str) -> String {
    let (namespace, account) = SERVER_ACCOUNT;
    let mut text = format!(
        "workloads:\n- {{uid: \"Kubernetes//Pod/{namespace}/{account}\", name: {account}, namespace: {namespace}, \
         trustDomain: cluster.local, serviceAccount: {account}, workloadIps: [\"{SERVER}\"], protocol: HBONE, \
         node: {SERVER_NODE}, network: \"\", clusterId: Kubernetes, services: {{}}}}\nservices: []\n"
    );
    let _infallible = if marker.is_empty() {
        writeln!(text, "policies: []")
    } else {
        writeln!(
            text,
            "policies:\n- {{name: {marker}, namespace: {namespace}, scope: WorkloadSelector, action: Deny, \
             dryRun: false, rules: [[[{{destinationPorts: [1]}}]]]}}"
        )
    };
    text
}

/// What came of all cases in short, and what is wrong. A proxy that knows no more than groups may be stricter where a
/// policy says what groups can't.
fn compare(contender: &Contender, golden: &Golden, verdicts: &Verdicts) -> (String, Vec<String>) {
    let (mut agreed, mut stricter) = (0, 0);
    let mut wrong = Vec::new();
    for set in &golden.sets {
        for case in &set.cases {
            let verdict = verdicts.get(&case.id).copied();
            let may_be_stricter = contender.name != crate::arguments::OURS && set.beyond_groups;
            match verdict {
                Some(verdict) if verdict == case.allowed => agreed += 1,
                Some(false) if may_be_stricter => stricter += 1,
                other => wrong.push(format!(
                    "golden case {} at {}: Envoy {}, here {:?}; {:?} from {} to port {}",
                    case.id,
                    contender.name,
                    super::word(case.allowed),
                    other.map(super::word),
                    case.peer,
                    case.source,
                    case.port
                )),
            }
        }
    }
    let summary = format!(
        "{agreed} as Envoy, {stricter} stricter where groups can't say what the policy says, {} wrong",
        wrong.len()
    );
    (summary, wrong)
}

/// So that a set's resources are made once.
pub(super) type Policies = Arc<[ambit_xds::Resource]>;
