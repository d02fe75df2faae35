//! One size: built, pushed, changed.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_mesh::{
    Index,
    attachment::EnforcementPoint,
    inputs::{Change, Inputs, Settings},
};
use ambit_xds::server::Resources;
use serde_json::{Value, json};

use crate::{
    clients::{Listener, Wire, bytes},
    objects,
};

/// Changes of each kind that are measured.
const CHANGES: usize = 21;
/// Policies that a workload's are selected from, and the size at which that is measured.
const POLICIES: usize = 10_000;
const SELECTED_AT: usize = 100_000;
/// Clients at a time, where there are many.
const MANY: usize = 100;
/// The largest mesh that many clients are measured with: each of them holds names and versions of all.
const MANY_AT_MOST: usize = 10_000;

/// Everything about a mesh of this size.
pub async fn measure(workloads: usize) -> Result<Value, String> {
    let changes = objects::mesh(workloads)?;
    let before = resident_mib()?;
    let start = Instant::now();
    let mut index = Index::new(Settings::default());
    let deltas = index.apply(changes);
    let resources = Resources::new();
    resources.apply(&deltas);
    let build = start.elapsed();
    let all = bytes(&deltas);
    drop(deltas);
    let memory = resident_mib()? - before;
    let select = if workloads == SELECTED_AT { json!(select_us()?) } else { Value::Null };

    let wire = Wire::serve(&resources).await?;
    let start = Instant::now();
    let mut one = vec![wire.listen(0, false)?];
    one[0].until(all).await?;
    let first_push = start.elapsed();
    let pod = |turn: usize| Ok(objects::pod(7, turn % 2 == 1));
    let policy = |turn: usize| objects::policy(3, &format!("cluster.local/ns/a/sa/x{}", turn % 2));
    // One in a namespace without a waypoint, whose pods name it.
    let selecting = |turn: usize| objects::policy(13, &format!("cluster.local/ns/a/sa/x{}", turn % 2));
    let (pod_ms, pod_bytes) = change(&mut index, &resources, &mut one, pod).await?;
    let (_, _) = change(&mut index, &resources, &mut one, policy).await?;
    let (policy_ms, policy_bytes) = change(&mut index, &resources, &mut one, selecting).await?;
    let label = |turn: usize| Ok(objects::namespace(1, turn.is_multiple_of(2)));
    let (label_ms, label_bytes) = change(&mut index, &resources, &mut one, label).await?;
    let mut pod_ms_100 = Value::Null;
    if workloads <= MANY_AT_MOST {
        let now: usize = bytes(&index.snapshot());
        let mut many = Vec::new();
        for number in 1..=MANY {
            many.push(wire.listen(number, false)?);
        }
        for listener in &mut many {
            listener.until(now).await?;
        }
        pod_ms_100 = json!(change(&mut index, &resources, &mut many, pod).await?.0);
    }
    Ok(json!({
        "workloads": workloads, "build_s": build.as_secs_f64(), "memory_mib": memory, "bytes": all,
        "first_push_s": first_push.as_secs_f64(), "pod_ms": pod_ms, "pod_bytes": pod_bytes, "policy_ms": policy_ms,
        "policy_bytes": policy_bytes, "label_ms": label_ms, "label_bytes": label_bytes, "pod_ms_100": pod_ms_100, "select_us": select,
    }))
}

/// Median time from a change until all who listen have it, in ms, and the bytes of one.
async fn change(
    index: &mut Index,
    resources: &Arc<Resources>,
    listeners: &mut [Listener],
    change: impl Fn(usize) -> Result<Change, String>,
) -> Result<(f64, usize), String> {
    let (mut times, mut size) = (Vec::new(), 0);
    for turn in 0..CHANGES {
        let change = change(turn)?;
        // Nothing else is under way.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let had: Vec<_> = listeners.iter().map(Listener::bytes).collect();
        let start = Instant::now();
        let deltas = index.apply([change]);
        resources.apply(&deltas);
        size = bytes(&deltas);
        if size == 0 {
            // What only waypoints are told.
            continue;
        }
        for (listener, had) in listeners.iter_mut().zip(had) {
            listener.until(had + size).await?;
        }
        times.push(start.elapsed());
    }
    Ok((median(times), size))
}

/// Median time to select a workload's policies of 10,000 in its namespace, in us.
fn select_us() -> Result<f64, String> {
    let mut inputs = Inputs::new(Settings::default());
    for index in 0..POLICIES {
        inputs.apply(objects::selecting(index)?);
    }
    let mut times = Vec::new();
    // Spread, so that neighbours in the maps don't follow each other.
    for turn in 0..2_001 {
        let Change::Pod(name, Some(pod)) = objects::pod((turn * 7_919 % POLICIES) * objects::PER_SERVICE, true) else {
            continue;
        };
        let point = EnforcementPoint::NodeProxy { namespace: objects::SELECTED, labels: &pod.labels };
        let start = Instant::now();
        let selected = black_box(inputs.enforced_at(&point)).len();
        times.push(start.elapsed());
        if selected != 1 {
            return Err(format!("{name} has {selected} policies"));
        }
    }
    Ok(median(times) * 1000.0)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// Memory of this process, in MiB.
pub fn resident_mib() -> Result<f64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|error| format!("VmRSS: {error}"))?;
    Ok(kib / 1024.0)
}
