//! What the bounds of DestinationRules did, under Envoy's names.

use std::{net::SocketAddr, sync::atomic::Ordering};

use ambit_policy::Verdict;
use ambit_waypoint::Limits;
use ambit_xds::workload::AppProtocol;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{counted, operators};
use crate::{
    backend,
    destination::{App, GET, attached, bound, mesh, rule, treat},
    destination_limits::begin,
    mesh::{Mesh, PORT, Shape, VIP, allow_all, exchange, soon, status},
};

const CLUSTER: &str = "cluster_name=\"inbound-vip|5000|http|mlflow.kagenti-system.svc.cluster.local\"";

async fn expect(metrics: SocketAddr, name: &str, value: u32) {
    counted(metrics, &format!("envoy_cluster_{name}"), &[CLUSTER], value).await;
}

async fn ask(mesh: &Mesh) -> u16 {
    let mut stream = mesh.tunnel("any").await;
    status(&exchange(&mut stream, GET).await.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_overflows_is_counted() {
    let app = App::at("127.0.0.2").await;
    let mesh = mesh(&[&app]).await;
    let metrics = operators(&mesh).await;
    treat(&mesh, &json!({"connectionPool": {"http": {"http2MaxRequests": 1}}}));
    let held = begin(&mesh, &app).await;
    expect(metrics, "upstream_rq_pending_overflow_total", 0).await;
    assert_eq!(ask(&mesh).await, 503);
    expect(metrics, "upstream_rq_pending_overflow_total", 1).await;
    app.release.add_permits(1);
    drop(held);

    // The counters go on where the rule changes.
    treat(&mesh, &json!({"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}}));
    let held = begin(&mesh, &app).await;
    expect(metrics, "upstream_cx_overflow_total", 0).await;
    let mut waiting = mesh.tunnel("any").await;
    soon(waiting.write_all(GET.as_bytes())).await.expect("written");
    soon(waiting.flush()).await.expect("flushed");
    expect(metrics, "upstream_cx_overflow_total", 1).await;
    assert_eq!(ask(&mesh).await, 503);
    expect(metrics, "upstream_rq_pending_overflow_total", 2).await;
    expect(metrics, "upstream_cx_overflow_total", 1).await;
    app.release.add_permits(1);
    drop(held);

    app.status.store(503, Ordering::SeqCst);
    let mut service = bound(&[rule(&json!({"connectionPool": {"http": {"maxRetries": 0}}}))]);
    let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "mlflow"}], "rules": [
        {"backendRefs": [{"name": "mlflow", "port": 5000}], "retry": {"attempts": 3, "codes": [503]}}]});
    service.routes = vec![attached(&spec)];
    mesh.bundle(vec![service]);
    assert_eq!(ask(&mesh).await, 503);
    expect(metrics, "upstream_rq_retry_overflow_total", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_not_http_overflow_too() {
    let mut shape = Shape::of(backend::tcp(false).await);
    shape.protocol = AppProtocol::Tcp;
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    let metrics = operators(&mesh).await;
    treat(&mesh, &json!({"connectionPool": {"tcp": {"maxConnections": 1}}}));
    let mut echoed = [0; 4];
    let mut first = mesh.tunnel("any").await;
    soon(first.write_all(b"ping")).await.expect("written");
    soon(first.flush()).await.expect("flushed");
    soon(first.read_exact(&mut echoed)).await.expect("echoed");
    let mut second = mesh.tunnel("any").await;
    let _ = soon(second.write_all(b"ping")).await;
    assert!(soon(second.read_exact(&mut echoed)).await.is_err(), "no room");
    let cluster = CLUSTER.replace("|http|", "|tcp|");
    counted(metrics, "envoy_cluster_upstream_cx_overflow_total", &[&cluster], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_waypoints_own_bounds_are_counted() {
    let app = App::at("127.0.0.2").await;
    for (limits, reason) in [
        (Limits { connections: 1, ..Limits::default() }, "connections"),
        (Limits { tunnels: 1, ..Limits::default() }, "tunnels"),
    ] {
        let shape = Shape { limits, policies: vec![allow_all()], ..Shape::of(app.address) };
        let mut mesh = Mesh::start(shape).await;
        let metrics = operators(&mesh).await;
        let held = mesh.tunnel("any").await;
        let pool = mesh.pool();
        assert!(mesh.connect(&pool, "any", &format!("{VIP}:{PORT}")).await.is_err(), "one too many: {reason}");
        let reason = format!("reason=\"{reason}\"");
        counted(metrics, "ambit_refused_total", &["reporter=\"waypoint\"", &reason], 1).await;
        mesh.expect_record(Verdict::Deny, answered_with(&reason)).await;
        drop(held);
    }
}

/// A connection is closed; a tunnel is answered.
fn answered_with(reason: &str) -> Option<u16> {
    reason.contains("tunnels").then_some(503)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_are_left_out_are_counted_until_they_are_back() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await];
    apps.iter().for_each(|app| app.status.store(500, Ordering::SeqCst));
    let mesh = mesh(&[&apps[0], &apps[1]]).await;
    let metrics = operators(&mesh).await;
    let outliers = json!({"consecutive5xxErrors": 1, "interval": "100ms", "baseEjectionTime": "3s",
        "maxEjectionPercent": 50});
    treat(&mesh, &json!({"outlierDetection": outliers, "loadBalancer": {"simple": "ROUND_ROBIN"}}));
    assert_eq!(ask(&mesh).await, 500);
    expect(metrics, "outlier_detection_ejections_active", 1).await;
    expect(metrics, "outlier_detection_ejections_enforced_total", 1).await;
    expect(metrics, "outlier_detection_ejections_overflow_total", 0).await;
    // The other may not be left out, too.
    assert_eq!(ask(&mesh).await, 500);
    expect(metrics, "outlier_detection_ejections_overflow_total", 1).await;
    // Nobody asks meanwhile: it comes back by itself.
    expect(metrics, "outlier_detection_ejections_active", 0).await;
    expect(metrics, "outlier_detection_ejections_enforced_total", 1).await;
    assert_eq!(ask(&mesh).await, 500);
    expect(metrics, "outlier_detection_ejections_active", 1).await;
    // Without a rule for it nobody is left out.
    treat(&mesh, &json!({"loadBalancer": {"simple": "ROUND_ROBIN"}}));
    assert_eq!(ask(&mesh).await, 500);
    expect(metrics, "outlier_detection_ejections_active", 0).await;
}
