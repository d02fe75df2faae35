//! Traffic: the example's verdicts, changes of policy, a control plane that comes and goes, and a successor.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    control_plane::Serving,
    mesh::{NAMESPACE, OTHER_VIP, VIP, WAYPOINT, gateway, gateway_named, policy_of},
    world::{World, exchange},
};

const TRACES: &str = "POST /v1/traces";

#[tokio::test]
async fn the_example_holds_and_operators_see_it() {
    let world = World::with(vec![gateway(true), gateway_named("another", true)]).await;
    let process = world.serve(&[]).await;
    for (who, request, status) in [
        ("otel-collector", TRACES, 200),
        ("otel-collector", "GET /v1/traces", 403),
        ("otel-collector", "POST /v1/traces/x", 403),
        ("kagenti-ui", "GET /", 403),
        ("intruder", TRACES, 403),
    ] {
        assert_eq!(world.status(who, request).await, status, "{who} {request}");
    }
    assert_eq!(*world.app.asked.borrow(), 1, "only what is allowed reaches the server");
    // What isn't bound to it, and what nobody knows.
    for ip in [OTHER_VIP, [10, 96, 0, 99].into()] {
        let error = world.tunnel(&world.pool(), "otel-collector", ip).await.expect_err("it isn't served");
        assert!(error.to_string().contains("404"), "{ip}: {error}");
    }
    // A denial is a line, a request that is let pass isn't.
    let line = process.logged("\"verdict\":\"deny\"").await;
    let record: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(record["enforcer"]["name"], format!("{NAMESPACE}/{WAYPOINT}"), "{line}");
    assert!(!process.log().contains("\"verdict\":\"allow\""), "{}", process.log());
    let metrics = process.stats("/stats/prometheus").await.expect("metrics");
    assert!(metrics.contains("istio_requests_total{") && metrics.contains("response_code=\"403\""), "{metrics}");
    assert_eq!(process.stats("/config_dump").await.expect("an answer"), "not found\n", "it is for the loopback's port");
    let dump: Value = serde_json::from_str(&process.admin("/config_dump").await).expect("JSON");
    assert!(dump.to_string().contains("mlflow-traces-from-otel"), "{dump}");
    assert!(!dump.to_string().contains(&format!("{NAMESPACE}/another")), "{dump}");
}

#[tokio::test]
async fn the_control_plane_learns_who_asks_and_signs_for_no_one_else() {
    let world = World::new().await;
    let _process = world.serve(&[]).await;
    let node = world.control.gate.nodes.lock().expect("no panic").first().cloned().expect("a stream");
    let id = format!("waypoint~{}~{WAYPOINT}-1.{NAMESPACE}~{NAMESPACE}.svc.cluster.local", world.waypoint);
    assert_eq!(node.id, id);
    let metadata = node.metadata.expect("metadata");
    for (name, value) in
        [("SERVICE_ACCOUNT", WAYPOINT), ("NAMESPACE", NAMESPACE), ("NAME", "mlflow-waypoint-1"), ("NODE_NAME", "node")]
    {
        assert_eq!(metadata.text(name), Some(value), "{name}");
    }
    let asked = world.control.gate.certificates.lock().expect("no panic").clone();
    assert!(!asked.is_empty() && asked.iter().all(Option::is_none), "{asked:?}");
}

#[tokio::test]
async fn changes_of_policy_take_effect_on_open_connections() {
    let world = World::new().await;
    let _process = world.serve(&[]).await;
    let mut tunnel = world.tunnel(&world.pool(), "kagenti-ui", VIP).await.expect("a tunnel");
    assert_eq!(exchange(&mut tunnel, "GET /").await.expect("an answer").0, 403);
    world.control.change([policy_of("multiple-rules.yaml")]);
    world.until_status("kagenti-ui", "GET /", 200).await;
    assert_eq!(exchange(&mut tunnel, "GET /").await.expect("an answer").0, 200);
    let ambit_mesh::inputs::Change::Policy(name, _) = policy_of("multiple-rules.yaml") else { panic!("a policy") };
    world.control.change([ambit_mesh::inputs::Change::Policy(name, None)]);
    world.until_status("kagenti-ui", "GET /", 403).await;
    assert_eq!(exchange(&mut tunnel, "GET /").await.expect("an answer").0, 403);
}

#[tokio::test]
async fn a_control_plane_that_restarts_disturbs_nobody() {
    let mut world = World::new().await;
    let mut process = world.serve(&[]).await;
    let mut tunnel = world.tunnel(&world.pool(), "otel-collector", VIP).await.expect("a tunnel");
    assert_eq!(exchange(&mut tunnel, TRACES).await.expect("an answer").0, 200);
    world.control.stop().await;
    process.logged("what is known stays in force").await;
    // Open connections and new ones, allowed and denied.
    assert_eq!(exchange(&mut tunnel, TRACES).await.expect("an answer").0, 200);
    assert_eq!(world.status("otel-collector", TRACES).await, 200);
    assert_eq!(world.status("intruder", TRACES).await, 403);
    assert_eq!(process.readiness().await.expect("an answer"), "ready\n");
    // What changed meanwhile is in force once it is back.
    world.control.change([policy_of("multiple-rules.yaml")]);
    world.control.resume(Serving::Everything).await;
    world.until_status("kagenti-ui", "GET /", 200).await;
    assert_eq!(exchange(&mut tunnel, TRACES).await.expect("an answer").0, 200);
    process.ready().await;
}

#[tokio::test]
async fn the_last_good_state_serves_while_the_control_plane_tells_nothing() {
    let mut world = World::new().await;
    let state = world.control.path("state");
    let settings = [("AMBIT_XDS_STATE_FILE", state.display().to_string())];
    let process = world.serve(&settings).await;
    // Written once all has been quiet for a while.
    crate::world::soon(async {
        while !state.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    process.signal(Signal::KILL);
    drop(process);
    world.control.stop().await;
    world.control.resume(Serving::CertificatesOnly).await;
    let mut process = world.start("second.log", &settings);
    process.ready().await;
    assert_eq!(world.status("otel-collector", TRACES).await, 200);
    assert_eq!(world.status("intruder", TRACES).await, 403);
}

#[tokio::test]
async fn a_successor_takes_over_without_an_error() {
    let world = Arc::new(World::new().await);
    let mut first = world.serve(&[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
        async move {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(world.ask("otel-collector", TRACES).await);
            }
            answers
        }
    });
    let mut second = world.start("second.log", &[]);
    second.ready().await;
    first.signal(Signal::TERM);
    assert!(first.ended().await.success(), "{}", first.log());
    assert_eq!(world.status("otel-collector", TRACES).await, 200, "the second serves");
    stop.store(true, Ordering::Relaxed);
    let answers = asking.await.expect("no panic");
    let failed: Vec<_> =
        answers.iter().filter(|answer| !answer.as_ref().is_ok_and(|(status, _)| *status == 200)).collect();
    assert!(failed.is_empty(), "{failed:?} of {}", answers.len());
}
