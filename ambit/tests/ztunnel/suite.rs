//! The tests that run in the node process.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ambit_node::NodeProcess;

use crate::control_plane::{self, ControlPlane};
use crate::diagnosis;
use crate::dump::{dump, the_dump_has_what_istioctl_shows};
use crate::on_demand::proxies_that_know_nothing_ask;
use crate::own_pod::a_proxys_own_metrics_are_fetched_by_tunnel;
use crate::process::Ztunnel;
use crate::world::{
    APPLICATION, CLIENT, MESH, NodeSide, Outcome, PATIENCE, SERVICE, UNSET, World, echo, exchange, text,
};

/// How long one test may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(90);
/// The drain deadline of the rolling restart, as it is set and as it is.
const DEADLINE: (&str, Duration) = ("4s", Duration::from_secs(4));
/// Clients that connect all the time while proxies are replaced.
const LOAD: usize = 4;

/// A policy against the client.
pub(crate) const DENY_CLIENT: &str = r#"{
  "workloads": [], "services": [],
  "policies": [{"name": "no-client", "namespace": "test", "scope": "Namespace", "action": "Deny", "dryRun": false,
                "rules": [[[{"serviceAccounts": [{"namespace": "test", "serviceAccount": "client"}]}]]]}]
}"#;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// Runs all tests, one after the other, or those with one of the names' parts in the filter, which commas separate.
pub(crate) async fn run(process: NodeProcess, folder: PathBuf, filter: Option<String>) -> ExitCode {
    let world = match World::new(process, &folder) {
        Ok(world) => world,
        Err(error) => {
            println!("FAILED: can't make a world: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = false;
    macro_rules! test {
        ($($name:ident),+ $(,)?) => {$(
            if filter.as_deref().is_none_or(|filter| filter.split(',').any(|part| stringify!($name).contains(part))) {
                let started = Instant::now();
                let result = tokio::time::timeout(TEST_TIMEOUT, $name(&world)).await;
                let result = result.unwrap_or(Err("took too long".to_owned()));
                let verdict = result.as_ref().map_or_else(|why| format!("FAILED: {why}"), |()| "ok".to_owned());
                println!("test {} ... {verdict} ({:?})", stringify!($name), started.elapsed());
                if result.is_err() {
                    failed = true;
                    // It may have left its pods with the agents.
                    world.client.agent.remove("client").await;
                    world.server.agent.remove("server").await;
                }
            }
        )+};
    }
    test!(
        traffic_goes_through_both_proxies_and_keeps_the_clients_address,
        readiness_says_what_is_pending,
        a_control_plane_steers_both_proxies,
        proxies_that_know_nothing_ask,
        operators_see_what_is_served_and_may_end_it,
        the_dump_has_what_istioctl_shows,
        a_pod_that_goes_away_during_a_drain_ends_at_once,
        a_rolling_restart_under_load_loses_nothing,
        a_proxys_own_metrics_are_fetched_by_tunnel,
    );
    use crate::refusal::refused_clients_read_why_and_both_logs_tell_of_them;
    test!(refused_clients_read_why_and_both_logs_tell_of_them);
    use crate::flood::{
        a_storm_of_handshakes_leaves_anothers_latency, slow_readers_leave_anothers_latency,
        ten_thousand_connections_leave_anothers_latency,
    };
    test!(
        ten_thousand_connections_leave_anothers_latency,
        a_storm_of_handshakes_leaves_anothers_latency,
        slow_readers_leave_anothers_latency,
    );
    use crate::weather::{
        a_dead_peer_is_noticed, a_partition_ends_connections_and_heals, certificates_last_while_the_ca_is_away,
        policy_stays_while_the_control_plane_is_away, what_is_sent_arrives_through_loss,
    };
    test!(
        what_is_sent_arrives_through_loss,
        a_partition_ends_connections_and_heals,
        a_dead_peer_is_noticed,
        policy_stays_while_the_control_plane_is_away,
        certificates_last_while_the_ca_is_away,
    );
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn traffic_goes_through_both_proxies_and_keeps_the_clients_address(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let (client, server) = world.start_both(&[]).await?;
    let mut stream = world.client.connect(SERVICE).await.map_err(text)?;
    let answer = exchange(&mut stream).await.map_err(|error| failure(&error, &[&client, &server]))?;
    ensure!(answer == format!("{CLIENT} hello\n"), "the server saw `{answer}`");
    let tunnels = sockets_on(&world.server, 15_008)?;
    ensure!(tunnels >= 1, "there is no tunnel into the server's pod");
    // The other way, to the pod's own address, by somebody who isn't in the mesh's view by that name.
    let mut direct = world.client.connect(APPLICATION).await.map_err(text)?;
    let answer = exchange(&mut direct).await.map_err(|error| failure(&error, &[&client, &server]))?;
    ensure!(answer == format!("{CLIENT} hello\n"), "by the pod's address the server saw `{answer}`");
    // The pod is gone: its connections end at once, and nobody takes new ones.
    world.server.agent.remove("server").await;
    let started = Instant::now();
    ensure!(exchange(&mut stream).await.is_err(), "a connection to a removed pod goes on");
    ensure!(started.elapsed() < Duration::from_secs(2), "it took {:?} to end", started.elapsed());
    ensure!(sockets_on(&world.server, 15_008)? == 0, "somebody still serves a removed pod");
    world.client.agent.remove("client").await;
    Ok(())
}

async fn readiness_says_what_is_pending(world: &World) -> Outcome {
    let mut proxy = world.start(&world.client, &[])?;
    proxy.ready(PATIENCE).await?;
    // A port in the pod is taken: the pod can't be served, and readiness says so until it can.
    let taken = world.client.socket().map_err(text)?;
    let port = std::net::SocketAddr::from(([0, 0, 0, 0], 15_008));
    taken.bind(&port.into()).map_err(text)?;
    taken.listen(1).map_err(text)?;
    let refused = world.client.serve_pod().await.expect_err("the port is taken");
    ensure!(refused.contains("15008"), "the agent hears `{refused}`");
    let body = proxy.readiness().await.map_err(text)?;
    ensure!(body == "not ready, pending: workload proxy manager\n", "`{body}`");
    let waits = &dump(&proxy).await?["workloadState"];
    let info = serde_json::json!({
        "name": "client", "namespace": "test", "trustDomain": "cluster.local", "serviceAccount": "client",
    });
    ensure!(*waits == serde_json::json!({"client": {"state": "Pending", "info": info}}), "{waits:#}");
    drop(taken);
    proxy.ready(PATIENCE).await?;
    let served = &dump(&proxy).await?["workloadState"];
    ensure!(served["client"]["state"] == "Up" && served["client"]["info"] == info, "{served:#}");
    world.client.agent.remove("client").await;
    Ok(())
}

/// Configuration by delta ADS and certificates from a CA, both over gRPC; a new policy cuts a live connection.
async fn a_control_plane_steers_both_proxies(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let control_plane = ControlPlane::new(MESH)?;
    let settings = [
        ("XDS_ADDRESS", control_plane::ADDRESS),
        ("CA_ADDRESS", control_plane::ADDRESS),
        ("LOCAL_XDS_PATH", UNSET),
        ("AMBIT_INSECURE_CA_DIR", UNSET),
    ];
    let (client_pod, server_pod) = (world.proxy_pod()?, world.proxy_pod()?);
    // Without a control plane a proxy waits for it.
    let mut client = world.start_in(&client_pod, &world.client, &settings)?;
    let mut server = world.start_in(&server_pod, &world.server, &settings)?;
    world.client.serve_pod().await?;
    world.server.serve_pod().await?;
    let body = client.readiness().await.map_err(text)?;
    ensure!(body == "not ready, pending: state manager\n", "`{body}`");
    let _served = (control_plane.serve_in(&client_pod)?, control_plane.serve_in(&server_pod)?);
    client.ready(PATIENCE).await?;
    server.ready(PATIENCE).await?;
    let mut stream = world.client.connect(SERVICE).await.map_err(text)?;
    let answer = exchange(&mut stream).await.map_err(|error| failure(&error, &[&client, &server]))?;
    ensure!(answer == format!("{CLIENT} hello\n"), "the server saw `{answer}`");
    control_plane.apply(DENY_CLIENT)?;
    let started = Instant::now();
    let mut rest = [0; 16];
    let cut = tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read(&mut stream, &mut rest)).await;
    ensure!(matches!(cut, Ok(Ok(0) | Err(_))), "a connection that is denied now goes on: {cut:?}");
    println!("  a denied connection was cut after {:?}", started.elapsed());
    let refused = async { exchange(&mut world.client.connect(SERVICE).await?).await };
    ensure!(refused.await.is_err(), "a new connection is let in against the policy");
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

async fn operators_see_what_is_served_and_may_end_it(world: &World) -> Outcome {
    let mut proxy = world.start(&world.client, &[("RUST_LOG", "info")])?;
    world.client.serve_pod().await?;
    proxy.ready(PATIENCE).await?;
    let metrics = proxy.ask(15_020, "GET /metrics").await.map_err(text)?;
    for line in ["workload_manager_active_proxy_count 1", "workload_manager_proxies_started_total 1"] {
        ensure!(metrics.contains(line), "`{line}` isn't in {metrics}");
    }
    let dump = proxy.ask(15_000, "GET /config_dump").await.map_err(text)?;
    let dump: serde_json::Value = serde_json::from_str(&dump).map_err(|error| format!("{error}: {dump}"))?;
    ensure!(dump["workloads"].as_array().map(Vec::len) == Some(2), "{dump:#}");
    ensure!(dump["config"]["localNode"] == "client", "{:#}", dump["config"]);
    ensure!(dump["workloadState"]["client"]["state"] == "Up", "{:#}", dump["workloadState"]);
    let level = proxy.ask(15_000, "POST /logging?level=debug").await.map_err(text)?;
    ensure!(level.contains("debug"), "{level}");
    let answer = proxy.ask(15_000, "POST /quitquitquit").await.map_err(text)?;
    ensure!(answer == "shutdown now\n", "`{answer}`");
    let status = proxy.ended(PATIENCE).await?;
    ensure!(status.success(), "it ended with {status}");
    world.client.agent.remove("client").await;
    Ok(())
}

async fn a_pod_that_goes_away_during_a_drain_ends_at_once(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let (client, mut server) = world.start_both(&[("CONNECTION_TERMINATION_DEADLINE", "60s")]).await?;
    let mut stream = world.client.connect(SERVICE).await.map_err(text)?;
    exchange(&mut stream).await.map_err(|error| failure(&error, &[&client, &server]))?;
    server.terminate();
    exchange(&mut stream).await.map_err(|error| format!("a drain cut a connection: {error}"))?;
    let started = Instant::now();
    world.server.agent.remove("server").await;
    let status = server.ended(PATIENCE).await?;
    ensure!(status.success() && started.elapsed() < Duration::from_secs(5), "{status} after {:?}", started.elapsed());
    let mut rest = [0; 16];
    let end = tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read(&mut stream, &mut rest)).await;
    ensure!(matches!(end, Ok(Ok(0) | Err(_))), "the connection goes on: {end:?}");
    world.client.agent.remove("client").await;
    Ok(())
}

/// What the load saw.
#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
    slowest_micros: AtomicU64,
}

async fn a_rolling_restart_under_load_loses_nothing(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let settings = [("CONNECTION_TERMINATION_DEADLINE", DEADLINE.0)];
    let (mut client, mut server) = world.start_both(&settings).await?;
    let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let load = async {
        let all = (0..LOAD).map(|_| connect_on_and_on(&world.client, &seen, &stop));
        futures_util::future::join_all(all).await;
    };
    let restarts = async {
        let outcome = async {
            replace(world, &world.server, &mut server, &settings).await.map_err(|why| format!("server side: {why}"))?;
            replace(world, &world.client, &mut client, &settings).await.map_err(|why| format!("client side: {why}"))
        };
        let outcome = outcome.await;
        stop.store(true, Ordering::Relaxed);
        outcome
    };
    let (outcome, ()) = tokio::join!(restarts, load);
    let connections = seen.connections.load(Ordering::Relaxed);
    let slowest = Duration::from_micros(seen.slowest_micros.load(Ordering::Relaxed));
    println!("  {connections} connections, the slowest took {slowest:?}");
    outcome?;
    let failures = std::mem::take(&mut *seen.failures.lock().expect("no panic"));
    ensure!(failures.is_empty(), "{} of {connections} connections failed: {}", failures.len(), failures[0]);
    ensure!(connections > 100, "only {connections} connections were made");
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// Starts a second proxy on that node, ends the first, and watches a connection that was there before.
async fn replace(world: &World, side: &NodeSide, old: &mut Ztunnel, settings: &[(&str, &str)]) -> Outcome {
    let mut idle = world.client.connect(SERVICE).await.map_err(text)?;
    exchange(&mut idle).await.map_err(text)?;
    let mut new = world.start(side, settings)?;
    side.proxies(2).await?;
    new.ready(PATIENCE).await?;
    old.terminate();
    let asked = Instant::now();
    // Idle for most of the drain, it still works.
    tokio::time::sleep(DEADLINE.1 / 2).await;
    exchange(&mut idle).await.map_err(|error| format!("after {:?} of the drain: {error}", asked.elapsed()))?;
    let mut rest = [0; 16];
    let end = tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read(&mut idle, &mut rest)).await;
    let lasted = asked.elapsed();
    ensure!(end.is_ok(), "the connection outlives its proxy");
    ensure!(lasted >= DEADLINE.1 - Duration::from_millis(50), "an idle connection was cut after {lasted:?}");
    let status = old.ended(PATIENCE).await?;
    let took = asked.elapsed();
    ensure!(status.success(), "the old proxy ended with {status}: {}", old.log());
    ensure!(took < DEADLINE.1 + Duration::from_secs(2), "the old proxy took {took:?} to end");
    side.proxies(1).await?;
    exchange(&mut world.client.connect(SERVICE).await.map_err(text)?).await.map_err(text)?;
    println!("  a proxy was replaced: the idle connection lasted {lasted:?}, the old process {took:?}");
    *old = new;
    Ok(())
}

async fn connect_on_and_on(side: &NodeSide, seen: &Seen, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let stage = AtomicBool::new(false);
        let mut outcome = std::pin::pin!(async {
            let mut stream = side.connect(SERVICE).await?;
            stage.store(true, Ordering::Relaxed);
            exchange(&mut stream).await
        });
        let failure = match tokio::time::timeout(PATIENCE, &mut outcome).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("nothing happened (connected: {})", stage.load(Ordering::Relaxed))),
        };
        if let Some(error) = failure {
            // The connection is still there to be seen.
            let network = diagnosis::of(&side.pod);
            seen.failures.lock().expect("no panic").push(format!("{error} after {:?}; {network}", started.elapsed()));
        }
        seen.connections.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.slowest_micros.fetch_max(micros, Ordering::Relaxed);
    }
}

/// Sockets of the pod's network with that local port that somebody holds.
pub(crate) fn sockets_on(side: &NodeSide, port: u16) -> Outcome<usize> {
    let read = |name| diagnosis::read(&side.pod, name);
    let tables = read("tcp").map_err(text)? + &read("tcp6").unwrap_or_default();
    let ending = format!(":{port:04X}");
    // What the kernel alone still sends or waits for has no inode.
    let is_ours = |line: &&str| {
        let mut fields = line.split_whitespace();
        fields.nth(1).is_some_and(|local| local.ends_with(&ending)) && fields.nth(7).is_some_and(|inode| inode != "0")
    };
    Ok(tables.lines().filter(is_ours).count())
}

pub(crate) fn failure(error: &std::io::Error, proxies: &[&Ztunnel]) -> String {
    let logs: Vec<String> = proxies.iter().map(|proxy| proxy.log()).collect();
    format!("{error}\n{}", logs.join("\n--\n"))
}
